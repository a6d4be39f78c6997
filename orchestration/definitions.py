"""Everything Dagster sees: the dbt graph as assets, its tests as checks, segments and exports, what runs when and who is told."""

import dagster as dg

from orchestration.defs.alerts import doctors_findings, failed_runs
from orchestration.defs.dbt_graph import audience_dbt_assets, build, dbt_resource
from orchestration.defs.exports import export_job, requested_exports, segment_export
from orchestration.defs.history import forget_job, forget_schedule
from orchestration.defs.hot_leads import hot_leads, hot_leads_job, hot_leads_schedule
from orchestration.defs.jobs import backfill_job, erase_job, full_refresh_job, verify_job
from orchestration.defs.landing import landed_events, landing_tables
from orchestration.defs.schedules import nightly_job, nightly_schedule
from orchestration.defs.segments import segments_and_standing_exports

defs = dg.Definitions(
    assets=[*landing_tables, audience_dbt_assets, build, segments_and_standing_exports, segment_export, hot_leads],
    jobs=[nightly_job, export_job, hot_leads_job, full_refresh_job, backfill_job, erase_job, verify_job, forget_job],
    schedules=[nightly_schedule, hot_leads_schedule, forget_schedule],
    sensors=[requested_exports, landed_events, failed_runs, doctors_findings],
    resources={"dbt": dbt_resource},
    executor=dg.in_process_executor,
)
