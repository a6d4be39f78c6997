"""Bulk load of event files: newline-JSON, CSV and Parquet into the landing tables, every row accounted for.

One transaction per call: all files land or nothing does. A process of its own reads and types the next block of rows
while the server takes the last one. Rows whose id has not landed go by COPY straight into the landing table; the few
others (repeats, rows without an id or not plainly usable) through a temporary table that has the landing table's
generated `rejection_reason`, so one rule judges loaded rows and rows that collectors insert.

What is repaired, and counted in `LoadReport.repaired`:
  event_id_from_content     no event_id: a hash of the row, the one that the landing table gives
  received_at_from_load     no received_at, or an impossible one: the time of the load
  text_from_number          an identifier or text given as a number or a boolean: its JSON text
  utc_assumed               a time without an offset: UTC
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from hashlib import md5
from pathlib import Path
from typing import Any

import psycopg
from psycopg import sql

from orchestration import database, dbt
from orchestration.read import COLUMNS, Block, Rules, find_sources, read_blocks, storable
from orchestration.rights.rejected import identifiers_of
from orchestration.settings import project_variables


@dataclass(frozen=True)
class LoadReport:
    """What one load did. received = accepted + rejected + duplicate; rows of all files together.

    `duplicate` counts deliveries of events that have landed: identical ones are dropped, others land as well.
    """

    load_id: int
    received: int
    accepted: int
    rejected: int
    duplicate: int
    rejected_reasons: dict[str, int]
    repaired: dict[str, int]
    seconds: float
    files: list[str]


def load_files(paths: Sequence[Path], *, progress: Callable[[int, int], None] | None = None) -> LoadReport:
    """Loads files, and the loadable files of folders, in one transaction.

    `progress` is called after every block with the bytes of the files read so far (as stored: compressed) and the
    rows so far. Raises UserError, with nothing written, for input that cannot be read; bad rows never stop a load.
    """
    started = time.monotonic()
    sources = find_sources(paths)
    names = [source.name for source in sources]
    variables = project_variables()
    schema = variables["landing_schema"]
    ensure_landing_tables()
    received, accepted = 0, 0
    repaired: Counter[str] = Counter()
    with database.connect(application_name="audience load") as connection:
        landing = _Landing(connection, schema, variables["properties_max_bytes"])
        rules = Rules(landing.open(), str(variables["earliest_event_date"]), variables["properties_max_bytes"])
        for block in read_blocks(sources, rules):
            received += block.row_count
            accepted += landing.write(block, names[block.source_number])
            repaired += block.repaired
            if progress:
                progress(block.bytes_done, received)
        rejected = landing.rejected.total()
        duplicate = received - accepted - rejected
        load_id = landing.close(names, received, accepted, rejected, duplicate)
    if accepted:  # statistics for the build that follows: autovacuum may come a minute late
        with database.connect(autocommit=True) as connection:
            connection.execute(sql.SQL("analyze {}").format(sql.Identifier(schema, "events")))
    return LoadReport(
        load_id, received, accepted, rejected, duplicate, dict(landing.rejected.most_common()),
        dict(repaired.most_common()), time.monotonic() - started, names,
    )  # fmt: skip


def ensure_landing_tables() -> None:
    """Makes the landing tables where they are missing, or of a release before the newest table."""
    dbt.ensure_table(f"{project_variables()['landing_schema']}.retained_events")


_NAMES = (
    "events",
    "rejected_rows",
    "user_agents",
    "loads",
    "runner_state",
    "tombstones",
    "event_id_of",
    "erased_texts",
    "without_personal_data",
    "retained_events",
    "delivery_content",
)


class _Statements:
    """Statements on the landing tables of one schema, in which {name} is a table or a function of it."""

    def __init__(self, connection: psycopg.Connection, schema: str):
        self.connection = connection
        self.names: dict[str, sql.Composable] = {name: sql.Identifier(schema, name) for name in _NAMES}
        self.names["columns"] = sql.SQL(", ").join(map(sql.Identifier, COLUMNS))
        for table in ("staged", "landed"):
            content = [sql.Identifier(table, name) for name in COLUMNS if name not in _NO_CONTENT]
            self.names[f"{table}_content"] = sql.SQL(", ").join(content)

    def execute(self, query: str, parameters: Sequence[Any] = ()) -> psycopg.Cursor:
        # Never prepared: a plan made while the landing table was small would be kept as it grows.
        return self.connection.execute(sql.SQL(query).format(**self.names), parameters, prepare=False)

    def copy(self, target: str, lines: bytes) -> int:
        """COPY of lines of text without nulls but for empty fields; returns the number of rows."""
        if not lines:
            return 0
        cursor = self.connection.cursor()
        with cursor.copy(sql.SQL(f"copy {target} from stdin (null '')").format(**self.names)) as copy:
            copy.write(lines)
        return cursor.rowcount


# The landing table

# (line number, reason, row as it came, org)
Rejected = tuple[int | None, str, str, str | None]


class _Landing(_Statements):
    """The landing tables inside one transaction: `open`, `write` per block, `close`."""

    def __init__(self, connection: psycopg.Connection, schema: str, properties_max_bytes: int):
        super().__init__(connection, schema)
        self.properties_max_bytes = properties_max_bytes
        self.rejected: Counter[str] = Counter()
        self.known_user_agents: set[str] = set()
        self.last_landing_id = 0
        self.has_tombstones = False
        self.erased = 0
        self.stripped_before: datetime | None = None

    def open(self) -> str:
        """Waits for another load to end, so that two loads of one file cannot both land it. Returns now."""
        self.execute("set local temp_buffers = '64MB'")
        self.execute("select pg_advisory_xact_lock(hashtextextended('audience load', 42))")
        self.execute(
            "create temporary table staged_events (line_number bigint, like {events} including generated)"
            " on commit drop"
        )
        self.execute("alter table staged_events drop column landing_id, drop column landed_xid")
        self.execute("create temporary table landed_events on commit drop as select {columns} from {events} limit 0")
        # Sorting a block by text costs more than the rest of its comparison, and is what an unanalyzed table gets.
        self.execute("set local enable_mergejoin = off")
        last = self.execute("select coalesce(max(landing_id), 0) from {events} where rejection_reason is not null")
        self.last_landing_id = last.fetchone()[0]
        self.has_tombstones = self.execute("select exists (select from {tombstones})").fetchone()[0]
        stripped = self.execute(_STRIPPED_BEFORE).fetchone()
        self.stripped_before = stripped[0] if stripped else None
        return self.execute("""select to_char(now(), 'YYYY-MM-DD"T"HH24:MI:SS.US')""").fetchone()[0]

    def write(self, block: Block, file_name: str) -> int:
        """Lands a block; returns the rows accepted and counts the rejected ones in `rejected`."""
        known = [position for (position,) in self.execute(_KNOWN_POSITIONS, [block.fresh_ids])]
        fresh, checked = _without(block.fresh, known, block.checked) if known else (block.fresh, block.checked)
        rejected: list[Rejected] = [(*row, None) for row in block.rejected]
        accepted = self.copy("{events} ({columns})", fresh)
        if accepted:
            taken_back = self.execute(_TAKE_BACK, [self.last_landing_id]).fetchall()
            accepted -= len(taken_back)
            rejected += [(None, reason, row, org_id) for reason, row, org_id in taken_back]
            accepted -= self._count_erased()
        if checked:
            self.execute("truncate staged_events, landed_events")
            self.copy("staged_events (line_number, {columns})", checked)
            judged = self.execute(_TAKE_REJECTED, [self.properties_max_bytes, self.properties_max_bytes]).fetchall()
            rejected += [(number, reason, block.raws[number], org_id) for number, reason, org_id in judged]
            self.execute(_MAKE_EVENT_IDS)
            self.execute(_DROP_REPEATED)
            if self.execute(_FIND_LANDED).rowcount:
                if self.stripped_before:
                    self.execute(_STRIP_COPIES, [self.stripped_before])
                self.execute(_DROP_LANDED)
            if self.execute(_FIND_RETAINED).rowcount:
                self.execute(_DROP_RETAINED)
            new = self.execute(_COUNT_NEW).fetchone()[0]
            self.execute("insert into {events} ({columns}) select {columns} from staged_events order by line_number")
            accepted += self.execute(_COUNT_STAYED).fetchone()[0] if self._count_erased() else new
        if rejected:
            self._keep_rejected(file_name, self._without_erased(rejected))
        self._keep_user_agents(block.user_agents)
        return accepted

    def _count_erased(self) -> int:
        """How many rows of the last insert the landing table did not keep, because whose or what they are was erased."""
        if not self.has_tombstones:
            return 0
        told = self.execute("select coalesce(nullif(current_setting('audience.erased_rows', true), ''), '0')::bigint")
        before, self.erased = self.erased, told.fetchone()[0]
        return self._count_rejected(self.erased - before)

    def _count_rejected(self, erased: int) -> int:
        if erased:
            self.rejected["erased"] += erased
        return erased

    def _without_erased(self, rejected: list[Rejected]) -> list[Rejected]:
        """The rejected rows without those of people who were erased: these are counted, and not kept."""
        if not self.has_tombstones:
            return rejected
        said = [
            (place, row[3], value) for place, row in enumerate(rejected) for value in identifiers_of(row[1], row[2])
        ]
        found = self.execute(
            "select * from {erased_texts}(%s::text[], %s::text[])",
            [[org for _, org, _ in said], [text for *_, text in said]],
        )
        erased = {said[number - 1][0] for (number,) in found}
        self._count_rejected(len(erased))
        return [row for place, row in enumerate(rejected) if place not in erased]

    def _keep_rejected(self, file_name: str, rejected: list[Rejected]) -> None:
        if not rejected:
            return
        numbers, reasons, texts, org_ids = map(list, zip(*rejected, strict=True))
        ids = [md5((reason + text).encode(), usedforsecurity=False).hexdigest()
               for reason, text in zip(reasons, texts, strict=True)]  # fmt: skip
        self.execute(
            "insert into {rejected_rows} (rejection_id, org_id, rejection_reason, raw_row, file_name, line_number)"
            " select id, org, reason, raw, %s, line"
            " from unnest(%s::text[], %s::text[], %s::text[], %s::text[], %s::bigint[])"
            " as rejected (id, org, reason, raw, line) on conflict do nothing",
            [storable(file_name), ids, org_ids, reasons, texts, numbers],
        )
        self.rejected.update(reasons)

    def _keep_user_agents(self, texts: set[str]) -> None:
        new = texts - self.known_user_agents
        if len(self.known_user_agents) > 100_000:  # a bound on memory: asking again is harmless
            self.known_user_agents.clear()
        self.known_user_agents |= new
        if new:
            found = self.execute(_UNKNOWN_USER_AGENTS.format("select unnest(%s::text[])"), [list(new)])
            _keep_parsed(self, [text for (text,) in found])

    def close(self, names: list[str], received: int, accepted: int, rejected: int, duplicate: int) -> int:
        return self.execute(
            "insert into {loads} (file_names, received_count, accepted_count, rejected_count, duplicate_count,"
            " finished_at) values (%s, %s, %s, %s, %s, clock_timestamp()) returning load_id",
            [list(map(storable, names)), received, accepted, rejected, duplicate],
        ).fetchone()[0]


def _without(fresh: bytes, known: list[int], checked: bytes) -> tuple[bytes, bytes]:
    """Moves the rows at the known positions (from 1) to the rows to check, before them."""
    lines: list[bytes | None] = list(fresh.split(b"\n"))
    moved = []
    for position in known:
        moved.append(b"%d\t%s" % (position - len(lines) - 1, lines[position - 1]))
        lines[position - 1] = None
    return b"\n".join(filter(None, lines)), b"\n".join([*moved, checked] if checked else moved)


_NO_CONTENT = ("event_id", "org_id", "received_at")

# Which of the ids have landed, with any organisation. `offset 0` makes it one look-up in the index per id, whatever
# the statistics say; it is a statement of its own because a scan of a hash index keeps the index from growing.
_KNOWN_POSITIONS = """
select position from unnest(%s::text[]) with ordinality as fresh (event_id, position)
where exists (select from {events} as events where events.event_id = fresh.event_id offset 0)
    or exists (select from {retained_events} as events where events.event_id = fresh.event_id offset 0)
