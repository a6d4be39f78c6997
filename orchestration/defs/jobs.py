"""Jobs that somebody starts when they are needed: a full refresh, a backfill, an erasure, a check of the marts against
the events."""

import dagster as dg
from pydantic import Field

from orchestration import erasure_requests, night
from orchestration.defs.dbt_graph import audience_dbt_assets
from orchestration.defs.policies import build_tags
from orchestration.defs.segments import SEGMENTS, markdown
from orchestration.errors import CheckFailed, UserError
from orchestration.verify import VerifyReport, verify

full_refresh_job = dg.define_asset_job(
    "full_refresh",
    selection=dg.AssetSelection.assets(audience_dbt_assets) | dg.AssetSelection.assets(SEGMENTS),
    config=dg.RunConfig(
        ops={"audience_dbt_assets": {"config": {"full_refresh": True, "confirm": "write the name of the schema here"}}}
    ),
    description="Recomputes every table and writes what differs. Set confirm to the name of the schema.",
    tags=build_tags(),
)


# What the launchpad shows stands for what is to be written there: a run with it is refused with a sentence.
class BackfillConfig(dg.Config):
    folder: str = Field(description="Of the files to load, on the machine that Dagster runs on.")
    first_day: str = Field(description="YYYY-MM-DD. Some days of the period are verified.")
    last_day: str = Field(description="YYYY-MM-DD.")


@dg.op
def load_build_and_verify(context: dg.OpExecutionContext, config: BackfillConfig) -> None:
    """Raises UserError for a folder or days that are none, CheckFailed when the build failed, Failure when cells differ."""
    loaded, built, verified = night.backfill(config.folder, config.first_day, config.last_day)
    context.add_output_metadata(
        {
            "received": loaded.received,
            "accepted": loaded.accepted,
            "rejected": loaded.rejected,
            "duplicate": loaded.duplicate,
            "models changed": len(built.changed),
            "rows changed": sum(node.rows or 0 for node in built.changed),
            **_verified(verified),
        }
    )
    _refuse_differences(verified)


@dg.job(
    name="backfill", tags=build_tags(), executor_def=dg.in_process_executor,
    config=dg.RunConfig(
        {"load_build_and_verify": BackfillConfig(folder="/the/folder", first_day="YYYY-MM-DD", last_day="YYYY-MM-DD")}
    ),
    description="Loads the files of a folder, builds, and verifies some days of the period. Loading the same files again "
    "changes nothing.",
)  # fmt: skip
def backfill_job() -> None:
    load_build_and_verify()


class EraseConfig(dg.Config):
    """Nobody is named here: Dagster keeps it."""

    request: str = Field(description="The id that audience erase --later has printed. No name, address or number.")
    confirm: str = Field(description="The name of the schema, without which nothing is erased.")


@dg.op
def erase_people(context: dg.OpExecutionContext, config: EraseConfig) -> None:
    """Raises Failure, which names nobody."""
    try:
        receipt = erasure_requests.erase_requested(config.request, config.confirm)
    except (UserError, CheckFailed) as error:
        raise dg.Failure(str(error), allow_retries=False) from None
    context.add_output_metadata(
        {
            "receipt": receipt.request_id or "",
            "org": receipt.org_id,
            "rows": sum(receipt.rows_by_table.values()),
            "files of exports removed": len(receipt.files),
            "by table": dg.MetadataValue.md(markdown(["table", "rows"], sorted(receipt.rows_by_table.items()))),
            "lists that went out": dg.MetadataValue.md(
                markdown(
                    ["at", "segment", "destination", "export id"],
                    [(one.logged_at, one.segment_name, one.destination, one.export_id) for one in receipt.deliveries],
                )
            ),
        }
    )


@dg.job(
    name="erase", tags=build_tags(), executor_def=dg.in_process_executor,
    config=dg.RunConfig(
        {"erase_people": EraseConfig(request="write the id of the request here", confirm="write the name of the schema here")}
    ),
    description="Erases whom a request of audience erase --later names, and builds without him.",
)  # fmt: skip
def erase_job() -> None:
    erase_people()


class VerifyConfig(dg.Config):
    """orgs, days (YYYY-MM-DD): what to check; empty: some of them, chosen by chance."""

    orgs: list[str] = Field(default_factory=list)
    days: list[str] = Field(default_factory=list)


@dg.op
def compare_with_the_events(context: dg.OpExecutionContext, config: VerifyConfig) -> None:
    """Raises Failure when cells differ."""
    days = [night.sampled_days(day, day)[0] for day in config.days]
    report = verify(orgs=config.orgs, days=days)
    context.add_output_metadata(_verified(report))
    _refuse_differences(report)


@dg.job(
    name="verify", executor_def=dg.in_process_executor, description="audience verify: the tables against the events."
)
def verify_job() -> None:
    compare_with_the_events()


def _verified(report: VerifyReport) -> dict[str, dg.MetadataValue]:
    rows = [(table.table, table.rows, table.differing) for table in report.tables if table.rows]
    return {
        "rows verified": dg.MetadataValue.int(report.rows),
        "cells or rows that differ": dg.MetadataValue.int(report.differing),
        "by table": dg.MetadataValue.md(markdown(["table", "rows", "differing"], rows)),
    }


def _refuse_differences(report: VerifyReport) -> None:
    if report.differing:
        tables = ", ".join(table.table for table in report.tables if table.differing)
        raise dg.Failure(
            f"{report.differing:,} cells or rows differ from what the events say: {tables}.",
            metadata={"failed": tables}, allow_retries=False,
        )  # fmt: skip
