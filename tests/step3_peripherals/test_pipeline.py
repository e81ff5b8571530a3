"""The pipeline as a whole: what it finds, what it counts, and that a kill changes nothing."""

import contextlib
import importlib.util
import json
import os
import pickle
import random
import re
import signal
import subprocess
import sys
import time
import tracemalloc
from collections import Counter
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from datatrove.data import Document
from pyarrow import parquet

from common import data, formats
from common.cli import UserError
from step3_peripherals import blocks, executors, funnel, pipeline, planting, quality
from step3_peripherals.dedup import MinHash


def stages(source, out, **options):
    usual = dict(languages=("en",), tasks=3, minhash=MinHash(), plant=0.0, seed=0)
    usual |= dict(max_documents=None, skip_bad_lines=False)
    return blocks.stages(blocks.units_of(data.resolve(str(source))), out, **usual | options)


def chained(stage, rank=0):
    """What a task of a stage gives, its blocks one behind the other."""
    flow = None
    for block in stage.blocks:
        flow = block.run(flow, rank, stage.tasks)
    return flow


def in_process(found):
    """Run the stages without an executor, and return the sums of what each block counted."""
    counts = {}
    for stage in found:
        for rank in range(stage.tasks):
            assert sum(1 for _ in chained(stage, rank)) >= 0
        for block in stage.blocks:
            stats = {name: stat.total for name, stat in block.stats.stats.items()}
            counts[f"{stage.name}/{block.name}"] = Counter(stats)
    return counts