"""

# Fresh rows that the landing table does not take after all. None, unless its rule is stricter than the reader.
_TAKE_BACK = """
delete from {events} as events
where rejection_reason is not null and landing_id > %s and landed_xid = pg_current_xact_id()
returning rejection_reason,
    cast(to_jsonb(events) - array['landing_id', 'landed_xid', 'rejection_reason'] as text), org_id
"""

_TAKE_REJECTED = """
delete from staged_events where rejection_reason is not null or pg_column_size(properties) > %s
returning line_number,
    case when pg_column_size(properties) > %s then 'properties_too_large' else rejection_reason end, org_id
"""

# As the landing table's own trigger makes it, so that a row has one id whichever way it comes.
_MAKE_EVENT_IDS = """
update staged_events set event_id = {event_id_of}(org_id, event_type, occurred_at, anonymous_id, user_id, session_id,
    url, referrer, user_agent, properties)
where event_id is null
"""

# Deliveries in one block that are identical to an earlier one of it. Received now: the file does not say when.
_DROP_REPEATED = """
with repeated as (
    select org_id, event_id from staged_events group by org_id, event_id having count(*) > 1
),
ordered as (
    select
        line_number,
        received_at,
        row_number() over (partition by org_id, event_id, {staged_content} order by line_number) as content_number,
        row_number() over (
            partition by org_id, event_id, {staged_content}, received_at order by line_number
        ) as delivery_number
    from staged_events as staged join repeated using (org_id, event_id)
)
delete from staged_events using ordered
where ordered.line_number = staged_events.line_number
    and case when ordered.received_at = now() then content_number else delivery_number end > 1
