"""`audience segments`: named filters of customers."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from orchestration.commands.output import AsJson, show, terminal
from orchestration.errors import CheckFailed, UserError

if TYPE_CHECKING:
    from orchestration.segments import Segment

segments_app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Segments: named filters of customers.")

SegmentName = Annotated[str, typer.Argument(metavar="NAME", help="Name of the segment.")]
Org = Annotated[str | None, typer.Option("--org", help="Its org; needed when several orgs have one of that name.")]
FilterFile = Annotated[Path | None, typer.Option("--filter", help="File of the filter's JSON; - reads standard input.")]


@segments_app.command("list", epilog="Example: audience segments list --org north_hall")
def segments_list(
    org: Annotated[str | None, typer.Option(help="Segments of one org.")] = None, as_json: AsJson = False
) -> None:
    """List segments with their members at the last materialization."""
    from orchestration import segments

    with segments.connect() as connection:
        found = segments.list_segments(connection, org)
    show(found, as_json, terminal().print_segments)


@segments_app.command("show", epilog="Example: audience segments show Champions --org north_hall")
def segments_show(name: SegmentName, org: Org = None, as_json: AsJson = False) -> None:
    """Show one segment and its filter."""
    from orchestration import segments

    with segments.connect() as connection:
        show(segments.find_segment(connection, name, org), as_json, terminal().print_segment)


@segments_app.command(
    "create", epilog='Example: audience segments create "Big spenders" --org north_hall --filter big_spenders.json'
)
def segments_create(
    name: SegmentName,
    org: Annotated[str, typer.Option(help="The org whose customers it lists.")],
    filter_file: FilterFile,
    description: Annotated[str, typer.Option(help="What it is for.")] = "",
    as_json: AsJson = False,
) -> None:
    """Store a new segment; its filter is the JSON that react-querybuilder exports."""
    from orchestration import segments

    with segments.connect() as connection:
        show(
            segments.create_segment(connection, name, org, _filter(filter_file), description),
            as_json,
            terminal().print_segment,
        )


@segments_app.command("update", epilog='Example: audience segments update "Big spenders" --filter big_spenders.json')
def segments_update(
    name: SegmentName,
    org: Org = None,
    filter_file: FilterFile = None,
    description: Annotated[str | None, typer.Option(help="What it is for.")] = None,
    as_json: AsJson = False,
) -> None:
    """Change the filter or the description of a stored segment; its members follow at the next materialization."""
    from orchestration import segments

    with segments.connect() as connection:
        document = _filter(filter_file) if filter_file else None
        show(segments.update_segment(connection, name, org, document, description), as_json, terminal().print_segment)


@segments_app.command("delete", epilog='Example: audience segments delete "Big spenders" --org north_hall')
def segments_delete(name: SegmentName, org: Org = None, as_json: AsJson = False) -> None:
    """Delete a stored segment, with the history of its members."""
    from orchestration import segments

    with segments.connect() as connection:
        deleted = segments.delete_segment(connection, name, org)
    show(deleted, as_json, _print_deleted)


def _print_deleted(deleted: Segment) -> None:
    print(f"Deleted segment {deleted.segment_name} of {deleted.org_id}, version {deleted.filter_version}.")


@segments_app.command("preview", epilog="Example: audience segments preview --org north_hall --filter draft.json")
def segments_preview(
    name: Annotated[
        str | None, typer.Argument(metavar="[NAME]", help="A segment, or leave it out for a filter.")
    ] = None,
    org: Org = None,
    filter_file: FilterFile = None,
    as_json: AsJson = False,
) -> None:
    """Count whom a segment, or a filter that is not stored, lists now; nothing is kept."""
    from orchestration import segments

    if (name is None) == (filter_file is None) or (filter_file and not org):
        raise UserError("Give the name of a segment, or --filter with --org.")
    with segments.connect() as connection:
        if name is None:
            document = _filter(filter_file)
        else:
            segment = segments.find_segment(connection, name, org)
            document, org = segment.filter, segment.org_id
        found = segments.preview(connection, document, org)
    show(found, as_json, terminal().print_preview)


@segments_app.command("materialize", epilog="Example: audience segments materialize Champions --org north_hall")
def segments_materialize(
    name: Annotated[str | None, typer.Argument(metavar="[NAME]", help="One segment. Default: all.")] = None,
    org: Org = None,
    as_json: AsJson = False,
) -> None:
    """Observe who is in the segments now, and keep who entered and who left; audience build does it for all."""
    from orchestration import segments

    with segments.connect() as connection:
        done = segments.materialize(connection, name, org)
    show(done, as_json, terminal().print_materializations)
    segments.check(done)


@segments_app.command("sync", epilog="Example: audience segments sync --plan")
def segments_sync(
    plan: Annotated[
        bool, typer.Option("--plan", help="Say what would change, and change nothing; 1 if anything would.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Make the declared segments those of the files in segments/."""
    from orchestration import segments

    with segments.connect() as connection:
        changes = segments.sync(connection, plan=plan)
    show(changes, as_json, partial(terminal().print_changes, is_plan=plan))
    if plan and changes:
        raise CheckFailed(f"{len(changes):,} segments differ from the files: run audience segments sync.")


def _filter(file: Path) -> Any:
    """The document in a file of a filter, of which no more is read than may be valid."""
    from orchestration.filters import parse_filter
    from orchestration.people import read_catalog

    limits = read_catalog().limits
    try:
        with sys.stdin.buffer if str(file) == "-" else file.open("rb") as source:
            text = source.read(limits.bytes + 1)
    except OSError as error:
        raise UserError(
            f"--filter {file} cannot be read ({error.strerror}): correct the name, or give - for standard input."
        ) from error
    return parse_filter(text, limits)
