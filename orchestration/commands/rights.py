"""`audience erase` and `audience subject-export`: the rights of a person."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from orchestration.commands.output import AsJson, show, terminal
from orchestration.errors import UserError

if TYPE_CHECKING:
    from orchestration.rights.erasure import Erasure
    from orchestration.rights.export import SubjectExport
    from orchestration.rights.subjects import Delivery

rights_app = typer.Typer(rich_markup_mode=None)

Emails = Annotated[list[str] | None, typer.Option("--email", help="An e-mail address that was given. May be repeated.")]
Phones = Annotated[list[str] | None, typer.Option("--phone", help="A phone number that was given. May be repeated.")]
Users = Annotated[list[str] | None, typer.Option("--user-id", help="A user id. May be repeated.")]
Devices = Annotated[list[str] | None, typer.Option("--device", help="A device: its user, or itself. May be repeated.")]


@rights_app.command("erase", epilog="Example: audience erase --org north_hall --email jane@example.com")
def erase(
    org: Annotated[str | None, typer.Option(help="The org that holds it.")] = None,
    email: Emails = None,
    phone: Phones = None,
    user_id: Users = None,
    device: Devices = None,
    event: Annotated[list[str] | None, typer.Option("--event", help="Single events instead of people.")] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Erase. Without it: say what would be removed.")] = False,
    later: Annotated[bool, typer.Option("--later", help="Ask only: the job erase of Dagster does it.")] = False,
    finish: Annotated[bool, typer.Option("--finish", help="Go on with erasures that were interrupted.")] = False,
    as_json: AsJson = False,
) -> None:
    """Erase a person: say what would be removed or, with --yes, remove it, build without it and print the receipt."""
    from orchestration.rights import erasure
    from orchestration.rights.subjects import Given

    given = Given(email or (), phone or (), user_id or (), device or (), event or ())
    if finish:
        if given != Given() or yes or later:
            raise UserError("--finish goes on with what was erased before: leave the other options out.")
        with terminal().steps("Building") as advance:
            done = erasure.finish(advance)
        show(done, as_json, lambda receipts: [_print_erasure(one) for one in receipts] or print("No erasure is open."))
        return
    given.check()
    if not org:
        raise UserError("No org is named: give --org.")
    if later:
        from orchestration import erasure_requests

        request = erasure_requests.ask(org, given)
        print(f"Request {request} waits. Start the job erase in Dagster with this id; nothing is erased before.")
        return
    if not yes:
        show(erasure.preview(org, given), as_json, _print_erasure)
        return
    with terminal().steps("Building") as advance:
        receipt = erasure.erase(org, given, advance)
    show(receipt, as_json, _print_erasure)


@rights_app.command(
    "subject-export",
    epilog="Example: audience subject-export --org north_hall --email jane@example.com --out jane.json",
)
def subject_export(
    org: Annotated[str, typer.Option(help="The org that holds it.")],
    out: Annotated[Path, typer.Option(help="The file to write; only you may read it.")],
    email: Emails = None,
    phone: Phones = None,
    user_id: Users = None,
    device: Devices = None,
    as_json: AsJson = False,
) -> None:
    """Write everything held on a person into one JSON file."""
    from orchestration.rights.export import export_subject
    from orchestration.rights.subjects import Given

    report = export_subject(org, Given(email or (), phone or (), user_id or (), device or ()), out)
    show(report, as_json, _print_export)


def _print_erasure(erasure: Erasure) -> None:
    if erasure.request_id is None:
        print(f"Would remove from org {erasure.org_id}:")
    elif erasure.finished_at is None:
        print(
            f"Erased from org {erasure.org_id} what landed and who was a member, request {erasure.request_id}; rows before:"
        )
    else:
        print(f"Erased from org {erasure.org_id} at {erasure.finished_at}, receipt {erasure.request_id}:")
    _print_counts(erasure.rows_by_table)
    for file in erasure.files:
        print(f"  the file {file}")
    _print_deliveries(erasure.deliveries)
    _print_shared(erasure.shared, "stay")
    if erasure.request_id is None:
        print("Nothing was changed. To erase it, run the same with --yes.")
    elif erasure.finished_at is None:
        print(
            "No list and no alert names them from now on. The tables follow with the next build. The files of lists, and the receipt, are "
            "for the owner of the database: audience erase --finish, where the files are."
        )


def _print_export(report: SubjectExport) -> None:
    print(f"{sum(report.rows_by_table.values()):,} rows on the person in {report.file}:")
    _print_counts(report.rows_by_table)
    _print_deliveries(report.deliveries)
    _print_shared(report.shared, "are not told of")


def _print_counts(rows_by_table: dict[str, int]) -> None:
    for table, count in sorted(rows_by_table.items()):
        print(f"  {count:>9,}  {table}")


def _print_deliveries(deliveries: list[Delivery]) -> None:
    if deliveries:
        print("Lists that went out with it; whoever has them is for you to tell:")
    for one in deliveries:
        print(f"  {one.logged_at}  {one.outcome} to {one.destination}: {one.segment_name} ({one.export_id})")


def _print_shared(shared: dict[str, list[str]], verb: str) -> None:
    names = {"device_ids": "devices", "emails": "e-mail addresses", "phones": "phone numbers"}
    for kind, values in shared.items():
        if values:
            print(
                f"Others use {len(values)} of the {names[kind]} too, whose other rows {verb}: {', '.join(values[:3])}"
            )
