"""Exports that every night makes, declared in `standing_exports/`: each once a night, logged like any other."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any
from uuid import UUID
from zoneinfo import ZoneInfo

import psycopg
import yaml

from orchestration import dbt, segments
from orchestration.errors import CheckFailed, UserError
from orchestration.exports import door, files, runner
from orchestration.exports.delivery import safe_name
from orchestration.segments import EVERY_ORG
from orchestration.settings import project_dir, target_schema

TEXTS = ("name", "org_id", "segment", "purpose")
# What may be left out, with its default.
OPTIONS: dict[str, Any] = {"format": "csv", "to": None, "include_pii": False, "delta": False}


@dataclass(frozen=True)
class Standing:
    """An export of a file in `standing_exports/`. to: an absolute folder or a URL; None: exports in AUDIENCE_HOME."""

    export_name: str
    org_id: str
    segment_name: str
    purpose: str
    format_name: str
    to: str | None
    include_pii: bool
    is_delta: bool


@dataclass(frozen=True)
class Made:
    """What became of a standing export in a night. entry: its newest row in the log, None before the first. error: why it was
    not made; of a file that cannot be used there is nothing else."""

    export_name: str
    org_id: str = ""
    segment_name: str = ""
    entry: door.Entry | None = None
    error: str | None = None

    @property
    def export_id(self) -> UUID | None:
        return self.entry.export_id if self.entry else None


@contextmanager
def connect() -> Iterator[psycopg.Connection]:
    """A connection to a database that has the table of nights."""
    dbt.ensure_table(f"{target_schema()}_state.standing_export_nights")
    with segments.connect() as connection:
        yield connection


def night_of(moment: datetime | None = None) -> date:
    """The night of a moment, by default of now: its date in AUDIENCE_SCHEDULE_TIME_ZONE."""
    zone = ZoneInfo(os.environ.get("AUDIENCE_SCHEDULE_TIME_ZONE", "UTC"))
    return (moment or datetime.now(UTC)).astimezone(zone).date()


def make(connection: psycopg.Connection, night: date) -> list[Made]:
    """Makes each standing export that the night does not have yet. One that fails stops no other."""
    runner.recover(connection)
    return _each(connection, night, _make)


def look(connection: psycopg.Connection, night: date) -> list[Made]:
    """What is declared, and what became of it in a night. Changes nothing."""
    return _each(connection, night, _look)


def check(done: Sequence[Made]) -> None:
    """Raises CheckFailed when an export was not made."""
    failed = [one for one in done if one.error]
    if failed:
        raise CheckFailed(
            "Standing exports that were not made; correct them, then run this again, which makes no other twice.\n"
            + "\n".join(f"{_named(one)}: {one.error}" for one in failed)
        )


def _named(one: Made) -> str:
    return f"{one.export_name} of {one.org_id}" if one.org_id else one.export_name


def _each(connection: psycopg.Connection, night: date, do: Any) -> list[Made]:
    found: dict[tuple[str, str], Made] = {}
    for path in sorted((project_dir() / "standing_exports").glob("*.yml")):
        file = f"standing_exports/{path.name}"
        try:
            for one in _declared(connection, path):
                if (one.org_id, one.export_name) in found:
                    raise UserError(f"Another file declares {one.export_name!r} for org {one.org_id} too: rename one.")
                found[one.org_id, one.export_name] = do(connection, one, night)
        except UserError as error:
            found["", file] = Made(file, error=str(error))
    return list(found.values())


def _make(connection: psycopg.Connection, one: Standing, night: date) -> Made:
    error = None
    try:
        runner.export_standing(
            connection, one.export_name, night, one.org_id, one.segment_name, one.purpose,
            include_pii=one.include_pii, is_delta=one.is_delta, format_name=one.format_name, to=one.to,
        )  # fmt: skip
    except (UserError, CheckFailed, OSError) as refusal:
        error = str(refusal)
    entry = runner.of_night(connection, one.export_name, night, one.org_id)
    return Made(one.export_name, one.org_id, one.segment_name, entry, error)


def _look(connection: psycopg.Connection, one: Standing, night: date) -> Made:
    entry = runner.of_night(connection, one.export_name, night, one.org_id)
    return Made(one.export_name, one.org_id, one.segment_name, entry)


def _declared(connection: psycopg.Connection, path: Path) -> list[Standing]:
    """The exports of a file: of one org, or of each that has the segment. Raises UserError for what is none."""
    content = _content(path.read_text())
    orgs = [content["org_id"]]
    if content["org_id"] == EVERY_ORG:
        orgs = [one.org_id for one in segments.list_segments(connection, segment_name=content["segment"])]
        if not orgs:
            raise UserError(f"No org has a segment {content['segment']!r}: correct its name, or make the segment.")
    return [
        Standing(
            content["name"], org_id, content["segment"], content["purpose"], content["format"], content["to"],
            content["include_pii"], content["delta"],
        )
        for org_id in orgs
    ]  # fmt: skip


def _content(text: str) -> dict[str, Any]:
    """What a file declares, with defaults. Raises UserError for anything but a standing export."""
    try:
        given = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UserError(f"It is no YAML ({str(error).splitlines()[0]}): correct it.") from error
    content = {**OPTIONS, **given} if isinstance(given, dict) else {}
    if content.keys() != {*TEXTS, *OPTIONS} or not all(
        isinstance(content[key], str) and content[key].strip() for key in TEXTS
    ):
        raise UserError(
            "Give name, org_id ('*' for every org), segment and purpose as texts; format, to, include_pii and delta may follow, "
            "and nothing else."
        )  # fmt: skip
    if not all(isinstance(content[key], bool) for key in ("include_pii", "delta")):
        raise UserError("include_pii and delta are true or false: write one of them, without quotes.")
    to = content["to"]
    if not isinstance(content["format"], str) or not (to is None or isinstance(to, str)):
        raise UserError("format and to are texts: put them into quotes, or leave them out.")
    if to and not files.is_remote(to) and not Path(to.removeprefix("file://")).is_absolute():
        raise UserError(f"{to!r} depends on where the command is run: give a folder that begins with /, or a URL.")
    if to and safe_name(to) != to:
        raise UserError(f"{safe_name(to)} has a password or a query, which is no text for a file: give a URL without.")
    return content
