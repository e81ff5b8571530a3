"""The one training loop.

A step of training, whatever the model: take a global batch, cut it into micro-batches, run each
forward and backward, clip, step, log. Three promises hold throughout.

- Token-exact accumulation. `losses(model, batch)` returns *sums*; `batch["targets"]` says over
  how many targets. Each sum is divided by the count over the whole global batch before
  `backward`, so micro-batches and processes only change where the work is done.
- Exact resume. Batch order and randomness are functions of (seed, step); a checkpoint holds
  weights, optimizer state, a step number and the sums not yet logged, and the rest follows.
- Nothing is lost. Checkpoints are written beside and renamed; a signal saves before it stops.
"""

import atexit
import contextlib
import json
import math
import os
import shutil
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.distributed as dist
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from common import batching, cli, optim
from common.cli import UserError
from common.runs import Run, in_order, progress, say, words
from common.subruns import LIBC

Batch = dict[str, Any]
Losses = Callable[[nn.Module, Batch], dict[str, torch.Tensor]]
STOPS = (signal.SIGINT, signal.SIGTERM)
WORTH_ROUNDING = 1.1  # how many times as fast bf16 must be to be taken; noise alone is below that
# PyTorch keeps the bf16 kernels that it compiled for a CPU, one for every shape of every product:
# length buckets have thousands of shapes, and by default gigabytes of kernels.
for cache in ("LRU_CACHE_CAPACITY", "ONEDNN_PRIMITIVE_CACHE_CAPACITY"):
    os.environ.setdefault(cache, "16")


@dataclass
class TrainConfig(cli.RunConfig):
    """The flags of every script that trains."""

    batch_size: int = 256
    """Samples in an optimizer step, over all micro-batches and processes."""
    micro_batch_size: int = 64
    """Samples computed at once on one process; the rest is gradient accumulation."""
    max_steps: int | None = None
    """Optimizer steps to train; the schedule ends there. Default, without --max-minutes: 1,000."""
    max_minutes: float | None = None
    """Minutes to train; the schedule is fitted to them after a short measurement."""
    slice_minutes: float | None = None
    """Stop with a checkpoint and exit code 75 after this many minutes; --resume goes on."""
    learning_rate: float = 1e-3
    """Peak learning rate of AdamW."""
    muon_learning_rate: float = 0.02
    """Peak learning rate of Muon."""
    adam_beta2: float = 0.999
    """How slowly AdamW forgets squared gradients."""
    adam_eps: float = 1e-6
    """What AdamW adds to the root of squared gradients."""
    optimizer: Literal["adamw", "muon"] = "adamw"
    """adamw, or muon for the weight matrices with adamw for the rest."""
    schedule: Literal["linear", "cosine", "inverse_sqrt", "wsd", "constant"] = "linear"
    """Shape of the learning rate after warm-up."""
    warmup_ratio: float = 0.06
    """Share of the steps spent in linear warm-up."""
    min_lr_ratio: float = 0.0
    """Learning rate at the end, as a share of the peak."""
    weight_decay: float = 0.01
    """Decoupled weight decay of matrices."""
    max_grad_norm: float = 1.0
    """Largest gradient norm; 0 turns clipping off."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Arithmetic of matrix products; auto measures both, and takes bf16 if it is a tenth faster
    (a processor without instructions for bf16 is not asked: it takes some 20 times as long)."""
    compile: bool = False
    """Compile the model with torch.compile (needs a C++ compiler on CPU)."""
    eval_every: int | None = None
    """Optimizer steps between evaluations on held-out data; default: a tenth of the run."""
    log_every: int = 20
    """Optimizer steps between lines of metrics.jsonl."""
    save_minutes: float = 5.0
    """Minutes between checkpoints."""

    def __post_init__(self):
        super().__post_init__()
        for rule, (holds, names) in RULES.items():
            for name in names.split():
                cli.check(self, name, rule, holds)


