"""The door of exports, persona by persona, negatives first: by tables, functions, COPY, errors and roles taken on."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg import errors, sql

from orchestration import database, members, segments, suppressions
from orchestration.build import build
from orchestration.errors import UserError
from orchestration.exports import door, log, runner
from orchestration.load import load_files
from orchestration.sample import write_sample
from tests.filters import group, rule
from tests.projects import AS_OF, END

NAMES = {
    name: f"{name}_of_exports_{os.getpid()}"
    for name in ("stranger", "other", "reader", "analyst", "colleague", "admin")
}
ORG, OTHER_ORG = "north_hall", "harbor_live"
STATE = "audience_state"
EVERYBODY = group(rule("events_count", ">=", 0))
REQUEST = f"select * from {STATE}.request_segment_export(%s, 'Every body', 'a test', false, %s, 'csv', '/', false)"
CONTACTS = ("email", "phone", "first_name", "last_name", "full_name")


@pytest.fixture(scope="module")
def owner(module_database: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[psycopg.Connection]:
    """The owner's connection; every persona is a login, and both orgs have a segment that was materialized."""
    folder = tmp_path_factory.mktemp("export_rights")
    with database.connect(autocommit=True) as connection, pytest.MonkeyPatch.context() as patch:
        patch.setenv("AUDIENCE_HOME", str(folder / "home"))
        for name in NAMES.values():
            connection.execute(sql.SQL("create role {} login password 'secret'").format(sql.Identifier(name)))
        try:
            load_files([file.path for file in write_sample(folder / "sample", events=3_000, seed=7, end=END)])
            build(as_of=AS_OF)
            for name, role in (
                ("reader", "reader"),
                ("analyst", "analyst"),
                ("colleague", "analyst"),
                ("admin", "admin"),
            ):
                members.add(NAMES[name], [ORG], role)
            members.add(NAMES["other"], [OTHER_ORG], "analyst")
            with segments.connect() as own:
                for org in (ORG, OTHER_ORG):
                    segments.create_segment(own, "Every body", org, EVERYBODY)
                segments.materialize(own)
            yield connection
        finally:
            for name in NAMES.values():
                connection.execute(sql.SQL("drop owned by {0}; drop role {0}").format(sql.Identifier(name)))


@contextmanager
def logged_in(name: str) -> Iterator[psycopg.Connection]:
    """A connection of a persona, which the runner uses too."""
    with psycopg.connect(user=NAMES[name], password="secret", autocommit=True, options="-c timezone=UTC") as connection:
        yield connection


def export(connection: psycopg.Connection, org: str = ORG, **options: Any) -> runner.Export:
    return runner.export_segment(connection, "Every body", "a test", org, **options)


def last(owner: psycopg.Connection) -> tuple[Any, ...]:
    query = f"select login_name, outcome, reason from {STATE}.segment_export_log order by log_number desc limit 1"
    return owner.execute(query).fetchone()


def entries(owner: psycopg.Connection) -> int:
    return owner.execute(f"select count(*) from {STATE}.segment_export_log").fetchone()[0]


ASKED = {"include_pii": False, "is_delta": False, "format_name": "csv", "destination": "/"}
OF_ANALYSTS = (
    f"select {STATE}.read_segment_export(gen_random_uuid())", f"select {STATE}.record_segment_export(gen_random_uuid(), 'failed', null, null)",
    f"table {STATE}.segment_export_log", f"table {STATE}.audience_segments", f"table {STATE}.segment_memberships",
)  # fmt: skip


def refuses(connection: psycopg.Connection, *statements: str) -> None:
    for statement in statements:
        with pytest.raises(errors.InsufficientPrivilege):
            connection.execute(statement)


def test_for_strangers_the_door_is_shut(owner):
    before = entries(owner)
    with logged_in("stranger") as connection:
        refuses(connection, *OF_ANALYSTS)
        with pytest.raises(errors.InsufficientPrivilege):
            connection.execute(REQUEST, [ORG, ["org_id"]])
        with pytest.raises(UserError, match="may export nothing"):
            door.request(connection, ORG, "Every body", "x", **ASKED)
    assert entries(owner) == before


