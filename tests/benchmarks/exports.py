"""How fast a segment is exported, beside a plain COPY of the same columns, and what memory that takes.

The customers of the largest org are multiplied into tables of the same database before, and taken away after.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median

import psycopg

from orchestration import segments
from orchestration.exports import door, runner

ORG = "org of exports"
EVERYBODY = {"combinator": "and", "rules": []}
PLAIN = """
copy (
    select {columns} from audience_state.segment_memberships as members
    join audience.audience_customers as people using (org_id, visitor_id)
    where org_id = '{org}' and segment_name = '{people}' and left_at is null
) to stdout (format csv, header true)
"""


def measure(folder: Path, sizes: tuple[int, ...] = (10_000, 1_000_000), tries: int = 5) -> dict[str, float]:
    """Of exports by their rows: seconds, the share of the speed of a plain COPY, and the highest memory in MB (Linux).

    Seconds and shares are medians of tries that take turns: the speed of a machine changes from one to the next.
    """
    figures: dict[str, float] = {}
    with segments.connect() as connection:
        for size in sizes:
            with _people(connection, size):
                Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
                pairs = [
                    (_exported(connection, str(size), folder), _plain(connection, str(size), folder / "plain.csv"))
                    for _ in range(tries)
                ]
                status = Path("/proc/self/status").read_text()
                peak = int(status.split("VmHWM:")[1].split()[0]) / 1024
            share = median(plain / exported for exported, plain in pairs)
            figures |= {f"{size} s": median(pair[0] for pair in pairs), f"{size} share": share, f"{size} MB": peak}
    return figures


@contextmanager
def _people(connection: psycopg.Connection, size: int) -> Iterator[None]:
    """An org of so many people, who are all in a segment."""
    connection.execute(
        "with sampled as (select people, row_number() over () - 1 as place from audience.audience_customers as people"
        " where not is_opted_out limit 1000)"
        " insert into audience.audience_customers"
        " select (jsonb_populate_record(people, jsonb_build_object('org_id', cast(%(org)s as text), 'visitor_id', 'v' || number))).*"
        " from generate_series(1, cast(%(size)s as integer)) as number"
        " join sampled on place = number %% (select count(*) from sampled)",
        {"org": ORG, "size": size},
    )
    try:
        segments.create_segment(connection, str(size), ORG, EVERYBODY)
        segments.check(segments.materialize(connection, str(size), ORG))
        connection.execute("vacuum (analyze)")
        yield
    finally:
        segments.delete_segment(connection, str(size), ORG)
        connection.execute("delete from audience.audience_customers where org_id = %s", [ORG])


def _exported(connection: psycopg.Connection, name: str, folder: Path) -> float:
    """Seconds from the request to the delivery; the members were observed before."""
    started = time.perf_counter()
    asked = {"include_pii": False, "is_delta": False, "format_name": "csv", "destination": str(folder)}
    runner.write_file(connection, door.request(connection, ORG, name, "a benchmark", **asked))
    return time.perf_counter() - started


def _plain(connection: psycopg.Connection, name: str, file: Path) -> float:
    fields = [column for column in door.columns("csv", include_pii=False, is_delta=False) if column != "entered_at"]
    query = PLAIN.format(columns=", ".join([*fields, "members.entered_at"]), org=ORG, people=name)
    started = time.perf_counter()
    with file.open("wb") as out, connection.cursor().copy(query) as rows:
        for row in rows:
            out.write(row)
    return time.perf_counter() - started
