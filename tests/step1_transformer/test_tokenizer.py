import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.cli import UserError
from step1_transformer import tokenizer as bpe

TEXTS = ["Ein Mann geht über die Straße.", "A man walks over the street.", "Über 42 Männer!"] * 9


@pytest.fixture(scope="module")
def trained():
    return bpe.train_bpe(TEXTS, 300)


def test_special_tokens_come_first_and_only_eos_is_added(trained):
    assert [trained.id_to_token(i) for i in range(4)] == ["<pad>", "<s>", "</s>", "<unk>"]
    assert trained.encode("A man").ids[-1] == bpe.EOS
    assert bpe.BOS not in trained.encode("A man").ids
    assert trained.get_vocab_size() == 300


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_any_text_comes_back_and_nothing_is_unknown(text):
    tokenizer = test_any_text_comes_back_and_nothing_is_unknown.tokenizer
    text = text.strip()
    ids = tokenizer.encode(text).ids
    assert bpe.UNK not in ids
    assert tokenizer.decode(ids) == unicodedata.normalize("NFC", text)


test_any_text_comes_back_and_nothing_is_unknown.tokenizer = bpe.train_bpe(TEXTS, 300)


def test_the_first_word_is_the_word_inside(trained):
    first, inside = trained.encode("Mann").ids[:-1], trained.encode("Ein Mann").ids[:-1]
    assert inside[-len(first) :] == first


def test_special_tokens_in_a_text_are_letters(trained):
    ids = trained.encode("</s> <pad>").ids
    assert bpe.EOS not in ids[:-1] and bpe.PAD not in ids
    assert trained.decode(ids) == "</s> <pad>"


def test_the_same_texts_give_the_same_vocabulary():
    assert bpe.train_bpe(iter(TEXTS), 330).to_str() == bpe.train_bpe(TEXTS, 330).to_str()


def test_transformers_opens_what_we_save(trained, tmp_path):
    from transformers import AutoTokenizer

    bpe.save(trained, tmp_path, 77)
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    for text in ("Über die Straße, 42!", "漢字 and \t more"):
        ids = trained.encode(text).ids
        assert theirs(text)["input_ids"] == ids == bpe.load(tmp_path).encode(text).ids
        assert theirs.decode(ids, skip_special_tokens=True) == trained.decode(ids)
    names = (theirs.pad_token_id, theirs.bos_token_id, theirs.eos_token_id, theirs.unk_token_id)
    assert names == (bpe.PAD, bpe.BOS, bpe.EOS, bpe.UNK)
    assert theirs.model_max_length == 77


def test_sizes_and_folders_that_cannot_be(tmp_path):
    for size in (259, 1 << 21):
        with pytest.raises(UserError, match="give a size from 260"):
            bpe.train_bpe(TEXTS, size)
    with pytest.raises(UserError, match="no tokenizer.json"):
        bpe.load(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(UserError, match="not a tokenizer.json"):
        bpe.load(tmp_path)
    from tokenizers import Tokenizer, models

    Tokenizer(models.BPE()).save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(UserError, match="another kind of tokenizer"):
        bpe.load(tmp_path)
