"""Sentence pairs: the same text in two languages, line by line.

Where a name is looked up, and in which order, is `common.data`'s; here is what files look like:

- a folder with a file per split and language: train.de train.en val.de ... (perhaps .gz and so on);
- a folder with a file per split of both: train.tsv dev.jsonl ...; or one such file alone;
- two aligned files, joined by a comma: news.de,news.en

A table (.tsv, .csv, or .txt with tabs) whose first row names both languages has a header; else its
first column is the source, its second the target. Rows of .jsonl and .parquet have a field for
each language, or one called `translation` that has them.

What comes without splits is dealt out, a thirtieth each to dev and test, by a hash of the source
sentence, so that equal sentences stay together. Verses are dealt by chapter: neighbours share
names and phrases, and a test verse between two trained ones would flatter the model.
"""

import csv
import hashlib
import os
import random
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from itertools import zip_longest
from pathlib import Path

from common import data, formats
from common.cli import UserError
from common.formats import COMPRESSIONS, Skipped

Pair = tuple[str, str]
DEFAULT_LANGUAGES = {
    "multi30k": ("de", "en"),
    "wmt14": ("en", "de"),
    "kjv-bbe": ("kjv", "bbe"),
    "kjv-web": ("kjv", "web"),
    "copy": ("digits", "copy"),
}
HUB_LANGUAGES = {
    "multi30k": ("de", "en"),
    "wmt14": ("cs", "de", "en", "fr", "hi", "ru"),
}
COPY_PAIRS = {"train": 20_000, "dev": 500, "test": 500}
# First verse, last verse, and what to add to a verse number (book * 10^6 + chapter * 10^3 + verse).
# The package of BBE skips a chapter of Isaiah and a verse of John 1; WEB has the end of Romans 16
# at the end of chapter 14, as some manuscripts do.
RENUMBERED = {
    "bbe": ((23_066_001, 23_067_999, -1000), (43_001_040, 43_001_999, -1)),
    "web": ((45_014_024, 45_014_026, 2001),),
}


def default_languages(name: str) -> tuple[str, str]:
    """(source, target) of a name that we know, or of two files by their endings.

    Raises UserError for anything else.
    """
    if name in DEFAULT_LANGUAGES:
        return DEFAULT_LANGUAGES[name]
    if files := _two_files(name):
        languages = tuple(_language(file) for file in files)
        return languages if len(set(languages)) == 2 else ("source", "target")
    raise UserError(f"{name}: say which languages: --source de --target en")


def resolve(name: str, split: str, source: str, target: str) -> data.Source:
    """Find the files, or the place on the hub, of one split (train, dev or test).

    Raises UserError for an unknown name or split, or a language that the data does not have.
    """
    if split not in data.SPLITS:
        raise UserError(f"unknown split {split!r}; splits are: {', '.join(data.SPLITS)}")
    if name in DEFAULT_LANGUAGES and not (Path(name).exists() or _mirror(name).exists()):
        known = HUB_LANGUAGES.get(name, DEFAULT_LANGUAGES[name])
        _check_languages(name, source, target, known)
        if name == "copy":
            return data.Source(name, "embedded", split=split)
    if files := _two_files(name):
        return data.Source(name, "path", files, split)
    for kind, folder in (("path", Path(name).expanduser()), ("mirror", _mirror(name))):
        if name and folder.is_dir():
            if files := _language_files(folder, split, source, target):
                return data.Source(name, kind, files, split)
            break
    found = data.resolve(name, split)
    if found.parts:
        raise UserError(f"{name}: pairs come from one source; names cannot be joined by +")
    if name == "wmt14" and found.hub:
        repository, _, hub_split = found.hub
        other = source if target == "en" else target
        found = replace(found, hub=(repository, f"{other}-en", hub_split))
    return found


def pairs(
    name: str, split: str, source: str, target: str, *, skipped: Skipped | None = None
) -> Iterator[Pair]:
    """Yield the (source, target) sentences of a split, stripped of surrounding space, in order.

    With `skipped`, pairs with an empty side are left out and counted there. Raises UserError, with
    file and line, for an empty line, files of different length, and rows without the languages.
    """
    found = resolve(name, split, source, target)
    key = _dealt_by(found)
    for where, pair in _read(found, source, target):
        pair = (pair[0].strip(), pair[1].strip())
        if not all(pair):
            side = source if not pair[0] else target
            formats.complain(f"{where}: empty line or field ({side})", skipped)
        elif key is None or _deal(key(where, pair)) == split:
            yield pair


