"""Segments as state: made, changed, observed again and again and by several at once, synced, and kept through rebuilds."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dagster
import psycopg
import pytest
import yaml
from psycopg.types.json import Jsonb

from orchestration import database, dbt, segments
from orchestration.build import build
from orchestration.defs.segments import SEGMENTS, segments_and_standing_exports
from orchestration.errors import CheckFailed, UserError
from orchestration.filters import parse_filter
from orchestration.people import read_catalog
from tests.filters import HOSTILE, group, rule
from tests.projects import AS_OF, audience, build_sample, own_project, people_as_before

ORG = "north_hall"
BUYERS = group(rule("orders_count", ">=", 1))
MEMBERS = "select visitor_id from audience.audience_customers where org_id = 'north_hall' and orders_count >= 1 and not is_opted_out"
STAYS = "select visitor_id, entered_at, left_at from audience_state.segment_memberships where segment_name = %s order by 1, 2"
SHIPPED = {"Cart Abandoners", "Champions", "High-Intent Mobile", "Mobile 3G Non-Buyers", "Win-back"}


@pytest.fixture(scope="module")
def built(module_database: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A built sample, and a copy of the project for the module's own segments."""
    with own_project(tmp_path_factory.mktemp("segments") / "project") as folder:
        build_sample(folder.parent, 4_000)
        yield folder


@pytest.fixture
def connection(built: Path) -> Iterator[psycopg.Connection]:
    """A connection; there are no segments before, and the customers are as built afterwards."""
    with segments.connect() as connection:
        connection.execute("delete from audience_state.audience_segments")
        with people_as_before(connection):
            yield connection


def state(connection: psycopg.Connection) -> list[tuple[Any, ...]]:
    """Every row of the tables of segments, as text."""
    rows = connection.execute(
        "select s::text from audience_state.audience_segments as s union all select m::text from audience_state.segment_memberships as m order by 1"
    )
    return rows.fetchall()


def names(connection: psycopg.Connection, query: str) -> set[str]:
    return {name for (name,) in connection.execute(query)}


def current(connection: psycopg.Connection, name: str = "Buyers") -> set[str]:
    return {visitor for visitor, _, left in connection.execute(STAYS, [name]) if left is None}


def materialize_one(connection: psycopg.Connection) -> tuple[int | None, int, int]:
    (done,) = segments.materialize(connection, "Buyers")
    assert done.error is None
    return done.members_count, done.entered_count, done.left_count


def test_members_enter_leave_and_come_back(connection):
    segments.create_segment(connection, "Buyers", ORG, BUYERS)
    buyers = names(connection, MEMBERS)
    size = len(buyers)
    assert size > 5
    assert materialize_one(connection) == (size, size, 0)
    assert current(connection) == buyers
    assert materialize_one(connection) == (size, 0, 0)

    gone = min(buyers)
    connection.execute("update audience.audience_customers set orders_count = 0 where visitor_id = %s", [gone])
    assert materialize_one(connection) == (size - 1, 0, 1)
    connection.execute("update audience.audience_customers set orders_count = 1 where visitor_id = %s", [gone])
    assert materialize_one(connection) == (size, 1, 0)
    assert current(connection) == buyers
    stays = [stay for stay in connection.execute(STAYS, ["Buyers"]) if stay[0] == gone]
    assert len(stays) == 2
    assert stays[0][1] < stays[0][2] < stays[1][1]
    assert stays[1][2] is None


def test_opted_out_people_are_in_no_segment(connection):
    segments.create_segment(connection, "Buyers", ORG, BUYERS)
    segments.create_segment(connection, "Opted out", ORG, group(rule("is_opted_out", "=", True)))
    buyers = names(connection, MEMBERS)
    connection.execute(
        "update audience.audience_customers set is_opted_out = true where visitor_id = %s", [min(buyers)]
    )
    segments.materialize(connection)
    assert current(connection) == buyers - {min(buyers)}
    assert current(connection, "Opted out") == set()
    assert segments.preview(connection, group(rule("is_opted_out", "=", True)), ORG).size == 0


