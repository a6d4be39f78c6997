"""Who is to be left alone: by every identifier, for each purpose, in every list, and again before one is delivered."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from orchestration import segments, suppressions
from orchestration.build import build
from orchestration.errors import UserError
from orchestration.exports import runner
from orchestration.load import load_files
from tests.filters import group
from tests.projects import AS_OF, audience

ORG, OTHER_ORG = "north_hall", "harbor_live"
STATE = "audience_state"
EVERYBODY = group()
EVENTS = """event_id,org_id,event_type,occurred_at,anonymous_id,user_id,url,properties
{rows}
"""


def event(number: int, org: str, device: str, user: str, **details: str) -> str:
    written = json.dumps({"marketing_consent": True, **details}).replace('"', '""')
    return f'e{number},{org},page_view,2026-06-20T10:00:00Z,{device},{user},https://shop.example/,"{written}"'


PEOPLE = [
    event(1, ORG, "d1", "ana", email="Ana@example.org", phone="+49 170 1"),
    event(2, ORG, "d2", "bob", email="bob@example.org"),
    event(3, ORG, "d3", "", email="cyd@example.org", phone="+49 170 333333"),
    event(4, ORG, "d4", "dan"),
    event(5, ORG, "d5", "eve", email="eve@example.org"),
    event(6, OTHER_ORG, "d1", "ana", email="ana@example.org"),
]


@pytest.fixture(scope="module")
def built(module_database: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[psycopg.Connection]:
    folder = tmp_path_factory.mktemp("suppressions")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AUDIENCE_HOME", str(folder / "home"))
        land(folder, PEOPLE)
        with segments.connect() as own:
            for org in (ORG, OTHER_ORG):
                segments.create_segment(own, "Everybody", org, EVERYBODY)
            yield own


@pytest.fixture
def connection(built: psycopg.Connection) -> psycopg.Connection:
    """The owner's, and nobody is left alone yet."""
    built.execute(f"truncate {STATE}.suppressions, {STATE}.suppressed_visitors")
    return built


def land(folder: Path, rows: list[str]) -> None:
    file = folder / "events.csv"
    file.write_text(EVENTS.format(rows="\n".join(rows)))
    load_files([file])
    build(as_of=AS_OF)


def opt_out(connection: psycopg.Connection, org: str = ORG, **whom: Any) -> int:
    return suppressions.suppress(connection, org, **whom).changed_count


def listed(connection: psycopg.Connection, org: str = ORG, **options: Any) -> set[str]:
    return set(column(runner.export_segment(connection, "Everybody", "a test", org, **options), "visitor_id"))


def column(done: runner.Export, name: str) -> list[str]:
    with done.file.open(newline="") as file:
        return [row[name] for row in csv.DictReader(file)]


def test_by_any_identifier_a_person_is_left_alone(connection):
    assert listed(connection) == {"ana", "bob", "d3", "dan", "eve"}
    for whom, rest in (
        ({"emails": [" ANA@example.org"]}, {"bob", "d3", "dan", "eve"}),
        ({"phones": ["0049 (170) 333333"]}, {"bob", "dan", "eve"}),
        ({"ids": ["dan"]}, {"bob", "eve"}),
        ({"ids": ["d5"]}, {"bob"}),  # her device
    ):
        assert opt_out(connection, **whom) > 0
        assert opt_out(connection, **whom) == 0
        assert listed(connection) == rest
        assert segments.preview(connection, EVERYBODY, ORG).size == len(rest)
    assert listed(connection, OTHER_ORG) == {"ana"}


def test_a_purpose_is_for_its_lists_alone(connection):
    opt_out(connection, emails=["ana@example.org"], purpose="email")
    opt_out(connection, emails=["bob@example.org"], purpose="advertising")
    everybody = {"ana", "bob", "d3", "dan", "eve"}
    assert listed(connection) == everybody
    assert listed(connection, include_pii=True) == everybody - {"ana"}
    with segments.connect() as own:
        purposes = dict(own.execute(f"select visitor_id, purpose from {STATE}.suppressed_visitors").fetchall())
    assert purposes == {"ana": "email", "bob": "advertising"}


def test_who_withdrew_is_a_removal_of_the_next_delta(connection):
    first = runner.export_segment(connection, "Everybody", "a test", ORG)
    runner.acknowledge(connection, first.entry.export_id)
    opt_out(connection, emails=["bob@example.org"])
    second = runner.export_segment(connection, "Everybody", "a test", ORG, is_delta=True)
    assert (column(second, "change"), column(second, "visitor_id")) == (["left"], ["bob"])


