"""The connection to a mail server: encryption, passwords, and what is known of a message when something breaks."""

from __future__ import annotations

import shutil
import ssl
import subprocess
from pathlib import Path

import pytest
from aiosmtpd.smtp import AuthResult

from orchestration.campaigns.smtp import Mailer, Outcome
from orchestration.errors import UserError
from orchestration.settings import MailServer
from tests.mail import Mailbox, mail_server

MESSAGE = b"Subject: Spring\r\n\r\nDear all,\r\n.\r\n..two\r\nyours\r\n"


def server(mailbox: Mailbox, starttls: str = "offered", password: str | None = None) -> MailServer:
    return MailServer("localhost", mailbox.port, False, starttls, password and "ada", password)


def send(server: MailServer, recipient: str = "ada@example.com") -> Outcome:
    with Mailer(server) as mailer:
        return mailer.send("bounces@north-hall.example", recipient, MESSAGE, "0f" * 16)


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate of localhost, with its key in the file beside it."""
    if not shutil.which("openssl"):
        pytest.skip("no openssl to make a certificate with")
    file = tmp_path_factory.mktemp("tls") / "certificate.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2",
         "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost", "-keyout", str(file.with_suffix(".key")), "-out", str(file)],
        check=True, capture_output=True,
    )  # fmt: skip
    return file


def tls(certificate: Path) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, certificate.with_suffix(".key"))
    return context


def test_lines_of_a_dot_arrive_as_written():
    with mail_server() as mailbox:
        assert send(server(mailbox)) == Outcome("sent", 250)
        assert mailbox.message("ada@example.com").get_content().split() == ["Dear", "all,", ".", "..two", "yours"]


def test_a_server_without_encryption_is_told_nothing():
    with mail_server() as mailbox:
        with pytest.raises(
            UserError, match=r"offers no encryption .STARTTLS., so nothing was said to it: use smtps://"
        ):
            send(server(mailbox, "required", "hunter2"))
        assert mailbox.accepted == [] and send(server(mailbox, "off")).status == "sent"


def test_encryption_that_is_offered_is_used_and_checked(certificate, monkeypatch):
    with mail_server(tls_context=tls(certificate), require_starttls=True) as mailbox:
        for starttls in ("offered", "required"):
            with pytest.raises(UserError, match=r"did not prove who it is .CERTIFICATE_VERIFY_FAILED."):
                send(server(mailbox, starttls))
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
        assert send(server(mailbox, "required")).status == "sent"
        with pytest.raises(UserError, match=r"takes nothing from .* .it answered 530."):
            send(server(mailbox, "off"))
    assert len(mailbox.accepted) == 1


@pytest.mark.filterwarnings("ignore:Requiring AUTH while not requiring TLS")
def test_a_password_is_given_and_never_told():
    def is_ada(server, session, envelope, mechanism, data):
        return AuthResult(success=(data.login, data.password) == (b"ada", b"hunter2"), handled=False)

    with mail_server(authenticator=is_ada, auth_required=True, auth_require_tls=False) as mailbox:
        assert send(server(mailbox, password="hunter2")).status == "sent"
        with pytest.raises(UserError, match=r"did not let this sender in .it answered 535.: correct the user and password") as refused:  # fmt: skip
            send(server(mailbox, password="hunter3"))
        assert "hunter3" not in str(refused.value)
        with pytest.raises(UserError, match=r"takes nothing from .* .it answered 530."):
            send(server(mailbox))


def test_a_server_that_is_not_there_is_named_without_the_password():
    with mail_server() as mailbox:
        gone = server(mailbox, password="hunter2")
    with pytest.raises(UserError, match=rf"smtp://localhost:{gone.port} cannot be reached .*: correct AUDIENCE_SMTP_URL") as refused:  # fmt: skip
        send(gone)
    assert "hunter2" not in str(refused.value)


@pytest.mark.parametrize(
    ("answer", "outcome"),
    [
        ("450 busy", Outcome("deferred", 450)), ("552 too large", Outcome("failed", 552)), ("421 closing", Outcome("deferred", 421)),
        ("drop", Outcome("uncertain")),
    ],
)  # fmt: skip
def test_what_the_server_says_to_the_message_is_its_outcome_and_the_next_is_sent(answer, outcome):
    with mail_server() as mailbox, Mailer(server(mailbox)) as mailer:
        mailbox.before_data = lambda recipient: answer if recipient.startswith("ada") else None
        for recipient, expected in (("ada@example.com", outcome), ("bob@example.com", Outcome("sent", 250))):
            assert mailer.send("bounces@north-hall.example", recipient, MESSAGE, "0f" * 16) == expected
        assert list(mailbox.recipients) == ["bob@example.com"]


@pytest.mark.parametrize(("answer", "status"), [("550 no", "failed"), ("451 later", "deferred"), ("421 closing", "deferred")])  # fmt: skip
def test_what_the_server_says_to_the_recipient_is_the_outcome(answer, status):
    with mail_server() as mailbox, Mailer(server(mailbox)) as mailer:
        mailbox.refuse = lambda recipient: answer if recipient.startswith("ada") else None
        for recipient, expected in (("ada@example.com", status), ("bob@example.com", "sent")):
            found = mailer.send("bounces@north-hall.example", recipient, MESSAGE, "0f" * 16)
            assert (found.status, found.code) == (expected, int(answer[:3]) if expected != "sent" else 250)
