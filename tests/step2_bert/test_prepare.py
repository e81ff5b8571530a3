import dataclasses
import fcntl
import json
import os
import random
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from common.cli import UserError
from step2_bert import corpus, prepare
from step2_bert.corpus import PrepareOptions
from step2_bert.masking import MaskingOptions
from step2_bert.samples import Samples
from step2_bert.shards import counts_of
from step2_bert.tokenizer import load_tokenizer
from tests import scripts

ROOT = Path(__file__).parents[2]
WORDS = [
    "time",
    "year",
    "people",
    "way",
    "day",
    "man",
    "thing",
    "woman",
    "life",
    "child",
    "world",
    "school",
    "state",
    "family",
]
KEYS = {"tokens", "segment_ids", "masked_lm_positions", "masked_lm_labels", "is_random_next"}


def text_file(folder: Path, n_documents: int = 40, n_sentences: int = 12) -> Path:
    """Documents whose every sentence names its document and its place in it: `d7x s3x ...`."""
    rng = random.Random(0)
    documents = []
    for d in range(n_documents):
        sentences = (
            " ".join([f"D{d}x s{s}x", *rng.choices(WORDS, k=rng.randint(3, 12))]) + "."
            for s in range(n_sentences)
        )
        documents.append("\n".join(sentences))
    file = folder / "text.txt"
    file.write_text("\n\n".join(documents))
    return file


def vocab_file(folder: Path) -> Path:
    """Whole words, and `d7x` and `s3x` in pieces."""
    pieces = ["d", "s", "##x", ".", *(f"##{i}" for i in range(100)), *WORDS]
    file = folder / "vocab.txt"
    file.write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *pieces]))
    return file


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("prepare")
    text_file(folder), vocab_file(folder)
    return folder


def options(folder: Path, **changes) -> PrepareOptions:
    defaults = {
        "data": str(folder / "text.txt"),
        "vocab": str(folder / "vocab.txt"),
        "max_seq_len": 48,
        "heldout_fraction": 0.1,
        "masking": MaskingOptions(max_predictions=5),
    }
    return PrepareOptions(**(defaults | changes))


def run(folder: Path, out: Path, workers: int = 1, **changes) -> Path:
    made = corpus.prepare(
        options(folder, **changes), out, progress=False, workers=workers, measure=False
    )
    return made.parent


def shards(out: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in out.glob("*.safetensors")}


@pytest.fixture(scope="module")
def prepared(folder):
    return run(folder, folder / "prepared", duplication=3)


@pytest.fixture
def small_chunks(monkeypatch):
    """Many chunks of a small corpus."""
    survey = corpus._survey
    monkeypatch.setattr(corpus, "_survey", lambda *args: survey(*args) | {"chunk_characters": 2000})


def documents_in(sample: dict, segment: int) -> set[str]:
    """The documents that the tokens of a segment name: `d` and the number after it."""
    tokens = list(sample["tokens"])
    for position, label in zip(
        sample["masked_lm_positions"], sample["masked_lm_labels"], strict=True
    ):
        tokens[position] = label
    mine = [t for t, s in zip(tokens, sample["segment_ids"], strict=True) if s == segment]
    after = [after for before, after in zip(mine, mine[1:], strict=False) if before == "d"]
    return {token for token in after if token.startswith("##")} - {"##x"}


# --- content -------------------------------------------------------------------------------------


def test_the_second_segment_is_from_another_document_exactly_when_it_says_so(prepared):
    for split in ("train", "heldout"):
        samples = Samples.open(prepared, split)
        seen = [0, 0]
        for sample in samples.readable(range(len(samples))):
            first, second = documents_in(sample, 0), documents_in(sample, 1)
            assert len(first) <= 1
            assert len(second) <= 1
            if first and second:
                assert (first != second) == sample["is_random_next"]
                seen[sample["is_random_next"]] += 1
        assert min(seen) > 5


def test_held_out_documents_are_the_last_and_stay_apart(prepared):
    named = {}
    for split in ("train", "heldout"):
        samples = Samples.open(prepared, split)
        readable = samples.readable(range(len(samples)))
        named[split] = set().union(*(documents_in(s, 0) | documents_in(s, 1) for s in readable))
    assert named["heldout"] == {f"##{d}" for d in range(36, 40)}
    assert named["train"] == {f"##{d}" for d in range(36)}