def test_a_changed_filter_is_a_new_version_and_moves_its_members(connection):
    first = segments.create_segment(connection, "Buyers", ORG, BUYERS, "Bought")
    segments.materialize(connection)
    same = segments.update_segment(connection, "Buyers", document=BUYERS, description="Bought once")
    assert (same.filter_version, same.description) == (1, "Bought once")
    changed = segments.update_segment(connection, "Buyers", document=group(rule("orders_count", "=", 0)))
    assert (changed.filter_version, changed.description, changed.materialized_filter_version) == (2, "Bought once", 1)
    assert changed.updated_at > first.updated_at and changed.created_at == first.created_at
    members, entered, left = materialize_one(connection)
    assert (members, left) == (entered, len(names(connection, MEMBERS)))
    after = segments.find_segment(connection, "Buyers")
    assert (after.members_count, after.materialized_filter_version) == (members, 2)
    assert after.materialized_as_of.isoformat() == AS_OF


def test_several_at_once_keep_one_history(connection):
    segments.create_segment(connection, "Buyers", ORG, BUYERS)
    buyers = names(connection, MEMBERS)
    failed: list[BaseException] = []

    def work() -> None:
        try:
            with segments.connect() as own:
                for _ in range(10):
                    assert materialize_one(own)[0] == len(buyers)
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not failed
    assert [visitor for visitor, _, _ in connection.execute(STAYS, ["Buyers"])] == sorted(buyers)


def test_a_sync_beside_materializations_waits_for_them(connection, files):
    segments.sync(connection)
    content = yaml.safe_load((files / "champions.yml").read_text())
    failed: list[BaseException] = []

    def work() -> None:
        try:
            with segments.connect() as own:
                for _ in range(30):
                    segments.check(segments.materialize(own, "Champions", ORG))
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for number in range(10):
        (files / "champions.yml").write_text(
            yaml.safe_dump({**content, "filter": group(rule("orders_count", ">=", number))})
        )
        segments.sync(connection)
    for thread in threads:
        thread.join(60)
    assert not failed
    assert segments.find_segment(connection, "Champions", ORG).filter_version == 11


def test_a_clock_that_goes_back_breaks_no_history(connection):
    segments.create_segment(connection, "Buyers", ORG, BUYERS)
    materialize_one(connection)
    connection.execute("update audience_state.audience_segments set materialized_at = '2999-01-01'")
    connection.execute("update audience_state.segment_memberships set entered_at = '2999-01-01'")
    connection.execute("update audience.audience_customers set orders_count = 0")
    assert materialize_one(connection)[0] == 0
    assert current(connection) == set()


def test_a_segment_that_became_invalid_stops_no_other(connection):
    for name in ("Aborted", "Buyers"):
        segments.create_segment(connection, name, ORG, BUYERS)
    materialize_one(connection)
    broken = json.dumps(group(rule("former_column", "=", 1)))
    connection.execute(
        "update audience_state.audience_segments set filter = %s where segment_name = 'Aborted'", [broken]
    )
    done = segments.materialize(connection)
    assert [(one.segment_name, bool(one.error)) for one in done] == [("Aborted", True), ("Buyers", False)]
    with pytest.raises(CheckFailed, match=r"Aborted of north_hall: rules\[0\]: field 'former_column' is not known"):
        segments.check(done)


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_filter_is_refused_and_nothing_else_happens(connection, name):
    segments.create_segment(connection, "Buyers", ORG, BUYERS)
    before = state(connection)
    limits = read_catalog().limits
    for attempt in (
        lambda document: segments.create_segment(connection, "Other", ORG, document),
        lambda document: segments.update_segment(connection, "Buyers", document=document),
        lambda document: segments.preview(connection, document, ORG),
    ):
        with pytest.raises(UserError):
            attempt(parse_filter(HOSTILE[name], limits))
    assert state(connection) == before


