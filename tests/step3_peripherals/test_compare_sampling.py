"""The script from end to end, in this process, with a model of random weights."""

import json
import random
import shutil
from dataclasses import replace

import pytest
import torch

from common import data, engine, subruns
from common.cli import UserError
from step3_peripherals import compare_sampling, stream, train_lm, trained
from step3_peripherals.language_model import LanguageModel, LanguageModelConfig
from tests import scripts


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder with text.txt, forty documents, and config.json and model/, as train_lm.py leaves
    them: each seventh document is held out."""
    torch.set_num_threads(1)
    folder, rng = tmp_path_factory.mktemp("sampling"), random.Random(0)
    words = ["the", "of", "nation", "people", "shall", "government", "year", "law"]
    # No paragraph holds a piece of another: it has a word of its own at every second place
    paragraphs = [
        " ".join(
            f"{word} {chr(97 + i % 26)}{chr(97 + i // 26)}x" for word in rng.choices(words, k=30)
        )
        for i in range(40)
    ]
    (folder / "text.txt").write_text("\n\n".join(paragraphs))
    name, options = str(folder / "text.txt"), stream.StreamOptions(heldout_every=7)
    begun = {"data": name, "max_documents": None, "heldout_every": 7}
    begun["source"] = data.resolve(name).facts()
    (folder / "config.json").write_text(json.dumps(begun))
    tokenizer = stream.byte_level_bpe(name, 270, folder, options)
    torch.manual_seed(0)
    shape = dict(d_model=16, n_layers=1, n_heads=2, d_ff=32, max_seq_len=32)
    size = tokenizer.get_vocab_size()
    LanguageModel(LanguageModelConfig(vocab_size=size, **shape)).save(folder / "model")
    tokenizer.save(str(folder / "model" / "tokenizer.json"))
    return folder


def config(made, out, **options):
    options = dict(texts=3, prompt_tokens=6, new_tokens=8, batch_texts=2) | options
    paths = dict(data=str(made / "text.txt"), model=str(made / "model"), cache=str(made))
    return compare_sampling.Config(preset="smoke", out=str(made / out), **(paths | options))


@pytest.mark.usefixtures("drawn")
def test_it_writes_measures_and_draws(made, capsys):
    compare_sampling.main(config(made, "all"))
    out = made / "all"
    assert capsys.readouterr().out.endswith(f"result: {out / 'result.json'}\n")
    result = json.loads((out / "result.json").read_text())
    names = ("human", *compare_sampling.STRATEGIES)
    measures = ("token_loss", "repetition", "distinct", "zipf")
    assert result["metrics"].keys() == {f"{m} {name}" for m in measures for name in names}
    greedy, human = (result["metrics"][f"token_loss {n}"]["value"] for n in ("greedy", "human"))
    assert greedy < human
    assert (out / "curves.png").stat().st_size > 10_000
    shown = (out / "samples.txt").read_text()
    assert all(f"[{name}]" in shown for name in names)


def test_what_was_written_is_not_written_again(made, monkeypatch):
    some = dict(strategies=("greedy", "top-p 0.95"))
    compare_sampling.main(config(made, "part", **some))
    first = json.loads((made / "part" / "result.json").read_text())
    (made / "part" / "result.json").unlink()  # as if it had been killed
    (made / "part" / "seed-0" / "texts" / "greedy.json").unlink()
    written = []

    def noting(name, *rest):
        written.append(name)
        return strategy(name, *rest)

    strategy = compare_sampling.strategy
    monkeypatch.setattr(compare_sampling, "strategy", noting)
    compare_sampling.main(config(made, "part", resume=True, **some))
    again = json.loads((made / "part" / "result.json").read_text())
    assert written == ["greedy"] and again["metrics"] == first["metrics"]
    (made / "part" / "result.json").unlink()
    more = dict(strategies=("greedy", "sampling"))
    compare_sampling.main(config(made, "part", resume=True, **more))
    assert written == ["greedy", "sampling"]
    for other in (dict(prompt_tokens=5), dict(model=str(made / "other")), dict(seed=1)):
        with pytest.raises(UserError, match="was begun with --"):
            compare_sampling.main(config(made, "part", resume=True, **some | other))


def test_each_seed_trains_a_model_alike_and_more_can_join(made, tmp_path, monkeypatch):
    pace = iter((10.0, 5.0))  # seconds a step: measured again, it would give other steps
    monkeypatch.setattr(engine.Trainer, "_measure", lambda self, precision: next(pace))
    monkeypatch.setattr(subruns, "call_all", scripts.in_this_process(train_lm))
    settings = ("preset=smoke", "max-minutes=2", "vocab-size=270", "heldout-every=7")
    some = dict(preset="smoke", out=str(tmp_path / "run"), cache=str(made), settings=settings)
    some |= dict(strategies=("greedy",), texts=3, prompt_tokens=6, new_tokens=8)
    some |= dict(data=str(made / "text.txt"))
    compare_sampling.main(compare_sampling.Config(**some))
    one = json.loads((tmp_path / "run" / "result.json").read_text())
    compare_sampling.main(compare_sampling.Config(**some, seeds=2, resume=True))
    two = json.loads((tmp_path / "run" / "result.json").read_text())
    assert two["seeds"] == [0, 1] and two["tokens"] == 2 * one["tokens"]
    loss, human = (two["metrics"][name] for name in ("token_loss greedy", "repetition human"))
    assert loss["n"] == 2 and loss["sd"] > 0 and human["n"] == 1  # the same text for both
    trained = [
        json.loads((tmp_path / "run" / f"seed-{seed}" / "training" / "result.json").read_text())
        for seed in (0, 1)
    ]
    assert trained[0]["config"]["max_minutes"] and not trained[1]["config"]["max_minutes"]
    assert trained[0]["steps"] == trained[1]["steps"]
    assert trained[0]["precision"] == trained[1]["precision"]
    assert [one["seeds"] for one in trained] == [[0], [1]]


def test_only_what_the_training_held_out_is_continued(made):
    compare_sampling.main(config(made, "leak", strategies=("greedy",), texts=8))
    kept = json.loads((made / "leak" / "seed-0" / "texts" / "greedy.json").read_text())
    _, tokenizer = trained.load(made / "model")
    heldout = (made / "text.txt").read_text().split("\n\n")[6::7]
    for text in kept["texts"]:
        assert any(tokenizer.decode(text[:6]) in document for document in heldout)


def test_after_the_training_a_mistake_says_where_the_model_is(made):
    training = made / "late" / "seed-0" / "training"
    shutil.copytree(made / "model", training / "model")
    shutil.copy(made / "config.json", training)
    (training / "result.json").write_text(json.dumps(dict(steps=1, precision="fp32", seconds=1)))
    some = config(made, "late", model="", texts=10_000)
    with pytest.raises(UserError, match=f"holds out only .* with --model {training}/model, "):
        compare_sampling.main(some)


def test_mistakes(made):
    for options, told in (
        (dict(strategies=("best",)), "no strategy 'best'"),
        (dict(settings=("fast ",)), "must be flags without dashes"),
        (dict(settings=("out=x",)), "--settings out: this script decides it"),
        (dict(new_tokens=3), "4 or more"),
        (dict(seeds=2), "needs a model each"),
    ):
        with pytest.raises(UserError, match=told):
            config(made, "mistake", **options)
    other = made / "other.txt"
    other.write_text((made / "text.txt").read_text() + "\n\nOne more document.")
    with pytest.raises(UserError, match="was trained on .*; give that one"):
        compare_sampling.main(config(made, "other-text", data=str(other)))
    with pytest.raises(UserError, match="holds out only"):
        compare_sampling.main(config(made, "few", texts=10_000))
    (made / "bare").mkdir()
    (made / "bare" / "config.json").write_text((made / "model" / "config.json").read_text())
    weights = (made / "model" / "model.safetensors").read_bytes()
    (made / "bare" / "model.safetensors").write_bytes(weights)
    bare = dict(model=str(made / "bare"))
    with pytest.raises(UserError, match="no tokenizer.json"):
        compare_sampling.main(config(made, "bare-run", **bare))
    whole = (made / "model" / "tokenizer.json").read_text()
    (made / "bare" / "tokenizer.json").write_text(whole[: len(whole) // 2])
    with pytest.raises(UserError, match="tokenizer.json is truncated or damaged"):
        compare_sampling.main(config(made, "bare-run", **bare))
    (made / "bare" / "tokenizer.json").write_text(whole.replace("<|endoftext|>", "<|end|>"))
    with pytest.raises(UserError, match="do not fit"):
        compare_sampling.main(config(made, "bare-run", **bare))
    (made / "bare" / "tokenizer.json").write_text(whole)
    (made / "bare" / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    with pytest.raises(UserError, match="model.safetensors is truncated or damaged"):
        compare_sampling.main(config(made, "bare-run", **bare))
    (made / "alone" / "model").mkdir(parents=True)
    for file in (made / "model").iterdir():
        (made / "alone" / "model" / file.name).write_bytes(file.read_bytes())
    with pytest.raises(UserError, match="config.json of its training is not in the folder above"):
        compare_sampling.main(config(made, "alone-run", model=str(made / "alone" / "model")))


def test_learned_positions_are_not_left(made):
    model, _ = trained.load(made / "model")
    folder = made / "learned" / "model"
    LanguageModel(replace(model.config, positions="learned", max_seq_len=12)).save(folder)
    (folder / "tokenizer.json").write_bytes((made / "model" / "tokenizer.json").read_bytes())
    with pytest.raises(UserError, match="learned 12 positions, and prompt and new tokens are 14"):
        compare_sampling.main(config(made, "learned-run", model=str(folder)))
