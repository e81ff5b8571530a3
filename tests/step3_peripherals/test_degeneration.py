import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from step3_peripherals import degeneration

texts = hnp.arrays("int64", (3, 12), elements=st.integers(0, 4))


@given(texts, st.integers(1, 5))
def test_n_grams_counted_by_hand(texts, n):
    grams = [[tuple(row[i : i + n]) for i in range(13 - n)] for row in texts.tolist()]
    repeated = [1 - len(set(row)) / len(row) for row in grams]
    assert degeneration.repetition(texts, n) == pytest.approx(100 * np.mean(repeated))
    together = [gram for row in grams for gram in row]
    share = len(set(together)) / len(together)
    assert degeneration.distinct(texts, n) == pytest.approx(100 * share)


def test_zipfs_law_gives_back_its_exponent():
    counts = np.round(1e6 / np.arange(1, 200) ** 0.9).astype(int)
    text = np.repeat(np.arange(1, 200), counts)[None]
    assert degeneration.zipf(text) == pytest.approx(0.9, abs=1e-3)


def test_one_token_over_and_over_has_no_ranks_and_is_measured_all_the_same():
    found = degeneration.measure(np.ones((2, 9), int), np.ones((2, 9)))
    assert found["repetition"] > 80 and np.isnan(found["zipf"])
    other = found | {"repetition": found["repetition"] - 2, "zipf": 1.0}
    both = degeneration.metrics([found, other])
    assert "zipf" not in both and both["repetition"]["sd"] == pytest.approx(2**0.5)
    assert degeneration.means({"greedy": [found, other]})["greedy"]["token_loss"] == 1
    rows = degeneration.rows({"greedy": [found, other], "human": [other, other]})
    assert rows[1][0] == "greedy" and rows[1][1] == "1.00" and rows[1][-1] == "–"
    assert " ± 1.41" in rows[1][2] and rows[2][-1] == "1.00"


def test_surprise_is_the_cross_entropy_of_what_follows_the_prompt():
    torch.manual_seed(0)
    table, texts = torch.randn(7, 7), torch.randint(7, (4, 9))
    found = degeneration.surprise(lambda ids: table[ids], texts, 3)
    expected = torch.nn.functional.cross_entropy(
        table[texts[:, 2:-1]].flatten(0, 1), texts[:, 3:].flatten(), reduction="none"
    )
    torch.testing.assert_close(found, expected.view(4, 6))
    with pytest.raises(ValueError, match="above 0 and below 9"):
        degeneration.surprise(lambda ids: table[ids], texts, 0)


def test_targets_are_told_of_what_was_compared():
    human = dict(token_loss=3.0, repetition=1.0, distinct=50.0, zipf=1.0)
    found = {degeneration.HUMAN: human, "greedy": human | {"repetition": 20.0}}
    found |= {"beam 4": human | {"repetition": 19.0}, "sampling": human}
    found |= {"top-p 0.95": human | {"token_loss": 2.75, "zipf": 1.2}}
    told = degeneration.targets(found)
    assert [line.split(":")[0].split()[1] for line in told] == [
        "reached", "missed", "reached", "missed",
    ]  # fmt: skip
    assert [line.split(":")[1].split()[0] for line in told] == ["greedy", "beam", "top-p", "top-p"]
    assert degeneration.targets({name: found[name] for name in ("human", "sampling")}) == []
