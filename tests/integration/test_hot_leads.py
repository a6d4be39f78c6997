"""Hot leads are told once: whatever happens between the claim and the message, and however often it is looked."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import dagster
import psycopg
import pytest

from orchestration import alerts, database, hot_leads, suppressions
from orchestration.build import build
from orchestration.errors import UserError
from orchestration.exports import webhooks
from tests.projects import shuffled_sample
from tests.receivers import Chat, chat

ORG, OTHER_ORG = "north_hall", "an_org_that_was_never_built"
ACTS = ("page_view", "event_view", "ticket_cta_click", "checkout_started")


@pytest.fixture(scope="module")
def connection(module_database: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[psycopg.Connection]:
    from orchestration.load import load_files

    load_files(shuffled_sample(tmp_path_factory.mktemp("sample"), events=1_000))
    build()
    with database.connect(autocommit=True) as found:
        yield found


@pytest.fixture
def room(connection: psycopg.Connection, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Chat]:
    """A chat that alerts go to; nobody is a lead yet."""
    connection.execute("delete from analytics.events where received_at > now() - interval '1 day'")
    connection.execute("delete from audience_state.hot_lead_alerts")
    monkeypatch.setenv("AUDIENCE_HOME", str(tmp_path))
    monkeypatch.setenv("AUDIENCE_WEBHOOK_ALLOWED_HOSTS", "127.0.0.1")
    monkeypatch.setattr(webhooks.time, "sleep", lambda _: None)
    with chat() as found:
        monkeypatch.setenv("AUDIENCE_ALERT_WEBHOOK", found.url)
        yield found


def land_lead(connection: psycopg.Connection, visitor: str, org: str = ORG, column: str = "anonymous_id") -> None:
    """Somebody who has clicked for a ticket and begun a checkout a moment ago: 7 points."""
    for number, act in enumerate(ACTS):
        connection.execute(
            f"insert into analytics.events (event_id, org_id, event_type, occurred_at, {column})"
            " values (%s, %s, %s, now() - interval '1 minute' * %s, %s)",
            [f"{visitor} {act}", org, act, 10 - number, visitor],
        )


def asked(connection: psycopg.Connection) -> set[tuple[str, str]]:
    """Org and visitor of the leads of both orgs."""
    query = "select visitor_id from audience.get_high_intent_visitors(%s)"
    return {(org, visitor) for org in (ORG, OTHER_ORG) for (visitor,) in connection.execute(query, [org])}


def outcomes(connection: psycopg.Connection) -> dict[str, str]:
    return dict(connection.execute("select visitor_id, outcome from audience_state.hot_lead_alerts").fetchall())


def logged() -> list[dict[str, str]]:
    return [json.loads(line) for line in alerts.log_file().read_text().splitlines()]


def test_a_lead_is_alerted_once_in_every_org(connection, room):
    land_lead(connection, "lead-1")
    land_lead(connection, "lead-2", OTHER_ORG)
    first = hot_leads.alert_hot_leads()
    assert first.alerted_count == first.leads_count == 2
    [text] = room.texts
    assert text.startswith("Hot leads: 2 new, 2 in all.\n")
    assert f"{ORG}: lead-1 (7)" in text and f"{OTHER_ORG}: lead-2 (7)" in text
    assert text.endswith("docs/operations.md#hot-leads")
    [told] = [entry["text"] for entry in logged()]
    assert told.startswith("Hot leads: 2 new, 2 in all.\n") and told.endswith("docs/operations.md#hot-leads")
    assert f"{ORG}: 1 new\n" in told and "lead-1" not in told and "lead-2" not in told
    assert alerts.log_file().stat().st_mode & 0o777 == 0o600

    land_lead(connection, "lead-3")
    second = hot_leads.alert_hot_leads()
    assert (second.leads_count, second.alerted_count) == (3, 1)
    third = hot_leads.alert_hot_leads()
    assert (third.leads_count, third.alerted_count) == (3, 0)
    assert len(room.texts) == 2 and "lead-1" not in room.texts[1]
    assert outcomes(connection) == dict.fromkeys(("lead-1", "lead-2", "lead-3"), "posted")


def test_who_is_left_alone_is_no_lead(connection, room):
    """By an id that no build has seen, and by the address of a customer; for everything, not for messages alone."""
    known, email = connection.execute(
        "select visitor_id, email from audience_contacts.customer_contacts join audience.audience_customers using (org_id, visitor_id)"
        " where org_id = %s and email is not null and not is_opted_out order by visitor_id limit 1", [ORG],
    ).fetchone()  # fmt: skip
    land_lead(connection, known, column="user_id")
    land_lead(connection, "new-device")
    land_lead(connection, "new-device", OTHER_ORG)
    land_lead(connection, "no-mail")
    connection.execute("delete from audience_state.suppressions")
    leads = {(ORG, known), (ORG, "new-device"), (OTHER_ORG, "new-device"), (ORG, "no-mail")}
    assert asked(connection) == leads
    with suppressions.connect() as own:
        for left_alone, whom in (((ORG, known), {"emails": [email]}), ((ORG, "new-device"), {"ids": ["new-device"]})):
            suppressions.suppress(own, ORG, **whom)
            leads.remove(left_alone)
            assert asked(connection) == leads
        for purpose in ("email", "advertising"):
            suppressions.suppress(own, ORG, ids=["no-mail"], purpose=purpose)
        assert asked(connection) == leads
        assert hot_leads.alert_hot_leads().leads_count == 2
        assert outcomes(connection).keys() == {"new-device", "no-mail"} and known not in room.texts[0]
        assert connection.execute("select array_agg(org_id) from audience_state.hot_lead_alerts where visitor_id = 'new-device'").fetchone() == ([OTHER_ORG],)  # fmt: skip

        suppressions.suppress(own, ORG, ids=["new-device"], is_lifted=True)
        assert asked(connection) == leads | {(ORG, "new-device")}
        # one that a dbt typed by hand left behind
        connection.execute("truncate audience_state.suppressed_visitors")
        connection.execute("delete from audience_state.model_state where model = 'the suppressed visitors'")
        assert hot_leads.alert_hot_leads().alerted_count == 1 and known not in outcomes(connection)
    connection.execute("delete from audience_state.suppressions")
    connection.execute("delete from audience_state.suppressed_visitors")


def test_a_lead_may_be_alerted_again_after_a_while(connection, room):
    land_lead(connection, "lead-1")
    hot_leads.alert_hot_leads()
    week = timedelta(hours=168)
    connection.execute("update audience_state.hot_lead_alerts set alerted_at = alerted_at - %s", [week - timedelta(minutes=1)])  # fmt: skip
    assert hot_leads.alert_hot_leads().alerted_count == 0
    connection.execute("update audience_state.hot_lead_alerts set alerted_at = alerted_at - interval '1 minute'")
    assert hot_leads.alert_hot_leads().alerted_count == 1


def test_no_contact_and_no_markup_is_in_a_message(connection, room):
    for visitor in ("jane@example.com", "+44 20 7946 0958", "447946095812", "<!channel>", "x" * 65, "plain-id"):
        land_lead(connection, visitor)
    assert hot_leads.alert_hot_leads().alerted_count == 6
    [text] = room.texts
    assert f"{ORG}: plain-id (7), 5 more" in text
    assert not [part for part in ("jane", "7946", "channel", "xxx") if part in text]


def test_what_others_wrote_is_no_markup(room):
    alerts.send("run failed", "<!channel> & <https://bad.example|click>", "a-run-failed")
    assert room.texts[0].startswith("&lt;!channel&gt; &amp; &lt;https://bad.example|click&gt;\n")


def test_a_message_that_was_refused_is_sent_by_the_next_snapshot(connection, room):
    land_lead(connection, "lead-1")
    room.answers = [403]
    with pytest.raises(alerts.AlertNotTaken, match=r"did not take the alert \(it answered 403") as refused:
        hot_leads.alert_hot_leads()
    assert "secret-part" not in str(refused.value) + alerts.log_file().read_text()
    assert outcomes(connection) == {}
    assert hot_leads.alert_hot_leads().alerted_count == 1
    assert ["failed" in entry for entry in logged()] == [False, True, False]


def test_an_overloaded_receiver_is_asked_again_at_once(connection, room):
    land_lead(connection, "lead-1")
    room.answers = [503, 429, 200]
    hot_leads.alert_hot_leads()
    assert len(room.texts) == 3 and outcomes(connection) == {"lead-1": "posted"}


def test_a_message_that_may_have_arrived_is_not_sent_again(connection, room):
    land_lead(connection, "lead-1")
    room.answers = [0]
    with pytest.raises(alerts.AlertUnsure):
        hot_leads.alert_hot_leads()
    assert outcomes(connection) == {"lead-1": "unsure"}
    assert hot_leads.alert_hot_leads().alerted_count == 0
    assert len(room.texts) == 1


def test_private_receivers_are_refused_unless_named(connection, room, monkeypatch):
    land_lead(connection, "lead-1")
    monkeypatch.delenv("AUDIENCE_WEBHOOK_ALLOWED_HOSTS")
    with pytest.raises(UserError, match="not encrypted"):
        hot_leads.alert_hot_leads()
    monkeypatch.setenv("AUDIENCE_ALERT_WEBHOOK", room.url.replace("http://", "https://"))
    with pytest.raises(UserError, match="no public address"):
        hot_leads.alert_hot_leads()
    assert room.texts == [] and outcomes(connection) == {}


KILLED = """
import os, signal
from orchestration import alerts, hot_leads
send = alerts.send
def killed(*arguments, **named):
    if {after}: send(*arguments, **named)
    os.kill(os.getpid(), signal.SIGKILL)
