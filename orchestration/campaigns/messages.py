"""An e-mail as it is handed to the server: headers, text and HTML, in ASCII with CRLF."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from datetime import UTC, datetime
from email.headerregistry import Address
from email.message import EmailMessage
from email.policy import SMTP, EmailPolicy
from email.utils import getaddresses
from urllib.parse import urlsplit

from orchestration.campaigns.templates import Rendered
from orchestration.errors import UserError
from orchestration.exports import identifiers


class _Policy(EmailPolicy):
    """Leaves a URL and an id in one piece: folded, they would be encoded, and nobody would find them."""

    def fold_binary(self, name: str, value: str) -> bytes:
        if name.lower() in ("list-unsubscribe", "message-id"):
            return f"{name}: {value}\r\n".encode("ascii")
        return super().fold_binary(name, value)


# 7 bit, which every server takes
_POLICY = _Policy(linesep=SMTP.linesep, cte_type="7bit")


@dataclass(frozen=True)
class Sender:
    """Whom a campaign comes from. bounces: the address that the server returns messages to. unsubscribe_url: an https URL
    whose one-click POST takes people off the list."""

    address: Address
    bounces: str
    unsubscribe_url: str

    @property
    def domain(self) -> str:
        return self.address.domain

    def link(self, token: str) -> str:
        """Where one recipient unsubscribes."""
        return f"{self.unsubscribe_url}{'&' if urlsplit(self.unsubscribe_url).query else '?'}token={token}"


def usable_address(value: str | None) -> str:
    """The one form of an address that mail can be sent to, or "". Letters of other scripts before the @ need an extension
    that few servers have."""
    address = identifiers.email(value or "")
    return address if address.isascii() else ""


def sender() -> Sender:
    """As the environment names it. Raises UserError for what is missing or cannot be used."""
    given = os.environ.get("AUDIENCE_MAIL_FROM", "")
    found = getaddresses([given])
    if len(found) != 1 or not usable_address(found[0][1]) or not given.isprintable():
        raise UserError(
            "AUDIENCE_MAIL_FROM is no address to send from: set it to North Hall <news@north-hall.example>."
        )
    ((name, address),) = found
    bounces = os.environ.get("AUDIENCE_MAIL_BOUNCES", "").strip() or address
    if not usable_address(bounces):
        raise UserError("AUDIENCE_MAIL_BOUNCES is no address: set it to the mailbox that returned messages go to.")
    url = os.environ.get("AUDIENCE_UNSUBSCRIBE_URL", "").strip()
    if not re.fullmatch(r"https://[\w.-]+(:\d+)?(/[!-~]*)?", url, re.ASCII) or set(url) & set('<>#"'):
        raise UserError(
            "AUDIENCE_UNSUBSCRIBE_URL is no https URL, which one-click unsubscribing needs: set it to the page whose POST "
            "takes people off, such as https://north-hall.example/unsubscribe."
        )
    return Sender(Address(name, addr_spec=address), bounces, url)


def compose(content: Rendered, sender: Sender, recipient: str, message_id: str, unsubscribe_url: str) -> bytes:
    """The message, ready for the server."""
    message = EmailMessage(policy=_POLICY)
    message["From"] = sender.address
    message["To"] = Address(addr_spec=recipient)
    message["Subject"] = content.subject
    message["Date"] = datetime.now(UTC)
    message["Message-ID"] = f"<{message_id}@{sender.domain}>"
    message["List-Unsubscribe"] = f"<{unsubscribe_url}>"
    message["List-Unsubscribe-Post"] = "List-Unsubscribe=One-Click"
    # so that no machine answers
    message["Auto-Submitted"] = "auto-generated"
    message["Precedence"] = "bulk"
    message.set_content(content.text)
    if content.html is not None:
        message.add_alternative(content.html, subtype="html")
    return message.as_bytes()