def _dealt_by(found: data.Source) -> Callable[[str, Pair], str] | None:
    """What decides the split of a pair, of data that comes without splits."""
    if found.kind == "embedded":
        return None if found.name == "copy" else lambda where, pair: where.rpartition(":")[0]
    place = _mirror(found.name) if found.kind == "mirror" else Path(found.name).expanduser()
    return None if found.hub or place.is_dir() else lambda where, pair: pair[0]


def _read(found: data.Source, source: str, target: str) -> Iterator[tuple[str, Pair]]:
    """Where each pair stands, and the pair."""
    if found.name == "copy" and not found.files:
        yield from (("copy", pair) for pair in _digits(found.split))
    elif found.kind == "embedded":
        sides = dict(zip(DEFAULT_LANGUAGES[found.name], found.files, strict=True))
        yield from _verse_pairs(source, sides[source], target, sides[target])
    elif found.hub:
        yield from _columns(data.hub_rows(found), source, target)
    elif _two_files(found.name) or not formats.file_format(found.files[0]):
        yield from _lines(*found.files)
    else:
        for file in found.files:
            if formats.file_format(file) in (".tsv", ".csv", ".txt"):
                yield from _table(file, source, target)
            else:
                yield from _columns(formats.rows(file), source, target)


def _deal(key: str) -> str:
    thirtieth = int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") % 30
    return {28: "dev", 29: "test"}.get(thirtieth, "train")


def _check_languages(where: object, source: str, target: str, known: Iterable[str]) -> None:
    known = sorted(known)
    if source == target:
        raise UserError(
            f"{where}: source and target are both {source!r}; it has {', '.join(known)}"
        )
    if missing := [language for language in (source, target) if language not in known]:
        pair = f"{source}-{target}"
        raise UserError(f"{where}: no {missing[0]!r} of {pair}; its languages: {', '.join(known)}")
    if where == "wmt14" and "en" not in (source, target):
        raise UserError(f"wmt14 has English with each of {', '.join(known)}; not {source}-{target}")


# --- files ---------------------------------------------------------------------------------------


def _mirror(name: str) -> Path:
    return Path(os.environ.get("GYM_DATA") or "/nowhere") / name


def _two_files(name: str) -> tuple[Path, Path] | None:
    files = [Path(part.strip()).expanduser() for part in name.split(",")]
    if len(files) != 2 or Path(name).exists():
        return None
    if missing := [file for file in files if not file.is_file()]:
        raise UserError(f"{missing[0]}: no such file")
    return files[0], files[1]


def _language(file: Path) -> str:
    """`de` of train.de or train.de.gz."""
    suffixes = [suffix.lower() for suffix in file.suffixes]
    if suffixes and suffixes[-1] in COMPRESSIONS:
        suffixes.pop()
    return suffixes[-1][1:] if suffixes else ""


def _language_files(folder: Path, split: str, source: str, target: str) -> tuple[Path, Path] | None:
    """The two files of a split; None in a folder of tables. Of several test sets the first."""
    by_language: dict[str, list[Path]] = {}
    for file in sorted(file for file in folder.iterdir() if file.is_file()):
        word = re.split(r"[^a-z]", file.name.lower())[0]
        if word in data.SPLITS[split] and not formats.file_format(file) and _language(file):
            by_language.setdefault(_language(file), []).append(file)
    if by_language:
        _check_languages(folder, source, target, by_language)
        return by_language[source][0], by_language[target][0]
    if any(formats.file_format(file) for file in folder.iterdir()):
        return None
    wanted = " and ".join(f"{data.SPLITS[split][-1]}.{language}" for language in (source, target))
    raise UserError(f"{folder}: no files for split {split!r} (such as {wanted})")


def _lines(source: Path, target: Path) -> Iterator[tuple[str, Pair]]:
    both = zip_longest(formats.lines(source), formats.lines(target))
    for number, pair in enumerate(both, 1):
        if None in pair:
            longer, shorter = (target, source) if pair[0] is None else (source, target)
            more = number + sum(1 for _ in both)
            raise UserError(
                f"{longer} has {more:,} lines, {shorter} {number - 1:,}: they are not aligned; "
                "line n of one must be the translation of line n of the other"
            )
        yield f"{source if not pair[0].strip() else target}:{number}", pair


