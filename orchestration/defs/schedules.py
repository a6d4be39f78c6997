"""The nightly job: everything, at 02:00 in a configured zone."""

import os

import dagster as dg

from orchestration.defs.dbt_graph import audience_dbt_assets
from orchestration.defs.policies import build_tags
from orchestration.defs.segments import segment_memberships

nightly_job = dg.define_asset_job(
    "nightly",
    selection=dg.AssetSelection.assets(audience_dbt_assets, segment_memberships),
    description="The whole dbt build, in dependency order, then the segments.",
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
