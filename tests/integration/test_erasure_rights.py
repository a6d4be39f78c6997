"""Erasure and subject export, persona by persona, negatives first: by the command, and by the functions behind it."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
import pytest
from psycopg import errors, sql
from psycopg.types.json import Jsonb

from orchestration import database, members, segments
from orchestration.build import build
from orchestration.exports import door, files, log, runner
from orchestration.load import load_files
from orchestration.rights import catalogue, erasure
from tests import people
from tests.filters import group, rule
from tests.projects import AS_OF, audience
from tests.readings import write

NAMES = {
    name: f"{name}_of_erasure_{os.getpid()}"
    for name in ("stranger", "reader", "analyst", "admin", "other_reader", "other_admin")
}
ORG, OTHER_ORG = "north_hall", "harbor_live"
STATE = "audience_state"
ANN = {"emails": ["ann@example.com"], "phones": [], "user_ids": [], "device_ids": [], "event_ids": []}
REQUESTS = f"select login_name, org_id, kind, refused_because, rows_by_table from {STATE}.subject_requests order by requested_at"


def event(number: int, org: str, user: str, email: str | None = None) -> dict[str, Any]:
    moment = f"2026-06-01T{number % 24:02}:00:00Z"
    return {"event_id": f"e{number}", "org_id": org, "event_type": "page_view", "occurred_at": moment, "received_at": moment,
            "anonymous_id": f"phone of {user}", "user_id": user, "properties": {"email": email} if email else {}}  # fmt: skip


@pytest.fixture(scope="module")
def built(module_database: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[psycopg.Connection]:
    """The owner's connection; ann is a customer of both orgs, and every persona is a login."""
    folder = tmp_path_factory.mktemp("erasure_rights")
    with database.connect(autocommit=True) as connection, pytest.MonkeyPatch.context() as patch:
        patch.setenv("AUDIENCE_HOME", str(folder / "home"))
        rows = [event(n, ORG, f"other {n}") for n in range(60)]
        rows += [event(61, ORG, "ann", "ann@example.com"), event(62, OTHER_ORG, "ann", "ann@example.com")]
        rows += [event(63, ORG, "eva", "eva@example.com"), event(64, OTHER_ORG, "bob", "bob@example.com")]
        load_files([write(folder / "events.ndjson", rows)])
        for name in NAMES.values():
            connection.execute(sql.SQL("create role {} login password 'secret'").format(sql.Identifier(name)))
        try:
            build(as_of=AS_OF)
            for name in ("reader", "analyst", "admin"):
                members.add(NAMES[name], [ORG], name)
            members.add(NAMES["other_reader"], [OTHER_ORG], "reader")
            members.add(NAMES["other_admin"], [OTHER_ORG], "admin")
            yield connection
        finally:
            for name in NAMES.values():
                connection.execute(sql.SQL("drop owned by {0}; drop role {0}").format(sql.Identifier(name)))


@pytest.fixture
def owner(built: psycopg.Connection) -> psycopg.Connection:
    """The owner's connection; nobody has asked for anything."""
    built.execute(f"delete from {STATE}.subject_requests")
    return built


@contextmanager
def logged_in(name: str) -> Iterator[psycopg.Connection]:
    with psycopg.connect(user=NAMES[name], password="secret", autocommit=True, options="-c timezone=UTC") as connection:
        yield connection


