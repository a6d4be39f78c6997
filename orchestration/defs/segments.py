"""The segments after the marts, and the exports of every night after them: what became of each is shown."""

from collections.abc import Iterable, Iterator, Sequence
from datetime import date

import dagster as dg
import psycopg

from orchestration import segments, standing_exports
from orchestration.defs.policies import OWNERS, documentation
from orchestration.rights import erasure
from orchestration.segments import Materialization
from orchestration.standing_exports import Made

SEGMENTS, EXPORTS = dg.AssetKey("segment_memberships"), dg.AssetKey("standing_exports")
COLUMNS = ["org", "segment", "members", "entered", "left", "not materialized because"]
EXPORT_COLUMNS = [
    "org",
    "export",
    "segment",
    "outcome",
    "rows",
    "suppressed",
    "destination",
    "export id",
    "not made because",
]


def markdown(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A table as Markdown; nothing in a cell is taken for a part of it."""
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(_cell(value) for value in line)} |" for line in lines)


def _cell(value: object) -> str:
    return "" if value is None else str(value).replace("|", "\\|").replace("\n", " ")


def _row(one: Materialization) -> tuple[object, ...]:
    return one.org_id, one.segment_name, one.members_count, one.entered_count, one.left_count, one.error


def _export_row(one: Made) -> tuple[object, ...]:
    entry = one.entry
    said = (
        (entry.outcome, entry.rows_count, entry.suppressed_count, entry.destination or "exports")
        if entry
        else (None,) * 4
    )
    return one.org_id, one.export_name, one.segment_name, *said, one.export_id, one.error


@dg.multi_asset(
    name="segments_and_standing_exports",
    can_subset=True,
    specs=[
        dg.AssetSpec(
            SEGMENTS,
            deps=[dg.AssetKey("audience_customers")],
            group_name="segments",
            kinds={"postgres"},
            owners=OWNERS,
            description="Who is in each segment, with who entered and who left since the materialization before: "
            "audience_state.segment_memberships. A segment whose filter is not valid any more keeps its members.",
            metadata=documentation("segments.md"),
        ),
        dg.AssetSpec(
            EXPORTS,
            deps=[SEGMENTS],
            group_name="exports",
            kinds={"postgres"},
            owners=OWNERS,
            description="The lists that every night makes, declared in standing_exports/: each once a night, also when the run is "
            "started again. One that was refused or failed is tried anew then.",
            metadata=documentation("exports.md#every-night"),
        ),
    ],
)
def segments_and_standing_exports(context: dg.AssetExecutionContext) -> Iterator[dg.MaterializeResult]:
    """Materializes every segment, then makes the standing exports: one step, in which what fails stops nothing else.

    Raises Failure at its end, by the names of what failed.
    """
    failed: dict[str, str] = {}
    with standing_exports.connect() as connection:
        if SEGMENTS in context.selected_asset_keys:
            yield _materialize(connection, failed)
        if EXPORTS in context.selected_asset_keys:
            yield _export(connection, _night(context), failed)
    if failed:
        raise dg.Failure(
            "The other segments and exports are done. " + " ".join(f"{name}: {why}" for name, why in failed.items()),
            metadata={"failed": ", ".join(failed), **documentation("operations.md#a-run-failed")},
            allow_retries=False,
        )


def _materialize(connection: psycopg.Connection, failed: dict[str, str]) -> dg.MaterializeResult:
    erased, not_followed = erasure.finish_followed(connection)  # those that admins asked for since the last night
    done = segments.materialize(connection)
    failed |= {f"segment {one.segment_name} of {one.org_id}": one.error for one in done if one.error}
    return dg.MaterializeResult(
        asset_key=SEGMENTS,
        metadata={
            "segments": len(done),
            "members": sum(one.members_count or 0 for one in done),
            "entered": sum(one.entered_count for one in done),
            "left": sum(one.left_count for one in done),
            "erasures finished": len(erased),
            # of people who were erased while the build ran: the next one follows
            "erasures open": len(not_followed),
            "by segment": dg.MetadataValue.md(markdown(COLUMNS, map(_row, done))),
        },
    )


def _export(connection: psycopg.Connection, night: date, failed: dict[str, str]) -> dg.MaterializeResult:
    done = standing_exports.make(connection, night)
    failed |= {f"export {one.export_name} of {one.org_id or 'no org'}": one.error for one in done if one.error}
    return dg.MaterializeResult(
        asset_key=EXPORTS,
        metadata={
            "night": str(night),
            "exports": len(done),
            "not made": sum(bool(one.error) for one in done),
            "rows": sum(one.entry.rows_count or 0 for one in done if one.entry),
            "by export": dg.MetadataValue.md(markdown(EXPORT_COLUMNS, map(_export_row, done))),
        },
    )


def _night(context: dg.AssetExecutionContext) -> date:
    """The night of a run: that of the first one, if this one goes on with it."""
    instance, run = context.instance, context.run
    record = instance.get_run_record_by_id(run.root_run_id or run.run_id) or instance.get_run_record_by_id(run.run_id)
    if record is None:
        raise dg.Failure(f"Run {run.run_id} is not in Dagster's storage: start it again.", allow_retries=False)
    return standing_exports.night_of(record.create_timestamp)
