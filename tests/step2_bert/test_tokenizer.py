import json

import pytest

from common.cli import UserError
from step2_bert import tokenizer as ours

TEXTS = ["The quick brown fox jumps over the lazy dog.", "A naïve Fox, unjumping!"] * 20


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    return ours.train_wordpiece(TEXTS, 120, out_dir=folder), folder


def test_special_tokens_come_first_and_training_repeats_itself(trained):
    tokenizer, _ = trained
    assert [tokenizer.id_to_token(i) for i in range(5)] == list(ours.SPECIAL_TOKENS)
    assert ours.train_wordpiece(TEXTS, 120).get_vocab() == tokenizer.get_vocab()
    assert tokenizer.encode("NAIVE", add_special_tokens=False).tokens == (
        tokenizer.encode("naïve", add_special_tokens=False).tokens
    )
    assert ours.train_wordpiece(TEXTS, 120, lowercase=False).token_to_id("T") is not None


def test_transformers_opens_what_is_saved(trained):
    transformers = pytest.importorskip("transformers")
    tokenizer, folder = trained
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    text, pair = "The quick fox", "unjumping dogs [MASK]"
    assert theirs(text, pair)["input_ids"] == tokenizer.encode(text, pair).ids
    assert theirs(text, pair)["token_type_ids"] == tokenizer.encode(text, pair).type_ids
    assert (theirs.pad_token_id, theirs.mask_token, theirs.model_max_length) == (0, "[MASK]", 512)
    bert = transformers.BertTokenizerFast.from_pretrained(folder)
    assert bert(text)["input_ids"] == tokenizer.encode(text).ids
    assert theirs.decode(theirs(text)["input_ids"], skip_special_tokens=True) == text.lower()


def test_every_way_to_load_gives_the_same_ids(trained, tmp_path):
    tokenizer, folder = trained
    transformers = pytest.importorskip("transformers")
    transformers.AutoTokenizer.from_pretrained(folder).save_pretrained(tmp_path)
    expected = tokenizer.encode(TEXTS[1]).ids
    for path in (folder, folder / "tokenizer.json", folder / "vocab.txt", tmp_path):
        assert ours.load_tokenizer(path).encode(TEXTS[1]).ids == expected


def test_a_bare_vocabulary_with_capitals_keeps_case(tmp_path):
    ours.train_wordpiece(TEXTS, 120, lowercase=False, out_dir=tmp_path)
    assert "The" in (tmp_path / "vocab.txt").read_text().split("\n")
    loaded = ours.load_tokenizer(tmp_path / "vocab.txt")
    assert loaded.encode("The", add_special_tokens=False).tokens == ["The"]
    assert ours.load_tokenizer(tmp_path / "vocab.txt", lowercase=True).encode("The").tokens != (
        loaded.encode("The").tokens
    )


def test_vocabularies_that_do_not_do_are_refused(tmp_path):
    for size in (5, 10, 1 << 21):
        with pytest.raises(UserError):
            ours.train_wordpiece(TEXTS, size)
    with pytest.raises(UserError, match="no text"):
        ours.train_wordpiece([], 100)
    with pytest.raises(UserError, match="no such tokenizer"):
        ours.load_tokenizer(tmp_path / "absent")
    with pytest.raises(UserError, match="neither tokenizer.json nor vocab.txt"):
        ours.load_tokenizer(tmp_path)
    for content, wrong in (
        ("[PAD]\n[UNK]\n[CLS]\n[SEP]\na\n", r"lacks the special tokens \[MASK\]"),
        ("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\na\na\n", "the same token on two lines"),
    ):
        (tmp_path / "vocab.txt").write_text(content)
        with pytest.raises(UserError, match=wrong):
            ours.load_tokenizer(tmp_path / "vocab.txt")
    (tmp_path / "tokenizer.json").write_text(json.dumps({"model": 1}))
    with pytest.raises(UserError, match="not a tokenizer.json"):
        ours.load_tokenizer(tmp_path)
