"""Databases for tests: one server per session, a fresh database per test or module, made from a template."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path

import psycopg
import pytest
from psycopg import sql

from orchestration import dbt, embedded
from orchestration.settings import PG_VARIABLES, external_server

TEMPLATE = f"audience_test_template_{os.getpid()}"
_numbers = count(1)


@contextmanager
def _environment(**values: str | None) -> Iterator[None]:
    """Sets environment variables (None: unsets) and puts the former values back."""
    before = {name: os.environ.get(name) for name in values}
    try:
        _put(values)
        yield
    finally:
        _put(before)


def _put(values: dict[str, str | None]) -> None:
    for name, value in values.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


def _execute(variables: dict[str, str], statement: str, **names: str) -> None:
    with (
        _environment(**{**dict.fromkeys(PG_VARIABLES), **variables}),
        psycopg.connect(dbname="postgres", autocommit=True) as connection,
    ):
        connection.execute(sql.SQL(statement).format(**{k: sql.Identifier(v) for k, v in names.items()}))


@pytest.fixture(scope="session", autouse=True)
def _artifacts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """dbt's target and logs of the tests, away from the project's."""
    folder = tmp_path_factory.mktemp("dbt")
    with _environment(DBT_TARGET_PATH=str(folder / "target"), DBT_LOG_PATH=str(folder / "logs")):
        yield


@pytest.fixture(scope="session")
def server() -> Iterator[dict[str, str]]:
    """PG* variables of a running server: the one in PGHOST or DATABASE_URL, else an embedded one of the session."""
    given = external_server()
    if given:
        yield given.variables
        return
    # short: the path of a Unix socket has at most 107 characters
    with tempfile.TemporaryDirectory(prefix="aud", dir="/tmp", ignore_cleanup_errors=True) as home:
        os.chmod(home, 0o755)
        with _environment(AUDIENCE_HOME=home):
            try:
                yield embedded.start().variables
            finally:
                embedded.stop()


@pytest.fixture(scope="session")
def _template(server: dict[str, str]) -> Iterator[str]:
    _execute(server, "create database {name} template template0 encoding 'UTF8'", name=TEMPLATE)
    try:
        with _environment(**{**server, "PGDATABASE": TEMPLATE}, DATABASE_URL=None):
            dbt.prepare()
        yield TEMPLATE
    finally:
        _execute(server, "drop database if exists {name} with (force)", name=TEMPLATE)


@contextmanager
def _fresh_database(server: dict[str, str], template: str) -> Iterator[str]:
    name = f"audience_test_{os.getpid()}_{next(_numbers)}"
    _execute(server, "create database {name} template {template}", name=name, template=template)
    try:
        with _environment(**{**server, "PGDATABASE": name}, DATABASE_URL=None):
            yield name
    finally:
        _execute(server, "drop database if exists {name} with (force)", name=name)


@pytest.fixture
def database(server: dict[str, str], _template: str) -> Iterator[str]:
    """The name of a fresh database with empty landing and state tables; the environment points to it."""
    with _fresh_database(server, _template) as name:
        yield name


@pytest.fixture(scope="module")
def module_database(server: dict[str, str], _template: str) -> Iterator[str]:
    """As `database`, one for all tests of a module."""
    with _fresh_database(server, _template) as name:
        yield name


@pytest.fixture(scope="session")
def audience_test_data() -> Path:
    """The folder of real event data, named in AUDIENCE_TEST_DATA; without it the test is skipped."""
    folder = os.environ.get("AUDIENCE_TEST_DATA")
    if not folder:
        pytest.skip("AUDIENCE_TEST_DATA names no folder of real event data")
    return Path(folder)
