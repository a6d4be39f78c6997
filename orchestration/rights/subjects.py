"""Who is meant by an e-mail address, a phone number, a user id or a device, and to whom lists with him went."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import psycopg
from psycopg import sql
from psycopg.types.json import Jsonb

from orchestration import database, dbt
from orchestration.errors import UserError
from orchestration.people import customers_as_of
from orchestration.rights import catalogue
from orchestration.settings import target_schema


@dataclass(frozen=True)
class Given:
    """By what people, or events, are meant. Several are erased or exported as one."""

    emails: Sequence[str] = ()
    phones: Sequence[str] = ()
    user_ids: Sequence[str] = ()
    device_ids: Sequence[str] = ()
    event_ids: Sequence[str] = ()

    def check(self) -> None:
        """Raises UserError when nothing is given, something is blank, or people are given beside events."""
        names = {"emails": "--email", "phones": "--phone", "user_ids": "--user-id", "device_ids": "--device", "event_ids": "--event"}  # fmt: skip
        given = asdict(self)
        if not any(given.values()):
            raise UserError("Nobody is named: give --email, --phone, --user-id or --device.")
        for kind, values in given.items():
            if any(not value.strip() for value in values):
                raise UserError(f"A blank {names[kind]} names nobody: give the identifier.")
        if any("\0" in value for values in given.values() for value in values):
            raise UserError("An identifier has a NUL character, which no stored one has: give it without.")
        if any(len([digit for digit in phone if digit.isdigit()]) < 5 for phone in self.phones):
            raise UserError("A --phone has less than five digits, which is no number of one person: give all of it.")
        if self.event_ids and any(given[kind] for kind in given if kind != "event_ids"):
            raise UserError("--event erases single events: give either events or people.")


@dataclass(frozen=True)
class Delivery:
    """An export whose list had the subject, by a list that is kept or by his membership at the time, and what became of it."""

    export_id: str
    org_id: str
    segment_name: str
    purpose: str | None
    format: str
    destination: str
    outcome: str
    logged_at: str


@dataclass(frozen=True)
class Held:
    """What is held on a subject, who is what find_subject of the database tells: visitor_ids, device_ids, emails, phones and more.

    tables: the rows by table, of an export only.
    """

    subject: dict[str, Any]
    rows_by_table: dict[str, int]
    deliveries: list[Delivery]
    tables: dict[str, list[dict[str, Any]]]


@contextmanager
def connect() -> Iterator[psycopg.Connection]:
    """A connection to a database that has the tables of requests. Raises UserError for a login that may not look there."""
    try:
        dbt.ensure_table(f"{target_schema()}_state.subject_requests")
    except psycopg.errors.InsufficientPrivilege as error:
        raise UserError(
            f"This login is nobody's member here ({error.diag.message_primary}): an administrator adds it with audience members add."
        ) from error
    with database.connect(autocommit=True, application_name="audience rights") as connection:
        yield connection


def state(name: str) -> sql.Identifier:
    return sql.Identifier(f"{target_schema()}_state", name)


def ask(connection: psycopg.Connection, org_id: str, kind: str) -> str:
    """Keeps who asks for what (preview, erasure or export) of an org, and returns the id of the request.

    Raises UserError for who may not, which is kept too, and where nothing was built yet.
    """
    query = sql.SQL("select cast(new_id as text), refusal from {}(%s, %s)").format(state("request_subject"))
    try:
        request_id, refusal = connection.execute(query, [org_id, kind]).fetchone()  # type: ignore[misc]
    except psycopg.errors.InsufficientPrivilege as error:
        raise UserError(
            f"{connection.info.user} may not do this ({error.diag.message_primary}): an administrator gives the role admin "
            "with audience members add."
        ) from error
    if refusal:
        raise UserError(f"{connection.info.user} may not do this: {refusal}.")
    customers_as_of(connection)
    return request_id


def read(connection: psycopg.Connection, request_id: str, org_id: str, given: Given) -> Held:
    """What is held on whom a request of a preview or an export is of, all of one moment: in a transaction, once.

    Raises UserError when nothing is.
    """
    connection.execute("set transaction isolation level repeatable read")
    held = call(connection, "read_subject", request_id, org_id, given)
    sent = [Delivery(**one) for one in held["deliveries"]]
    return Held(held["subject"], dict(sorted(held["rows_by_table"].items())), sent, held["tables"] or {})


def call(connection: psycopg.Connection, function: str, request_id: str, org_id: str, given: Given) -> dict[str, Any]:
    """The answer of a function to a request. Raises UserError when nothing is held."""
    tables = catalogue.as_argument(catalogue.personal_tables(connection))
    query = sql.SQL("select {}(cast(%s as uuid), %s, %s)").format(state(function))
    answer = connection.execute(query, [request_id, Jsonb(asdict(given)), tables]).fetchone()[0]  # type: ignore[index]
    if not answer["rows_by_table"]:
        raise nothing_held(org_id, given)
    return answer


class NothingHeld(UserError):
    """There is nothing on whom was named."""


def nothing_held(org_id: str, given: Given) -> NothingHeld:
    named = [value for values in asdict(given).values() for value in values]
    some = ", ".join(map(repr, named[:3])) + (" and others" if len(named) > 3 else "")
    return NothingHeld(f"Org {org_id!r} holds nothing on {some}: check the org and the spelling.")
