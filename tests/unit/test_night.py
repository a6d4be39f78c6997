"""What is read from dbt's log, which failures are worth a retry, and what the doctor's alerts say."""

from datetime import UTC, date, datetime

import pytest

from orchestration import night, watch
from orchestration.build import NodeResult
from orchestration.doctor import failed, ok, warning
from orchestration.errors import UserError


def event(status: str, node_status: str = "success", name: str = "LogModelResult", node: str = "model.audience.orders"):
    info = {"unique_id": node, "node_status": node_status, "node_relation": {"relation_name": '"a"."b"."orders"'}}
    return {"info": {"name": name}, "data": {"status": status, "node_info": info, "execution_time": 1.5}}


def node(name: str, kind: str = "model", status: str = "success", seconds: float = 1.0) -> NodeResult:
    return NodeResult(name, kind, status, "", seconds, None)


@pytest.mark.parametrize(
    ("status", "rows"), [("CHANGED 12", 12), ("FULL 0", 0), ("UNCHANGED", None), ("CREATE VIEW", None), ("INSERT 3", None)]
)  # fmt: skip
def test_rows_changed_are_those_of_maintained_models(status, rows):
    found = night.node_of(event(status))
    assert (found.name, found.kind, found.seconds, found.rows) == ("orders", "model", 1.5, rows)
    assert night.relation_of(event(status)) == '"a"."b"."orders"'


def test_events_about_something_else_are_no_nodes():
    assert night.node_of({"info": {"name": "MainReportVersion"}, "data": {}}) is None
    assert night.node_of(event("CHANGED 1", name="NodeFinished")) is None
    assert night.relation_of({"info": {"name": "MainReportVersion"}}) == ""


def test_the_slowest_models_come_first_and_no_tests():
    nodes = [node("a", seconds=1), node("b", seconds=3), node("t", "test", seconds=9), node("c", seconds=2)]
    assert [one.name for one in night.slowest(nodes)] == ["b", "c", "a"]


@pytest.mark.parametrize(
    ("nodes", "is_worth"),
    [
        ([node("t", "test", "fail")], False),
        ([node("t", "test", "fail"), node("m", status="error")], True),
        ([node("m", status="error")], True),
        ([], True),
    ],
    ids=["a test alone", "a model and a test", "a model", "dbt that died"],
)
def test_what_nothing_but_tests_found_is_not_tried_again(nodes, is_worth):
    assert night.is_worth_a_retry(nodes) is is_worth
    assert night.failed_names(nodes) == [one.name for one in nodes]


def test_days_of_a_period_are_evenly_apart():
    assert night.sampled_days("2025-01-01", "2025-01-01") == [date(2025, 1, 1)]
    assert night.sampled_days("2025-01-01", "2025-01-03") == [date(2025, 1, day) for day in (1, 2, 3)]
    year = night.sampled_days("2025-01-01", "2025-12-31")
    assert (year[0], year[-1], len(year)) == (date(2025, 1, 1), date(2025, 12, 31), 5)


@pytest.mark.parametrize(
    ("first", "last", "sentence"),
    [("2025-02-30", "2025-03-01", "no period"), ("2025-03-02", "2025-03-01", "ends before it begins")],
)
def test_what_is_no_period_is_refused_before_anything_is_loaded(first, last, sentence, monkeypatch, tmp_path):
    monkeypatch.setattr(night, "load_files", None)
    with pytest.raises(UserError, match=sentence):
        night.backfill(str(tmp_path), first, last)


def test_a_folder_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(UserError, match="no folder of the machine"):
        night.backfill(str(tmp_path / "gone"), "2025-01-01", "2025-01-02")


def test_a_full_refresh_is_confirmed_by_the_schemas_name(monkeypatch):
    monkeypatch.setenv("AUDIENCE_SCHEMA", "audience")
    night.refuse_unconfirmed("audience")
    for word in ("", "yes", "Audience"):
        with pytest.raises(UserError, match="confirm: audience"):
            night.refuse_unconfirmed(word)


def test_the_lag_is_in_minutes():
    assert night.lag_minutes(datetime(2026, 1, 1, tzinfo=UTC), datetime(2026, 1, 1, 1, 30, 30, tzinfo=UTC)) == 90.5


def test_each_change_of_the_doctor_is_told_once():
    fine = [ok("disk", "much"), ok("events", "new")]
    late = [ok("disk", "much"), warning("events", "old.", "look.")]
    missing = [failed("disk", "none.", "free some."), failed("events", "none.", "look.")]
    known, text = watch.news({}, fine)
    assert (known, text) == ({}, "")
    known, text = watch.news(known, late)
    assert text == "events, warning: old. look."
    assert watch.news(known, late) == (known, "")
    known, text = watch.news(known, missing)
    assert text == "disk, failed: none. free some.\nevents, failed: none. look."
    known, text = watch.news(known, fine)
    assert (known, text) == ({}, "disk is well again.\nevents is well again.")


def test_a_check_that_was_not_made_is_not_well_again_and_other_warnings_are_not_told():
    known = {"events": "failed"}
    after, text = watch.news(known, [failed("connection", "nobody.", "look.")])
    assert after == {"events": "failed", "connection": "failed"} and text == "connection, failed: nobody. look."
    assert watch.news({}, [warning("vacuum", "slow.", "wait.")]) == ({}, "")
