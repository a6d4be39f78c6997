"""Whose a row is that could not become an event."""

from __future__ import annotations

import json
import re
from typing import Any

_BETWEEN_WORDS = re.compile(r"[^\w.@+-]+")


def identifiers_of(reason: str, text: str) -> set[str]:
    """What in a rejected row may say who it is of: its identifiers, or every word of what cannot be read as a row.

    The same columns as rejections_of_subject of the database looks at.
    """
    row = _json(text)
    if not isinstance(row, dict) or reason == "wrong_column_count":
        return set(_BETWEEN_WORDS.split(text)) - {""}
    properties = _json(row.get("properties"))
    contacts = [part.get(name) for part in (row, properties) if isinstance(part, dict) for name in ("email", "phone")]
    found = [row.get("user_id"), row.get("anonymous_id"), row.get("event_id"), *contacts]
    return {str(value) for value in found if isinstance(value, str | int) and "\0" not in str(value)} - {""}


def _json(value: Any) -> Any:
    try:
        return json.loads(value) if isinstance(value, str) else value
    except ValueError:
        return None