def contents(folder, but=""):
    """Every file of rows below the folder, so that two runs can be compared."""
    found = {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*.jsonl.zst")}
    return {path: content for path, content in found.items() if path.parts[0] != but}


@pytest.fixture(scope="module")
def reviews(tmp_path_factory):
    """180 real reviews in two files, one of them JSON lines."""
    folder = tmp_path_factory.mktemp("reviews")
    texts = ["\n".join(d) for d in islice(data.documents(data.resolve("imdb")), 180)]
    (folder / "a.txt").write_text("\n\n".join(text.replace("\n\n", "\n") for text in texts[:90]))
    rows = (json.dumps({"text": text}) + "\n" for text in texts[90:])
    (folder / "b.jsonl").write_text("".join(rows))
    return folder


@pytest.fixture(scope="module")
def processed(reviews, tmp_path_factory):
    out = tmp_path_factory.mktemp("out")
    return out, in_process(stages(reviews, out, plant=0.5))


def test_counts_add_up(processed):
    out, counts = processed
    names = [f"2-clean/{name}" for name in funnel.FILTERS[:5]] + ["5-write/exact", "5-write/near"]
    left = counts["1-read/deal"]["total"]
    assert left > counts["1-read/source"]["total"] == 180
    for name in names:
        block = counts[name]
        assert block["total"] == left
        reasons = sum(n for key, n in block.items() if key.startswith("dropped_"))
        assert block["forwarded"] + block["dropped"] == left and reasons == block["dropped"]
        left = block["forwarded"]
    shards = list(blocks.rows(out / "shards"))
    assert len(shards) == left == counts["5-write/write"]["total"]
    fallen = Counter(row["filter"] for row in blocks.rows(out / "dropped"))
    assert fallen == {n.split("/")[1]: c for n in names if (c := counts[n]["dropped"])}
    assert len({row["id"] for row in shards}) == len(shards)


def test_planted_faults_are_found(processed):
    out, _ = processed
    kinds = funnel.planted(out)
    assert min(kinds[k]["reached"] for k in ("exact", "near90", "mojibake", "page", "lines")) >= 3
    for kind in ("exact", "mojibake", "page", "lines"):
        assert kinds[kind]["found"] == kinds[kind]["reached"], kind
    assert kinds["near90"]["found"] >= 0.95 * kinds["near90"]["reached"]
    assert kinds["clean"]["found"] == 0
    checked = funnel.verify(out)
    assert checked["exact_true"] == checked["exact"] > 0
    assert checked["near_true"] == checked["near"] > 0


def test_every_filter_drops_and_shows_examples(processed):
    shown = funnel.examples(processed[0])
    assert {reason.split(":")[0] for reason in shown} >= {"c4", "repetition", "exact", "near"}
    repaired = shown["repaired: mojibake"][0]
    assert repaired["before"] != repaired["after"]
    assert all(len(rows) <= funnel.EXAMPLES for rows in shown.values())
    table = funnel.funnel(processed[1])
    heads, *lines = funnel.kept(funnel.fallen(table, shown))
    assert heads[-1] == "for example" and {line[0] for line in lines} >= {"repair", "c4", "near"}
    for name, reason, n, share, example in lines:
        (row,) = (row for row in table if row["filter"] == name)
        count = (row["reasons"] | {f"repaired, {k}": v for k, v in row["repaired"].items()})[reason]
        assert int(n) == count and float(share) == round(100 * count / row["documents"], 2)
        assert len(example) > 2 and example[0] == example[-1] == "`"
    assert len(lines) > sum(len(row["reasons"]) > 0 for row in table)
    assert funnel.change("x" * 30 + "Ã©t" + "y" * 30, "x" * 30 + "ét" + "y" * 30) == (
        "x" * 14 + "Ã©t" + "y" * 15 + " → " + "x" * 14 + "ét" + "y" * 16
    )
    assert funnel.change("ab", "a") == "ab → a"


def test_shards_are_documents_with_their_sentences(processed):
    out, _ = processed
    documents = list(data.documents(data.resolve(str(out / "shards"))))
    rows = list(blocks.rows(out / "shards"))
    assert ["\n".join(paragraphs) for paragraphs in documents] == [row["text"] for row in rows]
    for row in rows:
        cuts = [0, *row["sentence_ends"]]
        sentences = [row["text"][a:b].strip() for a, b in zip(cuts, cuts[1:], strict=False)]
        assert sentences == [
            sentence for p in row["text"].split("\n") for sentence in blocks.split_sentences(p)
        ]


def test_the_documents_do_not_depend_on_the_number_of_tasks(reviews, tmp_path):
    kept = []
    for tasks in (1, 4):
        options = dict(tasks=tasks, plant=0.5, max_documents=40)
        in_process(stages(reviews, tmp_path / str(tasks), **options))
        rows = blocks.rows(tmp_path / str(tasks) / "shards")
        kept.append(sorted((row["id"], row["text"]) for row in rows))
    assert len(kept[0]) > 40 and kept[0] == kept[1]


def test_the_search_for_duplicates_keeps_the_first(processed, tmp_path):
    text = next(r["text"] for r in blocks.rows(processed[0] / "shards") if len(r["text"]) > 1500)
    near = planting.edit(text, 3, random.Random(0))
    assert near != text
    source = tmp_path / "in.jsonl"
    lines = [near, text, text, "One short line.", near]
    source.write_text("".join(json.dumps({"text": line}) + "\n" for line in lines))
    in_process(stages(source, tmp_path / "out", tasks=2))
    assert [row["id"] for row in blocks.rows(tmp_path / "out" / "shards")] == ["in.jsonl/0"]
    drops = {row["id"][-1]: row["filter"] for row in blocks.rows(tmp_path / "out" / "dropped")}
    assert drops == {"1": "near", "2": "exact", "3": "c4", "4": "exact"}


def test_files_that_are_called_alike_have_documents_of_their_own(tmp_path):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "in.txt").write_text(f"Text of folder {folder}.")
    for source in (tmp_path, f"{tmp_path}/a/in.txt+{tmp_path}/b/in.txt"):
        units = blocks.units_of(data.resolve(str(source)))
        found = blocks.ReadUnit(units, None, False)
        docs = [doc for rank in range(2) for doc in found.run(rank=rank, world_size=2)]
        assert [doc.id for doc in docs] == ["in.txt/0", "in.txt~2/0"]
        assert [doc.text[-2] for doc in docs] == ["a", "b"]


def test_a_text_that_is_named_twice_is_read_twice(tmp_path):
    units = blocks.units_of(data.resolve("sotu+sotu"))
    read = list(blocks.ReadUnit(units, 2, False).run())
    assert [doc.id for doc in read] == ["sotu/0", "sotu/1", "sotu~2/0", "sotu~2/1"]
    assert [doc.text for doc in read[:2]] == [doc.text for doc in read[2:]]


