"""The file of an export: where it lies, in which format, and how its bytes get onto the disk."""

from __future__ import annotations

import hashlib
import os
import re
from pathlib import Path
from typing import Any, BinaryIO

import psycopg

from orchestration.disk import PrivateFile, sync_folder
from orchestration.errors import UserError
from orchestration.exports import copies, door, formats, log
from orchestration.settings import project_variables

# Where lists may go that somebody asked for and the owner makes: folders and URLs, separated by commas.
ALLOWED_DESTINATIONS = "AUDIENCE_EXPORT_DESTINATIONS"
FORMAT_NAMES = (*copies.FORMATS, *formats.FORMATS)
KINDS = {"bigint": "integer", "integer": "integer", "boolean": "boolean", "timestamp with time zone": "timestamptz"}


def is_remote(destination: str) -> bool:
    """Whether the file is delivered to a URL after it is written; else it is written into the folder that is named."""
    return "://" in destination and not destination.startswith("file://")


def usable_folder(to: str | None) -> Path:
    """The folder of --to, made if it is not there; by default that of exports. Raises UserError when it cannot be used."""
    try:
        if to is None:
            return log.exports_folder()
        folder = Path(to.removeprefix("file://")).expanduser().resolve()
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"{error.filename} cannot be used for exports ({error.strerror}): give another --to."
        ) from error
    return folder


def check_queued(destination: str) -> None:
    """Raises UserError unless the owner's process may bring a list of others to this destination: into its own exports, to a
    webhook on the public internet, or below what AUDIENCE_EXPORT_DESTINATIONS names."""
    if not destination or destination.startswith("https://"):
        return
    allowed = [name.strip() for name in os.environ.get(ALLOWED_DESTINATIONS, "").split(",") if name.strip()]
    if not any(_is_below(destination, name) for name in allowed):
        raise UserError(
            f"{destination} is not among the destinations of exports that wait: leave --to out, or name it in {ALLOWED_DESTINATIONS}."
        )


def _is_below(destination: str, allowed: str) -> bool:
    if is_remote(destination) or is_remote(allowed):
        below = destination == allowed or destination.startswith(allowed.rstrip("/") + "/")
        return below and ".." not in destination.split("/")
    return Path(destination).resolve().is_relative_to(Path(allowed).resolve())


def file_of(entry: door.Entry) -> Path:
    """The file by org, segment and export id; one that is delivered elsewhere is kept among the exports until it is."""
    names = [re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_")[:60] for name in (entry.org_id, entry.segment_name)]
    is_elsewhere = is_remote(entry.destination) or not entry.destination
    folder = log.exports_folder() if is_elsewhere else Path(entry.destination)
    return folder / "-".join([*names, f"{entry.export_id}.{_suffix(entry.format)}"])


def part_of(entry: door.Entry) -> Path:
    file = file_of(entry)
    return file.with_name(f"{file.name}.part")


def _suffix(format_name: str) -> str:
    suffix = formats.FORMATS[format_name].suffix if format_name in formats.FORMATS else f".{format_name}"
    return format_name if suffix == f".{format_name}" else f"{format_name}{suffix}"


def media_type_of(format_name: str) -> str:
    return copies.MEDIA_TYPES.get(format_name) or formats.FORMATS[format_name].media_type


def stream(connection: psycopg.Connection, entry: door.Entry) -> tuple[str, dict[str, Any] | None]:
    """Streams the rows into the .part file, which is on the disk on return; its sha256, and what a list's writer counted.

    Raises UserError for a list in which an ad platform could find too few people.
    """
    with PrivateFile(part_of(entry)) as file:
        with door.reading(connection):
            counts = _write(connection, entry, file)
        return file.sync(), counts


def _write(connection: psycopg.Connection, entry: door.Entry, file: BinaryIO) -> dict[str, Any] | None:
    if entry.format in copies.FORMATS:
        for piece in copies.FORMATS[entry.format](connection, entry):
            file.write(piece)
        return None
    variables = project_variables()
    kinds = {name: _kind(data_type) for name, data_type in door.types(connection, entry).items()}
    written = formats.FORMATS[entry.format].write(
        door.rows(connection, entry), kinds, file, default_region=variables["export_phone_region"] or None
    )
    minimum = formats.minimum_people().get(entry.format, 0)
    if written.rows < minimum:
        raise UserError(
            f"{entry.format} could find {written.rows:,} people of the list, and wants {minimum:,} at least: widen the segment, "
            f"or lower the variable export_minimum_people_count_{entry.format}."
        )
    return {
        "rows": written.rows, "left_out": written.left_out, "blank": dict(written.blank), "invalid": dict(written.invalid),
    }  # fmt: skip


def _kind(data_type: str) -> str:
    return "number" if data_type.startswith("numeric") else KINDS.get(data_type, "text")


def publish(entry: door.Entry) -> Path:
    """Gives a complete file its name, for good."""
    part, file = part_of(entry), file_of(entry)
    if part.exists():
        part.rename(file)
    sync_folder(file.parent)
    return file


def sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
