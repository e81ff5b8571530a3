"""Fine-tune any BERT on a task of GLUE, over several seeds, and score it on the whole dev set.

python step4_finetune_glue/finetune.py                           film reviews, embedded MiniLM
python step4_finetune_glue/finetune.py --task RTE --model minilm --seeds 5
python step4_finetune_glue/finetune.py --task CoLA --model notes/zoo/bert-tiny
python step4_finetune_glue/finetune.py --task MRPC --model roberta-base --impl hf
python step4_finetune_glue/finetune.py --task RTE --layer-decay 0.9 --reinit-layers 1
python step4_finetune_glue/finetune.py --preset paper --task QQP --plan h100
accelerate launch --num_processes 8 step4_finetune_glue/finetune.py --preset paper --data glue_data

A seed decides the head's first weights, the order of the rows and dropout. What counts is the model
after the last epoch, and the mean over seeds: the best epoch or seed on dev is no estimate.
"""

import shutil
from pathlib import Path

from common import cli, engine, runs, subruns
from step1_transformer import resuming
from step4_finetune_glue import budget, classifier, outcome, tasks
from step4_finetune_glue.training import Config, Data, Trial

PRESETS = {
    "smoke": dict(seeds=1, batch_size=16, micro_batch_size=16, train_limit=64, max_steps=4),
    "cpu": dict(seeds=3, epochs=3, train_limit=8000),
    "gpu": {},
    # at 3e-5, one of BERT's four rates; its paper has all of GLUE: see --task
    "paper": dict(task="MNLI", model="bert-base-uncased", epochs=3),
}
TARGETS = {"rt": 82.0, "RTE": 55.0, "MRPC": 84.0, "SST-2": 85.0}  # of cpu: minilm, mean on dev, %

FREE = {"preset", "slice_minutes", "seeds", "save_minutes", "log_every"}
FREE |= {"plan", "n_devices", "utilisation", "price"}


def main(config: Config) -> None:
    if config.plan:
        return budget.print_plan(config)
    task = tasks.task(config.task)
    accelerator = engine.accelerator(config)
    main_process = accelerator.is_main_process
    name = f"{task.name.lower()}-{Path(config.model).name}-{config.preset}"
    whole = runs.Run.open(config, f"step4_finetune_glue/{name}", main=main_process)
    accelerator.wait_for_everyone()  # all look at what the main process has begun
    if resuming.finished(whole, config, free=FREE, more={"seeds"}):
        return

    # Rows and checkpoint, once they are known to fit
    checkpoint = classifier.find(config.model)
    tokenizer = classifier.tokenizer_of(checkpoint, config.max_seq_len)
    rows = Data.read(task, config)
    if main_process:
        facts = {
            "source": rows.train.source,
            "held": {split: r.source["fingerprint"] for split, r in (rows.dev | rows.test).items()},
            "checkpoint": classifier.facts(checkpoint, config.pooling, config.impl),
        }
        for name, found in facts.items():
            what = "another checkpoint" if name == "checkpoint" else "other data"
            resuming.record(whole, found, name, what)
        print(rows.told(), flush=True)
    trial = Trial.of(task, config, rows, checkpoint, tokenizer)
    if main_process and len(trial.train) < len(rows.train):
        print(f"training on {len(trial.train):,} of them, drawn at random (--train-limit)")

    # Train, score and predict, once a seed; a seed that has its scores is never done again
    seeds = range(config.seed, config.seed + config.seeds)
    folders = {seed: whole.path / f"seed-{seed}" for seed in seeds}
    todo = [seed for seed in seeds if not (folders[seed] / outcome.FILE).exists()]
    minutes = subruns.Slice(config.slice_minutes)
    # What the first seed chose by measuring, its precision and --max-minutes' steps, is all seeds'
    done = [folders[seed] for seed in seeds if seed not in todo]
    if main_process:
        for folder in done:  # a kill may have come before they were dropped
            shutil.rmtree(folder / "checkpoints", ignore_errors=True)
    chosen = outcome.chosen(done[0]) if done else {}
    for seed in todo:
        with resuming.tells_how(whole.path, f"stopped at seed {seed}"):
            state = trial.run(seed, folders[seed], accelerator, minutes.left(), chosen)
            chosen = chosen or dict(precision=state.precision, max_steps=state.total_steps)
    if not main_process:
        return

    every = outcome.read(folders.values())
    together = outcome.over_seeds(every)
    start = "random" if config.random else "pretrained"
    kind = "" if config.impl == "scratch" else "transformers' "
    model = config.model.rstrip("/")
    named = (f"{kind}{model}", f"{start} weights", f"{trial.config.pooling} pooling")
    system = ", ".join([*named, *config.recipe()])
    print(f"\n{task.name}, {system}, %")
    print(outcome.told(together))
    if (config.preset, config.model) == ("cpu", "minilm") and task.name in TARGETS:
        print(outcome.target(together, TARGETS[task.name]))
    print()
    curves = {f"seed {seed}": runs.Run(folder).metrics() for seed, folder in folders.items()}
    runs.plot_curves(curves, whole.path / "curves.png", title=f"{task.name}, {config.model}")
    whole.result(
        every,
        step="step4_finetune_glue",
        script="finetune",
        system=system,
        preset=config.preset,
        dataset=task.name if task.name == "rt" else f"glue/{task.name}",
        source=rows.train.source,
        split=" and ".join(rows.dev),
        **together,
        low_resource=trial.low_resource,
        compare_to=[],
        model={"name": config.model, "parameters": every[0]["parameters"]},
        train_rows=len(trial.train),
        dev_rows={split: len(part) for split, part in rows.dev.items()},
        seeds=list(seeds),
        config=cli.as_dict(trial.config) | {"max_steps": every[0]["steps"]},
    )


if __name__ == "__main__":
    cli.run(main, Config, PRESETS)
