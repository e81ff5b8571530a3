"""From raw text to prepared samples: documents, sentences, tokens, pairs, shards.

The documents are read once to count them and then in chunks, each of a few hundred documents (of
1 M to 32 M characters). A chunk is one task for one process and becomes one shard, written at once
and whole. So memory does not grow with the corpus, a killed run goes on where it was, and the
result does not depend on the number of processes: every random choice comes from (seed, chunk).

Other than in the original, a random next segment comes from another document of the same chunk, not
of the whole corpus. The last documents are held out, and are never the random next of a training
sample. Their masks are drawn once, whatever the training samples do.
"""

import contextlib
import fcntl
import hashlib
import json
import multiprocessing
import os
import signal
import tempfile
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from itertools import chain, islice
from pathlib import Path

from common import data, runs
from common.cli import UserError
from step2_bert.shards import (
    FORMAT,
    Chunk,
    PrepareOptions,
    counts_of,
    do_chunk,
    start_worker,
)
from step2_bert.tokenizer import load_tokenizer, save, special_ids, train_wordpiece

THROUGHPUT_CHARACTERS = 4_000_000
TOKENIZER_CHARACTERS = 200_000_000  # a vocabulary needs no more text than this


def prepare(
    options: PrepareOptions,
    out: str | Path,
    *,
    progress: bool = True,
    workers: int | None = None,
    measure: bool = True,
) -> Path:
    """Fill the directory `out`, or leave it as it is when it already holds just that.

    `workers` processes, all cores by default. `measure` compares the throughput with the tokenizer
    library's own. Returns the path of manifest.json, which is written last.
    Raises UserError for unreadable input, too few documents, a full disk, or a directory in use or
    with other data in it.
    """
    out, started = Path(out), time.perf_counter()
    source = data.resolve(options.data)
    key = key_of(options, source)
    manifest_file = out / "manifest.json"
    out.mkdir(parents=True, exist_ok=True)
    if _read_json(manifest_file).get("key") == key:
        return manifest_file
    with _lock(out):
        if _read_json(manifest_file).get("key") == key:
            return manifest_file
        _refuse_others(out, key)
        plan = _read_json(out / "plan.json")
        if not plan:
            plan = {"key": key, **_survey(source, options, progress)}
            runs.write_json(out / "plan.json", plan)
        tokenizer = _tokenizer(source, options, plan, out)
        with _Pool(workers or runs.hardware()["cores"], out / "tokenizer", options) as pool:
            splits = _run(pool, source, options, plan, out, progress)
            speed = _throughput(pool, source, options, plan, tokenizer) if measure else {}
        manifest = {
            "format": FORMAT,
            "key": key,
            "source": {"name": source.name, "kind": source.kind, "split": source.split}
            | {"fingerprint": plan["fingerprint"]},
            "options": asdict(options),
            "vocab_size": tokenizer.get_vocab_size(),
            "max_seq_len": options.max_seq_len,
            "nsp": options.nsp,
            **{f"{name[1:-1].lower()}_token_id": i for name, i in special_ids(tokenizer).items()},
            "splits": splits,
            "skipped_lines": plan["skipped_lines"],
            "excluded_documents": plan["excluded_documents"],
            "seconds": round(time.perf_counter() - started, 2),
            **speed,
        }
        _write_jsonl(out, manifest)
        runs.write_json(manifest_file, manifest)
        (out / "plan.json").unlink()
    return manifest_file


# --- documents and chunks ------------------------------------------------------------------------


def documents(source: data.Source, options: PrepareOptions, counts=None) -> Iterator[list[str]]:
    """The documents that the options leave in, each a list of paragraphs."""
    skipped = data.Skipped()
    excluded = 0
    found = data.documents(source, skip_bad_lines=options.skip_bad_lines, skipped=skipped)
    for document in islice(found, options.max_documents):
        if document[0] in options.exclude_titles:
            excluded += 1
        else:
            yield document
    if counts is not None:
        counts.update(skipped_lines=skipped.count, excluded_documents=excluded)


