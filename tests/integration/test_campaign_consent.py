"""From events to messages: who said yes and took it back by events, by the link or by name, and old lists that come again."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path

import psycopg
import pytest

from orchestration import segments, suppressions
from orchestration.build import build
from orchestration.campaigns import log, runner, unsubscribes
from orchestration.load import load_files
from tests.filters import group, rule
from tests.mail import Mailbox, mail_server
from tests.projects import AS_OF

ORG, SEGMENT = "north_hall", "Every body"
# Each says yes and gives an address, unless it is said otherwise below.
PEOPLE = ["ada", "bob", "cyd", "dan", "eve", "fay", "gil"]
LAST = datetime.fromisoformat(AS_OF) - timedelta(days=2)


def events(name: str, user: str, consent: str | None = "granted", delivery: str = "", later: int = 0) -> list[dict]:
    """What a person's device sends: a page, who it is, and what was said about consent."""
    moments = [LAST + timedelta(seconds=number + later) for number in range(3)]
    said = [("page_view", {}), ("identify", {"email": f"{name}@example.com", "first_name": name.capitalize()})]
    said += [("consent", {"consent": consent})] if consent else []
    return [
        {"event_id": f"{delivery}{user}{kind}", "org_id": ORG, "event_type": kind, "occurred_at": moment.isoformat(),
         "received_at": moment.isoformat(), "anonymous_id": f"d{user}", "user_id": user, "properties": properties}
        for moment, (kind, properties) in zip(moments, said, strict=False)
    ]  # fmt: skip


def land(folder: Path, rows: list[dict]) -> None:
    file = folder / "events.ndjson"
    file.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    load_files([file])
    build(as_of=AS_OF)


@pytest.fixture
def connection(module_database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[psycopg.Connection]:
    monkeypatch.setenv("AUDIENCE_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("AUDIENCE_MAIL_FROM", "news@north-hall.example")
    monkeypatch.setenv("AUDIENCE_UNSUBSCRIBE_URL", "https://north-hall.example/unsubscribe")
    with log.connect() as connection:
        yield connection


@pytest.fixture
def mailbox(monkeypatch: pytest.MonkeyPatch) -> Iterator[Mailbox]:
    with mail_server() as found:
        monkeypatch.setenv("AUDIENCE_SMTP_URL", f"smtp://127.0.0.1:{found.port}")
        yield found


def got(connection: psycopg.Connection, mailbox: Mailbox, folder: Path, campaign: str) -> set[str]:
    """Sends a campaign to everybody; the names of who got it."""
    template = folder / "mail.txt"
    template.write_text("Subject: {{ campaign_name }}\n\nDear {{ first_name }}\n{{ unsubscribe_url }}\n")
    mailbox.accepted.clear()
    runner.send(connection, campaign, SEGMENT, "a test", template, ORG, rate=1_000)
    assert set(mailbox.recipients.values()) <= {1}
    return {recipient.partition("@")[0] for recipient in mailbox.recipients}


def test_who_took_it_back_gets_nothing_and_an_old_list_brings_nobody_back(connection, mailbox, tmp_path):
    old_list = [row for name in PEOPLE for row in events(name, f"u-{name}", {"fay": None, "gil": "denied"}.get(name, "granted"))]  # fmt: skip
    land(tmp_path, old_list)
    segments.create_segment(connection, SEGMENT, ORG, group(rule("events_count", ">=", 0)))
    assert got(connection, mailbox, tmp_path, "Spring") == {"ada", "bob", "cyd", "dan", "eve"}

    # by the link, by name, and by an event; after the segment was materialized, which it is not again for an admin
    link = mailbox.message("ada@example.com")["List-Unsubscribe"].strip("<>")
    (tmp_path / "clicks").write_text(link)
    assert unsubscribes.unsubscribe(connection, tmp_path / "clicks").unsubscribed_count == 1
    suppressions.suppress(connection, ORG, emails=["Bob@Example.com"], purpose="email", reason="asked by telephone")
    suppressions.suppress(connection, ORG, ids=["u-cyd"], purpose="all", reason="asked by letter")
    land(tmp_path, [row for row in events("dan", "u-dan", "denied", "later ", 60) if row["event_type"] == "consent"])
    assert got(connection, mailbox, tmp_path, "Summer") == {"eve"}

    # the old list again, as new people with the same addresses, and everybody says yes
    land(tmp_path, [row for name in PEOPLE for row in events(name, f"again-{name}", "granted", "again ", 120)])
    states = connection.execute(
        "select count(*) from audience.audience_customers where visitor_id like 'again-%' and is_consented"
    ).fetchone()
    assert states == (len(PEOPLE),)
    assert got(connection, mailbox, tmp_path, "Autumn") == {"eve", "fay"}

    # what was lifted by name is written to again
    suppressions.suppress(
        connection, ORG, emails=["bob@example.com"], purpose="email", reason="asked again", is_lifted=True
    )
    assert "bob" in got(connection, mailbox, tmp_path, "Winter") and "ada@example.com" not in mailbox.recipients
