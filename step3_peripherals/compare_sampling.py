"""Ways to choose the next token, side by side: what does each of them write?

    python step3_peripherals/compare_sampling.py                   train a small model, then compare
    python step3_peripherals/compare_sampling.py --seeds 3         three models, mean ± sd
    python step3_peripherals/compare_sampling.py --model runs/lm/model     one made by train_lm.py

Each strategy continues the same beginnings of held-out text with the same model, and is held
against how the text went on ("The curious case of neural text degeneration", Holtzman et al. 2020,
arXiv:1904.09751): what people write is not the likeliest text, and does not repeat itself.

Target of the cpu preset: greedy and beam search repeat 4-grams at least 20 times as often as people
do; top-p is within 0.3 nats of them in -log p, and within 0.1 in the Zipf coefficient.
"""

import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from common import cli, report, runs, subruns
from common.cli import UserError
from common.runs import say
from step1_transformer import resuming, settings
from step3_peripherals import degeneration, trained
from step3_peripherals.language_model import LanguageModel
from step3_peripherals.strategies import STRATEGIES, strategy

SCRIPT = Path(__file__).resolve().parent / "train_lm.py"
TAKEN = {"out", "resume", "data", "seed", "cache"}


@dataclass
class Config(cli.RunConfig):
    data: str = "sotu"
    """Text to learn from and to continue: a name, a file or a folder; a part is held out."""
    model: str = ""
    """Folder of a model that train_lm.py made of this data; empty: train one."""
    settings: tuple[str, ...] = ()
    """Flags of train_lm.py for the training, as in: max-minutes=4 d-model=128."""
    seeds: int = 1
    """Models that are trained, and write."""
    strategies: tuple[str, ...] = STRATEGIES
    """What to compare."""
    texts: int = 200
    """Beginnings that each strategy continues."""
    prompt_tokens: int = 16
    """Tokens of a beginning."""
    new_tokens: int = 48
    """Tokens to write behind it."""
    batch_texts: int = 50
    """Texts that are written together."""
    cache: str = "runs/step3_peripherals"
    """Where vocabularies and token streams are kept for the next run."""

    def __post_init__(self):
        super().__post_init__()
        for name in ("texts", "prompt_tokens", "batch_texts", "seeds"):
            cli.check(self, name, "above 0", lambda value: value > 0)
        cli.check(self, "new_tokens", "4 or more", lambda value: value >= 4)
        for name in self.strategies:
            if name not in STRATEGIES:
                raise UserError(f"no strategy {name!r}; there are: {', '.join(STRATEGIES)}")
        if self.model and self.seeds > 1:
            raise UserError("--seeds: more than one needs a model each, and --model is one")
        settings.check(self, "max-minutes=4", TAKEN)


PRESETS = {
    "smoke": dict(settings=("preset=smoke",), texts=4, prompt_tokens=8, new_tokens=8),
    "cpu": dict(settings=("preset=cpu", "max-minutes=4", "eval-every=100000", "score-lengths=128")),
    "gpu": dict(settings=("preset=gpu", "max-steps=3000", "vocab-size=8192"),
                texts=1000, new_tokens=128, batch_texts=250, seeds=3),
}  # fmt: skip
FREE = {"cache"}
MORE = {"strategies", "seeds"}


