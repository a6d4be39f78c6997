"""Templates and messages of campaigns: what may be written, and that nothing in a field becomes more than text."""

from __future__ import annotations

from email import message_from_bytes
from email.headerregistry import Address
from email.message import EmailMessage
from email.policy import default
from pathlib import Path
from typing import Any

import pytest

from orchestration.campaigns import messages, templates
from orchestration.campaigns.messages import Sender
from orchestration.errors import UserError
from orchestration.settings import mail_server

COLUMNS = ["first_name", "orders_count"]
LINK = "https://north-hall.example/unsubscribe?token=" + "ab" * 60
HOSTILE = "<script>alert('x')</script>\r\nBcc: all@example.com\n.\r\n{{ 7 * 7 }}"


def write(folder: Path, subject: str = "Hello {{ first_name }}", text: str = "Dear {{ first_name }}", html: str | None = None) -> Path:  # fmt: skip
    (folder / "subject.txt").write_text(subject, encoding="utf-8")
    (folder / "body.txt").write_text(text, encoding="utf-8")
    if html is not None:
        (folder / "body.html").write_text(html, encoding="utf-8")
    return folder


def fields(**values: Any) -> dict[str, Any]:
    return {"first_name": "Ada", "orders_count": 2, "campaign_name": "Spring", "unsubscribe_url": LINK, **values}


def composed(content: templates.Rendered, name: str = "North Hall") -> EmailMessage:
    sender = Sender(Address(name, addr_spec="news@north-hall.example"), "bounces@north-hall.example", LINK)
    raw = messages.compose(content, sender, "ada@example.com", "0f" * 16, LINK)
    assert raw.isascii() and b"\n" not in raw.replace(b"\r\n", b"") and raw.endswith(b"\r\n")
    assert all(len(line) <= 998 for line in raw.split(b"\r\n"))
    return message_from_bytes(raw, policy=default)


def test_text_is_as_written_and_html_is_escaped(tmp_path):
    content = templates.load(write(tmp_path, html="<p>{{ first_name }}</p>"), COLUMNS).render(
        fields(first_name=HOSTILE)
    )
    assert content.text == f"Dear {HOSTILE}"
    assert "<script>" not in content.html and "&lt;script&gt;" in content.html and "{{ 7 * 7 }}" in content.html


def test_no_field_begins_another_header_or_ends_the_message(tmp_path):
    template = templates.load(write(tmp_path, html="<p>{{ first_name }}</p>"), COLUMNS)
    message = composed(template.render(fields(first_name=HOSTILE)))
    assert message["Bcc"] is None and message["Subject"].startswith("Hello <script>") and "\n" not in message["Subject"]
    assert sorted(message.keys()) == sorted(
        ["From", "To", "Subject", "Date", "Message-ID", "List-Unsubscribe", "List-Unsubscribe-Post", "Auto-Submitted",
         "Precedence", "MIME-Version", "Content-Type"]
    )  # fmt: skip
    text = message.get_body(("plain",)).get_content()
    assert "Bcc: all@example.com" in text and "{{ 7 * 7 }}" in text


@pytest.mark.parametrize("word", ["Zoë", "\u6771\u4eac", "x" * 2_000, "\U0001f3ab " * 100])
def test_every_script_and_length_arrives(tmp_path, word):
    template = templates.load(write(tmp_path, html="<p>{{ first_name }}</p>"), COLUMNS)
    message = composed(template.render(fields(first_name=word)), name="Zoë, North Hall")
    assert message["Subject"] == f"Hello {word.strip()}"
    assert word.strip() in message.get_body(("plain",)).get_content()
    assert word.strip() in message.get_body(("html",)).get_content()
    assert message["From"].addresses[0].display_name == "Zoë, North Hall"


def test_links_and_ids_are_in_one_piece(tmp_path):
    message = composed(templates.load(write(tmp_path), COLUMNS).render(fields()))
    assert message["List-Unsubscribe"] == f"<{LINK}>" and len(LINK) > 150
    assert message["List-Unsubscribe-Post"] == "List-Unsubscribe=One-Click"
    assert message["Message-ID"] == f"<{'0f' * 16}@north-hall.example>"
    assert not message.is_multipart()


def test_what_is_not_known_is_no_word(tmp_path):
    template = templates.load(write(tmp_path, text="Dear {{ first_name or 'friend' }}{{ first_name }}"), COLUMNS)
    assert template.render(fields(first_name=None)).text == "Dear friend"
    assert template.render(fields(first_name=None)).subject == "Hello"