alerts.send = killed
hot_leads.alert_hot_leads()
"""


@pytest.mark.parametrize("after", [False, True], ids=["before the post", "after the post"])
def test_killed_around_the_post_nobody_is_alerted_twice_and_it_is_told(connection, room, after):
    land_lead(connection, "lead-1")
    killed = subprocess.run([sys.executable, "-c", KILLED.format(after=after)], env=os.environ)
    assert killed.returncode == -signal.SIGKILL
    assert outcomes(connection) == {"lead-1": "claimed"}
    snapshot = hot_leads.alert_hot_leads()
    assert (snapshot.alerted_count, snapshot.unsure_count) == (0, 1)
    assert "Whether an earlier alert of 1 leads arrived is not known" in room.texts[-1]
    assert sum("lead-1 (7)" in text for text in room.texts) == after
    hot_leads.alert_hot_leads()
    assert len(room.texts) == 1 + after


def test_two_snapshots_do_not_run_beside_each_other(connection, room):
    with (
        database.connect(autocommit=True) as other,
        hot_leads._alone(other),
        pytest.raises(UserError, match="Another snapshot"),
    ):
        hot_leads.alert_hot_leads()
    assert hot_leads.alert_hot_leads().alerted_count == 0


def test_before_the_first_build_it_is_said_what_to_do(database, monkeypatch, tmp_path):
    monkeypatch.setenv("AUDIENCE_HOME", str(tmp_path))
    with pytest.raises(UserError, match="before the first build: run audience build"):
        hot_leads.alert_hot_leads()


def test_dagster_looks_every_five_minutes_and_shows_counts_alone(connection, room):
    from orchestration.defs import hot_leads as defs

    land_lead(connection, "lead-1")
    with dagster.instance_for_test() as instance:
        run = dagster.materialize([defs.hot_leads], instance=instance)
        metadata = run.asset_materializations_for_node("hot_leads")[0].metadata
        assert (metadata["leads"].value, metadata["alerted"].value) == (1, 1)
        assert f"| {ORG} | 1 | 1 |" in metadata["by org"].value
        assert "lead-1" not in str(metadata)

        moment = dagster.build_schedule_context(instance, scheduled_execution_time=datetime.now(UTC))
        assert isinstance(defs.hot_leads_schedule(moment), dagster.RunRequest)
        instance.create_run_for_job(
            dagster.Definitions(assets=[defs.hot_leads], jobs=[defs.hot_leads_job]).resolve_job_def(
                "hot_leads_snapshot"
            ),
            status=dagster.DagsterRunStatus.STARTED,
        )
        assert "has not ended yet" in defs.hot_leads_schedule(moment).skip_message
    assert defs.hot_leads_schedule.cron_schedule == "*/5 * * * *"