def test_what_was_made_before_is_not_delivered_after(connection, monkeypatch):
    def fails(*_: Any) -> None:
        raise UserError("The store is shut.")

    monkeypatch.setenv("AUDIENCE_EXPORT_DESTINATIONS", "memory://lists")
    monkeypatch.setattr(runner.destinations, "deliver", fails)
    monkeypatch.setattr(runner.destinations, "check", lambda url: None)
    with pytest.raises(UserError, match="The store is shut"):
        runner.export_segment(connection, "Everybody", "a test", ORG, to="memory://lists")
    entry = runner.latest(connection)[-1]
    opt_out(connection, ids=["dan"], purpose="advertising")
    delivered: list[str] = []
    monkeypatch.setattr(runner.destinations, "deliver", lambda file, *_: delivered.append(file.read_text()))
    opt_out(connection, ids=["bob"])
    done = runner.retry(connection, entry.export_id)
    assert done.entry.export_id != entry.export_id and done.entry.outcome == "delivered"
    assert runner.find(connection, entry.export_id).reason == "1 of its people withdrew after it was made"
    (text,) = delivered
    assert "dan," in text and "bob," not in text


def test_one_that_waits_leaves_out_who_withdrew_meanwhile(connection):
    waits = runner.export_segment(connection, "Everybody", "a test", ORG, is_queued=True)
    opt_out(connection, emails=["eve@example.org"])
    done = runner.run_requested(connection, waits.entry.export_id)
    assert set(column(done, "visitor_id")) == {"ana", "bob", "d3", "dan"}


def test_an_opt_out_is_undone_and_kept(connection):
    opt_out(connection, emails=["bob@example.org"])
    assert "bob" not in listed(connection)
    assert suppressions.suppress(connection, ORG, emails=["bob@example.org"], is_lifted=True).changed_count > 0
    assert "bob" in listed(connection)
    kept = connection.execute(f"select count(*), count(lifted_at) from {STATE}.suppressions").fetchone()
    assert kept[0] == kept[1] > 0


def test_no_identifier_is_kept(connection):
    opt_out(connection, emails=["bob@example.org"], phones=["+49 170 333333"], ids=["unheard-of"])
    text = str(connection.execute(f"table {STATE}.suppressions").fetchall())
    assert not any(word in text for word in ("bob", "example", "333333", "unheard"))


def test_is_suppressed_knows_what_no_build_has_seen(connection):
    opt_out(connection, emails=["x@example.org"], purpose="email")
    opt_out(connection, ids=["u9"])
    asked = f"select {STATE}.is_suppressed(%s, %s, %s, %s)"
    for arguments, expected in (
        ((ORG, "anybody", "X@example.org", "email"), True),
        ((ORG, "anybody", "x@example.org", "advertising"), False),
        ((ORG, "u9", None, "advertising"), True),
        ((OTHER_ORG, "u9", "x@example.org", "email"), False),
    ):
        assert connection.execute(asked, arguments).fetchone() == (expected,)


def test_the_command_takes_a_file_and_refuses_what_names_nobody(connection, tmp_path):
    file = tmp_path / "unsubscribed.txt"
    file.write_text("\ufeffana@example.org\n\nbob@example.org\n")
    told = audience("opt-out", "--org", ORG, "--emails-from", str(file), "--purpose", "email")
    assert (told.returncode, told.stderr) == (0, "") and "left alone" in told.stdout
    file.write_text("ana@example.org\nbob\n")
    for arguments, sentence in (
        (("--emails-from", str(file)), f"Line 2 of {file} is not one e-mail address"),
        ((), "Nobody is named"),
        (("--email", "bob"), "'bob' is no e-mail address"),
        (("--phone", "12"), "is no phone number"),
        (("--user-id", " "), "A blank identifier names nobody"),
        (("--email", "a@b", "--purpose", "post"), "There is no purpose 'post'"),
    ):
        refused = audience("opt-out", "--org", ORG, *arguments)
        assert refused.returncode == 2 and sentence in refused.stderr, refused


def test_an_old_list_brings_nobody_back(connection, tmp_path):
    assert opt_out(connection, emails=["new@example.org"]) == 1
    assert opt_out(connection, emails=["bob@example.org"]) > 1
    land(tmp_path, [event(7, ORG, "d7", "newcomer", email="NEW@example.org"), event(8, ORG, "d8", "bob_again", email="bob@example.org")])  # fmt: skip
    build(as_of=AS_OF, full_refresh=True)
    assert listed(connection) == {"ana", "d3", "dan", "eve"}
