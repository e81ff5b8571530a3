import pytest

from common import report, subruns
from step4_finetune_glue import finetune, remedy_table
from tests import scripts
from tests.step4_finetune_glue import small

pytestmark = pytest.mark.usefixtures("one_thread_each")


@pytest.mark.usefixtures("drawn")
@pytest.mark.timeout(600)  # two processes, on a machine that may be busy
def test_variants_differ_from_the_base_in_their_flag_alone(tmp_path, capfd, monkeypatch):
    data, bert = small.glue(tmp_path / "glue"), small.bert(tmp_path / "bert")
    flags = ["--preset", "smoke", "--task", "RTE", "--data", data, "--model", bert]
    flags += ["--precision", "fp32", "--variants", "no_warmup", "--parallel", 2]
    out = tmp_path / "remedies"
    with monkeypatch.context() as patch:
        patch.setattr(subruns, "call_all", scripts.in_this_process(finetune))
        assert small.run("remedies", *flags, "--seeds", 1, "--out", out) == 0
    told = capfd.readouterr().out
    assert told.splitlines()[-1] == f"result: {out}/result.json"
    assert told.count("$ finetune.py") == 2

    # One more seed: only that is trained
    assert small.run("remedies", *flags, "--seeds", 2, "--out", out, "--resume") == 0
    told = capfd.readouterr().out
    assert told.count("$ finetune.py") == 2 and "no warm-up" in told
    assert (out / "curves.png").stat().st_size > 10_000
    result = small.result(out)
    each = {}
    for name in ("base", "no_warmup"):
        ones = [small.result(out / name / f"seed-{seed}") for seed in (0, 1)]
        assert [one["seeds"] for one in ones] == [[0], [1]]
        each[name] = [one["metrics"]["accuracy"]["value"] for one in ones]
        config = ones[0]["config"]
        assert config["warmup_ratio"] == (0.1 if name == "base" else 0)
        assert result["metrics"][f"accuracy {name}"]["value"] == sum(each[name]) / 2
    assert result["scores_per_seed"] == each and result["seeds"] == [0, 1]
    apart = [here - there for here, there in zip(each["no_warmup"], each["base"], strict=True)]
    assert result["differences"]["no_warmup"]["accuracy"]["value"] == sum(apart) / 2
    assert [line[0] for line in result["table"]["rows"]] == ["", "base", "no warm-up"]


def test_the_table():
    def seed(score: float, collapsed: bool = False) -> dict:
        return {"metrics": {"accuracy": {"value": score}}, "collapsed": collapsed}

    found = {"base": [seed(60), seed(62)], "cls": [seed(63), seed(53, True)]}
    metrics, differences = remedy_table.summary(found, ("accuracy",))
    assert differences["cls"]["accuracy"]["value"] == -3 and "base" not in differences
    rows = remedy_table.rows(found, metrics, differences)
    assert rows[1] == ["base", "61.0 ± 1.4", "", "60.0 to 62.0", "0 of 2"]
    # sd of 3 and -9 is 8.49; of their mean, 6
    assert rows[2] == ["head reads [CLS]", "58.0 ± 7.1", "-3.0 ± 6.0", "53.0 to 63.0", "1 of 2"]
    heads, *lines = report.columns(rows).splitlines()
    assert len({len(line) for line in (heads, *lines)}) == 1 and lines[1].startswith("head reads")


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (["--seeds", 0], "--seeds 0"),
        (["--variants", "prayer"], "no variant 'prayer'; there are: no_warmup"),
        (["--settings", "impl="], "must be flags without dashes"),
        (["--settings", "=hf"], "must be flags without dashes"),
        (["--task", "IMDB"], "unknown task"),
    ],
)
def test_what_cannot_be_compared(given, told, tmp_path, capfd):
    assert small.run("remedies", *given, "--out", tmp_path / "remedies") == 2
    assert told in capfd.readouterr().err
