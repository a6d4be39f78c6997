"""Everything Dagster sees: the dbt graph as assets, its tests as checks, segments and exports, the nightly job and its schedule."""

import dagster as dg

from orchestration.defs.dbt_graph import audience_dbt_assets, dbt_resource
from orchestration.defs.exports import export_job, requested_exports, segment_export
from orchestration.defs.hot_leads import hot_leads, hot_leads_job, hot_leads_schedule
from orchestration.defs.schedules import nightly_job, nightly_schedule
from orchestration.defs.segments import segment_memberships

defs = dg.Definitions(
    assets=[audience_dbt_assets, segment_memberships, segment_export, hot_leads],
    jobs=[nightly_job, export_job, hot_leads_job],
    schedules=[nightly_schedule, hot_leads_schedule],
    sensors=[requested_exports],
    resources={"dbt": dbt_resource},
    executor=dg.in_process_executor,
)
