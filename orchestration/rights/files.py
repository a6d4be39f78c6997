"""Files of exports that are still here and have a person on their list."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
import pyarrow.parquet

from orchestration.exports import copies, door, files, identifiers, runner
from orchestration.exports.formats import FORMATS
from orchestration.settings import project_variables


@dataclass(frozen=True)
class ListFile:
    """A file and the newest row of its export in the log."""

    path: Path
    entry: door.Entry


def files_with(connection: psycopg.Connection, subject: Mapping[str, Any]) -> list[ListFile]:
    """The files of an org's exports that list the subject, by what is in them. Those that were moved are not known."""
    wanted = _Wanted(subject)
    found = [ListFile(files.file_of(entry), entry) for entry in runner.latest(connection, subject["org_id"])]
    return [one for one in found if one.path.is_file() and any(map(wanted.is_in, _rows(one)))]


def remove(connection: psycopg.Connection, found: Iterable[ListFile]) -> list[str]:
    """Removes the files, and logs the end of exports that wait to be delivered by them. Returns their names."""
    names = []
    for one in found:
        one.path.unlink(missing_ok=True)
        names.append(str(one.path))
        if one.entry.outcome in ("completed", "undelivered"):
            door.record(
                connection, one.entry.export_id, "failed",
                reason="its file was removed, because somebody on its list was erased",
            )  # fmt: skip
    return names


class _Wanted:
    """Tells whether a row of a file, as {column: text}, is the subject's."""

    def __init__(self, subject: Mapping[str, Any]):
        region = project_variables()["export_phone_region"] or None
        numbers = {identifiers.phone(phone, region) for phone in subject["phones"]}
        plain = {rule(email) for email in subject["emails"] for rule in (identifiers.email, identifiers.email_without_suffix)}  # fmt: skip
        self.visitors = set(subject["visitor_ids"])
        self.emails = set(subject["emails"])
        self.phones = {_digits(phone) for phone in subject["phones"]} - {""}
        self.hashes = {identifiers.hashed(value) for value in plain | numbers | {one[1:] for one in numbers}} - {""}

    def is_in(self, row: Mapping[str, str]) -> bool:
        # an apostrophe keeps a spreadsheet from taking a text for a formula
        visitor = row.get("visitor_id", "")
        return (
            visitor in self.visitors
            or (visitor.startswith("'") and visitor[1:] in self.visitors)
            or row.get("email", "").removeprefix("'").strip().lower() in self.emails
            or _digits(row.get("phone", "")) in self.phones
            or not self.hashes.isdisjoint(row.values())
        )


def _digits(phone: str) -> str:
    return "".join(filter(str.isdigit, phone)).lstrip("0")


def _rows(one: ListFile) -> Iterable[dict[str, str]]:
    """The rows of a file, without what is no text."""
    if one.entry.format == "parquet":
        with pyarrow.parquet.ParquetFile(one.path) as file:
            names = [name for name in ("visitor_id", "email", "phone") if name in file.schema_arrow.names]
            for batch in file.iter_batches(columns=names):
                yield from map(_texts, batch.to_pylist())
        return
    with one.path.open(newline="", encoding="utf-8") as lines:
        if one.entry.format == "ndjson":
            yield from map(_texts, map(json.loads, lines))
        elif one.entry.format in copies.FORMATS or one.entry.format in FORMATS:
            yield from map(_texts, csv.DictReader(lines))
        else:
            raise ValueError(f"no reader for files of format {one.entry.format}")


def _texts(row: Mapping[str, Any]) -> dict[str, str]:
    return {name: value for name, value in row.items() if isinstance(value, str)}