def _table(path: Path, source: str, target: str) -> Iterator[tuple[str, Pair]]:
    comma = formats.file_format(path) == ".csv"
    style = {"strict": True} if comma else {"delimiter": "\t", "quoting": csv.QUOTE_NONE}
    cells = csv.reader(formats.lines(path), **style)
    columns = None
    try:
        for row in cells:
            where = f"{path}:{cells.line_num}"
            if columns is None:
                names = [cell.strip().lower() for cell in row]
                columns = (0, 1)
                if source in names and target in names:
                    columns = (names.index(source), names.index(target))
                    continue
            if not row:
                yield where, ("", "")
            elif len(row) <= max(columns):
                separator = "comma" if comma else "tab"
                raise UserError(f"{where}: no {separator} between source and target")
            else:
                yield where, (row[columns[0]], row[columns[1]])
    except csv.Error as error:
        raise UserError(f"{path}:{cells.line_num}: not a table ({error})") from None


def _columns(rows: Iterator[formats.Row], source: str, target: str) -> Iterator[tuple[str, Pair]]:
    for where, row in rows:
        nested = row.get("translation")
        row = nested if isinstance(nested, dict) else row
        pair = (row.get(source), row.get(target))
        if not all(isinstance(text, str) for text in pair):
            _check_languages(where, source, target, [k for k, v in row.items() if v is not None])
            raise UserError(f"{where}: {source} and {target} must be text")
        yield where, pair


# --- what is built in ----------------------------------------------------------------------------


def _digits(split: str) -> Iterator[Pair]:
    """The copy task: 3 to 12 random digits, to be said again."""
    rng = random.Random(split)
    for _ in range(COPY_PAIRS[split]):
        text = " ".join(rng.choices("0123456789", k=rng.randint(3, 12)))
        yield text, text


def _verse_pairs(
    source: str, source_file: Path, target: str, target_file: Path
) -> Iterator[tuple[str, Pair]]:
    """Verses that both translations have, joined by book, chapter and verse number."""
    first, second = verses(source, source_file), verses(target, target_file)
    for number in sorted(first.keys() & second.keys()):
        book, chapter, verse = number // 10**6, number // 1000 % 1000, number % 1000
        yield f"book {book} {chapter}:{verse}", (first[number], second[number])


def verses(version: str, path: Path) -> dict[int, str]:
    """{book * 10^6 + chapter * 10^3 + verse: text} of a pythonbible package, kjv, bbe or web.

    The module is read as text, for its offsets count the characters of its source code: in the
    Python string, where the two characters of an escaped backslash are one, those of BBE are wrong
    from Genesis 43 on. `\\\\43:1\\\\` before a verse says that it is 43:1 of the common numbering,
    whatever its place. Verses that a version leaves out ("...", "+") are left out here.
    Raises UserError where an offset does not lead to a verse of its number.
    """
    code = "".join(formats.lines(path))
    start = code.index('"""') + 3
    end = code.index('"""', start)
    text = code[start:end]
    numbers = [
        (int(number), int(offset))
        for number, offset in re.findall(r"(\d{7,8}): (\d+),", code[end:])
    ]
    half = len(numbers) // 2  # where verses start, then where they end
    pattern = re.compile(r"(\d+)\.\s*(?:\\\\(\d+):(\d+)\\\\)?(.*?)(?:\\\\)?", re.DOTALL)
    found: dict[int, str] = {}
    for (number, begin), (_, stop) in zip(numbers[:half], numbers[half:], strict=True):
        match = pattern.fullmatch(text[begin:stop].strip())
        if not match or int(match[1]) != number % 1000:
            raise UserError(f"{path}: verse {number} is not where it should be: another version?")
        if match[2]:
            number = number // 10**6 * 10**6 + int(match[2]) * 1000 + int(match[3])
        for first, last, shift in RENUMBERED.get(version, ()):
            number += shift if first <= number <= last else 0
        verse = " ".join(match[4].split())
        if re.search(r"[a-z]", verse) and not verse.startswith("dummy verse"):
            found[number] = f"{found[number]} {verse}" if number in found else verse
    return found
