"""What a run of train_lm.py leaves: a model, its tokenizer, and the text that was held out."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from common.cli import UserError
from step3_peripherals import stream
from step3_peripherals.language_model import LanguageModel


class TooMany(UserError):
    """More texts, or longer ones, were asked for than there are."""


def load(folder: Path, n_tokens: int = 0) -> tuple[LanguageModel, Any]:
    """The model and the `tokenizers.Tokenizer` in the folder model/ of a run.

    Raises UserError for what is missing, damaged, or does not belong together, and TooMany for
    learned positions that end before `n_tokens`.
    """
    from tokenizers import Tokenizer

    model, file = LanguageModel.load(folder), folder / "tokenizer.json"
    if not file.exists():
        raise UserError(f"--model {folder} has no tokenizer.json; train_lm.py makes such a folder")
    try:
        tokenizer = Tokenizer.from_file(str(file))
    except Exception as error:  # the library has no class of its own for it
        raise UserError(f"{file} is truncated or damaged ({error})") from None
    size, known = model.config.vocab_size, tokenizer.get_vocab_size()
    if known != size or tokenizer.token_to_id(stream.SEPARATOR) is None:
        raise UserError(f"{file}: {known} tokens, the model has {size}; they do not fit")
    most = model.config.max_seq_len
    if model.config.positions == "learned" and n_tokens > most:
        told = f"the model learned {most} positions, and prompt and new tokens are {n_tokens}"
        raise TooMany(f"{told}: ask for fewer")
    return model, tokenizer


def text_of(folder: Path, name: str, tokenizer: Any, cache: Path) -> stream.Stream:
    """The text of the model's training, called `name`, with the same documents held out as then.

    Raises UserError for another text, of which the model may have seen any part.
    """
    try:
        begun = json.loads((folder.parent / "config.json").read_text(encoding="utf-8"))
        options = stream.StreamOptions(begun["max_documents"], begun["heldout_every"])
        fingerprint = begun["source"]["fingerprint"]
    except (OSError, ValueError, KeyError, TypeError):
        told = "the config.json of its training is not in the folder above: give a run's model/"
        raise UserError(f"--model {folder}: {told}") from None
    text = stream.prepare(name, tokenizer, tokenizer.token_to_id(stream.SEPARATOR), cache, options)
    if text.manifest["source"]["fingerprint"] != fingerprint:
        told = f"{folder} was trained on {begun['data']}, and could have seen any other text"
        raise UserError(f"--data {name}: {told}; give that one")
    return text


def beginnings(text: stream.Stream, n: int, length: int) -> np.ndarray:
    """(n, length) ids from all over what is held out, none past the end of a document.

    Raises TooMany if there are fewer.
    """
    tokens = text.tokens("heldout")
    cut = tokens[: len(tokens) // length * length].reshape(-1, length).astype(np.int64)
    cut = cut[(cut != text.manifest["separator"]).all(1)]
    if len(cut) < n:
        name = text.manifest["source"]["name"]
        raise TooMany(f"--texts {n}: {name} holds out only {len(cut)} texts")
    return cut[np.linspace(0, len(cut) - 1, n).round().astype(int)]