def test_a_reader_is_refused_and_that_is_logged(owner, tmp_path):
    with logged_in("reader") as connection:
        refuses(connection, *OF_ANALYSTS)
        for org in (ORG, OTHER_ORG, None):
            before = entries(owner)
            with pytest.raises(UserError, match="need the role audience_analyst"):
                export(connection, org, to=str(tmp_path))
            assert entries(owner) == before + 1
            assert last(owner)[:2] == (NAMES["reader"], "refused")
        seen = door.ask(connection, ORG, "Every body", "x", **ASKED)
    assert (seen.filter, seen.filter_version, seen.rows_count) == (None, None, None)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("name", "org"), [("stranger", ORG), ("reader", ORG), ("analyst", ORG), ("admin", OTHER_ORG)])
def test_who_is_left_alone_is_for_the_admins_of_an_org_to_say(owner, name, org):
    with logged_in(name) as connection:
        with pytest.raises(UserError, match="may not do this"):
            suppressions.suppress(connection, org, ids=["somebody"])
        refuses(connection, f"table {STATE}.suppressions", "table analytics.privacy_key")
        refuses(
            connection,
            f"select {STATE}.refresh_suppressed_visitors()",
            f"select {STATE}.is_suppressed('o', 'v', null, 'all')",
        )
    assert owner.execute(f"select count(*) from {STATE}.suppressions").fetchone() == (0,)


def test_an_admin_says_who_is_left_alone_and_an_analyst_sees_whom(owner):
    (somebody,) = owner.execute(
        "select min(visitor_id) from audience.audience_customers where org_id = %s", [ORG]
    ).fetchone()
    with logged_in("admin") as connection:
        assert suppressions.suppress(connection, ORG, ids=[somebody]).changed_count == 1
    seen = f"select org_id, visitor_id, purpose from {STATE}.suppressed_visitors"
    with logged_in("analyst") as connection:
        assert connection.execute(seen).fetchall() == [(ORG, somebody, "all")]
    with logged_in("other") as connection:
        assert connection.execute(seen).fetchall() == []
    owner.execute(f"truncate {STATE}.suppressions, {STATE}.suppressed_visitors")


@pytest.mark.parametrize("name", ["analyst", "admin"])
def test_nothing_leaves_beside_the_door(owner, name):
    with logged_in(name) as connection:
        for statement in (
            "table audience_contacts.customer_contacts", f"table {STATE}.segment_export_members", f"table {STATE}.segment_export_lists",
            f"table {STATE}.org_members", f"insert into {STATE}.segment_export_log default values", f"update {STATE}.segment_export_log set purpose = ''",
            f"delete from {STATE}.segment_export_log", f"truncate {STATE}.segment_export_log", f"alter table {STATE}.segment_export_log disable trigger all",
            f"insert into {STATE}.segment_memberships values ('{ORG}', 'Every body', 'x', now())", f"update {STATE}.audience_segments set members_count = 1",
            f"update {STATE}.audience_segments set filter_version = 9", f"update {STATE}.audience_segments set org_id = '{OTHER_ORG}'",
            f"select {STATE}.own_export(gen_random_uuid())", f"select {STATE}.export_log_hash(null)", "set role audience_owner",
            f"copy {STATE}.segment_export_members to stdout", "explain analyze table audience_contacts.customer_contacts",
            f"create or replace function {STATE}.customers_as_of() returns timestamptz language sql as 'select now()'",
        ):  # fmt: skip
            with pytest.raises(errors.InsufficientPrivilege):
                connection.execute(statement)


def test_another_org_is_refused_as_one_that_nobody_has_and_logged(owner):
    with logged_in("analyst") as connection:
        for org in (OTHER_ORG, "never_heard"):
            with pytest.raises(UserError, match=f"there is no segment 'Every body' of org '{org}'"):
                export(connection, org)
            assert last(owner)[:2] == (NAMES["analyst"], "refused")
        for setting in (
            f"set role {NAMES['other']}", f"set session authorization {NAMES['other']}", f"select set_config('role', '{NAMES['other']}', false)",
            "set row_security = off", f"set audience.org = '{OTHER_ORG}'", "set search_path = pg_temp",
        ):  # fmt: skip
            try:
                connection.execute(setting)
            except errors.InsufficientPrivilege:
                assert "role" in setting or "session" in setting
            found = connection.execute(REQUEST, [OTHER_ORG, ["org_id"]]).fetchone()
            assert "refused" in found, setting


