"""Everything held on a person, as one JSON file that is there whole or not at all."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from orchestration.disk import PrivateFile, sync_folder
from orchestration.errors import UserError
from orchestration.rights import subjects
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

    All of it is of one moment. Raises UserError when nothing is held, the file is there or cannot be written, or for who is no
    admin of the org.
    """
    if given.event_ids:
        raise UserError("An event is not a person: give --email, --phone, --user-id or --device.")
    given.check()
    if file.exists():
        raise UserError(f"{file} is there already: give --out another name.")
    part = file.with_name(f"{file.name}.part")
    with subjects.connect() as connection:
        request_id = subjects.ask(connection, org_id, "export")
        try:
            # with its end: the request of a file that is not written stays open
            with connection.transaction():
                held = subjects.read(connection, request_id, org_id, given)
                content = _content(request_id, org_id, held)
                with PrivateFile(part) as out:
                    out.write(json.dumps(content, indent=1, ensure_ascii=False).encode() + b"\n")
                    out.sync()
            part.rename(file)
            sync_folder(file.parent)
        except OSError as error:
            raise UserError(f"{file} cannot be written ({error.strerror}): give --out another place.") from error
        finally:
            part.unlink(missing_ok=True)
    return SubjectExport(request_id, file, org_id, held.rows_by_table, held.deliveries, held.subject["shared"])


def _content(request_id: str, org_id: str, held: subjects.Held) -> dict[str, Any]:
    return {
        "request_id": request_id,
        "org_id": org_id,
        "made_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "identifiers": {kind: held.subject[kind] for kind in IDENTIFIERS},
        "tables": held.tables,
        "deliveries": [asdict(one) for one in held.deliveries],
    }
