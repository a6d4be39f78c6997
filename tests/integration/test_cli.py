"""The `audience` command as people and programs meet it: help, exit codes, sentences, JSON, the embedded server."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
import typer.main

from orchestration.cli import app
from orchestration.settings import PG_VARIABLES

Result = subprocess.CompletedProcess[str]
EVENT = {
    "event_id": "e1", "org_id": "org", "event_type": "page_view", "occurred_at": "2026-06-01T10:00:00Z",
    "received_at": "2026-06-01T10:00:01Z", "anonymous_id": "device",
}  # fmt: skip


@pytest.fixture(scope="module")
def home() -> Iterator[Path]:
    """An AUDIENCE_HOME of its own; short, because the path of a Unix socket has at most 107 characters."""
    with tempfile.TemporaryDirectory(prefix="aud", dir="/tmp", ignore_cleanup_errors=True) as folder:
        Path(folder).chmod(0o755)
        try:
            yield Path(folder)
        finally:
            audience("db", "stop", home=Path(folder))


@pytest.fixture
def nothing(tmp_path: Path) -> Iterator[Path]:
    """An AUDIENCE_HOME in which no server may be made."""
    yield tmp_path / "home"
    assert not (tmp_path / "home" / "pg").exists()


def start(*arguments: str | Path, home: Path, **variables: str) -> subprocess.Popen[str]:
    unset = {*PG_VARIABLES, "DATABASE_URL", "AUDIENCE_PROJECT"}
    environment = {name: value for name, value in os.environ.items() if name not in unset}
    folders = {"AUDIENCE_HOME": str(home), "DBT_TARGET_PATH": str(home / "target"), "DBT_LOG_PATH": str(home / "logs")}
    command = [sys.executable, "-m", "orchestration.cli", *map(str, arguments)]
    return subprocess.Popen(
        command, env=environment | folders | variables, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def finish(process: subprocess.Popen[str]) -> Result:
    try:
        out, err = process.communicate(timeout=120)
    finally:
        process.kill()
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def audience(*arguments: str | Path, home: Path, **variables: str) -> Result:
    return finish(start(*arguments, home=home, **variables))


def printed(result: Result) -> str:
    assert result.returncode == 0, result.stderr
    return result.stdout


def paths(command: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """The words of every command that does something."""
    inner = getattr(command, "commands", None)
    if inner is None:
        yield path
    else:
        for name in inner:
            yield from paths(inner[name], (*path, name))


COMMANDS = sorted(paths(typer.main.get_command(app)))


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_help_explains_and_has_an_example_of_the_command(command, nothing):
    text = printed(audience(*command, "--help", home=nothing))
    usage, explanation = text.split("\n\n")[:2]
    assert usage.strip().startswith("Usage:")
    assert explanation.strip().endswith(".")
    example = re.search(r"^\s*Example: (.*)", text, re.M)
    assert example
    assert f"audience {' '.join(command)}" in example[1]


@pytest.mark.parametrize(
    "group",
    [(), ("db",), ("members",), ("segments",)],
    ids=["audience", "audience db", "audience members", "audience segments"],
)
def test_a_group_without_a_command_lists_its_commands(group, nothing):
    result = audience(*group, home=nothing)
    for path in COMMANDS:
        if path[: len(group)] == group:
            assert f" {path[len(group)]} " in result.stdout + result.stderr


REFUSED: dict[str, tuple[list[str], dict[str, str], str]] = {
    "file does not exist": (["load", "gone.ndjson"], {}, r"gone\.ndjson .*: .*[Cc](orrect|heck) the name"),
    "moment is none": (["build", "--as-of", "tuesday"], {}, r"--as-of 'tuesday' is not a date or time .*: give ISO"),
    "day is none": (["sample", "--out", "x", "--end", "31.6."], {}, r"--end '31\.6\.' is not a day .*: give YYYY-MM"),
    "role is none": (
        ["members", "add", "ana", "--org", "north_hall", "--role", "king"], {}, r"no role 'king': give one of reader, analyst, admin",
    ),
    "url of another database": (
        ["db", "url"], {"DATABASE_URL": "mysql://ada@db.example/events"},
        r"DATABASE_URL is not a PostgreSQL URL.*'mysql'.*Use postgresql://",
    ),
    "url contradicts host": (
        ["db", "status"], {"DATABASE_URL": "postgresql://ada@db.example/events", "PGHOST": "elsewhere"},
        r"DATABASE_URL and PGHOST name different servers \(db\.example and elsewhere\): unset one",
    ),
    "demo on a server of one's own": (
        ["demo"], {"PGHOST": "db.example"}, r"demo runs on the embedded server.*PGHOST.*: unset it",
    ),
    "start beside a server of one's own": (
        ["db", "start"], {"DATABASE_URL": "postgresql://db.example/events"}, r"DATABASE_URL or PGHOST.*: unset it",
    ),
    "server does not answer": (
        ["build"], {"DATABASE_URL": "postgresql://ada:hunter2@127.0.0.1:1/events"},
        r"No connection to PostgreSQL at 127\.0\.0\.1 .*refused.*: correct DATABASE_URL",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_bad_input_is_refused_with_one_sentence(case, nothing):
    arguments, variables, sentence = REFUSED[case]
    result = audience(*arguments, home=nothing, **variables)
    assert (result.returncode, result.stdout) == (2, "")
    message = result.stderr.strip()
    assert len(message.splitlines()) == 1
    assert message.startswith("audience: ") and message.endswith(".")
    assert re.search(sentence, message)
    assert "hunter2" not in message


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["build", "--colour"], "No such option: --colour"),
        (["bild"], "No such command 'bild'"),
        (["load"], "Missing argument 'FILES...'"),
        (["sample"], "Missing option '--out'"),
        (["sample", "--out", "x", "--events", "many"], "Invalid value for '--events'"),
        (["sample", "--out", "x", "--events", "5"], "Input should be greater than or equal to 1000"),
    ],
    ids=["option", "command", "argument", "needed option", "number", "range"],
)
def test_a_mistyped_command_is_refused_and_points_to_its_help(arguments, complaint, nothing):
    result = audience(*arguments, home=nothing)
    assert (result.returncode, result.stdout) == (2, "")
    assert complaint in result.stderr
    assert "--help" in result.stderr
    assert "Traceback" not in result.stderr


def sampled(folder: Path, home: Path, *options: str) -> tuple[list[dict[str, Any]], dict[str, bytes]]:
    out = printed(audience("sample", "--events", "1000", "--out", folder, "--json", *options, home=home))
    return json.loads(out), {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_sample_depends_on_its_seed_alone(tmp_path, nothing):
    report, files = sampled(tmp_path / "one", nothing, "--seed", "3")
    assert {Path(file["path"]).name for file in report} == set(files)
    assert sum(file["rows"] for file in report) >= 900
    assert sampled(tmp_path / "two", nothing, "--seed", "3")[1] == files
    assert sampled(tmp_path / "three", nothing, "--seed", "4")[1] != files


def status(home: Path) -> dict[str, Any]:
    return json.loads(printed(audience("db", "status", "--json", home=home)))


def test_the_embedded_server_starts_once_and_stops(home, tmp_path):
    stopped = {"server": "embedded", "where": str(home / "pg"), "running": False}
    assert status(home) == stopped

    for started in [finish(process) for process in [start("db", "start", home=home) for _ in range(2)]]:
        assert "is running" in printed(started)
    assert status(home) == stopped | {"running": True}
    assert "running" in printed(audience("db", "status", home=home))

    url = printed(audience("db", "url", home=home))
    assert len(url.splitlines()) == 1
    with psycopg.connect(url.strip()) as connection:
        assert connection.execute("show data_directory").fetchone() == (str(home / "pg"),)
    assert printed(audience("db", "psql", "-Atc", "select current_database()", home=home)) == "audience\n"

    file = tmp_path / "events.ndjson"
    bad = EVENT | {"event_id": "e2", "occurred_at": "yesterday"}
    file.write_text("\n".join(map(json.dumps, (EVENT, bad, EVENT))))
    loaded = json.loads(printed(audience("load", file, "--json", home=home)))
    assert [loaded[name] for name in ("received", "accepted", "rejected", "duplicate")] == [3, 1, 1, 1]
    assert loaded["rejected_reasons"] == {"unparsable_time": 1}
    assert "3 rows" in printed(audience("load", file, home=home))

    built = json.loads(printed(audience("build", "--select", "orgs", "--json", home=home)))
    assert [node["status"] for node in built["nodes"] if node["name"] == "orgs"] == ["success"]
    assert built["seconds"] > 0

    assert "has stopped" in printed(audience("db", "stop", home=home))
    assert status(home) == stopped
    assert "was not running" in printed(audience("db", "stop", home=home))
    assert "is running" in printed(audience("db", "start", home=home))
    assert printed(audience("db", "psql", "-Atc", "select count(*) from analytics.events", home=home)) == "1\n"


def test_a_server_of_ones_own_is_named_by_status(nothing):
    out = printed(audience("db", "status", "--json", home=nothing, DATABASE_URL="postgresql://ada@db.example/events"))
    assert json.loads(out)["server"] == "external"
    assert json.loads(out)["where"] == "db.example"
