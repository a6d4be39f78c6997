"""E-mail campaigns against a real mail server: who gets what, once, and what the log says when something goes wrong."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from orchestration import segments
from orchestration.build import build
from orchestration.campaigns import log, runner
from orchestration.errors import UserError
from orchestration.load import load_files
from orchestration.sample import write_sample
from tests.filters import group, rule
from tests.mail import Mailbox, mail_server
from tests.projects import AS_OF, END

ORG, NAME, SEGMENT = "north_hall", "Spring", "Every body"
PEOPLE = ["ada", "bob", "cyd", "dan", "eve"]
LOG = "audience_state.segment_export_log"


@pytest.fixture(scope="module")
def built(module_database: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    files = write_sample(tmp_path_factory.mktemp("campaigns"), events=4_000, seed=7, end=END)
    load_files([file.path for file in files])
    build(as_of=AS_OF)
    yield


@pytest.fixture
def connection(built: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[psycopg.Connection]:
    """A connection with a segment of everybody, of whom five said yes and have an address; no campaign was sent."""
    monkeypatch.setenv("AUDIENCE_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("AUDIENCE_MAIL_FROM", "North Hall <news@north-hall.example>")
    monkeypatch.setenv("AUDIENCE_UNSUBSCRIBE_URL", "https://north-hall.example/unsubscribe")
    with log.connect() as connection:
        connection.execute(
            "delete from audience_state.audience_segments; delete from audience_state.campaigns;"
            f" alter table {LOG} disable trigger unchanged; truncate {LOG}; alter table {LOG} enable always trigger unchanged;"
            " create temporary table before as select * from audience.audience_customers;"
            " create temporary table contacts as select * from audience_contacts.customer_contacts;"
            " delete from audience_contacts.customer_contacts; update audience.audience_customers set is_consented = false"
        )
        visitors = connection.execute(
            "select visitor_id from audience.audience_customers where org_id = %s and not is_opted_out order by 1",
            [ORG],
        ).fetchall()
        for (visitor,), name in zip(visitors, PEOPLE, strict=False):
            change(connection, f"visitor_id = '{name}', is_consented = true", visitor)
            give_contact(connection, name, f"{name}@example.com", name.capitalize())
        segments.create_segment(connection, SEGMENT, ORG, group(rule("events_count", ">=", 0)))
        yield connection
        for table, kept in (
            ("audience.audience_customers", "before"),
            ("audience_contacts.customer_contacts", "contacts"),
        ):
            connection.execute(f"truncate {table}; insert into {table} select * from {kept}")


@pytest.fixture
def mailbox(monkeypatch: pytest.MonkeyPatch) -> Iterator[Mailbox]:
    with mail_server() as found:
        monkeypatch.setenv("AUDIENCE_SMTP_URL", f"smtp://127.0.0.1:{found.port}")
        yield found


@pytest.fixture
def template(tmp_path: Path) -> Path:
    folder = tmp_path / "spring"
    folder.mkdir()
    (folder / "subject.txt").write_text("Spring, {{ first_name }}!\n")
    (folder / "body.txt").write_text("Dear {{ first_name }},\n\nspring is here.\n{{ unsubscribe_url }}\n")
    (folder / "body.html").write_text("<p>Dear {{ first_name }},</p><a href='{{ unsubscribe_url }}'>no more</a>\n")
    return folder


def change(connection: psycopg.Connection, assignment: str, visitor: str) -> None:
    connection.execute(f"update audience.audience_customers set {assignment} where visitor_id = %s", [visitor])


def give_contact(connection: psycopg.Connection, visitor: str, email: str, first_name: str) -> None:
    connection.execute("delete from audience_contacts.customer_contacts where visitor_id = %s", [visitor])
    connection.execute(
        "insert into audience_contacts.customer_contacts (org_id, visitor_id, email, first_name) values (%s, %s, %s, %s)",
        [ORG, visitor, email, first_name],
    )


def send(connection: psycopg.Connection, template: Path, name: str = NAME, **options: Any) -> runner.Report:
    return runner.send(connection, name, SEGMENT, "a test", template, ORG, rate=1_000, **options)


def sends(connection: psycopg.Connection, name: str = NAME) -> dict[str, str]:
    query = "select visitor_id, status from audience_state.campaign_sends where campaign_name = %s"
    return dict(connection.execute(query, [name]).fetchall())


def logged(connection: psycopg.Connection) -> list[tuple[Any, ...]]:
    return connection.execute(f"select outcome, reason from {LOG} order by log_number").fetchall()


def addresses(*names: str) -> dict[str, int]:
    return {f"{name}@example.com": 1 for name in names}


# Who gets it


def test_those_who_said_yes_get_one_message_and_the_log_says_so(connection, mailbox, template):
    report = send(connection, template)
    assert mailbox.recipients == addresses(*PEOPLE)
    assert (report.sent_count, report.consented_count, report.stopped) == (5, 5, None)
    assert sends(connection) == dict.fromkeys(PEOPLE, "sent")
    assert [outcome for outcome, _ in logged(connection)] == ["requested", "completed", "delivered"]
    row = connection.execute(
        f"select format, destination, include_pii, purpose, rows_count, login_name, reason from {LOG} order by log_number desc"
    ).fetchone()
    assert row[:4] == ("email", f"smtp://127.0.0.1:{mailbox.port}", True, "a test")
    assert row[4] == report.members_count > 50 and row[5] == connection.info.user
    assert row[6].startswith("sent 5, deferred 0, failed 0, uncertain 0")


def test_a_second_run_sends_nothing_and_then_to_who_came_since(connection, mailbox, template):
    send(connection, template)
    again = send(connection, template)
    assert (again.sent_count, again.already_count) == (0, 5)
    visitor = connection.execute(
        "select visitor_id from audience.audience_customers where org_id = %s and not is_opted_out and not is_consented",
        [ORG],
    ).fetchone()[0]
    change(connection, "is_consented = true", visitor)
    give_contact(connection, visitor, "fay@example.com", "Fay")
    assert send(connection, template).sent_count == 1
    assert mailbox.recipients == addresses(*PEOPLE, "fay")


def test_one_address_of_two_visitors_gets_one_message_and_one_person_with_a_new_address_none(
    connection, mailbox, template
):
    give_contact(connection, "bob", " ADA@example.com", "Bob")
    report = send(connection, template)
    assert mailbox.recipients == addresses("ada", "cyd", "dan", "eve")
    assert (report.sent_count, report.already_count) == (4, 1)
    give_contact(connection, "cyd", "other@example.com", "Cyd")
    assert send(connection, template).sent_count == 0


def test_who_did_not_say_yes_or_has_no_address_gets_nothing(connection, mailbox, template):
    change(connection, "is_consented = false", "ada")
    change(connection, "is_opted_out = true", "bob")
    give_contact(connection, "cyd", "no address", "Cyd")
    connection.execute("update audience_contacts.customer_contacts set email = null where visitor_id = 'dan'")
    report = send(connection, template)
    assert mailbox.recipients == addresses("eve")
    assert (report.sent_count, report.unusable_count, report.consented_count) == (1, 1, 3)


def test_who_says_no_while_it_is_sent_gets_nothing(connection, mailbox, template):
    """After the list was read, before its message: the claim asks again."""

    def withdraw(recipient: str) -> None:
        with log.connect() as other:
            change(other, "is_opted_out = true", "cyd")
            change(other, "is_consented = false", "dan")
            other.execute("delete from audience.audience_customers where visitor_id = 'eve'")

    mailbox.before_data = lambda recipient: withdraw(recipient) if recipient.startswith("ada") else None
    report = send(connection, template)
    assert mailbox.recipients == addresses("ada", "bob")
    assert (report.sent_count, report.suppressed_count) == (2, 3)
    assert sends(connection)["cyd"] == "suppressed"


def test_a_limit_and_a_rate(connection, mailbox, template):
    report = runner.send(connection, NAME, SEGMENT, "a test", template, ORG, limit=3, rate=10)
    assert (report.sent_count, report.stopped, report.is_incomplete) == (3, runner.LIMITED, False)
    assert logged(connection)[-1] == ("undelivered", f"{runner.LIMITED}; sent 3, deferred 0, failed 0, uncertain 0, suppressed 0, already 0, unusable 0")  # fmt: skip
    assert send(connection, template).sent_count == 2
    assert mailbox.recipients == addresses(*PEOPLE)


def test_the_rate_is_kept(connection, mailbox, template, monkeypatch):
    pauses: list[float] = []
    clock = [0.0]
    monkeypatch.setattr(runner.time, "monotonic", lambda: clock[0])

    def sleep(seconds: float) -> None:
        pauses.append(seconds)
        clock[0] += seconds

    monkeypatch.setattr(runner.time, "sleep", sleep)
    runner.send(connection, NAME, SEGMENT, "a test", template, ORG, rate=0.5)
    assert sum(pauses) == pytest.approx(8)  # five messages, two seconds between them


# What the server says


def test_refusals_are_kept_by_their_code_and_a_later_run_tries_those_that_may_pass(connection, mailbox, template):
    answers = {"ada@example.com": "550 5.1.1 no such ada@example.com", "bob@example.com": "451 4.7.1 later"}
    mailbox.refuse = answers.get
    report = send(connection, template)
    assert (report.sent_count, report.failed_count, report.deferred_count, report.is_incomplete) == (3, 1, 1, True)
    assert logged(connection)[-1][0] == "undelivered"
    codes = dict(connection.execute("select status, status_code from audience_state.campaign_sends where status <> 'sent'").fetchall())  # fmt: skip
    assert codes == {"failed": "550", "deferred": "451"}
    mailbox.refuse = lambda recipient: None
    assert send(connection, template).sent_count == 1
    assert mailbox.recipients == addresses("bob", "cyd", "dan", "eve")
    assert sends(connection)["ada"] == "failed"


def test_a_server_that_refuses_everybody_is_not_asked_for_ever(connection, mailbox, template, monkeypatch):
    mailbox.refuse = lambda recipient: "554 5.7.1 spam"
    monkeypatch.setattr(runner, "project_variables", lambda: {**variables(), "campaign_max_refusals_in_a_row": 2})
    report = send(connection, template)
    assert (report.failed_count, report.sent_count) == (2, 0)
    assert "refused 2 messages in a row" in report.stopped


def variables() -> dict[str, Any]:
    from orchestration.settings import project_variables

    return project_variables()


def test_a_refused_sender_fails_nobody(connection, mailbox, template):
    mailbox.refuse_sender = lambda sender: "553 5.7.1 not you"
    with pytest.raises(UserError, match=r"takes nothing from news@north-hall.example .it answered 553.: correct"):
        send(connection, template)
    assert set(sends(connection).values()) == {"deferred"}
    mailbox.refuse_sender = lambda sender: None
    assert send(connection, template).sent_count == 5


@pytest.mark.parametrize("moment", ["before_data", "after_data"])
def test_a_connection_lost_in_the_middle_is_uncertain_and_not_sent_again_by_itself(
    connection, mailbox, template, moment
):
    setattr(mailbox, moment, lambda recipient: "drop" if recipient.startswith("bob") else None)
    report = send(connection, template)
    assert (report.sent_count, report.uncertain_count, report.is_incomplete) == (1, 1, True)
    assert "connection to the mail server was lost" in report.stopped
    setattr(mailbox, moment, lambda recipient: None)
    assert send(connection, template).sent_count == 3
    assert sends(connection)["bob"] == "uncertain"
    assert mailbox.recipients["bob@example.com"] == (moment == "after_data")

    campaign = log.find(connection, NAME, ORG)
    (send_of_bob,) = log.details(connection, campaign).uncertain
    with pytest.raises(UserError, match="Message 'x' of campaign 'Spring' is not uncertain"):
        log.resolve(connection, campaign, "sent", [send_of_bob.message_id, "x"])
    assert sends(connection)["bob"] == "uncertain"
    if moment == "after_data":
        log.resolve(connection, campaign, "sent", [send_of_bob.message_id])
        assert send(connection, template).sent_count == 0
    else:
        log.resolve(connection, campaign, "deferred", [])
        assert send(connection, template).sent_count == 1
    assert mailbox.recipients == addresses(*PEOPLE)


def test_a_server_that_closes_idle_connections_is_connected_to_again(connection, template, monkeypatch):
    with mail_server(timeout=0.2) as mailbox:
        monkeypatch.setenv("AUDIENCE_SMTP_URL", f"smtp://127.0.0.1:{mailbox.port}")
        assert runner.send(connection, NAME, SEGMENT, "a test", template, ORG, rate=2, limit=2).sent_count == 2
        assert mailbox.recipients == addresses("ada", "bob")