def test_personal_data_needs_the_admin_and_is_refused_to_the_analyst(owner):
    with logged_in("analyst") as connection:
        with pytest.raises(UserError, match="personal data needs the role audience_admin"):
            export(connection, include_pii=True)
        assert last(owner)[:2] == (NAMES["analyst"], "refused")
        for column in CONTACTS:
            found = connection.execute(REQUEST, [ORG, [column]]).fetchone()
            assert "refused" in found and any("contact details are personal data" in str(value) for value in found)
        done = export(connection)
        assert not set(CONTACTS) & set(done.entry.columns)
    with logged_in("admin") as connection:
        done = export(connection, include_pii=True)
        assert set(CONTACTS) <= set(done.entry.columns)
        contacts = owner.execute(
            "select email from audience_contacts.customer_contacts where org_id = %s and email is not null", [ORG]
        ).fetchall()
        text = done.file.read_text()
        assert contacts and any(email in text for (email,) in contacts)
    assert last(owner)[:2] == (NAMES["admin"], "delivered")


def test_a_column_that_is_none_is_refused(owner):
    with logged_in("admin") as connection:
        for column in ("xmin", "tableoid", "email from audience_contacts.customer_contacts --", "ctid"):
            assert "refused" in connection.execute(REQUEST, [ORG, [column]]).fetchone()


def test_a_request_is_its_logins_alone_and_is_read_once(owner):
    with logged_in("analyst") as connection, logged_in("colleague") as colleague:
        asked = {"include_pii": False, "is_delta": False, "format_name": "csv", "destination": "/"}
        entry = door.request(connection, ORG, "Every body", "a test", **asked)
        with (
            pytest.raises(errors.InvalidParameterValue, match=r"There is no export .* of yours"),
            door.reading(colleague),
        ):
            list(door.rows(colleague, entry))
        with pytest.raises(UserError, match=r"There is no export .* of yours"):
            door.record(colleague, entry.export_id, "failed")
        with pytest.raises(errors.InvalidParameterValue, match="isolation level repeatable read"):
            list(door.rows(connection, entry))
        with pytest.raises(UserError, match="is requested and cannot become delivered"):
            door.record(connection, entry.export_id, "delivered")
        with door.reading(connection):
            assert len(list(door.rows(connection, entry))) > 50
        with pytest.raises(errors.UniqueViolation), door.reading(connection):
            list(door.rows(connection, entry))
        door.record(connection, entry.export_id, "completed", "0" * 64)
        with pytest.raises(errors.InsufficientPrivilege, match="is not open to you"), door.reading(connection):
            list(door.rows(connection, entry))


@pytest.mark.parametrize("between", ["", "savepoint first", "commit and chain"])
def test_what_is_asked_for_is_read_after_it_is_committed(owner, between):
    """Else a list could be read, and its request be taken back."""
    with logged_in("analyst") as connection:
        connection.execute("begin isolation level repeatable read")
        if between == "savepoint first":
            connection.execute("savepoint before")
        entry = connection.execute(f"select export_id from ({REQUEST}) as asked", [ORG, ["org_id"]]).fetchone()
        rows = f"select count(*) from {STATE}.read_segment_export(%s) as listed (org_id text)"
        if between == "commit and chain":
            connection.execute("commit and chain")
            assert connection.execute(rows, entry).fetchone()[0] > 50
        else:
            with pytest.raises(errors.InvalidParameterValue, match="after its request is committed: commit"):
                connection.execute(rows, entry)
        connection.execute("rollback")


