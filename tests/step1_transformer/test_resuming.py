import pytest

from common import cli
from step1_transformer import resuming


def test_what_ran_side_by_side_counts_once():
    def run(ended, seconds):
        return {"date": f"2026-01-01T00:0{ended}:00+00:00", "seconds": seconds}

    assert resuming.seconds_of([]) == 0
    one_by_one = [run(2, 60), run(4, 90), run(3, 30)]
    assert resuming.seconds_of(one_by_one) == 60 + 90 + 30 - 30  # the last two by half a minute
    assert resuming.seconds_of([run(5, 240), run(3, 60), run(9, 1.5)]) == 240 + 1.5


@pytest.mark.parametrize(
    ("stop", "told", "code", "said"),
    [
        (cli.Interrupted(15, "the slice is over"), "", 15, "the slice is over"),
        (cli.Interrupted(0, "its own command"), "stopped at seed 1", 0, "stopped at seed 1"),
        (KeyboardInterrupt(), "", 2, "stopped"),
    ],
)
def test_a_stop_tells_how_to_go_on_with_the_whole(stop, told, code, said, tmp_path, monkeypatch):
    monkeypatch.setattr("sys.argv", ["grid.py", "--epochs", "3"])
    with pytest.raises(cli.Interrupted) as caught, resuming.tells_how(tmp_path, told):
        raise stop
    assert caught.value.signum == code
    first, second = str(caught.value).splitlines()
    assert first == f"{said}; go on with:"
    assert second.startswith("python ") and second.endswith(f"--out {tmp_path} --resume")
