"""Who runs the stages: this machine, a Slurm cluster or a Ray cluster, by datatrove's executors.

All three mark a finished task by an empty file in stages/<stage>/completions, and skip it when they
are started again; on a cluster, the run directory must be on a disk that all machines share.
"""

import contextlib
import importlib
import io
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from copy import deepcopy
from pathlib import Path
from threading import Thread

import loguru
from datatrove.executor import LocalPipelineExecutor, RayPipelineExecutor, SlurmPipelineExecutor

from common.cli import UserError
from step3_peripherals.blocks import Stage

LOGS = "stages"


class Local(LocalPipelineExecutor):
    """Quiet (each task has its log in stages/<stage>/logs), and gone when its parent is killed."""

    def run(self) -> None:
        """Run the tasks that are not complete, each in one of `workers` processes.

        Raises UserError when such a process is killed; datatrove's own pool would replace it and
        wait for its task for ever.
        """
        self.save_executor_as_json()
        ranks = self.get_incomplete_ranks()
        if self.workers == 1:
            for rank in ranks:
                deepcopy(self)._run_for_rank(rank)  # blocks count, and must begin at 0
            return
        context = multiprocessing.get_context("forkserver")
        with ProcessPoolExecutor(self.workers, context, initializer=_begin) as pool:
            try:
                for task in as_completed([pool.submit(self._run_for_rank, rank) for rank in ranks]):
                    task.result()
            except BaseException as error:  # a task's, or Ctrl-C
                for process in multiprocessing.active_children():
                    process.terminate()
                if not isinstance(error, BrokenProcessPool):
                    raise
                logs = f"{self.logging_dir.path}/logs"
                why = error.__cause__ or "killed, as for want of memory: give fewer --workers"
                told = f"the process of a task broke off ({why}), see {logs}"
                raise UserError(f"{told}; go on with --resume") from error

    def _run_for_rank(self, rank: int, local_rank: int = 0, node_rank: int = -1):
        with contextlib.redirect_stderr(io.StringIO()):
            return super()._run_for_rank(rank, local_rank, node_rank)


def _begin() -> None:
    """A worker ends with its parent, even a killed one, and leaves Ctrl-C to it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def watch():
        multiprocessing.parent_process().join()
        os._exit(1)

    Thread(target=watch, daemon=True).start()


def run_local(stages: Sequence[Stage], out: Path, workers: int, done=lambda stage: None) -> None:
    """Run one stage after the other, in up to `workers` processes; `done` is called after each."""
    loguru.logger.remove()
    for stage in stages:
        executor = Local(
            stage.blocks,
            tasks=stage.tasks,
            workers=min(workers, stage.tasks),
            logging_dir=str(out / LOGS / stage.name),
        )
        if executor.get_incomplete_ranks():
            executor.run()
            done(stage)


def launch_slurm(stages: Sequence[Stage], out: Path, workers: int, **options) -> bool:
    """Submit a job array for each stage, which waits for the one before; False: all was done.

    `options` are those of SlurmPipelineExecutor: partition, time, mem_per_cpu_gb, ...
    Raises UserError where there is no sbatch, or when it refuses a job.
    """
    last = None
    for stage in stages:
        last = SlurmPipelineExecutor(
            stage.blocks,
            tasks=stage.tasks,
            workers=workers,
            job_name=f"gym-{stage.name}",
            venv_path=f"{sys.prefix}/bin/activate",
            logging_dir=str((out / LOGS / stage.name).resolve()),
            depends=last,
            **options,
        )
    if not last.get_incomplete_ranks():
        return False
    if shutil.which("sbatch") is None:
        raise UserError("no sbatch here: --executor slurm runs on a machine that submits to Slurm")
    try:
        last.run()
    except subprocess.CalledProcessError as error:
        told = f"sbatch refused a job (exit code {error.returncode}) and says above why"
        raise UserError(f"{told}; see --slurm-partition and --slurm-time") from None
    return True


def slurm_seconds(out: Path) -> float:
    """From the first submission to the last finished task, with the waiting in between."""
    sent = [file.stat().st_mtime for file in (out / LOGS).glob("*/launch_script.slurm")]
    done = [file.stat().st_mtime for file in (out / LOGS).glob("*/completions/*")]
    return max(done) - min(sent) if sent and done else 0.0


def run_ray(stages: Sequence[Stage], out: Path, workers: int, done=lambda stage: None) -> None:
    """Run one stage after the other on the Ray cluster of RAY_ADDRESS, or else of this machine.

    Raises UserError where there is no Ray, and after a stage with a task that failed: datatrove
    ends such a stage like any other, and would wait for it for ever if the next depended on it.
    """
    try:
        ray = importlib.import_module("ray")  # by its name: an option, which we do not require
    except ImportError:
        raise UserError("--executor ray needs Ray: pip install ray") from None
    loguru.logger.remove()  # each task has its log, as with `run_local`
    ray.init(ignore_reinit_error=True, log_to_driver=False, logging_level="ERROR")
    for stage in stages:
        logs = out / LOGS / stage.name
        executor = RayPipelineExecutor(
            stage.blocks, tasks=stage.tasks, workers=workers, logging_dir=str(logs.resolve())
        )
        if not executor.get_incomplete_ranks():
            continue
        executor.run()
        if failed := executor.get_incomplete_ranks():
            told = f"{stage.name}: {len(failed)} of {stage.tasks} tasks failed; see {logs}/logs"
            raise UserError(f"{told}, mend it and go on with --resume")
        done(stage)
