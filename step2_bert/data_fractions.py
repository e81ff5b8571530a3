"""How much data does a small BERT need? Retrain on shares of it and draw what they cost.

    python step2_bert/data_fractions.py --data PREPARED

Every share is trained twice: for equal steps (less data is repeated more often) and for equal
epochs (less data is less training). All are scored on the same held-out documents, and fine-tuned.
Embeddings start from counted neighbours of the share and 40 % is masked: so small a training leaves
the plateau in which only unigram frequencies are learned, and where more data cannot help.
Each part is an ordinary run of pretrain.py or finetune_sentence.py and is continued by --resume.
"""

import json
from dataclasses import dataclass
from pathlib import Path

from common import cli, runs, subruns
from common.cli import UserError
from step1_transformer import resuming
from step2_bert.model import Size

SCRIPTS = Path(__file__).resolve().parent

TITLES = {
    "mlm_loss": "MLM loss (nats)",
    "mlm_accuracy": "MLM accuracy (%)",
    "nsp_accuracy": "NSP accuracy (%)",
    "accuracy": "downstream accuracy (%)",
}


@dataclass
class Config(cli.RunConfig):
    data: str = ""
    """Directory made by prepare.py."""
    size: Size = "tiny"
    """Shape of the model."""
    fractions: tuple[float, ...] = (0.1, 0.2, 0.3, 0.4, 0.5, 1.0)
    """Shares of the training samples."""
    max_steps: int = 3000
    """Steps of the whole data; also of every share at equal steps."""
    batch_size: int = 32
    """Samples in a step."""
    learning_rate: float = 2e-3
    """Peak learning rate of pretraining."""
    optimizer: str = "muon"
    """adamw, or muon for the weight matrices."""
    downstream: str = "rt"
    """Labelled sentences for fine-tuning; empty: none."""
    seeds: int = 3
    """Seeds of fine-tuning."""
    slice_minutes: float | None = None
    """Stop with checkpoints and exit code 75 after this many minutes; --resume goes on."""


PRESETS = {
    "smoke": dict(fractions=(0.5, 1.0), max_steps=10, batch_size=32, downstream="", seeds=1),
    "cpu": {},
    "gpu": dict(size="mini", max_steps=20000, batch_size=256, learning_rate=1e-3),
}


def main(config: Config) -> None:
    run = runs.Run.open(config, f"step2_bert/data-fractions-{config.preset}")
    if resuming.finished(run, config, free={"preset", "slice_minutes"}):
        return
    if not (Path(config.data) / "manifest.json").exists():
        raise UserError(f"--data {config.data!r} is not a directory made by prepare.py")

    # Train: keys are (steps or epochs, share), values the result.json of pretraining
    results, curves = {}, {"steps": {}, "epochs": {}}
    budget = subruns.Slice(config.slice_minutes)
    for share in config.fractions:
        for equal in ("steps", "epochs"):
            steps = config.max_steps if equal == "steps" else round(share * config.max_steps)
            folder = run.path / (f"{equal}-{share:g}" if share < 1 else "all")
            if (equal, share) == ("epochs", 1.0):  # of the whole data both are the same run
                results[equal, share] = results["steps", share]
            else:
                with resuming.tells_how(run.path):
                    results[equal, share] = pretrain(config, share, max(1, steps), folder, budget)
            events = runs.Run(folder).metrics()
            curves[equal][f"{share:.0%}"] = [e for e in events if e["event"] == "eval"]

    # Draw and print
    for equal, lines in curves.items():
        title = f"shares of the data, equal {equal}"
        runs.plot_curves(lines, run.path / f"curves-equal-{equal}.png", x="step", title=title)
    names = ("mlm_loss", "mlm_accuracy", "nsp_accuracy", "accuracy")
    names = [n for n in names if all(n in found["metrics"] for found in results.values())]
    plot(results, names, run.path / "curves.png")
    titles = "".join(f"{TITLES[name]:>24}" for name in names)
    print(f"\n{'held-out scores':16}{'share':>7}{titles}")
    for (equal, share), found in sorted(results.items(), reverse=True):
        values = "".join(f"{found['metrics'][name]['value']:24.3f}" for name in names)
        print(f"{f'equal {equal}':16}{share:7.0%}{values}")
    print(f"\ncurves: {run.path}/curves.png, curves-equal-steps.png, curves-equal-epochs.png")

    whole = results["steps", max(config.fractions)]
    distinct = {id(found): found for found in results.values()}.values()
    run.result(
        step="step2_bert",
        script="data_fractions",
        system=f"BERT-{config.size}",
        preset=config.preset,
        dataset=whole["dataset"],
        split="heldout",
        metrics={
            f"{name}_equal_{equal}_{share:.0%}": found["metrics"][name]
            for (equal, share), found in results.items()
            for name in names
        },
        compare_to=[],
        model=whole["model"],
        tokens=sum(found["tokens"] for found in distinct),
        seconds=round(sum(found["seconds"] for found in distinct), 1),
        tokens_per_second=whole["tokens_per_second"],
        seeds=[config.seed],
        config=cli.as_dict(config),
    )


def pretrain(config: Config, share: float, steps: int, folder: Path, budget: subruns.Slice) -> dict:
    """The result of one share after `steps`, the accuracy of its fine-tuning among its metrics."""
    found = start(
        "pretrain.py", folder, budget, preset=config.preset, data=config.data, size=config.size,
        fraction=share, max_steps=steps, batch_size=config.batch_size, dropout=0.0,
        micro_batch_size=config.batch_size, learning_rate=config.learning_rate, seed=config.seed,
        optimizer=config.optimizer, muon_learning_rate=0.01, embeddings="counted",
        mask_probability=0.4,
    )  # fmt: skip
    if config.downstream:
        tuning = start(
            "finetune_sentence.py", folder / "downstream", budget, preset=config.preset,
            model=folder / "model", data=config.downstream, seeds=config.seeds, seed=config.seed,
        )  # fmt: skip
        found["metrics"]["accuracy"] = tuning["metrics"]["accuracy"]
    return found


def start(script: str, folder: Path, budget: subruns.Slice, **settings) -> dict:
    """Run a script of this step to its end (or on from where it was); its result.json."""
    if not (folder / "result.json").exists():
        if minutes := budget.left():
            settings["slice_minutes"] = minutes
        command = subruns.command_of(SCRIPTS / script, "--out", folder, "--resume", **settings)
        print("$", script, *command[2:], flush=True)
        subruns.call_all([command])
    return json.loads((folder / "result.json").read_text())


def plot(results: dict, names: list[str], path: Path) -> None:
    """One panel for each of `names`: the score against the share of the data."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.2 * len(names), 3.4))
    axes = figure.subplots(1, len(names), squeeze=False)
    for axis, name in zip(axes[0], names, strict=True):
        for equal in ("steps", "epochs"):
            found = {s: f["metrics"][name] for (e, s), f in sorted(results.items()) if e == equal}
            shares, scores = [100 * share for share in found], found.values()
            values, sds = [s["value"] for s in scores], [s["sd"] or 0 for s in scores]
            axis.errorbar(shares, values, yerr=sds, marker="o", capsize=3, label=f"equal {equal}")
        axis.set(title=TITLES[name], xlabel="share of the data (%)")
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    cli.run(main, Config, PRESETS)