RULES = {
    "above 0": (lambda x: x > 0, "batch_size micro_batch_size max_steps eval_every log_every "
                "max_minutes slice_minutes"),
    "0 or more": (lambda x: x >= 0, "learning_rate muon_learning_rate weight_decay max_grad_norm"),
    "between 0 and 1": (lambda x: 0 <= x <= 1, "warmup_ratio min_lr_ratio"),
    "0 or more and below 1": (lambda x: 0 <= x < 1, "adam_beta2"),
}  # fmt: skip


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
    data_key: str = ""
    sums: list[dict[str, float]] = field(default_factory=list)  # not yet logged, by process
    counts: Counter = field(default_factory=Counter)
    first_loss: float | None = None
    bad_windows: int = 0


def seed_everything(seed: int) -> None:
    """Seed torch on every device (weights, dropout); data order has its own generators."""
    torch.manual_seed(seed)


def keep_memory() -> None:
    """Have glibc reuse what the process has freed. It gives large blocks back to the system, and
    then every step waits for the same pages to be cleared again. No effect elsewhere."""
    if hasattr(LIBC, "mallopt"):
        LIBC.mallopt(-4, 0)  # M_MMAP_MAX: no block of its own for a large tensor
        LIBC.mallopt(-1, -1)  # M_TRIM_THRESHOLD: never


def accelerator(config: cli.RunConfig):
    """The process group, device and trackers of this run, from `accelerate`."""
    from accelerate import Accelerator
    from accelerate.tracking import get_available_trackers
    from accelerate.utils import GradientAccumulationPlugin, InitProcessGroupKwargs

    tracker = None if config.tracker == "none" else config.tracker
    if tracker and tracker not in map(str, get_available_trackers()):
        raise UserError(f"--tracker {tracker} is not installed: pip install {tracker}")
    cpu = not torch.cuda.is_available()  # accelerate does not see processes on CPUs by itself
    ours = dict(  # whatever `accelerate config` says
        mixed_precision="no", gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1)
    )
    patience = InitProcessGroupKwargs(timeout=timedelta(days=1))  # the first prepares the data
    ours["kwargs_handlers"] = [patience]
    made = Accelerator(cpu=cpu, log_with=tracker, project_dir=config.out or "runs", **ours)
    if made.distributed_type.value not in ("NO", "MULTI_GPU", "MULTI_CPU"):
        raise UserError(f"{made.distributed_type.value} is not supported yet; use DDP")
    # A process that ends inside its group can be aborted by gloo's threads
    atexit.register(lambda: dist.is_initialized() and dist.destroy_process_group())
    return made


def train(model: nn.Module, **parts: Any) -> State:
    """Train `model` in place and return the final state; `parts` are the fields of `Trainer`.

    Raises `Diverged`, UserError on a full disk, `cli.Interrupted` after a signal was obeyed.
    """
    return Trainer(model, **parts).train()


class Diverged(UserError):
    """A loss that rose and rose, or is no number: `what` happened, and a `remedy`."""

    remedy = "try a lower --learning-rate or a longer --warmup-ratio"

    def __init__(self, what: str, checkpoint: Path | None):
        super().__init__(f"{what}; the last good checkpoint is {checkpoint}; {self.remedy}")
        self.what = what


