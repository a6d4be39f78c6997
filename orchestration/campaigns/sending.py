"""The messages of a campaign's run, one after the other, to nobody twice wherever the process is killed.

The order for each person: asked again whether he may be written to, the claim is committed, the server gets the message,
what it said is committed. A claim whose process is gone becomes uncertain, and is not sent again by itself.
"""

from __future__ import annotations

import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import psycopg

from orchestration.campaigns import log, messages, recipients, smtp, templates
from orchestration.errors import UserError

INTERRUPTED = "it was interrupted"
LIMITED = "the limit of messages is reached"


@dataclass(frozen=True)
class Report:
    """What a run did with the members of a segment. already_count: people, or addresses, that the campaign had dealt with
    before; unusable_count: no address that mail can be sent to; stopped: why it ended early."""

    org_id: str
    campaign_name: str
    export_id: str
    members_count: int
    consented_count: int
    contactable_count: int
    already_count: int
    unusable_count: int
    suppressed_count: int
    sent_count: int
    deferred_count: int
    failed_count: int
    uncertain_count: int
    stopped: str | None

    @property
    def is_incomplete(self) -> bool:
        """Whether there is something left for another run, or to resolve. A limit that is reached is what was asked for."""
        return bool(self.deferred_count or self.uncertain_count or (self.stopped and self.stopped != LIMITED))


@dataclass
class Run:
    """A run that is under way."""

    connection: psycopg.Connection
    audience: recipients.Audience
    campaign_name: str
    content: templates.Template
    sender: messages.Sender
    mailer: smtp.Mailer
    rate: float
    limit: int | None
    max_refusals: int

    def __post_init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.stopped: str | None = None
        self._signal: int | None = None
        self._refused_in_a_row = 0
        self._next_at = time.monotonic()

    @contextmanager
    def stopped_by_signals(self) -> Iterator[None]:
        """Ctrl-C, or a service manager's stop, ends the run after the message that is on its way; the second time at once."""

        def note(number: int, _: Any) -> None:
            self._signal = number
            signal.signal(number, before[number])

        before = {}
        if threading.current_thread() is threading.main_thread():
            before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def goes_on(self) -> bool:
        """Whether another person may be written to; waits until the rate allows it."""
        if self.limit is not None and self._messages() >= self.limit:
            self.stopped = LIMITED
        elif self._refused_in_a_row >= self.max_refusals:
            self.stopped = f"the mail server refused {self._refused_in_a_row:,} messages in a row: see the codes in audience campaigns show"
        while not self.stopped and not self._signal and (wait := self._next_at - time.monotonic()) > 0:
            time.sleep(min(wait, 0.2))
        if self._signal:
            self.stopped = INTERRUPTED
        return not self.stopped

    def _messages(self) -> int:
        return sum(self.counts[status] for status in ("sent", "deferred", "failed", "uncertain"))

    def write_to(self, person: Mapping[str, Any]) -> None:
        """Sends one person the message, if he may still be written to and nobody did."""
        address = messages.usable_address(person["email"])
        if not address:
            self.counts["unusable"] += 1
            return
        standing, message_id, token = log.call(
            self.connection, "claim_send", self.audience.entry.export_id, person["visitor_id"], address
        )
        if standing != "claimed" or message_id is None:
            self.counts["suppressed" if message_id else "already"] += 1
            return
        self._next_at = max(self._next_at, time.monotonic()) + 1 / self.rate
        try:
            outcome = self._hand_over(person, address, message_id, token)
        except UserError:
            # nothing was handed over: a later run tries again
            self._record(message_id, smtp.Outcome("deferred"))
            raise
        self._record(message_id, outcome)
        self._refused_in_a_row = 0 if outcome.status == "sent" else self._refused_in_a_row + 1
        if outcome.status == "uncertain":
            self.stopped = "the connection to the mail server was lost while it had a message"

    def _hand_over(self, person: Mapping[str, Any], address: str, message_id: str, token: str) -> smtp.Outcome:
        link = self.sender.link(token)
        rendered = self.content.render({**person, "campaign_name": self.campaign_name, "unsubscribe_url": link})
        message = messages.compose(rendered, self.sender, address, message_id, link)
        return self.mailer.send(self.sender.bounces, address, message, message_id)

    def _record(self, message_id: str, outcome: smtp.Outcome) -> None:
        code = None if outcome.code is None else str(outcome.code)
        log.call(self.connection, "record_send", message_id, outcome.status, code)
        self.counts[outcome.status] += 1

    def summary(self) -> str:
        counted = ", ".join(f"{name} {self.counts[name]:,}" for name in ("sent", "deferred", "failed", "uncertain", "suppressed", "already", "unusable"))  # fmt: skip
        return f"{self.stopped}; {counted}" if self.stopped else counted

    def report(self) -> Report:
        audience, entry, counts = self.audience, self.audience.entry, self.counts
        return Report(
            entry.org_id, self.campaign_name, str(entry.export_id), audience.members_count, audience.consented_count,
            audience.contactable_count or 0, counts["already"], counts["unusable"],
            counts["suppressed"] + (entry.suppressed_count or 0), counts["sent"], counts["deferred"], counts["failed"],
            counts["uncertain"], self.stopped,
        )  # fmt: skip
