"""The one training loop.

A step of training, whatever the model: take a global batch, cut it into micro-batches, run each
forward and backward, clip, step, log. Three promises hold throughout.

- Token-exact accumulation. `losses(model, batch)` returns *sums*; `batch["targets"]` says over
  how many targets. Each sum is divided by the count over the whole global batch before
  `backward`, so micro-batches and processes only change where the work is done.
- Exact resume. Batch order and randomness are functions of (seed, step); a checkpoint holds
  weights, optimizer state and a step number, and the rest follows.
- Nothing is lost. Checkpoints are written beside and renamed; a signal saves before it stops.
"""

import contextlib
import json
import math
import shutil
import signal
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.distributed.checkpoint import state_dict as sharded

from common import batching, cli, optim
from common.cli import UserError
from common.runs import Run, in_order, progress, say, words

Batch = dict[str, Any]
Losses = Callable[[nn.Module, Batch], dict[str, torch.Tensor]]
WHOLE = sharded.StateDictOptions(full_state_dict=True, cpu_offload=True)


@dataclass
class TrainConfig(cli.RunConfig):
    """The flags of every script that trains."""

    batch_size: int = 256
    """Samples in an optimizer step, over all micro-batches and processes."""
    micro_batch_size: int = 64
    """Samples computed at once on one process; the rest is gradient accumulation."""
    max_steps: int | None = None
    """Optimizer steps to train; the schedule ends there."""
    max_minutes: float | None = None
    """Minutes to train; the schedule is fitted to them after a short measurement."""
    slice_minutes: float | None = None
    """Stop with a checkpoint and exit code 75 after this many minutes; --resume goes on."""
    learning_rate: float = 1e-3
    """Peak learning rate of AdamW."""
    optimizer: Literal["adamw", "muon"] = "adamw"
    """adamw, or muon for the weight matrices with adamw for the rest."""
    schedule: Literal["linear", "cosine", "inverse_sqrt", "wsd", "constant"] = "linear"
    """Shape of the learning rate after warm-up."""
    warmup: float = 0.06
    """Share of the steps spent in linear warm-up."""
    final: float = 0.0
    """Learning rate at the end, as a share of the peak."""
    weight_decay: float = 0.01
    """Decoupled weight decay of matrices."""
    clip: float = 1.0
    """Largest gradient norm; 0 turns clipping off."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Arithmetic of matrix products; auto measures both here and takes the faster."""
    compile: bool = False
    """Compile the model with torch.compile (needs a C++ compiler on CPU)."""
    eval_every: int | None = None
    """Optimizer steps between evaluations on held-out data; default: a tenth of the run."""
    log_every: int = 20
    """Optimizer steps between lines of metrics.jsonl."""
    save_minutes: float = 5.0
    """Minutes between checkpoints."""


@dataclass
class State:
    """Where training stands; with weights and optimizer state, all that a checkpoint needs."""

    step: int = 0
    epoch: int = 0
    position: int = 0
    tokens: int = 0
    seconds: float = 0.0
    total_steps: int = 0
    precision: str = "fp32"
    config_digest: str = ""


def seed_everything(seed: int) -> None:
    """Seed torch on every device (weights, dropout); data order has its own generators."""
    torch.manual_seed(seed)


def accelerator(config: cli.RunConfig):
    """The process group, device and trackers of this run, from `accelerate`."""
    from accelerate import Accelerator
    from accelerate.tracking import get_available_trackers

    tracker = None if config.tracker == "none" else config.tracker
    if tracker and tracker not in map(str, get_available_trackers()):
        raise UserError(f"--tracker {tracker} is not installed: pip install {tracker}")
    cpu = not torch.cuda.is_available()  # accelerate does not see processes on CPUs by itself
    return Accelerator(cpu=cpu, log_with=tracker, project_dir=config.out or "runs")


def train(
    model: nn.Module,
    *,
    config: TrainConfig,
    run: Run,
    accelerator,
    batches: batching.Batches,
    make_batch: Callable[[np.ndarray, int], Batch],
    losses: Losses,
    evaluate: Callable[[nn.Module], dict[str, float]] | None = None,
    tokenizer: Path | None = None,
) -> State:
    """Train `model` in place and return the final state.

    model        has `save(folder, tokenizer, state_dict=)` and a classmethod `load(folder)`.
    batches      indices of global batches, `config.batch_size` samples each.
    make_batch   (indices, epoch) -> batch: tensors, "targets" {name: count} and "tokens".
    losses       (model, batch) -> sums named `<target>_<quantity>`; those ending in `_loss` are
                 minimised, each divided by the global count of its target, and added.
    evaluate     model -> held-out means, called every `config.eval_every` steps and at the end.

    Raises UserError on divergence or a full disk, `cli.Interrupted` after a signal was obeyed.
    """
    return Trainer(
        model, config, run, accelerator, batches, make_batch, losses, evaluate, tokenizer
    ).train()


