"""`audience segments export` and `audience exports`: lists that leave, and what became of them."""

from __future__ import annotations

from typing import Annotated
from uuid import UUID

import typer

from orchestration.commands.output import AsJson, show, terminal
from orchestration.commands.segments import Org, SegmentName, segments_app
from orchestration.errors import UserError

exports_app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="What became of exports.")

ExportId = Annotated[str, typer.Argument(metavar="EXPORT_ID", help="As audience exports list shows it.")]


@segments_app.command(
    "export", epilog='Example: audience segments export Champions --org north_hall --purpose "Spring newsletter"'
)
def segments_export(
    name: SegmentName,
    purpose: Annotated[str, typer.Option(help="What the list is for; it is logged.")] = "",
    org: Org = None,
    include_pii: Annotated[bool, typer.Option("--include-pii", help="Contact details, too; for admins.")] = False,
    format_name: Annotated[str, typer.Option("--format", help="csv, ndjson, parquet, meta, google or tiktok.")] = "csv",
    to: Annotated[
        str | None, typer.Option(help="A folder, s3://, gs:// ..., https://. Default: exports in AUDIENCE_HOME.")
    ] = None,
    delta: Annotated[
        bool, typer.Option("--delta", help="Who entered and who left since the last acknowledged export.")
    ] = False,
    later: Annotated[bool, typer.Option("--later", help="Ask only: Dagster makes the list.")] = False,
    as_json: AsJson = False,
) -> None:
    """Write who is in a segment into a file; every attempt is logged."""
    from orchestration import segments
    from orchestration.exports import runner

    with segments.connect() as connection:
        done = runner.export_segment(
            connection, name, purpose, org, include_pii=include_pii, is_delta=delta, format_name=format_name, to=to,
            is_queued=later,
        )  # fmt: skip
    show(done, as_json, terminal().print_export)


@exports_app.command("list", epilog="Example: audience exports list --org north_hall")
def exports_list(
    org: Annotated[str | None, typer.Option(help="One org. Default: all.")] = None, as_json: AsJson = False
) -> None:
    """List exports with what became of them last, of the orgs that you may see."""
    from orchestration import segments
    from orchestration.exports import runner

    with segments.connect() as connection:
        found = runner.latest(connection, org)
    show(found, as_json, terminal().print_exports)


@exports_app.command("show", epilog="Example: audience exports show 7d3f0e52-4b0a-4a43-9c1e-0f6a3c1d2e5b")
def exports_show(export_id: ExportId, as_json: AsJson = False) -> None:
    """Show all that happened to an export."""
    from orchestration import segments
    from orchestration.exports import runner

    with segments.connect() as connection:
        found = runner.history(connection, export_id_of(export_id))
    show(found, as_json, terminal().print_export_history)


@exports_app.command("retry", epilog="Example: audience exports retry 7d3f0e52-4b0a-4a43-9c1e-0f6a3c1d2e5b")
def exports_retry(
    export_id: ExportId,
    to: Annotated[str | None, typer.Option(help="The URL, where the log keeps a part of it.")] = None,
    as_json: AsJson = False,
) -> None:
    """Deliver again what was not delivered, or ask anew for what failed."""
    from orchestration import segments
    from orchestration.exports import runner

    with segments.connect() as connection:
        done = runner.retry(connection, export_id_of(export_id), to)
    show(done, as_json, terminal().print_export)


@exports_app.command("acknowledge", epilog="Example: audience exports acknowledge 7d3f0e52-4b0a-4a43-9c1e-0f6a3c1d2e5b")
def exports_acknowledge(export_id: ExportId) -> None:
    """Say that an export was taken: later deltas begin there."""
    from orchestration import segments
    from orchestration.exports import runner

    with segments.connect() as connection:
        entry = runner.acknowledge(connection, export_id_of(export_id))
    print(f"Export {entry.export_id} of {entry.segment_name} of {entry.org_id} is acknowledged.")


@exports_app.command("standing", epilog="Example: audience exports standing --make")
def exports_standing(
    make: Annotated[bool, typer.Option("--make", help="Make those that this night does not have yet.")] = False,
    as_json: AsJson = False,
) -> None:
    """Show the exports that every night makes, with what became of each this night."""
    from orchestration import standing_exports

    with standing_exports.connect() as connection:
        night = standing_exports.night_of()
        found = (standing_exports.make if make else standing_exports.look)(connection, night)
    show(found, as_json, terminal().print_standing_exports)
    standing_exports.check(found)


@exports_app.command("recover", epilog="Example: audience exports recover")
def exports_recover() -> None:
    """Finish exports whose process was killed; each export does this first."""
    from orchestration import segments
    from orchestration.exports import runner

    with segments.connect() as connection:
        done = runner.recover(connection)
    for entry in done:
        print(f"{entry.export_id} of {entry.segment_name} of {entry.org_id}: {entry.outcome}")
    if not done:
        print("Every export has ended.")


def export_id_of(text: str) -> UUID:
    try:
        return UUID(text)
    except ValueError as error:
        raise UserError(f"{text!r} is no id of an export: give the one that audience exports list shows.") from error
