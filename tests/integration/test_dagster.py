"""The Dagster definitions load without a database and hold the whole dbt graph."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

COUNT = """
import json
from orchestration.definitions import defs
from orchestration.defs.schedules import nightly_schedule
repository = defs.get_repository_def()
assets = repository.asset_graph.get_all_asset_keys()
checks = repository.asset_graph.asset_check_keys
groups = {repository.asset_graph.get(key).group_name for key in assets}
print(json.dumps({
    "assets": sorted(key.path[-1] for key in assets), "checks": len(checks), "groups": sorted(groups),
    "night": sorted(key.path[-1] for key in repository.get_job("nightly").asset_layer.executable_asset_keys),
    "cron": nightly_schedule.cron_schedule, "jobs": [job.name for job in repository.get_all_jobs()],
}))
"""


@pytest.fixture(scope="module")
def definitions(tmp_path_factory: pytest.TempPathFactory) -> dict:
    from orchestration import dbt

    target = tmp_path_factory.mktemp("target")
    # No server: parsing and loading definitions must not need one.
    environment = {
        **os.environ,
        "DBT_TARGET_PATH": str(target),
        "DBT_LOG_PATH": str(target),
        "PGHOST": "nowhere.invalid",
    }
    parsed = subprocess.run(dbt.command("parse"), env=environment, capture_output=True, text=True)
    assert parsed.returncode == 0, parsed.stdout
    loaded = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", COUNT],
        env=environment,
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[2],
    )
    assert loaded.returncode == 0, loaded.stderr
    return json.loads(loaded.stdout.splitlines()[-1])


def test_every_model_and_seed_is_an_asset(definitions: dict) -> None:
    root = Path(__file__).parents[2]
    models = {
        path.stem for path in (root / "models").rglob("*.sql") if "materialized='ephemeral'" not in path.read_text()
    }
    seeds = {path.stem for path in (root / "seeds").glob("*.csv")}
    assert models | seeds <= set(definitions["assets"])


def test_tests_are_checks_and_assets_are_grouped(definitions: dict) -> None:
    singular = list((Path(__file__).parents[2] / "tests" / "dbt").glob("*.sql"))
    assert definitions["checks"] == len(singular)
    assert {"seeds", "staging", "intermediate", "marts", "contacts"} <= set(definitions["groups"])


def test_the_night_is_scheduled(definitions: dict) -> None:
    assert definitions["cron"] == "0 2 * * *"
    assert "nightly" in definitions["jobs"]
    sources = {"events", "events_removed", "rejected_rows", "user_agents"}
    assert set(definitions["assets"]) == {*definitions["night"], "segment_export", "hot_leads"} | sources
    assert "segment_memberships" in definitions["night"]