def test_a_folder_of_many_files_is_read_by_few_tasks(tmp_path, monkeypatch):
    """Each task writes a file for each of the next: 10,000 files must not make 160,000."""
    monkeypatch.setattr(blocks, "READERS", 4)
    (tmp_path / "in").mkdir()
    for i in range(10):
        (tmp_path / "in" / f"{i}.txt").write_text(f"First text of file {i}.\n\nSecond text.")
    read = stages(tmp_path / "in", tmp_path / "out", tasks=2)[0]
    assert read.tasks == 4
    counts = in_process([read])
    assert counts["1-read/source"]["total"] == 20
    rows = sorted(blocks.rows(tmp_path / "out" / "work" / "raw"), key=lambda row: row["key"])
    assert [row["id"] for row in rows] == [f"{i}.txt/{n}" for i in range(10) for n in (0, 1)]
    assert len({row["key"] for row in rows}) == 20
    assert len(list((tmp_path / "out" / "work" / "raw").iterdir())) == 4 * 2


def test_the_target_is_judged_by_all_that_was_planted(capsys):
    kinds = {kind: {"planted": 30, "reached": 20, "found": 20} for kind in planting.KINDS}
    kinds |= {"near90": {"planted": 30, "reached": 20, "found": 19}, "clean": {"found": 0}}
    assert funnel.target(kinds).startswith("target reached: exact 100.0 % (>= 100), near90 95.0 %")
    for kind, found in (("exact", 19), ("near90", 18), ("mojibake", 19), ("clean", 1)):
        worse = kinds | {kind: kinds[kind] | {"found": found}}
        assert funnel.target(worse).startswith("target missed: "), kind
    none = kinds | {"exact": {"planted": 3, "reached": 0, "found": 0}}
    assert funnel.target(none).startswith("target missed: near90 95.0 %")
    funnel.show([], none, {}, {})
    assert re.search(r"exact +3 +0 +0 +-", capsys.readouterr().out)
    del kinds["mojibake"]
    assert funnel.target(kinds).startswith("target missed: ")


def test_chinese_and_other_languages(tmp_path):
    chinese = "联合国大会由全体会员国组成，每年举行一次会议，讨论有关世界和平的重大问题。\n"
    chinese += "它的目的是维护国际和平与安全，发展各国之间的友好关系，促成国际合作。\n"
    chinese += "安全理事会有五个常任理事国，它们在表决时可以否决任何一项实质性的决议。"
    german = "Der Hund und die Katze gehen heute Abend zusammen in den Wald. " * 5
    source = tmp_path / "in.jsonl"
    source.write_text("".join(json.dumps({"text": t}) + "\n" for t in (chinese, german)))
    for wanted in ("zh", "yue"):  # Cantonese is written as Chinese
        out = tmp_path / wanted
        counts = in_process(stages(source, out, languages=(wanted,), tasks=1))
        assert [row["text"] for row in blocks.rows(out / "shards")] == [chinese]
        [fallen] = blocks.rows(out / "dropped")
        assert (fallen["filter"], fallen["reason"]) == ("language", "de")
        stages_with_peaks = {name[0] for name, block in counts.items() if block["peak_memory"]}
        assert stages_with_peaks >= set("2345")


def test_faults_planted_into_chinese_are_chinese_and_found_by_the_rules(tmp_path):
    sentences = ["联合国大会由全体会员国组成，每年举行一次会议，讨论世界和平的重大问题。",
                 "安全理事会有五个常任理事国，它们在表决时可以否决任何一项实质性的决议。",
                 "秘书长由大会根据安全理事会的推荐任命，任期五年，可以连任一次。",
                 "国际法院设在荷兰的海牙，由十五名法官组成，任期九年。"]  # fmt: skip
    rows = [{"text": "\n".join(f"第{n}条：{s}" for s in sentences)} for n in range(60)]
    source = tmp_path / "in.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    in_process(stages(source, tmp_path / "out", languages=("zh",), tasks=1, plant=1.0))
    truths = list(blocks.rows(tmp_path / "out" / "planted"))
    notices = {line for truth in truths for line in truth.get("lines", ())}
    assert notices and notices <= set(planting.CHINESE_NOTICES)
    kinds = funnel.planted(tmp_path / "out")
    assert kinds["page"]["planted"] >= kinds["page"]["reached"] == kinds["page"]["found"] > 3
    for page in planting.CHINESE_PAGES:
        left = quality.c4(page, quality.CHINESE).text
        rules = (quality.gopher_quality, quality.gopher_repetition)
        assert left is None or any(rule(left, quality.CHINESE) for rule in rules)


