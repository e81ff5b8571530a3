import signal

import pytest


@pytest.fixture
def one_thread_each(monkeypatch):
    """For scripts that start others: a core for each of these, and no handler left behind."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    handler = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, handler)