def test_a_membership_or_role_that_ended_shuts_the_request(owner):
    with logged_in("colleague") as connection:
        entry = door.request(
            connection, ORG, "Every body", "x", include_pii=False, is_delta=False, format_name="csv", destination="/"
        )
        members.remove(NAMES["colleague"])
        with pytest.raises(errors.InsufficientPrivilege), door.reading(connection):
            list(door.rows(connection, entry))
        members.add(NAMES["colleague"], [ORG], "reader")
        with pytest.raises(errors.InsufficientPrivilege), door.reading(connection):
            list(door.rows(connection, entry))
    members.add(NAMES["colleague"], [ORG], "analyst")
    with segments.connect() as own:
        assert entry.export_id in {done.export_id for done in runner.recover(own)}


def test_an_analyst_sees_the_segments_members_and_log_of_its_orgs(owner):
    with logged_in("other") as connection:
        export(connection, OTHER_ORG)
    with logged_in("analyst") as connection:
        export(connection)
        for table in ("audience_segments", "segment_memberships", "segment_export_log"):
            found = {org for (org,) in connection.execute(f"select org_id from {STATE}.{table}")}
            assert found == {ORG}, table


def test_an_analyst_keeps_segments_of_its_orgs(owner):
    with logged_in("analyst") as connection:
        made = segments.create_segment(connection, "Mine", ORG, EVERYBODY)
        assert (
            segments.update_segment(connection, "Mine", ORG, group(rule("orders_count", ">=", 1))).filter_version == 2
        )
        assert made.filter_version == 1
        assert [segment.segment_name for segment in segments.list_segments(connection, OTHER_ORG)] == []
        with pytest.raises(UserError, match=f"Org '{OTHER_ORG}' has no customers"):
            segments.create_segment(connection, "Mine", OTHER_ORG, EVERYBODY)
        with pytest.raises(errors.InsufficientPrivilege):
            connection.execute(
                f"insert into {STATE}.audience_segments (org_id, segment_name, description, origin, filter) values ('{OTHER_ORG}', 'x', '', 'stored', '{{\"rules\": []}}')"
            )
        (done,) = segments.materialize(connection, "Mine", ORG)
        assert "may not do this" in done.error
        with pytest.raises(UserError, match="its members were not observed since its filter changed"):
            runner.export_segment(connection, "Mine", "a test", ORG)
        figures = segments.preview(connection, EVERYBODY, ORG)
        assert figures.contactable_count is None and figures.size > 50
        segments.delete_segment(connection, "Mine", ORG)


def test_segments_of_files_are_not_the_analysts_to_change(owner):
    owner.execute(
        f"insert into {STATE}.audience_segments (org_id, segment_name, description, origin, filter) values ('{ORG}', 'Of a file', '', 'yaml', '{{\"rules\": []}}')"
    )
    with logged_in("analyst") as connection:
        for statement in (
            f"update {STATE}.audience_segments set description = 'x'",
            f"delete from {STATE}.audience_segments",
        ):
            assert connection.execute(f"{statement} where segment_name = 'Of a file'").rowcount == 0
    assert owner.execute(f"delete from {STATE}.audience_segments where segment_name = 'Of a file'").rowcount == 1


def test_a_request_is_no_path_to_files_of_others(owner, tmp_path: Path):
    victim = tmp_path / "report.csv.part"
    victim.write_text("theirs")
    with logged_in("analyst") as connection:
        for format_name in (f"/../{victim.stem}", "csv/../x"):
            query = (
                f"select * from {STATE}.request_segment_export(%s, 'Every body', 'a test', false, %s, %s, %s, false)"
            )
            assert "refused" in connection.execute(query, [ORG, ["org_id"], format_name, str(tmp_path)]).fetchone()
    with segments.connect() as own:
        runner.recover(own)
    assert victim.read_text() == "theirs"


def test_the_door_is_the_same_after_a_full_refresh_and_a_new_release(owner, tmp_path):
    build(as_of=AS_OF, full_refresh=True)
    owner.execute(
        "comment on schema audience_state is 'release of before'; delete from audience_state.model_state where model ~ '^(view|function) '"
    )
    build(as_of=AS_OF)
    test_for_strangers_the_door_is_shut(owner)
    test_a_reader_is_refused_and_that_is_logged(owner, tmp_path)
    test_nothing_leaves_beside_the_door(owner, "analyst")
    test_personal_data_needs_the_admin_and_is_refused_to_the_analyst(owner)
    assert log.verify_log().rows == entries(owner)
