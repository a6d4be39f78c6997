"""The Dagster webserver and daemon as two processes of this command, on loopback, until it is stopped."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

from orchestration import database, dbt
from orchestration.errors import UserError
from orchestration.settings import audience_home, manifest_path

INSTANCE = Path(__file__).with_name("instance.yaml")


def instance_folder() -> Path:
    """DAGSTER_HOME: as given, else in AUDIENCE_HOME, with a dagster.yaml of the project's when it has none."""
    folder = Path(os.environ.get("DAGSTER_HOME") or audience_home() / "dagster").resolve()
    folder.mkdir(parents=True, exist_ok=True)
    settings = folder / "dagster.yaml"
    if not settings.exists():
        shutil.copy(INSTANCE, settings)
    return folder


def ensure_manifest() -> None:
    """Parses the dbt project, so that the assets are those of the files on disk."""
    result = dbt.run("parse")
    if result.returncode or not manifest_path().exists():
        raise UserError(f"The dbt project cannot be read: correct it and run this again.\n{result.stdout}")


def serve(port: int) -> int:
    """Runs both processes until one ends or the command is stopped; returns the exit code."""
    with socket.socket() as probe:
        if probe.connect_ex(("127.0.0.1", port)) == 0:
            raise UserError(f"Port {port} of 127.0.0.1 is taken: choose another with --port.")
    ensure_manifest()
    environment = {**database.environment(), "DAGSTER_HOME": str(instance_folder())}
    programs = Path(sys.executable).parent
    module = ["-m", "orchestration.definitions"]
    web = [programs / "dagster-webserver", *module, "-h", "127.0.0.1", "-p", str(port), "--log-level", "warning"]
    daemon = [programs / "dagster-daemon", "run", *module, "--log-level", "warning"]
    processes = [subprocess.Popen([str(part) for part in command], env=environment) for command in (web, daemon)]
    print(f"Dagster: http://127.0.0.1:{port}  (Ctrl-C stops it; the embedded server goes on until audience db stop)")
    for stop in (signal.SIGTERM, signal.SIGINT):
        signal.signal(stop, lambda *_: sys.exit(0))
    try:
        while all(process.poll() is None for process in processes):
            time.sleep(0.5)
        return next(process.returncode for process in processes if process.poll() is not None) or 1
    finally:
        for process in processes:
            process.send_signal(signal.SIGINT)
        for process in processes:
            try:
                process.wait(15)
            except subprocess.TimeoutExpired:
                process.kill()