@dataclass
class Trainer:
    """The loop's parts, in the order in which `train` uses them."""

    model: nn.Module
    """Has `save(folder, tokenizer)` and a classmethod `load(folder)`."""
    config: TrainConfig
    run: Run
    accelerator: Any
    batches: batching.Batches
    """Indices of global batches, `config.batch_size` samples each."""
    make_batch: Callable[[np.ndarray, int], Batch]
    """(indices, epoch) -> batch: tensors, "targets" {name: count} and "tokens"."""
    losses: Losses
    """(model, batch) -> sums named `<target>_<quantity>`; those ending in `_loss` are minimised,
    each divided by the global count of its target, and added."""
    evaluate: Callable[[nn.Module], dict[str, float]] | None = None
    """model -> held-out means, called every `config.eval_every` steps and at the end."""
    stop: Callable[[list[dict[str, Any]]], bool] | None = None
    """Events of the evaluations so far -> whether training ends here, before its last step."""
    build_optimizers: Callable[[nn.Module], list[torch.optim.Optimizer]] | None = None
    """model -> its optimizers, each group at its peak rate; default: those that config names."""
    tokenizer: Path | None = None
    """Tokenizer files, which every checkpoint carries."""
    data_key: str = ""
    """Fingerprint of the data; a run resumes only with the one that it began with."""

    def __post_init__(self):
        config, accelerator, model = self.config, self.accelerator, self.model
        self.world, self.rank = accelerator.num_processes, accelerator.process_index
        self.device = accelerator.device
        keep_memory()
        # What processes tell each other beside gradients goes over the host: no device waits
        self.hosts = dist.new_group(backend="gloo") if self.world > 1 else None
        self.state = State(config_digest=_digest(cli.as_dict(config)), data_key=self.data_key)
        self.sums: Counter = Counter()
        self.grad_norm: float | torch.Tensor = 0.0
        self.saved_step: int | None = None

        checkpoint = self._newest_checkpoint() if config.resume else None
        self.plain = model
        if config.tracker != "none":
            settings = {name: str(value) for name, value in cli.as_dict(config).items()}
            for tracker in accelerator.trackers:  # of the seed before
                tracker.finish()
            accelerator.trackers = []
            accelerator.init_trackers(self.run.path.name, settings)
        if checkpoint:
            model.load_state_dict(type(model).load(checkpoint).state_dict())
        built = (self.build_optimizers or self._named_optimizers)(model)
        for group in (group for optimizer in built for group in optimizer.param_groups):
            group["peak_lr"] = group["lr"]
        if config.compile:
            model.compile(dynamic=True)
        self.model, *self.optimizers = accelerator.prepare(model, *built, device_placement=None)
        if checkpoint:
            self._restore(checkpoint)
        elif config.resume:
            self.run.rewind(-1)

    def _named_optimizers(self, model: nn.Module) -> list[torch.optim.Optimizer]:
        c = self.config
        adam = dict(betas=(0.9, c.adam_beta2), eps=c.adam_eps, weight_decay=c.weight_decay)
        return optim.build(c.optimizer, model, c.learning_rate, c.muon_learning_rate, **adam)

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
            self._save()  # what was planned is kept, however early the run is killed
        warmup_steps = round(config.warmup_ratio * state.total_steps)
        share = optim.schedule(
            config.schedule, warmup_steps, state.total_steps, min_lr_ratio=config.min_lr_ratio
        )
        every = config.eval_every or max(1, state.total_steps // 10)
        started = last_save = time_at_log = time.monotonic()
        before, tokens_at_log = state.seconds, state.tokens

        shown = dict(initial=state.step, unit="step", disable=not self.accelerator.is_main_process)
        with progress(state.total_steps, **shown) as bar, _noting_signals() as received:

            def wishes() -> list[bool]:
                """Whether to stop for either signal, to end the slice, to save."""
                slice_over = state.seconds - before > 60 * (config.slice_minutes or math.inf)
                save_due = time.monotonic() - last_save > 60 * config.save_minutes
                well = state.bad_windows == 0
                return [*(s in received for s in STOPS), slice_over, save_due and well]

            for window in self._windows(wishes):
                if any(window.wishes):
                    path, last_save = self._save(), time.monotonic()
                if any(window.wishes[:3]):
                    signum = next((s for s, w in zip(STOPS, window.wishes, strict=False) if w), 0)
                    told = f"stopped at step {state.step}, saved {path}; go on with:\n"
                    raise cli.Interrupted(signum, told + cli.resume_command(self.run.path))

                torch.manual_seed(_mix(config.seed, state.step, self.rank))
                self._set_learning_rate(share(state.step))
                self.sums.update(self._step(window))
                state.counts.update(window.targets)
                state.step += 1
                state.tokens += window.tokens
                state.epoch, state.position = window.epoch, window.position + 1
                state.seconds = before + time.monotonic() - started

                last = state.step == state.total_steps
                if state.step % config.log_every == 0 or last or state.step == 1:
                    now = time.monotonic()
                    means = self._means()  # which waits for the device
                    state.seconds = before + time.monotonic() - started
                    norm, loss = float(self.grad_norm), _loss(means)
                    rate = (state.tokens - tokens_at_log) / max(1e-9, now - time_at_log)
                    lr = share(state.step - 1) * config.learning_rate
                    self._log("train", means, lr=lr, grad_norm=norm, tokens_per_second=rate)
                    bar.set_postfix_str(f"loss {loss:.3f}, {rate:,.0f} tokens/s", refresh=False)
                    bar.update(state.step - bar.n)
                    state.first_loss = loss if state.first_loss is None else state.first_loss
                    risen = loss > state.first_loss + 2
                    state.bad_windows = state.bad_windows + 1 if risen else 0
                    if not math.isfinite(loss + norm) or state.bad_windows >= 3:
                        self._diverged()
                    self.sums, state.counts = Counter(), Counter()
                    tokens_at_log, time_at_log = state.tokens, now

                if self.evaluate and (state.step % every == 0 or last):
                    pause = time.monotonic()
                    self._evaluate()
                    time_at_log += time.monotonic() - pause
                    if not last and self._enough():
                        state.total_steps, last = state.step, True
                if last:
                    break
        self._save()
        return state

    def _step(self, window: "_Window") -> Counter:
        """One optimizer step, every micro-batch forward and backward; returns the sums."""
        sums: Counter = Counter()
        for i, batch in enumerate(window.micro_batches):
            batch = to_device(batch, self.device)
            last = i == len(window.micro_batches) - 1
            with contextlib.nullcontext() if last else self.accelerator.no_sync(self.model):
                with self._autocast():
                    parts = self.losses(self.model, batch)
                if window.idle:
                    parts = {name: 0.0 * value for name, value in parts.items()}
                loss = _loss({k: v / max(1, window.targets[_target(k)]) for k, v in parts.items()})
                # DDP averages gradients over processes; the sum over them is what is wanted.
                self.accelerator.backward(loss * self.world)
            sums.update({name: value.detach().double() for name, value in parts.items()})
        limit = self.config.max_grad_norm or float("inf")
        self.grad_norm = self.accelerator.clip_grad_norm_(self.model.parameters(), limit)
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        return sums

    def _set_learning_rate(self, share: float) -> None:
        for group in (group for optimizer in self.optimizers for group in optimizer.param_groups):
            group["lr"] = group["peak_lr"] * share

    def _windows(self, wishes: Callable[[], list[bool]] = list) -> Iterator["_Window"]:
        """The global batches from the current position on, the next one prepared meanwhile.

        Processes agree as each is taken: on its targets and tokens, and on what any of them wishes.
        """

        ready = torch.Tensor.pin_memory if self.device.type == "cuda" else (lambda tensor: tensor)

        def prepare(item):
            epoch, position, batch = item
            pieces = batching.share(batch, self.rank, self.world, self.config.micro_batch_size)
            idle = not pieces  # with fewer samples than processes: a gradient of zero, in step
            pieces = pieces or [batch[:1]]
            micro_batches = [_each_tensor(self.make_batch(p, epoch), ready) for p in pieces]
            targets: Counter = Counter()
            for part in micro_batches:
                targets.update({name: n * (not idle) for name, n in part["targets"].items()})
            tokens = sum(part["tokens"] for part in micro_batches) * (not idle)
            return _Window(epoch, position, micro_batches, targets, tokens, idle)

        order = self.batches.starting_at(self.state.epoch, self.state.position)
        with ThreadPoolExecutor(1) as ahead:
            coming = ahead.submit(prepare, next(order))
            while True:
                window = coming.result()
                coming = ahead.submit(prepare, next(order))
                mine = [window.tokens, *window.targets.values(), *wishes()]
                window.tokens, *rest = self._total(torch.tensor(mine))
                window.targets = dict(zip(window.targets, rest, strict=False))
                window.wishes = rest[len(window.targets) :]
                yield window

    def _total(self, values: torch.Tensor) -> list:
        """Each of `values`, which are on the host, summed over all processes."""
        if self.world > 1:
            dist.all_reduce(values, group=self.hosts)
        return values.tolist()

    def _from_main(self, *values: Any) -> list:
        """`values` as the main process has them; also a barrier."""
        values = list(values)
        if self.world > 1:
            dist.broadcast_object_list(values, src=0, group=self.hosts)
        return values

    # -- precision and budget --------------------------------------------------------------

    def _plan(self) -> None:
        """Choose the precision and, for --max-minutes, the number of steps, by measuring."""
        config, state = self.config, self.state
        steps, seconds = 1000 if config.max_steps is None else config.max_steps, {}
        auto = ["fp32", "bf16"] if optim.multiplies_bf16(self.device) else ["fp32"]
        choices = auto if config.precision == "auto" else [config.precision]
        if choices[1:] or config.max_minutes:
            seconds = {choice: self._measure(choice) for choice in choices}
        state.precision = choices[0]
        if choices[1:]:
            gain = seconds["fp32"] / seconds["bf16"]
            state.precision = "bf16" if gain > WORTH_ROUNDING else "fp32"
            told = ", ".join(f"{name} {s * 1000:.0f} ms a step" for name, s in seconds.items())
            self._say(f"precision {state.precision} ({told})")
        if config.max_minutes:
            budget = config.max_minutes * 60
            if self.evaluate:
                start = time.monotonic()
                self.evaluate(self.plain)
                # before training, ten times meanwhile, and the script's own at the end
                budget -= 12 * (time.monotonic() - start)
            fitting = max(10, int(0.97 * budget / seconds[state.precision]))
            steps = fitting if config.max_steps is None else min(fitting, steps)
        state.total_steps, state.precision = self._from_main(steps, state.precision)
        size = f"{sum(p.numel() for p in self.plain.parameters()) / 1e6:.2f} M parameters"
        where = f"{self.world} process(es) on {self.device}"
        self._say(f"{size} · {state.total_steps:,} steps of {self.batches.size} · {where}")

    def _measure(self, precision: str, warm: int = 2, repeats: int = 6) -> float:
        """Median seconds of an optimizer step that changes nothing (learning rate zero)."""
        state = self.state
        state.precision, times = precision, []
        self._set_learning_rate(0.0)
        windows = self._windows()
        for i in range(warm + repeats):
            window = next(windows)
            start = time.monotonic()
            self._step(window)
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

    def _means(self) -> dict[str, float]:
        """Means since the last line of metrics: sums over all processes, divided by the counts."""
        names, counts = sorted(self.sums), self.state.counts
        totals = self._total(torch.stack([self.sums[name] for name in names]).cpu())
        return {n: v / max(1, counts[_target(n)]) for n, v in zip(names, totals, strict=True)}

    def _evaluate(self) -> None:
        self._check_gradient()
        self.model.eval()
        with torch.no_grad(), self._autocast():
            means = self.evaluate(self.plain)
        self.model.train()
        self._log("eval", means, prefix="heldout")
        told = ", ".join(f"{words(name)} {means[name]:.3f}" for name in in_order(means))
        self._say(f"step {self.state.step:>6,}  held-out {told}")

    def _enough(self) -> bool:
        """What `stop` says, as the main process, which alone reads the metrics, has it."""
        if self.stop is None:
            return False
        evaluations = [event for event in self.run.metrics() if event["event"] == "eval"]
        (enough,) = self._from_main(self.stop(evaluations))
        if enough:
            self._say(f"stopped early at step {self.state.step:,}")
        return enough

    def _log(self, event: str, means: dict[str, float], prefix: str = "train", **more) -> None:
        state = self.state
        values = {f"{prefix}/{name}": value for name, value in means.items()} | more
        seconds = round(state.seconds, 2)
        self.run.log(event, step=state.step, tokens=state.tokens, seconds=seconds, **values)
        self.accelerator.log(values, step=state.step)

    def _say(self, text: str) -> None:
        if self.accelerator.is_main_process:
            say(text)

    def _diverged(self) -> None:
        loss = _loss(self._means()) if self.sums else math.nan
        what = f"loss {loss:.3g}, gradient norm {float(self.grad_norm):.3g}"
        what = f"training diverged at step {self.state.step} ({what})"
        raise Diverged(what, self._newest_checkpoint())

    def _check_gradient(self) -> None:
        """Raises `Diverged` after a step whose gradient is no number: so are the weights now."""
        if self.state.step and not math.isfinite(float(self.grad_norm)):
            self._diverged()

    # -- checkpoints -----------------------------------------------------------------------

    def _save(self) -> Path:
        """Checkpoint weights, optimizer and position; a full disk leaves the last one."""
        state = self.state
        path = self.run.path / "checkpoints" / f"step-{state.step:08d}"
        if state.step == self.saved_step:
            return path
        self._check_gradient()
        from accelerate.utils import gather_object

        state.sums = gather_object([{name: float(value) for name, value in self.sums.items()}])
        (failure,) = self._from_main(self._write() if self.accelerator.is_main_process else "")
        if failure:
            raise UserError(failure)
        self.saved_step = state.step
        return path

    def _write(self) -> str:
        """Write a checkpoint beside the others, then rename it; returns what went wrong."""
        folder = self.run.path / "checkpoints"
        for left_by_a_kill in folder.glob(".step-*"):
            shutil.rmtree(left_by_a_kill, ignore_errors=True)
        unfinished = folder / f".step-{self.state.step:08d}"
        try:
            (unfinished / "trainer").mkdir(parents=True)
            self.plain.save(unfinished, self.tokenizer)
            for number, optimizer in enumerate(self.optimizers):
                moments = optimizer.state_dict()["state"].items()
                flat = {f"{p}.{k}": v.contiguous() for p, part in moments for k, v in part.items()}
                save_file(flat, unfinished / "trainer" / f"optimizer-{number}.safetensors")
            state = json.dumps(vars(self.state), indent=2)
            (unfinished / "trainer" / "state.json").write_text(state)
            self.run.publish_checkpoint(unfinished, self.state.step)
        except (OSError, RuntimeError, SafetensorError) as error:
            shutil.rmtree(unfinished, ignore_errors=True)
            kept = self._newest_checkpoint()
            told = f"cannot write a checkpoint to {folder} ({error}); free some space and resume"
            return told + (f": {kept} is complete" if kept else "")
        return ""

    def _newest_checkpoint(self) -> Path | None:
        return next(reversed(self.run.checkpoints()), None)

    def _restore(self, checkpoint: Path) -> None:
        """Take up optimizer state and position where `checkpoint` left them."""
        try:
            stored = json.loads((checkpoint / "trainer" / "state.json").read_text())
            files = sorted(checkpoint.glob("trainer/optimizer-*.safetensors"))
            flat = [load_file(file) for file in files]
        except Exception as error:
            told = f"{checkpoint}/trainer cannot be read ({error})"
            raise UserError(f"{told}; delete {checkpoint} and resume") from None
        stored["config_digest"] = _digest(json.loads(stored["config_digest"]))
        for key, kind in (("config_digest", "settings"), ("data_key", "data")):
            if stored[key] != getattr(self.state, key):
                raise UserError(
                    f"{checkpoint} was written by a run with other {kind} (see {self.run.path}/"
                    "config.json); resume with those, or choose another --out"
                )
        self.state = state = State(**stored | {"counts": Counter(stored["counts"])})
        wide = partial(torch.tensor, dtype=torch.float64, device=self.device)
        for mine in state.sums[self.rank :: self.world]:
            self.sums.update({k: wide(v) for k, v in mine.items()})
        self.saved_step = state.step
        for optimizer, tensors in zip(self.optimizers, flat, strict=True):
            moments: dict[int, dict] = {}
            for key, value in tensors.items():
                parameter, name = key.split(".")
                moments.setdefault(int(parameter), {})[name] = value
            optimizer.load_state_dict({**optimizer.state_dict(), "state": moments})
        self.run.rewind(self.state.step)
        self._say(f"resumed {checkpoint} at step {self.state.step:,} of {self.state.total_steps:,}")


def evaluate(
    model: nn.Module, batches: Iterable[Batch], losses: Losses, accelerator=None
) -> dict[str, float]:
    """Means of `losses` over all `batches`: sums over the split divided by its target counts.

    With an accelerator, `batches` is this process's share and the sums cover all processes.
    """
    device = next(model.parameters()).device
    sums: Counter = Counter()
    counts: Counter = Counter()
    was_training = model.training
    model.eval()
    with torch.no_grad():
        for batch in batches:
            parts = losses(model, to_device(batch, device))
            sums.update({name: value.double() for name, value in parts.items()})
            counts.update({name: batch["targets"][_target(name)] for name in parts})
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
    return _each_tensor(batch, lambda tensor: tensor.to(device, non_blocking=True))


def _each_tensor(batch: Batch, change: Callable[[torch.Tensor], torch.Tensor]) -> Batch:
    return {k: change(v) if isinstance(v, torch.Tensor) else v for k, v in batch.items()}


@dataclass
class _Window:
    """A global batch as this process computes it, and what all processes say of it."""

    epoch: int
    position: int
    micro_batches: list[Batch]
    targets: dict[str, int]
    tokens: int
    idle: bool
    wishes: list[int] = field(default_factory=list)


@contextlib.contextmanager
def _noting_signals() -> Iterator[list[int]]:
    """Note SIGINT and SIGTERM instead of obeying at once: the step is finished and saved first."""
    received: list[int] = []

    def note(signum, frame):
        if received:
            raise cli.Interrupted(signum, "stopped at once, without a checkpoint")
        received.append(signum)

    old = {s: signal.signal(s, note) for s in STOPS}
    try:
        yield received
    finally:
        for signum, handler in old.items():
            signal.signal(signum, handler)


def _target(name: str) -> str:
    """The target that a sum is counted by: `mlm_loss` and `mlm_accuracy` by `mlm`."""
    return name.split("_", 1)[0]


def _loss(parts: dict[str, Any]) -> Any:
    """What is minimised: the sum of all that is named `<target>_loss`."""
    return sum(value for name, value in parts.items() if name.endswith("_loss"))


def _mix(seed: int, step: int, rank: int) -> int:
    """A random seed for (seed, step, process): dropout after a resume is dropout without one."""
    return int(np.random.SeedSequence((seed, step, rank)).generate_state(1, np.uint64)[0] >> 1)


def _digest(settings: dict[str, Any]) -> str:
    """The settings that decide the weights, as text; where and how long to run is left out."""
    free = {"out", "resume", "tracker", "slice_minutes", "save_minutes", "log_every", "preset"}
    free |= {"plan", "n_devices", "utilisation", "price", "cache"}
    return json.dumps({k: v for k, v in settings.items() if k not in free}, default=str)