@pytest.fixture
def as_login(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Makes the command one of a persona."""

    def log_in(name: str) -> None:
        monkeypatch.setenv("PGUSER", NAMES[name])
        monkeypatch.setenv("PGPASSWORD", "secret")

    return log_in


def everything(connection: psycopg.Connection) -> Any:
    return people.rows_of_people(connection)


def tables(connection: psycopg.Connection) -> Jsonb:
    return catalogue.as_argument(catalogue.personal_tables(connection))


COMMANDS = (
    ("erase", "--email", "ann@example.com"), ("erase", "--email", "ann@example.com", "--yes"),
    ("subject-export", "--email", "ann@example.com", "--out", "{out}"),
)  # fmt: skip


@pytest.mark.parametrize(
    ("name", "org", "sentence"),
    [
        ("stranger", ORG, "nobody's member here (permission denied"),
        ("reader", ORG, "may not do this: the data of a person need the role audience_admin: ask an administrator for it."),
        ("analyst", ORG, "may not do this: the data of a person need the role audience_admin: ask an administrator for it."),
        ("other_reader", ORG, "may not do this: the data of a person need the role audience_admin: ask an administrator for it."),
        ("other_admin", ORG, "may not do this: org 'north_hall' is not one of yours: ask an administrator for it."),
        ("admin", OTHER_ORG, "may not do this: org 'harbor_live' is not one of yours: ask an administrator for it."),
    ],
)  # fmt: skip
def test_who_may_not_is_told_and_that_is_kept(owner, as_login, tmp_path, name, org, sentence):
    before = everything(owner)
    as_login(name)
    for command in COMMANDS:
        result = audience(*(part.format(out=tmp_path / "out.json") for part in command), "--org", org)
        assert result.returncode == 2 and result.stderr.startswith("audience: ") and sentence in result.stderr
        assert (result.stdout, result.stderr.count("\n")) == ("", 1)
    assert everything(owner) == before and not list(tmp_path.iterdir())
    kept = owner.execute(REQUESTS).fetchall()
    assert len(kept) == (0 if name == "stranger" else 3)
    assert {kind for _, _, kind, _, _ in kept} == ({"preview", "erasure", "export"} if kept else set())
    assert all((login, asked, rows) == (NAMES[name], org, {}) and refusal in sentence for login, asked, _, refusal, rows in kept)  # fmt: skip


@pytest.mark.parametrize("name", list(NAMES))
def test_what_lies_behind_is_granted_to_nobody(owner, name):
    with logged_in(name) as persona:
        for statement in (
            f"select {STATE}.find_subject('{ORG}', '{{}}')", f"select {STATE}.rows_of_subject('{{}}', '[]', false)",
            f"select {STATE}.count_rows_of_subject('{{}}', '[]')", f"select {STATE}.deliveries_of_subject('{ORG}', '{{}}')",
            f"select {STATE}.org_of_request(gen_random_uuid(), '{{}}')", f"select {STATE}.rejections_of_subject('{{}}')",
            f"select {STATE}.remove_memberships('{ORG}', '{{}}')", f"table {STATE}.subject_requests", "table analytics.tombstones",
            f"update {STATE}.subject_requests set refused_because = null", "delete from analytics.tombstones",
            "select analytics.erased_texts('{}', '{}')", "select analytics.ensure_erased_stay_out()",
            "do $$ begin lock table analytics.events; end $$",
        ):  # fmt: skip
            with pytest.raises(errors.InsufficientPrivilege):
                persona.execute(statement)


@pytest.mark.parametrize("name", ["reader", "analyst", "other_admin"])
def test_a_request_is_of_who_made_it(owner, name):
    """Also when the functions were granted by hand, and by the id of another's request."""
    with logged_in("admin") as admin:
        (open_request,) = admin.execute(f"select new_id from {STATE}.request_subject(%s, 'export')", [ORG]).fetchone()
    functions = ("read_subject(uuid, jsonb, jsonb)", "erase_subject(uuid, jsonb, jsonb)")
    for function in functions:
        owner.execute(sql.SQL(f"grant execute on function {STATE}.{function} to {{}}").format(sql.Identifier(NAMES[name])))  # fmt: skip
    before = everything(owner)
    try:
        with logged_in(name) as persona:
            refused, refusal = persona.execute(
                f"select * from {STATE}.request_subject(%s, 'erasure')", [ORG]
            ).fetchone()
            assert "ask an administrator" in refusal
            for request in (open_request, refused):
                for function in ("read_subject", "erase_subject"):
                    with pytest.raises(errors.InsufficientPrivilege, match="is not open to you"):
                        persona.execute(f"select {STATE}.{function}(%s, %s, %s)", [request, Jsonb(ANN), tables(owner)])
    finally:
        for function in functions:
            if name != "other_admin":
                owner.execute(sql.SQL(f"revoke execute on function {STATE}.{function} from {{}}").format(sql.Identifier(NAMES[name])))  # fmt: skip
    assert everything(owner) == before


def test_nothing_is_told_that_could_be_taken_back_or_of_another_org(owner):
    reading = f"select {STATE}.read_subject(%s, %s, %s)"
    asking = f"select new_id from {STATE}.request_subject(%s, %s)"
    with logged_in("admin") as admin:
        # a request that is rolled back with its answer
        admin.execute("begin isolation level repeatable read")
        admin.execute("savepoint one")
        (request,) = admin.execute(asking, [ORG, "export"]).fetchone()
        admin.execute("release one")
        with pytest.raises(errors.InsufficientPrivilege, match="is not open to you"):
            admin.execute(reading, [request, Jsonb(ANN), tables(owner)])
        admin.execute("rollback")
        # another kind of request
        (request,) = admin.execute(asking, [ORG, "preview"]).fetchone()
        with pytest.raises(errors.InsufficientPrivilege, match="is not open to you"):
            admin.execute(f"select {STATE}.erase_subject(%s, %s, %s)", [request, Jsonb(ANN), tables(owner)])
        # tables that have rows of nobody, and columns that say whose a row is otherwise
        for schema, table, key in (
            ("analytics", "privacy_key", "subject"), ("pg_catalog", "pg_authid", "visitor_id"), (STATE, "org_members", "org_id"),
        ):  # fmt: skip
            named = Jsonb([{"schema_name": schema, "table_name": table, "key": key, "device": None}])
            with pytest.raises((errors.InvalidParameterValue, errors.UndefinedColumn)), admin.transaction():
                admin.execute("set transaction isolation level repeatable read")
                admin.execute(reading, [request, Jsonb(ANN), named])
        # an answer is given once
        with admin.transaction():
            admin.execute("set transaction isolation level repeatable read")
            (held,) = admin.execute(reading, [request, Jsonb(ANN), tables(owner)]).fetchone()
        assert held["rows_by_table"]["analytics.events"] == 1 and held["tables"] is None
        with pytest.raises(errors.InsufficientPrivilege, match="is not open to you"):
            admin.execute(reading, [request, Jsonb(ANN), tables(owner)])
        # the same address in the other org is another person
        (request,) = admin.execute(asking, [ORG, "export"]).fetchone()
        with admin.transaction():
            admin.execute("set transaction isolation level repeatable read")
            (held,) = admin.execute(reading, [request, Jsonb(ANN), tables(owner)]).fetchone()
        assert {row["org_id"] for rows in held["tables"].values() for row in rows} == {ORG}


def test_an_admin_exports_what_the_owner_would(owner, as_login, tmp_path):
    def told(file: str) -> dict[str, Any]:
        result = audience("subject-export", "--org", ORG, "--email", "ann@example.com", "--out", str(tmp_path / file))
        assert result.returncode == 0, result.stderr
        content = json.loads((tmp_path / file).read_text())
        return {name: content[name] for name in ("org_id", "identifiers", "tables", "deliveries")}

    as_owner = told("owner.json")
    as_login("admin")
    assert told("admin.json") == as_owner and as_owner["identifiers"]["visitor_ids"] == ["ann"]
    assert [(login, kind) for login, _, kind, _, _ in owner.execute(REQUESTS)][1:] == [(NAMES["admin"], "export")]
    assert (tmp_path / "admin.json").stat().st_mode & 0o777 == 0o600


def test_an_admin_erases_and_the_owner_finishes(owner, monkeypatch, tmp_path):
    with segments.connect() as own:
        segments.create_segment(own, "Every body", ORG, group(rule("events_count", ">=", 0)))
        runner.export_segment(own, "Every body", "a test", ORG, include_pii=True)
        waiting = door.request(own, ORG, "Every body", "a test", include_pii=False, is_delta=False, format_name="csv", destination="")  # fmt: skip
        _, counts = files.stream(own, waiting)
        door.record(own, waiting.export_id, "completed", "0" * 64, format_counts=counts)
        assert door.count_withdrawn(own, waiting.export_id) == 0
    words = {"eva@example.com", "phone of eva"}
    with monkeypatch.context() as patch:
        patch.setenv("PGUSER", NAMES["admin"])
        patch.setenv("PGPASSWORD", "secret")
        planned = json.loads(audience("erase", "--org", ORG, "--email", "eva@example.com", "--json").stdout)
        assert owner.execute("select count(*) from analytics.events where user_id = 'eva'").fetchone() == (1,)
        result = audience("erase", "--org", ORG, "--email", "eva@example.com", "--yes")
        assert result.returncode == 0, result.stderr
        assert "The tables follow with the next build." in result.stdout and "audience erase --finish" in result.stdout
        assert "eva" not in result.stdout
        finishing = audience("erase", "--finish")
        assert finishing.returncode == 2 and "may not build: leave audience erase --finish to" in finishing.stderr

    # what landed and who was a member is gone at once, and no list has her meanwhile; the derived rows wait
    held = people.rows_of_people(owner)
    has_eva = {name for name, rows in held.items() if any('"eva' in row or "of eva" in row for row in rows)}
    assert "audience.audience_customers" in has_eva
    assert not has_eva & {"analytics.events", f"{STATE}.segment_memberships", f"{STATE}.segment_export_members"}
    with segments.connect() as own:
        assert door.count_withdrawn(own, waiting.export_id) == 1  # so it is not delivered any more
        files.part_of(waiting).unlink()
        door.record(own, waiting.export_id, "failed")
        segments.materialize(own)
        done = runner.export_segment(own, "Every body", "a test", ORG, include_pii=True)
        assert (
            done.file is not None and "eva" not in done.file.read_text() and "ann@example.com" in done.file.read_text()
        )
        # also when suppressions were made anew
        own.execute(f"select {STATE}.refresh_suppressed_visitors(%s)", [ORG])
        assert "eva" not in runner.export_segment(own, "Every body", "a test", ORG, include_pii=True).file.read_text()

    suppressed = f"select {STATE}.is_suppressed(%s, 'eva', null, 'email')"
    assert owner.execute(suppressed, [ORG]).fetchone() == (True,)

    (receipt,) = erasure.finish()
    assert owner.execute(suppressed, [ORG]).fetchone() == (False,)
    assert receipt.login_name == NAMES["admin"] and receipt.rows_by_table == planned["rows_by_table"]
    assert len(receipt.files) == 1 and len(receipt.deliveries) == 2  # the one that waited, too
    assert people.traces(owner, words, log.exports_folder()) == set()
    assert owner.execute(f"select count(*) from {STATE}.suppressed_visitors").fetchone() == (0,)
    again = load_files([write(tmp_path / "again.ndjson", [event(65, ORG, "eva", "eva@example.com")])])
    assert (again.accepted, again.rejected_reasons) == (0, {"erased": 1})
    assert owner.execute("select count(*) from analytics.events where user_id = 'eva'").fetchone() == (0,)


def test_the_night_finishes_what_admins_erased(owner, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setenv("PGUSER", NAMES["admin"])
        patch.setenv("PGPASSWORD", "secret")
        assert audience("erase", "--org", ORG, "--user-id", "other 7", "--yes").returncode == 0
    with segments.connect() as own:
        done, still_open = erasure.finish_followed(own)
        assert not done and len(still_open) == 1 and "other 7" not in still_open[0]
        build(as_of=AS_OF)
        done, still_open = erasure.finish_followed(own)
        assert [one.login_name for one in done] == [NAMES["admin"]] and not still_open
    assert people.traces(owner, {"other 7", "phone of other 7"}, log.exports_folder()) == set()


def test_an_admin_is_told_when_nothing_is_held(owner, as_login):
    as_login("admin")
    for arguments in (("erase", "--yes"), ("erase",)):
        result = audience(*arguments, "--org", ORG, "--email", "bob@example.com")
        assert (result.returncode, result.stderr) == (2, "audience: Org 'north_hall' holds nothing on 'bob@example.com': check the org and the spelling.\n")  # fmt: skip
    assert owner.execute("select count(*) from analytics.events where user_id = 'bob'").fetchone() == (1,)
    assert owner.execute(f"select count(*) from {STATE}.subject_requests where subject is not null").fetchone() == (0,)
