"""A campaign from its request to its end in the log of exports; and, before, what it would send."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg

from orchestration.campaigns import log, messages, recipients, smtp, templates
from orchestration.campaigns.sending import INTERRUPTED, Report, Run
from orchestration.errors import UserError
from orchestration.exports import door, runner
from orchestration.settings import mail_server, project_variables

DRY_RUN = "dry run"
Progress = Callable[[int, int, str], None]
# In place of the link by which a recipient unsubscribes.
NO_LINK = "https://unsubscribe.invalid/"


@dataclass(frozen=True)
class Preview:
    """A message as one recipient would get it. recipient: masked for who may not read addresses."""

    recipient: str
    subject: str
    text: str
    html: str | None


@dataclass(frozen=True)
class DryRun:
    """What a run would do, and some of its messages. The counts that need addresses are None for who may not read them."""

    org_id: str
    campaign_name: str
    export_id: str
    members_count: int
    consented_count: int
    contactable_count: int | None
    already_count: int | None
    unusable_count: int | None
    suppressed_count: int | None
    ready_count: int | None
    previews: list[Preview]


def dry_run(
    connection: psycopg.Connection, campaign_name: str, segment_name: str, purpose: str, template: Path,
    org_id: str | None = None,
) -> DryRun:  # fmt: skip
    """Counts whom a campaign would go to and renders some messages; sends nothing. The log has it as an export. Who may not
    read contact details sees the messages without them. Raises UserError."""
    variables = project_variables()
    include_pii = log.may_send(connection)

    def destination() -> str:
        _check_name(campaign_name)
        return DRY_RUN

    entry = recipients.request(
        connection, segment_name, purpose, org_id, include_pii=include_pii, destination=destination
    )
    with _ending(connection, entry) as end:
        content = templates.load(template, _fields(entry))
        audience = recipients.read(connection, entry)
        counts: Counter[str] = Counter()
        previews: list[Preview] = []
        for person in recipients.people(connection, audience):
            preview = _preview(content, campaign_name, person, include_pii)
            standing = _standing(connection, campaign_name, person) if include_pii else "ready"
            counts[standing] += 1
            if standing == "ready" and len(previews) < variables["campaign_preview_messages"]:
                previews.append(preview)
        end("delivered", f"a dry run: {len(previews)} messages were shown, nothing was sent")
    counts["suppressed"] += audience.entry.suppressed_count or 0
    ready, unusable, suppressed = counts.pop("ready", 0), counts.pop("unusable", 0), counts.pop("suppressed", 0)
    known = (counts.total(), unusable, suppressed, ready) if include_pii else (None,) * 4
    return DryRun(
        entry.org_id, campaign_name, str(entry.export_id), audience.members_count, audience.consented_count,
        audience.contactable_count, *known, previews,
    )  # fmt: skip


def _standing(connection: psycopg.Connection, campaign_name: str, person: Mapping[str, Any]) -> str:
    address = messages.usable_address(person["email"])
    if not address:
        return "unusable"
    (standing,) = log.call(connection, "send_standing", person["org_id"], campaign_name, person["visitor_id"], address)
    return "already" if standing == "ready" and person["is_repeated"] else standing


def _preview(content: templates.Template, campaign_name: str, person: Mapping[str, Any], include_pii: bool) -> Preview:
    details = {name: f"[{name}]" for name in door.CONTACT_COLUMNS} if not include_pii else {}
    own = {"campaign_name": campaign_name, "unsubscribe_url": NO_LINK}
    rendered = content.render({**details, **person, **own})
    recipient = messages.usable_address(person["email"]) if include_pii else "***@***"
    return Preview(recipient, rendered.subject, rendered.text, rendered.html)


def send(
    connection: psycopg.Connection, campaign_name: str, segment_name: str, purpose: str, template: Path,
    org_id: str | None = None, *, limit: int | None = None, rate: float | None = None, progress: Progress = lambda *_: None,
) -> Report:  # fmt: skip
    """Sends a campaign to those members of a segment who said yes and did not get it yet.

    limit: messages of this run at most; rate: messages a second. Raises UserError for what keeps it from beginning.
    """
    variables = project_variables()
    rate = rate or variables["campaign_messages_per_second"]

    def destination() -> str:
        _check_name(campaign_name)
        messages.sender()
        return mail_server().name

    if log.may_send(connection):
        runner.recover(connection)
    entry = recipients.request(connection, segment_name, purpose, org_id, include_pii=True, destination=destination)
    sender, server = messages.sender(), mail_server()
    with _ending(connection, entry) as end, smtp.Mailer(server) as mailer:
        content = templates.load(template, _fields(entry))
        audience = recipients.read(connection, entry)
        for person in recipients.people(connection, audience):
            # a template that fails for somebody is found before anybody gets it
            content.render({**person, "campaign_name": campaign_name, "unsubscribe_url": NO_LINK})
        mailer.connect()
        (before,) = log.call(connection, "open_campaign", entry.export_id, campaign_name, content.sha256)
        try:
            _end_run_before(connection, before)
            run = Run(
                connection, audience, campaign_name, content, sender, mailer, rate, limit,
                variables["campaign_max_refusals_in_a_row"],
            )  # fmt: skip
            with run.stopped_by_signals():
                for number, person in enumerate(recipients.people(connection, audience), 1):
                    if not run.goes_on():
                        break
                    run.write_to(person)
                    progress(number, audience.reachable_count or 0, "")
            end("undelivered" if run.stopped or run.counts["deferred"] else "delivered", run.summary())
        finally:
            if not connection.closed:
                log.unlock(connection, entry.org_id, campaign_name)
    return run.report()


def _check_name(campaign_name: str) -> None:
    if not campaign_name.strip() or not campaign_name.isprintable():
        raise UserError(f"{campaign_name!r} is no name of a campaign: give one of printable characters.")


def _fields(entry: door.Entry) -> list[str]:
    """What a template may name: every field of a recipient, also for who may not see them all."""
    return list(dict.fromkeys([*entry.columns, *door.CONTACT_COLUMNS]))


@contextmanager
def _ending(connection: psycopg.Connection, entry: door.Entry) -> Iterator[Callable[[str, str], None]]:
    """Logs how a run ended: by the function that it gives, else as failed or undelivered with the reason."""
    is_over = False

    def end(outcome: str, reason: str) -> None:
        nonlocal is_over
        door.record(connection, entry.export_id, outcome, reason=reason)
        is_over = True

    try:
        yield end
    except BaseException as error:
        if not is_over and not connection.closed:
            outcome = runner.find(connection, entry.export_id).outcome
            end("undelivered" if outcome == "completed" else "failed", _reason(error))
        if isinstance(error, psycopg.Error):
            raise UserError(
                f"The campaign ended early ({_reason(error)}): put that right, then run it again."
            ) from error
        raise


def _reason(error: BaseException) -> str:
    """Why a run ended, without the values of rows that the details of an error may have."""
    if isinstance(error, UserError):
        return str(error)
    if isinstance(error, SystemExit | KeyboardInterrupt):
        return INTERRUPTED
    return (isinstance(error, psycopg.Error) and error.diag.message_primary) or type(error).__name__


def _end_run_before(connection: psycopg.Connection, export_id: Any) -> None:
    """Logs that the process of the run before ended, if it did not say so itself. Another's is left to its login and the owner."""
    found = runner.unfinished(connection, export_id) if export_id else []
    for entry in found:
        if entry.outcome == "completed":
            door.record(
                connection, entry.export_id, "undelivered", reason="its process ended before every message was sent"
            )
