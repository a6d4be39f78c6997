"""Everything held on a person, as one JSON file that is there whole or not at all."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psycopg
from psycopg import sql
from psycopg.types.json import Jsonb

from orchestration.disk import PrivateFile, sync_folder
from orchestration.errors import UserError
from orchestration.rights import catalogue, subjects
from orchestration.rights.subjects import Given

IDENTIFIERS = ("visitor_ids", "device_ids", "emails", "phones")


@dataclass(frozen=True)
class SubjectExport:
    """What a file has. rows_by_table: of tables with a row on the person. shared: identifiers that others use too."""

    request_id: str
    file: Path
    org_id: str
    rows_by_table: dict[str, int]
    deliveries: list[subjects.Delivery]
    shared: dict[str, list[str]]


def export_subject(org_id: str, given: Given, file: Path) -> SubjectExport:
    """Writes what an org holds on a person into a new file of mode 0600, and keeps who asked for it, in subject_requests.

    All of it is of one moment. Raises UserError when nothing is held, or the file is there or cannot be written.
    """
    if given.event_ids:
        raise UserError("An event is not a person: give --email, --phone, --user-id or --device.")
    if file.exists():
        raise UserError(f"{file} is there already: give --out another name.")
    part = file.with_name(f"{file.name}.part")
    with subjects.connect() as connection:
        try:
            with connection.transaction():
                connection.execute("set transaction isolation level repeatable read")
                content, report = _read(connection, org_id, given, file)
                with PrivateFile(part) as out:
                    out.write(json.dumps(content, indent=1, ensure_ascii=False).encode() + b"\n")
                    out.sync()
            part.rename(file)
            sync_folder(file.parent)
        except OSError as error:
            raise UserError(f"{file} cannot be written ({error.strerror}): give --out another place.") from error
        finally:
            part.unlink(missing_ok=True)
    return report


def _read(
    connection: psycopg.Connection, org_id: str, given: Given, file: Path
) -> tuple[dict[str, Any], SubjectExport]:
    subject = subjects.find(connection, org_id, given)
    tables = {table.full_name: list(catalogue.rows_on(connection, table, subject))
              for table in catalogue.personal_tables(connection)}  # fmt: skip
    tables = {name: rows for name, rows in tables.items() if rows}
    if not tables:
        raise subjects.nothing_held(org_id, given)
    counts = {name: len(rows) for name, rows in tables.items()}
    sent = subjects.deliveries(connection, subject)
    request_id = connection.execute(
        sql.SQL(
            "insert into {} (kind, org_id, role_name, rows_by_table, deliveries, finished_at)"
            " values ('export', %s, current_user, %s, %s, clock_timestamp()) returning cast(request_id as text)"
        ).format(subjects.state("subject_requests")),
        [org_id, Jsonb(counts), Jsonb([asdict(one) for one in sent])],
    ).fetchone()[0]  # type: ignore[index]
    content = {
        "request_id": request_id,
        "org_id": org_id,
        "made_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "identifiers": {kind: subject[kind] for kind in IDENTIFIERS},
        "tables": tables,
        "deliveries": [asdict(one) for one in sent],
    }
    return content, SubjectExport(request_id, file, org_id, counts, sent, subject["shared"])
