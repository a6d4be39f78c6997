"""Formats that the server makes by COPY. A format turns an accepted request into the bytes of its file."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import psycopg
from psycopg import sql

from orchestration.exports import door

Format = Callable[[psycopg.Connection, door.Entry], Iterator[bytes | memoryview]]

# What a spreadsheet would take for a formula gets an apostrophe: = + - @, also full-width, behind spaces and quotes, and what
# begins with a tab or a line break. A number with its sign stays. ascii() is the code of the first character: most texts are
# told by it, which costs a tenth of a regular expression.
SAFE = """
case
    when ascii({column}) not in (9, 10, 13, 32, 34, 39, 43, 45, 61, 64, 96, 160, 65279, 65291, 65293, 65309, 65312) then {column}
    when {column} ~ U&'^([\\0009\\000A\\000D]|[\\0020\\00A0\\FEFF\\0022\\0027\\0060]*[=+@\\FF1D\\FF0B\\FF0D\\FF20-])' and {column} !~ '^[+-]?[0-9]+([.][0-9]+)?$'
        then '''' || {column}
    else {column}
end as {column}"""


def csv(connection: psycopg.Connection, entry: door.Entry) -> Iterator[bytes | memoryview]:
    """CSV with a header, in UTF-8; no value runs as a formula in a spreadsheet."""
    types = door.types(connection, entry)
    cells = [
        sql.SQL(SAFE if kind == "text" else "{column}").format(column=sql.Identifier(name))
        for name, kind in types.items()
    ]
    query = sql.SQL("copy (select {} from {}) to stdout (format csv, header true, encoding 'UTF8')")
    return _copied(connection, query.format(sql.SQL(", ").join(cells), door.listed(entry, types)))


def ndjson(connection: psycopg.Connection, entry: door.Entry) -> Iterator[bytes | memoryview]:
    """One JSON object a line, in UTF-8."""
    # JSON escapes control characters, so these never occur and no line is quoted
    query = sql.SQL(
        "copy (select row_to_json(listed) from {}) to stdout (format csv, quote U&'\\0001', delimiter U&'\\0002', encoding 'UTF8')"
    )
    return _copied(connection, query.format(door.listed(entry, door.types(connection, entry))))


def _copied(connection: psycopg.Connection, query: sql.Composed) -> Iterator[bytes | memoryview]:
    with connection.cursor().copy(query) as rows:
        yield from rows


FORMATS: dict[str, Format] = {"csv": csv, "ndjson": ndjson}
MEDIA_TYPES = {"csv": "text/csv; charset=utf-8", "ndjson": "application/x-ndjson"}
