"""Campaigns and their send log. Who may do what is decided by the database (macros/mechanics/campaigns.sql).

Functions take a connection of `connect`.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

import psycopg
from psycopg import sql
from psycopg.rows import class_row

from orchestration import database, dbt
from orchestration.errors import UserError
from orchestration.settings import target_schema

STATUSES = ("claimed", "sent", "deferred", "failed", "uncertain", "bounced", "suppressed")


@dataclass(frozen=True)
class Campaign:
    """A campaign, and how many people of its send log have which status."""

    org_id: str
    campaign_name: str
    segment_name: str
    template_sha256: str
    export_id: UUID
    created_at: datetime
    started_at: datetime
    counts: dict[str, int]


@dataclass(frozen=True)
class Code:
    """How many messages of a campaign have a status with the same code of the mail server, None without one."""

    status: str
    status_code: str | None
    people_count: int


@dataclass(frozen=True)
class Send:
    """A row of the send log. message_id: what the Message-ID begins with."""

    org_id: str
    campaign_name: str
    visitor_id: str
    message_id: str
    status: str
    status_code: str | None
    created_at: datetime
    status_at: datetime


@dataclass(frozen=True)
class Details:
    """A campaign, what the mail server said, and the recipients of whom nobody knows whether it took their message."""

    campaign: Campaign
    codes: list[Code]
    uncertain: list[Send]


def connect() -> psycopg.Connection:
    """A connection to a database that has the tables of campaigns."""
    dbt.ensure_table(f"{target_schema()}_state.campaign_sends")
    connection = database.connect(autocommit=True, application_name="audience campaigns")
    # what a crash of the server took back would be sent again
    connection.execute(
        "select set_config('synchronous_commit', 'on', false) where current_setting('synchronous_commit') = 'off'"
    )
    return connection


def may_send(connection: psycopg.Connection) -> bool:
    """Whether this login is an admin's or the owner's."""
    query = """
        select coalesce(bool_or(has_function_privilege(pg_proc.oid, 'execute')), false)
        from pg_proc join pg_namespace on pg_namespace.oid = pronamespace where nspname = %s and proname = 'claim_send'
    """
    return connection.execute(query, [_state()]).fetchone()[0]


def call(connection: psycopg.Connection, function: str, *arguments: Any) -> tuple[Any, ...]:
    """The row that a function of campaigns gives. Raises UserError with the reason when it refuses."""
    (row,) = call_all(connection, function, *arguments)
    return row


def call_all(connection: psycopg.Connection, function: str, *arguments: Any) -> list[tuple[Any, ...]]:
    """As call, of a function that gives several rows."""
    marks = sql.SQL(", ").join([sql.Placeholder()] * len(arguments))
    query = sql.SQL("select * from {}({})").format(sql.Identifier(_state(), function), marks)
    try:
        return connection.execute(query, arguments).fetchall()
    except psycopg.errors.InsufficientPrivilege as error:
        raise UserError(
            f"{connection.info.user} may not send campaigns ({error.diag.message_primary}): an administrator gives the role "
            "admin with audience members add."
        ) from error
    except psycopg.errors.LockNotAvailable as error:
        raise UserError("Another process sends this campaign: wait until it ends, then run it again.") from error
    except (psycopg.errors.InvalidParameterValue, psycopg.errors.CheckViolation) as error:
        raise UserError(str(error.diag.message_primary)) from error


def unlock(connection: psycopg.Connection, org_id: str, campaign_name: str) -> None:
    """Lets other processes have a campaign that this one opened."""
    key = "hashtextextended('audience campaign ' || cast(jsonb_build_array(cast(%s as text), cast(%s as text)) as text), 42)"
    connection.execute(f"select pg_advisory_unlock({key})", [org_id, campaign_name])


def campaigns(
    connection: psycopg.Connection, org_id: str | None = None, campaign_name: str | None = None
) -> list[Campaign]:
    """Campaigns of the orgs that this login may see, the newest first."""
    query = """
        select campaigns.*, (
            select coalesce(jsonb_object_agg(status, people_count), '{{}}') from (
                select status, count(*) as people_count from {sends} as sends
                where sends.org_id = campaigns.org_id and sends.campaign_name = campaigns.campaign_name group by status
            ) as by_status
        ) as counts
        from {campaigns} as campaigns
        where org_id = coalesce(%s, org_id) and campaign_name = coalesce(%s, campaign_name)
        order by started_at desc, org_id, campaign_name
    """
    return _read(connection, Campaign, query, [org_id, campaign_name])


def find(connection: psycopg.Connection, campaign_name: str, org_id: str | None = None) -> Campaign:
    """The campaign of that name; the org may be left out while one org has it. Raises UserError when none or several have."""
    found = campaigns(connection, org_id, campaign_name)
    if len(found) > 1:
        orgs = ", ".join(sorted(campaign.org_id for campaign in found))
        raise UserError(f"Several orgs have a campaign {campaign_name!r} ({orgs}): name one with --org.")
    if not found:
        raise UserError(f"There is no campaign {campaign_name!r}: audience campaigns list shows those that there are.")
    return found[0]


def uncertain(connection: psycopg.Connection, campaign: Campaign) -> list[Send]:
    """Of whom nobody knows whether the server took their message, the oldest first. Of one that is being sent now, the
    message on its way is not among them."""
    query = """
        select org_id, campaign_name, visitor_id, message_id, status, status_code, created_at, status_at from {sends}
        where org_id = %s and campaign_name = %s and status = 'uncertain' order by status_at, message_id
    """
    return _read(connection, Send, query, [campaign.org_id, campaign.campaign_name])


def details(connection: psycopg.Connection, campaign: Campaign) -> Details:
    """All there is of a campaign but its people."""
    query = """
        select status, status_code, count(*) as people_count from {sends}
        where org_id = %s and campaign_name = %s group by status, status_code order by status, status_code
    """
    codes = _read(connection, Code, query, [campaign.org_id, campaign.campaign_name])
    return Details(campaign, codes, uncertain(connection, campaign))


def recipients(connection: psycopg.Connection, message_ids: list[str]) -> dict[str, list[str]]:
    """The keyed hashes of the addresses that messages of the log went to, by org."""
    query = sql.SQL("select org_id, array_agg(email_hash) from {} where message_id = any(%s) group by org_id")
    return dict(connection.execute(query.format(sql.Identifier(_state(), "campaign_sends")), [message_ids]).fetchall())


def resolve(connection: psycopg.Connection, campaign: Campaign, status: str, message_ids: list[str]) -> list[Send]:
    """Says of uncertain recipients, by default of all, that their message was sent, or that it is deferred: the next run
    sends it. Returns them. Raises UserError for a message that is not uncertain, and then changes none."""
    there = {send.message_id: send for send in uncertain(connection, campaign)}
    other = next((message_id for message_id in message_ids if message_id not in there), None)
    if other is not None:
        raise UserError(
            f"Message {other!r} of campaign {campaign.campaign_name!r} is not uncertain: audience campaigns show lists those that are."
        )
    chosen = [there[message_id] for message_id in dict.fromkeys(message_ids or there)]
    with connection.transaction():
        for send in chosen:
            call(connection, "record_send", send.message_id, status)
    return chosen


def _read(connection: psycopg.Connection, shape: type, query: str, parameters: list[Any]) -> list[Any]:
    tables = {name: sql.Identifier(_state(), table) for name, table in (("campaigns", "campaigns"), ("sends", "campaign_sends"))}  # fmt: skip
    try:
        with connection.cursor(row_factory=class_row(shape)) as cursor:
            return cursor.execute(sql.SQL(query).format(**tables), parameters).fetchall()
    except psycopg.errors.InsufficientPrivilege as error:
        raise UserError(
            f"{connection.info.user} may not see campaigns ({error.diag.message_primary}): an administrator gives the role "
            "admin with audience members add."
        ) from error


def _state() -> str:
    return f"{target_schema()}_state"
