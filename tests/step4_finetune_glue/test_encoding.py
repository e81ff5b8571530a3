from types import SimpleNamespace

import numpy as np
import pytest
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st

from step2_bert.tokenizer import load_tokenizer
from step4_finetune_glue.encoding import Encoded, sample
from step4_finetune_glue.tasks import Rows, task
from tests.scripts import MB, at_most
from tests.step4_finetune_glue import small


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return small.bert(tmp_path_factory.mktemp("bert"))


def rows(first, second=None, labels=None):
    return SimpleNamespace(first=first, second=second, labels=labels)


def test_pairs_are_what_transformers_makes_of_them(folder):
    first, second = small.sentences(30, 1), small.sentences(30, 2)
    encoded = Encoded(load_tokenizer(folder), rows(first, second), 12)
    wanted = transformers.AutoTokenizer.from_pretrained(folder)(
        first, second, truncation=True, max_length=12, padding=True, return_tensors="pt"
    )
    batch = encoded.batch(np.arange(30))
    assert encoded.lengths.max() == 12 and encoded.lengths.min() < 12
    for name in ("input_ids", "token_type_ids", "attention_mask"):
        assert (batch[name].long() == wanted[name]).all(), name
    assert batch["token_type_ids"].max() == 1 and "labels" not in batch


@settings(max_examples=30)
@given(a=st.integers(1, 20), b=st.integers(1, 20), limit=st.integers(8, 24))
def test_the_longer_text_is_cut_first(folder, a, b, limit):
    text = ["film " * a], ["law " * b]
    tokenizer = load_tokenizer(folder)
    batch = Encoded(tokenizer, rows(*text), limit).batch(np.arange(1))
    ids = batch["input_ids"][0].tolist()
    kept = [ids.count(tokenizer.token_to_id(word)) for word in ("film", "law")]
    room = limit - 3
    assert sum(kept) == min(a + b, room)
    if a + b > room:  # the shorter keeps all it has, up to half of the room
        assert min(kept) >= min(a, b, room // 2)
        assert abs(kept[0] - kept[1]) <= 1 or min(kept) == min(a, b)


def test_a_text_of_100_mb_takes_no_more_than_its_beginning(folder):
    text, tokenizer = " ".join(small.sentences(2000)), load_tokenizer(folder)
    long = text * (100 * MB // len(text))
    with at_most(150):  # with all its tokens, gigabytes
        found = Encoded(tokenizer, rows([long, "a film"], ["a law", long]), 24)
    wanted = Encoded(tokenizer, rows([text, "a film"], ["a law", text]), 24)
    assert found.lengths.tolist() == [24, 24] and (found.ids == wanted.ids).all()


@settings(max_examples=20)
@given(chosen=st.lists(st.integers(0, 29), min_size=1, max_size=8))
def test_a_batch_is_its_rows_and_no_wider_than_the_longest(folder, chosen):
    labels = np.linspace(0, 5, 30)
    encoded = Encoded(load_tokenizer(folder), rows(small.sentences(30), labels=labels), 32)
    batch = encoded.batch(np.array(chosen))
    assert batch["input_ids"].shape == (len(chosen), encoded.lengths[chosen].max())
    assert batch["targets"] == {"label": len(chosen)}
    assert batch["tokens"] == encoded.lengths[chosen].sum()
    assert batch["labels"].dtype.is_floating_point
    tokenizer = load_tokenizer(folder)
    for line, mask, row in zip(batch["input_ids"], batch["attention_mask"], chosen, strict=True):
        assert line[mask].tolist() == tokenizer.encode(small.sentences(30)[row]).ids
        assert (line[~mask] == tokenizer.token_to_id("[PAD]")).all()


def test_a_sample_is_the_same_one_every_time():
    parts = dict(task=task("RTE"), split="train", ids=list(range(50)), low_resource=False)
    texts = small.sentences(50)
    whole = Rows(first=texts, second=texts[::-1], labels=np.arange(50), **parts)
    part = sample(whole, 7)
    assert part.ids == sample(whole, 7).ids == sorted(part.ids) and len(set(part.ids)) == 7
    assert part.labels.tolist() == part.ids
    assert part.first == [texts[i] for i in part.ids]
    assert part.second == [texts[49 - i] for i in part.ids]
    assert sample(whole, 99).ids == whole.ids
