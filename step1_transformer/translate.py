"""Translate with a trained model.

python step1_transformer/translate.py "And he saith unto them, Follow me."
python step1_transformer/translate.py --model DIR --input de.txt --output en.txt
python step1_transformer/translate.py --model DIR                asks for sentences, or reads a pipe
python step1_transformer/translate.py --attention-maps runs/maps "Jesus wept."
"""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
import tyro

from common import cli, formats, runs
from common.cli import UserError
from step1_transformer import checkpoint, decoding, heatmaps
from step1_transformer import tokenizer as bpe
from step1_transformer.model import Transformer


@dataclass
class Config:
    text: tyro.conf.Positional[tuple[str, ...]] = ()
    """Sentences to translate; none: --input, or what is typed or piped."""
    model: str = checkpoint.default_model()
    """Directory of a trained model, with its tokenizer."""
    input: str = ""
    """File with a sentence a line; perhaps compressed."""
    output: str = ""
    """File for the translations, a line for each; empty: the terminal."""
    beam_size: int = 4
    """Hypotheses to keep at each token; 1: greedy."""
    length_penalty: float = 0.6
    """How much length is made up for in a beam; 0: not at all."""
    truncate: bool = False
    """Cut sentences that have more tokens than the model has positions."""
    attention_maps: str = ""
    """Folder for pictures of the attention of one sentence, a PNG for each layer."""

    def __post_init__(self):
        cli.check(self, "beam_size", "1 or more", lambda value: value >= 1)
        cli.check(self, "length_penalty", "0 or more", lambda value: value >= 0)


def main(config: Config) -> None:
    if config.text and config.input:
        raise UserError("give sentences or --input, not both")
    try:
        if config.input:
            sentences = list(formats.lines(Path(config.input)))
        elif config.text or sys.stdin.isatty():
            sentences = list(config.text)
        else:
            sentences = sys.stdin.readlines()
        "".join(sentences).encode()  # in some locales, bytes that are no text get this far
    except UnicodeError:
        raise UserError("the input is not UTF-8") from None
    sentences = [text.strip() for text in sentences]
    typed = not (config.text or config.input) and sys.stdin.isatty()
    if not (typed or any(sentences)):
        raise UserError(
            f"{config.input or 'the input'} is empty: give a sentence, --input FILE, or a pipe"
        )
    if config.attention_maps and len(sentences) != 1:
        raise UserError("--attention-maps are of one sentence: give just one")
    if config.output:  # now, not after hours of translating
        Path(config.output).parent.mkdir(parents=True, exist_ok=True)

    checkpoint.check_there(config.model)
    model = Transformer.load(config.model)
    tokenizer = bpe.load(config.model)
    if (size := tokenizer.get_vocab_size()) != model.config.vocab_size:
        raise UserError(
            f"{config.model}: the model has {model.config.vocab_size:,} tokens, its tokenizer "
            f"{size:,}: take the tokenizer files that train.py saved with the model"
        )
    model.to("cuda" if torch.cuda.is_available() else "cpu")
    how = dict(beam_size=config.beam_size, length_penalty=config.length_penalty)
    translate = partial(decoding.translate, model, tokenizer, truncate=config.truncate, **how)
    if typed:
        return converse(translate)

    translations = translate(sentences, progress=bool(config.output))
    if config.output:
        runs.write_text(Path(config.output), "".join(f"{line}\n" for line in translations))
    else:
        print("\n".join(translations))
    if config.attention_maps:
        limit = model.config.max_seq_len
        source = decoding.encode(tokenizer, sentences, limit, config.truncate)
        target = decoding.write(model, source, **how)[0][: limit - 1]
        folder = Path(config.attention_maps)
        for path in heatmaps.draw_all(model, tokenizer, source[0], target, folder):
            print(path)
    if written := config.output or config.attention_maps:
        print(f"result: {written}")


def converse(translate: Callable[[list[str]], list[str]]) -> None:
    """Translate line by line what is typed, until Ctrl-D."""
    print("A sentence a line; Ctrl-D ends.")
    while True:
        try:
            print(translate([input("> ")])[0])
        except UserError as error:  # too long a sentence: the next may do
            print(f"error: {error}")
        except EOFError:
            return


if __name__ == "__main__":
    cli.run(main, Config, {})
