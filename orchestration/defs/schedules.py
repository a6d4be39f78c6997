"""The nightly job: everything, at 02:00 in a configured zone."""

import os

import dagster as dg

from orchestration.defs.dbt_graph import audience_dbt_assets
from orchestration.defs.policies import build_tags
from orchestration.defs.segments import segments_and_standing_exports

nightly_job = dg.define_asset_job(
    "nightly",
    selection=dg.AssetSelection.assets(audience_dbt_assets, segments_and_standing_exports),
    description="The whole dbt build, in dependency order, then the segments and the standing exports.",
    tags=build_tags(),
)

nightly_schedule = dg.ScheduleDefinition(
    name="nightly",
    job=nightly_job,
    cron_schedule="0 2 * * *",
    execution_timezone=os.environ.get("AUDIENCE_SCHEDULE_TIME_ZONE", "UTC"),
    default_status=dg.DefaultScheduleStatus.RUNNING,
    description="Every night at 02:00 of AUDIENCE_SCHEDULE_TIME_ZONE (default UTC).",
)
