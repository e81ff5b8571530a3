"""How much data does a small BERT need? Retrain on shares of it and draw what they cost.

    python step2_bert/data_fractions.py --data PREPARED

Every share is trained twice: for equal steps (less data is repeated more often) and for equal
epochs (less data is less training). All are scored on the same held-out documents, and fine-tuned.
Each part is an ordinary run of pretrain.py or finetune_sentence.py and is continued by --resume.
"""

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from common import cli, runs
from common.cli import UserError
from common.runs import metric

SCRIPTS = Path(__file__).resolve().parent


@dataclass
class Config(cli.RunConfig):
    data: str = ""
    """Directory made by prepare.py."""
    size: str = "tiny"
    """Shape of the model."""
    fractions: tuple[float, ...] = (0.1, 0.2, 0.3, 0.4, 0.5, 1.0)
    """Shares of the training samples."""
    max_steps: int = 2000
    """Steps of the whole data; also of every share at equal steps."""
    batch_size: int = 64
    """Samples in a step."""
    learning_rate: float = 2e-3
    """Peak learning rate of pretraining."""
    downstream: str = "rt"
    """Labelled sentences for fine-tuning; empty: none."""
    seeds: int = 3
    """Seeds of fine-tuning."""


PRESETS = {
    "smoke": dict(fractions=(0.5, 1.0), max_steps=10, downstream=""),
    "cpu": {},
    "gpu": dict(size="mini", max_steps=20000, batch_size=256, learning_rate=1e-3),
}


def main(config: Config) -> None:
    run = runs.Run.open(config, f"step2_bert/data-fractions-{config.preset}")
    if run.finished():
        return
    if not (Path(config.data) / "manifest.json").exists():
        raise UserError(f"--data {config.data!r} is not a directory made by prepare.py")

    results, curves = {}, {"steps": {}, "epochs": {}}
    for share in config.fractions:
        for equal in ("steps", "epochs"):
            steps = config.max_steps if equal == "steps" else round(share * config.max_steps)
            folder = run.path / (f"{equal}-{share:g}" if share < 1 else "all")
            if (equal, share) == ("epochs", 1.0):  # the whole data is the same run twice
                results[equal, share] = results["steps", share]
                curves[equal][f"{share:.0%}"] = curves["steps"][f"{share:.0%}"]
                continue
            results[equal, share] = pretrain(config, share, steps, folder)
            curves[equal][f"{share:.0%}"] = runs.Run(folder).metrics()

    for equal, lines in curves.items():
        runs.plot_curves(
            lines,
            run.path / f"curves-equal-{equal}.png",
            x="step",
            title=f"shares of the data, equal {equal}",
        )
    plot(results, run.path / "curves.png")

    metrics = {}
    print(f"{'':10} {'share':>6} {'MLM loss':>9} {'MLM %':>7} {'NSP %':>7} {'downstream %':>14}")
    for (equal, share), found in sorted(results.items()):
        values = [
            found.get(n, {}).get("value", float("nan"))
            for n in ("mlm_loss", "mlm_accuracy", "nsp_accuracy", "accuracy")
        ]
        print(
            f"equal {equal:6} {share:4.0%} {values[0]:9.3f} {values[1]:7.2f} {values[2]:7.2f} "
            f"{values[3]:10.2f}"
        )
        for name, entry in found.items():
            metrics[f"equal_{equal}/{share:g}/{name}"] = entry
    run.result(
        step="step2_bert",
        script="data_fractions",
        system=f"BERT-{config.size}",
        preset=config.preset,
        dataset=Path(config.data).name,
        split="heldout",
        metrics=metrics,
        compare_to=[],
        model={
            "name": config.size,
            "parameters": results["steps", max(config.fractions)]["parameters"]["value"],
        },
        tokens=sum(r["tokens"]["value"] for r in results.values()),
        seconds=sum(r["seconds"]["value"] for r in results.values()),
        tokens_per_second=None,
        seeds=[config.seed],
        config=cli.as_dict(config),
    )


def pretrain(config: Config, share: float, steps: int, folder: Path) -> dict[str, dict]:
    """Metrics of one share after `steps`, and of its fine-tuning."""
    training = start(
        "pretrain.py", folder, data=config.data, size=config.size, fraction=share, max_steps=steps,
        batch_size=config.batch_size, micro_batch_size=config.batch_size, dropout=0.0,
        learning_rate=config.learning_rate, seed=config.seed, eval_every=max(1, steps // 10),
    )  # fmt: skip
    found = dict(training["metrics"])
    for name in ("tokens", "seconds"):
        found[name] = metric(training[name])
    found["parameters"] = metric(training["model"]["parameters"])
    if config.downstream:
        tuning = start(
            "finetune_sentence.py", folder / "downstream", model=folder / "model",
            data=config.downstream, seeds=config.seeds, seed=config.seed,
        )  # fmt: skip
        found["accuracy"] = tuning["metrics"]["accuracy"]
    return found


def start(script: str, folder: Path, **flags) -> dict:
    """Run a script of this step to its end (or on from where it was); its result.json."""
    command = [sys.executable, str(SCRIPTS / script), "--out", str(folder), "--resume"]
    for name, value in flags.items():
        command += [f"--{name.replace('_', '-')}", str(value)]
    print("$", *command[1:], flush=True)
    code = subprocess.run(command).returncode
    if code:
        raise UserError(f"{script} ended with exit code {code}; mend it and go on with --resume")
    return json.loads((folder / "result.json").read_text())


def plot(results: dict, path: Path) -> None:
    """Held-out scores and downstream accuracy against the share of the data."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    names = ("mlm_loss", "mlm_accuracy", "nsp_accuracy", "accuracy")
    names = [n for n in names if all(n in found for found in results.values())]
    figure, axes = plt.subplots(1, len(names), figsize=(4.2 * len(names), 3.4), squeeze=False)
    for axis, name in zip(axes[0], names, strict=True):
        for equal in ("steps", "epochs"):
            points = sorted((s, f[name]) for (e, s), f in results.items() if e == equal)
            axis.errorbar(
                [100 * s for s, _ in points],
                [e["value"] for _, e in points],
                yerr=[e["sd"] or 0 for _, e in points],
                marker="o",
                capsize=3,
                label=f"equal {equal}",
            )
        axis.set_title(name.replace("_", " ") if name != "accuracy" else "downstream accuracy")
        axis.set_xlabel("share of the data, %")
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)


if __name__ == "__main__":
    cli.run(main, Config, PRESETS)
