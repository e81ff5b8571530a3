"""The stages of the pipeline as datatrove blocks, which any of its executors runs.

A block is a generator over documents, with (rank, world_size) to say which task of how many it is;
documents flow through the blocks of a stage one by one, so that a task never holds more than one.
A file is written beside and then renamed: what is there is whole, and a task that was killed is
done again from the start, with the same result.

A document's key (task of reading << 40 | number) orders it among all; its metadata are what a shard
says of it besides the text. What a filter throws out goes to dropped/, with the reason and the
first lines.
"""

import json
import os
import re
import resource
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from itertools import chain, count, islice
from pathlib import Path

import numpy as np
from datatrove.data import Document
from datatrove.pipeline.base import PipelineStep
from datatrove.pipeline.filters.base_filter import BaseFilter

from common import data, formats
from step2_bert.sentences import split_sentences
from step3_peripherals import planting, quality
from step3_peripherals.dedup import Groups, MinHash, exact_hash, links

SHOWN = 300  # characters of a document that was thrown out
AT_ONCE = 1 << 24  # documents that are searched for duplicates at a time, at 40 bytes each
READ_ROWS = 1 << 16  # hashes read from the disk at a time
READERS = 256  # tasks that read at most, however many files there are
LANGUAGE_CHARACTERS = 1000  # are enough to tell the language
# py3langid tells the Chinese languages apart, which one script and one set of rules serve.
FAMILIES = dict.fromkeys(("zh", "wuu", "yue", "gan", "hak", "lzh", "cdo", "nan"), "zh")


# --- files ---------------------------------------------------------------------------------------


@contextmanager
def written(path: Path) -> Iterator[Path]:
    """A name to write to, which becomes `path` if all goes well."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        yield beside
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)


@contextmanager
def json_lines(path: Path) -> Iterator[Callable[[dict], None]]:
    """A function that appends one row to the .jsonl.zst at `path`."""
    import pyarrow

    with written(path) as beside, pyarrow.output_stream(str(beside), compression="zstd") as stream:

        def write(row: dict) -> None:  # half a surrogate pair is no character: it becomes "?"
            line = json.dumps(row, ensure_ascii=False) + "\n"
            stream.write(line.encode("utf-8", "replace"))

        yield write


def rows(folder: Path, pattern: str = "*.jsonl.zst") -> Iterator[dict]:
    """The rows of all files of that name, in order."""
    for path in sorted(folder.glob(pattern)):
        yield from (row for _, row in formats.rows(path))


class ReadRows(PipelineStep):
    """Documents that an earlier stage wrote for this task."""

    type, name = "📖", "read"

    def __init__(self, folder: Path):
        super().__init__()
        self.folder = folder

    def run(self, data=None, rank: int = 0, world_size: int = 1):
        for row in rows(self.folder, f"{rank:05d}*.jsonl.zst"):
            yield Document(row.pop("text"), row.pop("id"), metadata=row)


class WriteRows(PipelineStep):
    """One file of documents for each task; `fields` are the metadata that go into it."""

    type, name = "💾", "write"

    def __init__(self, folder: Path, fields: Sequence[str]):
        super().__init__()
        self.folder, self.fields = folder, fields

    def run(self, data, rank: int = 0, world_size: int = 1):
        with json_lines(self.folder / f"{rank:05d}.jsonl.zst") as write:
            for doc in data:
                self.stat_update("total")
                found = {name: doc.metadata[name] for name in self.fields if name in doc.metadata}
                write({"id": doc.id, "text": doc.text} | found)
                yield doc
        note_peak(self)


def note_peak(step: PipelineStep) -> None:
    """At the end of a task: the most memory that its process had until then, in KiB on Linux."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    step.stat_update("peak_memory", value=peak, unit="task")


class Records:
    """Where a filter leaves what it threw out, or a repair what it changed."""

    def __init__(self, folder: Path, name: str):
        self.folder, self.name, self._open = folder, name, None

    def __enter__(self):
        return self

    def write(self, doc: Document, rank: int = 0, **more) -> None:
        if self._open is None:
            self._open = json_lines(self.folder / f"{self.name}-{rank:05d}.jsonl.zst")
            self._write = self._open.__enter__()
        known = {name: doc.metadata[name] for name in ("key", "of") if name in doc.metadata}
        told = {"filter": self.name, "reason": doc.metadata.get("filter_reason", "")}
        self._write({"id": doc.id, **known, **told, "text": doc.text[:SHOWN], **more})

    def __exit__(self, *error):
        if self._open is not None:
            self._open.__exit__(*error)
            self._open = None


