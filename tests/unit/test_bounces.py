"""Delivery reports as mail servers write them: which message came back, and which did not."""

from __future__ import annotations

from email import message_from_string

import pytest

from orchestration.campaigns.bounces import Bounce, bounce_of

ID = "3c1f0a8e5b6d47c2a9e0f1b2c3d4e5f6"
# As Postfix writes it (RFC 3464), with the headers that came back as a part of their own.
REPORT = """From: MAILER-DAEMON@mail.example (Mail Delivery System)
To: bounces@north-hall.example
Subject: Undelivered Mail Returned to Sender
MIME-Version: 1.0
Content-Type: multipart/report; report-type=delivery-status; boundary="b1"

--b1
Content-Type: text/plain

I'm sorry to have to inform you that your message could not be delivered.

--b1
Content-Type: message/delivery-status

Reporting-MTA: dns; mail.example
{envelope}Arrival-Date: Tue, 30 Jun 2026 10:00:00 +0000

Final-Recipient: rfc822; ada@example.com
Action: {action}
Status: {status}
Diagnostic-Code: smtp; 550 5.1.1 <ada@example.com>: no such user

--b1
Content-Type: {kind}

From: news@north-hall.example
Message-ID: {message_id}
Subject: Spring

--b1--
"""


def report(action: str = "failed", status: str = "5.1.1", kind: str = "text/rfc822-headers", message_id: str = f"<{ID}@north-hall.example>", envelope: str = "") -> str:  # fmt: skip
    return REPORT.format(action=action, status=status, kind=kind, message_id=message_id, envelope=envelope)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (report(), Bounce(ID, "5.1.1")),
        (report(kind="message/rfc822"), Bounce(ID, "5.1.1")),
        (report(action=" Failed ", status="5.2.2 (mailbox full)"), Bounce(ID, "5.2.2")),
        (report(status="unknown"), Bounce(ID, None)),
        (report(envelope=f"Original-Envelope-Id: {ID}\n", message_id="<gone@x>"), Bounce(ID, "5.1.1")),
        (report(action="delayed", status="4.4.1"), None),
        (report(action="delivered", status="2.0.0"), None),
        (report(message_id="<other@example.com>"), None),
        (report(message_id=f"<x{ID}@north-hall.example>"), None),
        (f"From: ada@example.com\nSubject: Re: Spring\nIn-Reply-To: <{ID}@north-hall.example>\n\nI am away.\n", None),
        ("", None),
        ("Content-Type: multipart/report; boundary=b\n\n--b\nContent-Type: message/delivery-status\n\nAction: failed\n", None),
    ],
)  # fmt: skip
def test_a_failed_delivery_is_told_from_everything_else(text, expected):
    assert bounce_of(message_from_string(text)) == expected