def test_what_the_language_filter_drops_is_no_merit_of_the_rules(tmp_path):
    (tmp_path / "planted").mkdir()
    written = {
        "planted": {"id": "a+page", "kind": "page", "of": "a"},
        "dropped": {"id": "a+page", "filter": "language", "reason": "la"},
    }
    for folder, row in written.items():
        with blocks.json_lines(tmp_path / folder / "00000.jsonl.zst") as write:
            write(row)
    assert funnel.planted(tmp_path)["page"] == {"planted": 1, "reached": 0, "found": 0}


def test_repair_leaves_what_is_right():
    for text in ("“Curly” — naïve café, ﬁne.", "全角，标点！（对）", "plain & simple"):
        assert planting.repair(text) == (text, "")
    for codec in ("latin-1", "sloppy-windows-1252"):
        assert planting.repair(planting.garble("It’s “so” — naïve.", codec)) == (
            "It’s “so” — naïve.", "mojibake",
        )  # fmt: skip
    assert planting.repair("a\x00b") == ("ab", "characters")


def test_planting_is_known_and_repeatable():
    text = 'It was the "best" of times, it wasn\'t the worst of times.\nAnd so on, and so on.'
    made = [[*planting.plant(text, str(i), 1.0, 0)] for i in range(200)]
    assert made == [[*planting.plant(text, str(i), 1.0, 0)] for i in range(200)]
    assert all([*planting.plant(text, str(i), 0.0, 0)] == [(text, str(i), {})] for i in range(9))
    truths = [truth for one in made for _, _, truth in one if truth]
    kinds = Counter(truth["kind"] for truth in truths)
    assert set(kinds) == set(planting.KINDS) and min(kinds.values()) > 20  # 40 expected, sd 5.7
    assert all(0 <= truth.get("jaccard", 1) <= 1 for truth in truths)
    edited = planting.edit(text, 3, random.Random(0))
    assert edited != text and len(edited.split()) == len(text.split())


def test_memory_is_constant(tmp_path):
    """What a task of the stages that read text holds does not grow with its documents."""
    known = "the law of and to that have with be road house river people land work year"
    words, rng, peaks = known.split(), random.Random(0), {}
    for n in (5, 20, 120):  # the first loads what is loaded once
        source, out = tmp_path / f"{n}.jsonl", tmp_path / str(n)
        with source.open("w") as file:
            for _ in range(n):
                text = " ".join(f"The {' '.join(rng.choices(words, k=9))}." for _ in range(40))
                file.write(json.dumps({"text": text}) + "\n")
        for stage in stages(source, out, plant=0.5, tasks=1):
            flow = chained(stage)
            tracemalloc.start()
            assert sum(1 for _ in flow) >= 0
            peaks[stage.name, n] = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
        assert len(list(funnel.rows(out / "shards"))) > 0.8 * n
    for name in ("1-read", "2-clean", "5-write"):
        assert peaks[name, 120] < 1.2 * peaks[name, 20], name


def test_hashes_are_written_as_they_come(tmp_path):
    """As an array they would be 900 kB here."""
    peaks = []
    for n in (100, 4000):
        documents = (Document(f"word {i}", str(i), metadata={"key": i}) for i in range(n))
        minhash = MinHash()
        tracemalloc.start()
        for _ in blocks.Hash(tmp_path / str(n), minhash).run(documents):
            pass
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        read = blocks.Hash.read(blocks.Hash.files(tmp_path / str(n)), minhash)
        assert np.concatenate(list(read))[:, 0].tolist() == list(range(n))
    assert peaks[1] < peaks[0] + 200_000
    with pytest.raises(FileNotFoundError, match="has no hashes"):
        blocks.Hash.files(tmp_path)


