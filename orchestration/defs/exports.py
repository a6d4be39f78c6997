"""Exports that wait in the queue: each is made once, with what an operator may see of it."""

from collections.abc import Iterator
from uuid import UUID

import dagster as dg

from orchestration import segments
from orchestration.defs.policies import OWNERS, documentation
from orchestration.defs.segments import SEGMENTS, markdown
from orchestration.exports import runner


class RequestedExport(dg.Config):
    """export_id: of a request in segment_export_log."""

    export_id: str


@dg.asset(
    deps=[SEGMENTS],
    group_name="exports",
    kinds={"postgres"},
    owners=OWNERS,
    description="A list of a segment's people, asked for by `audience segments export --later` or in SQL, made and delivered.",
    metadata=documentation("exports.md#later"),
)
def segment_export(context: dg.AssetExecutionContext, config: RequestedExport) -> None:
    """Makes one export. Raises UserError when it was made already, and for what the log then says."""
    with segments.connect() as connection:
        entry = runner.run_requested(connection, UUID(config.export_id)).entry
        stages = runner.stages(connection, entry)
    context.add_output_metadata(
        {
            "segment": f"{entry.segment_name} of {entry.org_id}",
            "purpose": entry.purpose or "",
            "personal data": entry.include_pii,
            "rows": entry.rows_count,
            "entered": entry.entered_count,
            "left": entry.left_count,
            "suppressed": entry.suppressed_count,
            "members by lifecycle stage": dg.MetadataValue.md(markdown(["stage", "members"], stages)),
            "destination": entry.destination,
            "sha256": entry.file_sha256,
            "columns": ", ".join(entry.columns),
            # kept outside of the database, so that a log that is written anew is found
            "log": f"{entry.log_number} {entry.row_hash}",
        }
    )


export_job = dg.define_asset_job("export", selection=[segment_export], description="One export that was asked for.")


@dg.sensor(
    job=export_job,
    minimum_interval_seconds=30,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="Starts a run for each export in the queue, once.",
)
def requested_exports(context: dg.SensorEvaluationContext) -> Iterator[dg.RunRequest]:
    with segments.connect() as connection:
        waiting = runner.requested(connection)
    for entry in waiting:
        name = str(entry.export_id)
        yield dg.RunRequest(run_key=name, run_config=dg.RunConfig({"segment_export": RequestedExport(export_id=name)}))
