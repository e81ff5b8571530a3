"""From a raw dump to clean shards: repair, language, quality, duplicates, sentences.

python step3_peripherals/pipeline.py                            sotu + imdb, with planted faults
python step3_peripherals/pipeline.py --data enwiki --preset gpu
python step3_peripherals/pipeline.py --data zhwiki --languages zh --plant 0.1
python step3_peripherals/pipeline.py --data dump/ --executor slurm --slurm-partition cpu

Then: python step2_bert/prepare.py --data runs/step3_peripherals/pipeline-gpu/shards

The engine is datatrove: five stages of blocks, each cut into tasks. A run that was killed goes on
with --resume, and does no finished task again. Neither --workers nor the executor changes a byte of
the result.

Target of the cpu preset: all planted exact duplicates found, at least 95 % of the near ones of
Jaccard index 0.9 or more, all mojibake repaired, and no document without damage.
"""

import re
import shutil
import signal
import time
from dataclasses import dataclass, replace
from itertools import islice
from typing import Literal

from common import cli, data, runs
from common.cli import UserError
from common.runs import metric
from step1_transformer import resuming


@dataclass
class Config(cli.RunConfig):
    data: str = "sotu+imdb"
    """Raw text: a known name, a file, or a folder."""
    languages: tuple[str, ...] = ("en",)
    """Languages to keep (ISO 639-1); rules are tuned for en and zh."""
    plant: float | None = None
    """Share of the documents to plant known faults in, to measure how many are found: the shards
    are then for measuring, not for training. Default: 0.1 in the default corpus, else none (but in
    the smoke preset half)."""
    bands: int = 14
    """Bands of the MinHash signature: more find more near-duplicates."""
    rows: int = 8
    """Rows of a band: more make the threshold (1/bands)^(1/rows) higher and steeper."""
    tasks: int = 16
    """Pieces that the documents are dealt into: shards, and units of work to redo after a kill."""
    workers: int | None = None
    """Tasks at a time; by default one for each core, on a cluster all. The result does not depend
    on it."""
    executor: Literal["local", "slurm", "ray"] = "local"
    """Where the tasks run: here, or on a cluster with this folder on a shared disk."""
    slurm_partition: str = "cpu"
    """Slurm's partition."""
    slurm_time: str = "10:00:00"
    """Slurm's limit for one task, in hours:minutes:seconds."""
    max_documents: int | None = None
    """Read so many documents of each file at most."""
    skip_bad_lines: bool = False
    """Leave out, and count, rows that are no JSON or have no text."""
    keep_work: bool = False
    """Keep what the stages hand to each other (three times the size of the shards)."""

    def __post_init__(self):
        super().__post_init__()
        for name in ("bands", "rows", "tasks", "workers", "max_documents"):
            cli.check(self, name, "1 or more", lambda value: value >= 1)
        cli.check(self, "rows", "at most 4096 divided by --bands", lambda n: n * self.bands <= 4096)
        codes = re.compile("[a-z]{2,3}( [a-z]{2,3})*")
        if not codes.fullmatch(" ".join(self.languages)):
            raise UserError("--languages takes codes of ISO 639, such as: --languages en zh")
        cli.check(self, "plant", "a share, from 0 to 1", lambda value: 0 <= value <= 1)


PRESETS = {
    "smoke": dict(data="sotu", plant=0.5, tasks=3, max_documents=40),
    "cpu": {},
    "gpu": dict(tasks=64),
}
FREE = {"preset", "workers", "keep_work", "executor", "slurm_partition", "slurm_time"}


def main(config: Config) -> None:
    if config.plant is None:
        config = replace(config, plant=0.1 if config.data == Config.data else 0.0)
    run = runs.Run.open(config, f"step3_peripherals/pipeline-{config.preset}")
    if resuming.finished(run, config, free=FREE):
        return
    try:
        process(config, run)
    except (KeyboardInterrupt, cli.Interrupted) as stop:
        signum = getattr(stop, "signum", signal.SIGINT)
        verb = "go on" if signum else "submitted to Slurm; when it is done, go on"
        told = f"{verb} with: {cli.resume_command(run.path)}"
        raise cli.Interrupted(signum, told) from None


