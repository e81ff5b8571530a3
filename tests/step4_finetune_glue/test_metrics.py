from pathlib import Path

import numpy as np
import pytest
import scipy.stats
import sklearn.metrics
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from common.cli import UserError
from step4_finetune_glue import metrics, tasks

pytestmark = pytest.mark.filterwarnings("ignore:A single label was found")


def pairs(values, dtype):
    """Two arrays (N,) of one length."""
    lengths = st.integers(2, 40)
    return lengths.flatmap(lambda n: st.tuples(*[hnp.arrays(dtype, n, elements=values)] * 2))


BINARY = pairs(st.integers(0, 1), np.int64)
SCORES = pairs(st.integers(-20, 20).map(lambda i: i / 4), np.float64)  # many ties


@given(BINARY)
def test_accuracy_and_f1_equal_scikit_learn(pair):
    said, truth = pair
    assert metrics.accuracy(said, truth) == sklearn.metrics.accuracy_score(truth, said)
    theirs = sklearn.metrics.f1_score(truth, said, zero_division=0)
    assert metrics.f1(said, truth) == pytest.approx(theirs, abs=1e-12)


@given(st.one_of(BINARY, pairs(st.integers(0, 3), np.int64)))
def test_matthews_equals_scikit_learn_for_any_number_of_classes(pair):
    said, truth = pair
    theirs = sklearn.metrics.matthews_corrcoef(truth, said)
    assert metrics.matthews(said, truth) == pytest.approx(theirs, abs=1e-12)


@given(SCORES)
def test_correlations_equal_scipy_where_it_has_one(pair):
    said, truth = pair
    for ours, theirs in (
        (metrics.pearson, scipy.stats.pearsonr),
        (metrics.spearman, scipy.stats.spearmanr),
    ):
        if np.ptp(said) and np.ptp(truth):
            assert ours(said, truth) == pytest.approx(theirs(said, truth)[0], abs=1e-9)
        else:
            assert ours(said, truth) == 0


@given(hnp.arrays(np.float64, st.integers(1, 50), elements=st.integers(0, 9).map(float)))
def test_ranks_equal_scipy_with_ties(values):
    assert metrics.ranks(values).tolist() == scipy.stats.rankdata(values).tolist()


@given(st.floats(-5, 5), st.integers(2, 30))
def test_constant_predictions_score_nothing(constant, n):
    truth = np.arange(n) % 2
    same = np.full(n, constant)
    assert metrics.pearson(same, truth) == metrics.spearman(same, truth) == 0
    for label in (0, 1):
        assert metrics.matthews(np.full(n, label), truth) == 0
    assert metrics.f1(np.zeros(n, int), truth) == 0  # no member of class 1 found
    assert metrics.f1(np.zeros(n, int), np.zeros(n, int)) == 0  # and none there: 0/0
    assert metrics.collapsed(same)


@pytest.mark.parametrize("scale", [1e-200, 1e-8, 1.0, 1e200])
def test_pearson_holds_at_any_scale(scale):
    x = np.array([1.0, 2.0, 4.0, 3.0])
    assert metrics.pearson(x * scale, x) == pytest.approx(1)
    assert metrics.pearson(-x * scale, x) == pytest.approx(-1)


def test_matthews_does_not_overflow_on_a_set_as_large_as_qqp():
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 2, 400_000)
    said = np.where(rng.random(400_000) < 0.8, truth, 1 - truth)
    theirs = sklearn.metrics.matthews_corrcoef(truth, said)
    assert metrics.matthews(said, truth) == pytest.approx(theirs, abs=1e-12)


@pytest.fixture(scope="module")
def evaluate_module(tmp_path_factory):
    import evaluate

    def load(task):
        cache = tmp_path_factory.mktemp("cache")
        path = str(Path(__file__).with_name("local_metric.py"))
        return evaluate.load(path, task.hub_config, cache_dir=str(cache))

    return load


@pytest.mark.parametrize("name", tasks.TASKS)
def test_every_task_scores_as_a_module_of_evaluate_does(evaluate_module, name):
    task, rng = tasks.TASKS[name], np.random.default_rng(len(name))
    truth = rng.integers(0, task.n_classes, 200)
    logits = rng.normal(size=(200, task.n_classes))
    if task.kind == "regression":
        truth = rng.integers(0, 21, 200) / 4
        logits = truth[:, None] + rng.normal(size=(200, 1))
    said = metrics.predictions(task, logits)
    found = evaluate_module(task).compute(predictions=said, references=truth)
    ours = metrics.score(task, said, truth)
    assert tuple(ours) == task.metrics
    for metric, value in ours.items():
        assert value == pytest.approx(100 * found[metric], abs=1e-8)


def test_the_scores_of_a_regression_are_cut_to_its_range():
    logits = np.array([[-1.0], [2.5], [7.0]])
    assert metrics.predictions(tasks.TASKS["STS-B"], logits).tolist() == [0, 2.5, 5]


def test_a_run_is_collapsed_when_it_says_one_thing_only():
    assert metrics.collapsed(np.array([1, 1, 1])) and not metrics.collapsed(np.array([1, 0, 1]))
    assert metrics.collapsed(np.array([2.70, 2.71, 2.74]))  # what a collapsed regression says
    assert metrics.collapsed(np.array([2.7, 2.7 + 1e-9])) and not metrics.collapsed(
        np.array([2.7, 2.8])
    )


@pytest.mark.parametrize(
    ("said", "truth", "told"),
    [
        ([0, 1], [0], "give one for each row"),
        ([], [], "give one for each row"),
        ([np.nan, 1.0], [0, 1], "not a finite number"),
    ],
)
def test_what_cannot_be_scored_is_an_error(said, truth, told):
    with pytest.raises(UserError, match=told):
        metrics.score(tasks.TASKS["STS-B"], np.array(said), np.array(truth))


@settings(max_examples=30)
@given(SCORES)
def test_spearman_knows_order_only(pair):
    said, truth = pair
    assert metrics.spearman(np.exp(said), truth) == pytest.approx(metrics.spearman(said, truth))
