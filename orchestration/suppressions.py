"""Who is to be left alone: kept as keyed hashes, and followed by every list and message from then on."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import psycopg
from psycopg import sql
from psycopg.types.json import Jsonb

from orchestration import database, dbt
from orchestration.errors import UserError
from orchestration.settings import target_schema

# all: every list and message; advertising: lists for ad platforms; email: messages, and lists with e-mail addresses.
PURPOSES = ("all", "advertising", "email")
# Lines of a file that are one statement and one transaction.
BATCH = 1_000


@dataclass(frozen=True)
class OptOut:
    """identifiers_count: those given; changed_count: those, and others that their customers are known by, that were not so
    before."""

    org_id: str
    purpose: str
    identifiers_count: int
    changed_count: int


def connect() -> psycopg.Connection:
    """A connection to a database that has the table of suppressions."""
    dbt.ensure_table(f"{target_schema()}_state.suppressed_visitors")
    return database.connect(autocommit=True, application_name="audience suppressions")


def suppress(
    connection: psycopg.Connection, org_id: str, *, emails: Iterable[str] = (), phones: Iterable[str] = (), ids: Iterable[str] = (),
    email_hashes: Iterable[str] = (), purpose: str = "all", reason: str = "asked for", is_lifted: bool = False,
) -> OptOut:  # fmt: skip
    """Leaves people alone for a purpose, or with is_lifted no longer, whether anything is held on them or not.

    ids: of users or devices. email_hashes: keyed hashes of the database, where the address is not known. With an identifier
    go the others of its customers. Raises UserError for what is no identifier or purpose, and for who may not say so.
    """
    identifiers = [
        *({"kind": "email", "value": one} for one in emails), *({"kind": "phone", "value": one} for one in phones),
        *({"kind": "id", "value": one} for one in ids), *({"kind": "email", "hash": one} for one in email_hashes),
    ]  # fmt: skip
    _check(identifiers, purpose)
    function = sql.Identifier(f"{target_schema()}_state", "suppress")
    changed_count = 0
    with connection.transaction():
        for start in range(0, len(identifiers), BATCH):
            batch = [org_id, Jsonb(identifiers[start : start + BATCH]), purpose, reason, is_lifted]
            try:
                changed = connection.execute(sql.SQL("select {}(%s, %s, %s, %s, %s)").format(function), batch)
            except psycopg.errors.InsufficientPrivilege as error:
                raise UserError(f"{connection.info.user} may not do this: {error.diag.message_primary}") from error
            except psycopg.errors.InvalidParameterValue as error:
                raise UserError(str(error.diag.message_primary)) from error
            changed_count += changed.fetchone()[0]
    return OptOut(org_id, purpose, len(identifiers), changed_count)


def _check(identifiers: Sequence[dict[str, str]], purpose: str) -> None:
    if not identifiers:
        raise UserError("Nobody is named: give --email, --phone, --user-id, --device or --emails-from.")
    if purpose not in PURPOSES:
        raise UserError(f"There is no purpose {purpose!r}: give one of {', '.join(PURPOSES)}.")
    for one in identifiers:
        value = one.get("value", "")
        if "\0" in value:
            raise UserError("An identifier has a NUL character, which no stored one has: give it without.")
        if "hash" not in one and not value.strip():
            raise UserError("A blank identifier names nobody: give the identifier.")
        if one["kind"] == "email" and "hash" not in one and "@" not in value:
            raise UserError(f"{value!r} is no e-mail address: correct it, or give it as --user-id or --phone.")
        if one["kind"] == "phone" and sum(character.isdigit() for character in value) < 5:
            raise UserError(f"{value!r} is no phone number of one person: give all of it.")


def read_emails(file: Path) -> list[str]:
    """The e-mail addresses of a file, one a line; blank lines are left out. Raises UserError for another line."""
    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines()
    except OSError as error:
        raise UserError(f"--emails-from {file} cannot be read ({error.strerror}): correct the name.") from error
    except UnicodeDecodeError as error:
        raise UserError(f"--emails-from {file} is no UTF-8 ({error.reason}): write it as UTF-8.") from error
    for number, line in enumerate(lines, 1):
        if line.strip() and ("@" not in line or any(mark in line.strip() for mark in ",; \t")):
            raise UserError(
                f"Line {number} of {file} is not one e-mail address: nobody was opted out; correct it, one address a line."
            )
    return [line.strip() for line in lines if line.strip()]