def process(config: Config, run: runs.Run) -> None:
    try:
        from step3_peripherals import blocks, executors, funnel
        from step3_peripherals.dedup import MinHash
    except ImportError as error:
        raise UserError(f"{error.name} is missing: pip install datatrove") from None
    out, started = run.path, time.perf_counter()
    source = data.resolve(config.data)
    facts = source.facts()
    resuming.record(run, facts)
    minhash = MinHash(config.bands, config.rows)
    stages = blocks.stages(
        blocks.units_of(source), out, languages=config.languages, tasks=config.tasks,
        minhash=minhash, plant=config.plant, seed=config.seed,
        max_documents=config.max_documents, skip_bad_lines=config.skip_bad_lines,
    )  # fmt: skip

    def done(stage) -> None:
        nonlocal started
        run.log("stage", stage=stage.name, seconds=round(time.perf_counter() - started, 2))
        runs.say(f"{stage.name}: {time.perf_counter() - started:.1f} s")
        started = time.perf_counter()

    cores = runs.hardware()["cores"]  # what a cluster has, its scheduler knows: -1, no limit
    workers = config.workers or (cores if config.executor == "local" else -1)
    if config.executor == "slurm":
        limits = dict(partition=config.slurm_partition, time=config.slurm_time)
        if executors.launch_slurm(stages, out, workers, **limits):
            raise cli.Interrupted(0, "submitted")
    elif config.executor == "ray":
        executors.run_ray(stages, out, workers, done)
    else:
        executors.run_local(stages, out, workers, done)

    # What became of it
    found = funnel.counts(out)
    if not found["1-read/deal"]["total"]:
        raise UserError(f"{source.name}: no text in it")
    table, shown, kinds = funnel.funnel(found), funnel.examples(out), funnel.planted(out)
    texts = (row["text"] for row in funnel.rows(out / "shards") if len(row["text"]) > 1500)
    curve = funnel.s_curve(islice(texts, 60), minhash)
    checked = funnel.verify(out)
    funnel.show(table, kinds, shown, checked)
    if config.plant:
        print(funnel.target(kinds))
    funnel.draw(table, *curve, minhash, out / "curves.png")
    runs.write_json(out / "funnel.json", table)
    runs.write_json(out / "examples.json", shown)
    read, written = found["1-read/deal"]["total"], found["5-write/write"]["total"]
    if not written:
        raise UserError(f"{source.name}: nothing of it is left; see {out}/examples.json")
    seconds = sum(event["seconds"] for event in run.metrics()) or executors.slurm_seconds(out)
    kept = metric(100 * written / read, n=read, unit="%", higher_is_better=None)
    metrics = {"documents_kept": kept}
    if not config.resume:  # the time of an attempt that was killed is not known
        rate = round(read / max(seconds, 1e-9), 1)
        metrics["documents_per_second"] = metric(rate, unit="documents/s")
    peak = round(max(block["peak_memory"] for block in found.values()) / 1024)
    metrics["peak_memory"] = metric(peak, unit="MiB", higher_is_better=False)
    for kind, n in kinds.items():
        if kind == "clean":
            metrics["clean_documents_repaired"] = metric(n["found"], higher_is_better=False)
        elif n["reached"]:
            share = 100 * n["found"] / n["reached"]
            metrics[f"{kind}_recall"] = metric(share, n=n["reached"], unit="%")
    for kind in ("exact", "near"):
        if n := checked.get(kind):
            share = 100 * checked[f"{kind}_true"] / n
            metrics[f"{kind}_precision"] = metric(share, n=n, unit="%")
    run.result(
        step="step3_peripherals",
        script="pipeline",
        system=f"pipeline on datatrove, {config.executor}",
        preset=config.preset,
        dataset=config.data,
        source=facts,
        split="train",
        metrics=metrics,
        compare_to=[],
        documents={"read": read, "written": written},
        characters=found["1-read/source"]["characters"],
        sentences=found["5-write/sentences"]["total"],
        funnel=table,
        planted=kinds,
        table={"rows": funnel.kept(funnel.fallen(table, shown))},
        model=None,
        tokens=None,
        seconds=round(seconds, 1),
        tokens_per_second=None,
        resumed=config.resume,
        seeds=[config.seed],
        config=cli.as_dict(config),
    )
    if not config.keep_work:
        shutil.rmtree(out / "work")


if __name__ == "__main__":
    cli.run(main, Config, PRESETS)
