"""Programs of a test that end with it, also when it is killed."""

from __future__ import annotations

import sys
from collections.abc import Sequence

# Linux tells the first process of the group that its parent is gone; it takes the whole group with it.
_FIRST = """
import ctypes, os, signal, subprocess, sys
signal.signal(signal.SIGTERM, lambda *_: os.killpg(0, signal.SIGKILL))
if sys.platform == "linux":
    PR_SET_PDEATHSIG = 1
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
sys.exit(subprocess.call(sys.argv[1:]))
"""


def tied(command: Sequence[str]) -> list[str]:
    """The command below a process that ends it, with all that it started, when whoever started that is gone.

    For Popen with start_new_session=True: its pid is that of the group. On Linux; elsewhere the command runs as it is.
    """
    return [sys.executable, "-c", _FIRST, *command]
