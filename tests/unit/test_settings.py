"""Which server is used, read from the environment: DATABASE_URL, the PG* variables, or the embedded one."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from psycopg.conninfo import conninfo_to_dict

from orchestration import database, settings
from orchestration.errors import UserError
from orchestration.settings import audience_home, external_server, manifest_path, project_dir, target_folder

OTHERS = ("DATABASE_URL", "AUDIENCE_HOME", "AUDIENCE_PROJECT", "DBT_TARGET_PATH")


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Nothing of the caller's: tests set what they need."""
    for name in (*settings.PG_VARIABLES, *OTHERS, "PGSSLMODE", "PGSSLROOTCERT"):
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


def given(**variables: str) -> dict[str, str]:
    """The PG* variables of the server that this environment names."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in variables.items():
            patch.setenv(name, value)
        server = external_server()
    assert server is not None
    return server.variables


def test_the_embedded_server_is_used_when_nothing_else_is_named(environment):
    assert external_server() is None
    environment.setenv("DATABASE_URL", "")
    environment.setenv("PGHOST", "")
    environment.setenv("PGUSER", "ada")
    assert external_server() is None


@pytest.mark.parametrize("name", ["PGHOST", "PGHOSTADDR", "PGSERVICE"])
def test_a_server_can_be_named_by_pg_variables(name):
    assert given(**{name: "somewhere", "PGUSER": "ada", "PGPORT": "6000"}) == {
        name: "somewhere", "PGUSER": "ada", "PGPORT": "6000",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        (
            "postgresql://ada:secret@db.example:5433/events?sslmode=require",
            {"PGHOST": "db.example", "PGPORT": "5433", "PGUSER": "ada", "PGPASSWORD": "secret",
             "PGDATABASE": "events", "PGSSLMODE": "require"},
        ),
        ("postgres://db.example", {"PGHOST": "db.example"}),
        (
            "postgresql://a%40b:p%3A%2F%20%25@db.example/my%20events",
            {"PGHOST": "db.example", "PGUSER": "a@b", "PGPASSWORD": "p:/ %", "PGDATABASE": "my events"},
        ),
        (
            "postgresql:///events?host=/run/postgresql&port=5433",
            {"PGHOST": "/run/postgresql", "PGPORT": "5433", "PGDATABASE": "events"},
        ),
        ("postgresql://%2Frun%2Fpostgresql/events", {"PGHOST": "/run/postgresql", "PGDATABASE": "events"}),
        ("postgresql://[::1]:5433/events", {"PGHOST": "::1", "PGPORT": "5433", "PGDATABASE": "events"}),
    ],
)  # fmt: skip
def test_a_server_can_be_named_by_url(url, expected):
    assert given(DATABASE_URL=url) == expected


def test_the_url_wins_over_pg_variables_but_may_not_contradict_the_host():
    agreed = given(DATABASE_URL="postgresql://ada@db.example/events", PGHOST="db.example", PGDATABASE="other")
    assert agreed["PGDATABASE"] == "events"
    with pytest.raises(UserError, match=r"DATABASE_URL and PGHOST .*db\.example and elsewhere.*unset one"):
        given(DATABASE_URL="postgresql://ada@db.example/events", PGHOST="elsewhere")


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("mysql://ada@db.example/events", "not a PostgreSQL URL.*'mysql'.*postgresql://"),
        ("db.example", "not a PostgreSQL URL.*postgresql://"),
        ("postgresql+psycopg://db.example/events", "not a PostgreSQL URL"),
        ("postgresql:///events", "names no host.*postgresql://"),
        ("postgresql://db.example/events?colour=blue", "cannot be read.*colour.*correct it"),
        ("postgresql://ada:%zz@db.example/events", "cannot be read.*correct it"),
    ],
)
def test_a_url_that_cannot_be_used_is_refused_with_a_remedy(url, message):
    with pytest.raises(UserError, match=message):
        given(DATABASE_URL=url)


@pytest.mark.parametrize("url", ["mysql://ada:hunter2@db.example", "postgresql://ada:hunter2@db.example/e?colour=blue"])
def test_no_refusal_repeats_the_password(url):
    with pytest.raises(UserError) as refusal:
        given(DATABASE_URL=url)
    assert "hunter2" not in str(refusal.value)


@pytest.mark.parametrize(
    "variables",
    [
        {"PGHOST": "db.example", "PGPORT": "5433", "PGUSER": "ada", "PGPASSWORD": "secret", "PGDATABASE": "events"},
        {"PGHOST": "db.example", "PGPORT": "5432", "PGUSER": "a@b:c", "PGPASSWORD": "p:/ %?#&", "PGDATABASE": "my/ db"},
        {"PGHOST": "/tmp/a folder/pg", "PGPORT": "5432", "PGUSER": "postgres", "PGDATABASE": "audience"},
        {"PGHOST": "::1", "PGPORT": "5433", "PGUSER": "ada", "PGDATABASE": "events"},
    ],
    ids=["plain", "quoted", "socket", "ipv6"],
)  # fmt: skip
def test_the_printed_url_names_the_same_server(environment, variables):
    for name, value in variables.items():
        environment.setenv(name, value)
    assert given(DATABASE_URL=database.url(), PGHOST="") == variables


def test_the_printed_url_keeps_how_the_connection_is_secured(environment):
    environment.setenv(
        "DATABASE_URL", "postgresql://ada@db.example:5433/events?sslmode=verify-full&sslrootcert=/ca.pem"
    )
    assert conninfo_to_dict(database.url()) == conninfo_to_dict(os.environ["DATABASE_URL"])


@pytest.mark.parametrize(("name", "parameter"), [("PGSERVICE", "service"), ("PGHOSTADDR", "hostaddr")])
def test_the_printed_url_names_a_server_that_has_no_host(environment, name, parameter):
    environment.setenv(name, "10.0.0.7")
    printed = conninfo_to_dict(database.url())
    assert printed[parameter] == "10.0.0.7"
    assert printed.get("host") is None


def test_folders_follow_the_environment(environment, tmp_path):
    root = Path(settings.__file__).resolve().parents[1]
    assert (project_dir(), audience_home(), target_folder()) == (root, root / ".audience", root / "target")

    (tmp_path / "dbt_project.yml").touch()
    environment.setenv("AUDIENCE_PROJECT", str(tmp_path))
    assert (project_dir(), audience_home(), target_folder()) == (tmp_path, tmp_path / ".audience", tmp_path / "target")

    environment.setenv("AUDIENCE_HOME", str(tmp_path / "home"))
    environment.setenv("DBT_TARGET_PATH", str(tmp_path / "artifacts"))
    assert audience_home() == tmp_path / "home"
    assert manifest_path() == tmp_path / "artifacts" / "manifest.json"


def test_a_folder_that_is_no_project_is_refused(environment, tmp_path):
    environment.setenv("AUDIENCE_PROJECT", str(tmp_path))
    with pytest.raises(UserError, match=r"No dbt_project\.yml in .*AUDIENCE_PROJECT"):
        project_dir()
