"""A killed test leaves no program behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

# A program that starts another one, as a daemon starts its runs; each writes its pid.
STARTED = "import os, subprocess, sys; print(os.getpid(), flush=True); subprocess.run([sys.executable, '-c', 'import os, time; print(os.getpid(), flush=True); time.sleep(600)'])"
TEST = """
import subprocess, sys, time
from tests.tied import tied
with open(sys.argv[1], "wb") as pids:
    subprocess.Popen(tied([sys.executable, "-c", sys.argv[2]]), stdout=pids, start_new_session=True)
time.sleep(600)
"""


def gone(pid: int) -> bool:
    """Ended; one that nobody waited for yet has, too."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z"
    except FileNotFoundError:
        return True


@pytest.mark.skipif(sys.platform != "linux", reason="asks /proc")
def test_what_was_started_ends_with_a_killed_test(tmp_path: Path) -> None:
    file = tmp_path / "pids"
    test = subprocess.Popen(
        [sys.executable, "-c", TEST, str(file), STARTED],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
    )
    until = time.monotonic() + 60
    while not file.exists() or len(file.read_text().split()) < 2:
        assert time.monotonic() < until
        time.sleep(0.05)
    pids = [int(pid) for pid in file.read_text().split()]
    assert not any(map(gone, pids))
    test.send_signal(signal.SIGKILL)
    test.wait()
    while not all(map(gone, pids)):
        assert time.monotonic() < until, "still running"
        time.sleep(0.05)