"""

# What has landed under the ids of the block.
_FIND_LANDED = """
insert into landed_events
select landed.*
from (select distinct event_id from staged_events) as staged
cross join lateral (
    select {columns} from {events} as events where events.event_id = staged.event_id offset 0
) as landed
"""

# Rows received before have lost their personal data (macros/mechanics/retention.sql).
_STRIPPED_BEFORE = """
select timestamptz 'epoch' + position * interval '1 microsecond' from {runner_state} where name = 'personal data received'
"""

# Copies of these are told by what is left.
_STRIP_COPIES = """
update staged_events as staged set properties = landed.properties
from landed_events as landed
where staged.org_id = landed.org_id
    and staged.event_id = landed.event_id
    and landed.received_at < %s
    and (staged.received_at = landed.received_at or staged.received_at = now())
    and {without_personal_data}(staged.properties) = landed.properties
"""

_DROP_LANDED = """
delete from staged_events as staged using landed_events as landed
where staged.org_id = landed.org_id
    and staged.event_id = landed.event_id
    and staged.occurred_at = landed.occurred_at
    and (staged.received_at = landed.received_at or staged.received_at = now())
    and ({staged_content}) is not distinct from ({landed_content})
"""

# The same for those that are kept in their short form: told by the sum of what they said.
_FIND_RETAINED = """
insert into landed_events (org_id, event_id)
select retained.org_id, retained.event_id
from (select distinct event_id from staged_events) as staged
cross join lateral (
    select org_id, event_id from {retained_events} as events where events.event_id = staged.event_id offset 0
) as retained
"""

_DROP_RETAINED = """
delete from staged_events as staged using {retained_events} as retained
where staged.org_id = retained.org_id
    and staged.event_id = retained.event_id
    and (staged.received_at = retained.received_at or staged.received_at = now())
    and retained.content_md5 = {delivery_content}(staged.event_type, staged.occurred_at, staged.anonymous_id, staged.user_id,
        staged.session_id, staged.url, staged.referrer, staged.user_agent, staged.properties)
