"""The mail server: hands it one message at a time, and says what is known of each. No database."""

from __future__ import annotations

import re
import smtplib
import ssl
from dataclasses import dataclass

from orchestration.errors import UserError
from orchestration.settings import MailServer, project_variables


@dataclass(frozen=True)
class Outcome:
    """What became of a message. status: sent, deferred (not now), failed (for good), or uncertain: the connection was lost
    when the server had the message or a part of it. code: of its answer, None without one."""

    status: str
    code: int | None = None


class Mailer:
    """A connection to a mail server, made when it is first needed and again when the server closed it between messages."""

    def __init__(self, server: MailServer) -> None:
        self.server = server
        self._connection: smtplib.SMTP | None = None

    def __enter__(self) -> Mailer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def connect(self) -> smtplib.SMTP:
        """The connection. Raises UserError when the server cannot be reached, or does not let this sender in."""
        if self._connection is None:
            self._connection = self._connect()
        return self._connection

    def _connect(self) -> smtplib.SMTP:
        variables = project_variables()
        name, timeout = self.server.name, variables["campaign_smtp_timeout_seconds"]
        context = ssl.create_default_context()
        try:
            if self.server.is_encrypted:
                connection: smtplib.SMTP = smtplib.SMTP_SSL(
                    self.server.host, self.server.port, timeout=timeout, context=context
                )
            else:
                connection = smtplib.SMTP(self.server.host, self.server.port, timeout=timeout)
        except (OSError, smtplib.SMTPException) as error:
            raise UserError(
                f"The mail server {name} cannot be reached ({_reason(error)}): correct AUDIENCE_SMTP_URL, or start it."
            ) from None
        try:
            self._let_in(connection, context)
        except BaseException:
            connection.close()
            raise
        return connection

    def _let_in(self, connection: smtplib.SMTP, context: ssl.SSLContext) -> None:
        name = self.server.name
        try:
            connection.ehlo()
            if self.server.is_encrypted or self.server.starttls == "off":
                pass
            elif connection.has_extn("starttls"):
                connection.starttls(context=context)
                connection.ehlo()
            elif self.server.starttls == "required":
                raise UserError(
                    f"The mail server {name} offers no encryption (STARTTLS), so nothing was said to it: use smtps://, or add "
                    "?starttls=off to AUDIENCE_SMTP_URL for a server of a private network."
                )
            if self.server.user is not None:
                connection.login(self.server.user, self.server.password or "")
        except ssl.SSLError as error:
            raise UserError(
                f"The mail server {name} did not prove who it is ({error.reason}): correct its certificate or the name of its host."
            ) from None
        except (OSError, smtplib.SMTPException) as error:
            raise UserError(
                f"The mail server {name} did not let this sender in ({_reason(error)}): correct the user and password in AUDIENCE_SMTP_URL."
            ) from None

    def send(self, sender: str, recipient: str, message: bytes, message_id: str) -> Outcome:
        """Hands one message over. Raises UserError when the server takes none from this sender; then it took none."""
        connection = self._begin(sender, message_id)
        try:
            code, _ = connection.rcpt(recipient)
            if code // 100 == 2:
                code, _ = connection.docmd("DATA")
        except (OSError, smtplib.SMTPException):
            self._drop()
            return Outcome("deferred")
        if code != 354:
            return self._refused(code)
        try:
            connection.send(re.sub(rb"(?m)^\.", b"..", message) + b".\r\n")
            code, _ = connection.getreply()
        except (OSError, smtplib.SMTPException):
            self._drop()
            return Outcome("uncertain")
        return Outcome("sent", code) if code // 100 == 2 else self._refused(code)

    def _begin(self, sender: str, message_id: str) -> smtplib.SMTP:
        """A connection that has accepted the sender; a new one if the server closed the last while it waited."""
        for is_last_try in (False, True):
            connection = self.connect()
            # by which a returned message is known, where the server tells senders about deliveries
            options = ["RET=HDRS", f"ENVID={message_id}"] if connection.has_extn("dsn") else []
            try:
                code, _ = connection.mail(sender, options)
            except (OSError, smtplib.SMTPException) as error:
                self._drop()
                if is_last_try:
                    raise UserError(
                        f"The mail server {self.server.name} closed the connection ({_reason(error)}): run it again later."
                    ) from None
                continue
            if code // 100 == 2:
                return connection
            self._drop()
            if code != 421 or is_last_try:
                raise UserError(
                    f"The mail server {self.server.name} takes nothing from {sender} (it answered {code}): correct "
                    "AUDIENCE_MAIL_FROM, AUDIENCE_MAIL_BOUNCES or the user of AUDIENCE_SMTP_URL, or run it again later."
                )
        raise AssertionError("unreachable")

    def _refused(self, code: int) -> Outcome:
        try:
            if code == 421 or self.connect().rset()[0] != 250:
                self._drop()
        except (OSError, smtplib.SMTPException):
            self._drop()
        return Outcome("failed" if code // 100 == 5 else "deferred", code)

    def _drop(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def close(self) -> None:
        """Says goodbye, if the server still listens."""
        if self._connection is not None:
            try:
                self._connection.quit()
            except (OSError, smtplib.SMTPException):
                self._connection.close()
            self._connection = None


def _reason(error: Exception) -> str:
    """What went wrong, without the words of the server, which may quote what it was told."""
    if isinstance(error, smtplib.SMTPResponseException):
        return f"it answered {error.smtp_code}"
    return str(getattr(error, "strerror", None) or type(error).__name__)
