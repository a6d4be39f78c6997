"""`audience members`: who may read which orgs."""

from __future__ import annotations

from typing import Annotated

import typer

from orchestration.commands.output import AsJson, show, terminal

members_app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Which logins may read which orgs.")


@members_app.command("add", epilog="Example: audience members add ana --org north_hall --role analyst")
def members_add(
    login: Annotated[str, typer.Argument(help="A role of the server that logs in, or that a pool takes on.")],
    org: Annotated[list[str], typer.Option(help="An org that it may read; may be repeated.")],
    role: Annotated[str, typer.Option(help="reader, analyst or admin.")] = "reader",
) -> None:
    """Let a login read orgs, in a role: the rows of these orgs and no others."""
    from orchestration import members

    members.add(login, org, role)
    print(f"{login} reads {', '.join(org)} as {role}.")


@members_app.command("remove", epilog="Example: audience members remove ana --org north_hall")
def members_remove(
    login: Annotated[str, typer.Argument(help="The login, also one that the server does not have any more.")],
    org: Annotated[list[str] | None, typer.Option(help="An org to take away; may be repeated. Default: all.")] = None,
) -> None:
    """Take orgs from a login; with the last one its role."""
    from orchestration import members

    count = members.remove(login, org or ())
    print(f"{login} reads {count} {'org' if count == 1 else 'orgs'} less.")


@members_app.command("list", epilog="Example: audience members list --json")
def members_list(as_json: AsJson = False) -> None:
    """List the logins that may read, their roles and orgs."""
    from orchestration import members

    found = members.members()
    show(found, as_json, terminal().print_members)
