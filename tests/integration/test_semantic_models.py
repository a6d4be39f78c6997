"""The metrics of the semantic models, asked through MetricFlow: the answers of the query functions and of the events."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date, timedelta
from decimal import Decimal
from pathlib import Path

import pytest

from orchestration import database
from tests.projects import Questions, own_project, questions_of_sample

GRAINS = ("day", "week", "month")
CREDITS = [f"{name}_net_revenue" for name in ("first_touch", "last_touch", "last_non_direct", "linear")]
MONEY = """
select org_id, count(*) filter (where orders_count = 1), sum(gross_revenue_amount), sum(net_revenue_amount)
from audience_intermediate.int_orders group by org_id
"""


@dataclass
class Metrics(Questions):
    folder: Path = Path()

    def mf(self, *arguments: str) -> str:
        """MetricFlow, in a copy of the project: it writes beside dbt_project.yml."""
        variables = os.environ | {
            "DBT_PROFILES_DIR": str(self.folder / "profiles"),
            "DBT_SEND_ANONYMOUS_USAGE_STATS": "0",
        }
        command = [str(Path(sys.executable).with_name("mf")), *arguments]
        done = subprocess.run(command, cwd=self.folder, env=variables, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
        return done.stdout

    def metrics(self, names: list[str], *by: str) -> list[dict[str, str]]:
        found = self.folder / "found.csv"
        self.mf("query", "--metrics", ",".join(names), "--group-by", ",".join(by), "--csv", str(found))
        with found.open() as lines:
            return list(csv.DictReader(lines))


@pytest.fixture(scope="module")
def asked(module_database: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Metrics]:
    with (
        own_project(tmp_path_factory.mktemp("metrics") / "project") as folder,
        database.connect(autocommit=True) as connection,
    ):
        questions_of_sample(connection, folder.parent, events=6_000)
        yield Metrics(connection, folder=folder)


def test_metricflow_finds_every_column(asked):
    assert "ERRORS: 0" in asked.mf("validate-configs")


def last_day(grain: str, first: date) -> date:
    """Of a day, week or month, by its first."""
    following = {"day": first + timedelta(days=1), "week": first + timedelta(weeks=1)}
    return following.get(grain, (first.replace(day=1) + timedelta(days=32)).replace(day=1)) - timedelta(days=1)


@pytest.mark.parametrize("grain", GRAINS)
def test_distinct_people_of_a_grain_are_those_of_its_days(asked, grain):
    names = [f"{name}_of_{grain}" for name in ("visitors", "checkout_visitors", "buyers")]
    rows = asked.metrics(names, f"metric_time__{grain}", "org")
    assert len(rows) >= 8
    for row in rows[:: max(1, len(rows) // 60)]:
        first = date.fromisoformat(row[f"metric_time__{grain}"][:10])
        whole = asked.ask("get_audience_device_network", row["org"], first, last_day(grain, first))[0]
        given = [int(float(row[name] or 0)) for name in names]
        assert given == [whole["visitors_count"], whole["checkout_visitors_count"], whole["buyers_count"]], row


def test_money_is_that_of_the_orders_by_every_attribution(asked):
    rows = {row["org"]: row for row in asked.metrics(["orders", "gross_revenue", "net_revenue", *CREDITS], "org")}
    orders = asked.connection.execute(MONEY).fetchall()
    assert rows.keys() == {org for org, *_ in orders}
    for org, *expected in orders:
        given = [
            Decimal(rows[org][name]).quantize(Decimal("0.01"))
            for name in ("orders", "gross_revenue", "net_revenue", *CREDITS)
        ]
        assert given == [*expected, *[expected[-1]] * len(CREDITS)]
