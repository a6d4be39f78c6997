"""A project built again and again in a test: its tables, and what a rebuild from the landing tables says they must be."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg.rows import dict_row

from orchestration import database
from orchestration.build import build
from orchestration.load import load_files
from orchestration.sample import write_sample
from orchestration.settings import project_dir
from orchestration.verify import verify
from tests import states

END = date(2026, 6, 30)
AS_OF = "2026-07-01T12:00:00+00:00"
# Tables that a small sample leaves empty: alerts want hundreds of visitors of a device and network
# (test_device_network_alerts.py, and a story of test_any_order.py), findings orders that something is wrong with
# (tests/histories.py and tests/readings.py have them).
RARE = {"data_quality_orders", "device_network_alerts", "int_device_network_worse_days"}
PROJECT_PARTS = ("dbt_project.yml", "profiles", "macros", "models", "functions", "seeds", "segments", "tests/dbt")


@dataclass
class Project:
    """A project that builds the schema `audience` of the database in use."""

    connection: psycopg.Connection
    schemas: int = 0

    def tables(self, schema: str) -> dict[str, tuple[str, str]]:
        found = self.connection.execute(states.TABLES, {"schema": schema}).fetchall()
        return {name.removeprefix(schema) + "." + table: (name, table) for name, table in found}

    def rows(self, schema: str, where_they_lie: bool = False) -> dict[str, Counter[tuple[str, ...]]]:
        """Every row of every table as text; on request with what a rewrite of an equal row would change."""
        place = ", t.xmin::text, t.ctid::text" if where_they_lie else ""
        return {
            name: Counter(self.connection.execute(f'select t::text{place} from "{namespace}"."{table}" as t'))
            for name, (namespace, table) in self.tables(schema).items()
        }

    def rebuild(self) -> str:
        """A first build into a schema of its own, from the same landing tables; its name."""
        self.schemas += 1
        name = f"fresh{self.schemas}"
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("AUDIENCE_SCHEMA", name)
            build(as_of=AS_OF)
        return name

    def assert_equals_a_rebuild(self) -> None:
        differing = states.differences(self.connection, "audience", self.rebuild())
        assert not differing, "\n".join(differing)


def assert_exact() -> None:
    """What `audience verify --all` says: every cell is what the events give."""
    report = verify(everything=True)
    assert report.differences == [] and report.waiting == 0


@contextmanager
def own_project(folder: Path) -> Iterator[Path]:
    """A copy of the dbt project, which is the one in use meanwhile."""
    for part in PROJECT_PARTS:
        source, copy = project_dir() / part, folder / part
        if source.is_dir():
            shutil.copytree(source, copy)
        else:
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(source, copy)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AUDIENCE_PROJECT", str(folder))
        patch.setenv("DBT_TARGET_PATH", str(folder / "target"))
        patch.setenv("DBT_LOG_PATH", str(folder / "logs"))
        patch.delenv("AUDIENCE_SCHEMA", raising=False)
        yield folder


class Questions(Project):
    """A project whose query functions are asked."""

    def ask(self, function: str, *arguments: Any, **named: Any) -> list[dict[str, Any]]:
        """The rows of a query function."""
        marks = [*["%s"] * len(arguments), *[f"{name} => %({name})s" for name in named]]
        if named:
            marks = [f"%(a{number})s" for number in range(len(arguments))] + marks[len(arguments) :]
            named |= {f"a{number}": argument for number, argument in enumerate(arguments)}
        with self.connection.cursor(row_factory=dict_row) as cursor:
            query = f"select * from audience.{function}({', '.join(marks)})"
            return cursor.execute(query, named or arguments).fetchall()


def questions_of_sample(connection: psycopg.Connection, folder: Path, events: int) -> Questions:
    """The sample, beside real data where AUDIENCE_TEST_DATA names some: loaded and built."""
    files = [file.path for file in write_sample(folder / "sample", events=events, seed=7, end=END)]
    if real := os.environ.get("AUDIENCE_TEST_DATA"):
        files.append(Path(real) / "ecom_composite_events.ndjson.gz")
    load_files(files)
    build(as_of=AS_OF)
    return Questions(connection)


def build_sample(folder: Path, events: int, seed: int = 7) -> None:
    """The sample alone, loaded and built."""
    load_files([file.path for file in write_sample(folder / "sample", events=events, seed=seed, end=END)])
    build(as_of=AS_OF)


@contextmanager
def people_as_before(connection: psycopg.Connection) -> Iterator[None]:
    """Customers and contacts may be changed meanwhile: they are as they were afterwards."""
    tables = ("audience.audience_customers", "audience_contacts.customer_contacts")
    for number, table in enumerate(tables):
        connection.execute(f"create temporary table before_{number} as select * from {table}")
    yield
    for number, table in enumerate(tables):
        connection.execute(
            f"truncate {table}; insert into {table} select * from before_{number}; drop table before_{number}"
        )


def landed_sample(connection: psycopg.Connection, folder: Path, events: int, seed: int) -> list[str]:
    """The sample's rows as they landed, as JSON; the landing tables are empty again."""
    load_files([file.path for file in write_sample(folder / "sample", events=events, seed=seed, end=END)])
    ours = "'landing_id' - 'landed_xid' - 'rejection_reason'"
    rows = connection.execute(f"select (to_jsonb(events) - {ours})::text from analytics.events order by landing_id")
    found = [row for (row,) in rows]
    for table in ("events", "events_removed", "user_agents"):
        connection.execute(f"truncate analytics.{table}")
    return found


def shuffled_sample(folder: Path, events: int = 3_000, files: int = 3) -> list[Path]:
    """The sample's rows dealt to files, so that every session, order and login arrives in pieces."""
    with database.connect(autocommit=True) as connection:
        rows = landed_sample(connection, folder, events, seed=11)
    random.Random(11).shuffle(rows)
    paths = [folder / f"batch_{number}.ndjson" for number in range(files)]
    for number, path in enumerate(paths):
        path.write_text("".join(f"{row}\n" for row in rows[number::files]))
    return paths


def audience(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "orchestration.cli", *arguments], env=os.environ, capture_output=True, text=True
    )