def test_a_large_corpus_is_searched_in_parts(tmp_path, monkeypatch):
    """Whose memory is bounded, and whose links chain the same documents."""
    minhash, rng = MinHash(), np.random.default_rng(0)
    known = rng.integers(0, 1 << 64, 10_000, np.uint64)
    hashes = known[rng.integers(0, len(known), (20_000, minhash.bands + 1))]
    rows = np.column_stack([np.arange(len(hashes), dtype=np.uint64), hashes])
    (tmp_path / "hashes").mkdir()
    for hand in range(3):
        rows[hand::3].tofile(tmp_path / "hashes" / f"{hand:05d}.uint64")

    def search(name: str, at_once: int) -> tuple[list, float]:
        monkeypatch.setattr(blocks, "AT_ONCE", at_once)
        monkeypatch.setattr(blocks, "READ_ROWS", 300)
        match = blocks.Match(tmp_path / "hashes", tmp_path / name, minhash)
        tracemalloc.start()
        for rank in range(minhash.bands + 1):
            assert not list(match.run(rank=rank, world_size=minhash.bands + 1))
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        found = [np.load(file) for file in sorted((tmp_path / name).glob("*.npy"))]
        assert len(found) == minhash.bands + 1
        return [sorted(map(tuple, pairs.tolist())) for pairs in found], peak

    (whole, most), (parts, bounded) = search("whole", 10**9), search("parts", 1700)
    assert parts == whole and all(len(pairs) > 7_000 for pairs in whole)
    pairs = 16 * max(map(len, whole))
    assert bounded - 2 * pairs < (most - pairs) / 3


def test_half_a_file_is_never_seen(tmp_path):
    with pytest.raises(RuntimeError), blocks.json_lines(tmp_path / "a.jsonl.zst") as write:
        write({"text": "\ud800"})
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []
    with blocks.json_lines(tmp_path / "a.jsonl.zst") as write:
        write({"text": "half \ud800"})
    assert [*formats.rows(tmp_path / "a.jsonl.zst")][0][1] == {"text": "half ?"}


# --- executors -----------------------------------------------------------------------------------


def alive(group):
    """How many processes of a group have not ended (Linux), whoever is to collect them."""
    states = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            state, _, of = stat.read_text().rpartition(")")[2].split()[:3]
            states += [state] if int(of) == group else []
    return sum(state != "Z" for state in states)


@pytest.mark.usefixtures("drawn")
@pytest.mark.timeout(300)
def test_killed_and_resumed_it_ends_the_same(reviews, tmp_path, capsys):
    options = dict(data=str(reviews), plant=0.5, tasks=6, max_documents=60)
    out = tmp_path / "killed"
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in options.items()]
    markers = out / "stages" / "2-clean" / "completions"
    killed = subprocess.Popen(
        [sys.executable, pipeline.__file__, *flags, f"--out={out}", "--workers=2"],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        start_new_session=True,
    )
    while killed.poll() is None and len(list(markers.glob("*"))) < 2:
        time.sleep(0.02)
    assert killed.poll() is None
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    until = time.monotonic() + 30
    while alive(killed.pid) and time.monotonic() < until:
        time.sleep(0.1)
    assert not alive(killed.pid)  # its processes noticed
    finished = {path.name: path.stat().st_mtime_ns for path in markers.iterdir()}
    assert 2 <= len(finished) < 6

    usual = pipeline.Config(**options, out=str(out), workers=1)
    with pytest.raises(UserError, match="continue it with --resume"):
        pipeline.main(usual)
    with pytest.raises(UserError, match="was begun with --plant 0.5"):
        pipeline.main(replace(usual, plant=0.1, resume=True))
    before = (reviews / "b.jsonl").read_text()
    (reviews / "b.jsonl").write_text(before + json.dumps({"text": "One more."}) + "\n")
    with pytest.raises(UserError, match="was begun with other data"):
        pipeline.main(replace(usual, resume=True))
    (reviews / "b.jsonl").write_text(before)
    pipeline.main(replace(usual, resume=True))
    assert capsys.readouterr().out.splitlines()[-1] == f"result: {out / 'result.json'}"
    assert {name: (markers / name).stat().st_mtime_ns for name in finished} == finished
    found = stages(reviews, tmp_path / "whole", plant=0.5, tasks=6, max_documents=60)
    counts = in_process(found)
    assert contents(out) == contents(tmp_path / "whole", but="work")
    result = json.loads((out / "result.json").read_text())
    assert result["documents"]["written"] == counts["5-write/write"]["total"]
    assert result["planted"] == funnel.planted(tmp_path / "whole")
    assert not (out / "work").exists() and (out / "curves.png").stat().st_size > 10_000
    assert str(tmp_path) not in json.dumps(result["metrics"])
    pipeline.main(replace(usual, resume=True))
    assert "is complete" in capsys.readouterr().out
    with pytest.raises(UserError, match="was begun with --tasks 6"):
        pipeline.main(replace(usual, tasks=3, resume=True))


