"""Exports of every night: each once, logged, whatever is killed, refused or started again."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import dagster as dg
import psycopg
import pytest
import yaml
from psycopg import sql

from orchestration import members, segments, standing_exports
from orchestration.build import build
from orchestration.errors import CheckFailed, UserError
from orchestration.exports import destinations, door, log, runner
from orchestration.load import load_files
from orchestration.sample import write_sample
from tests.filters import group, rule
from tests.projects import AS_OF, END, audience

NIGHT, NEXT = date(2026, 7, 1), date(2026, 7, 2)
ORG, OTHER_ORG = "north_hall", "harbor_live"
LOG = "audience_state.segment_export_log"
ANALYST = f"analyst_of_nights_{os.getpid()}"
Declare = Callable[..., None]


@pytest.fixture(scope="module")
def built(module_database: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    files = write_sample(tmp_path_factory.mktemp("nights"), events=2_000, seed=7, end=END)
    load_files([file.path for file in files])
    build(as_of=AS_OF)
    with segments.connect() as connection:
        for org in (ORG, OTHER_ORG):
            segments.create_segment(connection, "Every body", org, group(rule("events_count", ">=", 0)))
        segments.materialize(connection)
    yield


@pytest.fixture
def connection(built: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[psycopg.Connection]:
    monkeypatch.setenv("AUDIENCE_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(standing_exports, "project_dir", lambda: tmp_path)
    (tmp_path / "standing_exports").mkdir()
    with standing_exports.connect() as found:
        found.execute(
            "truncate audience_state.standing_export_nights;"
            f" alter table {LOG} disable trigger unchanged; truncate {LOG}; alter table {LOG} enable always trigger unchanged"
        )
        yield found


@pytest.fixture
def declare(tmp_path: Path) -> Declare:
    def write(name: str = "Nightly", **content: Any) -> None:
        whole = {"name": name, "org_id": ORG, "segment": "Every body", "purpose": "a test"} | content
        file = tmp_path / "standing_exports" / f"{name.lower().replace(' ', '_')}.yml"
        file.write_text(yaml.safe_dump({key: value for key, value in whole.items() if value is not ...}))

    return write


def outcomes(connection: psycopg.Connection) -> list[tuple[str, str]]:
    return connection.execute(f"select org_id, outcome from {LOG} order by log_number").fetchall()


def files() -> list[Path]:
    return sorted(log.exports_folder().glob("*.csv"))


def test_a_night_makes_each_once_for_every_org_and_the_next_night_again(connection, declare):
    declare(org_id="*")
    first = standing_exports.make(connection, NIGHT)
    assert [(one.org_id, one.entry.outcome, one.error) for one in first] == [
        (OTHER_ORG, "delivered", None),
        (ORG, "delivered", None),
    ]
    people = connection.execute(
        "select count(*) from audience.audience_customers where org_id = %s and not is_opted_out", [ORG]
    ).fetchone()[0]
    assert first[1].entry.rows_count == people > 10
    assert first[1].entry.purpose == "a test" and not first[1].entry.include_pii
    assert first[1].entry.login_name == connection.info.user
    made = files()
    assert len(made) == 2
    again = standing_exports.make(connection, NIGHT)
    assert [one.export_id for one in again] == [one.export_id for one in first] and files() == made
    later = standing_exports.make(connection, NEXT)
    assert len(files()) == 4 and {one.export_id for one in later}.isdisjoint({one.export_id for one in first})
    assert log.check(connection).rows == 12  # requested, completed, delivered


def test_what_is_declared_is_what_is_asked_for(connection, declare, tmp_path):
    declare(format="ndjson", include_pii=True, delta=True, to=str(tmp_path / "lists"))
    [one] = standing_exports.make(connection, NIGHT)
    assert (one.entry.format, one.entry.include_pii, one.entry.destination) == ("ndjson", True, str(tmp_path / "lists"))
    [file] = (tmp_path / "lists").iterdir()
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    assert len(rows) == one.entry.rows_count and {"change", "email"} <= rows[0].keys()
    runner.acknowledge(connection, one.export_id)
    assert standing_exports.make(connection, NIGHT)[0].entry.outcome == "acknowledged", "it is not made again"
    [delta] = standing_exports.make(connection, NEXT)
    assert (delta.entry.kind, delta.entry.rows_count) == ("delta", 0)


def test_one_that_fails_stops_no_other_and_a_refusal_is_logged_with_its_reason(connection, declare, tmp_path):
    declare("A wrong segment", segment="Nobody")
    declare("B wrong format", format="xls")
    declare("C good")
    declare("D wrong place", to="nothing://somewhere/lists")
    (tmp_path / "standing_exports" / "e_broken.yml").write_text("name: [")
    done = standing_exports.make(connection, NIGHT)
    assert {one.export_name: one.entry and one.entry.outcome for one in done} == {
        "A wrong segment": "refused", "B wrong format": "refused", "C good": "delivered", "D wrong place": "refused",
        "standing_exports/e_broken.yml": None,
    }  # fmt: skip
    reasons = dict(connection.execute(f"select destination, reason from {LOG} where outcome = 'refused'").fetchall())
    assert "There is no segment 'Nobody'" in done[0].error and len(reasons) == 2
    assert "no format 'xls'" in done[1].error and reasons["nothing://somewhere/lists"] == done[3].error
    with pytest.raises(CheckFailed) as failed:
        standing_exports.check(done)
    assert all(name in str(failed.value) for name in ("A wrong segment", "B wrong format", "D wrong place", "e_broken"))
    assert "C good" not in str(failed.value)


def test_what_was_refused_is_asked_for_anew_and_what_was_made_is_not(connection, declare):
    declare("Good")
    declare("Wrong", segment="Nobody")
    good, wrong = standing_exports.make(connection, NIGHT)
    declare("Wrong")
    again, mended = standing_exports.make(connection, NIGHT)
    assert again.export_id == good.export_id
    assert mended.export_id != wrong.export_id and mended.entry.outcome == "delivered" and len(files()) == 2


@pytest.mark.parametrize("place", ["stream", "publish"])
def test_killed_anywhere_the_night_ends_with_one_list(connection, declare, monkeypatch, place):
    """As when the process dies: nothing is logged after that point, and its connection is gone."""
    declare()

    class Killed(BaseException):
        pass

    def die(*_: object) -> None:
        raise Killed

    with standing_exports.connect() as other, monkeypatch.context() as patch:
        patch.setattr(runner.files, place, die)
        patch.setattr(runner, "_abandon", lambda *_: None)
        with pytest.raises(Killed):
            standing_exports.make(other, NIGHT)
    before = outcomes(connection)
    assert before[-1] == (ORG, {"stream": "requested", "publish": "completed"}[place])
    [one] = standing_exports.make(connection, NIGHT)
    assert one.entry.outcome == "delivered" and one.error is None and len(files()) == 1
    assert [outcome for _, outcome in outcomes(connection)].count("delivered") == 1
    assert standing_exports.make(connection, NIGHT)[0].export_id == one.export_id and len(files()) == 1
    log.check(connection)


def test_what_was_not_delivered_is_delivered_later_under_the_same_id(connection, declare, monkeypatch):
    posted: list[str] = []

    def deliver(file: Path, url: str, delivery: Any) -> str:
        if not posted:
            posted.append("refused")
            raise UserError("The receiver is away: try again later.")
        posted.append(delivery.delivery_id)
        return url

    declare(to="https://crm.example/lists")
    monkeypatch.setattr(destinations, "deliver", deliver)
    monkeypatch.setattr(destinations, "check", lambda url: None)
    [away] = standing_exports.make(connection, NIGHT)
    assert away.entry.outcome == "undelivered" and "The receiver is away" in away.error
    [done] = standing_exports.make(connection, NIGHT)
    assert (done.entry.outcome, done.error) == ("delivered", None)
    assert posted == ["refused", str(away.export_id)]
    standing_exports.make(connection, NIGHT)
    assert len(posted) == 2


def test_a_file_that_was_kept_and_is_gone_stops_no_other(connection, declare, monkeypatch):
    def refuse(*_: object) -> str:
        raise UserError("The receiver is away: try again later.")

    declare("A", to="https://crm.example/lists")
    monkeypatch.setattr(destinations, "check", lambda url: None)
    monkeypatch.setattr(destinations, "deliver", refuse)
    standing_exports.make(connection, NIGHT)
    [kept] = files()
    kept.unlink()
    declare("B")
    monkeypatch.setattr(destinations, "deliver", lambda file, *_: file.read_bytes())
    gone, other = standing_exports.make(connection, NIGHT)
    assert "No such file" in gone.error and other.entry.outcome == "delivered"


def test_the_database_refuses_a_second_one_of_a_night(connection, declare):
    declare()
    [one] = standing_exports.make(connection, NIGHT)
    with pytest.raises(UserError, match=f"was made for 2026-07-01: see export {one.export_id}"):
        door.ask_standing(
            connection, "Nightly", NIGHT, ORG, "Every body", "again",
            include_pii=False, is_delta=False, format_name="csv", destination="/",
        )  # fmt: skip
    assert len(outcomes(connection)) == 3


def test_nobody_but_the_owner_may_ask_for_one_or_see_the_nights(connection):
    connection.execute(sql.SQL("create role {} login password 'secret'").format(sql.Identifier(ANALYST)))
    try:
        members.add(ANALYST, [ORG], "admin")
        call = "select audience_state.request_standing_export('n', '2026-07-01', %s, 'Every body', 'a test', false, '{org_id}', 'csv', '/', false, null)"
        for query, parameters in (
            ("select from audience_state.standing_export_nights", []),
            ("delete from audience_state.standing_export_nights", []),
            (call, [ORG]),
        ):
            with (
                psycopg.connect(user=ANALYST, password="secret") as login,
                pytest.raises(psycopg.errors.InsufficientPrivilege),
            ):
                login.execute(query, parameters)
        assert outcomes(connection) == []
    finally:
        connection.execute(sql.SQL("drop owned by {0}; drop role {0}").format(sql.Identifier(ANALYST)))


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ({"purpose": ...}, "Give name, org_id"),
        ({"purpose": " "}, "Give name, org_id"),
        ({"deltas": True}, "and nothing else"),
        ({"include_pii": "yes"}, "true or false"),
        ({"to": "lists"}, "begins with /"),
        ({"to": "https://crm.example/lists?key=secret"}, "a password or a query"),
        ({"org_id": "*", "segment": "Nobody"}, "No org has a segment 'Nobody'"),
    ],
)
def test_a_file_that_cannot_be_used_says_why_and_asks_for_nothing(connection, declare, content, reason):
    declare(**content)
    [one] = standing_exports.make(connection, NIGHT)
    assert reason in one.error and "secret" not in one.error and one.export_name == "standing_exports/nightly.yml"
    assert outcomes(connection) == []


def test_two_files_with_one_name_are_refused_and_the_first_is_made(connection, declare, tmp_path):
    declare("A")
    (tmp_path / "standing_exports" / "b.yml").write_text((tmp_path / "standing_exports" / "a.yml").read_text())
    first, second = standing_exports.make(connection, NIGHT)
    assert first.entry.outcome == "delivered" and "declares 'A' for org north_hall too" in second.error


def test_a_night_is_a_date_in_the_zone_of_the_schedule(monkeypatch):
    late = datetime(2026, 7, 1, 23, 30, tzinfo=UTC)
    monkeypatch.delenv("AUDIENCE_SCHEDULE_TIME_ZONE", raising=False)
    assert standing_exports.night_of(late) == NIGHT
    monkeypatch.setenv("AUDIENCE_SCHEDULE_TIME_ZONE", "Europe/Berlin")
    assert standing_exports.night_of(late) == NEXT


def test_the_command_shows_them_and_makes_what_is_missing(connection):
    """Of the project itself, which declares none."""
    assert "Standing exports" in audience("exports", "standing").stdout
    made = audience("exports", "standing", "--make", "--json")
    assert (made.returncode, json.loads(made.stdout)) == (0, [])


def test_a_step_of_dagster_does_what_it_can_and_is_red_for_the_rest(connection, declare):
    from orchestration.defs.segments import segments_and_standing_exports

    declare("Good")
    declare("Wrong", segment="Nobody")
    connection.execute(
        'update audience_state.audience_segments set filter = \'{"combinator": "and", "rules": [{"field": "gone", "operator": "=", "value": 1}]}\''
        " where org_id = %s",
        [OTHER_ORG],
    )
    with dg.instance_for_test() as instance:
        step = [segments_and_standing_exports]
        failed = dg.materialize(step, instance=instance, raise_on_error=False)
        assert not failed.success
        [failure] = failed.get_step_failure_events()
        names = failure.step_failure_data.user_failure_data.metadata["failed"].value
        assert names == f"segment Every body of {OTHER_ORG}, export Wrong of {ORG}"
        shown = {
            one.asset_key.path[-1]: one.metadata
            for one in failed.asset_materializations_for_node("segments_and_standing_exports")
        }
        assert shown["segment_memberships"]["members"].value > 0
        assert shown["standing_exports"]["not made"].value == 1 and shown["standing_exports"]["rows"].value > 0
        assert "no segment 'Nobody'" in shown["standing_exports"]["by export"].value
        assert len(files()) == 1

        segments.delete_segment(connection, "Every body", OTHER_ORG)
        declare("Wrong")
        resumed = dg.materialize(
            step, instance=instance, tags={"dagster/root_run_id": failed.run_id, "dagster/parent_run_id": failed.run_id}
        )
        assert resumed.success and len(files()) == 2
