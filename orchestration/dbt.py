"""dbt as this project runs it: a process of its own, on the server in use."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from orchestration import database
from orchestration.errors import UserError
from orchestration.settings import project_dir


def executable() -> str:
    """The dbt of this environment, also when its bin folder is not on PATH."""
    return str(Path(sys.executable).with_name("dbt"))


def command(*arguments: str) -> list[str]:
    """The argument list that runs dbt of this environment on this project."""
    project = project_dir()
    return [
        executable(),
        *arguments,
        "--project-dir",
        str(project),
        "--profiles-dir",
        str(project / "profiles"),
    ]


def start(
    *arguments: str, variables: dict[str, str] | None = None, keep_open: Sequence[int] = ()
) -> subprocess.Popen[str]:
    """Starts dbt with JSON log lines on its standard output. keep_open: files of this process that it inherits."""
    return subprocess.Popen(
        command("--log-format", "json", "--no-use-colors", *arguments),
        env={**database.environment(), **(variables or {})},
        cwd=project_dir(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        pass_fds=keep_open,
    )


def run(*arguments: str, variables: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """Runs dbt to its end and returns its output."""
    return subprocess.run(
        command("--no-use-colors", *arguments),
        env={**database.environment(), **(variables or {})},
        cwd=project_dir(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def prepare() -> None:
    """Makes the landing and state tables and the roles where they are missing or of an older release.

    Raises UserError with what dbt says, for example that this login may not make roles.
    """
    result = run("run-operation", "ensure_tables")
    if result.returncode:
        raise UserError(f"dbt could not make the landing and state tables and the roles:\n{result.stdout}")


def ensure_table(newest: str) -> None:
    """Makes the landing and state tables where this one is missing: nothing was made yet, or by an older release."""
    with database.connect(autocommit=True) as connection:
        found = connection.execute("select to_regclass(%s)", [newest]).fetchone()
    if found == (None,):
        prepare()