def test_without_random_next_every_sentence_is_used_once_a_duplicate(folder, tmp_path):
    out = run(folder, tmp_path, random_next_probability=0.0, max_seq_len=512, duplication=2)
    samples = Samples.open(out)
    tokenizer = load_tokenizer(samples.tokenizer_dir)
    pairs = []
    for shard in samples._shards:
        names = [tokenizer.id_to_token(i) for i in shard["tokens"].tolist()]
        at = [i for i, name in enumerate(names[:-4]) if (name, names[i + 3]) == ("d", "s")]
        random_next = [False] * len(names)
        for sample, (start, end) in enumerate(
            zip(shard["offsets"], shard["offsets"][1:], strict=False)
        ):
            if shard["is_random_next"][sample]:  # a last sentence, with a stranger behind it
                random_next[start + shard["second_start"][sample] : end] = [True] * int(
                    end - start - shard["second_start"][sample]
                )
        pairs += [(names[i + 1], names[i + 4]) for i in at if not random_next[i]]
    assert sorted(pairs) == sorted(2 * [(f"##{d}", f"##{s}") for d in range(36) for s in range(12)])


def test_samples_fit_and_are_framed_by_special_tokens(prepared):
    samples = Samples.open(prepared)
    batch = samples.batch(range(len(samples)), epoch=0)
    ids, lengths = batch["input_ids"].numpy(), samples.lengths
    assert lengths.max() <= 48
    assert (lengths == 48).mean() > 0.7
    assert (ids[:, 0] == 2).all()
    assert (ids[np.arange(len(ids)), lengths - 1] == 3).all()
    second = lengths - batch["token_type_ids"].sum(1).numpy()
    assert (ids[np.arange(len(ids)), second - 1] == 3).all()
    assert ((ids == 3).sum(1) == 2).all()
    assert batch["attention_mask"].sum().item() == lengths.sum() == batch["tokens"]