@pytest.mark.usefixtures("drawn")
def test_a_run_without_a_break_states_its_speed_and_its_memory(reviews, tmp_path):
    out = tmp_path / "run"
    options = dict(data=str(reviews / "a.txt"), max_documents=20, tasks=2, workers=1)
    started = time.monotonic()
    pipeline.main(pipeline.Config(**options, out=str(out)))
    metrics = json.loads((out / "result.json").read_text())["metrics"]
    slowest = 20 / (time.monotonic() - started)
    assert slowest <= metrics["documents_per_second"]["value"] < 100 * slowest
    assert 50 < metrics["peak_memory"]["value"] < 20_000


class Killed:
    """A block whose process the second task kills, as a system does that is out of memory."""

    def __call__(self, documents, rank, world_size):
        if rank == 1:
            os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.timeout(120)
def test_a_task_that_is_killed_ends_the_run_in_one_line(tmp_path, capfd):
    stage = blocks.Stage("1-read", 4, [Killed()])
    with pytest.raises(UserError, match="broke off .killed, .*1-read/logs; go on with --resume"):
        executors.run_local([stage], tmp_path, workers=2)
    assert "Traceback" not in capfd.readouterr().err
    assert not (tmp_path / "stages" / "1-read" / "completions" / "00001").exists()


CLUSTER = {
    "sbatch": """#!{python}
import os, re, subprocess, sys
script = open(sys.argv[-1]).read()
open("{log}", "a").write(" ".join(sys.argv[1:-1]) + "\\n" + script)
last = int(re.search(r"--array=0-(\\d+)", script)[1])
for rank in range(last + 1) if "merge_stats" not in script else ():
    more = dict(SLURM_ARRAY_TASK_ID=str(rank), SLURM_NODELIST="here", RUN_OFFSET="0")
    subprocess.run(["bash", sys.argv[-1]], env=os.environ | more, check=True, stdout=2)
print("Submitted batch job", 40 + os.path.getsize("{log}") % 7)
""",
    "srun": '#!/bin/bash\nwhile [[ $1 == -* || $1 =~ ^[0-9]+$ ]]; do shift; done\nexec "$@"\n',
    "scontrol": "#!/bin/bash\necho here\n",
}


def test_slurm_runs_the_same_blocks(reviews, tmp_path, monkeypatch):
    """On a cluster of three shell commands, one task after the other."""
    tools = tmp_path / "bin"
    tools.mkdir()
    for name, text in CLUSTER.items():
        text = text.replace("{python}", sys.executable).replace("{log}", str(tmp_path / "log"))
        (tools / name).write_text(text)
        (tools / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}:{Path(sys.executable).parent}:{os.environ['PATH']}")
    options = dict(tasks=1, max_documents=20)
    found = stages(reviews / "a.txt", tmp_path / "slurm", **options)
    limits = dict(partition="fast", time="1:00:00")
    assert executors.launch_slurm(found, tmp_path / "slurm", 2, **limits)
    in_process(stages(reviews / "a.txt", tmp_path / "here", **options))
    assert contents(tmp_path / "slurm" / "shards") == contents(tmp_path / "here" / "shards")
    assert 0 < executors.slurm_seconds(tmp_path / "slurm") < 600
    assert executors.slurm_seconds(tmp_path / "here") == 0
    log = (tmp_path / "log").read_text()
    for stage in found:
        assert f"--job-name=gym-{stage.name}" in log
    assert "--partition=fast" in log and "--time=1:00:00" in log
    assert log.count("RUN_OFFSET=0 --dependency=afterok:") == len(found) - 1
    assert not executors.launch_slurm(found, tmp_path / "slurm", 2, **limits)
    (tools / "sbatch").write_text("#!/bin/bash\necho invalid partition >&2\nexit 3\n")
    with pytest.raises(UserError, match=r"exit code 3.*--slurm-partition"):
        executors.launch_slurm(
            stages(reviews / "a.txt", tmp_path / "no", **options), tmp_path / "no", 2, **limits
        )


