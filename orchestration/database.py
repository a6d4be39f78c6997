"""Connections: the server in use, its PG* variables for other programs, and psycopg connections."""

from __future__ import annotations

import os
from urllib.parse import quote

import psycopg

from orchestration import embedded
from orchestration.errors import UserError
from orchestration.settings import external_server

MINIMUM_VERSION = 150000
LIBPQ_NAMES = {
    "PGHOST": "host",
    "PGHOSTADDR": "hostaddr",
    "PGPORT": "port",
    "PGUSER": "user",
    "PGPASSWORD": "password",
    "PGDATABASE": "dbname",
    "PGSERVICE": "service",
    "PGSSLMODE": "sslmode",
    "PGSSLROOTCERT": "sslrootcert",
}


def pg_variables() -> dict[str, str]:
    """PG* variables of the server in use; starts the embedded one when no other is named."""
    server = external_server()
    return server.variables if server else embedded.start().variables


def environment() -> dict[str, str]:
    """The process environment for a program that reads PG* variables (dbt, psql, Dagster).

    A server named by service or address alone is resolved by connecting: dbt needs the host by name.
    """
    variables = pg_variables()
    if "PGHOST" not in variables:
        with connect() as connection:
            info = connection.info
            found = {"PGHOST": info.host or info.hostaddr, "PGPORT": str(info.port), "PGUSER": info.user,
                     "PGPASSWORD": info.password, "PGDATABASE": info.dbname}  # fmt: skip
        variables |= {name: value for name, value in found.items() if value}
    return {**os.environ, **variables}


def url() -> str:
    """A libpq URL of the server in use."""
    variables = pg_variables()
    quoted = {LIBPQ_NAMES[name]: quote(value, safe="") for name, value in variables.items() if value}
    login = quoted.pop("user", "")
    if "password" in quoted:
        login += f":{quoted.pop('password')}"
    host = variables.get("PGHOST", "")
    place = ""
    if host and not set(host) & set("/:"):
        place = f"{quoted.pop('host')}:{quoted.pop('port', '5432')}"
    database = quoted.pop("dbname", "")
    query = "&".join(f"{name}={value}" for name, value in quoted.items())
    return f"postgresql://{login}{'@' if login else ''}{place}/{database}{'?' if query else ''}{query}"


def connect(*, autocommit: bool = False, application_name: str = "audience") -> psycopg.Connection:
    """A psycopg connection to the server in use, in UTC.

    Raises UserError when the server cannot be reached or is older than PostgreSQL 15.
    """
    variables = pg_variables()
    try:
        connection = psycopg.connect(
            **{LIBPQ_NAMES[name]: value for name, value in variables.items()},
            application_name=application_name,
            options="-c timezone=UTC",
            autocommit=autocommit,
        )
    except psycopg.OperationalError as error:
        raise UserError(
            f"No connection to PostgreSQL at {variables.get('PGHOST', variables.get('PGSERVICE'))} "
            f"({str(error).strip().splitlines()[0]}): correct DATABASE_URL or the PG* variables, or unset "
            "them to use the embedded server."
        ) from error
    if connection.info.server_version < MINIMUM_VERSION:
        version = connection.info.server_version // 10000
        connection.close()
        raise UserError(f"The server runs PostgreSQL {version}: 15 or newer is needed. Upgrade it, or use another.")
    return connection
