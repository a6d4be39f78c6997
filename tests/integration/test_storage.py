"""Tables over many nights: the settings by which autovacuum keeps up are there, stay, and bound what the tables take.

Nights in a test lie seconds apart, and autovacuum looks every minute: by its own rule a test does what it would do.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from datetime import UTC, datetime, time, timedelta
from pathlib import Path

import psycopg
import pytest

from orchestration import database
from orchestration.load import load_files
from orchestration.settings import project_variables
from tests.projects import END, landed_sample
from tests.states import Builder

# Nights of the sample's end. Twenty take some minutes on two cores: AUDIENCE_NIGHTS=20.
NIGHTS = int(os.environ.get("AUDIENCE_NIGHTS", "4"))
EVENTS = int(os.environ.get("AUDIENCE_NIGHTS_EVENTS", "5000"))
# More than the tables of a first build take: room for what a night changes, and for pages that are filled by half.
MOST_GROWTH = 1.6
FILLFACTORS = {"audience_customers": "fillfactor=85", "customer_lifecycle_history": "fillfactor=90"}
TABLES = """
select pg_class.oid::regclass::text, relname, coalesce(reloptions, '{}')
from pg_class join pg_namespace on pg_namespace.oid = relnamespace
where relkind = 'r' and relname !~ '__changes$' and nspname !~ '_seeds$' and (nspname = 'analytics' or nspname = 'audience' or nspname like 'audience\\_%')
"""
# Autovacuum's rule. The share: of the table, else PostgreSQL's own.
WORN = """
select relid::regclass::text
from pg_stat_user_tables join pg_class on pg_class.oid = relid
where n_dead_tup > 50 + reltuples * coalesce(
    (select cast(option_value as real) from pg_options_to_table(reloptions) where option_name = 'autovacuum_vacuum_scale_factor'), 0.2)
"""
SIZE = """
select cast(sum(pg_total_relation_size(pg_class.oid)) as bigint) from pg_class join pg_namespace on pg_namespace.oid = relnamespace
where relkind = 'r' and relname !~ '__changes$' and nspname ~ ('^' || %s || '(_intermediate|_contacts)?$')
"""


def expected_options() -> set[str]:
    variables = project_variables()
    return {
        f"autovacuum_vacuum_scale_factor={variables['vacuum_dead_rows_share']}",
        f"autovacuum_vacuum_insert_scale_factor={variables['vacuum_new_rows_share']}",
        f"autovacuum_analyze_scale_factor={variables['analyze_changed_rows_share']}",
    }


def wrong_options(connection: psycopg.Connection) -> dict[str, set[str]]:
    expected = expected_options()
    return {
        name: set(options)
        for name, table, options in connection.execute(TABLES)
        if set(options) != expected | ({FILLFACTORS[table]} if table in FILLFACTORS else set())
    }


def vacuum_the_worn(connection: psycopg.Connection) -> int:
    """What autovacuum would do now; the number of tables."""
    connection.execute("select pg_stat_clear_snapshot()")
    worn = [name for (name,) in connection.execute(WORN)]
    for name in worn:
        connection.execute(f"vacuum (analyze) {name}")
    return len(worn)


@pytest.fixture(scope="module")
def connection(module_database: str) -> Iterator[psycopg.Connection]:
    with database.connect(autocommit=True) as found:
        yield found


def nights(connection: psycopg.Connection, folder: Path) -> Iterator[str]:
    """Lands the sample night by night, and yields the moments to build for."""
    rows = landed_sample(connection, folder, events=EVENTS, seed=11)
    files: list[list[str]] = [[] for _ in range(NIGHTS + 1)]
    for row in rows:
        received = datetime.fromisoformat(json.loads(row)["received_at"]).astimezone(UTC).date()
        files[min(max(NIGHTS - (END - received).days, 0), NIGHTS)].append(row)
    for number, content in enumerate(files):
        path = folder / f"{number}.ndjson"
        path.write_text("".join(f"{row}\n" for row in content))
        load_files([path])
        day = END - timedelta(days=NIGHTS - number - 1)
        yield datetime.combine(day, time(), UTC).isoformat()


def test_tables_stay_small_over_nights_and_keep_their_settings(connection, tmp_path):
    """As small as a first build makes them, but for some room."""
    moments = nights(connection, tmp_path)
    builder = Builder("audience", tmp_path, connection, next(moments))
    assert wrong_options(connection) == {}
    sizes, vacuumed = [], 0
    for moment in moments:
        builder.run(moment)
        vacuumed += vacuum_the_worn(connection)
        sizes.append(connection.execute(SIZE, ["audience"]).fetchone()[0])
    Builder("fresh", tmp_path, connection, moment)
    (fresh,) = connection.execute(SIZE, ["fresh"]).fetchone()
    print(f"sizes {sizes}, of a first build {fresh}: {sizes[-1] / fresh:.2f} times as large, {vacuumed} vacuums")
    assert sizes[-1] < MOST_GROWTH * fresh
    assert wrong_options(connection) == {}


def test_settings_that_were_changed_come_back_with_a_release(connection, tmp_path):
    """A table of an older release has none; and one that has a fillfactor no more loses it."""
    connection.execute("alter table audience.audience_customers reset (autovacuum_vacuum_scale_factor, fillfactor)")
    connection.execute(
        "alter table audience_intermediate.int_orders set (fillfactor = 50, autovacuum_analyze_scale_factor = 0.3)"
    )
    connection.execute("alter table analytics.events reset (autovacuum_vacuum_insert_scale_factor)")
    assert {re.sub(r".*\.", "", name) for name in wrong_options(connection)} == {
        "audience_customers",
        "int_orders",
        "events",
    }
    connection.execute("update audience_state.model_state set declared = 'of an older release'")
    connection.execute("comment on schema analytics is 'of an older release'")
    Builder("audience", tmp_path, connection, datetime.combine(END, time(), UTC).isoformat())
    assert wrong_options(connection) == {}


def test_pages_that_landed_are_summarized_without_a_vacuum(connection):
    """Else a question for one day reads all that landed since the last vacuum."""
    options = connection.execute("select reloptions from pg_class where oid = 'analytics.events_received'::regclass")
    assert options.fetchone() == (["autosummarize=on"],)