RAY = '''
import types

class Ref:
    """What a call gave, or the error that it ended with."""
    def __init__(self, call, *args):
        try:
            self.value, self.error = call(*args), None
        except Exception as error:
            self.error = error

class Actor:
    def __init__(self, kind):
        self.kind = kind
    def options(self, **ignored):
        return self
    def remote(self):
        it, self.it = self.kind(), None
        for name in ("get_node_ip", "run_for_rank"):
            call = getattr(it, name)
            setattr(self, name, types.SimpleNamespace(remote=lambda *a, c=call: Ref(c, *a)))
        return self

def get(ref):
    if isinstance(ref, list):
        return [get(one) for one in ref]
    if ref.error:
        raise ref.error
    return ref.value

remote, put, init, kill = Actor, lambda value: value, lambda **options: None, lambda actor: None
wait = lambda refs, **options: (refs[:1], refs[1:])
ready = types.SimpleNamespace(ready=lambda: Ref(int))
util = types.SimpleNamespace(
    get_node_ip_address=lambda: "here", placement_group=lambda bundles: ready,
    remove_placement_group=lambda group: None,
)
'''
RAY_ERRORS = "ObjectLostError RayActorError TaskCancelledError WorkerCrashedError"


@pytest.mark.timeout(300)
def test_ray_in_a_process_of_its_own():
    """Datatrove forks inside a thread, and may hang beside the threads of earlier tests."""
    if "PYTEST_XDIST_WORKER" not in os.environ:
        pytest.skip("the next test is not beside others")
    alone = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    one = f"{__file__}::{test_ray_runs_the_same_blocks_and_names_what_failed.__name__}"
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", one]
    done = subprocess.run(command, env=alone, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0 and "1 passed" in done.stdout, done.stdout


@pytest.mark.skipif("PYTEST_XDIST_WORKER" in os.environ, reason="the test before does it")
def test_ray_runs_the_same_blocks_and_names_what_failed(reviews, tmp_path, monkeypatch):
    """On a cluster of a stand-in for Ray's API, one task after the other."""
    (tmp_path / "lib" / "ray").mkdir(parents=True)
    (tmp_path / "lib" / "ray-0.dist-info").mkdir()
    (tmp_path / "lib" / "ray-0.dist-info" / "METADATA").write_text("Name: ray\nVersion: 0\n")
    (tmp_path / "lib" / "ray" / "__init__.py").write_text(RAY)
    errors = "".join(f"class {name}(Exception): pass\n" for name in RAY_ERRORS.split())
    (tmp_path / "lib" / "ray" / "exceptions.py").write_text(errors)
    for name in [name for name in sys.modules if name.split(".")[0] == "ray"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.syspath_prepend(tmp_path / "lib")
    source, out, ended = tmp_path / "in", tmp_path / "ray", []
    source.mkdir()
    (source / "a.txt").write_text((reviews / "a.txt").read_text())
    (source / "b.jsonl").write_text('{"body": "It has no text."}\n')
    options = dict(tasks=2, max_documents=10)
    told = f"1-read: 1 of 2 tasks failed; see {out}/stages/1-read/logs, mend it and go on with --re"
    with pytest.raises(UserError, match=re.escape(told)):
        executors.run_ray(stages(source, out, **options), out, 2, ended.append)
    assert not ended and not (out / "stages" / "2-clean").exists()
    (source / "b.jsonl").write_text('{"text": "It has a text."}\n')
    found = stages(source, out, **options)
    executors.run_ray(found, out, 2, ended.append)
    assert ended == found
    in_process(stages(source, tmp_path / "here", **options))
    assert contents(out / "shards") == contents(tmp_path / "here" / "shards")
    executors.run_ray(found, out, 2, ended.append)
    assert ended == found  # nothing was left to do
    for name in ("ray", "ray.exceptions"):
        del sys.modules[name]


@pytest.mark.timeout(600)
@pytest.mark.skipif(not importlib.util.find_spec("ray"), reason="needs Ray: pip install ray")
def test_a_real_ray_writes_what_local_does(reviews, tmp_path):
    options = dict(data=str(reviews), plant=0.5, tasks=3, max_documents=60, workers=2)
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in options.items()]
    for executor in ("local", "ray"):
        command = [sys.executable, pipeline.__file__, *flags, "--executor", executor]
        done = subprocess.run([*command, "--out", tmp_path / executor], timeout=280)
        assert done.returncode == 0
    assert contents(tmp_path / "ray" / "shards") == contents(tmp_path / "local" / "shards")


def test_blocks_travel_to_other_machines(reviews, tmp_path):
    for stage in stages(reviews, tmp_path, plant=0.1):
        assert len(pickle.loads(pickle.dumps(stage.blocks))) == len(stage.blocks)


# --- bad input -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (dict(data="nowhere.txt"), "no such file"),
        (dict(data="{tmp}/empty.txt"), "no text in it"),
        (dict(data="{tmp}/columns.jsonl"), "no `text` in this row"),
        (dict(data="{tmp}/cut.txt.gz"), "cut.txt.gz:1: broken or cut off"),
        (dict(data="{tmp}/columns.jsonl", workers=2, tasks=2), "no `text` in this row"),
        (dict(out="{tmp}/empty.txt/run"), "Not a directory"),
        (dict(plant=2.0), "--plant 2.0 must be a share"),
        (dict(tasks=0), "--tasks 0 must be 1 or more"),
        (dict(languages=("english",)), "codes of ISO 639"),
        (dict(languages=("xx",), max_documents=3), "nothing of it is left"),
        (dict(bands=1000, rows=100), "--rows 100 must be at most 4096 divided by --bands"),
        (dict(executor="ray"), "pip install ray"),
        (dict(executor="slurm"), "no sbatch here"),
    ],
)
def test_bad_input_is_one_line(options, complaint, tmp_path, capfd, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)  # as where it is not installed
    (tmp_path / "empty.txt").write_text("\n \n")
    (tmp_path / "columns.jsonl").write_text('{"body": "It has no text."}\n' * 2)
    (tmp_path / "cut.txt.gz").write_bytes(b"\x1f\x8b\x08\x00cut")
    usual = dict(data="sotu", tasks=1, workers=1, out=str(tmp_path / "out"))
    given = {k: v.replace("{tmp}", str(tmp_path)) if isinstance(v, str) else v
             for k, v in options.items()}  # fmt: skip
    with pytest.raises((UserError, OSError), match=re.escape(complaint)):
        pipeline.main(pipeline.Config(**usual | given))
    assert "Traceback" not in capfd.readouterr().err


