"""Alerts: a line in a log of this machine, and a message to the webhook of a chat, in the shape that Slack made common.

The webhook's URL is a secret by itself, so a message is not signed and no error shows more of it than its host.
"""

from __future__ import annotations

import io
import json
import os
import socket
from datetime import UTC, datetime
from pathlib import Path

import urllib3

from orchestration.errors import UserError
from orchestration.exports import webhooks
from orchestration.exports.delivery import excerpt
from orchestration.settings import audience_home

WEBHOOK = "AUDIENCE_ALERT_WEBHOOK"
# Where the texts point to: the folder of the documentation, or a URL under which it is published.
DOCUMENTATION = "AUDIENCE_DOCS_URL"


class AlertNotTaken(UserError):
    """The receiver has not taken the message: it may be sent again."""


class AlertUnsure(UserError):
    """Whether the receiver has taken the message is not known."""


def documentation(page: str) -> str:
    """Where a page of the documentation is, for texts that are read elsewhere."""
    return f"{(os.environ.get(DOCUMENTATION) or 'docs').rstrip('/')}/{page}"


def log_file() -> Path:
    """The log of alerts: one JSON object a line, {"at": ISO 8601, "kind", "text"}, and "failed" with a reason after it."""
    return audience_home() / "alerts.ndjson"


def send(kind: str, text: str, section: str, logged: str | None = None) -> None:
    """Logs an alert and posts it, once, if a webhook is set. section: of docs/operations.md, as its anchor.

    kind: run failed, late, hot leads. logged: in place of a text that names people, whom an erasure would have to find in
    the log. Raises AlertNotTaken and AlertUnsure, after they were logged too.
    """
    what_to_do = f"What to do: {documentation('operations.md')}#{section}"
    _log({"kind": kind, "text": f"{logged or text}\n{what_to_do}"})
    url = os.environ.get(WEBHOOK)
    if not url:
        return
    try:
        _post(url, f"{text}\n{what_to_do}")
    except UserError as error:
        _log({"kind": kind, "failed": str(error)})
        raise


def _log(entry: dict[str, str]) -> None:
    audience_home().mkdir(parents=True, exist_ok=True)
    file = os.open(log_file(), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    try:
        os.write(file, (json.dumps({"at": datetime.now(UTC).isoformat(), **entry}) + "\n").encode())
    finally:
        os.close(file)


def _post(url: str, text: str) -> None:
    """Posts the text. Tried again only where nothing can have arrived: nobody answered the call, or 429 or 5xx did."""
    receiver = webhooks.receiver_of(url, name=f"The webhook in {WEBHOOK}")
    # in Slack's texts these begin mentions and links; ids come from visitors
    escaped = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    body = json.dumps({"text": escaped}).encode()
    headers = {"content-type": "application/json", "content-length": str(len(body)), "user-agent": "audience-intelligence"}  # fmt: skip
    attempts, timeout = webhooks.patience()
    reason = ""
    for attempt in attempts:
        webhooks.pause(attempt)
        try:
            status, answer = webhooks.send(io.BytesIO(body), receiver, attempt, timeout, headers)
        except (socket.gaierror, urllib3.exceptions.ConnectTimeoutError, urllib3.exceptions.SSLError) as error:
            reason = _reason(error, receiver)
            continue
        except urllib3.exceptions.HTTPError as error:
            raise AlertUnsure(
                f"{receiver.name} may not have taken the alert ({_reason(error, receiver)}): see {log_file()}."
            ) from error
        if webhooks.is_taken(status):
            return
        reason = f"it answered {status} {answer}".strip()
        if status != 429 and status < 500:
            break
    raise AlertNotTaken(f"{receiver.name} did not take the alert ({reason}): correct it. The alert is in {log_file()}.")


def _reason(error: Exception, receiver: webhooks.Receiver) -> str:
    return f"{type(error).__name__}: {excerpt(str(error))}".replace(receiver.path, "/...")