def _survey(source: data.Source, options: PrepareOptions, progress: bool) -> dict:
    """One pass over the text: what the plan must know before the first chunk."""
    counts = {"documents": 0, "characters": 0}
    with runs.progress(None, desc="reading", unit=" documents", disable=not progress) as bar:
        for document in documents(source, options, counts):
            counts["documents"] += 1
            counts["characters"] += sum(map(len, document))
            bar.update()
    least = 2 if options.nsp else 1  # a random next segment needs another document
    heldout = max(least, round(counts["documents"] * options.heldout_fraction))
    if options.heldout_fraction == 0:
        heldout = 0
    if counts["documents"] - heldout < least:
        need = f"{heldout} are held out and {least} needed to train"
        raise UserError(
            f"{source.name}: {counts['documents']} documents are too few: {need}"
            " (in a .txt file, blank lines set documents apart)"
        )
    size = min(max(counts["characters"] // 16, 1_000_000), 32_000_000)
    return counts | {
        "heldout_documents": heldout,
        "chunk_characters": size,
        "fingerprint": source.fingerprint(),
    }


def _chunks(documents: Iterable[list[str]], plan: dict, out: Path) -> Iterator[Chunk]:
    """Cut the stream into chunks; none ends one document before its split does."""
    n_train = plan["documents"] - plan["heldout_documents"]
    held, characters, first, numbers = [], 0, 0, {"train": 0, "heldout": 0}
    for index, document in enumerate(documents):
        held.append(document)
        characters += sum(map(len, document))
        left = (n_train if index < n_train else plan["documents"]) - index - 1
        if left == 0 or (characters >= plan["chunk_characters"] and len(held) > 1 and left > 1):
            split = "train" if index < n_train else "heldout"
            number = numbers[split]
            file = out / f"{split}-{number:05d}.safetensors"
            yield Chunk(split, number, first, held, file)
            numbers[split] += 1
            held, characters, first = [], 0, index + 1


def _tokenizer(source: data.Source, options: PrepareOptions, plan: dict, out: Path):
    """The tokenizer in out/tokenizer: kept when there, else copied or trained."""
    directory = out / "tokenizer"
    if directory.is_dir():
        return load_tokenizer(directory)
    if options.vocab is not None:
        tokenizer = load_tokenizer(options.vocab)
    else:
        tokenizer = train_wordpiece(
            _TrainingText(source, options, plan), options.vocab_size, options.lowercase
        )
    beside = out / "tokenizer.part"
    save(tokenizer, beside, options.max_seq_len)
    os.replace(beside, directory)
    return tokenizer


@dataclass
class _TrainingText:
    """The paragraphs of the training documents, as often as one asks for them."""

    source: data.Source
    options: PrepareOptions
    plan: dict

    def __iter__(self) -> Iterator[str]:
        n_train = self.plan["documents"] - self.plan["heldout_documents"]
        characters = 0
        for document in islice(documents(self.source, self.options), n_train):
            yield from document
            characters += sum(map(len, document))
            if characters > TOKENIZER_CHARACTERS:
                return


# --- all chunks ----------------------------------------------------------------------------------


class _Pool:
    """Processes that do chunks, at most a few of which wait; with one worker, this process."""

    def __init__(self, workers: int, tokenizer_dir: Path, options: PrepareOptions):
        self.workers, self._executor = workers, None
        self._environment = os.environ.get("TOKENIZERS_PARALLELISM")
        if workers == 1:
            start_worker(tokenizer_dir, options)
            return
        self._executor = ProcessPoolExecutor(
            workers,
            multiprocessing.get_context("spawn"),  # a fork would copy the locks of torch's threads
            _start_process,
            (tokenizer_dir, options),
        )

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self._executor:
            self._executor.shutdown(cancel_futures=True)
        os.environ.pop("TOKENIZERS_PARALLELISM", None)
        if self._environment is not None:
            os.environ["TOKENIZERS_PARALLELISM"] = self._environment

    def do(self, chunks: Iterable[Chunk]) -> Iterator[dict]:
        """Yield the counts of each chunk, in order; where the shard is there, nothing is done."""
        waiting: deque[dict | Future] = deque()
        try:
            for chunk in chunks:
                counts = counts_of(chunk.file)
                if counts is None and self._executor:
                    counts = self._executor.submit(do_chunk, chunk)
                waiting.append(counts or do_chunk(chunk))
                while len(waiting) > 2 * self.workers:
                    yield _result(waiting.popleft())
            while waiting:
                yield _result(waiting.popleft())
        except BrokenProcessPool:
            raise UserError(
                "a process died (out of memory?); run again to go on, with fewer --workers"
            ) from None


def _start_process(tokenizer_dir: Path, options: PrepareOptions) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent to handle
    parent = multiprocessing.parent_process()
    threading.Thread(target=lambda: (parent.join(), os._exit(1)), daemon=True).start()
    start_worker(tokenizer_dir, options)


def _result(counts: dict | Future) -> dict:
    return counts.result() if isinstance(counts, Future) else counts


def _run(
    pool: _Pool, source: data.Source, options: PrepareOptions, plan: dict, out: Path, progress: bool
) -> dict:
    """Do all chunks; returns the manifest's `splits`."""
    splits = {
        split: {"shards": [], "static_masking": split == "heldout" or not options.dynamic_masking}
        | dict.fromkeys(("documents", "sentences", "text_tokens", "samples", "tokens"), 0)
        for split in ("train", "heldout")[: 1 + (plan["heldout_documents"] > 0)]
    }
    names: deque[tuple[str, str]] = deque()

    def noted() -> Iterator[Chunk]:
        for chunk in _chunks(documents(source, options), plan, out):
            names.append((chunk.split, chunk.file.name))
            yield chunk

    started = time.perf_counter()
    with runs.progress(
        plan["documents"], desc="preparing", unit=" documents", disable=not progress
    ) as bar:
        for counts in pool.do(noted()):
            split, name = names.popleft()
            splits[split]["shards"].append(name)
            for what, count in counts.items():
                splits[split][what] += count
            tokens = sum(each["text_tokens"] for each in splits.values())
            rate = tokens / (time.perf_counter() - started)
            bar.set_postfix_str(f"{rate:,.0f} tokens/s", refresh=False)
            bar.update(counts["documents"])
    for split, counts in splits.items():
        if not counts["samples"]:
            raise UserError(f"{source.name}: the {split} documents make no sample; is this text?")
    return splits


def _throughput(
    pool: _Pool, source: data.Source, options: PrepareOptions, plan: dict, tokenizer
) -> dict:
    """Tokens of text per second, all of the above against the library's `encode_batch` alone.

    On the same few million characters in memory, on the same number of cores, the best of two.
    """
    texts, characters = [], 0
    for document in documents(source, options):
        texts.append(document)
        characters += sum(map(len, document))
        if characters > THROUGHPUT_CHARACTERS and len(texts) > 1:
            break
    paragraphs = list(chain.from_iterable(texts))
    slice_plan = plan | {
        "documents": len(texts),
        "heldout_documents": 0,
        "chunk_characters": characters // (4 * pool.workers),
    }
    best = {"tokens_per_second": 0.0, "library_tokens_per_second": 0.0}
    for _ in range(2):
        with tempfile.TemporaryDirectory() as beside:
            start = time.perf_counter()
            counts = list(pool.do(_chunks(texts, slice_plan, Path(beside))))
            ours = time.perf_counter() - start
        os.environ["TOKENIZERS_PARALLELISM"] = "true" if pool.workers > 1 else "false"
        start = time.perf_counter()
        encoded = tokenizer.encode_batch(paragraphs, add_special_tokens=False)
        library = time.perf_counter() - start
        text_tokens = sum(each["text_tokens"] for each in counts)
        rates = (text_tokens / ours, sum(map(len, encoded)) / library)
        for name, rate in zip(best, rates, strict=True):
            best[name] = round(max(best[name], rate))
    return best | {
        "throughput_ratio": round(best["tokens_per_second"] / best["library_tokens_per_second"], 3)
    }


# --- files ---------------------------------------------------------------------------------------


def key_of(options: PrepareOptions, source: data.Source) -> str:
    """Changes with every input and option that changes the output."""
    parts = asdict(options) | {"format": FORMAT, "kind": source.kind}
    parts["source"] = source.fingerprint()
    if options.vocab is not None:
        parts["vocab"] = load_tokenizer(options.vocab).to_str()
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


@contextlib.contextmanager
def _lock(out: Path) -> Iterator[None]:
    handle = os.open(out, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"{out}: another process is preparing data there") from None
        yield
    finally:
        os.close(handle)


def _refuse_others(out: Path, key: str) -> None:
    """Raise UserError when the directory holds anything but the beginnings of this preparation."""
    held = _read_json(out / "manifest.json") or _read_json(out / "plan.json")
    if held and held.get("key") != key:
        raise UserError(
            f"{out}: holds other prepared data (of another input, or with other options); choose "
            "another --out or delete it"
        )
    if not held and any(not entry.name.startswith(".") for entry in out.iterdir()):
        raise UserError(f"{out}: not empty, and not a prepared directory; give another --out")


def _write_jsonl(out: Path, manifest: dict) -> None:
    from step2_bert.samples import Samples  # brings torch, which the processes above do without

    for split, counts in manifest["splits"].items():
        samples, wanted = Samples(out, split, manifest), manifest["options"]["jsonl_samples"]
        wanted = len(samples) if wanted < 0 else min(wanted, counts["samples"])
        with (out / f"{split}.jsonl").open("w", encoding="utf-8") as file:
            for start in range(0, wanted, 1000):
                numbers = range(start, min(start + 1000, wanted))
                for sample in samples.readable(numbers, seed=manifest["options"]["seed"]):
                    file.write(json.dumps(sample, ensure_ascii=False) + "\n")


def _read_json(file: Path) -> dict:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
