"""A mail server for tests: a real one, on a port of this machine, that keeps what it accepted."""

from __future__ import annotations

import asyncio
import socket
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from email import message_from_bytes
from email.message import EmailMessage
from email.policy import default
from typing import Any

from aiosmtpd.controller import Controller


@dataclass
class Mailbox:
    """What a server got. refuse: its answer to a recipient, or None; before_data and after_data are called with the
    recipient, before the message is kept and before that is answered; a connection is dropped where they return "drop"."""

    port: int = 0
    accepted: list[tuple[str, EmailMessage]] = field(default_factory=list)
    options: list[list[str]] = field(default_factory=list)
    refuse: Callable[[str], str | None] = lambda recipient: None
    refuse_sender: Callable[[str], str | None] = lambda sender: None
    before_data: Callable[[str], str | None] = lambda recipient: None
    after_data: Callable[[str], str | None] = lambda recipient: None

    @property
    def recipients(self) -> Counter[str]:
        return Counter(recipient for recipient, _ in self.accepted)

    def message(self, recipient: str) -> EmailMessage:
        (found,) = (message for to, message in self.accepted if to == recipient)
        return found

    # what aiosmtpd calls

    async def handle_MAIL(self, server: Any, session: Any, envelope: Any, address: str, options: list[str]) -> str:
        refused = self.refuse_sender(address)
        if refused is None:
            envelope.mail_from = address
            self.options.append(options)
        return refused or "250 OK"

    async def handle_RCPT(self, server: Any, session: Any, envelope: Any, address: str, options: list[str]) -> str:
        refused = self.refuse(address)
        if refused is None:
            envelope.rcpt_tos.append(address)
        return refused or "250 OK"

    async def handle_DATA(self, server: Any, session: Any, envelope: Any) -> str:
        (recipient,) = envelope.rcpt_tos
        answer = self.before_data(recipient)
        if answer is None:
            self.accepted.append((recipient, message_from_bytes(envelope.original_content, policy=default)))
            answer = self.after_data(recipient)
        if answer == "drop":
            server.transport.abort()
            await asyncio.sleep(0)
        return answer or "250 OK"


@contextmanager
def mail_server(**options: Any) -> Iterator[Mailbox]:
    """A server that runs with the block. options: of aiosmtpd's SMTP."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    mailbox = Mailbox(port)
    controller = Controller(mailbox, hostname="127.0.0.1", port=port, **options)
    controller.start()
    try:
        yield mailbox
    finally:
        controller.stop()