# --- 1: read -------------------------------------------------------------------------------------


def units_of(source: data.Source) -> dict[str, data.Source]:
    """What is read in one piece, a file, or an embedded package or hub dataset as a whole, by the
    label that begins the ids of its documents: its name, or "name~2" where another has that."""
    units = {}
    for part in source.parts or (source,):
        files = part.files if part.kind in ("path", "mirror") else ()
        for unit in [replace(part, name=path.name, files=(path,)) for path in files] or [part]:
            labels = chain([unit.name], (f"{unit.name}~{n}" for n in count(2)))
            units[next(label for label in labels if label not in units)] = unit
    return units


class ReadUnit(PipelineStep):
    """The documents of every unit that is this task's, a paragraph a line."""

    type, name = "📖", "source"

    def __init__(self, units: dict[str, data.Source], most: int | None, skip_bad_lines: bool):
        super().__init__()
        self.units, self.most, self.skip_bad_lines = units, most, skip_bad_lines

    def run(self, _=None, rank: int = 0, world_size: int = 1):
        first, end = (len(self.units) * r // world_size for r in (rank, rank + 1))
        for label, unit in islice(self.units.items(), first, end):
            yield from self.documents(label, unit)

    def documents(self, label: str, unit: data.Source) -> Iterator[Document]:
        skipped = formats.Skipped()
        if unit.kind in ("path", "mirror"):  # one empty file of many is no error
            found = formats.documents(unit.files[0], skipped if self.skip_bad_lines else None)
        else:
            found = data.documents(unit, skip_bad_lines=self.skip_bad_lines, skipped=skipped)
        for number, paragraphs in enumerate(islice(found, self.most)):
            text = "\n".join(line for paragraph in paragraphs if (line := paragraph.strip()))
            if text:
                self.stat_update("total")
                self.stat_update("characters", value=len(text))
                yield Document(text, f"{label}/{number}", metadata={})
        self.stat_update("bad_lines", value=skipped.count)


class Plant(PipelineStep):
    """Adds known faults to a share of the documents, and notes the truth apart from them."""

    type, name = "🌱", "plant"

    def __init__(self, folder: Path, share: float, seed: int):
        super().__init__()
        self.folder, self.share, self.seed = folder, share, seed

    def run(self, data, rank: int = 0, world_size: int = 1):
        with json_lines(self.folder / f"{rank:05d}.jsonl.zst") as note:
            for doc in data:
                for text, id, truth in planting.plant(doc.text, doc.id, self.share, self.seed):
                    if truth:
                        self.stat_update("total")
                        note({"id": id} | truth)
                    yield Document(text, id, metadata={})


class Deal(PipelineStep):
    """Deals the documents out to `hands` files, one for each task of the next stage."""

    type, name = "🃏", "deal"

    def __init__(self, folder: Path, hands: int):
        super().__init__()
        self.folder, self.hands = folder, hands

    def run(self, data, rank: int = 0, world_size: int = 1):
        with ExitStack() as stack:
            names = [f"{hand:05d}-{rank:05d}.jsonl.zst" for hand in range(self.hands)]
            write = [stack.enter_context(json_lines(self.folder / name)) for name in names]
            for number, doc in enumerate(data):
                row = {"id": doc.id, "key": rank << 40 | number, "text": doc.text}
                write[number % self.hands](row)
                self.stat_update("total")
                yield doc
        note_peak(self)


# --- 2: clean ------------------------------------------------------------------------------------


class Repair(BaseFilter):
    """Undoes mojibake, entities and control characters, with ftfy; drops what is empty then.

    Curly quotes, ligatures and full-width forms stay: they are right, and Chinese needs them.
    """

    name = "repair"

    def __init__(self, dropped: Path, repaired: Path):
        super().__init__(Records(dropped, self.name))
        self.repaired = Records(repaired, self.name)

    def run(self, data, rank: int = 0, world_size: int = 1):
        self.rank = rank
        with self.repaired:
            yield from super().run(data, rank, world_size)

    def filter(self, doc):
        fixed, kind = planting.repair(doc.text)
        if kind:
            self.stat_update(f"repaired_{kind}")
            at = len(os.path.commonprefix([doc.text, fixed]))
            around = slice(max(0, at - 40), at + 80)
            self.repaired.write(
                doc, self.rank, kind=kind, hash=exact_hash(fixed),
                before=doc.text[around], after=fixed[around],
            )  # fmt: skip
        doc.text = fixed
        return bool(fixed.strip()) or (False, "empty")


class Language(BaseFilter):
    """Keeps the wanted languages, by py3langid's own model, and notes which it is."""

    name = "language"

    def __init__(self, dropped: Path, languages: Sequence[str]):
        super().__init__(Records(dropped, self.name))
        self.languages = {FAMILIES.get(language, language) for language in languages}

    def filter(self, doc):
        import py3langid

        found, _ = py3langid.classify(doc.text[:LANGUAGE_CHARACTERS])
        doc.metadata["language"] = FAMILIES.get(found, found)
        return doc.metadata["language"] in self.languages or (False, doc.metadata["language"])


class C4(BaseFilter):
    name = "c4"

    def __init__(self, dropped: Path):
        super().__init__(Records(dropped, self.name))

    def filter(self, doc):
        cleaned = quality.c4(doc.text, quality.rules_for(doc.metadata["language"]))
        for reason, lines in cleaned.removed.items():
            self.stat_update(f"line_{reason}", value=lines)
        if cleaned.text is None:
            return False, cleaned.reason
        doc.text = cleaned.text
        return True


class Gopher(BaseFilter):
    """One of the two sets of Gopher's rules."""

    def __init__(self, dropped: Path, name: str, rule: Callable):
        self.name = name  # first, because the base class files its counts under it
        super().__init__(Records(dropped, name))
        self.rule = rule

    def filter(self, doc):
        reason = self.rule(doc.text, quality.rules_for(doc.metadata["language"]))
        return reason is None or (False, reason)


class Hash(PipelineStep):
    """Writes what the search for duplicates needs of each document: (bands + 2) x 8 bytes."""

    type, name = "🔢", "hash"

    def __init__(self, folder: Path, minhash: MinHash):
        super().__init__()
        self.folder, self.minhash = folder, minhash

    def run(self, data, rank: int = 0, world_size: int = 1):
        with written(self.folder / f"{rank:05d}.uint64") as beside, open(beside, "wb") as file:
            for doc in data:
                with self.track_time():
                    near = self.minhash.band_hashes(doc.text)
                    exact = exact_hash(doc.text)
                    key = doc.metadata["key"]
                    if near is None:  # without words nothing is like it but itself
                        near = np.full(self.minhash.bands, exact, np.uint64)
                    file.write(np.array([key, exact, *near], np.uint64).tobytes())
                yield doc

    @staticmethod
    def files(folder: Path) -> list[Path]:
        if not (found := sorted(folder.glob("*.uint64"))):  # each task wrote one
            raise FileNotFoundError(f"{folder} has no hashes: delete the run and begin anew")
        return found

    @staticmethod
    def read(files: Sequence[Path], minhash: MinHash) -> Iterator[np.ndarray]:
        """(n, bands + 2) uint64, some at a time: a document's key, hash of its text, its bands."""
        width = minhash.bands + 2
        for path in files:
            with open(path, "rb") as file:
                while len(found := np.fromfile(file, np.uint64, READ_ROWS * width)):
                    yield found.reshape(-1, width)


# --- 3 and 4: find duplicates --------------------------------------------------------------------


class Match(PipelineStep):
    """Links the documents that agree in a band; band 0 is the hash of the whole text.

    A corpus of more than AT_ONCE documents is searched in parts, one remainder of the hash after
    the other, for documents of unlike remainders cannot agree.
    """

    type, name = "🔗", "match"

    def __init__(self, hashes: Path, folder: Path, minhash: MinHash):
        super().__init__()
        self.hashes, self.folder, self.minhash = hashes, folder, minhash

    def run(self, data=None, rank: int = 0, world_size: int = 1):
        files = Hash.files(self.hashes)
        n_documents = sum(file.stat().st_size for file in files) // (8 * (self.minhash.bands + 2))
        parts = max(1, -(-n_documents // AT_ONCE))
        for band in range(rank, self.minhash.bands + 1, world_size):
            found = [links(*self.read(files, band, part, parts)) for part in range(parts)]
            with written(self.folder / f"{band:05d}.npy") as beside, open(beside, "wb") as file:
                np.save(file, np.concatenate(found))
        note_peak(self)
        yield from ()

    def read(
        self, files: Sequence[Path], band: int, part: int, parts: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """(n,) hashes that leave the remainder `part`, divided by `parts`, and (n,) their keys."""
        none = np.empty(0, np.uint64)
        hashes, keys = [none], [none]
        for rows in Hash.read(files, self.minhash):
            here = rows[:, band + 1] % np.uint64(parts) == part
            hashes.append(rows[here, band + 1])
            keys.append(rows[here, 0])
        return np.concatenate(hashes), np.concatenate(keys)


class Group(PipelineStep):
    """Chains the links to groups: (n, 3) rows of a duplicate's key, its head's, 1 if exact."""

    type, name = "👪", "group"

    def __init__(self, folder: Path, duplicates: Path):
        super().__init__()
        self.folder, self.duplicates = folder, duplicates

    def run(self, data=None, rank: int = 0, world_size: int = 1):
        first, *others = sorted(self.folder.glob("*.npy"))
        exact, near = Groups(), Groups()
        for path in (first, *others):
            pairs = np.load(path, mmap_mode="r")
            for at in range(0, len(pairs), READ_ROWS):
                for a, b in pairs[at : at + READ_ROWS].tolist():
                    near.join(a, b)
                    if path == first:
                        exact.join(a, b)
        heads = dict(exact.duplicates())
        table = [(k, heads.get(k, head), int(k in heads)) for k, head in near.duplicates()]
        with written(self.duplicates) as beside, open(beside, "wb") as file:
            np.save(file, np.array(table, np.uint64).reshape(-1, 3))
        note_peak(self)
        yield from ()


# --- 5: write ------------------------------------------------------------------------------------


class DropDuplicates(BaseFilter):
    """Drops the exact, or the near, duplicates, and says of what."""

    def __init__(self, dropped: Path, duplicates: Path, name: str):
        self.name = name
        super().__init__(Records(dropped, name))
        self.duplicates = duplicates

    def run(self, data, rank: int = 0, world_size: int = 1):
        self.table = np.load(self.duplicates, mmap_mode="r")
        yield from super().run(data, rank, world_size)

    def filter(self, doc):
        at = np.searchsorted(self.table[:, 0], np.uint64(doc.metadata["key"]))
        if at == len(self.table) or self.table[at, 0] != doc.metadata["key"]:
            return True
        if bool(self.table[at, 2]) != (self.name == "exact"):
            return True
        doc.metadata["of"] = int(self.table[at, 1])
        return False, self.name


class Sentences(PipelineStep):
    """Notes where the sentences of a document end, in characters of its text."""

    type, name = "✂", "sentences"

    def run(self, data, rank: int = 0, world_size: int = 1):
        for doc in data:
            with self.track_time():
                ends, at = [], 0
                for paragraph in re.split("\n", doc.text):
                    for sentence in split_sentences(paragraph):
                        at = doc.text.index(sentence, at) + len(sentence)
                        ends.append(at)
                doc.metadata["sentence_ends"] = ends
                self.stat_update("total", value=len(ends))
            yield doc


# --- all -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Stage:
    """Blocks that run in one go, in so many tasks."""

    name: str
    tasks: int
    blocks: list[PipelineStep]


def stages(
    units: dict[str, data.Source], out: Path, *, languages: Sequence[str], tasks: int,
    minhash: MinHash, plant: float, seed: int, max_documents: int | None, skip_bad_lines: bool,
) -> list[Stage]:  # fmt: skip
    """The whole pipeline; each stage needs the one before it to be done."""
    work, dropped, duplicates = out / "work", out / "dropped", out / "work" / "duplicates.npy"
    return [
        Stage("1-read", min(len(units), READERS), [
            ReadUnit(units, max_documents, skip_bad_lines),
            *([Plant(out / "planted", plant, seed)] if plant else []),
            Deal(work / "raw", tasks),
        ]),
        Stage("2-clean", tasks, [
            ReadRows(work / "raw"),
            Repair(dropped, out / "repaired"),
            Language(dropped, languages),
            C4(dropped),
            # In the paper's order; so what is far too long is out before the costly rules
            Gopher(dropped, "statistics", quality.gopher_quality),
            Gopher(dropped, "repetition", quality.gopher_repetition),
            Hash(work / "hashes", minhash),
            WriteRows(work / "clean", ("key", "language")),
        ]),
        Stage("3-match", min(tasks, minhash.bands + 1),
              [Match(work / "hashes", work / "links", minhash)]),
        Stage("4-group", 1, [Group(work / "links", duplicates)]),
        Stage("5-write", tasks, [
            ReadRows(work / "clean"),
            DropDuplicates(dropped, duplicates, "exact"),
            DropDuplicates(dropped, duplicates, "near"),
            Sentences(),
            WriteRows(out / "shards", ("language", "sentence_ends")),
        ]),
    ]  # fmt: skip
