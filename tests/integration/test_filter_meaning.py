"""What filters mean in PostgreSQL: react-querybuilder's own tests, and a thousand random ones beside a plain evaluator."""

from __future__ import annotations

import gzip
import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg import sql
from psycopg.rows import dict_row

from orchestration import database, segments
from orchestration.build import build
from orchestration.filters import Fields, compile_filter
from orchestration.load import load_files
from orchestration.people import Catalog, read_catalog, select_people
from orchestration.sample import write_sample
from tests.filters import LIMITS, group, matches, random_filter, rule
from tests.projects import AS_OF, END
from tests.readings import MOMENT, crowd, events_of_people, write

FILTERS = 1_000
# Windows whose beginning cuts visits in two, see `on_the_edge`.
COUNTS = ("events.page_view.count_7d", "events.ticket_cta.count_30d", "events.checkout_start.count_30d", "events.purchase.count_365d", "events.refund.count_60d")  # fmt: skip


def read(path: Path) -> list[dict[str, Any]]:
    with gzip.open(path, "rt") as file:
        return [json.loads(line) for line in file]


def test_react_querybuilders_own_filters(database: str, audience_test_data: Path):
    conformance = audience_test_data / "conformance"
    rows = read(conformance / "rqb_superusers_rows.jsonl.gz")
    fields = Fields({"firstName": "text", "lastName": "text", "enhanced": "boolean", "madeUpName": "text", "nickname": "text", "powerUpAge": "number"})  # fmt: skip
    columns = 'jsonb_to_recordset(%(rows)s) as people ("firstName" text, "lastName" text, enhanced boolean, "madeUpName" text, nickname text, "powerUpAge" integer)'
    failed, tried = [], 0
    with psycopg.connect() as connection:
        for test in read(conformance / "rqb_filter_tests.jsonl.gz"):
            keeps = test["options"].get("preserveValueOrder", False)
            found = compile_filter(test["query"], fields, LIMITS, preserve_value_order=keeps)
            query = sql.SQL('select "madeUpName" from {} where {} order by 1').format(sql.SQL(columns), found.condition)
            names = connection.execute(query, {"rows": json.dumps(rows), **found.parameters}).fetchall()
            tried += 1
            if [name for (name,) in names] != test["expected"]:
                failed.append(test["name"])
    assert (failed, tried) == ([], 24)


def on_the_edge() -> list[dict[str, Any]]:
    """Visits that are going on when the windows of COUNTS begin, with events at that very moment."""
    rows = []
    for days in (7, 30, 60, 365):
        start = MOMENT - timedelta(days=days)
        for number, minutes in enumerate((-45, -20, -1, 0, 1, 19, 40)):
            for kind in ("page_view", "ticket_cta", "checkout_start", "refund"):
                occurred = start + timedelta(minutes=minutes)
                rows.append({
                    "event_id": f"edge{days}_{number}_{kind}", "org_id": "north_hall", "event_type": kind, "occurred_at": occurred.isoformat(),
                    "received_at": occurred.isoformat(), "anonymous_id": f"edge{days}", "user_id": "edgar" if number > 4 else None,
                    "properties": {"order_id": f"edge{days}", "revenue": "1"} if kind == "refund" else {},
                })  # fmt: skip
    return rows


@dataclass
class People:
    """A built sample: customers with what they did, by org, and the connection."""

    connection: psycopg.Connection
    catalog: Catalog
    kinds: dict[str, str]
    rows: dict[str, list[dict[str, Any]]]

    def listed(self, document: Any, org_id: str) -> set[str]:
        selection = select_people(document, org_id, MOMENT, self.catalog)
        found = self.connection.execute(selection.members, selection.parameters).fetchall()
        assert len(found) == len(set(found))
        return {visitor_id for (visitor_id,) in found}

    def expected(self, document: Any, org_id: str) -> set[str]:
        return {row["visitor_id"] for row in self.rows[org_id] if matches(document, row) and not row["is_opted_out"]}


def counts_of(events: list[Any]) -> dict[tuple[str, str], int]:
    counts: dict[tuple[str, str], int] = {}
    for name in COUNTS:
        _, kind, window = name.split(".")
        start = MOMENT - timedelta(days=int(window.removeprefix("count_").removesuffix("d")))
        for event in events:
            if event.event_type == kind and event.occurred_at > start:
                counts[event.visitor_id, name] = counts.get((event.visitor_id, name), 0) + 1
    return counts


