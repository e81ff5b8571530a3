"""The trainings that a script compares: runs of finetune.py, each in a folder of its own."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from common import runs, subruns
from step1_transformer import resuming, settings
from step4_finetune_glue import classifier, tasks
from step4_finetune_glue.tasks import Task

SCRIPT = Path(__file__).resolve().parent / "finetune.py"
TAKEN = {"out", "resume", "seed", "seeds", "preset", "task", "data", "model", "precision",
         "slice_minutes", "max_minutes", "plan"}  # fmt: skip
Todo = Sequence[tuple[Path, int, tuple[str, ...]]]  # folder, seed, flags of its own


def begin(run: runs.Run, task: Task, config: Any) -> None:
    """Raises UserError if there are no such files or no such checkpoint, before a training would
    leave a folder with their names; or if the run was begun with others, for what is trained
    already would stand beside what is not."""
    checkpoint = classifier.find(config.model)
    tasks.check_trainable(task)
    resuming.record(run, tasks.facts(task, "train", config.data))
    held = tasks.found(task, task.dev_splits, config.data)
    dev = {split: tasks.facts(task, split, config.data)["fingerprint"] for split in held}
    resuming.record(run, dev, "held")
    resuming.record(run, classifier.fingerprint(checkpoint), "checkpoint", "another checkpoint")


def commands(config: Any, todo: Todo, budget: subruns.Slice) -> Iterator[list[str]]:
    """The commands of all trainings that are not finished.

    `config` has the task, data, model and precision of all, and `settings`, more flags for all.
    """
    for number, (folder, seed, own) in enumerate(todo, 1):
        if (folder / "result.json").exists():
            continue
        same = dict(task=config.task, data=config.data, model=config.model, seed=seed, seeds=1)
        same |= dict(preset="gpu", precision=config.precision)  # the one that limits nothing
        if minutes := budget.left():
            same["slice_minutes"] = minutes
        print(f"{number} of {len(todo)}: $ finetune.py --out {folder}", flush=True)
        flags = ["--out", folder, "--resume", *settings.flags(config), *own]
        yield subruns.command_of(SCRIPT, *flags, **same)


def read(folder: Path) -> dict[str, Any]:
    """What the training in `folder` came to."""
    return resuming.read(folder / "result.json")
