"""The segments after the marts: who is in each is observed, and what became of it is shown."""

from collections.abc import Iterable, Sequence

import dagster as dg

from orchestration import segments
from orchestration.defs.policies import OWNERS, documentation
from orchestration.segments import Materialization

COLUMNS = ["org", "segment", "members", "entered", "left", "not materialized because"]


def markdown(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A table as Markdown; nothing in a cell is taken for a part of it."""
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(_cell(value) for value in line)} |" for line in lines)


def _cell(value: object) -> str:
    return "" if value is None else str(value).replace("|", "\\|").replace("\n", " ")


def _row(one: Materialization) -> tuple[object, ...]:
    return one.org_id, one.segment_name, one.members_count, one.entered_count, one.left_count, one.error


@dg.asset(
    deps=[dg.AssetKey("audience_customers")],
    group_name="segments",
    kinds={"postgres"},
    owners=OWNERS,
    description="Who is in each segment, with who entered and who left since the materialization before: "
    "audience_state.segment_memberships. A segment whose filter is not valid any more keeps its members.",
    metadata=documentation("segments.md"),
)
def segment_memberships(context: dg.AssetExecutionContext) -> None:
    """Materializes every segment. Raises CheckFailed when one could not be; the others are materialized."""
    with segments.connect() as connection:
        done = segments.materialize(connection)
    context.add_output_metadata(
        {
            "segments": len(done),
            "members": sum(one.members_count or 0 for one in done),
            "entered": sum(one.entered_count for one in done),
            "left": sum(one.left_count for one in done),
            "by segment": dg.MetadataValue.md(markdown(COLUMNS, map(_row, done))),
        }
    )
    segments.check(done)
