"""The rules of the house that no linter knows."""

import ast
import json
import re
import subprocess
import sys
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
STEPS = sorted(path.parent.name for path in ROOT.glob("step[0-9]_*/__init__.py"))
# Paths that exist on one machine only, and none that a reader could follow.
FOREIGN = re.compile(r"(?<![\w.~}])/(home|root|tmp|mnt|Users)/\w|\.\./shared")
ALLOWED = {".ci/run", "tests/test_repository.py"}


def files():
    """Files of the repository, committed or about to be."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    if listed.returncode:
        pytest.skip("not a git checkout")
    return [ROOT / name for name in listed.stdout.splitlines() if (ROOT / name).is_file()]


def modules(*folders):
    return [path for folder in folders for path in sorted((ROOT / folder).rglob("*.py"))]


def is_script(path):
    return re.search(r'^if __name__ == "__main__":', path.read_text(), re.M) is not None


def name_of(path):
    return ".".join(path.relative_to(ROOT).with_suffix("").parts)


def imports(path):
    """Full names of everything that a module imports, at its top or inside functions."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: steps import by full name"
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def test_the_text_speaks_only_of_the_project():
    found = []
    for path in files():
        name = str(path.relative_to(ROOT))
        data = path.read_bytes()
        if name in ALLOWED or b"\0" in data[:8192]:
            continue
        for number, line in enumerate(data.decode("utf-8").splitlines(), start=1):
            if FOREIGN.search(line):
                found.append(f"{name}:{number}: {line.strip()[:120]}")
    assert not found, "\n".join(found)


def test_nothing_imports_a_script():
    scripts = {name_of(path) for path in modules(*STEPS) if is_script(path)}
    for path in modules("common", *STEPS):
        assert not imports(path) & scripts, f"{name_of(path)} imports a script"


def test_imports_point_down():
    for path in modules("common"):
        tops = {name.split(".")[0] for name in imports(path)}
        assert not tops & set(STEPS), f"{name_of(path)} imports a step"
    for i, step in enumerate(STEPS):
        for path in modules(step):
            tops = {name.split(".")[0] for name in imports(path)}
            assert not tops & set(STEPS[i + 1 :]), f"{name_of(path)} imports a later step"


def test_every_step_is_known_to_the_import_linter():
    settings = (ROOT / "pyproject.toml").read_text()
    for step in STEPS:
        assert f'"{step}"' in re.search(r"root_packages = \[(.*)\]", settings)[1], step


def test_a_script_reads_in_one_look():
    for path in modules(*STEPS):
        if is_script(path):
            lines = len(path.read_text().splitlines())
            assert lines < 200, f"{name_of(path)} has {lines} lines"


def code_lines(path):
    """Lines that hold code: no blank line, comment or docstring."""
    tree = ast.parse(path.read_text())
    docs = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            docs |= set(range(node.lineno, node.end_lineno + 1))
    lines = enumerate(path.read_text().splitlines(), start=1)
    return sum(bool(t.strip()) and t.strip()[0] != "#" and n not in docs for n, t in lines)


def test_common_stays_thin():
    assert sum(map(code_lines, modules("common"))) < 1750


def requirements():
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    return [line for line in (line.split("#")[0].strip() for line in lines) if line]


def test_requirements_are_exact_and_end_with_the_gym_itself():
    *others, last = requirements()
    assert last == "-e ."
    assert all(re.fullmatch(r"[\w.-]+==[\w.]+", line) for line in others)


def test_everything_imported_is_required():
    required = {line.split("==")[0].replace("_", "-").lower() for line in requirements()}
    owners = packages_distributions()
    own = {"common", "tests", *STEPS}
    for path in modules("common", *STEPS, "tests"):
        tops = {name.split(".")[0] for name in imports(path)} - own - sys.stdlib_module_names
        for top in tops:
            names = {name.replace("_", "-").lower() for name in owners.get(top, [top])}
            assert names & required, f"{name_of(path)} imports {top}: not in requirements.txt"


def test_the_readme_shows_what_make_run_does():
    recipe = (ROOT / "Makefile").read_text().split("\nrun: ")[1].split("\n\n")[0]
    recipe = recipe.replace("$(bin)/", "").replace("$(bert)", "runs/step2_bert")
    commands = [line.strip() for line in recipe.splitlines()[1:]]
    assert len(commands) == 7 and "\n".join(commands) in (ROOT / "README.md").read_text()


