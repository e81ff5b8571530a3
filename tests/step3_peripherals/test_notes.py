import doctest
import os
import re
from pathlib import Path

import pytest

from step3_peripherals.vocabulary.byte_level import ByteLevelBPE
from step3_peripherals.vocabulary.scored_bpe import ScoredBPE
from step3_peripherals.vocabulary.unigram import Unigram
from step3_peripherals.vocabulary.wordpiece import WordPiece

NOTES = Path(__file__).resolve().parents[2] / "step3_peripherals" / "notes.md"
MIRROR = Path(os.environ.get("GYM_DATA") or "/nowhere") / "vocab"
PUBLISHED = {
    "GPT-2": lambda: ByteLevelBPE.from_files(
        MIRROR / "gpt2-vocab.json", MIRROR / "gpt2-merges.txt"
    ),
    "BERT uncased": lambda: WordPiece.from_vocab(MIRROR / "bert-base-uncased-vocab.txt"),
    "BERT cased": lambda: WordPiece.from_vocab(MIRROR / "bert-base-cased-vocab.txt", False),
    "ALBERT (unigram)": lambda: Unigram.from_sentencepiece(MIRROR / "albert-base-v2-spiece.model"),
    "Llama 2 (scored BPE)": lambda: ScoredBPE.from_sentencepiece(MIRROR / "llama2-tokenizer.model"),
}


def test_the_examples_of_the_notes_are_what_the_code_says():
    tried = doctest.testfile(str(NOTES), module_relative=False, encoding="utf-8")
    assert tried.attempted > 20 and not tried.failed


@pytest.mark.skipif(not MIRROR.is_dir(), reason="needs GYM_DATA")
@pytest.mark.parametrize("name", PUBLISHED)
def test_the_same_sentence_five_ways(name):
    text = NOTES.read_text(encoding="utf-8")
    sentence = re.search(r'^\| "(.*)" \| tokens', text, re.M)[1]
    count, told = re.search(rf"^\| {re.escape(name)} \| (\d+) \| (.*) \|$", text, re.M).groups()
    tokenizer = PUBLISHED[name]()
    assert len(tokenizer.encode(sentence)) == int(count)
    begins = re.split(r" \.\.\.| and ", told)[0].split()
    assert tokenizer.tokens(sentence)[: len(begins)] == begins
    back = tokenizer.decode(tokenizer.encode(sentence))
    assert (back == sentence) == (name in ("GPT-2", "Llama 2 (scored BPE)"))