@pytest.mark.parametrize("name", ["", " Buyers", "Buy\ners", "x" * 151], ids=["empty", "space", "line", "long"])
def test_a_name_that_is_none_is_refused(connection, name):
    with pytest.raises(UserError, match="is no name of a segment"):
        segments.create_segment(connection, name, ORG, BUYERS)


def test_a_text_is_a_name_whatever_is_in_it(connection):
    name = """Robert'); drop table audience_segments; -- "%s" {x}"""
    segments.create_segment(connection, name, ORG, BUYERS, description=name)
    segments.materialize(connection, name)
    assert segments.find_segment(connection, name, ORG).members_count == len(names(connection, MEMBERS))
    assert segments.delete_segment(connection, name).description == name
    assert state(connection) == []


# The command


def refused(*arguments: str) -> str:
    result = audience("segments", *arguments)
    assert (result.returncode, result.stdout) == (2, "")
    assert len(result.stderr.splitlines()) == 1 and result.stderr.startswith("audience: ")
    return result.stderr


def printed(*arguments: str, code: int = 0) -> Any:
    result = audience("segments", *arguments, "--json")
    assert result.returncode == code, result.stderr
    return json.loads(result.stdout)


def test_the_command_makes_changes_and_deletes_segments(connection, tmp_path):
    file = tmp_path / "filter.json"
    file.write_text(json.dumps(BUYERS))
    draft = printed("preview", "--filter", str(file), "--org", ORG)
    made = printed("create", "Buyers", "--org", ORG, "--filter", str(file), "--description", "Bought")
    assert (made["filter"], made["origin"], made["filter_version"], made["members_count"]) == (
        BUYERS,
        "stored",
        1,
        None,
    )
    assert printed("materialize", "Buyers")[0]["members_count"] == draft["size"] == len(names(connection, MEMBERS))
    assert printed("preview", "Buyers") == draft
    assert printed("show", "Buyers")["members_count"] == draft["size"]
    assert [segment["segment_name"] for segment in printed("list", "--org", ORG)] == ["Buyers"]
    file.write_text(json.dumps(group(rule("orders_count", ">", 1))))
    assert printed("update", "Buyers", "--filter", str(file))["filter_version"] == 2
    for arguments in (["list"], ["show", "Buyers"], ["preview", "Buyers"], ["materialize"]):
        result = audience("segments", *arguments)
        assert (result.returncode, "north_hall" in result.stdout) == (0, True), result.stderr

    assert "orders_count" in refused(
        "create", "Other", "--org", ORG, "--filter", _file(tmp_path, group(rule("order_count", "=", 1)))
    )
    assert "already: update it" in refused("create", "Buyers", "--org", ORG, "--filter", str(file))
    assert "there are harbor_live, north_hall" in refused("create", "Other", "--org", "nobody", "--filter", str(file))
    assert "There is no segment 'Sellers'" in refused("show", "Sellers")
    assert "Nothing to update" in refused("update", "Buyers")
    assert "Give the name of a segment" in refused("preview")
    assert "cannot be read" in refused("preview", "--org", ORG, "--filter", "gone.json")
    assert "larger than 65,536 bytes" in refused("preview", "--org", ORG, "--filter", _file(tmp_path, "x" * 10_000_000))

    assert "Deleted segment Buyers of north_hall" in audience("segments", "delete", "Buyers").stdout
    assert state(connection) == []
    assert "audience segments sync" in audience("segments", "list").stdout


def _file(folder: Path, document: Any) -> str:
    path = folder / "other.json"
    path.write_text(json.dumps(document))
    return str(path)


def test_a_name_that_several_orgs_have_needs_the_org(connection):
    for org_id in (ORG, "harbor_live"):
        segments.create_segment(connection, "Buyers", org_id, BUYERS)
    with pytest.raises(UserError, match=r"Several orgs .*harbor_live, north_hall.*--org"):
        segments.find_segment(connection, "Buyers")
    assert segments.find_segment(connection, "Buyers", ORG).org_id == ORG


# Declared segments