def test_one_file_with_its_subject_is_a_template_too(tmp_path):
    file = tmp_path / "spring.txt"
    file.write_text("Subject: Hello {{ first_name }}\n\nDear {{ first_name }}\n")
    assert templates.load(file, COLUMNS).render(fields()) == templates.Rendered("Hello Ada", "Dear Ada\n", None)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("{{ frist_name }}", r"body\.txt of template .* names the field 'frist_name', which recipients do not have: name some of campaign_name, first_name, orders_count, unsubscribe_url\."),
        ("{% if first_name %}", r"body\.txt of template .* is no template .*line 1.: correct it"),
        ("{% include 'secret.txt' %}", r"fails for a recipient .TemplateNotFound."),
        ("{{ first_name.__class__.__mro__ }}", r"fails for a recipient .SecurityError."),
        ("{{ 1 / (orders_count - 2) }}", r"fails for a recipient .ZeroDivisionError."),
        ("{{ orders_count.nothing }}", r"fails for a recipient .UndefinedError."),
        ("{{ range(999999999) | list }}", r"fails for a recipient .OverflowError."),
        ("  ", r"has an empty subject or text"),
    ],
)  # fmt: skip
def test_a_template_that_cannot_be_used_is_refused_with_a_sentence(tmp_path, text, complaint):
    with pytest.raises(UserError, match=complaint):
        templates.load(write(tmp_path, text=text), COLUMNS).render(fields(first_name="Secret Person"))


def test_a_template_that_is_not_there_or_no_text_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"cannot be read .No such file"):
        templates.load(tmp_path / "gone", COLUMNS)
    with pytest.raises(UserError, match=r"cannot be read .No such file"):
        templates.load(tmp_path, COLUMNS)
    (tmp_path / "x.txt").write_text("Dear all")
    with pytest.raises(UserError, match=r"The first line of template .* is no subject"):
        templates.load(tmp_path / "x.txt", COLUMNS)
    (tmp_path / "x.txt").write_bytes(b"Subject: \xff")
    with pytest.raises(UserError, match="is not UTF-8"):
        templates.load(tmp_path / "x.txt", COLUMNS)


def test_every_part_is_in_the_hash(tmp_path):
    def sha256(**parts: str) -> str:
        return templates.load(write(tmp_path, **parts), COLUMNS).sha256

    hashes = [sha256(), sha256(subject="other"), sha256(text="other"), sha256(html="one"), sha256(html="two")]
    assert len(set(hashes)) == 5 and sha256(html="two") == hashes[-1]


# The environment


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("smtp://mail.example", ("mail.example", 587, False, "required", None, None)),
        ("smtps://ada:p%40ss@mail.example", ("mail.example", 465, True, "required", "ada", "p@ss")),
        ("smtp://127.0.0.1:2525", ("127.0.0.1", 2525, False, "offered", None, None)),
        ("smtp://relay.internal:25/?starttls=off", ("relay.internal", 25, False, "off", None, None)),
    ],
)
def test_a_mail_server_is_read_from_its_url(monkeypatch, url, expected):
    monkeypatch.setenv("AUDIENCE_SMTP_URL", url)
    found = mail_server()
    assert (found.host, found.port, found.is_encrypted, found.starttls, found.user, found.password) == expected
    assert "p@ss" not in repr(found) and "p@ss" not in found.name


@pytest.mark.parametrize("url", ["", "mail.example", "http://mail.example", "smtp://a:hunter2@h:x", "smtp://h/path", "smtp://h?tls=no", "smtp://a:hunter2@[h"])  # fmt: skip
def test_another_url_is_refused_without_its_password(monkeypatch, url):
    monkeypatch.setenv("AUDIENCE_SMTP_URL", url)
    with pytest.raises(UserError, match="AUDIENCE_SMTP_URL names no mail server") as refused:
        mail_server()
    assert "hunter2" not in str(refused.value) and refused.value.__cause__ is None


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("AUDIENCE_MAIL_FROM", ""), ("AUDIENCE_MAIL_FROM", "North Hall"), ("AUDIENCE_MAIL_FROM", "a@b.example\nBcc: x@y.example"),
        ("AUDIENCE_MAIL_BOUNCES", "nobody"), ("AUDIENCE_UNSUBSCRIBE_URL", ""), ("AUDIENCE_UNSUBSCRIBE_URL", "http://north-hall.example/"),
        ("AUDIENCE_UNSUBSCRIBE_URL", "https://north-hall.example/>,<https://other.example"), ("AUDIENCE_UNSUBSCRIBE_URL", "https://a.example/\r\nBcc: x"),
    ],
)  # fmt: skip
def test_a_sender_that_cannot_be_used_is_refused(monkeypatch, name, value):
    monkeypatch.setenv("AUDIENCE_MAIL_FROM", "North Hall <news@north-hall.example>")
    monkeypatch.setenv("AUDIENCE_UNSUBSCRIBE_URL", "https://north-hall.example/u?list=1")
    assert messages.sender().link("t") == "https://north-hall.example/u?list=1&token=t"
    monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=name):
        messages.sender()


@pytest.mark.parametrize(
    ("value", "usable"),
    [(" Ada@Example.com", "ada@example.com"), ("ünï@example.com", ""), ("a b@example.com", ""), ("", ""), (None, ""), ("a@example.com\r\nx", "")],
)  # fmt: skip
def test_only_an_address_that_servers_take_is_usable(value, usable):
    assert messages.usable_address(value) == usable
