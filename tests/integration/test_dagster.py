"""The Dagster definitions load without a database, hold the whole dbt graph, and say what an operator has to know."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
COUNT = """
import json
from orchestration.definitions import defs
from orchestration.defs.schedules import nightly_schedule
repository = defs.get_repository_def()
graph = repository.asset_graph
assets = graph.get_all_asset_keys()
print(json.dumps({
    "assets": sorted(key.path[-1] for key in assets), "checks": len(graph.asset_check_keys),
    "groups": sorted({graph.get(key).group_name for key in assets}),
    "undescribed": [str(key) for key in assets if not graph.get(key).description],
    "raw": [str(key) for key in assets if "{{" in graph.get(key).description],
    "unowned": [str(key) for key in assets if not graph.get(key).owners],
    "pages": {str(key): graph.get(key).metadata["documentation"].value for key in assets},
    "check_texts": {key.name: graph.get_check_spec(key).description for key in graph.asset_check_keys},
    "check_pages": [graph.get_check_spec(key).metadata["documentation"].value for key in graph.asset_check_keys],
    "fresh": sorted(key.path[-1] for key in assets if graph.get(key).freshness_policy),
    "night": sorted(key.path[-1] for key in repository.get_job("nightly").asset_layer.executable_asset_keys),
    "tags": {name: dict(repository.get_job(name).tags) for name in ("nightly", "full_refresh", "backfill", "erase", "verify", "export")},
    "cron": nightly_schedule.cron_schedule, "jobs": sorted(job.name for job in repository.get_all_jobs()),
    "on": sorted(one.name for one in [*repository.schedule_defs, *repository.sensor_defs] if one.default_status.value == "RUNNING"),
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
        cwd=ROOT,
    )
    assert loaded.returncode == 0, loaded.stderr
    return json.loads(loaded.stdout.splitlines()[-1])


def test_every_model_and_seed_is_an_asset(definitions: dict) -> None:
    models = {
        path.stem for path in (ROOT / "models").rglob("*.sql") if "materialized='ephemeral'" not in path.read_text()
    }
    seeds = {path.stem for path in (ROOT / "seeds").glob("*.csv")}
    assert models | seeds <= set(definitions["assets"])


def test_tests_are_checks_and_assets_are_grouped(definitions: dict) -> None:
    singular = list((ROOT / "tests" / "dbt").glob("*.sql"))
    assert definitions["checks"] == len(singular)
    groups = {"landing", "seeds", "staging", "intermediate", "marts", "contacts", "segments", "exports", "leads"}
    assert set(definitions["groups"]) == groups | {"operations"}


def test_every_asset_is_described_and_owned(definitions: dict) -> None:
    assert definitions["undescribed"] == [] and definitions["unowned"] == []
    assert definitions["raw"] == [], "an operator is not shown the SQL of models"


def test_assets_and_checks_lead_to_a_section_of_the_documentation_that_there_is(definitions: dict) -> None:
    found = [*definitions["pages"].values(), *definitions["check_pages"]]
    for place in set(found):
        page, _, section = place.partition("#")
        headings = re.findall(r"^#+ (.+)$", Path(page).read_text(), re.M)
        assert not section or section in map(anchor, headings), place
    assert len(definitions["pages"]) == len(definitions["assets"]) and definitions["check_pages"]


def test_a_check_says_what_is_wrong_and_what_to_do(definitions: dict) -> None:
    for name, text in definitions["check_texts"].items():
        assert text and re.search(r"audience verify|nightly|[Cc]orrect", text), name


def anchor(heading: str) -> str:
    return re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-")


def test_the_night_is_scheduled(definitions: dict) -> None:
    assert definitions["cron"] == "0 2 * * *"
    sources = {"events", "events_removed", "rejected_rows", "retained_events", "user_agents"}
    others = {"segment_export", "hot_leads", "build"}
    assert set(definitions["assets"]) == {*definitions["night"]} | others | sources
    assert {"segment_memberships", "standing_exports"} <= {*definitions["night"]}


def test_what_runs_by_itself_is_on_from_the_start(definitions: dict) -> None:
    assert definitions["on"] == [
        "doctors_findings", "failed_runs", "forget_old_runs", "hot_leads_schedule", "landed_events", "nightly", "requested_exports"
    ]  # fmt: skip
    assert {"nightly", "full_refresh", "backfill", "erase", "verify", "export", "hot_leads_snapshot"} <= {
        *definitions["jobs"]
    }


def test_source_and_marts_have_to_be_fresh(definitions: dict) -> None:
    marts = {path.stem for path in (ROOT / "models" / "marts").glob("*.sql")} - {"calendar_days", "rejected_events"}
    assert set(definitions["fresh"]) == {"events", *marts}


def test_whatever_builds_has_a_limit_and_is_one_at_a_time(definitions: dict) -> None:
    limited = {"audience/build": "yes", "dagster/max_runtime": "21600", "dagster/max_retries": "2"}
    for name, tags in definitions["tags"].items():
        assert (limited.items() <= tags.items()) == (name in ("nightly", "full_refresh", "backfill", "erase")), name


def test_the_instance_of_a_server_is_that_of_a_laptop_but_for_its_storage() -> None:
    server = yaml.safe_load((ROOT / "deploy" / "dagster.yaml").read_text())
    assert set(server.pop("storage")) == {"postgres"}
    assert server == yaml.safe_load((ROOT / "orchestration" / "instance.yaml").read_text())
    assert server["concurrency"]["runs"]["tag_concurrency_limits"] == [{"key": "audience/build", "limit": 1}]


def test_every_alert_points_to_a_section_that_says_what_to_do() -> None:
    code = "\n".join(file.read_text() for file in (ROOT / "orchestration").rglob("*.py"))
    sections = set(re.findall(r'alerts\.send\("[^"]*", .*?, "([\w-]+)"[,)]', code))
    headings = re.findall(r"^#+ (.+)$", (ROOT / "docs" / "operations.md").read_text(), re.M)
    assert len(sections) == 3
    assert sections <= {*map(anchor, headings)}