"""

_COUNT_NEW = """
select count(*)
from (
    select org_id, event_id from staged_events except select org_id, event_id from landed_events
) as accepted
"""


# Of those, when some were not kept: what the transaction has landed of them.
_COUNT_STAYED = """
select count(*)
from (
    select org_id, event_id from staged_events except select org_id, event_id from landed_events
) as new
where exists (
    select from {events} as events
    where events.event_id = new.event_id and events.org_id = new.org_id and landed_xid = pg_current_xact_id() offset 0
)
"""


# User agents


def parse_new_user_agents(connection: psycopg.Connection) -> int:
    """Parses the user agents of events landed since the last call, and all again when the parser changed.

    Returns the number of texts parsed; the caller commits.
    """
    from orchestration.user_agents import parser_version

    landing = _Statements(connection, project_variables()["landing_schema"])
    # Taken before the events are read: what an older transaction lands later is read by the next call.
    horizon = landing.execute("select pg_snapshot_xmin(pg_current_snapshot())::text::bigint").fetchone()[0]
    stale = landing.execute("select user_agent from {user_agents} where parser_version <> %s", [parser_version()])
    new = landing.execute(_UNKNOWN_USER_AGENTS.format(_LANDED_USER_AGENTS))
    texts = [text for found in (stale, new) for (text,) in found]
    _keep_parsed(landing, texts)
    landing.execute(
        "insert into {runner_state} (name, position) values ('user_agents', %s)"
        " on conflict (name) do update set position = excluded.position",
        [horizon],
    )
    return len(texts)


def _keep_parsed(landing: _Statements, texts: Iterable[str]) -> None:
    from orchestration.user_agents import parse_user_agent, parser_version

    if parsed := [(text, *parse_user_agent(text), parser_version()) for text in texts]:
        landing.execute(_KEEP_PARSED, list(map(list, zip(*parsed, strict=True))))


_LANDED_USER_AGENTS = """
select distinct user_agent from {events}
where user_agent is not null and landed_xid >= cast(cast(coalesce(
    (select position from {runner_state} where name = 'user_agents' and exists (
        select from {runner_state} where name = 'cluster' and position = (select system_identifier from pg_control_system())
    )), 0) as text) as xid8)
