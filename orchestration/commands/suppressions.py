"""`audience opt-out`: who is to be left alone."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from orchestration.commands.output import AsJson, show

if TYPE_CHECKING:
    from orchestration.suppressions import OptOut

suppressions_app = typer.Typer(rich_markup_mode=None)


@suppressions_app.command(
    "opt-out", epilog="Example: audience opt-out --org north_hall --email jane@example.com --purpose advertising"
)
def opt_out(
    org: Annotated[str, typer.Option(help="The org that shall leave them alone.")],
    email: Annotated[list[str] | None, typer.Option("--email", help="An e-mail address. May be repeated.")] = None,
    phone: Annotated[list[str] | None, typer.Option("--phone", help="A phone number. May be repeated.")] = None,
    user_id: Annotated[list[str] | None, typer.Option("--user-id", help="A user id. May be repeated.")] = None,
    device: Annotated[list[str] | None, typer.Option("--device", help="A device's id. May be repeated.")] = None,
    emails_from: Annotated[Path | None, typer.Option(help="A file of e-mail addresses, one a line.")] = None,
    purpose: Annotated[str, typer.Option(help="From what: all, advertising or email.")] = "all",
    reason: Annotated[str, typer.Option(help="Why; it is kept. Name nobody.")] = "asked for",
    undo: Annotated[bool, typer.Option("--undo", help="They may be listed and written to again.")] = False,
    as_json: AsJson = False,
) -> None:
    """Leave people alone, known or not: no list and no message has them from now on."""
    from orchestration import suppressions

    emails = [*(email or ()), *(suppressions.read_emails(emails_from) if emails_from else ())]
    with suppressions.connect() as connection:
        done = suppressions.suppress(
            connection, org, emails=emails, phones=phone or (), ids=[*(user_id or ()), *(device or ())],
            purpose=purpose, reason=reason, is_lifted=undo,
        )  # fmt: skip
    show(done, as_json, _print_undone if undo else _print_done)


def _print_done(done: OptOut) -> None:
    print(
        f"{done.changed_count:,} identifiers are left alone from now on by {done.org_id} ({done.purpose}). "
        "The next delta of a list has them as left."
    )


def _print_undone(done: OptOut) -> None:
    print(f"{done.changed_count:,} identifiers are not left alone any more by {done.org_id} ({done.purpose}).")
