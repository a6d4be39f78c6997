"""The published cases of GA4's default channel grouping, as events through the whole project.

The cases are no part of this project: AUDIENCE_TEST_DATA names the folder that has them. Without it this is skipped.
"""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from orchestration.build import build
from orchestration.database import connect
from orchestration.load import load_files


def test_every_case_gets_ga4s_channel(
    audience_test_data: Path, database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    with gzip.open(audience_test_data / "conformance" / "ga4_channel_grouping_tests.jsonl.gz", "rt") as lines:
        cases = [json.loads(line) for line in lines]
    events = tmp_path / "events.ndjson"
    with events.open("w") as file:
        for number, case in enumerate(cases):
            utm = {f"utm_{name}": case[name] for name in ("source", "medium", "campaign")}
            event = {
                "event_id": str(number), "org_id": "org", "event_type": "page_view", "anonymous_id": f"device {number}",
                "occurred_at": "2026-06-01T10:00:00Z", "received_at": "2026-06-01T10:00:01Z", "properties": utm,
            }  # fmt: skip
            print(json.dumps(event), file=file)
    monkeypatch.setenv("DBT_TARGET_PATH", str(tmp_path / "target"))
    monkeypatch.setenv("DBT_LOG_PATH", str(tmp_path / "logs"))
    monkeypatch.delenv("AUDIENCE_SCHEMA", raising=False)

    assert load_files([events]).accepted == len(cases) == 30
    build(as_of="2026-07-01", select="+enriched_events")
    with connect() as connection:
        found = dict(connection.execute("select event_id, channel from audience.enriched_events").fetchall())
    wrong = [(case, found.get(str(number))) for number, case in enumerate(cases)]
    assert [(case, channel) for case, channel in wrong if channel != case["expected_channel"]] == []
