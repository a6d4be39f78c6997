"""dbt in processes that start at once: forked from one that has parsed the project already.

A dbt typed by hand reads its programs and the project for some seconds before it does anything. Tests that stop dozens
of runs fork them instead; from there on they are the same dbt, with threads, connections and hooks of their own.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

PATIENCE_SECONDS = 120
SERVER_OUTPUT = "forks.txt"


@dataclass
class Fork:
    """A dbt process of its own. Its output goes to a file, and its exit code when it ends of itself."""

    pid: int
    output: Path

    def running(self) -> bool:
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return False
        return True

    def kill(self) -> None:
        os.kill(self.pid, signal.SIGKILL)
        self.wait()

    def wait(self) -> int | None:
        """Its exit code, or None when it was killed."""
        until = time.monotonic() + PATIENCE_SECONDS
        while self.running():
            assert time.monotonic() < until, f"dbt does not end:\n{self.output.read_text()}"
            time.sleep(0.02)
        code = self.output.with_suffix(".code")
        return int(code.read_text()) if code.exists() else None


class Forks:
    """Starts dbt on the database that the environment names."""

    def __init__(self, server: subprocess.Popen[str], folder: Path) -> None:
        self.server, self.folder, self.count = server, folder, 0

    def start(self, *arguments: str, schema: str = "audience") -> Fork:
        self.count += 1
        output = self.folder / f"{self.count}.txt"
        self.server.stdin.write(json.dumps([schema, arguments, str(output)]) + "\n")
        self.server.stdin.flush()
        pid = self.server.stdout.readline()
        assert pid, (self.folder / SERVER_OUTPUT).read_text()
        return Fork(int(pid), output)

    def run(self, *arguments: str, schema: str = "audience") -> None:
        """Runs dbt to its end, which has to be a good one."""
        fork = self.start(*arguments, schema=schema)
        assert fork.wait() == 0, fork.output.read_text()


@contextmanager
def forks(folder: Path, schemas: Sequence[str], options: Sequence[str]) -> Iterator[Forks]:
    """Parses the project for each of the schemas and waits for runs. options: those of every run."""
    command = [sys.executable, "-m", "tests.forks", json.dumps([schemas, options])]
    root = Path(__file__).resolve().parents[1]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with (
        (folder / SERVER_OUTPUT).open("w") as errors,
        subprocess.Popen(command, cwd=root, stderr=errors, **pipes) as server,
    ):
        try:
            yield Forks(server, folder)
        finally:
            server.stdin.close()


def serve(schemas: Sequence[str], options: Sequence[str]) -> None:
    """Forks a dbt for each line of the standard input and answers with its process id."""
    from dbt.cli.main import dbtRunner

    manifests = {}
    for schema in schemas:
        os.environ["AUDIENCE_SCHEMA"] = schema
        manifests[schema] = dbtRunner().invoke(["parse", *options]).result
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # ended children leave at once
    for line in sys.stdin:
        schema, arguments, output = json.loads(line)
        pid = os.fork()
        if pid:
            print(pid, flush=True)
            continue
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        file = os.open(output, os.O_CREAT | os.O_WRONLY)
        for stream in (1, 2):
            os.dup2(file, stream)
        os.environ["AUDIENCE_SCHEMA"] = schema
        result = dbtRunner(manifest=manifests[schema]).invoke([*arguments, *options])
        print(result.exception or "", flush=True)
        Path(output).with_suffix(".code").write_text(str(int(not result.success)))
        os._exit(0)


if __name__ == "__main__":
    serve(*json.loads(sys.argv[1]))
