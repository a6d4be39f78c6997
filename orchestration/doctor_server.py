"""The checks of `audience doctor` that ask the server. Each takes a connection in autocommit; None: nothing to say yet."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import psycopg
from psycopg import sql
from psycopg.rows import namedtuple_row

from orchestration.doctor import Finding, failed, ok, warning
from orchestration.settings import external_server, project_variables, target_schema

GROUP_ROLES = ("audience_owner", "audience_reader", "audience_analyst", "audience_admin")

PRIVILEGES = """
select
    has_database_privilege(current_database(), 'create') as may_create,
    array(select cast(nspname as text) from pg_namespace where nspname = any(%(schemas)s) and not pg_has_role(nspowner, 'usage')) as foreign_schemas,
    array(select name from unnest(cast(%(roles)s as text[])) as roles (name) where to_regrole(name) is null) as missing_roles,
    coalesce((select pg_has_role(oid, 'usage') from pg_roles where rolname = 'audience_owner'), false) as is_owner,
    (select rolsuper or rolcreaterole from pg_roles where rolname = session_user) as may_make_roles,
    pg_has_role('pg_read_all_stats', 'usage') as sees_sessions
"""
# A statement that waits for a lock, with those that make it wait.
WAITING = """
select pid, usename, left(query, 60) as query, now() - state_change as since, pg_blocking_pids(pid) as blockers
from pg_stat_activity
where cardinality(pg_blocking_pids(pid)) > 0 and now() - state_change > %s
order by state_change
"""
# Transactions that write hold back rows that land after them, in any database of the server; others hold back vacuum alone.
OLD_TRANSACTIONS = """
select pid, coalesce(datname, '') as database, usename, application_name, now() - xact_start as age, backend_xid is not null as writes,
    state = 'idle in transaction' as is_idle
from pg_stat_activity
where now() - xact_start > %s and pid <> pg_backend_pid() and backend_type = 'client backend'
union all
select null, cast(database as text), owner, format('prepared transaction %%L', gid), now() - prepared, true, true
from pg_prepared_xacts where now() - prepared > %s
order by writes desc, age desc
"""
BUILD_LOCK = """
select activity.pid, activity.usename, activity.application_name, now() - activity.backend_start as age
from pg_locks as locks
join pg_stat_activity as activity using (pid)
where locks.locktype = 'advisory' and locks.granted and locks.objsubid = 1
    and locks.database = (select oid from pg_database where datname = current_database())
    and (cast(locks.classid as bigint) << 32) + cast(locks.objid as bigint) = hashtextextended(%s, 42)
"""
LANDED = """
with consumed as (
    select cast(positions ->> %(source)s as xid8) as position from {state} where model = 'int_events_enriched'
)
select
    count(*) filter (where landed_xid < pg_snapshot_xmin(pg_current_snapshot())) as pending,
    count(*) filter (where landed_xid >= pg_snapshot_xmin(pg_current_snapshot())) as held
from {events}
where landed_xid >= coalesce((select position from consumed), '0')
"""
DEAD_ROWS = """
select format('%%I.%%I', schemaname, stats.relname) as name, n_dead_tup as dead,
    coalesce('autovacuum_enabled=false' = any(reloptions), false) as is_off
from pg_stat_user_tables as stats join pg_class on pg_class.oid = relid
where schemaname = any(%(schemas)s)
    and (n_dead_tup > greatest(%(minimum)s, %(share)s * n_live_tup) or coalesce('autovacuum_enabled=false' = any(reloptions), false))
