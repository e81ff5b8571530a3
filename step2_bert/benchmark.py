"""Our training step against `transformers.Trainer` on the same samples, side by side in one run.

    python step2_bert/benchmark.py --data PREPARED --size tiny
    python step2_bert/benchmark.py --data PREPARED --size mini --ladder
    python step2_bert/benchmark.py --data PREPARED --size tiny --target-loss 7.0

Every system starts from the same weights and sees the same batches in the same order, with the same
masks, learning rate, optimizer and dropout, each in a process of its own; systems take turns, and
the median over all rounds counts. Tokens are real ones: padding is work, not tokens.
"""

import dataclasses
import json
import re
import subprocess
import sys
from typing import Any

import numpy as np
import torch

from common import cli, report, runs
from common.cli import UserError
from common.runs import metric
from step1_transformer.budget import DEVICES
from step2_bert import clock
from step2_bert.budget import flops_per_token
from step2_bert.model import BertForPreTraining
from step2_bert.samples import Samples

PRESETS = {"smoke": dict(steps=3, rounds=1), "cpu": {}, "gpu": dict(size="base", batch_size=256)}


def main(config: clock.Config) -> None:
    systems = clock.LADDER if config.ladder else clock.SYSTEMS
    if config.system:
        print(json.dumps(clock.measure(config, systems[config.system])))
        return
    run = runs.Run.open(config, f"step2_bert/benchmark-{config.size}")
    if run.finished():
        return
    samples = Samples.open(config.data, "train")
    model = clock.initial(config, samples)
    parameters = sum(p.numel() for p in model.parameters())

    # Systems take turns, so that a slow minute of the machine falls on all of them.
    found: dict[str, list[dict]] = {name: [] for name in systems}
    for _ in range(config.rounds):
        for name in systems:
            found[name].append(_in_own_process(config, name))

    baseline = next(iter(systems))
    rows = {name: _summary(rounds) for name, rounds in found.items()}
    for row in rows.values():
        row["mfu"] = utilisation(model, samples, row)
        row["ratio"] = row["tokens_per_second"] / rows[baseline]["tokens_per_second"]
    shape = f"{config.batch_size} samples of up to {samples.max_seq_len} tokens a step"
    told = f"BERT-{config.size}, {shape}, dropout {config.dropout}"
    note = (
        f"Tokens are real ones, the ratio is that of tokens/s to {baseline}, loss at the last step."
    )
    lines = table(rows, config.target_loss)
    print(f"\n{told}\n{report.columns(lines)}\n{note}\n")
    metrics = {}
    for name, row in reversed(rows.items()):  # ours first: it is what a summary shows
        key = re.sub(r"\W+", "_", name).strip("_")
        metrics[f"{key}/ratio"] = metric(row["ratio"], n=config.rounds, unit="x")
        metrics[f"{key}/tokens_per_second"] = metric(
            row["tokens_per_second"], sd=row["sd"], n=config.rounds, unit="tokens/s"
        )
        if row["mfu"]:
            metrics[f"{key}/mfu"] = metric(100 * row["mfu"], unit="%")
        metrics[f"{key}/last_loss"] = metric(row["last_loss"], unit="nats", higher_is_better=False)
        metrics[f"{key}/peak_memory"] = metric(row["peak_mb"], unit="MB", higher_is_better=False)
        if row["seconds_to_target"]:
            metrics[f"{key}/seconds_to_loss_{config.target_loss}"] = metric(
                row["seconds_to_target"], unit="s", higher_is_better=False
            )
    runs.write_json(run.path / "steps.json", found)
    run.result(
        step="step2_bert",
        script="benchmark",
        system=f"BERT-{config.size}" + (" ladder" if config.ladder else ""),
        preset=config.preset,
        dataset=samples.manifest["source"]["name"],
        split="train",
        metrics=metrics,
        table={"rows": lines, "notes": [f"{told}. {note}"]},
        compare_to=[],
        model={"name": config.size, "parameters": parameters},
        tokens=sum(sum(r["tokens"]) for rounds in found.values() for r in rounds),
        seconds=round(sum(sum(r["seconds"]) for rounds in found.values() for r in rounds), 1),
        tokens_per_second=round(list(rows.values())[-1]["tokens_per_second"]),
        seeds=[config.seed],
        config=cli.as_dict(config),
    )


def table(rows: dict[str, dict[str, Any]], target: float | None) -> list[list[str]]:
    """A line for each system, in the order in which they were named."""
    columns = {
        "ms a step": lambda row: f"{row['ms']:.1f}",
        "tokens/s": lambda row: f"{row['tokens_per_second']:,.0f}",
        "ratio": lambda row: f"{row['ratio']:.2f}x",
        "peak memory": lambda row: f"{row['peak_mb']:,.0f} MB",
        "loss": lambda row: f"{row['last_loss']:.3f}",
    }
    if any(row["mfu"] for row in rows.values()):
        columns["of the peak"] = lambda row: f"{row['mfu']:.0%}"
    if target is not None:
        columns[f"to held-out loss {target}"] = lambda row: (
            f"{row['seconds_to_target']:.1f} s" if row["seconds_to_target"] else "not reached"
        )
    body = [[name, *(cell(row) for cell in columns.values())] for name, row in rows.items()]
    return [["", *columns], *body]


def utilisation(model: BertForPreTraining, samples: Samples, row: dict[str, Any]) -> float | None:
    """Model FLOPs utilisation (Chowdhery et al. 2022, appendix B): the FLOPs a second that the
    model needs, as a share of the dense bf16 peak of this GPU. None on other devices."""
    name = torch.cuda.get_device_name() if torch.cuda.is_available() else ""
    name = name.lower().replace(" ", "")
    known = (d.tflops for key, d in DEVICES.items() if re.search(rf"{key}(?!\d)", name))
    peak = next(known, None)
    flops = flops_per_token(model, samples.max_seq_len, samples.masking.probability)
    return peak and row["tokens_per_second"] * flops / (peak * 1e12)


def _in_own_process(config: clock.Config, name: str) -> dict[str, Any]:
    """What `clock.measure` returns, from a process in which nothing else has run."""
    flags = [f"--system={name}"] + (["--ladder"] if config.ladder else [])
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if field.name not in ("ladder", "system", "resume", "out", "tracker") and value is not None:
            flags.append(f"--{field.name.replace('_', '-')}={value}")
    command = [sys.executable, __file__, *flags]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise UserError(f"{name} failed: {(done.stderr.strip() or 'killed').splitlines()[-1]}")
    timed = json.loads(done.stdout.strip().splitlines()[-1])
    runs.say(f"{name}: {1000 * np.median(timed['seconds']):.0f} ms a step")
    return timed


def _summary(rounds: list[dict]) -> dict[str, Any]:
    rates = [np.sum(r["tokens"]) / np.sum(r["seconds"]) for r in rounds]
    targets = [r["seconds_to_target"] for r in rounds if r["seconds_to_target"]]
    return {
        "ms": 1000 * float(np.median(np.concatenate([r["seconds"] for r in rounds]))),
        "tokens_per_second": float(np.median(rates)),
        "sd": float(np.std(rates, ddof=1)) if len(rates) > 1 else None,
        "peak_mb": max(r["peak_mb"] for r in rounds),
        "last_loss": rounds[-1]["losses"][-1],
        "seconds_to_target": float(np.median(targets)) if targets else None,
    }


if __name__ == "__main__":
    cli.run(main, clock.Config, PRESETS)