def main(config: Config) -> None:
    run = runs.Run.open(config, f"step3_peripherals/compare-sampling-{config.preset}")
    if resuming.finished(run, config, free=FREE, more=MORE):
        return

    texts, losses, found = {}, {}, {}  # name: of the first seed; of all; a list of seeds
    seeds, training, writing = range(config.seed, config.seed + config.seeds), 0.0, 0.0
    folders = {seed: run.path / f"seed-{seed}" for seed in seeds}
    n_tokens, n_prompt = config.prompt_tokens + config.new_tokens, config.prompt_tokens
    try:
        with resuming.tells_how(run.path, "stopped"):
            models = [Path(config.model)]
            if not config.model:
                models, training = train(config, folders)

            # Write, and measure; what is written stays, for a run that goes on after a kill
            for (seed, folder), trained_in in zip(folders.items(), models, strict=True):
                model, tokenizer = trained.load(trained_in, n_tokens)
                model.to("cuda" if torch.cuda.is_available() else "cpu")
                text = trained.text_of(trained_in, config.data, tokenizer, Path(config.cache))
                resuming.record(run, text.manifest["source"], "data_source")
                human = trained.beginnings(text, config.texts, n_tokens)
                written = {degeneration.HUMAN: human}
                for name in config.strategies:
                    file = folder / "texts" / f"{name.replace(' ', '-')}.json"
                    if not file.exists():
                        file.parent.mkdir(parents=True, exist_ok=True)
                        runs.write_json(file, write(name, model, human[:, :n_prompt], seed, config))
                    kept = resuming.read(file)
                    written[name], writing = np.array(kept["texts"]), writing + kept["seconds"]
                texts = texts or written
                for name, each in written.items():
                    nats = surprise(model, each, config)
                    losses.setdefault(name, []).append(nats)
                    found.setdefault(name, []).append(
                        degeneration.measure(each[:, n_prompt:], nats)
                    )
                say(f"seed {seed}: {len(config.strategies)} ways of writing are measured")
    except trained.TooMany as error:
        kept = f"--model {models[0]}, which is trained already,{' --seeds 1' * (len(models) > 1)}"
        told = "" if config.model else f"; begin anew with {kept} and another --out"
        raise UserError(f"{error}{told}") from None

    # Compare
    means, rows = degeneration.means(found), degeneration.rows(found)
    print(f"\n{report.columns(rows)}\n")
    of_all = {name: np.concatenate(each) for name, each in losses.items()}
    degeneration.plot(of_all, means, run.path / "curves.png")
    degeneration.show(texts, tokenizer, n_prompt, run.path / "samples.txt")
    print(f"figure: {run.path}/curves.png\ntexts:  {run.path}/samples.txt")
    print("\n".join(degeneration.targets(means)))
    n_written = config.seeds * len(config.strategies) * config.texts * config.new_tokens
    run.result(
        step="step3_peripherals",
        script="compare_sampling",
        system="ways to choose the next token",
        preset=config.preset,
        dataset=config.data,
        source=text.manifest["source"],
        split="heldout",
        metrics={
            f"{measure} {name}": metric
            for name, scores in found.items()
            for measure, metric in degeneration.metrics(scores).items()
        },
        compare_to=[],
        table={"rows": rows},
        model={"name": "decoder", "parameters": sum(p.numel() for p in model.parameters())},
        tokens=n_written,
        seconds=round(training + writing, 1),
        tokens_per_second=round(n_written / max(writing, 1e-9)),
        seeds=list(seeds),
        config=cli.as_dict(config),
    )


def train(config: Config, folders: dict[int, Path]) -> tuple[list[Path], float]:
    """The models of all seeds, those that are missing trained; and the seconds of all trainings."""
    flags, results = settings.flags(config), []
    for seed, folder in folders.items():
        out = folder / "training"
        if not (out / "result.json").exists():
            options = dict(data=config.data, seed=seed, cache=config.cache)
            subruns.call(SCRIPT, *flags, "--out", out, "--resume", **options)
        results.append(resuming.read(out / "result.json"))
        if len(results) == 1:  # what it measured, its precision and --max-minutes' steps, is all's
            flags = [flag for flag in flags if not flag.startswith("--max-minutes")]
            flags += [f"--max-steps={results[0]['steps']}"]
            flags += [f"--precision={results[0]['precision']}"]
    seconds = sum(result["seconds"] for result in results)
    return [folder / "training" / "model" for folder in folders.values()], seconds


def write(name: str, model: LanguageModel, prompts: np.ndarray, seed: int, config: Config) -> dict:
    """The prompts with what `name` writes behind them, and the seconds that it took."""
    device = next(model.parameters()).device
    generator = torch.Generator(device).manual_seed(seed)
    go_on = strategy(name, model, config.new_tokens, generator)
    texts, start = [], time.perf_counter()
    with runs.progress(len(prompts), desc=name, unit=" texts") as bar:
        for some in torch.from_numpy(prompts).to(device).split(config.batch_texts):
            texts += [a + b for a, b in zip(some.tolist(), go_on(list(some)), strict=True)]
            bar.update(len(some))
    return {"seconds": round(time.perf_counter() - start, 2), "texts": texts}


def surprise(model: LanguageModel, texts: np.ndarray, config: Config) -> np.ndarray:
    """(texts, new tokens): -log p of each token behind the prompts."""
    parts = torch.from_numpy(texts).to(next(model.parameters()).device).split(config.batch_texts)
    found = [degeneration.surprise(model, part, config.prompt_tokens) for part in parts]
    return torch.cat(found).cpu().numpy()


if __name__ == "__main__":
    cli.run(main, Config, PRESETS)
