"""Scripts inside a script: several at once, and what happens when some or all must stop."""

import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from common import cli, subruns

SCRIPT = """
import os, pathlib, signal, sys, time
here, does = pathlib.Path(sys.argv[1]), sys.argv[2]
def save(signum, frame):
    here.with_suffix(".saved").touch()
    sys.exit(128 + signum)
for signum in (signal.SIGINT, signal.SIGTERM):
    signal.signal(signum, save)
here.write_text(os.environ.get("OMP_NUM_THREADS", ""))
if does == "wait":
    time.sleep(30)
if does == "bad input":
    print("error: --x 0 must be 1 or more", file=sys.stderr)
    sys.exit(2)
sys.exit({"slice": 75, "wrong": "first\\nerror: the last line"}.get(does, 0))
"""


@pytest.fixture
def command(tmp_path):
    """command(name, does): a script that leaves the file `name`, and then does something."""
    (tmp_path / "script.py").write_text(SCRIPT)
    return lambda name, does: subruns.command_of(tmp_path / "script.py", tmp_path / name, does)


def appears(path, seconds=20):
    until = time.monotonic() + seconds
    while not path.exists() and time.monotonic() < until:
        time.sleep(0.02)
    return path.exists()


def test_the_command_line(tmp_path):
    command = subruns.command_of(tmp_path, "--resume", launch=("torchrun", "-x"), max_steps=3)
    told = [sys.executable, "-m", "torchrun", "-x", str(tmp_path), "--resume", "--max-steps=3"]
    assert command == told


def test_a_slice_is_shared():
    assert subruns.Slice(None).left() is None and not subruns.Slice(None).over()
    assert 0.9 < subruns.Slice(1.0).left() <= 1 and not subruns.Slice(1.0).over()
    assert 0 < subruns.Slice(1e-9).left() < 1e-3 and subruns.Slice(1e-9).over()


def test_two_at_a_time_share_the_cores(command, tmp_path, monkeypatch):
    monkeypatch.setattr(subruns.runs, "hardware", lambda: {"cores": 6})
    most, running = 0, set()
    start = subruns._start

    def counting(*arguments):
        nonlocal most
        process = start(*arguments)
        running.add(process)
        most = max(most, sum(p.poll() is None for p in running))
        return process

    monkeypatch.setattr(subruns, "_start", counting)
    subruns.call_all((command(f"{i}.txt", "end") for i in range(5)), at_once=2)
    assert [(tmp_path / f"{i}.txt").read_text() for i in range(5)] == ["3"] * 5
    assert most <= 2


def test_several_at_a_time_take_a_gpu_each(tmp_path, monkeypatch):
    """And that on which the fewest run, among those that this process may use."""
    script = tmp_path / "script.py"
    script.write_text(
        "import os, pathlib, sys, time\n"
        "pathlib.Path(sys.argv[1]).write_text(os.environ['CUDA_VISIBLE_DEVICES'])\n"
        "time.sleep(float(sys.argv[2]))\n"
    )
    monkeypatch.setattr(subruns.torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,3")

    def commands():
        yield subruns.command_of(script, tmp_path / "a", 0)
        yield subruns.command_of(script, tmp_path / "b", 3)
        assert appears(tmp_path / "b")
        for name in "cd":
            yield subruns.command_of(script, tmp_path / name, 0)

    subruns.call_all(commands(), at_once=2)
    assert [(tmp_path / name).read_text() for name in "abcd"] == ["5", "3", "5", "5"]
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    assert subruns.gpus() == ["0", "1"]


def test_a_single_one_has_them_all(command, tmp_path, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    subruns.call_all([command("one.txt", "end")])
    assert (tmp_path / "one.txt").read_text() == ""


def test_one_after_the_other(command, tmp_path):
    subruns.call_all(command(f"{i}.txt", "end") for i in range(3))
    assert all((tmp_path / f"{i}.txt").exists() for i in range(3))


def test_when_one_fails_the_others_save(command, tmp_path):
    def commands():
        yield command("long.txt", "wait")
        assert appears(tmp_path / "long.txt")
        yield command("bad.txt", "wrong")
        yield command("never.txt", "end")

    with pytest.raises(cli.UserError, match=r"^script\.py: the last line; mend it"):
        subruns.call_all(commands(), at_once=2, quiet=True)
    assert (tmp_path / "long.saved").exists() and not (tmp_path / "never.txt").exists()


@pytest.mark.parametrize("quiet", [False, True])
def test_bad_input_is_told_once(command, tmp_path, quiet):
    outer = "from common import cli, subruns; call = lambda _: "
    outer += f"subruns.call_all([{command('a.txt', 'bad input')!r}], quiet={quiet}); "
    outer += "cli.run(call, cli.RunConfig, {})"
    ended = subprocess.run([sys.executable, "-c", outer], capture_output=True, text=True)
    assert ended.returncode == 2 and ended.stdout == ""
    told = "script.py: --x 0 must be 1 or more; mend it and go on with --resume"
    assert ended.stderr == f"error: {told if quiet else '--x 0 must be 1 or more'}\n"


def test_when_the_slice_is_over_nothing_more_begins(command, tmp_path):
    with pytest.raises(cli.Interrupted, match=r"script\.py was stopped") as stop:
        subruns.call_all([command("a.txt", "slice"), command("b.txt", "end")])
    assert stop.value.signum == 0 and not (tmp_path / "b.txt").exists()


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_reaches_all(signum, command, tmp_path):
    def send():
        if all(appears(tmp_path / name) for name in ("a.txt", "b.txt")):
            os.kill(os.getpid(), signum)

    sender = threading.Thread(target=send)
    sender.start()
    handler = signal.getsignal(signum)
    commands = [command(f"{name}.txt", "wait") for name in "abc"]
    with pytest.raises(cli.Interrupted) as stop:
        subruns.call_all(commands, at_once=2)
    sender.join()
    assert stop.value.signum == signum and signal.getsignal(signum) == handler
    assert [(tmp_path / f"{name}.saved").exists() for name in "abc"] == [True, True, False]


@pytest.mark.skipif(sys.platform != "linux", reason="prctl")
def test_kill_9_leaves_nobody_behind(command, tmp_path):
    outer = f"from common import subruns; subruns.call_all([{command('in.txt', 'wait')!r}])"
    process = subprocess.Popen([sys.executable, "-c", outer])
    try:
        assert appears(tmp_path / "in.txt")
    finally:
        process.kill()
        process.wait()
    assert appears(tmp_path / "in.saved")
