"""One vocabulary for both languages: byte-level BPE (section 5.1 has 37,000 joint pieces of BPE).

Every text is a sequence of bytes, so no character is unknown; the 256 bytes are in every
vocabulary. Text is NFC-normalised, otherwise as it stands: case and spaces count. `encode` ends
each sentence with </s>, for the encoder and as the decoder's last label; <s> starts the decoder.
"""

from collections.abc import Iterable
from pathlib import Path

from tokenizers import (
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

from common import runs
from common.cli import UserError

SPECIAL_TOKENS = {
    "pad_token": "<pad>",
    "bos_token": "<s>",
    "eos_token": "</s>",
    "unk_token": "<unk>",
}
PAD, BOS, EOS, UNK = range(4)
SMALLEST = len(SPECIAL_TOKENS) + 256
MAX_VOCAB = 1 << 20


def train_bpe(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """Learn `vocab_size` pieces at most: <pad>=0 <s>=1 </s>=2 <unk>=3, 256 bytes, and merges.

    The same texts give the same vocabulary. Raises UserError for a size that cannot be.
    """
    if not SMALLEST <= vocab_size <= MAX_VOCAB:
        raise UserError(f"--vocab-size {vocab_size}: give a size from {SMALLEST} to {MAX_VOCAB:,}")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.Sequence([decoders.ByteLevel(), decoders.Strip(" ", 1, 0)])
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIAL_TOKENS.values()),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", pair="$A </s> $B </s>", special_tokens=[("</s>", EOS)]
    )
    return _spelled_out(tokenizer)


def save(tokenizer: Tokenizer, folder: str | Path, max_seq_len: int) -> None:
    """Write a directory that `transformers.AutoTokenizer.from_pretrained` opens."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": max_seq_len,
        "clean_up_tokenization_spaces": False,
        **SPECIAL_TOKENS,
    }
    runs.write_text(folder / "tokenizer.json", tokenizer.to_str(pretty=True))
    runs.write_json(folder / "tokenizer_config.json", config)


def load(folder: str | Path) -> Tokenizer:
    """The tokenizer in a directory that `save` wrote; UserError if it is none, or another kind."""
    file = Path(folder) / "tokenizer.json"
    if not file.is_file():
        raise UserError(f"{folder}: no tokenizer.json in it")
    try:
        tokenizer = Tokenizer.from_file(str(file))
    except Exception as error:  # the library raises bare Exception
        raise UserError(f"{file}: not a tokenizer.json ({error})") from None
    for number, token in enumerate(SPECIAL_TOKENS.values()):
        if tokenizer.token_to_id(token) != number:
            raise UserError(f"{file}: {token} is not token {number}: another kind of tokenizer")
    return _spelled_out(tokenizer)


def _spelled_out(tokenizer: Tokenizer) -> Tokenizer:
    tokenizer.encode_special_tokens = True  # "</s>" in a text is four letters, no end
    return tokenizer