def kept(name):
    """The metrics of a kept result."""
    return json.loads((ROOT / "notes" / "results" / f"{name}.json").read_text())["metrics"]


def test_the_readme_shows_what_make_run_printed():
    readme, scores = (ROOT / "README.md").read_text(), kept("step2_bert-tour-evaluate")
    for metric, title in (("mlm_loss", "MLM loss (nats)"), ("nsp_accuracy", "NSP accuracy (%)")):
        ours, baseline = (scores[name]["value"] for name in (metric, f"baseline_{metric}"))
        assert f"{title:28}{ours:12.3f}{baseline:12.3f}\n" in readme
    for start in ("random", "pretrained"):
        accuracy = kept(f"step2_bert-tour-rt-{start}")["accuracy"]
        told = f"  BERT, {start} weights, {accuracy['n']} seeds"
        assert f"{told:38} {accuracy['value']:.2f} ± {accuracy['sd']:.2f}\n" in readme


@pytest.mark.parametrize(
    ("name", "told", "others", "measured", "ratio"),
    [
        *(
            (f"step2_bert-benchmark-{size}", f"BERT-{size}, pretraining, tokens/s",
             ["trainer_fp32", "trainer_bf16"], "tokens_per_second", "ratio")
            for size in ("tiny", "mini")
        ),
        ("step4_finetune_glue-benchmark-rt", "MiniLM, fine-tuning, seconds an epoch",
         ["trainer", "trainer-tuned"], "seconds", "speed"),
        ("step4_finetune_glue-benchmark-rt-fp32", "the same on slower cores, without bf16",
         ["trainer", "trainer-tuned"], "seconds", "speed"),
    ],
)  # fmt: skip
def test_the_readme_tells_how_fast_we_are(name, told, others, measured, ratio):
    scores, form = kept(name), ".1f" if measured == "seconds" else ",.0f"
    cells = [
        f"{scores[f'{system}/{measured}']['value']:{form}} "
        f"({scores[f'{system}/{ratio}']['value']:.1f}x)"
        for system in (*others, "ours")
    ]
    assert f"| {told} | {' | '.join(cells)} |\n" in (ROOT / "README.md").read_text()


def test_the_notes_tell_what_a_pretraining_is_worth():
    notes = (ROOT / "step2_bert" / "notes.md").read_text()
    rows = {  # fine-tuned from: what pretraining gave, if any
        "ablation-rt-random-ten-seeds": None,
        "ablation-rt-counted": None,
        "ablation-rt-random-embeddings": "ablation-random-embeddings",
        "ablation-rt-pretrained-ten-seeds": "ablation-counted-embeddings",
    }
    for tuned, pretrained in rows.items():
        accuracy = kept(f"step2_bert-{tuned}")["accuracy"]
        loss = kept(f"step2_bert-{pretrained}")["mlm_loss"] if pretrained else None
        told = f"{loss['value']:.2f}" if loss else "–"
        assert f"| {told} | {accuracy['value']:.1f} ± {accuracy['sd']:.1f} |\n" in notes


TO_REPEAT_IT = {
    "step": str, "script": str, "system": str, "preset": str, "dataset": str, "split": str,
    "metrics": dict, "compare_to": list, "model": dict | None, "tokens": int | None,
    "seconds": int | float, "tokens_per_second": int | float | None, "hardware": dict,
    "seeds": list, "command": str, "commit": str, "config": dict, "date": str,
}  # fmt: skip


@pytest.mark.parametrize(
    "path", sorted((ROOT / "notes" / "results").glob("*.json")), ids=lambda path: path.stem
)
def test_a_kept_result_says_all_that_it_takes_to_repeat_it(path):
    kept = json.loads(path.read_text())
    wrong = [key for key, kind in TO_REPEAT_IT.items() if not isinstance(kept.get(key, ...), kind)]
    assert not wrong
    script = ROOT / kept["step"] / f"{kept['script']}.py"
    assert script.is_file() and f"{kept['step']}/{kept['script']}.py" in kept["command"]
    assert re.fullmatch(r"[0-9a-f]{12}(-dirty)?", kept["commit"])
    assert kept["hardware"].keys() >= {"device", "cpu", "cores", "torch"}
    for name, metric in kept["metrics"].items():
        assert metric.keys() == {"value", "sd", "n", "unit", "higher_is_better"}, name
        assert metric["n"] > 1 or metric["sd"] is None, name