def test_shipped_segments_are_synced_by_plan(connection, built):
    plan = audience("segments", "sync", "--plan")
    assert plan.returncode == 1
    assert "create: Win-back of north_hall: (lifecycle_stage in at_risk, churned and orders_count >= 1)" in plan.stdout
    assert "10 segments differ" in plan.stderr
    assert state(connection) == []

    assert {(change["action"], change["segment_name"]) for change in printed("sync")} == {
        ("create", name) for name in SHIPPED
    }
    assert printed("sync", "--plan") == printed("sync") == []
    found = segments.list_segments(connection)
    assert {(one.org_id, one.segment_name, one.origin) for one in found} == {
        (org_id, name, "yaml") for org_id in (ORG, "harbor_live") for name in SHIPPED
    }
    for one in found:
        assert not segments.materialize(connection, one.segment_name, one.org_id)[0].error


@pytest.fixture
def files(built: Path) -> Iterator[Path]:
    """The folder of declared segments, as it was afterwards."""
    folder = built / "segments"
    before = {path: path.read_text() for path in folder.glob("*.yml")}
    yield folder
    for path in folder.glob("*.yml"):
        path.unlink()
    for path, text in before.items():
        path.write_text(text)


def test_sync_follows_the_files(connection, files):
    segments.sync(connection)
    content = yaml.safe_load((files / "champions.yml").read_text())
    changed = {**content, "filter": group(rule("orders_count", ">=", 9)), "org_id": ORG}
    (files / "champions.yml").write_text(yaml.safe_dump(changed))
    described = (files / "win_back.yml").read_text().replace("Bought before", "Bought once")
    (files / "win_back.yml").write_text(described)
    plan = segments.sync(connection, plan=True)
    assert {(change.action, change.org_id, change.segment_name, change.what) for change in plan} == {
        ("update", ORG, "Champions", "(lifecycle_stage = champion) -> (orders_count >= 9)"),
        ("delete", "harbor_live", "Champions", "with the history of its members"),
        ("update", ORG, "Win-back", "description"),
        ("update", "harbor_live", "Win-back", "description"),
    }
    assert segments.sync(connection) == plan
    assert segments.sync(connection) == []
    champions = segments.find_segment(connection, "Champions")
    assert (champions.org_id, champions.filter_version, champions.filter) == (ORG, 2, changed["filter"])
    assert segments.find_segment(connection, "Win-back", ORG).filter_version == 1


def test_stored_segments_and_files_keep_apart(connection, files):
    segments.sync(connection)
    for attempt in (segments.delete_segment, lambda *key: segments.update_segment(*key, description="mine")):
        with pytest.raises(UserError, match=r"declared in segments/: change it there"):
            attempt(connection, "Champions", ORG)
    segments.create_segment(connection, "Buyers", ORG, BUYERS)
    assert segments.sync(connection) == []
    (files / "buyers.yml").write_text(
        yaml.safe_dump({"name": "Buyers", "org_id": "*", "description": "", "filter": BUYERS})
    )
    before = state(connection)
    with pytest.raises(UserError, match=r"segments/buyers\.yml: org north_hall has a stored segment 'Buyers'"):
        segments.sync(connection)
    assert state(connection) == before


GOOD = {"name": "New", "org_id": "*", "description": "", "filter": BUYERS}


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("{", r"segments/new\.yml is no YAML"),
        ("[]", r"segments/new\.yml: give name, org_id"),
        (yaml.safe_dump({**GOOD, "owner": "me"}), r"segments/new\.yml: give name, org_id"),
        (yaml.safe_dump({**GOOD, "name": "New "}), r"segments/new\.yml: 'New ' is no name"),
        (
            yaml.safe_dump({**GOOD, "filter": group(rule("sex", "=", "f"))}),
            r"segments/new\.yml: rules\[0\]: field 'sex'",
        ),
        (
            "name: New\norg_id: '*'\ndescription: ''\nfilter: {1: 2, combinator: and}",
            r"segments/new\.yml: filter: '1' is nothing",
        ),
        (
            yaml.safe_dump({**GOOD, "name": "Champions"}),
            r"segments/new\.yml: segments/champions\.yml declares 'Champions'",
        ),
    ],
)
def test_a_file_that_is_no_segment_is_refused(connection, files, text, sentence):
    (files / "new.yml").write_text(text)
    with pytest.raises(UserError, match=sentence):
        segments.sync(connection)
    assert state(connection) == []