class Trainer:
    """The loop's parts, in the order in which `train` uses them."""

    def __init__(
        self, model, config, run, accelerator, batches, make_batch, losses, evaluate, tokenizer
    ):
        self.config, self.run, self.accelerator = config, run, accelerator
        self.batches, self.make_batch, self.losses = batches, make_batch, losses
        self.evaluate, self.tokenizer = evaluate, tokenizer
        self.world, self.rank = accelerator.num_processes, accelerator.process_index
        self.device = accelerator.device
        self.state = State(config_digest=_digest(config))

        checkpoint = self._newest_checkpoint() if config.resume else None
        self.plain = model
        if config.tracker != "none":
            settings = {name: str(value) for name, value in cli.as_dict(config).items()}
            accelerator.init_trackers(run.path.name, settings)
        if checkpoint:
            model.load_state_dict(type(model).load(checkpoint).state_dict())
        optimizers = optim.build(
            config.optimizer, model, config.learning_rate, weight_decay=config.weight_decay
        )
        if config.compile:
            model.compile(dynamic=True)
        model, *optimizers = accelerator.prepare(model, *optimizers, device_placement=None)
        self.model, self.optimizers = model, optimizers
        if checkpoint:
            self._restore(checkpoint)
        elif config.resume:
            run.rewind(-1)

    # -- the loop --------------------------------------------------------------------------

    def train(self) -> State:
        config, state = self.config, self.state
        self.model.train()
        if state.total_steps and state.step >= state.total_steps:
            return state
        if not state.total_steps:
            self._plan()
            if self.evaluate:
                self._evaluate()
        warmup_steps = round(config.warmup * state.total_steps)
        share = optim.schedule(config.schedule, warmup_steps, state.total_steps, final=config.final)
        every = config.eval_every or max(1, state.total_steps // 10)
        started = last_save = time.monotonic()
        before = state.seconds
        sums, counts, tokens_at_log, time_at_log = {}, {}, state.tokens, started
        first_loss, bad_windows = None, 0

        with self._progress() as bar, _Signals() as signals:
            for window in self._windows():
                torch.manual_seed(_mix(config.seed, state.step, self.rank))
                self._set_learning_rate(share(state.step))
                grad_norm = self._step(window, sums, counts)
                state.step += 1
                state.tokens += window.tokens
                state.epoch, state.position = window.epoch, window.position + 1
                state.seconds = before + time.monotonic() - started

                last = state.step == state.total_steps
                if state.step % config.log_every == 0 or last or state.step == 1:
                    now = time.monotonic()
                    means = self._means(sums, counts)
                    norm = float(grad_norm)
                    rate = (state.tokens - tokens_at_log) / max(1e-9, now - time_at_log)
                    loss = sum(v for k, v in means.items() if k.endswith("_loss"))
                    lr = share(state.step - 1) * config.learning_rate
                    more = {"lr": lr, "grad_norm": norm, "tokens_per_second": rate}
                    self._log("train", means, **more)
                    bar.set_postfix_str(f"loss {loss:.3f}, {rate:,.0f} tokens/s", refresh=False)
                    bar.update(state.step - bar.n)
                    first_loss = first_loss or loss
                    bad_windows = bad_windows + 1 if loss > first_loss + 2 else 0
                    if not math.isfinite(loss + norm) or bad_windows >= 3:
                        self._diverged(loss, norm)
                    sums, counts, tokens_at_log, time_at_log = {}, {}, state.tokens, now

                if self.evaluate and (state.step % every == 0 or last):
                    pause = time.monotonic()
                    self._evaluate()
                    time_at_log += time.monotonic() - pause
                if last:
                    break
                now = time.monotonic()
                slice_over = now - started > 60 * (config.slice_minutes or math.inf)
                save_due = now - last_save > 60 * config.save_minutes
                signum, slice_over, save_due = self._agree(signals.received, slice_over, save_due)
                if signum or slice_over or save_due:
                    path, last_save = self._save(), now
                if signum or slice_over:
                    told = f"stopped at step {state.step}, saved {path}; go on with:\n"
                    raise cli.Interrupted(signum, told + cli.resume_command(self.run.path))
        self._save()
        return state

    def _step(self, window: "_Window", sums: dict, counts: dict) -> torch.Tensor:
        """One optimizer step: every micro-batch of the window forward and backward."""
        totals = self._total_targets(window.micro_batches)
        for i, batch in enumerate(window.micro_batches):
            batch = to_device(batch, self.device)
            final = i == len(window.micro_batches) - 1
            with contextlib.nullcontext() if final else self.accelerator.no_sync(self.model):
                with self._autocast():
                    parts = self.losses(self.model, batch)
                loss = sum(v / totals[_target(k)] for k, v in parts.items() if k.endswith("_loss"))
                # DDP averages gradients over processes; the sum over them is what is wanted.
                self.accelerator.backward(loss * self.world)
            for name, value in parts.items():
                wide = torch.promote_types(value.dtype, torch.float32)
                sums[name] = sums.get(name, 0) + value.detach().to(wide)
        for name, count in totals.items():
            counts[name] = counts.get(name, 0) + count
        limit = self.config.clip or float("inf")
        grad_norm = self.accelerator.clip_grad_norm_(self.model.parameters(), limit)
        if self.device.type == "cpu" and not math.isfinite(grad_norm):
            self._diverged(float("nan"), float(grad_norm))
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        return grad_norm

    def _set_learning_rate(self, share: float) -> None:
        for group in (group for optimizer in self.optimizers for group in optimizer.param_groups):
            group["lr"] = group["peak_lr"] * share

    def _total_targets(self, micro_batches: list[Batch]) -> dict[str, int]:
        """Targets of the global batch by name, summed over micro-batches and processes."""
        names = list(micro_batches[0]["targets"])
        mine = [sum(batch["targets"][name] for batch in micro_batches) for name in names]
        if self.world > 1:
            mine = self.accelerator.reduce(torch.tensor(mine, device=self.device)).tolist()
        return {name: max(1, total) for name, total in zip(names, mine, strict=True)}

    def _windows(self) -> Iterator["_Window"]:
        """The global batches from the current position on, the next one prepared meanwhile."""
        config = self.config

        def prepare(item):
            epoch, position, batch = item
            pieces = batching.share(batch, self.rank, self.world, config.micro_batch_size)
            micro_batches = [self.make_batch(piece, epoch) for piece in pieces]
            tokens = sum(b["tokens"] for b in micro_batches) * self.world
            return _Window(epoch, position, micro_batches, tokens)

        order = self.batches.starting_at(self.state.epoch, self.state.position)
        with ThreadPoolExecutor(1) as ahead:
            coming = ahead.submit(prepare, next(order))
            while True:
                window = coming.result()
                coming = ahead.submit(prepare, next(order))
                yield window

    # -- precision and budget --------------------------------------------------------------

    def _plan(self) -> None:
        """Choose the precision and, for --max-minutes, the number of steps, by measuring."""
        config, state = self.config, self.state
        seconds = {}
        if config.precision == "auto" or config.max_minutes:
            choices = ("fp32", "bf16") if config.precision == "auto" else (config.precision,)
            seconds = {choice: self._measure(choice) for choice in choices}
        state.precision = min(seconds, key=seconds.get) if seconds else config.precision
        if config.precision == "auto":
            told = ", ".join(f"{name} {s * 1000:.0f} ms a step" for name, s in seconds.items())
            self._say(f"precision {state.precision} ({told})")
        if config.max_minutes:
            budget = config.max_minutes * 60
            if self.evaluate:
                start = time.monotonic()
                self.evaluate(self.plain)
                budget -= 12 * (time.monotonic() - start)
            steps = max(10, int(0.97 * budget / seconds[state.precision]))
            state.total_steps = min(steps, config.max_steps or steps)
        else:
            state.total_steps = config.max_steps or 1000
        if self.world > 1:
            from accelerate.utils import broadcast_object_list

            chosen = broadcast_object_list([state.total_steps, state.precision])
            state.total_steps, state.precision = chosen
        parameters = sum(p.numel() for p in self.plain.parameters())
        self._say(
            f"{parameters / 1e6:.2f} M parameters · {state.total_steps:,} steps of "
            f"{config.batch_size} samples · {self.world} process(es) on {self.device}"
        )

    def _measure(self, precision: str, warm: int = 2, repeats: int = 6) -> float:
        """Median seconds of an optimizer step that changes nothing (learning rate zero)."""
        state = self.state
        state.precision, times = precision, []
        self._set_learning_rate(0.0)
        windows = self._windows()
        for i in range(warm + repeats):
            window = next(windows)
            start = time.monotonic()
            self._step(window, {}, {})
            if self.device.type == "cuda":
                torch.cuda.synchronize()
            if i >= warm:
                times.append(time.monotonic() - start)
        windows.close()
        for optimizer in self.optimizers:
            optimizer.state.clear()
        return float(np.median(times))

    def _autocast(self):
        """Matrix products in bf16 where that was chosen; weights and sums stay fp32."""
        bf16 = self.state.precision == "bf16"
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=bf16)

    # -- watching --------------------------------------------------------------------------

    def _means(self, sums: dict, counts: dict) -> dict[str, float]:
        names = sorted(sums)
        values = torch.stack([sums[name] for name in names])
        if self.world > 1:
            values = self.accelerator.reduce(values)
        return {n: v / counts[_target(n)] for n, v in zip(names, values.tolist(), strict=True)}

    def _evaluate(self) -> None:
        self.model.eval()
        with torch.no_grad(), self._autocast():
            means = self.evaluate(self.plain)
        self.model.train()
        self._log("eval", means, prefix="heldout")
        told = ", ".join(f"{words(name)} {means[name]:.3f}" for name in in_order(means))
        self._say(f"step {self.state.step:>6,}  held-out {told}")

    def _log(self, event: str, means: dict[str, float], prefix: str = "train", **more) -> None:
        state = self.state
        values = {f"{prefix}/{name}": value for name, value in means.items()}
        values |= more
        seconds = round(state.seconds, 2)
        self.run.log(event, step=state.step, tokens=state.tokens, seconds=seconds, **values)
        self.accelerator.log(values, step=state.step)

    def _say(self, text: str) -> None:
        if self.accelerator.is_main_process:
            say(text)

    def _progress(self):
        total, step = self.state.total_steps, self.state.step
        hidden = not self.accelerator.is_main_process
        return progress(total, initial=step, unit="step", disable=hidden)

    def _agree(self, *values: int) -> list[int]:
        """The largest of each value over all processes, which so stop and save together."""
        if self.world == 1:
            return list(values)
        mine = torch.tensor([values], device=self.device, dtype=torch.long)
        return self.accelerator.gather(mine).amax(0).tolist()

    def _diverged(self, loss: float, norm: float) -> None:
        saved = self._newest_checkpoint()
        where = f"the last good checkpoint is {saved}" if saved else "no checkpoint was written"
        raise UserError(
            f"training diverged at step {self.state.step} (loss {loss:.3g}, gradient norm "
            f"{norm:.3g}); {where}; try a lower --learning-rate or a longer --warmup"
        )

    # -- checkpoints -----------------------------------------------------------------------

    def _save(self) -> Path:
        """Checkpoint weights, optimizer and position; a full disk leaves the last one."""
        weights, moments = sharded.get_state_dict(self.model, self.optimizers, options=WHOLE)
        folder = self.run.path / "checkpoints"
        if not self.accelerator.is_main_process:
            self.accelerator.wait_for_everyone()
            return folder
        unfinished = folder / f".step-{self.state.step:08d}"
        shutil.rmtree(unfinished, ignore_errors=True)
        try:
            (unfinished / "trainer").mkdir(parents=True)
            self.plain.save(unfinished, self.tokenizer, state_dict=weights)
            tensors, values = _flatten(moments["state"])
            save_file(tensors, unfinished / "trainer" / "optimizer.safetensors")
            state = {**vars(self.state), "optimizer_values": values}
            (unfinished / "trainer" / "state.json").write_text(json.dumps(state, indent=2))
            path = self.run.publish_checkpoint(unfinished, self.state.step)
        except (OSError, RuntimeError) as error:
            shutil.rmtree(unfinished, ignore_errors=True)
            kept = self._newest_checkpoint()
            raise UserError(
                f"cannot write a checkpoint to {folder} ({error}); free some space and resume"
                + (f": {kept} is complete" if kept else "")
            ) from error
        self.accelerator.wait_for_everyone()
        return path

    def _newest_checkpoint(self) -> Path | None:
        saved = self.run.checkpoints()
        return saved[-1] if saved else None

    def _restore(self, checkpoint: Path) -> None:
        """Take up optimizer state and position where `checkpoint` left them."""
        try:
            stored = json.loads((checkpoint / "trainer" / "state.json").read_text())
            tensors = load_file(checkpoint / "trainer" / "optimizer.safetensors")
        except Exception as error:
            raise UserError(f"{checkpoint}/trainer cannot be read ({error})") from None
        values = stored.pop("optimizer_values")
        if stored["config_digest"] != self.state.config_digest:
            raise UserError(
                f"{checkpoint} was written by a run with other settings (see {self.run.path}/"
                "config.json); resume with those, or choose another --out"
            )
        self.state = State(**stored)
        both, whole = (self.model, self.optimizers), sharded.StateDictOptions(full_state_dict=True)
        wanted = sharded.get_optimizer_state_dict(*both, options=whole)  # on every process
        wanted["state"] |= _unflatten(tensors, values)
        sharded.set_optimizer_state_dict(*both, wanted, options=whole)
        self.run.rewind(self.state.step)
        self._say(f"resumed {checkpoint} at step {self.state.step:,} of {self.state.total_steps:,}")


