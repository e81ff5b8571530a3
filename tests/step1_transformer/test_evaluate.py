"""evaluate.py as a user runs it, on what train.py leaves behind; good input, and bad."""

import json
import math
import shutil
import signal
import statistics

import pytest
import torch

from step1_transformer import averaging, decoding, evaluate, objective, scores, train
from step1_transformer import tokenizer as bpe
from step1_transformer.corpus import Corpus
from step1_transformer.model import Transformer
from tests.scripts import call

WORDS = {"ein": "a", "Hund": "dog", "Mann": "man", "sieht": "sees", "rot": "red", "Haus": "house"}


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    handler = signal.getsignal(signal.SIGTERM)
    torch.set_num_threads(1)
    yield
    signal.signal(signal.SIGTERM, handler)


@pytest.fixture
def fails(capfd, tmp_path):
    """Evaluate with what must end with code 2 and one line; that line."""

    def check(*flags):
        capfd.readouterr()
        assert call(evaluate, "--preset", "smoke", "--out", tmp_path / "failed", *flags) == 2
        line = capfd.readouterr().err
        assert line.startswith("error: ") and line.count("\n") == 1, line
        return line

    return check


def result(folder):
    return json.loads((folder / "result.json").read_text())


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Two seeds of a word for word translator, as train.py leaves them."""
    folder = tmp_path_factory.mktemp("runs")
    german = [[word for word in WORDS if i & 1 << WORDS_AT[word]] for i in range(1, 64)]
    texts = [f"{' '.join(w)} {n}" for n in range(12) for w in german]
    english = [" ".join(WORDS.get(word, word) for word in text.split()) for text in texts]
    rows = "".join(f"{a}\t{b}.\n" for a, b in zip(texts, english, strict=True))
    (folder / "pairs.tsv").write_text(rows)
    flags = ["--preset", "smoke", "--data", folder / "pairs.tsv", "--source", "de"]
    flags += ["--target", "en", "--max-steps", "30", "--eval-every", "15", "--average", "2"]
    flags += ["--d-model", "32", "--d-ff", "64", "--learning-rate", "1e-2"]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for seed in (0, 1):
            out = folder / f"seed{seed}"
            assert call(train, *flags, "--seed", seed, "--out", out) == 0
            noted = result(out)  # of a relative path, which other tests are not in
            noted["prepared"] = str(folder / noted["prepared"])
            (out / "result.json").write_text(json.dumps(noted))
    # The last weights of seed 0 shall not be the chosen ones, or the ladder would have one rung
    other = Transformer.load(folder / "seed1" / "model")
    averaging.Snapshots(folder / "seed0" / "snapshots", keep=2).take(other, 45, score=9.0)
    return folder


WORDS_AT = {word: place for place, word in enumerate(WORDS)}


@pytest.fixture(scope="module")
def evaluated(trained, tmp_path_factory):
    """One model, with the ladder."""
    out = tmp_path_factory.mktemp("evaluate") / "one"
    flags = ["--preset", "cpu", "--model", trained / "seed0" / "model", "--ladder"]
    assert call(evaluate, *flags, "--out", out) == 0
    return out


def test_scores_are_those_of_sacrebleu_on_the_whole_split(trained, evaluated):
    import sacrebleu

    found = result(evaluated)
    prepared = result(trained / "seed0")["prepared"]
    corpus = Corpus.open(prepared, "test")
    references, sources = corpus.text("target"), corpus.text("source")
    model, tokenizer = (kind(trained / "seed0" / "model") for kind in (Transformer.load, bpe.load))
    for prefix, beam_size in (("", 4), ("greedy_", 1)):
        ours = decoding.translate(model, tokenizer, sources, beam_size=beam_size)
        wanted = {
            "bleu": sacrebleu.corpus_bleu(ours, [references]).score,
            "bleu_lower": sacrebleu.corpus_bleu(ours, [references], lowercase=True).score,
            "chrf": sacrebleu.corpus_chrf(ours, [references]).score,
        }
        values = {name: found["metrics"][prefix + name]["value"] for name in wanted}
        assert values == pytest.approx(wanted)
    copied = sacrebleu.corpus_bleu(sources, [references]).score
    assert found["metrics"]["copy_bleu"]["value"] == pytest.approx(copied)
    nll = objective.heldout_scores(model, corpus)["token_nll"]
    perplexity = found["metrics"]["perplexity"]
    assert perplexity["value"] == pytest.approx(math.exp(nll))
    assert not perplexity["higher_is_better"] and found["metrics"]["bleu"]["higher_is_better"]


def test_the_result_says_how(evaluated, trained, capfd):
    found = result(evaluated)
    assert found["split"] == "test" and found["seeds"] == [0]
    assert found["chosen"] == [result(trained / "seed0")["chosen"]]
    assert found["dataset"].endswith("de-en")
    assert any("case:lc" in line and "tok:13a" in line for line in found["signatures"])
    assert found["source"] == result(trained / "seed0")["source"]
    speed = found["metrics"]["greedy_tokens_per_second"]
    assert speed["value"] > 0 and speed["unit"] == "tokens/s"
    sample = (evaluated / "samples.txt").read_text().split("\n\n")
    assert len(sample) == len(Corpus.open(result(trained / "seed0")["prepared"], "test"))
    assert [line.split()[0] for line in sample[0].splitlines()] == ["source", "ours", "reference"]


@pytest.mark.parametrize("rung, newest", [("last", 1), ("average", 2)])
def test_the_ladder_scores_the_last_weights_and_the_average(trained, evaluated, rung, newest):
    """The model with the newest snapshots in it, translated by hand."""
    model, tokenizer = (kind(trained / "seed0" / "model") for kind in (Transformer.load, bpe.load))
    snapshots = sorted((trained / "seed0" / "snapshots").glob("*.safetensors"))
    model.load_state_dict(averaging.average(snapshots[-newest:]))
    corpus = Corpus.open(result(trained / "seed0")["prepared"], "test")
    ours = decoding.translate(model, tokenizer, corpus.text("source"))
    wanted, _ = scores.of_texts(ours, corpus.text("target"))
    metrics = result(evaluated)["metrics"]
    assert {name: metrics[f"{rung}_{name}"]["value"] for name in wanted} == pytest.approx(wanted)
    assert metrics[f"{rung}_chrf"]["value"] != pytest.approx(metrics["chrf"]["value"])


def test_several_seeds_give_mean_and_sd(trained, tmp_path, capfd):
    models = [trained / f"seed{seed}" / "model" for seed in (0, 1)]
    values = []
    flags = ["--preset", "smoke", "--split", "dev"]
    for number, chosen in enumerate((models[:1], models[1:], models)):
        out = tmp_path / str(number)
        assert call(evaluate, *flags, "--model", *chosen, "--out", out) == 0
        values.append(result(out)["metrics"])
    told = capfd.readouterr().out
    assert told.splitlines()[-1] == f"result: {tmp_path}/2/result.json" and " ± " in told
    for name in ("bleu", "greedy_chrf", "perplexity"):
        first, second, both = (metrics[name]["value"] for metrics in values)
        assert first != second and both == pytest.approx((first + second) / 2)
        assert values[2][name]["sd"] == pytest.approx(statistics.stdev([first, second]))
        assert values[2][name]["n"] == 2 and values[0][name]["sd"] is None
    assert values[2]["copy_bleu"]["n"] == 1
    assert result(tmp_path / "2")["seeds"] == [0, 1]


def test_an_evaluation_is_told_where_the_data_is(trained, evaluated, tmp_path):
    """A model that was carried off, and --data."""
    shutil.copytree(trained / "seed0" / "model", tmp_path / "model")
    prepared = result(trained / "seed0")["prepared"]
    flags = ["--preset", "cpu", "--model", tmp_path / "model", "--data", prepared]
    assert call(evaluate, *flags, "--sentences", 8, "--out", tmp_path / "run") == 0
    found = result(tmp_path / "run")["metrics"]["perplexity"]  # which is of the whole split
    assert found == result(evaluated)["metrics"]["perplexity"]


# -- bad input -------------------------------------------------------------------------------


def test_no_note_of_the_data(trained, fails, tmp_path):
    shutil.copytree(trained / "seed0" / "model", tmp_path / "model")
    assert "give --data" in fails("--model", tmp_path / "model")
    assert "not trained on the same" in fails(
        "--model", trained / "seed0" / "model", tmp_path / "model"
    )


def test_no_model_and_no_prepared_data(trained, fails, tmp_path):
    prepared = result(trained / "seed0")["prepared"]
    assert "is no checkpoint" in fails("--model", tmp_path, "--data", prepared)
    assert "not a prepared directory" in fails("--model", tmp_path, "--data", tmp_path)


def test_a_model_of_another_vocabulary(trained, fails, tmp_path):
    """Of another size, and of the same size with other pieces."""
    model, prepared = trained / "seed0" / "model", result(trained / "seed0")["prepared"]
    tokenizer = json.loads((model / "tokenizer.json").read_text())
    shutil.copytree(model, tmp_path / "other")
    vocab = tokenizer["model"]["vocab"]
    a, b = list(vocab)[10:12]
    vocab[a], vocab[b] = vocab[b], vocab[a]
    (tmp_path / "other" / "tokenizer.json").write_text(json.dumps(tokenizer))
    flags = ["--data", prepared, "--model"]
    assert "different vocabularies" in fails(*flags, tmp_path / "other")
    config = Transformer.load(model).config
    config.vocab_size += 1
    Transformer(config).save(tmp_path / "larger", model)
    assert "vocabulary of" in fails(*flags, tmp_path / "larger")


def test_a_ladder_without_snapshots(trained, fails, tmp_path):
    shutil.copytree(trained / "seed0" / "model", tmp_path / "model")
    prepared = result(trained / "seed0")["prepared"]
    told = fails("--model", tmp_path / "model", "--data", prepared, "--ladder")
    assert "snapshots has no weights" in told


@pytest.mark.parametrize("flags", [("--beam-size", "1"), ("--sentences", "0")])
def test_flags_that_cannot_be(fails, flags):
    assert "must be" in fails(*flags)