@pytest.mark.parametrize("dynamic", [True, False])
def test_json_lines_agree_with_the_shards(folder, tmp_path, dynamic):
    out = run(folder, tmp_path, dynamic_masking=dynamic, jsonl_samples=-1)
    for split in ("train", "heldout"):
        samples = Samples.open(out, split)
        tokenizer = load_tokenizer(samples.tokenizer_dir)
        written = [json.loads(line) for line in (out / f"{split}.jsonl").open()]
        assert len(written) == len(samples) == samples.manifest["splits"][split]["samples"]
        batch = samples.batch(range(len(samples)), epoch=0, seed=0)
        width = batch["input_ids"].shape[1]
        places = batch["masked_positions"].tolist()
        labels = dict(zip(places, batch["masked_labels"].tolist(), strict=True))
        for row, sample in enumerate(written):
            assert set(sample) == KEYS
            length = samples.lengths[row]
            ids = [tokenizer.token_to_id(token) for token in sample["tokens"]]
            assert ids == batch["input_ids"][row, :length].tolist()
            assert sample["segment_ids"] == batch["token_type_ids"][row, :length].tolist()
            assert sample["is_random_next"] == bool(batch["is_random_next"][row])
            assert {
                row * width + p: tokenizer.token_to_id(label)
                for p, label in zip(
                    sample["masked_lm_positions"], sample["masked_lm_labels"], strict=True
                )
            } == {p: i for p, i in labels.items() if p // width == row}


def test_mlm_alone_uses_every_token_once_within_documents(folder, tmp_path):
    out = run(folder, tmp_path, nsp=False, dynamic_masking=False)
    samples = Samples.open(out)
    batch = samples.batch(range(len(samples)))
    assert batch["targets"]["nsp"] == 0
    assert not batch["token_type_ids"].any()
    counts = samples.manifest["splits"]["train"]
    assert counts["tokens"] == counts["text_tokens"] + 2 * counts["samples"]
    for sample in samples.readable(range(50)):
        assert len(documents_in(sample, 0)) <= 1
    ends = np.concatenate([shard["document"] for shard in samples._shards])
    assert (np.diff(ends) >= 0).all()
    assert set(ends) == set(range(36))


def test_special_tokens_in_the_text_are_text(folder, tmp_path):
    (tmp_path / "a.txt").write_text(
        "time [SEP] year [MASK] day.\n\nway [CLS] man.\n\nlife.\n\nman."
    )
    out = run(
        folder,
        tmp_path / "out",
        data=str(tmp_path / "a.txt"),
        masking=MaskingOptions(mask_share=0.0, random_share=0.0),
    )
    ids = Samples.open(out).batch([0, 1])["input_ids"]
    assert (ids == 4).sum() == 0
    assert ((ids == 3).sum(1) == 2).all()


# --- masks and batches ---------------------------------------------------------------------------


def test_dynamic_masks_do_not_depend_on_the_batch_and_change_with_the_epoch(prepared):
    samples = Samples.open(prepared)
    together = samples.batch([3, 50, 7], epoch=4, seed=9)
    alone = samples.batch([7], epoch=4, seed=9)
    n = samples.lengths[7]
    assert torch.equal(together["input_ids"][2, :n], alone["input_ids"][0, :n])
    for other in ({"epoch": 5, "seed": 9}, {"epoch": 4, "seed": 8}):
        assert not torch.equal(
            samples.batch(range(20), **other)["input_ids"],
            samples.batch(range(20), epoch=4, seed=9)["input_ids"],
        )


def test_static_masks_are_the_same_in_every_epoch(prepared, folder, tmp_path):
    heldout = Samples.open(prepared, "heldout")
    train = Samples.open(run(folder, tmp_path, dynamic_masking=False))
    for samples in (heldout, train):
        first, second = (samples.batch(range(15), epoch=e, seed=e) for e in (0, 1))
        assert torch.equal(first["input_ids"], second["input_ids"])
        assert torch.equal(first["masked_labels"], second["masked_labels"])
        shown = first["input_ids"].flatten()[first["masked_positions"]]
        assert 0.5 < (shown == 4).float().mean() < 0.98


def test_batches_have_what_training_needs(prepared):
    samples = Samples.open(prepared)
    equal = np.flatnonzero(samples.lengths == 48)[:4]
    batch = samples.batch(equal)
    assert batch["attention_mask"] is None
    assert batch["input_ids"].shape == (4, 48)
    assert batch["targets"] == {"mlm": len(batch["masked_labels"]), "nsp": 4}
    for name in ("input_ids", "token_type_ids", "masked_positions", "masked_labels"):
        assert batch[name].dtype == torch.int64
    assert batch["tokens"] == 4 * 48
    assert samples.vocab_size == load_tokenizer(samples.tokenizer_dir).get_vocab_size()


def test_fractions_are_nested_runs_of_documents(folder, tmp_path, small_chunks):
    samples = Samples.open(run(folder, tmp_path, duplication=2))
    assert len(samples._shards) > 5
    document = np.concatenate([shard["document"] for shard in samples._shards])
    before = np.empty(0, int)
    for share in (0.1, 0.3, 0.5, 1.0):
        chosen = samples.fraction(share, seed=3)
        assert len(chosen) == round(share * len(samples)) == len(set(chosen.tolist()))
        assert set(before.tolist()) <= set(chosen.tolist())
        here = np.unique(document[chosen])
        gaps = np.diff(np.concatenate([here, [here[0] + 36]]))  # a run, perhaps around the end
        assert (gaps > 1).sum() <= 1
        before = chosen
    with pytest.raises(UserError):
        samples.fraction(0)


# --- determinism, restart, cache -----------------------------------------------------------------


def test_the_result_depends_on_the_seed_and_not_on_the_processes(folder, tmp_path, small_chunks):
    one = run(folder, tmp_path / "one")
    two = run(folder, tmp_path / "two", workers=2)
    assert len(shards(one)) > 5
    assert shards(one) == shards(two)
    other = run(folder, tmp_path / "three", seed=1)
    assert all(shards(one)[name] != content for name, content in shards(other).items())


def test_a_second_run_uses_the_first_and_another_does_not_replace_it(folder, tmp_path):
    out = run(folder, tmp_path / "out")
    before = {file: file.stat().st_mtime_ns for file in out.iterdir()}
    run(folder, tmp_path / "out")
    changed = tmp_path / "text.txt"
    changed.write_text((folder / "text.txt").read_text().replace("D3x", "D4x"))
    for change in ({"max_seq_len": 32}, {"data": str(changed)}):
        with pytest.raises(UserError, match="holds other prepared data.*choose another --out"):
            run(folder, tmp_path / "out", **change)
    assert {file: file.stat().st_mtime_ns for file in out.iterdir()} == before


def test_a_killed_run_goes_on_where_it_was(folder, tmp_path, small_chunks):
    """kill -9 in the middle; the second run keeps the shards of the first, and the result is that
    of a run that was never killed."""
    script = f"""
import time
from step2_bert import corpus
from tests_options import made
survey, do = corpus._survey, corpus.do_chunk
corpus._survey = lambda *args: survey(*args) | {{"chunk_characters": 2000}}
def slowly(chunk):
    time.sleep(0.05)
    return do(chunk)
corpus.do_chunk = slowly
corpus.prepare(made, {str(tmp_path / "out")!r}, progress=False, workers=1, measure=False)
"""
    (tmp_path / "tests_options.py").write_text(
        "from step2_bert.shards import MaskingOptions, PrepareOptions\n"
        f"made = {options(folder)!r}\n"
    )
    environment = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{tmp_path}"}
    child = subprocess.Popen([sys.executable, "-c", script], env=environment)
    out = tmp_path / "out"
    while len(list(out.glob("train-*.safetensors"))) < 3:
        assert child.poll() is None
        time.sleep(0.005)
    child.send_signal(signal.SIGKILL)
    child.wait()
    kept = {file: file.stat().st_mtime_ns for file in out.glob("*.safetensors")}
    assert 3 <= len(kept) < 12
    with pytest.raises(UserError, match="not a prepared directory"):
        Samples.open(out)
    run(folder, out)
    assert {file: file.stat().st_mtime_ns for file in kept} == kept
    run(folder, tmp_path / "whole")
    assert shards(out) == shards(tmp_path / "whole")
    manifests = [json.loads((tmp_path / n / "manifest.json").read_text()) for n in ("out", "whole")]
    assert manifests[0]["splits"] == manifests[1]["splits"]


def test_a_shard_that_is_not_whole_is_made_again(folder, tmp_path, small_chunks, monkeypatch):
    whole = shards(run(folder, tmp_path / "whole"))

    def full_disk(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(corpus, "_write_jsonl", full_disk)
        with pytest.raises(OSError, match="No space left"):
            run(folder, tmp_path / "out")
    file = tmp_path / "out" / "train-00002.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    assert counts_of(file) is None
    assert shards(run(folder, tmp_path / "out")) == whole


def test_a_full_disk_loses_nothing(folder, tmp_path, small_chunks):
    """A limit on the size of files, which stops a shard in the middle as a full disk does."""
    whole = shards(run(folder, tmp_path / "whole", duplication=30))
    largest = max(map(len, whole.values()))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (largest - 1, before[1]))
    try:
        with pytest.raises(UserError, match=r"safetensors: cannot be written.*free some space"):
            run(folder, tmp_path / "out", duplication=30)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not list(tmp_path.glob("out/*.part"))
    assert shards(run(folder, tmp_path / "out", duplication=30)) == whole


def test_a_directory_in_use_or_of_others_is_refused(folder, tmp_path):
    (tmp_path / "busy").mkdir()
    handle = os.open(tmp_path / "busy", os.O_RDONLY)
    fcntl.flock(handle, fcntl.LOCK_EX)
    with pytest.raises(UserError, match="another process is preparing"):
        run(folder, tmp_path / "busy")
    os.close(handle)
    (tmp_path / "model.safetensors").write_text("precious")
    with pytest.raises(UserError, match="not empty, and not a prepared directory"):
        run(folder, tmp_path)
    assert (tmp_path / "model.safetensors").read_text() == "precious"


# --- bad input -----------------------------------------------------------------------------------


def test_bad_options_and_too_few_documents_are_refused(folder, tmp_path):
    for wrong in ({"max_seq_len": 4}, {"duplication": 0}, {"heldout_fraction": 1.0}):
        with pytest.raises(UserError):
            options(folder, **wrong)
    (tmp_path / "a.txt").write_text("One.\n\nTwo.\n\nThree.")
    with pytest.raises(UserError, match="3 documents are too few: 2 are held out and 2 needed"):
        run(folder, tmp_path / "out", data=str(tmp_path / "a.txt"))
    assert run(folder, tmp_path / "out", data=str(tmp_path / "a.txt"), nsp=False)


def test_broken_shards_and_manifests_are_refused(folder, tmp_path):
    out = run(folder, tmp_path / "out")
    shard = out / "train-00000.safetensors"
    shard.write_bytes(shard.read_bytes()[:-10])
    with pytest.raises(UserError, match=r"train-00000\.safetensors: missing, broken or cut off"):
        Samples.open(out)
    with pytest.raises(UserError, match="no split 'dev' in it; it has: train, heldout"):
        Samples.open(out, "dev")
    (out / "manifest.json").write_text("{")
    with pytest.raises(UserError, match="manifest.json: broken"):
        Samples.open(out)


def test_titles_are_excluded_and_bad_lines_counted(folder, tmp_path):
    lines = [json.dumps({"text": f"Title {d}\ntime year day {d}."}) for d in range(9)]
    (tmp_path / "a.jsonl").write_text("\n".join([*lines[:4], "broken", *lines[4:]]))
    changes = {"data": str(tmp_path / "a.jsonl"), "exclude_titles": ("Title 2", "Title 5")}
    with pytest.raises(UserError, match=r"a\.jsonl:5: not JSON"):
        run(folder, tmp_path / "out", **changes)
    out = run(folder, tmp_path / "out", skip_bad_lines=True, **changes)
    manifest = json.loads((out / "manifest.json").read_text())
    assert (manifest["excluded_documents"], manifest["skipped_lines"]) == (2, 1)
    assert sum(split["documents"] for split in manifest["splits"].values()) == 7


@pytest.mark.parametrize(("length", "most"), [(32, 20), (128, 20), (129, 20), (512, 77)])
def test_predictions_follow_the_length(length, most):
    assert PrepareOptions(max_seq_len=length).masking.max_predictions == most
    many = PrepareOptions(max_seq_len=length, masking=MaskingOptions(probability=0.4)).masking
    assert many.max_predictions >= 0.4 * length
    few = MaskingOptions(max_predictions=3)
    assert PrepareOptions(max_seq_len=length, masking=few).masking.max_predictions == 3


# --- the script ----------------------------------------------------------------------------------


def test_the_script_prepares_with_all_cores_and_says_what_it_did(folder, tmp_path, capsys):
    config = prepare.Config(
        data=str(folder / "text.txt"),
        out=str(tmp_path / "out"),
        vocab_size=120,
        max_seq_len=48,
        exclude_title=("absent",),
    )
    prepare.main(config)
    printed = capsys.readouterr().out
    assert "documents left out by title: 0" in printed
    assert "ratio" in printed
    assert printed.splitlines()[-1] == f"result: {tmp_path / 'out' / 'manifest.json'}"
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["vocab_size"] == 120
    assert manifest["tokens_per_second"] > 0
    assert manifest["library_tokens_per_second"] > 0


def test_the_script_has_a_flag_for_every_option():
    names = {field.name for field in dataclasses.fields(prepare.Config)}
    renamed = {"masking": "max_predictions", "exclude_titles": "exclude_title"}
    for field in dataclasses.fields(PrepareOptions):
        assert renamed.get(field.name, field.name) in names | {"random_next_probability"}
    for preset in prepare.PRESETS.values():
        assert set(preset) <= names


def test_an_error_is_one_line_and_exit_code_2(tmp_path, capfd):
    (tmp_path / "a.jsonl").write_text('{"text": "fine"}\nbroken\n')
    handler = signal.getsignal(signal.SIGTERM)
    code = scripts.call(prepare, "--data", tmp_path / "a.jsonl", "--out", tmp_path / "out")
    signal.signal(signal.SIGTERM, handler)
    assert code == 2
    [line] = capfd.readouterr().err.strip().splitlines()
    assert "a.jsonl:2: not JSON" in line


def test_memory_does_not_grow_with_the_text(tmp_path):
    """Peak MB of a process that prepares 1 MB of text, and of one that prepares 8."""
    code = """
import resource, sys
from step2_bert import corpus
folder = sys.argv[1]
options = corpus.PrepareOptions(data=f"{folder}/text.txt", vocab=f"{folder}/vocab.txt")
corpus.prepare(options, f"{folder}/out", progress=False, workers=1, measure=False)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10)
"""
    peaks = []
    for n_documents in (200, 1600):
        folder = tmp_path / str(n_documents)
        folder.mkdir()
        size = text_file(folder, n_documents, n_sentences=100).stat().st_size
        vocab_file(folder)
        command = [sys.executable, "-c", code, folder]
        peaks.append(int(subprocess.run(command, capture_output=True, check=True, cwd=ROOT).stdout))
    assert size > 8e6 and peaks[1] < peaks[0] + 40  # text and tokens would be five times that
