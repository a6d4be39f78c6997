"""Templates of e-mails: Jinja in a sandbox, with what is written into HTML escaped. No database, no network."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
from jinja2 import meta
from jinja2.sandbox import ImmutableSandboxedEnvironment

from orchestration.errors import UserError

SUBJECT, TEXT, HTML = "subject.txt", "body.txt", "body.html"
# What a template may name beside the columns of an export.
OWN_FIELDS = ("campaign_name", "unsubscribe_url")


def _environment(sources: Mapping[str, str]) -> jinja2.Environment:
    return ImmutableSandboxedEnvironment(
        loader=jinja2.DictLoader(dict(sources)),
        autoescape=lambda name: name == HTML,
        undefined=jinja2.StrictUndefined,
        # a detail that is not known is no word
        finalize=lambda value: "" if value is None else value,
        keep_trailing_newline=True,
    )


@dataclass(frozen=True)
class Rendered:
    """A message's subject on one line, its plain text, and its HTML if the template has one."""

    subject: str
    text: str
    html: str | None


@dataclass(frozen=True)
class Template:
    """What a campaign says. sha256: of all its files."""

    place: str
    parts: Mapping[str, jinja2.Template]
    sha256: str

    def render(self, fields: Mapping[str, Any]) -> Rendered:
        """The message with these fields. Raises UserError, which holds no value of a field, when the template fails."""
        found = {name: self._render(name, part, fields) for name, part in self.parts.items()}
        # one line, whatever a field holds: a line break would begin another header
        subject = "".join(letter if letter.isprintable() else " " for letter in found[SUBJECT])
        return Rendered(" ".join(subject.split()), found[TEXT], found.get(HTML))

    def _render(self, name: str, part: jinja2.Template, fields: Mapping[str, Any]) -> str:
        try:
            return part.render(fields)
        except Exception as error:  # a template is a program: whatever it may raise
            raise UserError(
                f"{name} of template {self.place} fails for a recipient ({type(error).__name__}): nothing was sent to "
                "that one. Allow for values that are missing or 0, then run it again."
            ) from None


def load(path: Path, columns: Iterable[str]) -> Template:
    """The template in a folder (subject.txt, body.txt and, if wanted, body.html) or in one text file, whose first line is
    `Subject: ...`. columns: the fields of a recipient. Raises UserError for one that cannot be read or names other fields."""
    sources = _sources(path)
    fields = {*columns, *OWN_FIELDS}
    environment = _environment(sources)
    parts = {}
    for name, source in sources.items():
        try:
            unknown = meta.find_undeclared_variables(environment.parse(source)) - fields - environment.globals.keys()
            if unknown:
                raise UserError(
                    f"{name} of template {path} names the field {min(unknown)!r}, which recipients do not have: name some of "
                    f"{', '.join(sorted(fields))}."
                )
            parts[name] = environment.get_template(name)
        except jinja2.TemplateError as error:
            raise UserError(
                f"{name} of template {path} is no template ({error.message}, line {getattr(error, 'lineno', '?')}): correct it."
            ) from error
    if not sources[SUBJECT].strip() or not sources[TEXT].strip():
        raise UserError(f"Template {path} has an empty subject or text: write both.")
    content = "".join(f"{name} {len(source)} {source}" for name, source in sources.items())
    return Template(str(path), parts, hashlib.sha256(content.encode()).hexdigest())


def _sources(path: Path) -> dict[str, str]:
    try:
        if not path.is_dir():
            first, _, text = path.read_text(encoding="utf-8").partition("\n")
            kind, _, subject = first.partition(":")
            if kind.strip().lower() != "subject":
                raise UserError(f"The first line of template {path} is no subject: begin it with Subject: ...")
            return {SUBJECT: subject.strip(), TEXT: text.lstrip("\r\n")}
        names = [name for name in (SUBJECT, TEXT, HTML) if name != HTML or (path / name).exists()]
        return {name: (path / name).read_text(encoding="utf-8") for name in names}
    except OSError as error:
        raise UserError(
            f"Template {path} cannot be read ({error.strerror}: {error.filename}): give a folder with {SUBJECT}, {TEXT} and, "
            f"if wanted, {HTML}, or a text file that begins with Subject: ..."
        ) from error
    except UnicodeDecodeError as error:
        raise UserError(f"Template {path} is not UTF-8 ({error.reason}): save it as UTF-8.") from error
