"""Where things are: the project, the embedded server's data and the database in use."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import yaml

from orchestration.errors import UserError

PG_VARIABLES = (
    "PGHOST", "PGHOSTADDR", "PGPORT", "PGUSER", "PGPASSWORD", "PGDATABASE", "PGSERVICE", "PGSSLMODE", "PGSSLROOTCERT"
)  # fmt: skip


def project_dir() -> Path:
    """The folder of dbt_project.yml: AUDIENCE_PROJECT, else the folder above this package."""
    given = os.environ.get("AUDIENCE_PROJECT")
    folder = Path(given).expanduser().resolve() if given else Path(__file__).resolve().parents[1]
    if not (folder / "dbt_project.yml").is_file():
        raise UserError(
            f"No dbt_project.yml in {folder}: the command runs beside the dbt project. "
            "Run it from a checkout, or name the checkout in AUDIENCE_PROJECT."
        )
    return folder


def project_variables() -> dict[str, Any]:
    """The variables of dbt_project.yml."""
    return yaml.safe_load((project_dir() / "dbt_project.yml").read_text())["vars"]


def target_schema() -> str:
    """The schema of the marts; those beside it begin with its name."""
    return os.environ.get("AUDIENCE_SCHEMA", "audience")


def target_folder() -> Path:
    """Where dbt writes its artifacts."""
    return Path(os.environ.get("DBT_TARGET_PATH") or project_dir() / "target")


def manifest_path() -> Path:
    return target_folder() / "manifest.json"


def audience_home() -> Path:
    """The embedded server's folder: AUDIENCE_HOME, else .audience in the project."""
    given = os.environ.get("AUDIENCE_HOME")
    return Path(given).expanduser().resolve() if given else project_dir() / ".audience"


@dataclass(frozen=True)
class ServerAddress:
    """A PostgreSQL server outside the project, as PG* variables for libpq, psycopg and dbt."""

    variables: dict[str, str]


def external_server() -> ServerAddress | None:
    """The server named by DATABASE_URL or by PGHOST / PGSERVICE, or None: the embedded one is used.

    Raises UserError when DATABASE_URL is not a PostgreSQL URL, or contradicts PGHOST.
    """
    url = os.environ.get("DATABASE_URL")
    if not url:
        named = any(os.environ.get(name) for name in ("PGHOST", "PGHOSTADDR", "PGSERVICE"))
        return ServerAddress({n: os.environ[n] for n in PG_VARIABLES if n in os.environ}) if named else None
    variables = _variables_of_url(url)
    address = os.environ.get("PGHOSTADDR")
    if address:
        raise UserError(f"DATABASE_URL and PGHOSTADDR ({address}) both name a server: unset one of them.")
    given = os.environ.get("PGHOST")
    if given and given != variables.get("PGHOST"):
        raise UserError(
            f"DATABASE_URL and PGHOST name different servers ({variables.get('PGHOST')} and {given}): "
            "unset one of them."
        )
    return ServerAddress(variables)


def _variables_of_url(url: str) -> dict[str, str]:
    from psycopg import ProgrammingError
    from psycopg.conninfo import conninfo_to_dict

    if urlsplit(url).scheme not in ("postgresql", "postgres"):
        raise UserError(
            "DATABASE_URL is not a PostgreSQL URL: it starts with "
            f"{url.split(':', 1)[0]!r}. Use postgresql://user:password@host:port/database, or unset it."
        )
    try:
        parts = conninfo_to_dict(url)
    except ProgrammingError as error:
        raise UserError(f"DATABASE_URL cannot be read ({str(error).strip()}): correct it, or unset it.") from error
    names = {
        "host": "PGHOST", "port": "PGPORT", "user": "PGUSER", "password": "PGPASSWORD",
        "dbname": "PGDATABASE", "sslmode": "PGSSLMODE", "sslrootcert": "PGSSLROOTCERT",
    }  # fmt: skip
    variables = {names[k]: unquote(str(v)) if k == "host" else str(v) for k, v in parts.items() if k in names}
    if "PGHOST" not in variables:
        raise UserError("DATABASE_URL names no host: use postgresql://user@host:port/database, or unset it.")
    return variables


@dataclass(frozen=True)
class MailServer:
    """Where e-mail is handed over. is_encrypted: from the first byte (smtps). starttls: required, offered (used if it is) or
    off. user and password: None for a server that asks for none."""

    host: str
    port: int
    is_encrypted: bool
    starttls: str
    user: str | None
    password: str | None = field(repr=False)

    @property
    def name(self) -> str:
        """For logs and messages."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{'smtps' if self.is_encrypted else 'smtp'}://{host}:{self.port}"


_SMTP_PORTS = {"smtp": 587, "smtps": 465}
_LOOPBACK = ("localhost", "127.0.0.1", "::1")


def mail_server() -> MailServer:
    """The server in AUDIENCE_SMTP_URL. Raises UserError when there is none or it cannot be read, without its password."""
    try:
        parts = urlsplit(os.environ.get("AUDIENCE_SMTP_URL", "").strip())
        host, port, options = parts.hostname, parts.port, parts.query
    except ValueError:
        host, port, options = None, None, ""  # what urlsplit says may quote a password
    if (
        not host
        or parts.scheme not in _SMTP_PORTS
        or parts.path not in ("", "/")
        or options not in ("", "starttls=off")
    ):
        raise UserError(
            "AUDIENCE_SMTP_URL names no mail server: set it to smtp://user:password@host:587 or smtps://user:password@host:465, "
            "with %40 for an @ in the password; ?starttls=off after it for a server of a private network without encryption."
        )
    starttls = "off" if options else "offered" if host in _LOOPBACK else "required"
    user, password = (None if part is None else unquote(part) for part in (parts.username, parts.password))
    return MailServer(host, port or _SMTP_PORTS[parts.scheme], parts.scheme == "smtps", starttls, user, password)