def evaluate(
    model: nn.Module, batches: Iterable[Batch], losses: Losses, accelerator=None
) -> dict[str, float]:
    """Means of `losses` over all `batches`: sums over the split divided by its target counts.

    With an accelerator, `batches` is this process's share and the sums cover all processes.
    """
    device = next(model.parameters()).device
    sums: dict[str, Any] = {}
    counts: dict[str, int] = {}
    was_training = model.training
    model.eval()
    with torch.no_grad():
        for batch in batches:
            for name, value in losses(model, to_device(batch, device)).items():
                sums[name] = sums.get(name, 0) + value.double()
                counts[name] = counts.get(name, 0) + batch["targets"][_target(name)]
    model.train(was_training)
    parts = [{name: (float(sums[name]), counts[name]) for name in sums}]
    if accelerator is not None and accelerator.num_processes > 1:
        from accelerate.utils import gather_object

        parts = gather_object(parts)  # a process without a batch has no names
    means = {}
    for name in sorted({name for part in parts for name in part}):
        total, count = zip(*(part[name] for part in parts if name in part), strict=True)
        means[name] = sum(total) / sum(count)
    return means


def to_device(batch: Batch, device: torch.device) -> Batch:
    return {
        k: v.to(device, non_blocking=True) if isinstance(v, torch.Tensor) else v
        for k, v in batch.items()
    }


