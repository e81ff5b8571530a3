"""translate.py as a user runs it, and the translation of texts underneath; good input, and bad."""

import builtins
import gzip
import io
import sys

import pytest
import torch

from common.cli import UserError
from step1_transformer import decoding, heatmaps, translate
from step1_transformer import tokenizer as bpe
from step1_transformer.model import Transformer, TransformerConfig
from tests import scripts

TEXTS = ["ein Mann liest", "", "zwei Hunde laufen durch den Schnee .", "Hut", "eine Frau mit Hut"]


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model that nobody trained, with the tokenizer of a few words."""
    folder = tmp_path_factory.mktemp("model")
    tokenizer = bpe.train_bpe([*TEXTS, "a man reads a book"] * 3, 280)
    bpe.save(tokenizer, folder / "tokenizer", 32)
    torch.manual_seed(3)
    shape = dict(d_model=16, n_heads=2, n_encoder_layers=2, n_decoder_layers=2, d_ff=32)
    vocab_size = tokenizer.get_vocab_size()
    model = Transformer(TransformerConfig(vocab_size=vocab_size, max_seq_len=32, **shape))
    model.save(folder / "model", folder / "tokenizer")
    return folder / "model"


@pytest.fixture
def opened(folder):
    return Transformer.load(folder), bpe.load(folder)


def call(*flags):
    """Run translate.py in this process; its exit code."""
    return scripts.call(translate, *flags)


@pytest.fixture
def fails(capfd):
    """Call with what must end with code 2 and one line; that line."""

    def check(*flags):
        capfd.readouterr()
        assert call(*flags) == 2
        out, line = capfd.readouterr()
        assert line.startswith("error: ") and line.count("\n") == 1 and not out, (out, line)
        return line

    return check


# -- texts -----------------------------------------------------------------------------------


@pytest.mark.parametrize("beam_size", [1, 3])
def test_translations_keep_their_order_whatever_the_batches(opened, beam_size):
    one_by_one = [decoding.translate(*opened, [text], beam_size=beam_size)[0] for text in TEXTS]
    assert one_by_one[1] == "" and len(set(one_by_one)) > 2
    for size in (1, 20, 4096):
        found = decoding.translate(*opened, TEXTS, beam_size=beam_size, batch_tokens=size)
        assert found == one_by_one
    assert decoding.translate(*opened, []) == []


def test_translating_leaves_the_model_in_the_mode_it_was_in(opened):
    model, tokenizer = opened
    for mode in (True, False):
        model.train(mode)
        decoding.translate(model, tokenizer, ["Hut"])
        assert model.training is mode


def test_a_sentence_longer_than_the_positions_is_cut_only_on_request(opened):
    model, tokenizer = opened
    texts = ["Hut", "Hut " * 40]
    with pytest.raises(UserError, match=r"sentence 2 .*has 4[0-9]+ tokens.* 32 positions.*--trunc"):
        decoding.translate(model, tokenizer, texts)
    whole, cut = decoding.encode(tokenizer, texts, 32, truncate=True)
    assert len(cut) == 32 and cut[-1] == whole[-1] == bpe.EOS
    assert cut[:-1] == tokenizer.encode(texts[1]).ids[:31]
    assert len(decoding.translate(model, tokenizer, texts, truncate=True)) == 2


# -- the script ------------------------------------------------------------------------------


@pytest.mark.parametrize("beam_size", [1, 4])
def test_sentences_on_the_command_line(folder, opened, beam_size, capfd):
    texts = [text for text in TEXTS if text]
    assert call("--model", folder, "--beam-size", beam_size, *texts) == 0
    wanted = decoding.translate(*opened, texts, beam_size=beam_size)
    assert capfd.readouterr().out == "".join(f"{line}\n" for line in wanted)


@pytest.mark.parametrize("compressed", [False, True])
def test_a_file(folder, opened, tmp_path, compressed, capfd):
    """Line by line; where nothing is said, nothing is written."""
    file = tmp_path / ("in.txt.gz" if compressed else "in.txt")
    content = "\n".join(TEXTS).encode()
    file.write_bytes(gzip.compress(content) if compressed else content)
    assert call("--model", folder, "--input", file, "--output", tmp_path / "out.txt") == 0
    assert capfd.readouterr().out == f"result: {tmp_path}/out.txt\n"
    written = (tmp_path / "out.txt").read_text().split("\n")
    assert written == [*decoding.translate(*opened, TEXTS), ""] and written[1] == ""


def test_a_pipe(folder, opened, monkeypatch, capfd):
    monkeypatch.setattr(sys, "stdin", io.StringIO("Hut\neine Frau\n"))
    assert call("--model", folder) == 0
    assert capfd.readouterr().out.splitlines() == decoding.translate(*opened, ["Hut", "eine Frau"])


def test_a_conversation(folder, opened, monkeypatch, capfd):
    """An empty line and too long a sentence do not end it."""
    typed = iter(["Hut", "", "Hut " * 40, "eine Frau"])
    terminal = io.StringIO()
    terminal.isatty = lambda: True
    monkeypatch.setattr(sys, "stdin", terminal)

    def answer(prompt):
        for line in typed:
            return line
        raise EOFError

    monkeypatch.setattr(builtins, "input", answer)
    assert call("--model", folder) == 0
    first, *lines = capfd.readouterr().out.splitlines()
    hut, frau = decoding.translate(*opened, ["Hut", "eine Frau"])
    assert "Ctrl-D" in first and lines[:2] == [hut, ""] and lines[-1] == frau
    assert lines[2].startswith("error: sentence 1")


@pytest.mark.parametrize("text", ["日本語", "Ω≠ß", "🙂", "\x00\x7f", "</s> <pad>"])
def test_characters_never_seen_in_training(folder, opened, text, capfd):
    assert opened[1].decode(opened[1].encode(text).ids) == text
    assert call("--model", folder, text) == 0
    assert capfd.readouterr().out.count("\n") == 1


# -- attention -------------------------------------------------------------------------------


@pytest.mark.usefixtures("drawn")
def test_attention_maps(folder, tmp_path, capfd):
    maps = tmp_path / "maps"
    assert call("--model", folder, "--attention-maps", maps, "Frau mit $1 Hut") == 0
    lines = capfd.readouterr().out.splitlines()
    names = ["encoder-1.png", "encoder-2.png", "cross-1.png", "cross-2.png"]
    assert lines[1:] == [*(str(maps / name) for name in names), f"result: {maps}"]
    for name in names:
        assert (maps / name).read_bytes().startswith(b"\x89PNG")


def test_the_weights_that_are_drawn_are_those_of_the_last_step_by_step(opened):
    """Row t of the cross attention is what decoding sees when it writes token t."""
    model, tokenizer = opened
    source, target = tokenizer.encode("eine Frau mit Hut").ids, tokenizer.encode("a man").ids[:-1]
    found = heatmaps.attention(model, source, target)
    S, T = len(source), len(target) + 1
    assert [w.shape for w in found["encoder"]] == [(2, S, S)] * 2
    assert [w.shape for w in found["cross"]] == [(2, T, S)] * 2
    for weights in (*found["encoder"], *found["cross"]):
        torch.testing.assert_close(weights.sum(-1), torch.ones(weights.shape[:2]))
    module = model.decoder.layers[1].cross_attention.sublayer
    assert module.weights is None and not module.keep_weights
    cache = model.start_cache(model.encode(torch.tensor([source])))
    module.keep_weights = True
    with torch.no_grad():
        for t, token in enumerate([bpe.BOS, *target]):
            model.decode(torch.tensor([[token]]), None, None, cache)
            torch.testing.assert_close(module.weights[0, :, 0], found["cross"][1][:, t])


def test_tokens_are_named_as_a_reader_knows_them(opened):
    names = heatmaps.pieces(opened[1], opened[1].encode("eine Frau é").ids)
    assert "".join(names).startswith("▁eine▁Frau") and names[-1] == "</s>"


# -- bad input -------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["", "  "])
def test_an_empty_sentence(folder, fails, text):
    assert "empty" in fails("--model", folder, text)


def test_an_empty_file_and_an_empty_pipe(folder, fails, tmp_path, monkeypatch):
    (tmp_path / "in.txt").write_text("\n \n")
    assert f"{tmp_path}/in.txt is empty" in fails("--model", folder, "--input", tmp_path / "in.txt")
    monkeypatch.setattr(sys, "stdin", io.StringIO(""))
    assert "empty" in fails("--model", folder)


@pytest.mark.parametrize("errors", ["strict", "surrogateescape"])
def test_a_pipe_that_is_no_text(folder, fails, monkeypatch, errors):
    """Python reads stdin one way or the other, depending on the locale."""
    piped = io.TextIOWrapper(io.BytesIO(b"Hut\n\xff\xfe\n"), encoding="utf-8", errors=errors)
    monkeypatch.setattr(sys, "stdin", piped)
    assert "not UTF-8" in fails("--model", folder)


def test_no_such_file_or_model(folder, fails, tmp_path):
    assert "cannot be read" in fails("--model", folder, "--input", tmp_path / "none.txt")
    assert "is no checkpoint" in fails("--model", tmp_path, "Hut")
    assert "is no checkpoint" in fails("--model", tmp_path / "none", "Hut")


def test_a_model_without_its_tokenizer_or_with_another(folder, fails, tmp_path):
    model = Transformer.load(folder)
    model.save(tmp_path / "bare")
    assert "no tokenizer.json" in fails("--model", tmp_path / "bare", "Hut")
    bpe.save(bpe.train_bpe(TEXTS, 262), tmp_path / "other", 32)
    model.save(tmp_path / "mixed", tmp_path / "other")
    assert "take the tokenizer files that train.py saved" in fails(
        "--model", tmp_path / "mixed", "Hut"
    )


def test_a_damaged_model(folder, fails, tmp_path):
    for file in folder.iterdir():
        content = file.read_bytes()
        damaged = file.name == "model.safetensors"
        (tmp_path / file.name).write_bytes(content[: len(content) // 2] if damaged else content)
    assert "truncated or damaged" in fails("--model", tmp_path, "Hut")


def test_too_long_a_sentence(folder, fails):
    assert "--truncate" in fails("--model", folder, "Hut " * 40)
    assert call("--model", folder, "--truncate", "Hut " * 40) == 0


@pytest.mark.parametrize(
    "flags", [("--beam-size", "0", "Hut"), ("--length-penalty", "-1", "Hut"),
              ("--input", "x", "Hut"), ("--attention-maps", "x", "Hut", "Frau")],
)  # fmt: skip
def test_flags_that_cannot_be(folder, fails, flags):
    fails("--model", folder, *flags)
