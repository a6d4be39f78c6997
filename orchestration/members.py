"""Whose rows a login may read, and which of the group roles it has. Row-level security itself is in the database."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import psycopg
from psycopg import sql

from orchestration import database, dbt
from orchestration.build import target_schema
from orchestration.errors import UserError

ROLES = ("reader", "analyst", "admin")
LOGIN = """
select rolsuper or rolbypassrls, rolname = any(%(groups)s),
    coalesce((select pg_has_role(logins.oid, owners.oid, 'usage') from pg_roles as owners where owners.rolname = 'audience_owner'), false)
from pg_roles as logins where rolname = %(login)s
"""
MEMBERS = """
select login_name, array_agg(org_id order by org_id),
    (select array_agg(substr(groups.rolname, 10) order by groups.rolname) from pg_auth_members as granted
        join pg_roles as groups on groups.oid = granted.roleid
        where granted.member = to_regrole(quote_ident(login_name)) and groups.rolname = any(%(groups)s)),
    to_regrole(quote_ident(login_name)) is not null
from {members} group by login_name order by login_name
"""


@dataclass(frozen=True)
class Member:
    """A login with its orgs. roles: of reader, analyst, admin those that it was given itself. exists: the server has it."""

    login: str
    orgs: list[str]
    roles: list[str]
    exists: bool


def members() -> list[Member]:
    """Every login with an org, by name."""
    table = _members_table()
    with database.connect() as connection:
        query = sql.SQL(MEMBERS).format(members=table)
        found = connection.execute(query, {"groups": _groups()}).fetchall()
    return [Member(login, orgs, roles or [], exists) for login, orgs, roles, exists in found]


def add(login: str, orgs: Sequence[str], role: str = "reader") -> None:
    """Lets a login read these orgs beside those it has, in this role instead of another.

    Raises UserError for a login that is not there or that no policy holds for, and where the roles may not be granted.
    """
    if role not in ROLES:
        raise UserError(f"There is no role {role!r}: give one of {', '.join(ROLES)}.")
    table = _members_table()
    with database.connect() as connection:
        found = connection.execute(LOGIN, {"login": login, "groups": ["audience_owner", *_groups()]}).fetchone()
        if not found:
            raise UserError(f"The server has no login {login!r}: create it first (create role ... login), then add it.")
        ignores_policies, is_group, is_owner = found
        if ignores_policies or is_owner:
            raise UserError(
                f"{login} reads the rows of every org whatever is added: it is a superuser, has BYPASSRLS or owns the "
                "tables. Give readers a login of their own."
            )
        if is_group:
            raise UserError(f"{login} is a group of logins, who would all read these orgs: add the login itself.")
        connection.cursor().executemany(
            sql.SQL("insert into {} (login_name, org_id) values (%s, %s) on conflict do nothing").format(table),
            [(login, org) for org in orgs],
        )
        _give(connection, login, role)


def remove(login: str, orgs: Sequence[str] = ()) -> int:
    """Takes these orgs from a login, by default all; with the last one its role. Returns how many it had.

    Raises UserError when it had none of them, and where the roles may not be revoked.
    """
    table = _members_table()
    with database.connect() as connection:
        condition = sql.SQL(" and org_id = any(%s)") if orgs else sql.SQL("")
        removed = connection.execute(
            sql.SQL("delete from {} where login_name = %s").format(table) + condition,
            [login, *([list(orgs)] if orgs else [])],
        ).rowcount
        if not removed:
            raise UserError(
                f"{login} is a member of {'none of these orgs' if orgs else 'no org'}: see audience members list."
            )
        left = connection.execute(sql.SQL("select 1 from {} where login_name = %s").format(table), [login]).fetchone()
        if not left:
            _give(connection, login, None)
    return removed


def _groups() -> list[str]:
    return [f"audience_{role}" for role in ROLES]


def _members_table() -> sql.Identifier:
    """The memberships of the target schema, made where they are missing."""
    schema = f"{target_schema()}_state"
    dbt.ensure_table(f"{schema}.org_members")
    return sql.Identifier(schema, "org_members")


def _give(connection: psycopg.Connection, login: str, role: str | None) -> None:
    """Grants the group role that a login lacks and revokes the others; a project without the roles grants by hand."""
    held = connection.execute(
        "select groups.rolname from pg_auth_members as granted join pg_roles as groups on groups.oid = granted.roleid"
        " where granted.member = to_regrole(quote_ident(%s)) and groups.rolname = any(%s)",
        [login, _groups()],
    ).fetchall()
    there = connection.execute("select rolname from pg_roles where rolname = any(%s)", [_groups()]).fetchall()
    wanted = {f"audience_{role}"} & {name for (name,) in there}
    had = {name for (name,) in held}
    statements = [("grant {} to {}", name) for name in wanted - had] + [
        ("revoke {} from {}", name) for name in had - wanted
    ]
    for statement, name in statements:
        query = sql.SQL(statement).format(sql.Identifier(name), sql.Identifier(login))
        try:
            connection.execute(query)
        except psycopg.errors.InsufficientPrivilege as error:
            raise UserError(
                f"{connection.info.user} may not change who has the role {name}, so nothing was changed. An administrator of "
                f"the server runs: {query.as_string(connection)}; then run this again."
            ) from error
