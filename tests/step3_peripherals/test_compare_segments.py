"""compare_segments.py in this process, on few and short inputs."""

import json
import signal

import numpy as np
import pytest
import torch

from common.runs import metric
from step2_bert import counting
from step2_bert.corpus import prepare
from step2_bert.masking import Vocabulary
from step2_bert.model import BertConfig, BertForPreTraining
from step2_bert.shards import PrepareOptions
from step2_bert.tokenizer import load_tokenizer
from step3_peripherals import compare_segments, segment_study
from step3_peripherals.compare_segments import PRESETS, SCORES, Config
from step3_peripherals.masking import Masking
from step3_peripherals.paired import BASE, reported
from step3_peripherals.segment_study import EXAM, FORMATS, SegmentStudy
from tests import scripts


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Prepared samples of twenty documents."""
    options = PrepareOptions(
        data="sotu", vocab_size=600, max_seq_len=32, max_documents=20, heldout_fraction=0.1
    )
    out = tmp_path_factory.mktemp("data") / "prepared"
    return prepare(options, out, progress=False, workers=1, measure=False).parent


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    handler = signal.getsignal(signal.SIGTERM)
    torch.set_num_threads(1)
    monkeypatch.chdir(tmp_path)
    yield
    signal.signal(signal.SIGTERM, handler)


@pytest.fixture
def study(data):
    return SegmentStudy(Config(**PRESETS["smoke"] | dict(data=str(data))), 0.4)


def call(*flags):
    """Run compare_segments.py in this process, in the directory `run`; its exit code."""
    small = ["--preset", "smoke", "--max-steps", 2, "--out", "run"]
    return scripts.call(compare_segments, *small, *flags)


def result():
    with open("run/result.json") as file:
        return json.load(file)


@pytest.mark.usefixtures("drawn")
def test_all_formats_are_scored_and_drawn(data, tmp_path, capsys):
    assert call("--data", data, "--variants", *FORMATS) == 0
    found = result()
    asked = {name for name, way in FORMATS.items() if way.question}
    wanted = {f"{score} {name}" for score in ("long_loss", "short_loss") for name in FORMATS}
    assert set(found["metrics"]) == wanted | {f"pair_accuracy {name}" for name in asked}
    assert len(set(found["metrics"][f"long_loss {name}"]["value"] for name in FORMATS)) == 6
    assert (tmp_path / "run" / "curves.png").stat().st_size > 10_000
    assert not list((tmp_path / "run").rglob("*.safetensors"))  # weights are not kept
    printed = capsys.readouterr().out
    assert "full sentences" in printed and "target " in printed
    assert all(len(row) == len(found["table"]["rows"][0]) for row in found["table"]["rows"])


@pytest.mark.parametrize(
    ("long_losses", "short_losses", "reached"),  # of sentence pairs, and of whole documents
    [((3.5, 3.45), (3.3, 3.36), True), ((3.5, 3.45), (3.3, 3.34), False),
     ((3.4, 3.45), (3.3, 3.56), False), ((3.6, 3.45), (3.3, 3.29), False)],
)  # fmt: skip
def test_the_target(long_losses, short_losses, reached):
    losses = zip(("sentence_pairs", "doc_sentences"), long_losses, short_losses, strict=True)
    found = {name: {"long_loss": metric(a), "short_loss": metric(b)} for name, a, b in losses}
    told = compare_segments.target(found)
    assert told.startswith("target reached" if reached else "target missed")
    assert compare_segments.target({"doc_sentences": found["doc_sentences"]}) == ""


def test_a_comparison_that_is_stopped_goes_on_as_it_was_begun(data, tmp_path, capsys):
    flags = ["--data", data, "--variants", BASE]
    assert call(*flags) == 0
    whole = result()["metrics"]
    (tmp_path / "run").rename(tmp_path / "whole")
    codes = []
    while not codes or codes[-1] == 75 and len(codes) < 4:
        codes.append(call(*flags, "--slice-minutes", 1e-6, "--resume"))
    assert codes == [75, 0] and result()["metrics"] == whole
    assert call(*flags, "--resume", "--rate", 0.3) == 2
    assert "was begun with --rate 0.4" in capsys.readouterr().err
    assert call(*flags, "--variants", "pairs") == 2
    assert "no format 'pairs'" in capsys.readouterr().err
    assert call(*flags, "--resume", "--max-minutes", 1) == 2


def test_all_formats_start_from_the_same_word_vectors(study):
    shape = BertConfig.named("tiny", vocab_size=study.train.vocab_size, max_seq_len=32)
    models = [BertForPreTraining(shape) for _ in range(2)]
    others = [parameter.clone() for parameter in models[0].parameters()][1:]
    for model in models:
        study.start(model)
    counted = counting.token_vectors(study.train, np.arange(len(study.train)), shape.d_model)
    for model in models:
        assert np.array_equal(model.token_embedding.detach().numpy(), counted)
        assert model.token_embedding is next(model.parameters())
    assert all(map(torch.equal, others, [*models[0].parameters()][1:]))


def test_a_batch_is_the_samples_padded_and_masked(study):
    vocabulary = Vocabulary.of(load_tokenizer(study.train.tokenizer_dir))
    for way in FORMATS.values():
        samples = study.samples(way, "train")
        rows = np.array([3, 0, 8, 5])
        batch = segment_study.masked_batch(
            samples, rows, vocabulary, Masking(rate=0.4), way.question, pad_id=study.pad_id
        )
        ids = batch["input_ids"].clone()
        hidden = batch["masked_positions"]
        ids.flatten()[hidden] = batch["masked_labels"]
        present = batch["attention_mask"]
        present = torch.ones_like(ids, dtype=torch.bool) if present is None else present
        assert batch["tokens"] == present.sum() and present.flatten()[hidden].all()
        for row, text, types, there in zip(
            rows, ids, batch["token_type_ids"], present, strict=True
        ):
            tokens, segments = samples[row]
            assert text[there].tolist() == tokens.tolist()
            assert types[there].tolist() == segments.tolist()
            assert (text[~there] == study.pad_id).all() and not types[~there].any()
        asked = len(rows) if way.question else 0
        assert batch["targets"] == {"mlm": len(hidden), "nsp": asked}
        if asked:
            assert batch["is_random_next"].tolist() == samples.labels[rows].tolist()
            segments = [samples[row][1].max() for row in rows]
            assert segments == [1] * 4


def test_every_format_reads_as_many_tokens_in_a_step(study):
    config = Config(**PRESETS["smoke"] | dict(batch_size=16))
    room = 16 * 32
    for way in FORMATS.values():
        parts = study.batches_of(way, config)
        batches, lengths = parts["batches"].epoch(0), study.samples(way, "train").lengths
        tokens = np.array([lengths[rows].sum() for rows in batches])
        assert tokens.max() <= room and np.median(tokens) > 0.85 * room


def test_the_texts_are_those_of_step_2(study):
    counts = study.train.manifest["splits"]
    for split, text in study.texts.items():
        assert len(text.documents) - 1 == counts[split]["documents"]
        assert len(text.tokens) == counts[split]["text_tokens"]


def test_the_exam_is_the_same_for_all(study):
    samples = study.samples(FORMATS["doc_sentences"], "heldout")
    drawn = [study._batch(samples, np.arange(4), None, EXAM, epoch=epoch) for epoch in (0, 1)]
    assert (drawn[0]["input_ids"] == drawn[1]["input_ids"]).all()


def test_papers_differences():
    found = reported(compare_segments.PAPER)
    told = dict(sentence_pairs=-1.1, full_sentences=0.7, doc_sentences=0.7)
    assert found == told | dict(segment_pairs_sop=0.4, segment_pairs_mlm=-0.1)
    assert set(SCORES) == {"long_loss", "short_loss", "pair_accuracy", "accuracy"}
