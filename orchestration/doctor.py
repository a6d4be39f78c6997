"""What may be wrong with the installation, the server and the data, and what to do about each.

It looks only, but for the embedded server, which it starts as every command does. `doctor_server` asks the server.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import psycopg
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from orchestration import alerts, database
from orchestration.errors import UserError
from orchestration.exports import webhooks
from orchestration.settings import audience_home, project_variables

PACKAGE = "audience-intelligence"
# A check waits for nobody for long: what is locked is what it is asked to find.
PATIENCE = "set lock_timeout = '2s'; set statement_timeout = '30s'"
MEGABYTE = 2**20


@dataclass(frozen=True)
class Finding:
    """What a check found, in a sentence. remedy: what to do, empty when nothing has to be done."""

    name: str
    state: Literal["ok", "warning", "failed"]
    found: str
    remedy: str = ""


def ok(name: str, found: str) -> Finding:
    return Finding(name, "ok", found)


def warning(name: str, found: str, remedy: str) -> Finding:
    return Finding(name, "warning", found, remedy)


def failed(name: str, found: str, remedy: str) -> Finding:
    return Finding(name, "failed", found, remedy)


def examine() -> list[Finding]:
    """Every check's finding, in the order in which they are worth reading. Those of the server end where nobody answers."""
    from orchestration.doctor_server import CHECKS

    findings = [check_python(), check_packages(), check_disk(), check_alerts()]
    try:
        connection = database.connect(autocommit=True, application_name="audience doctor")
    except UserError as error:
        found, _, remedy = str(error).partition(": ")
        return [*findings, failed("connection", f"{found}.", remedy)]
    with connection:
        connection.execute(PATIENCE)
        findings.append(check_connection(connection))
        return findings + [found for check in CHECKS if (found := _asked(check, connection))]


def check_connection(connection: psycopg.Connection) -> Finding:
    info = connection.info
    version, login, size = connection.execute(
        "select current_setting('server_version'), session_user, pg_size_pretty(pg_database_size(current_database()))"
    ).fetchone()
    return ok("connection", f"PostgreSQL {version} at {info.host}, database {info.dbname} ({size}), as {login}.")


def _asked(check: Callable[[psycopg.Connection], Finding | None], connection: psycopg.Connection) -> Finding | None:
    """A check's finding; what the server refuses to tell is one too."""
    try:
        return check(connection)
    except psycopg.Error as error:
        name = check.__name__.removeprefix("check_").replace("_", " ")
        reason = str(error).strip().splitlines()[0]
        return failed(name, f"The server did not say ({reason}).", "Run it as the login that builds, beside no build.")


def check_python() -> Finding:
    needed = SpecifierSet(importlib.metadata.metadata(PACKAGE)["Requires-Python"])
    version = platform.python_version()
    if not needed.contains(version):
        return failed(
            "python", f"Python {version} runs, {needed} is needed.", "Make .venv anew: rm -r .venv, make setup."
        )
    return ok("python", f"Python {version}.")


def check_packages() -> Finding:
    """Installed versions against those that the project declares; extras are nobody's need here."""
    wrong = []
    requirements = [Requirement(text) for text in importlib.metadata.requires(PACKAGE) or ()]
    needed = [one for one in requirements if one.marker is None or one.marker.evaluate({"extra": ""})]
    for requirement in needed:
        try:
            version = importlib.metadata.version(requirement.name)
        except importlib.metadata.PackageNotFoundError:
            wrong.append(f"{requirement.name} is missing")
            continue
        if not requirement.specifier.contains(version, prereleases=True):
            wrong.append(f"{requirement.name} is {version} and has to be {requirement.specifier}")
    if wrong:
        return failed("packages", f"{'; '.join(wrong)}.", "Run make setup, which installs what requirements.lock says.")
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in ("dbt-core", "dagster", "psycopg"))
    return ok("packages", f"{len(needed)} packages are as declared: {versions}.")


def check_disk() -> Finding:
    """Free disk where the embedded server's data, exports and Dagster's folder are; a server's own disk is not seen from here."""
    home = audience_home()
    folder = next(one for one in (home, *home.parents) if one.exists())
    free = shutil.disk_usage(folder).free // MEGABYTE
    variables = project_variables()
    found = f"{free:,} MB are free in {home}."
    if free < variables["disk_minimum_megabytes"]:
        return failed(
            "disk", found, f"Free some, so that at least {variables['disk_minimum_megabytes']:,} MB are: a build stops without."
        )  # fmt: skip
    return ok("disk", found)


def check_alerts() -> Finding:
    """Whether alerts can leave; nothing is sent."""
    url = os.environ.get(alerts.WEBHOOK)
    if not url:
        return ok("alerts", f"Alerts go into {alerts.log_file()} alone: {alerts.WEBHOOK} is not set.")
    try:
        webhooks.receiver_of(url, name=f"The webhook in {alerts.WEBHOOK}")
    except UserError as error:
        found, _, remedy = str(error).partition(": ")
        return failed("alerts", f"{found}.", remedy)
    return ok("alerts", f"Alerts go to the webhook in {alerts.WEBHOOK}, and into {alerts.log_file()}.")
