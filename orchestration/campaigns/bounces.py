"""Returned messages: reads delivery reports (RFC 3464) from files, mailboxes and maildirs, and notes them in the send log."""

from __future__ import annotations

import mailbox
import re
from collections.abc import Iterator
from dataclasses import dataclass
from email import message_from_binary_file, message_from_bytes
from email.message import Message
from email.policy import compat32
from itertools import islice
from pathlib import Path

import psycopg

from orchestration import suppressions
from orchestration.campaigns import log
from orchestration.errors import UserError

# What a Message-ID of a campaign begins with.
MESSAGE_ID = re.compile(r"<?([0-9a-f]{32})(?:@|$)")
STATUS = re.compile(r"[245]\.[0-9]{1,3}\.[0-9]{1,3}")


@dataclass(frozen=True)
class Bounce:
    """What a delivery report says of a message of a campaign. code: enhanced status such as 5.1.1, None without one."""

    message_id: str
    code: str | None

    @property
    def is_permanent(self) -> bool:
        """Whether the server will never deliver it (RFC 3463, class 5); class 4 gave up for now, and without a code one
        cannot tell."""
        return bool(self.code and self.code.startswith("5."))


@dataclass(frozen=True)
class BounceReport:
    """What was read: messages, of which others are no report of a failed delivery. unknown_count: of no campaign of this
    database, or of an org that this login may not see."""

    messages_count: int
    bounced_count: int
    already_count: int
    unknown_count: int
    other_count: int


def note(connection: psycopg.Connection, path: Path) -> BounceReport:
    """Marks in the send log whose message came back, and leaves addresses alone that never take mail, for the purpose email.

    The same file again changes nothing. Raises UserError for a path that cannot be read.
    """
    counts = {"bounced": 0, "already": 0, "unknown": 0, "other": 0}
    total = 0
    messages = map(bounce_of, _messages(path))
    # a change of suppressions looks through the contacts of an org, so they come together; with them, so that a killed
    # process leaves no bounce without its suppression
    while batch := list(islice(messages, suppressions.BATCH)):
        total += len(batch)
        with connection.transaction():
            refused = [bounce.message_id for bounce in batch if _note(connection, bounce, counts) and bounce]
            for org_id, email_hashes in log.recipients(connection, refused).items():
                suppressions.suppress(connection, org_id, email_hashes=email_hashes, purpose="email", reason="bounced")
    return BounceReport(total, *counts.values())


def _note(connection: psycopg.Connection, bounce: Bounce | None, counts: dict[str, int]) -> bool:
    """Marks a message as bounced, and counts it. Returns whether its address takes no mail and that is news: who lifts the
    suppression is not overruled by the same report."""
    if bounce is None:
        counts["other"] += 1
        return False
    (before,) = log.call(connection, "record_send", bounce.message_id, "bounced", bounce.code)
    found = "unknown" if before is None else "bounced" if before in ("sent", "uncertain") else "already"
    counts[found] += 1
    return found == "bounced" and bounce.is_permanent


def bounce_of(message: Message) -> Bounce | None:
    """The failed delivery that a message reports, or None: another mail, or a delay, of which the end is not known."""
    parts = list(message.walk())
    reports = [part for part in parts if part.get_content_type() == "message/delivery-status"]
    blocks = [block for report in reports if report.is_multipart() for block in report.get_payload()]
    failed = [block for block in blocks if str(block.get("Action", "")).strip().lower() == "failed"]
    if not failed:
        return None
    message_id = next(filter(None, map(_message_id, _ids(parts, blocks))), None)
    if message_id is None:
        return None
    status = STATUS.search(str(failed[0].get("Status", "")))
    return Bounce(message_id, status[0] if status else None)


def _ids(parts: list[Message], blocks: list[Message]) -> Iterator[str]:
    """Where a report says which message it is about: its envelope id, else the headers that came back."""
    yield from (str(block.get("Original-Envelope-Id", "")) for block in blocks)
    for part in parts:
        kind, payload = part.get_content_type(), part.get_payload()
        if kind == "message/rfc822" and part.is_multipart():
            yield str(payload[0].get("Message-ID", ""))
        elif kind == "text/rfc822-headers":
            yield str(message_from_bytes(part.get_payload(decode=True) or b"").get("Message-ID", ""))


def _message_id(text: str) -> str | None:
    found = MESSAGE_ID.match(text.strip())
    return found[1] if found else None


def _messages(path: Path) -> Iterator[Message]:
    """The messages in a maildir, a mailbox (mbox) or a file of one message."""
    try:
        if path.is_dir():
            if not (path / "new").is_dir() or not (path / "cur").is_dir():
                raise UserError(f"{path} is no maildir, which has the folders new and cur: correct the name.")
            yield from mailbox.Maildir(path, create=False)
            return
        with path.open("rb") as file:
            is_mailbox = file.read(5) == b"From "
            if not is_mailbox:
                file.seek(0)
                yield message_from_binary_file(file, policy=compat32)
        if is_mailbox:
            opened = mailbox.mbox(path, create=False)
            try:
                yield from opened
            finally:
                opened.close()
    except OSError as error:
        raise UserError(
            f"{path} cannot be read ({error.strerror}): give a returned message, a mailbox or a maildir."
        ) from error