def test_without_the_folder_nothing_is_deleted(connection, built, monkeypatch, tmp_path):
    segments.sync(connection)
    (built / "segments").rename(tmp_path / "segments")
    try:
        with pytest.raises(UserError, match="There is no folder"):
            segments.sync(connection)
    finally:
        (tmp_path / "segments").rename(built / "segments")
    assert len(segments.list_segments(connection)) == 10


# Builds


def test_a_build_materializes_and_a_full_refresh_keeps_segments(connection, files):
    segments.sync(connection)
    segments.create_segment(connection, "Buyers", ORG, BUYERS)
    report = build(as_of=AS_OF)
    assert {(one.org_id, one.segment_name) for one in report.segments} == {
        (one.org_id, one.segment_name) for one in segments.list_segments(connection)
    }
    assert current(connection) == names(connection, MEMBERS)
    stays = connection.execute(STAYS, ["Buyers"]).fetchall()

    again = build(as_of=AS_OF, full_refresh=True)
    assert {(one.entered_count, one.left_count) for one in again.segments} == {(0, 0)}
    assert connection.execute(STAYS, ["Buyers"]).fetchall() == stays
    assert build(as_of=AS_OF, select="orgs").segments == []


def test_dagster_materializes_and_shows_counts_alone(connection, files):
    segments.sync(connection)
    segments.create_segment(connection, "Buyers | all", ORG, BUYERS)
    run = dagster.materialize([segments_and_standing_exports], selection=[SEGMENTS])
    (shown,) = [event.materialization.metadata for event in run.get_asset_materialization_events()]
    stored = {(one.org_id, one.segment_name): one.members_count for one in segments.list_segments(connection)}
    assert (shown["segments"].value, shown["members"].value) == (len(stored), sum(stored.values()))
    assert (shown["entered"].value, shown["left"].value) == (sum(stored.values()), 0)
    buyers = stored[ORG, "Buyers | all"]
    assert f"| {ORG} | Buyers \\| all | {buyers} | {buyers} | 0 |  |" in shown["by segment"].value.splitlines()
    assert not any(name in shown["by segment"].value for name in names(connection, MEMBERS))

    broken = Jsonb(group(rule("gone", "=", 1)))
    connection.execute(
        "update audience_state.audience_segments set filter = %s where segment_name = 'Buyers | all'", [broken]
    )
    again = dagster.materialize([segments_and_standing_exports], selection=[SEGMENTS], raise_on_error=False)
    assert not again.success
    assert current(connection, "Buyers | all") == names(connection, MEMBERS)


def test_the_tables_are_made_beside_those_of_an_older_release(database):
    with segments.connect() as connection:
        connection.execute(
            "drop table audience_state.segment_memberships, audience_state.audience_segments, audience_state.segment_export_members, audience_state.suppressed_visitors"
        )
        connection.execute("comment on schema audience_state is 'release of before'")
    with segments.connect() as connection:
        assert segments.list_segments(connection) == []
        with pytest.raises(UserError, match=r"Nothing was built .* run audience build"):
            segments.sync(connection)


def test_making_the_tables_again_keeps_what_is_in_them(connection):
    segments.create_segment(connection, "Buyers", ORG, BUYERS)
    segments.materialize(connection)
    before = state(connection)
    connection.execute("comment on schema audience_state is 'release of before'")
    dbt.prepare()
    with database.connect() as other:
        assert other.execute("select obj_description('audience_state'::regnamespace)").fetchone() != (
            "release of before",
        )
    assert state(connection) == before
