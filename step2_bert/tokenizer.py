"""WordPiece: training a vocabulary, loading any Hugging Face tokenizer, saving one to share."""

import json
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

from common.cli import UserError

SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
ROBERTA_SPECIAL_TOKENS = ("<pad>", "<unk>", "<s>", "</s>", "<mask>")
ROLES = ("pad_token", "unk_token", "cls_token", "sep_token", "mask_token")
MAX_VOCAB = 1 << 20


def train_wordpiece(
    texts: Iterable[str],
    vocab_size: int,
    lowercase: bool = True,
    out_dir: str | Path | None = None,
) -> Tokenizer:
    """Learn a WordPiece vocabulary of `vocab_size` at most, [PAD]=0 to [MASK]=4 first.

    `texts` is gone through twice; an iterator is put in memory for that. The same texts give the
    same vocabulary. It is saved to `out_dir` when given. Raises UserError when `vocab_size` cannot
    hold the special tokens and the letters of the text, or there is no text.
    """
    if not len(SPECIAL_TOKENS) < vocab_size <= MAX_VOCAB:
        raise UserError(f"vocabulary of {vocab_size}: give a size from 6 to {MAX_VOCAB:,}")
    if iter(texts) is texts:
        texts = list(texts)
    # The trainer numbers the letters ##x in an order that changes from run to run, and breaks ties
    # by number. A round without merges finds them; given sorted, their numbers are always the same.
    pieces = sorted(t for t in _train(texts, 0, (), lowercase) if t.startswith("##"))
    vocab = _train(texts, vocab_size, pieces, lowercase)
    if len(vocab) > vocab_size:
        raise UserError(f"a vocabulary of {vocab_size} is too small: this text needs {len(vocab)}")
    if len(vocab) == len(SPECIAL_TOKENS):
        raise UserError("no text to learn a vocabulary from")
    tokenizer = _bert(vocab, lowercase)
    if out_dir is not None:
        save(tokenizer, out_dir)
    return tokenizer


def load_tokenizer(path: str | Path, lowercase: bool | None = None) -> Tokenizer:
    """Open a Hugging Face tokenizer directory, a tokenizer.json or a vocab.txt.

    `lowercase` matters for a bare vocab.txt only; None decides by whether it has capital letters.
    Raises UserError for a missing or broken file, and when BERT's special tokens are not all there.
    """
    path = Path(path)
    if path.is_dir():
        files = [path / name for name in ("tokenizer.json", "vocab.txt")]
        file = next((file for file in files if file.is_file()), None)
        if file is None:
            raise UserError(f"{path}: neither tokenizer.json nor vocab.txt in it")
        config = path / "tokenizer_config.json"
        if lowercase is None and config.is_file():
            try:
                lowercase = json.loads(config.read_text(encoding="utf-8")).get("do_lower_case")
            except (ValueError, AttributeError):
                raise UserError(f"{config} is damaged: it holds no JSON object") from None
            if lowercase not in (None, True, False):
                raise UserError(f"{config}: do_lower_case is {lowercase!r}, not true or false")
        path = file
    if not path.is_file():
        raise UserError(f"{path}: no such tokenizer (a directory, a tokenizer.json or a vocab.txt)")
    tokenizer = _from_json(path) if path.suffix == ".json" else _from_vocab(path, lowercase)
    special_ids(tokenizer, str(path))
    return tokenizer


def special_ids(tokenizer: Tokenizer, name: str = "the vocabulary") -> dict[str, int]:
    """The ids of [PAD], [UNK], [CLS], [SEP], [MASK]; in RoBERTa's spelling too (<pad>, ...)."""
    ids = {}
    for token, other in zip(SPECIAL_TOKENS, ROBERTA_SPECIAL_TOKENS, strict=True):
        found = (tokenizer.token_to_id(spelling) for spelling in (token, other))
        ids[token] = next((index for index in found if index is not None), None)
    if missing := [token for token, index in ids.items() if index is None]:
        raise UserError(f"{name}: lacks the special tokens {' '.join(missing)}")
    return ids


def save(tokenizer: Tokenizer, out_dir: str | Path, max_seq_len: int = 512) -> Path:
    """Write a directory that `transformers.AutoTokenizer.from_pretrained` opens."""
    out = Path(out_dir)
    out.mkdir(parents=True, exist_ok=True)
    # Not its own `save`, which makes a bare Exception of a full disk.
    (out / "tokenizer.json").write_text(tokenizer.to_str(pretty=True), encoding="utf-8")
    by_id = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
    (out / "vocab.txt").write_text("".join(f"{token}\n" for token, _ in by_id), encoding="utf-8")
    ids = special_ids(tokenizer).values()
    roles = {role: tokenizer.id_to_token(i) for role, i in zip(ROLES, ids, strict=True)}
    bert = isinstance(tokenizer.normalizer, normalizers.BertNormalizer)
    config = {
        "tokenizer_class": "BertTokenizer" if bert else "PreTrainedTokenizerFast",
        "model_max_length": max_seq_len,
        **({"do_lower_case": tokenizer.normalizer.lowercase} if bert else {}),
        **roles,
    }
    for name, content in (("tokenizer_config", config), ("special_tokens_map", roles)):
        text = json.dumps(content, indent=2, ensure_ascii=False)
        (out / f"{name}.json").write_text(text + "\n", encoding="utf-8")
    return out


def _train(texts: Iterable[str], size: int, pieces: Iterable[str], lowercase: bool) -> dict:
    tokenizer = _bert({}, lowercase)
    trainer = trainers.WordPieceTrainer(
        vocab_size=size,
        special_tokens=[*SPECIAL_TOKENS, *pieces],
        continuing_subword_prefix="##",
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer.get_vocab()


def _bert(vocab: dict[str, int], lowercase: bool) -> Tokenizer:
    tokenizer = Tokenizer(models.WordPiece(vocab, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=lowercase)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    if vocab:
        tokenizer.add_special_tokens(list(SPECIAL_TOKENS))
        tokenizer.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]",
            pair="[CLS] $A [SEP] $B:1 [SEP]:1",
            special_tokens=[(token, vocab[token]) for token in ("[CLS]", "[SEP]")],
        )
    return tokenizer


def _from_json(path: Path) -> Tokenizer:
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises bare Exception
        raise UserError(f"{path}: not a tokenizer.json ({error})") from None


def _from_vocab(path: Path, lowercase: bool | None) -> Tokenizer:
    try:
        tokens = path.read_text(encoding="utf-8").removesuffix("\n").split("\n")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 at byte {error.start + 1}") from None
    vocab = {token.rstrip("\r"): index for index, token in enumerate(tokens)}
    if len(vocab) < len(tokens):
        raise UserError(f"{path}: the same token on two lines")
    if missing := [token for token in SPECIAL_TOKENS if token not in vocab]:
        raise UserError(f"{path}: lacks the special tokens {' '.join(missing)}")
    if lowercase is None:  # special tokens are capital letters in any vocabulary
        lowercase = sum(token != token.lower() for token in vocab) < max(10, len(vocab) // 100)
    return _bert(vocab, lowercase)
