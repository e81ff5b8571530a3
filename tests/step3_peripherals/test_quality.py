"""The quality rules against datatrove's own filters, given our words and sentences."""

import os
from dataclasses import replace
from itertools import islice
from pathlib import Path

import datatrove.pipeline.filters.c4_filters as library_c4
import datatrove.pipeline.filters.gopher_quality_filter as library_quality
import datatrove.pipeline.filters.gopher_repetition_filter as library_repetition
import pytest
from datatrove.data import Document
from hypothesis import given, settings
from hypothesis import strategies as st

from common import data
from step2_bert.sentences import split_sentences
from step3_peripherals import planting, quality
from step3_peripherals.quality import CHINESE, ENGLISH, Ngrams

LIKE_DATATROVE = replace(ENGLISH, count_marks=True, min_line_words=3, min_sentences=5)
LIKE_C4 = dict(min_words_per_line=5, min_num_sentences=3)  # the paper's
MADE_UP = [
    "",
    "A line.\n",
    "One two three. Four five six. Seven eight nine. Ten eleven twelve. A b c d.",
    "It goes on and on...\n" * 9 + "The end of that, and of this.",
    "# the # of # and # to # be " * 30,
    "• the and of to a list\n" * 40 + "with that have be.",
    "- item of the list\n\n\n- item of the list\n\nand that is\n" * 12,
    "word " * 500,
    "the cat and the dog have to be with us " * 20,
    "x" * 1200 + " is a long word, and that is that.\nThe rest of it is fine.",
    "In line one {there is a bracket}.",
    "Turn on javascript { now }.\n" + "The line after it is good. " * 6,
    "Lorem ipsum dolor sit amet\n" + "The line after it is good. " * 6,
    "A claim [1] is made [citation needed].\n" + "The line after it is good. " * 6,
    "Our cookie policy has changed.\n" + "The line after it is good. " * 6,
    *planting.PAGES,
]


@pytest.fixture(autouse=True)
def our_words(monkeypatch):
    """datatrove's own tokenizers want packages and downloads; it gets ours."""
    for module in (library_quality, library_repetition):
        monkeypatch.setattr(module, "split_into_words", lambda text, _: quality.split_words(text))
    monkeypatch.setattr(library_c4, "split_into_sentences", lambda text, _: split_sentences(text))


def same_decisions(text):
    for thresholds, rules in (({}, LIKE_DATATROVE), (LIKE_C4, ENGLISH)):
        doc = Document(text, "")
        verdict = library_c4.C4QualityFilter(**thresholds).filter(doc)
        ours = quality.c4(text, rules)
        assert (verdict is True) == (ours.text is not None)
        if ours.text is None:
            assert verdict[1].replace("_", " ") == ours.reason
        else:
            assert ours.text == doc.text
    verdict = library_repetition.GopherRepetitionFilter().filter(Document(text, ""))
    reason = quality.gopher_repetition(text)
    assert (verdict is True) == (reason is None), (verdict, reason)
    if text.split():
        verdict = library_quality.GopherQualityFilter().filter(Document(text, ""))
        reason = quality.gopher_quality(text, LIKE_DATATROVE)
        assert (verdict is True) == (reason is None), (verdict, reason)
    return ours.text is None, quality.gopher_repetition(text), reason if text.split() else None


@pytest.mark.parametrize("text", MADE_UP)
def test_made_up_texts_are_judged_as_datatrove_does(text):
    same_decisions(text)


words = st.sampled_from(
    ["the", "and", "word", "other", "of", "text.", "end?", "#", "...", "12", "•"]
)
separators = st.sampled_from([" ", " ", " ", " ", "\n", "\n\n", ". ", "! "])


@settings(max_examples=60)
@given(st.lists(st.tuples(words, separators), max_size=150), st.integers(1, 4))
def test_random_texts_are_judged_as_datatrove_does(parts, times):
    same_decisions("".join(word + space for word, space in parts) * times)


def test_real_texts_are_judged_as_datatrove_does():
    texts = islice(data.documents(data.resolve("imdb")), 150)
    judged = [same_decisions("\n".join(paragraphs)) for paragraphs in texts]
    assert 0 < sum(judgement[0] for judgement in judged) < 75
    assert any(judgement[2] for judgement in judged)


@pytest.mark.skipif(
    not (Path(os.environ.get("GYM_DATA", "/nowhere")) / "enwiki").exists(), reason="no enwiki"
)
def test_wikipedia_is_judged_as_datatrove_does():
    for paragraphs in islice(data.documents(data.resolve("enwiki")), 8):
        same_decisions("\n".join(paragraphs))


@given(st.lists(st.sampled_from(["a", "bb", "ccc", "dd"]), max_size=60), st.integers(2, 6))
def test_the_quick_bound_is_never_below_the_exact_count(tokens, n):
    ngrams = Ngrams(tokens)
    exact = ngrams.duplicate_characters(n)
    assert exact <= ngrams.most_duplicate_characters(n) <= sum(map(len, tokens))
    if len(set(ngrams.of(n).tolist())) == len(ngrams.of(n)):
        assert ngrams.most_duplicate_characters(n) == 0


def test_only_the_share_of_letters_counts_commas_unless_told():
    text = "The men, the women, and the children, of old, have, to, be, with, us. " * 6
    assert quality.gopher_quality(text) is None
    assert quality.gopher_quality(text, LIKE_DATATROVE) == "not alphabetic"


CHINESE_TEXT = (
    "联合国是一个由主权国家组成的国际组织，成立于一九四五年，总部在美国纽约。\n"
    "它的目的是维护国际和平与安全，发展各国之间的友好关系，促成国际合作。\n"
    "大会由全体会员国组成，每年举行一次会议，讨论有关世界和平的重大问题。\n"
)


def test_chinese_is_judged_by_characters():
    assert quality.split_words("联合国 of 1945年") == [*"联合国", "of", "1945", "年"]
    cleaned = quality.c4(CHINESE_TEXT + "首页 | 新闻\n参见\n", CHINESE)
    assert cleaned.text == CHINESE_TEXT.strip() and cleaned.removed["no end mark"] == 2
    assert quality.gopher_quality(CHINESE_TEXT, CHINESE) is None
    assert quality.gopher_repetition(CHINESE_TEXT, CHINESE) is None
    # By the rules for English nothing is left of it: no mark that ends a line, few words
    assert quality.c4(CHINESE_TEXT, ENGLISH).text is None
    assert quality.gopher_repetition("买一送一，欢迎光临本店。" * 20, CHINESE)
    assert quality.gopher_quality("联合国大会主席" * 20, CHINESE) == "no stop words"
    assert quality.c4("请接受我们的隐私政策。\n" + CHINESE_TEXT, CHINESE).removed["notice"] == 1


def test_a_language_without_stop_words_of_its_own():
    assert quality.rules_for("de").stop_words == ()
    text = "Das Haus steht am Rande des Waldes, wo niemand wohnt. " * 3 + "Ende ohne Wort davor."
    assert quality.gopher_quality(text * 2, quality.rules_for("de")) is None
    assert quality.gopher_quality(text * 2) == "no stop words"