"""

_UNKNOWN_USER_AGENTS = """
select user_agent from ({}) as seen (user_agent)
where not exists (select from {{user_agents}} as known where known.user_agent_id = md5(seen.user_agent))
"""

# Builds follow landed_xid, and take every event again for a row that was parsed anew with another result.
_KEEP_PARSED = """
insert into {user_agents} as known
    (user_agent_id, user_agent, device_type, os, browser, is_bot, bot_reason, parser_version)
select md5(user_agent), *
from unnest(%s::text[], %s::text[], %s::text[], %s::text[], %s::boolean[], %s::text[], %s::text[])
    as parsed (user_agent, device_type, os, browser, is_bot, bot_reason, parser_version)
on conflict (user_agent_id) do update set
    (device_type, os, browser, is_bot, bot_reason, parser_version) = (
        excluded.device_type, excluded.os, excluded.browser, excluded.is_bot, excluded.bot_reason,
        excluded.parser_version),
    (is_reparsed, landed_xid) = (
        select case when is_changed then true else known.is_reparsed end,
            case when is_changed then pg_current_xact_id() else known.landed_xid end
        from (select (known.device_type, known.os, known.browser, known.is_bot, known.bot_reason) is distinct from
            (excluded.device_type, excluded.os, excluded.browser, excluded.is_bot, excluded.bot_reason)
            as is_changed) as comparison)
"""
