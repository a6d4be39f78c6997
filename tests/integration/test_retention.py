"""What is kept for a time only: which rows lose their personal data, by brute force; that nothing else moves; interruptions."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg import sql
from psycopg.types.json import Jsonb

from orchestration import database, dbt
from orchestration.build import build
from orchestration.errors import CheckFailed
from orchestration.load import load_files
from tests.projects import own_project
from tests.states import differences

ORG = "north_hall"
DAYS = 30
NOW = datetime.now(UTC).replace(microsecond=0)
PERSONAL = {"email", "phone", "first_name", "last_name", "name"}
AGES = (0, 1, 29, 31, 100, 400)  # days since receipt
DETAILS: tuple[dict[str, Any], ...] = (
    {"email": "a@example.com", "utm_source": "mail", "emails": "no"},
    {"phone": None, "first_name": "Ada", "nested": {"email": "kept@example.com"}},
    {"last_name": "L", "name": "Ada L", "page_load_ms": 5},
    {"product": "Ticket", "revenue": "12.50", "order_id": "o1", "email": "a@example.com"},
    {"utm_source": "mail"},
)
# With personal data, and unusable: by its reason.
UNUSABLE: dict[str, dict[str, Any]] = {
    "negative_revenue": {"properties": {"revenue": "-1", "email": "r@example.com"}},
    "properties_not_an_object": {"properties": ["email", "r@example.com"]},
    "missing_org": {"org_id": None, "properties": {"email": "r@example.com"}},
    "time_too_early": {"occurred_at": "1980-01-01T00:00:00Z", "url": "https://x.example/?email=r@example.com"},
    # without its personal data it would be small enough
    "properties_too_large": {"properties": {"name": "".join(chr(0x4E00 + n * 7919 % 20000) for n in range(60_000))}},
}


def event(event_id: str, age: int, **columns: Any) -> dict[str, Any]:
    received = NOW - timedelta(days=age)
    return {"event_id": event_id, "org_id": ORG, "event_type": "page_view", "occurred_at": str(received - timedelta(hours=1)),
            "received_at": str(received), "anonymous_id": f"device {age}", "user_id": None, "properties": {}, **columns}  # fmt: skip


def land(connection: psycopg.Connection, *rows: dict[str, Any]) -> None:
    for row in rows:
        names = sql.SQL(", ").join(map(sql.Identifier, row))
        marks = sql.SQL(", ").join([sql.Placeholder()] * len(row))
        values = [Jsonb(value) if isinstance(value, dict | list) else value for value in row.values()]
        connection.execute(sql.SQL("insert into analytics.events ({}) values ({})").format(names, marks), values)


def of_all_ages() -> Iterator[dict[str, Any]]:
    for age in AGES:
        for number, properties in enumerate(DETAILS):
            kind = "purchase" if "revenue" in properties else "page_view"
            yield event(f"{age} {number}", age, event_type=kind, properties=properties)
            # received at the same moment, told apart by content; and later, which does not count
            yield event(
                f"{age} {number}",
                age,
                event_type=kind,
                properties=properties | {"email": "b@example.com", "utm_source": "ad"},
            )
            yield event(
                f"{age} {number}", age - 1, event_type=kind, properties=properties, anonymous_id=f"device {age}"
            )
        yield event(f"{age} of nobody", age, anonymous_id=None, properties=DETAILS[0])
        yield event(f"{age} opted out", age, properties=DETAILS[0] | {"dnt": "true"})
        yield event(f"{age} login", age, user_id=f"user {age % 2}", properties=DETAILS[1])
        for reason, columns in UNUSABLE.items():
            yield event(f"{age} {reason}", age, **columns)


def events(connection: psycopg.Connection) -> dict[int, dict[str, Any]]:
    """Landed rows by landing_id, without the number of the transaction that wrote them."""
    query = "select landing_id, to_jsonb(events) - 'landed_xid' from analytics.events"
    return dict(connection.execute(query).fetchall())


def is_old(row: dict[str, Any]) -> bool:
    return datetime.fromisoformat(row["received_at"]) < datetime.now(UTC) - timedelta(days=DAYS)


def is_unusable(row: dict[str, Any]) -> bool:
    return row["rejection_reason"] is not None or "properties_too_large" in (row["event_id"] or "")


def table(connection: psycopg.Connection, name: str) -> Counter[str]:
    return Counter(text for (text,) in connection.execute(f"select cast(t as text) from {name} as t"))


def tables(connection: psycopg.Connection) -> dict[str, Counter[str]]:
    """Every mart, session, order and customer."""
    found = connection.execute(
        "select format('%I.%I', schemaname, tablename) from pg_tables where tablename !~ '__changes$'"
        " and (schemaname = 'audience' or schemaname = 'audience_intermediate' and tablename <> 'int_events_enriched')"
    ).fetchall()
    return {name: table(connection, name) for (name,) in found}


def places(connection: psycopg.Connection) -> Counter[str]:
    return Counter(
        row
        for name in ("analytics.events", "analytics.rejected_rows", "audience_contacts.customer_contacts", "audience_intermediate.int_events_enriched")
        for row in connection.execute(f"select '{name}', xmin::text, ctid::text from {name}")
    )  # fmt: skip


def set_days(project: Path, days: int) -> None:
    file = project / "dbt_project.yml"
    lines = file.read_text().splitlines()
    kept = [
        line for line in lines if not line.startswith(("  personal_data_retention_days:", "  retention_batch_rows:"))
    ]
    place = kept.index("vars:") + 1
    kept[place:place] = [f"  personal_data_retention_days: {days}", "  retention_batch_rows: 7"]
    file.write_text("\n".join(kept))


def assert_equals_a_full_refresh(connection: psycopg.Connection) -> None:
    """A first build into a schema of its own, for the same moment."""
    (as_of,) = connection.execute(
        "select as_of from audience_state.model_state where model = 'audience_customers'"
    ).fetchone()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AUDIENCE_SCHEMA", "fresh")
        build(as_of=as_of.isoformat(), full_refresh=True)
    differing = differences(connection, "audience", "fresh")
    assert not differing, "\n".join(differing)


@pytest.fixture(scope="module")
def project(module_database: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with own_project(tmp_path_factory.mktemp("project")) as folder:
        yield folder


@pytest.fixture(scope="module")
def connection(project: Path) -> Iterator[psycopg.Connection]:
    """All ages have landed and were built, and nothing is too old yet."""
    with database.connect(autocommit=True) as connection:
        land(connection, *of_all_ages())
        for age in AGES:
            connection.execute(
                "insert into analytics.rejected_rows (rejection_id, org_id, rejection_reason, raw_row, received_at)"
                " values (%s, %s, 'invalid_json', %s, %s)",
                [f"row {age}", ORG, "r@example.com", NOW - timedelta(days=age)],
            )
        build(as_of=NOW.isoformat())
        yield connection


def test_old_rows_lose_what_is_personal_and_nothing_else_moves(connection, project):
    before, marts = events(connection), tables(connection)
    reasons = Counter(
        connection.execute("select rejection_reason, received_at from audience_contacts.rejected_events").fetchall()
    )
    assert any(row["properties"] and "email" in row["properties"] for row in before.values() if is_old(row))
    set_days(project, DAYS)
    build(as_of=NOW.isoformat())

    expected = {}
    for landing_id, row in before.items():
        if is_old(row) and not is_unusable(row):
            row = row | {"properties": {key: value for key, value in row["properties"].items() if key not in PERSONAL}}
        if not (is_old(row) and is_unusable(row)):
            expected[landing_id] = row
    assert events(connection) == expected
    assert len(expected) == len(before) - sum(age > DAYS for age in AGES) * len(UNUSABLE)
    assert reasons == Counter(
        connection.execute("select rejection_reason, received_at from audience_contacts.rejected_events").fetchall()
    )
    kept = dict(
        connection.execute(
            "select rejection_id, raw_row from analytics.rejected_rows where rejection_id like 'row %'"
        ).fetchall()
    )
    assert kept == {f"row {age}": "" if age > DAYS else "r@example.com" for age in AGES}
    assert tables(connection) == marts


def test_contacts_are_those_that_the_remaining_rows_say(connection):
    contacts = connection.execute(
        "select visitor_id, email, first_name, full_name from audience_contacts.customer_contacts"
    ).fetchall()
    said = [row for row in events(connection).values() if row["org_id"] == ORG and not is_unusable(row)]
    assert {visitor for visitor, *_ in contacts} == {"user 0", "user 1"}
    # devices 31, 100 and 400 belong to users 1, 0 and 0, as do those of 0, 1 and 29
    assert contacts and all(email in {row["properties"].get("email") for row in said} for _, email, *_ in contacts)
    devices = {
        device for (device,) in connection.execute("select distinct device_id from audience_contacts.contact_events")
    }
    assert devices == {f"device {age}" for age in AGES if age <= DAYS}
    assert_equals_a_full_refresh(connection)


def test_another_build_reads_and_writes_nothing_more(connection):
    before = places(connection)
    build(as_of=NOW.isoformat())
    assert places(connection) == before


def test_copies_that_are_sent_again_bring_nothing_back(connection, tmp_path):
    """From files they are told as copies; from a collector they are stripped by the next build."""
    before, marts = events(connection), tables(connection)
    copies = [
        row
        for row in of_all_ages()
        if "of nobody" not in row["event_id"] and row["event_id"].split(" ", 1)[1] not in UNUSABLE
    ]
    undated = [{key: value for key, value in row.items() if key != "received_at"} for row in copies]
    for name, rows in (("copies", copies), ("undated", undated)):
        file = tmp_path / f"{name}.ndjson"
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
        report = load_files([file])
        assert (report.accepted, report.rejected, report.duplicate) == (0, 0, len(rows))
    assert events(connection) == before

    land(
        connection, event("400 0", 400, properties=DETAILS[0]), event("late of a collector", 100, properties=DETAILS[2])
    )
    build(as_of=NOW.isoformat())
    came = {key: row for key, row in events(connection).items() if key not in before}
    assert [row["properties"] for _, row in sorted(came.items())] == [
        {"utm_source": "mail", "emails": "no"},
        {"page_load_ms": 5},
    ]
    assert table(connection, "audience_contacts.contact_events") and tables(connection).keys() == marts.keys()
    assert_equals_a_full_refresh(connection)


def test_an_interrupted_run_goes_on(connection):
    """The third batch fails: those before it stay, and the next build does the rest."""
    late = [event(f"interrupted {number}", 50, properties=DETAILS[0]) for number in range(30)]
    land(connection, *late)
    connection.execute("""
        create function analytics.fail() returns trigger language plpgsql as $$ begin
            if new.event_id = 'interrupted 20' then raise exception 'the power is gone'; end if;
            return new;
        end $$;
        create trigger fail before update on analytics.events for each row execute function analytics.fail();
    """)
    left = "select count(*) from analytics.events where event_id like 'interrupted %' and properties ? 'email'"
    with pytest.raises(CheckFailed):
        build(as_of=NOW.isoformat())
    assert connection.execute(left).fetchone() == (16,)
    connection.execute("drop trigger fail on analytics.events; drop function analytics.fail()")
    build(as_of=NOW.isoformat())
    assert connection.execute(left).fetchone() == (0,)


def test_a_row_of_a_slow_transaction_is_found_by_the_next_build(connection, project):
    """It has landed before a build read, and is committed after it."""
    set_days(project, DAYS)
    with database.connect() as slow:
        land(slow, event("slow", 60, properties=DETAILS[0]))
        build(as_of=NOW.isoformat())
        slow.commit()
    build(as_of=NOW.isoformat())
    assert connection.execute("select properties from analytics.events where event_id = 'slow'").fetchone() == (
        {"utm_source": "mail", "emails": "no"},
    )


def test_a_longer_time_brings_nothing_back_and_a_shorter_one_reaches_further(connection, project):
    held = "select count(*) from analytics.events where properties ? 'email' and rejection_reason is null and received_at < %s"
    set_days(project, 300)
    land(connection, event("between", 200, properties=DETAILS[0]))
    build(as_of=NOW.isoformat())
    assert connection.execute(held, [NOW - timedelta(days=40)]).fetchone() == (1,)
    set_days(project, 10)
    build(as_of=NOW.isoformat())
    assert connection.execute(held, [NOW - timedelta(days=10)]).fetchone() == (0,)
    assert connection.execute(held, [NOW]).fetchone() > (0,)
    assert_equals_a_full_refresh(connection)


def test_time_is_real_whatever_as_of_says(connection):
    land(connection, event("of a past moment", 50, properties=DETAILS[0]))
    past = json.dumps({"as_of": "2020-01-01 00:00:00+00"})
    done = dbt.run("run", "--select", "stg_events", "--vars", past)
    assert done.returncode == 0, done.stdout[-3000:]
    found = connection.execute("select properties from analytics.events where event_id = 'of a past moment'")
    assert found.fetchone() == ({"utm_source": "mail", "emails": "no"},)
