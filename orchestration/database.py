"""Connections: the server in use, its PG* variables for other programs, and psycopg connections."""

from __future__ import annotations

import os
from urllib.parse import quote

import psycopg

from orchestration import embedded
from orchestration.errors import UserError
from orchestration.settings import external_server

MINIMUM_VERSION = 150000


def pg_variables() -> dict[str, str]:
    """PG* variables of the server in use; starts the embedded one when no other is named."""
    server = external_server()
    return server.variables if server else embedded.start().variables


def environment() -> dict[str, str]:
    """The process environment for a program that reads PG* variables (dbt, psql, Dagster)."""
    return {**os.environ, **pg_variables()}


def url() -> str:
    """A libpq URL of the server in use."""
    variables = pg_variables()
    user = quote(variables.get("PGUSER", ""), safe="")
    password = f":{quote(variables['PGPASSWORD'], safe='')}" if variables.get("PGPASSWORD") else ""
    database = quote(variables.get("PGDATABASE", variables.get("PGUSER", "")), safe="")
    host, port = variables.get("PGHOST", "localhost"), variables.get("PGPORT", "5432")
    login = f"{user}{password}@" if user else ""
    if host.startswith("/"):
        return f"postgresql://{login}/{database}?host={quote(host, safe='')}&port={port}"
    return f"postgresql://{login}{host}:{port}/{database}"


def connect(*, autocommit: bool = False, application_name: str = "audience") -> psycopg.Connection:
    """A psycopg connection to the server in use, in UTC.

    Raises UserError when the server cannot be reached or is older than PostgreSQL 15.
    """
    names = {"PGHOST": "host", "PGHOSTADDR": "hostaddr", "PGPORT": "port", "PGUSER": "user",
             "PGPASSWORD": "password", "PGDATABASE": "dbname", "PGSERVICE": "service",
             "PGSSLMODE": "sslmode", "PGSSLROOTCERT": "sslrootcert"}  # fmt: skip
    variables = pg_variables()
    try:
        connection = psycopg.connect(
            **{names[name]: value for name, value in variables.items()},
            application_name=application_name,
            options="-c timezone=UTC",
            autocommit=autocommit,
        )
    except psycopg.OperationalError as error:
        raise UserError(
            f"No connection to PostgreSQL at {variables.get('PGHOST', variables.get('PGSERVICE'))} "
            f"({str(error).strip().splitlines()[-1]}): correct DATABASE_URL or the PG* variables, or unset "
            "them to use the embedded server."
        ) from error
    if connection.info.server_version < MINIMUM_VERSION:
        version = connection.info.server_version // 10000
        connection.close()
        raise UserError(f"The server runs PostgreSQL {version}: 15 or newer is needed. Upgrade it, or use another.")
    return connection
