"""Events that are not kept as they came: every table is, row for row, what it is where all of them are kept.

Two databases get the same: one keeps all events, in the other those received before a day are in their short form. Late
events, logins, copies, erasures and a full refresh follow.
"""

from __future__ import annotations

import json
import random
import re
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psycopg
import pytest

from orchestration import database, dbt
from orchestration.build import build
from orchestration.load import LoadReport, load_files
from orchestration.rights import erasure
from orchestration.rights.export import export_subject
from orchestration.rights.subjects import Given
from tests.conftest import _environment, _fresh_database
from tests.projects import AS_OF, own_project
from tests.readings import crowd
from tests.states import TABLES

FIRST_CUT = datetime(2026, 6, 5, tzinfo=UTC)
SECOND_CUT = datetime(2026, 6, 25, tzinfo=UTC)
# What is read of a row in more than one way: a case each.
ODD: tuple[dict[str, Any], ...] = (
    {"url": "HTTPS://www.www.NorthHall.example:8443/a?UTM_Source=Mail%20Shot&gclid=x+y#z", "referrer": "https://www.google.com/search?q=secret"},
    {"url": "northhall.example&gclid=not-a-parameter", "properties": {"utm_source": "", "utm_medium": " CPC "}},
    {"url": "https://northhall.example/&gclid=without-question-mark", "properties": {}},
    {"url": "https://northhall.example/?utm_source=%FF%00&fbclid=", "properties": {"fbclid": "", "gclid": None, "unknown": "a secret"}},
    {"url": "https://user:secret@localhost/?a=1&ttclid=t", "properties": {"environment": "staging", "product": "A " * 120}},
    {"url": None, "properties": {"page_load_ms": "12.5", "network_type": "WIFI", "os": " iOS ", "effectiveType": "3g"}},
    {"event_type": "purchase", "properties": {"order_id": " o7 ", "revenue": " +10.50 ", "currency": " usd", "utm_campaign": 5}},
    {"event_type": "purchase", "properties": {"order_id": 7, "revenue": 3, "currency": "CHF", "traffic_type": "internal"}},
)  # fmt: skip


def rows() -> list[dict[str, Any]]:
    """Events of colliding people from May to July, and the odd ones; some are sent twice with other content at one moment."""
    found, odd = crowd(seed=5)[:1_000], []
    for number, columns in enumerate(ODD):
        for day in (1, 28):
            moment = f"2026-06-{day:02}T10:00:0{number}+00:00"
            odd.append({**found[0], "properties": {}, "org_id": "north_hall", "event_id": f"odd {number} {day}", "occurred_at": moment,
                          "received_at": moment, "anonymous_id": f"odd {number % 3}", "user_id": None, **columns})  # fmt: skip
    for row in found[:60:4]:
        found.append({**row, "properties": row["properties"] | {"utm_source": "other", "email": "x@example.org"}})
    random.Random(5).shuffle(found)
    return odd + found


def days_since(moment: datetime) -> int:
    return (datetime.now(UTC) - moment).days


@dataclass
class Side:
    """A database, and the project that builds it. use: points the environment to both."""

    connection: psycopg.Connection
    project: Path
    use: Callable[[], AbstractContextManager[None]]

    def set(self, personal: datetime, raw: datetime | None) -> None:
        file = self.project / "dbt_project.yml"
        names = ("personal_data_retention_days", "raw_events_retention_days", "retention_batch_rows")
        lines = [line for line in file.read_text().splitlines() if not line.strip().startswith(names)]
        place = lines.index("vars:") + 1
        days = [days_since(cut) if cut else 0 for cut in (personal, raw)]
        lines[place:place] = [f"  {name}: {value}" for name, value in zip(names, (*days, 100), strict=True)]
        file.write_text("\n".join(lines))

    def build(self, **options: Any) -> None:
        with self.use():
            build(as_of=AS_OF, **options)

    def load(self, *files: Path) -> LoadReport:
        with self.use():
            return load_files(files)

    def tables(self, where_they_lie: bool = False) -> dict[str, Counter[tuple[str, ...]]]:
        place = ", t.xmin::text, t.ctid::text" if where_they_lie else ""
        found = self.connection.execute(TABLES, {"schema": "audience"}).fetchall()
        return {
            f"{schema}.{name}": Counter(self.connection.execute(f'select t::text{place} from "{schema}"."{name}" as t'))
            for schema, name in found
        }

    def one(self, query: str) -> Any:
        return self.connection.execute(query).fetchone()[0]


@contextmanager
def side(server: dict[str, str], template: str, folder: Path) -> Iterator[Side]:
    with (
        _fresh_database(server, template) as name,
        own_project(folder / "project"),
        database.connect(autocommit=True) as connection,
    ):
        values = {"AUDIENCE_HOME": str(folder / "home"), "AUDIENCE_PROJECT": str(folder / "project"), "PGDATABASE": name,
                  "DBT_TARGET_PATH": str(folder / "project/target"), "DBT_LOG_PATH": str(folder / "project/logs")}  # fmt: skip
        yield Side(connection, folder / "project", lambda: _environment(**values))