order by n_dead_tup desc
"""
CLUSTER = """
select coalesce((select position <> system_identifier from {runner_state} where name = 'cluster'), false) as is_restored
from pg_control_system()
"""


def _rows(connection: psycopg.Connection, query: str | sql.Composed, parameters: object = None) -> list:
    with connection.cursor(row_factory=namedtuple_row) as cursor:
        return cursor.execute(query, parameters).fetchall()


def _schemas() -> list[str]:
    target = target_schema()
    beside = ("intermediate", "contacts", "staging", "seeds", "state")
    return [project_variables()["landing_schema"], target, *(f"{target}_{name}" for name in beside)]


def _exists(connection: psycopg.Connection, schema: str, table: str) -> bool:
    name = f"{sql.Identifier(schema, table).as_string(connection)}"
    return connection.execute("select to_regclass(%s)", [name]).fetchone() != (None,)


def _ago(duration: timedelta) -> str:
    """A duration as people say it: "3 days", "4 hours", "12 minutes", "5 s"."""
    seconds = int(duration.total_seconds())
    for unit, size in (("days", 2 * 86_400), ("hours", 2 * 3_600), ("minutes", 2 * 60)):
        if seconds >= size:
            return f"{seconds // (size // 2)} {unit}"
    return f"{seconds} s"


def check_privileges(connection: psycopg.Connection) -> Finding:
    found = _rows(connection, PRIVILEGES, {"schemas": _schemas(), "roles": list(GROUP_ROLES)})[0]
    login = connection.info.user
    if found.foreign_schemas:
        return failed(
            "privileges", f"{login} does not own {', '.join(found.foreign_schemas)}, and cannot build.",
            f"Run it as the login that builds, or as an administrator: grant audience_owner to {login}.",
        )  # fmt: skip
    if not found.may_create:
        return failed(
            "privileges", f"{login} may not create schemas in {connection.info.dbname}.",
            f"As an administrator: grant create on database {connection.info.dbname} to {login}.",
        )  # fmt: skip
    if project_variables()["roles_are_needed"] and not found.may_make_roles:
        if found.missing_roles:
            return failed(
                "privileges", f"The roles {', '.join(found.missing_roles)} are missing, and {login} may not make them.",
                "An administrator makes them: docs/security.md, on a server on which you may not make roles.",
            )  # fmt: skip
        if not found.is_owner:
            return failed(
                "privileges", f"{login} is no member of audience_owner, whom everything belongs to.",
                f"As an administrator: grant audience_owner to {login}.",
            )  # fmt: skip
    if not found.sees_sessions:
        return warning(
            "privileges", f"{login} may build, but does not see what other logins do: long transactions go unnoticed.",
            f"As an administrator: grant pg_read_all_stats to {login}.",
        )  # fmt: skip
    return ok("privileges", f"{login} may create schemas and roles or has them.")


def check_clock(connection: psycopg.Connection) -> Finding:
    """The server's clock against this machine's, less half of the way there and back."""
    asked = datetime.now(UTC)
    (there,) = connection.execute("select clock_timestamp()").fetchone()
    middle = asked + (datetime.now(UTC) - asked) / 2
    apart = abs((there - middle).total_seconds())
    found = f"The server's clock and this machine's are {apart:.1f} s apart."
    variables = project_variables()
    if apart > variables["clock_difference_seconds"]:
        return warning("clock", found, "Let both follow a time server: events and schedules are told by the clock.")
    return ok("clock", found)


def check_locks(connection: psycopg.Connection) -> Finding:
    variables = project_variables()
    waiting = _rows(connection, WAITING, [timedelta(seconds=variables["lock_wait_seconds"])])
    if not waiting:
        return ok("locks", "Nobody waits long for a lock.")
    first = waiting[0]
    blockers = ", ".join(map(str, first.blockers))
    return failed(
        "locks", f"Sessions that wait: {len(waiting)}; process {first.pid} of {first.usename} for {_ago(first.since)}, behind {blockers}.",
        f"Find out what {blockers} does (pg_stat_activity); if it may end: select pg_terminate_backend({first.blockers[0]}).",
    )  # fmt: skip


def check_transactions(connection: psycopg.Connection) -> Finding:
    variables = project_variables()
    limit = timedelta(minutes=variables["transaction_minutes"])
    old = _rows(connection, OLD_TRANSACTIONS, [limit, limit])
    if not old:
        return ok("transactions", "No transaction has been open for long.")
    first = old[0]
    who = f"process {first.pid}" if first.pid else first.application_name
    idle = ", idle" if first.is_idle else ""
    found = f"The transaction of {who} ({first.usename}, {first.application_name or 'no name'}, {first.database}) is open for {_ago(first.age)}{idle}"
    end = f"select pg_terminate_backend({first.pid})" if first.pid else "rollback prepared"
    if first.writes:
        return failed(
            "transactions", f"{found}: what landed since waits for its end.", f"End it where it runs, or: {end}."
        )
    return warning("transactions", f"{found}: it keeps vacuum from cleaning up.", f"End it where it runs, or: {end}.")


def check_build_lock(connection: psycopg.Connection) -> Finding:
    holders = _rows(connection, BUILD_LOCK, [f"audience build {target_schema()}"])
    if not holders:
        return ok("build lock", "No build is running.")
    one = holders[0]
    found = f"A build is running for {_ago(one.age)}: process {one.pid} of {one.usename}."
    variables = project_variables()
    if one.age > timedelta(hours=variables["build_max_hours"]):
        return warning("build lock", found, f"If it does nothing any more: select pg_terminate_backend({one.pid}).")
    return ok("build lock", found)


def check_last_build(connection: psycopg.Connection) -> Finding:
    schema = f"{target_schema()}_state"
    built_at, as_of = None, None
    if _exists(connection, schema, "model_state"):
        query = "select max(built_at), max(as_of) filter (where model = 'audience_customers') from {} where model not like '%% %%'"
        built_at, as_of = connection.execute(sql.SQL(query).format(sql.Identifier(schema, "model_state"))).fetchone()
    if built_at is None:
        return warning("last build", "Nothing was built yet.", "Load events (audience load), then run audience build.")
    age = datetime.now(UTC) - built_at
    found = f"The last build wrote {_ago(age)} ago, for {as_of:%Y-%m-%d %H:%M} UTC." if as_of else f"The last build wrote {_ago(age)} ago."  # fmt: skip
    variables = project_variables()
    remedy = "Look at the last runs in Dagster or at the log of cron, then run audience build."
    if age > timedelta(hours=variables["build_missing_after_hours"]):
        return failed("last build", found, remedy)
    if age > timedelta(hours=variables["build_late_after_hours"]):
        return warning("last build", found, remedy)
    return ok("last build", found)


def check_events(connection: psycopg.Connection) -> Finding | None:
    """Lag of the newest receipt. Rows from before the limit are not read: the answer is the same, too old."""
    variables = project_variables()
    landing, missing = variables["landing_schema"], variables["events_missing_after_hours"]
    if not _exists(connection, landing, "events"):
        return None
    query = sql.SQL("select max(received_at), exists (select from {0}) from {0} where received_at > now() - %s").format(
        sql.Identifier(landing, "events")
    )
    newest, is_filled = connection.execute(query, [timedelta(hours=missing)]).fetchone()
    if not is_filled:
        return warning("events", "No event has landed yet.", "Connect a collector, or load files: audience load.")
    remedy = "Look at the collector, and at rejected rows: audience_contacts.rejected_events."
    if newest is None:
        return failed("events", f"No event was received in the last {missing} hours.", remedy)
    lag = datetime.now(UTC) - newest
    found = f"The newest event was received {_ago(lag)} ago."
    if lag > timedelta(hours=variables["events_late_after_hours"]):
        return warning("events", found, remedy)
    return ok("events", found)


def check_pending(connection: psycopg.Connection) -> Finding | None:
    """Rows that the next build takes, and rows that an open transaction keeps from it."""
    landing, state = project_variables()["landing_schema"], f"{target_schema()}_state"
    if not _exists(connection, landing, "events") or not _exists(connection, state, "model_state"):
        return None
    query = sql.SQL(LANDED).format(state=sql.Identifier(state, "model_state"), events=sql.Identifier(landing, "events"))
    source = f'"{connection.info.dbname}"."{landing}"."events"'
    found = _rows(connection, query, {"source": source})[0]
    if found.held:
        return warning(
            "pending", f"Rows that wait for the next build: {found.pending:,}; for the end of an older transaction: {found.held:,}.",
            "They are taken by the build after it. If it does not end: see transactions.",
        )  # fmt: skip
    return ok("pending", f"Rows that wait for the next build: {found.pending:,}.")


def check_vacuum(connection: psycopg.Connection) -> Finding:
    settings = connection.execute("select current_setting('autovacuum'), current_setting('track_counts')").fetchone()
    if settings != ("on", "on"):
        return failed(
            "vacuum", "Autovacuum is off: tables grow, and statistics grow old.",
            "Set autovacuum and track_counts to on in postgresql.conf, and reload it.",
        )  # fmt: skip
    variables = project_variables()
    limits = {"minimum": variables["dead_rows_minimum_count"], "share": variables["dead_rows_share"]}
    full = _rows(connection, DEAD_ROWS, {"schemas": _schemas(), **limits})
    if not full:
        return ok("vacuum", "Autovacuum is on and keeps up.")
    if full[0].is_off:
        return warning("vacuum", f"Autovacuum is off for {full[0].name}.", f"alter table {full[0].name} reset (autovacuum_enabled).")  # fmt: skip
    return warning(
        "vacuum", f"Tables with many dead rows: {len(full)}; {full[0].name} has most, {full[0].dead:,}.",
        f"See that no transaction is open for long; then vacuum {full[0].name}.",
    )  # fmt: skip


def check_cluster(connection: psycopg.Connection) -> Finding | None:
    landing = project_variables()["landing_schema"]
    if not _exists(connection, landing, "runner_state"):
        return None
    query = sql.SQL(CLUSTER).format(runner_state=sql.Identifier(landing, "runner_state"))
    if _rows(connection, query)[0].is_restored:
        return warning(
            "cluster", "This database was restored from a dump of another server, and not built since.",
            "Run audience build: it numbers what landed anew and computes everything again.",
        )  # fmt: skip
    kind = "a server of your own" if external_server() else "the embedded server"
    return ok("cluster", f"The data were made on this server, {kind}.")


CHECKS = (
    check_privileges, check_clock, check_locks, check_transactions, check_build_lock, check_last_build, check_events,
    check_pending, check_vacuum, check_cluster,
)  # fmt: skip
