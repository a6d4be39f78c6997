"""E-mail campaigns against a real mail server: who gets what, once, and what the log says when something goes wrong."""

from __future__ import annotations

import json
import mailbox as mailboxes
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from email import message_from_string
from email.message import EmailMessage, Message
from email.mime.multipart import MIMEMultipart
from email.mime.text import MIMEText
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg import errors, sql

from orchestration import members, segments, suppressions
from orchestration.campaigns import bounces, log, runner, sending, unsubscribes
from orchestration.errors import UserError
from orchestration.exports import runner as exports
from tests.filters import group, rule
from tests.mail import Mailbox, mail_server
from tests.projects import audience, build_sample, people_as_before

ORG, NAME, SEGMENT = "north_hall", "Spring", "Every body"
OTHER_ORG = "harbor_live"
NAMES = {name: f"{name}_of_campaigns_{os.getpid()}" for name in ("stranger", "reader", "analyst", "admin", "other")}
PEOPLE = ["ada", "bob", "cyd", "dan", "eve"]
LOG = "audience_state.segment_export_log"


@pytest.fixture(scope="module")
def built(module_database: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    build_sample(tmp_path_factory.mktemp("campaigns"), 4_000)
    yield


@pytest.fixture
def connection(built: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[psycopg.Connection]:
    """A connection with a segment of everybody, of whom five said yes and have an address; no campaign was sent."""
    monkeypatch.setenv("AUDIENCE_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("AUDIENCE_MAIL_FROM", "North Hall <news@north-hall.example>")
    monkeypatch.setenv("AUDIENCE_UNSUBSCRIBE_URL", "https://north-hall.example/unsubscribe")
    with log.connect() as connection, people_as_before(connection):
        connection.execute(
            "delete from audience_state.audience_segments; delete from audience_state.campaigns; delete from audience_state.suppressions;"
            " delete from audience_state.suppressed_visitors; delete from audience_state.model_state where model = 'the suppressed visitors';"
            f" alter table {LOG} disable trigger unchanged; truncate {LOG}; alter table {LOG} enable always trigger unchanged;"
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


@pytest.fixture(scope="module")
def personas(built: None) -> Iterator[None]:
    """Logins that may more and more; `other` is an admin of another org."""
    with psycopg.connect(autocommit=True) as connection:
        for name in NAMES.values():
            connection.execute(sql.SQL("create role {} login password 'secret'").format(sql.Identifier(name)))
        for name in ("reader", "analyst", "admin"):
            members.add(NAMES[name], [ORG], name)
        members.add(NAMES["other"], [OTHER_ORG], "admin")
        yield
        for name in NAMES.values():
            connection.execute(sql.SQL("drop owned by {0}; drop role {0}").format(sql.Identifier(name)))


def logged_in(name: str) -> psycopg.Connection:
    return psycopg.connect(user=NAMES[name], password="secret", autocommit=True, options="-c timezone=UTC")


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


def send(connection: psycopg.Connection, template: Path, name: str = NAME, **options: Any) -> sending.Report:
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
    assert dry_run(connection, template).ready_count == 4
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
    assert (report.sent_count, report.stopped, report.is_incomplete) == (3, sending.LIMITED, False)
    assert logged(connection)[-1] == ("undelivered", f"{sending.LIMITED}; sent 3, deferred 0, failed 0, uncertain 0, suppressed 0, already 0, unusable 0")  # fmt: skip
    assert send(connection, template).sent_count == 2
    assert mailbox.recipients == addresses(*PEOPLE)


def test_the_rate_is_kept(connection, mailbox, template, monkeypatch):
    pauses: list[float] = []
    clock = [0.0]
    monkeypatch.setattr(sending.time, "monotonic", lambda: clock[0])

    def sleep(seconds: float) -> None:
        pauses.append(seconds)
        clock[0] += seconds

    monkeypatch.setattr(sending.time, "sleep", sleep)
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


# As a command


def test_the_command_shows_sends_lists_and_resolves(connection, mailbox, template, tmp_path):
    arguments = ["campaigns", *command(template)[4:]]
    shown = audience(*arguments[:-1])
    assert shown.returncode == 0 and mailbox.accepted == []
    assert "To: ada@example.com\nSubject: Spring, Ada!\n" in shown.stdout and "would be sent to: 5" in shown.stdout
    mailbox.after_data = lambda recipient: "drop" if recipient.startswith("bob") else None
    stopped = audience(*arguments, "--json")
    report = json.loads(stopped.stdout)
    assert (stopped.returncode, report["sent_count"], report["uncertain_count"]) == (1, 1, 1)
    assert "Campaign Spring of north_hall did not reach everybody" in stopped.stderr
    assert f"{NAME} of {ORG} to {SEGMENT}" in audience("campaigns", "list", "--org", ORG).stdout
    details = audience("campaigns", "show", NAME).stdout
    assert "Uncertain: look for these in the log of the mail server" in details and " to bob, " in details
    assert (
        audience("campaigns", "resolve", NAME, "--as", "again").stdout
        == "1 message is to be sent again by the next run.\n"
    )
    mailbox.after_data = lambda recipient: None
    assert audience(*arguments).returncode == 0
    assert mailbox.recipients == addresses(*PEOPLE) | {"bob@example.com": 2}  # as it was told
    (tmp_path / "clicks").write_text(tokens(mailbox)["ada"])
    assert "1 line: 1 taken off" in audience("campaigns", "unsubscribe", str(tmp_path / "clicks")).stdout
    (tmp_path / "one.eml").write_bytes(returned(mailbox.message("eve@example.com"), "5.1.1"))
    assert "1 message: 1 bounced" in audience("campaigns", "bounces", str(tmp_path / "one.eml")).stdout
    for wrong, sentence in (
        (["resolve", NAME, "--as", "maybe"], "audience: --as 'maybe' is no answer: give sent or again.\n"),
        (
            ["show", "Winter"],
            "audience: There is no campaign 'Winter': audience campaigns list shows those that there are.\n",
        ),
    ):
        told = audience("campaigns", *wrong)
        assert (told.returncode, told.stdout, told.stderr) == (2, "", sentence)


# A dry run, and who may


def dry_run(connection: psycopg.Connection, template: Path, org: str = ORG) -> runner.DryRun:
    return runner.dry_run(connection, NAME, SEGMENT, "a look", template, org)


def test_a_dry_run_counts_and_shows_what_a_run_then_sends(connection, mailbox, template):
    give_contact(connection, "bob", "no address", "Bob")
    runner.send(connection, NAME, SEGMENT, "a test", template, ORG, limit=1)
    change(connection, "is_consented = false", "cyd")
    found = dry_run(connection, template)
    counts = (
        found.consented_count,
        found.contactable_count,
        found.already_count,
        found.unusable_count,
        found.ready_count,
    )
    assert counts == (4, 5, 1, 1, 2)
    assert [(one.recipient, one.subject) for one in found.previews] == [
        ("dan@example.com", "Spring, Dan!"), ("eve@example.com", "Spring, Eve!")
    ]  # fmt: skip
    assert mailbox.recipients == addresses("ada")
    outcome, reason = logged(connection)[-1]
    assert (outcome, reason) == ("delivered", "a dry run: 2 messages were shown, nothing was sent")
    assert send(connection, template).sent_count == found.ready_count
    sent = mailbox.message("dan@example.com")
    assert sent["Subject"] == found.previews[0].subject
    assert sent.get_body(("html",)).get_content().startswith("<p>Dear Dan,</p>")


def test_a_template_that_fails_for_somebody_is_found_before_anybody_gets_it(connection, mailbox, template):
    give_contact(connection, "eve", "eve@example.com", "")
    (template / "body.txt").write_text("Dear {{ first_name[0] }}")
    for run in (dry_run, send):
        with pytest.raises(UserError, match=r"body\.txt of template .* fails for a recipient .UndefinedError."):
            run(connection, template)
    assert mailbox.accepted == [] and sends(connection) == {}
    assert [outcome for outcome, _ in logged(connection)][-1] == "undelivered"
    (template / "body.txt").write_text("Dear {{ first_name }}")
    assert send(connection, template).sent_count == 5


def test_another_template_or_segment_is_another_campaign(connection, mailbox, template):
    runner.send(connection, NAME, SEGMENT, "a test", template, ORG, limit=1)
    segments.create_segment(connection, "Others", ORG, group(rule("events_count", ">=", 1)))
    with pytest.raises(UserError, match=r"Campaign 'Spring' goes to segment 'Every body': name that one"):
        runner.send(connection, NAME, "Others", "a test", template, ORG)
    (template / "body.html").write_text("<p>{{ first_name }}</p>")
    with pytest.raises(UserError, match=r"template of campaign 'Spring' is not the one that others got: put that back"):
        send(connection, template)
    assert len(mailbox.accepted) == 1
    assert send(connection, template, "Summer").sent_count == 5


@pytest.mark.parametrize(("name", "purpose", "template_name"), [("  ", "a test", "spring"), (NAME, " ", "spring"), (NAME, "a test", "gone")])  # fmt: skip
def test_what_is_missing_is_said(connection, mailbox, template, name, purpose, template_name):
    with pytest.raises(UserError, match=r"no name of a campaign|no purpose is given|cannot be read"):
        runner.send(connection, name, SEGMENT, purpose, template.with_name(template_name), ORG)
    assert mailbox.accepted == []


@pytest.mark.parametrize("name", ["stranger", "reader", "analyst", "other"])
def test_without_the_role_nothing_is_sent_or_seen(connection, personas, mailbox, template, name):
    send(connection, template, "Before")
    mailbox.accepted.clear()
    message_id = connection.execute("select message_id from audience_state.campaign_sends limit 1").fetchone()[0]
    with logged_in(name) as persona:
        with pytest.raises(UserError, match=r"may export nothing|is not exported: "):
            runner.send(persona, NAME, SEGMENT, "a test", template, ORG)
        if name != "stranger":
            last = connection.execute(f"select login_name, outcome from {LOG} order by log_number desc").fetchone()
            assert last == (NAMES[name], "refused")
        if name != "other":
            for statement in (
                "table audience_state.campaigns", "table audience_state.campaign_sends",
                f"select audience_state.send_standing('{ORG}', 'Before', 'ada', 'ada@example.com')",
                "select audience_state.open_campaign(gen_random_uuid(), 'x', 'x')", "select audience_state.unsubscribe('x', '{x}')", "select audience_state.claim_send(gen_random_uuid(), 'x', 'x')",
                f"select audience_state.record_send('{message_id}', 'bounced')",
            ):  # fmt: skip
                with pytest.raises(errors.InsufficientPrivilege):
                    persona.execute(statement)
        else:
            assert log.campaigns(persona) == []
            assert log.call(persona, "record_send", message_id, "bounced") == (None,)
            with pytest.raises(UserError, match="Campaigns need the role audience_admin"):
                log.call(persona, "send_standing", ORG, "Before", "ada", "ada@example.com")
    assert mailbox.accepted == [] and "bounced" not in sends(connection, "Before").values()


def test_an_analyst_sees_a_dry_run_without_contact_details(connection, personas, template):
    segments.materialize(connection)
    with logged_in("analyst") as persona:
        found = dry_run(persona, template)
    assert found.consented_count == 5 and found.contactable_count is None and found.ready_count is None
    assert [one.recipient for one in found.previews] == ["***@***"] * 3
    assert {one.subject for one in found.previews} == {"Spring, [first_name]!"}
    assert "example.com" not in str(found) and "Ada" not in str(found)
    assert connection.execute(f"select bool_or(include_pii) from {LOG}").fetchone() == (False,)


def test_an_admin_sends_and_changes_the_log_by_the_functions_alone(connection, personas, mailbox, template):
    segments.materialize(connection)
    with logged_in("admin") as persona:
        assert send(persona, template).sent_count == 5
        (campaign,) = log.campaigns(persona)
        assert campaign.counts == {"sent": 5}
        for statement in (
            "update audience_state.campaign_sends set status = 'deferred'", "delete from audience_state.campaign_sends",
            "insert into audience_state.campaigns values ('x')", "table audience_contacts.customer_contacts", "table analytics.privacy_key",
            f"select audience_state.email_hash('{ORG}', 'x')", f"select audience_state.unsubscribe_token('{ORG}', 'x')",
        ):  # fmt: skip
            with pytest.raises(errors.InsufficientPrivilege):
                persona.execute(statement)
        # an export of files, and one of a dry run, is none that a campaign may claim people by
        done = dry_run(persona, template)
        with pytest.raises(UserError, match="is of no campaign that is being sent"):
            log.call(persona, "claim_send", done.export_id, "ada", "ada@example.com")
    login = connection.execute(f"select distinct login_name from {LOG}").fetchall()
    assert login == [(NAMES["admin"],)]


def test_the_log_of_sends_has_no_address_and_the_export_log_no_password(connection, mailbox, template, monkeypatch):
    monkeypatch.setenv("AUDIENCE_SMTP_URL", f"smtp://ada:hunter2@127.0.0.1:{mailbox.port}")
    with pytest.raises(UserError, match=r"did not let this sender in .*: correct the user and password") as refused:
        send(connection, template)
    monkeypatch.setenv("AUDIENCE_SMTP_URL", f"smtp://127.0.0.1:{mailbox.port}")
    send(connection, template)
    text = str(connection.execute(f"select (select jsonb_agg(l) from {LOG} as l), (select jsonb_agg(s) from audience_state.campaign_sends as s)").fetchone())  # fmt: skip
    assert "hunter2" not in text + str(refused.value) and "example.com" not in text and "127.0.0.1" in text


# Killed


KILLS, RECIPIENTS = 20, 500


def command(template: Path) -> list[str]:
    return [sys.executable, "-m", "orchestration.cli", "campaigns", "send", NAME, "--org", ORG, "--segment", SEGMENT,
            "--purpose", "a test", "--template", str(template), "--rate", "10000", "--yes"]  # fmt: skip


def add_recipients(connection: psycopg.Connection) -> None:
    """As many as a campaign of the tests has."""
    connection.execute(
        "insert into audience.audience_customers"
        " select (jsonb_populate_record(people, jsonb_build_object('visitor_id', 'many_' || number))).*"
        " from audience.audience_customers as people cross join generate_series(1, %s) as number where visitor_id = 'ada'",
        [RECIPIENTS - len(PEOPLE)],
    )
    connection.execute(
        "insert into audience_contacts.customer_contacts (org_id, visitor_id, email, first_name)"
        " select org_id, visitor_id, visitor_id || '@example.com', 'Many' from audience.audience_customers where visitor_id like 'many\\_%'"
    )


class Killer:
    """Kills a process when it is at a stage of its nth message: before the server has it, or when it has it, at once or
    some milliseconds later; or, as stage start, some time after it began."""

    STAGES = ("recipient", "lost", "kept", "later", "start")

    def __init__(self, mailbox: Mailbox, draw: random.Random) -> None:
        self.draw, self.left, self.stage = draw, 0, ""
        self.process: subprocess.Popen[bytes] | None = None
        mailbox.refuse, mailbox.before_data, mailbox.after_data = self._recipient, self._lost, self._kept

    def start(self, number: int, arguments: list[str]) -> None:
        self.stage, self.left = self.STAGES[number % len(self.STAGES)], self.draw.randint(1, 35)
        self.process = subprocess.Popen(arguments, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        if self.stage == "start":
            time.sleep(self.draw.uniform(0.2, 1.5))
            self._kill()
        _, told = self.process.communicate(timeout=60)
        assert self.process.returncode == -signal.SIGKILL, (self.stage, self.left, told.decode())

    def _at(self, stage: str) -> bool:
        if self.stage != stage:
            return False
        self.left -= 1
        if self.left == 0 and stage == "later":
            threading.Timer(self.draw.uniform(0, 0.01), self._kill).start()
        elif self.left == 0:
            self._kill()
        return self.left == 0

    def _recipient(self, _: str) -> None:
        self._at("recipient")

    def _lost(self, _: str) -> str | None:
        return "drop" if self._at("lost") else None

    def _kept(self, _: str) -> None:
        self._at("kept")
        self._at("later")

    def _kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)


def test_killed_anywhere_everybody_gets_one_message_or_is_listed_as_uncertain(connection, mailbox, template):
    add_recipients(connection)
    killer = Killer(mailbox, random.Random(5))
    for number in range(KILLS):
        killer.start(number, command(template))
        assert set(mailbox.recipients.values()) <= {1}
    killer.stage = ""
    send(connection, template)
    received, became = mailbox.recipients, sends(connection)
    uncertain = {visitor for visitor, status in became.items() if status == "uncertain"}
    assert len(became) == RECIPIENTS and set(became.values()) == {"sent", "uncertain"}
    assert set(received.values()) == {1}
    assert {f"{visitor}@example.com" for visitor in became if visitor not in uncertain} <= received.keys()
    # the kills were at instants at which it matters, on either side
    arrived = {visitor for visitor in uncertain if f"{visitor}@example.com" in received}
    assert 8 <= len(uncertain) <= KILLS and 4 <= len(arrived) < len(uncertain)
    assert send(connection, template).sent_count == 0
    assert exports.recover(connection) == [] == exports.unfinished(connection)
    outcomes = {outcome for outcome, *_ in connection.execute(f"select distinct on (export_id) outcome, reason from {LOG} order by export_id, log_number desc")}  # fmt: skip
    assert {"undelivered", "delivered"} <= outcomes <= {"failed", "undelivered", "delivered"}


def test_without_the_database_nothing_more_is_sent_and_the_last_is_uncertain(connection, mailbox, template):
    def cut(recipient: str) -> None:
        if recipient.startswith("bob"):
            connection.execute("select pg_terminate_backend(%s)", [cut_off.info.backend_pid])

    mailbox.after_data = cut
    with (
        log.connect() as cut_off,
        pytest.raises(UserError, match=r"The campaign ended early .*: put that right, then run it again"),
    ):
        send(cut_off, template)
    assert mailbox.recipients == addresses("ada", "bob") and sends(connection)["bob"] == "claimed"
    assert send(connection, template).sent_count == 3
    assert sends(connection)["bob"] == "uncertain" and mailbox.recipients == addresses(*PEOPLE)
    assert ("undelivered", "its process ended before every message was sent") in logged(connection)


def test_a_claim_is_on_the_disk_whatever_the_server_does_for_others(connection):
    name = sql.Identifier(connection.info.dbname)
    connection.execute(sql.SQL("alter database {} set synchronous_commit = off").format(name))
    try:
        with log.connect() as other:
            assert other.execute("show synchronous_commit").fetchone() == ("on",)
    finally:
        connection.execute(sql.SQL("alter database {} reset synchronous_commit").format(name))


def test_an_interrupt_ends_a_run_after_the_message_that_is_on_its_way(connection, mailbox, template):
    process: list[subprocess.Popen[str]] = []
    mailbox.before_data = lambda recipient: (
        process[0].send_signal(signal.SIGINT) if recipient.startswith("bob") else None
    )
    process.append(subprocess.Popen(command(template), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True))
    out, _ = process[0].communicate(timeout=60)
    assert process[0].returncode == 130 and "It stopped: it was interrupted. The same command goes on." in out
    assert sends(connection) == {"ada": "sent", "bob": "sent"} and mailbox.recipients == addresses("ada", "bob")
    assert send(connection, template).sent_count == 3


def test_two_processes_do_not_send_one_campaign(connection, mailbox, template):
    slow = [*command(template)[:-2], "0.1", "--yes"]
    process = subprocess.Popen(slow, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    until = time.monotonic() + 60
    while not mailbox.accepted:
        assert time.monotonic() < until
        time.sleep(0.05)
    with pytest.raises(UserError, match="Another process sends this campaign: wait until it ends"):
        send(connection, template)
    assert mailbox.recipients == addresses("ada")
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=60) == 130
    assert send(connection, template).sent_count == 4
    assert mailbox.recipients == addresses(*PEOPLE)


# Taken off


def tokens(mailbox: Mailbox) -> dict[str, str]:
    """What the link in each message carries, by recipient."""
    found = {}
    for recipient, message in mailbox.accepted:
        link = message["List-Unsubscribe"].strip("<>")
        assert link in message.get_body(("plain",)).get_content().split()
        found[recipient.partition("@")[0]] = link.partition("?token=")[2]
    return found


def test_who_used_the_link_gets_no_later_message_also_when_an_old_list_is_imported_again(
    connection, mailbox, template, tmp_path
):
    send(connection, template)
    links = tokens(mailbox)
    assert len(set(links.values())) == 5 and not any("@" in token or "example" in token for token in links.values())
    other = links["dan"][:-1] + ("0" if links["dan"][-1] != "0" else "1")
    file = tmp_path / "unsubscribe.log"
    file.write_text(
        f"2026-07-01T12:00:00+00:00 {links['ada']}\n\n"
        f'203.0.113.9 - - [01/Jul/2026:12:00:01 +0000] "POST /unsubscribe?token={links["bob"]} HTTP/1.1" 204 0 "-" "x"\n'
        f'203.0.113.9 - - [01/Jul/2026:12:00:01 +0000] "GET /unsubscribe?token={links["cyd"]} HTTP/1.1" 200 9 "-" "scanner"\n'
        f"{other}\n{'ff' * 4}{links['eve'][links['eve'].index('.') :]}\nnonsense {'x' * 40_000}\n"
    )
    report = unsubscribes.unsubscribe(connection, file)
    assert (report.unsubscribed_count, report.already_count, report.ignored_count) == (2, 0, 3)
    assert (report.invalid_count, report.invalid_lines) == (2, [5, 6])
    again = unsubscribes.unsubscribe(connection, file)
    assert (again.unsubscribed_count, again.already_count) == (0, 2)

    mailbox.accepted.clear()
    # an old list: she is somebody new with her old address, and says yes
    change(connection, "visitor_id = 'ada again'", "ada")
    give_contact(connection, "ada again", " Ada@Example.com", "Ada")
    assert send(connection, template, "Summer").sent_count == 3
    assert mailbox.recipients == addresses("cyd", "dan", "eve")
    with pytest.raises(UserError, match=r"cannot be read .No such file"):
        unsubscribes.unsubscribe(connection, tmp_path / "gone")


def test_who_used_the_link_while_it_is_sent_gets_nothing(connection, mailbox, template):
    send(connection, template)
    token = tokens(mailbox)["eve"]
    mailbox.accepted.clear()

    def click(recipient: str) -> None:
        with log.connect() as other:
            log.call(other, "unsubscribe", ORG, [token])

    mailbox.after_data = click
    report = send(connection, template, "Summer")
    assert (report.sent_count, report.suppressed_count) == (4, 1)
    assert mailbox.recipients == addresses("ada", "bob", "cyd", "dan")


# Returned


def returned(message: EmailMessage, code: str) -> bytes:
    """The report of a mail server that it could not deliver a message."""
    report = MIMEMultipart("report", report_type="delivery-status")
    report["From"], report["To"] = "MAILER-DAEMON@mail.example", "news@north-hall.example"
    report.attach(MIMEText("It could not be delivered."))
    status = Message()
    status["Content-Type"] = "message/delivery-status"
    recipient = message_from_string(f"Final-Recipient: rfc822; {message['To']}\nAction: failed\nStatus: {code}\n")
    status.set_payload([message_from_string("Reporting-MTA: dns; mail.example\n"), recipient])
    report.attach(status)
    report.attach(MIMEText(f"Message-ID: {message['Message-ID']}\n", "rfc822-headers"))
    return report.as_bytes()


def test_an_address_that_bounced_for_good_is_not_written_to_again(connection, mailbox, template, tmp_path):
    send(connection, template)
    came_back = {"ada": "5.1.1", "bob": "4.2.2", "cyd": "unknown"}
    for name, code in came_back.items():
        (tmp_path / f"{name}.eml").write_bytes(returned(mailbox.message(f"{name}@example.com"), code))
        assert bounces.note(connection, tmp_path / f"{name}.eml").bounced_count == 1
    found = connection.execute("select org_id, identifier_kind, purpose, reason from audience_state.suppressions where identifier_kind = 'email'")  # fmt: skip
    assert found.fetchall() == [(ORG, "email", "email", "bounced")]
    mailbox.accepted.clear()
    assert send(connection, template, "Summer").sent_count == 4
    assert "ada@example.com" not in mailbox.recipients and "bob@example.com" in mailbox.recipients

    # who lifts it is not overruled by the same report
    suppressions.suppress(connection, ORG, emails=["Ada@example.com"], purpose="email", is_lifted=True)
    assert bounces.note(connection, tmp_path / "ada.eml").already_count == 1
    assert send(connection, template, "Autumn").sent_count == 5


def test_a_bounce_is_noted_with_its_suppression_or_not_at_all(connection, mailbox, template, tmp_path, monkeypatch):
    send(connection, template)
    (tmp_path / "ada.eml").write_bytes(returned(mailbox.message("ada@example.com"), "5.1.1"))

    def killed(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(suppressions, "suppress", killed)
        bounces.note(connection, tmp_path / "ada.eml")
    assert bounces.note(connection, tmp_path / "ada.eml").bounced_count == 1
    assert connection.execute("select count(*) from audience_state.suppressions where reason = 'bounced'").fetchone()[0] > 0  # fmt: skip


def test_returned_messages_are_counted_once_from_files_mailboxes_and_maildirs(connection, mailbox, template, tmp_path):
    send(connection, template)
    ada, bob, cyd = (returned(mailbox.message(f"{name}@example.com"), code) for name, code in (("ada", "5.1.1"), ("bob", "5.2.2"), ("cyd", "5.7.1")))  # fmt: skip
    (tmp_path / "one.eml").write_bytes(ada)
    assert bounces.note(connection, tmp_path / "one.eml") == bounces.BounceReport(1, 1, 0, 0, 0)

    box = mailboxes.mbox(tmp_path / "bounces")
    for content in (ada, bob, b"Subject: hello\n\nI am away.\n", ada.replace(mailbox.message("ada@example.com")["Message-ID"].encode(), b"<" + b"0" * 32 + b"@x>")):  # fmt: skip
        box.add(content)
    box.close()
    assert bounces.note(connection, tmp_path / "bounces") == bounces.BounceReport(4, 1, 1, 1, 1)

    folder = mailboxes.Maildir(tmp_path / "maildir")
    folder.add(cyd)
    assert bounces.note(connection, tmp_path / "maildir") == bounces.BounceReport(1, 1, 0, 0, 0)
    found = log.details(connection, log.find(connection, NAME, ORG))
    assert {(code.status, code.status_code) for code in found.codes} == {
        ("sent", "250"), ("bounced", "5.1.1"), ("bounced", "5.2.2"), ("bounced", "5.7.1")
    }  # fmt: skip
    assert found.campaign.counts == {"sent": 2, "bounced": 3}
    assert send(connection, template).sent_count == 0
    for path in (tmp_path / "gone", template):
        with pytest.raises(UserError, match=r"cannot be read|is no maildir"):
            bounces.note(connection, path)