@pytest.fixture(scope="module")
def sides(
    server: dict[str, str], _template: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Side, Side]]:
    with (
        side(server, _template, tmp_path_factory.mktemp("whole")) as whole,
        side(server, _template, tmp_path_factory.mktemp("short")) as short,
    ):
        yield whole, short


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder, found = tmp_path_factory.mktemp("files"), rows()
    paths = [folder / "first.ndjson", folder / "second.ndjson"]
    for path, part in zip(paths, (found[:700], found[700:]), strict=True):
        path.write_text("".join(json.dumps(row) + "\n" for row in part))
    return paths


def assert_equal(one: Side, other: Side) -> None:
    expected, found = one.tables(), other.tables()
    assert expected.keys() == found.keys()
    for name in expected:
        assert not expected[name] - found[name] and not found[name] - expected[name], (
            f"{name}: missing {list((expected[name] - found[name]).elements())[:3]}, too much {list((found[name] - expected[name]).elements())[:3]}"
        )


LOOK_UP = """
explain (costs off) select * from audience_staging.stg_events
where (org_id, event_id, landing_id) in (select org_id, event_id, landing_id from touched)
"""
RETAINED = "select count(*) from analytics.retained_events"
OLD = "select count(*) from analytics.events where received_at < now() - make_interval(days => {}) and rejection_reason is null"


def test_a_move_is_noticed_by_no_table(sides, files):
    whole, short = sides
    for one in sides:
        one.set(FIRST_CUT, None)
        one.load(files[0])
        one.build()
    assert_equal(whole, short)
    old = short.one(OLD.format(days_since(FIRST_CUT)))
    before, notes = short.tables(where_they_lie=True), short.one("select count(*) from analytics.events_removed")
    assert old > 100
    short.set(FIRST_CUT, FIRST_CUT)
    short.build()
    assert short.one(RETAINED) == old and short.one(OLD.format(days_since(FIRST_CUT))) == 0
    assert (
        short.one("select count(*) from analytics.events") == whole.one("select count(*) from analytics.events") - old
    )
    assert short.one("select count(*) from analytics.events_removed") == notes
    assert short.tables(where_they_lie=True) == before


def test_nothing_but_what_is_read_is_kept(sides):
    texts = sides[1].one("select string_agg(cast(retained_events as text), ' ') from analytics.retained_events")
    assert "Face Book" in texts and not {
        word for word in ("secret", "example.org", "Mozilla", "https:") if word in texts
    }


def test_touched_keys_are_looked_up_by_index_in_both_tables(sides):
    """As a build asks for them: else each night would read all that ever landed."""
    connection = sides[1].connection
    connection.execute("analyze analytics.events; analyze analytics.retained_events; set enable_seqscan = off")
    connection.execute(
        "create temporary table touched as select org_id, event_id, landing_id from analytics.events limit 5; analyze touched"
    )
    plan = "\n".join(line for (line,) in connection.execute(LOOK_UP))
    connection.execute("reset enable_seqscan; drop table touched")
    looked_up = re.findall(r"Index Scan using \w+ on (\w+)\n\s+Index Cond: \(\w+ = touched", plan)
    assert sorted(looked_up) == ["events", "retained_events"], plan


def test_what_lands_later_is_told_with_what_is_retained(sides, files):
    """Late events, logins, other deliveries of retained events, and all that landed before once more."""
    reports = []
    for one in sides:
        one.load(files[1])
        again = one.load(*files)
        reports.append((again.accepted, again.rejected, again.duplicate))
        one.build()
    assert reports[0] == reports[1] == (0, 0, len(rows()))
    assert sides[1].one(RETAINED) > 100
    assert_equal(*sides)


def test_an_erased_person_leaves_what_is_retained(sides, tmp_path):
    short = sides[1]
    query = "select user_id from analytics.retained_events where org_id = 'north_hall' and user_id is not null group by 1 order by count(*) desc, 1 limit 1"
    user = short.one(query)
    with short.use():
        exported = export_subject("north_hall", Given(user_ids=[user]), tmp_path / "subject.json")
    assert exported.rows_by_table["analytics.retained_events"] > 0
    for one in sides:
        with one.use():
            erasure.erase("north_hall", Given(user_ids=[user]))
    assert (
        short.one(f"select count(*) from analytics.retained_events where org_id = 'north_hall' and user_id = '{user}'")
        == 0
    )
    assert_equal(*sides)


def test_a_later_cut_and_a_full_refresh_say_the_same(sides, files):
    whole, short = sides
    for one in sides:
        one.set(FIRST_CUT, SECOND_CUT if one is short else None)
    with short.use():
        refused = dbt.run("run", "--select", "stg_events")
    assert (
        refused.returncode != 0
        and "raw_events_retention_days is" in refused.stdout
        and "personal_data_retention_days" in refused.stdout
    )
    whole.set(SECOND_CUT, None)
    short.set(SECOND_CUT, SECOND_CUT)
    whole.build()
    short.build()
    assert short.one(OLD.format(days_since(SECOND_CUT))) == 0
    assert_equal(whole, short)
    before = short.tables(where_they_lie=True)
    short.build(full_refresh=True)
    assert short.tables(where_they_lie=True) == before
    assert short.load(*files).accepted == 0
