"""`audience db`: the server in use."""

from __future__ import annotations

import os
import shutil

import typer

from orchestration.commands.output import AsJson, print_json
from orchestration.errors import UserError

db_app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="The embedded PostgreSQL server.")


@db_app.command("start", epilog="Example: audience db start")
def db_start() -> None:
    """Start the embedded server, if it is not running."""
    from orchestration import embedded
    from orchestration.settings import external_server

    if external_server():
        raise UserError(
            "The environment names a server of your own (DATABASE_URL or PGHOST), so the embedded one is not "
            "used: unset it to start the embedded server."
        )
    server = embedded.start()
    print(f"PostgreSQL is running in {server.data}. Connect with: audience db psql")


@db_app.command("stop", epilog="Example: audience db stop")
def db_stop() -> None:
    """Stop the embedded server after a clean shutdown."""
    from orchestration import embedded

    print("PostgreSQL has stopped." if embedded.stop() else "PostgreSQL was not running.")


@db_app.command("status", epilog="Example: audience db status --json")
def db_status(as_json: AsJson = False) -> None:
    """Say which server is in use and whether it runs."""
    from orchestration import embedded
    from orchestration.settings import external_server

    external = external_server()
    running = external is not None or embedded.status() is not None
    host = external.variables.get("PGHOST", "") if external else str(embedded.data_folder())
    state = {"server": "external" if external else "embedded", "where": host, "running": running}
    if as_json:
        print_json(state)
    elif external:
        print(f"A server of your own is used: {host}.")
    else:
        print(f"The embedded server in {host} is {'running' if running else 'stopped'}.")


@db_app.command("url", epilog='Example: psql "$(audience db url)"')
def db_url() -> None:
    """Print a libpq URL of the server in use; starts the embedded one."""
    from orchestration import database

    print(database.url())


@db_app.command(
    "psql",
    epilog='Example: audience db psql -c "select * from audience.audience_overview_daily limit 5"',
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
)
def db_psql(context: typer.Context) -> None:
    """Open psql on the server in use; further arguments go to psql."""
    from orchestration import database, embedded

    program = shutil.which("psql") or embedded.binary("psql")
    os.execve(program, [program, *context.args], database.environment())