def test_bad_rows_can_be_left_out(tmp_path):
    source = tmp_path / "in.jsonl"
    source.write_text('{"text": "Good."}\nnot json\n{"body": 1}\n')
    counts = in_process(stages(source, tmp_path / "out", skip_bad_lines=True, tasks=1))
    assert counts["1-read/source"]["total"] == 1
    assert counts["1-read/source"]["bad_lines"] == 2


def test_bad_rows_of_a_hub_dataset_can_be_left_out(tmp_path, monkeypatch):
    (tmp_path / "set" / "data").mkdir(parents=True)
    table = pa.table({"text": ["Good.", None, "Better."]})
    parquet.write_table(table, tmp_path / "set" / "data" / "train-00000-of-00001.parquet")
    monkeypatch.delenv("GYM_DATA", raising=False)
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setitem(data.HUB, "minipile", (str(tmp_path / "set"), None))
    with pytest.raises(UserError, match="skip-bad-lines"):
        in_process(stages("minipile", tmp_path / "all", tasks=1))
    counts = in_process(stages("minipile", tmp_path / "good", skip_bad_lines=True, tasks=1))
    assert counts["1-read/source"]["total"] == 2 and counts["1-read/source"]["bad_lines"] == 1


def test_a_document_of_one_long_line(tmp_path):
    doc = Document("word " * 400_000, "long", metadata={"key": 0, "language": "en"})
    blocks_ = [blocks.Repair(tmp_path, tmp_path), blocks.Hash(tmp_path / "h", MinHash())]
    flow = iter([doc])
    for block in blocks_:
        flow = block.run(flow)
    assert len(list(flow)) == 1


def test_a_line_that_is_far_too_long_costs_little(tmp_path, monkeypatch):
    """It falls by its number of words, before the rules that count its n-grams."""
    (tmp_path / "in.txt").write_text("The men and the women of the law have to go. " * 12_000)
    monkeypatch.setattr(quality, "Ngrams", None)
    in_process(stages(tmp_path / "in.txt", tmp_path / "out", tasks=1))
    (fallen,) = blocks.rows(tmp_path / "out" / "dropped")
    assert (fallen["filter"], fallen["reason"]) == ("statistics", "many words")
