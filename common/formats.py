"""Files of text: .txt .jsonl .json .csv .tsv .parquet, each also .gz .xz .bz2 .zst.

`documents` reads any of them as documents, `rows` those that have columns. Both stream, and say
which file and line is bad.
"""

import bz2
import csv
import gzip
import io
import json
import lzma
import re
import shutil
import tempfile
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from common.cli import UserError

FORMATS = (".txt", ".jsonl", ".json", ".csv", ".tsv", ".parquet")
COMPRESSIONS = (".gz", ".xz", ".bz2", ".zst")
KNOWN = f"known: {' '.join(FORMATS)}, each also {' '.join(COMPRESSIONS)}"

Row = tuple[str, dict[str, Any]]  # "file:line" and the columns


@dataclass
class Skipped:
    """Counts the rows that were left out, and remembers what was wrong with the first."""

    count: int = 0
    first: str = ""

    def add(self, complaint: str) -> None:
        self.count += 1
        self.first = self.first or complaint


def file_format(path: Path) -> str | None:
    """One of FORMATS, whatever the compression; None for any other file."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] in COMPRESSIONS:
        suffixes.pop()
    return suffixes[-1] if suffixes and suffixes[-1] in FORMATS else None


def documents(path: Path, skipped: Skipped | None = None) -> Iterator[list[str]]:
    """Yield documents as lists of paragraphs.

    .txt: see `text_documents`; the others: a document a row, its column `text`, a paragraph a line.
    A row without text is a UserError, or counted in `skipped` when that is given.
    """
    if file_format(path) == ".txt":
        yield from text_documents(lines(path))
    else:
        yield from documents_of_rows(rows(path, skipped), skipped)


def documents_of_rows(found: Iterable[Row], skipped: Skipped | None) -> Iterator[list[str]]:
    """Yield the column `text` of each row as a list of paragraphs, one a line.

    Raises UserError for a row without it, unless `skipped` is given to count such rows.
    """
    for where, row in found:
        if isinstance(row.get("text"), str):
            yield row["text"].split("\n")
        else:
            complain(f"{where}: no `text` in this row", skipped)


def text_documents(found: Iterable[str]) -> Iterator[list[str]]:
    """Split the lines of a .txt file by the layout that its first line shows.

    `<doc ...>` to `</doc>`; WikiText, where a line ` = Title = ` between blank ones opens a
    document; else blank lines between documents, as in BERT's own input. A line is a paragraph.
    """
    title = re.compile(r" ?= [^=\s](.*[^=\s])? = ?\n?")
    heading = re.compile(r"\s*(?:= )+(.*?)(?: =)+\s*")
    layout, paragraphs, before, found = None, [], "", iter(found)
    line = next(found, None)
    while line is not None:
        after, blank, text = next(found, None), not line.strip(), line
        if layout is None and not blank:
            is_wikitext = title.fullmatch(line) and not (after or "").strip()
            layout = "doc" if line.startswith("<doc ") else "wikitext" if is_wikitext else "plain"
        if layout == "doc":
            ends = line.startswith(("<doc ", "</doc>"))
            text = "" if ends else line
        elif layout == "wikitext":  # formulas can look like headings, but stand among text
            alone = not before.strip() and not (after or "").strip()
            ends = alone and title.fullmatch(line)
            if alone and (match := heading.fullmatch(line)):
                text = match[1]
        else:
            ends = blank
        if ends and paragraphs:
            yield paragraphs
            paragraphs = []
        if text.strip():
            paragraphs.append(text)
        before, line = line, after
    if paragraphs:
        yield paragraphs


def rows(path: Path, skipped: Skipped | None = None) -> Iterator[Row]:
    """Yield the rows of a file with columns; broken JSON lines are counted in `skipped`, if given.

    .csv is quoted, .tsv is not. A table whose header has no text, sentence or sentence1 has no
    header, and one or two columns: text, label. Raises UserError, with file and line, for what
    cannot be read, for a row of another width than the table, and for a .txt.
    """
    kind = file_format(path)
    if kind == ".txt":
        raise UserError(f"{path}: a .txt has no columns; give .jsonl, .csv, .tsv or .parquet")
    readers = {".jsonl": _json_rows, ".json": _json_rows, ".parquet": _parquet_rows}
    yield from readers.get(kind, _table_rows)(path, skipped)


def lines(path: Path) -> Iterator[str]:
    """The lines of a file, decompressed and decoded. UserError says which one is bad."""
    number = 0
    try:
        with _open(path) as stream:
            for number, line in enumerate(io.BufferedReader(stream, 1 << 20), 1):
                yield line.decode("utf-8-sig" if number == 1 else "utf-8")
    except UnicodeDecodeError as error:
        told = f"not UTF-8 at byte {error.start + 1} of the line"
        raise UserError(f"{path}:{number}: {told}") from None
    except (FileNotFoundError, PermissionError, IsADirectoryError) as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    except (EOFError, OSError, lzma.LZMAError, zlib.error) as error:
        raise UserError(f"{path}:{number + 1}: broken or cut off ({error})") from None


def complain(complaint: str, skipped: Skipped | None) -> None:
    """Count a bad row, with what is wrong, in `skipped`; raises UserError where that is None."""
    if skipped is None:
        raise UserError(f"{complaint}; mend the line, or prepare with --skip-bad-lines")
    skipped.add(complaint)


def _open(path: Path) -> BinaryIO:
    suffix = path.suffix.lower()
    if suffix == ".zst":
        import pyarrow  # unlike zstandard, it notices a file that was cut off

        return pyarrow.input_stream(str(path), compression="zstd")
    return {".gz": gzip.open, ".xz": lzma.open, ".bz2": bz2.open}.get(suffix, open)(path, "rb")


def _json_rows(path: Path, skipped: Skipped | None) -> Iterator[Row]:
    """JSON lines; a file that opens with `[` is one array and is read into memory whole."""
    found = lines(path)
    for number, line in enumerate(found, 1):
        if number == 1 and line.lstrip().startswith("["):
            try:
                array = json.loads(line + "".join(found))
            except json.JSONDecodeError as error:
                raise UserError(f"{path}:{error.lineno}: not JSON ({error.msg})") from None
            for item, row in enumerate(array, 1):
                yield f"{path}: item {item}", row if isinstance(row, dict) else {}
        elif line.strip():
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                complain(f"{path}:{number}: not JSON ({error.msg})", skipped)
            else:
                yield f"{path}:{number}", row if isinstance(row, dict) else {}


def _table_rows(path: Path, _: Skipped | None) -> Iterator[Row]:
    tsv = file_format(path) == ".tsv"
    csv.field_size_limit(1 << 30)
    style = {"delimiter": "\t", "quoting": csv.QUOTE_NONE} if tsv else {"strict": True}
    reader, columns = csv.reader(lines(path), **style), None
    try:
        for cells in reader:
            if not "".join(cells).strip():
                continue
            if columns is None:
                columns = [cell.strip().lower() for cell in cells]
                if {"text", "sentence", "sentence1"} & set(columns):
                    continue
                columns = ["text", "label"][: len(cells)]
            if len(cells) != len(columns):
                told = f"{len(cells)} columns instead of {len(columns)} ({' '.join(columns)})"
                raise UserError(f"{path}:{reader.line_num}: {told}")
            yield f"{path}:{reader.line_num}", dict(zip(columns, cells, strict=True))
    except csv.Error as error:
        raise UserError(f"{path}:{reader.line_num}: not a table ({error})") from None


def _parquet_rows(path: Path, _: Skipped | None) -> Iterator[Row]:
    import pyarrow
    import pyarrow.parquet

    with tempfile.TemporaryFile() as plain:
        try:
            if path.suffix.lower() in COMPRESSIONS:  # parquet is read from its end, these are not
                with _open(path) as packed:
                    shutil.copyfileobj(packed, plain)
            table = pyarrow.parquet.ParquetFile(plain if plain.tell() else path)
            found = (row for batch in table.iter_batches(1024) for row in batch.to_pylist())
            for number, row in enumerate(found, 1):
                yield f"{path}: row {number}", row
        except (pyarrow.ArrowInvalid, OSError, EOFError) as error:
            reason = str(error).splitlines()[0]
            raise UserError(f"{path}: broken or unreadable parquet file ({reason})") from None
