"""The dbt project as somebody without the runner uses it: a bare `dbt build`, unit tests included."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from orchestration import database, dbt
from orchestration.load import load_files
from orchestration.sample import write_sample
from orchestration.settings import target_folder


@pytest.fixture(scope="module")
def results(module_database: str, tmp_path_factory: pytest.TempPathFactory) -> list[dict]:
    files = write_sample(tmp_path_factory.mktemp("sample"), events=2000)
    load_files([file.path for file in files])
    # --no-partial-parse: a unit test on a seed would keep the rows of an earlier parse.
    done = dbt.run("--no-partial-parse", "build")
    assert done.returncode == 0, done.stdout[-5000:]
    return json.loads((target_folder() / "run_results.json").read_text())["results"]


def test_a_bare_dbt_build_passes(results: list[dict]) -> None:
    statuses = Counter(result["status"] for result in results)
    assert set(statuses) <= {"success", "pass", "no-op"}, statuses
    kinds = Counter(result["unique_id"].split(".")[0] for result in results)
    assert kinds["unit_test"] >= 40


def test_settings_that_make_no_sense_are_refused_before_anything_is_built(results: list[dict]) -> None:
    nonsense = {
        "session_max_hours": 48, "attribution_window_days": 1, "churned_after_days": 60, "repeat_visitor_min_sessions": 0,
        "calibration_interval_days": 0, "calibration_outcome_days": 0, "quality_high_min_score": 40,
        "alert_window_days": 30, "default_week_starts_on": 0, "personal_data_retention_days": -1,
    }  # fmt: skip
    done = dbt.run("run", "--vars", json.dumps(nonsense))
    assert done.returncode != 0
    for name, value in nonsense.items():
        assert (f"{name} is {value} and has to be " in done.stdout) == (name != "session_max_hours"), name
    assert "attribution_window_days is 1 and has to be at least as long as a session may be" in done.stdout
    assert "Correct the variable in dbt_project.yml" in done.stdout and "OK created" not in done.stdout


def test_docs_can_be_generated(results: list[dict]) -> None:
    done = dbt.run("docs", "generate")
    assert done.returncode == 0, done.stdout[-3000:]
    catalog = json.loads((target_folder() / "catalog.json").read_text())
    assert "model.audience_intelligence.audience_customers" in catalog["nodes"]


def test_descriptions_are_comments_of_the_tables(results: list[dict]) -> None:
    with database.connect() as connection:
        comment, column = connection.execute(
            "select obj_description('audience.audience_customers'::regclass), "
            "col_description('audience.audience_customers'::regclass, 1)"
        ).fetchone()
    assert comment.startswith("One row per org and visitor")
    assert column


def test_every_view_runs_as_its_reader(results: list[dict]) -> None:
    with database.connect() as connection:
        open_views = connection.execute(
            "select relname from pg_class join pg_namespace as n on n.oid = relnamespace "
            "where nspname like 'audience%' and relkind = 'v' "
            "and not coalesce(reloptions @> array['security_invoker=true'], false)"
        ).fetchall()
        materialized = connection.execute(
            "select count(*) from pg_matviews where schemaname like 'audience%'"
        ).fetchone()
    assert (open_views, materialized) == ([], (0,))


def test_the_project_names_no_absolute_path() -> None:
    profile = (Path(__file__).parents[2] / "profiles" / "profiles.yml").read_text()
    assert "/home" not in profile and "/root" not in profile
