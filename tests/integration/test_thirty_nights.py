"""Nights as Dagster makes them, one after the other, each with what landed on its day: no surprise in any of them."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import dagster as dg
import psycopg
import pytest

from orchestration import database, dbt, segments
from orchestration.build import AS_OF, build
from orchestration.load import load_files
from orchestration.verify import verify
from tests.projects import END, landed_sample

# Nights of the sample's end. All thirty, which take a quarter of an hour on two cores: AUDIENCE_NIGHTS=30.
NIGHTS = int(os.environ.get("AUDIENCE_NIGHTS", "3"))
FIRST_DAY = END - timedelta(days=NIGHTS - 1)


@pytest.fixture(scope="module")
def connection(module_database: str) -> Iterator[psycopg.Connection]:
    subprocess.run(dbt.command("parse"), check=True, capture_output=True, env=database.environment())
    with database.connect(autocommit=True) as found:
        yield found


def days(connection: psycopg.Connection, folder: Path) -> list[Path]:
    """The sample in files: all that was received before the first night's day, then day by day."""
    rows = landed_sample(connection, folder, events=4_000, seed=11)
    files: dict[int, list[str]] = {number: [] for number in range(NIGHTS + 1)}
    for row in rows:
        received = datetime.fromisoformat(json.loads(row)["received_at"]).astimezone(UTC).date()
        files[min(max((received - FIRST_DAY).days + 1, 0), NIGHTS)].append(row)
    paths = [folder / f"{number}.ndjson" for number in files]
    for path, content in zip(paths, files.values(), strict=True):
        path.write_text("".join(f"{row}\n" for row in content))
    return paths


def test_each_night_takes_its_day_and_the_last_state_is_what_the_events_say(connection, tmp_path, monkeypatch):
    from orchestration.definitions import defs

    before, *nights = days(connection, tmp_path)
    load_files([before])
    build(as_of=FIRST_DAY.isoformat())
    with segments.connect() as own:
        segments.sync(own)
    with dg.instance_for_test() as instance:
        for number, file in enumerate(nights):
            load_files([file])
            night = datetime.combine(FIRST_DAY + timedelta(days=number + 1), datetime.min.time(), UTC)
            monkeypatch.setenv(AS_OF, night.isoformat())
            result = defs.resolve_job_def("nightly").execute_in_process(instance=instance)
            assert result.success
            assert all(check.passed for check in result.get_asset_check_evaluations())
            [said] = [
                event.materialization.metadata
                for event in result.get_asset_materialization_events()
                if event.materialization.asset_key.path == ["build"]
            ]
            landed = connection.execute("select count(*) from analytics.events where rejection_reason is null")
            assert (said["accepted"].value + said["duplicate"].value,) == landed.fetchone()
            assert said["rows changed"].value > 0
            history = instance.fetch_materializations(dg.AssetKey("build"), limit=NIGHTS).records
            assert len(history) == number + 1
    assert verify(everything=True).differing == 0
    as_of = connection.execute("select as_of from audience_state.model_state where model = 'audience_customers'")
    assert as_of.fetchone() == (datetime.combine(END + timedelta(days=1), datetime.min.time(), UTC),)