@dataclass
class _Window:
    """A global batch as this process computes it, and where it stands in the data."""

    epoch: int
    position: int
    micro_batches: list[Batch]
    tokens: int


class _Signals:
    """Note SIGINT and SIGTERM instead of obeying at once: the step is finished and saved first."""

    def __enter__(self):
        self.received = 0
        self._old = {s: signal.signal(s, self._note) for s in (signal.SIGINT, signal.SIGTERM)}
        return self

    def _note(self, signum, frame):
        if self.received:
            raise KeyboardInterrupt
        self.received = signum

    def __exit__(self, *error):
        for signum, handler in self._old.items():
            signal.signal(signum, handler)


def _target(name: str) -> str:
    """The target that a sum is counted by: `mlm_loss` and `mlm_accuracy` by `mlm`."""
    return name.split("_", 1)[0]


def _mix(seed: int, step: int, rank: int) -> int:
    """A random seed for (seed, step, process): dropout after a resume is dropout without one."""
    return int(np.random.SeedSequence((seed, step, rank)).generate_state(1, np.uint64)[0] >> 1)


def _digest(config: cli.RunConfig) -> str:
    """The settings that decide the weights, as text; where and how long to run is left out."""
    free = {"out", "resume", "tracker", "slice_minutes", "save_minutes", "log_every", "preset"}
    return json.dumps({k: v for k, v in cli.as_dict(config).items() if k not in free}, default=str)


def _flatten(state: dict[str, dict]) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Optimizer state by parameter name -> flat tensors for safetensors, and plain values."""
    flat = {f"{p}|{k}": v for p, entry in state.items() for k, v in entry.items()}
    tensors = {k: v.contiguous() for k, v in flat.items() if isinstance(v, torch.Tensor)}
    return tensors, {k: v for k, v in flat.items() if k not in tensors}


def _unflatten(tensors: dict[str, torch.Tensor], values: dict[str, Any]) -> dict[str, dict]:
    state: dict[str, dict] = {}
    for key, value in {**tensors, **values}.items():
        name, part = key.split("|")
        state.setdefault(name, {})[part] = value
    return state