@pytest.fixture(scope="module")
def people(module_database: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[People]:
    folder = tmp_path_factory.mktemp("filters")
    files = [file.path for file in write_sample(folder / "sample", events=6_000, seed=5, end=END)]
    load_files([*files, write(folder / "crowd.ndjson", [*crowd(5), *on_the_edge()])])
    build(as_of=AS_OF)
    catalog = read_catalog()
    kinds = {**catalog.fields.columns, **dict.fromkeys(COUNTS, "number")}
    with database.connect(autocommit=True) as connection:
        rows: dict[str, list[dict[str, Any]]] = {}
        for org_id, events in events_of_people(connection, MOMENT).items():
            counts = counts_of(events)
            with connection.cursor(row_factory=dict_row) as cursor:
                found = cursor.execute(
                    "select * from audience.audience_customers where org_id = %s", [org_id]
                ).fetchall()
            rows[org_id] = [row | {name: counts.get((row["visitor_id"], name), 0) for name in COUNTS} for row in found]
        yield People(connection, catalog, kinds, rows)


def test_the_sample_has_what_filters_get_wrong(people: People):
    rows = [row for found in people.rows.values() for row in found]
    assert {"consent_state", "average_order_amount", "first_order_at"} <= {
        name for row in rows for name in row if row[name] is None
    }
    assert any(row["is_opted_out"] for row in rows)
    for name in COUNTS:
        assert {0} < {row[name] for row in rows}
    edge = next(row for row in people.rows["north_hall"] if row["visitor_id"] == "edgar")
    assert [edge[name] for name in COUNTS[:2]] == [3, 7 + 3], (
        "of a visit that a window cuts in two, the events after its beginning"
    )


def test_a_thousand_random_filters_list_whom_a_plain_evaluator_lists(people: People):
    draw = random.Random(20260701)
    sizes = []
    for number in range(FILTERS):
        org_id = draw.choice(list(people.rows))
        document = random_filter(draw, people.kinds, people.rows[org_id])
        listed, expected = people.listed(document, org_id), people.expected(document, org_id)
        assert listed == expected, f"filter {number} of {org_id}: {json.dumps(document)}"
        sizes.append(len(expected))
    assert sum(size > 0 for size in sizes) > FILTERS / 3


def test_a_preview_counts_whom_the_filter_lists_and_each_rule(people: People):
    draw = random.Random(3)
    for _ in range(60):
        org_id = draw.choice(list(people.rows))
        document = random_filter(draw, people.kinds, people.rows[org_id])
        preview = segments.preview(people.connection, document, org_id)
        members = people.listed(document, org_id)
        consented = {row["visitor_id"] for row in people.rows[org_id] if row["is_consented"]}
        contacts = people.connection.execute(
            "select visitor_id from audience_contacts.customer_contacts where org_id = %s and coalesce(email, phone) is not null", [org_id]
        )  # fmt: skip
        contactable = {visitor_id for (visitor_id,) in contacts}
        figures = (preview.size, preview.consented_count, preview.contactable_count)
        assert figures == (len(members), len(members & consented), len(members & contactable))
        assert (preview.combinator, preview.is_negated) == (document["combinator"], document.get("not", False))
        for number, counted in enumerate(preview.rules):
            alone = group(document["rules"][number])
            together = group(*document["rules"][: number + 1], combinator=document["combinator"])
            assert counted.path == f"rules[{number}]"
            assert counted.alone_count == len(people.expected(alone, org_id))
            assert counted.together_count == len(people.expected(together, org_id))


def test_a_preview_of_no_rules_counts_everybody_who_did_not_opt_out(people: People):
    preview = segments.preview(people.connection, group(), "north_hall")
    assert preview.size == len(people.expected(group(), "north_hall")) < len(people.rows["north_hall"])
    assert preview.rules == []
    assert preview.as_of == datetime.fromisoformat(AS_OF)


def test_at_most_two_events_includes_none(people: People):
    none = people.listed(group(rule("events.purchase.count_365d", "=", 0)), "north_hall")
    at_most_two = people.listed(group(rule("events.purchase.count_365d", "<=", 2)), "north_hall")
    assert none and none < at_most_two
