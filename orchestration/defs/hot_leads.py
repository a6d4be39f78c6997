"""Hot leads every five minutes: each is alerted once."""

import dagster as dg

from orchestration.defs.policies import OWNERS, documentation
from orchestration.defs.segments import markdown
from orchestration.hot_leads import alert_hot_leads

UNFINISHED = [
    dg.DagsterRunStatus.QUEUED, dg.DagsterRunStatus.NOT_STARTED, dg.DagsterRunStatus.STARTING,
    dg.DagsterRunStatus.STARTED, dg.DagsterRunStatus.CANCELING,
]  # fmt: skip


@dg.asset(
    deps=[dg.AssetKey("audience_customers")],
    group_name="leads",
    kinds={"postgres"},
    owners=OWNERS,
    description="Who may be about to buy now, live: get_high_intent_visitors of every org. Who is new is alerted, once within "
    "hot_lead_repeat_hours: audience_state.hot_lead_alerts.",
    metadata=documentation("operations.md#hot-leads"),
)
def hot_leads(context: dg.AssetExecutionContext) -> None:
    """Alerts the leads that are new. Raises UserError when the alert did not arrive, or may not have."""
    snapshot = alert_hot_leads()
    rows = [(org.org_id, org.leads_count, len(org.alerted)) for org in snapshot.orgs]
    context.add_output_metadata(
        {
            "leads": snapshot.leads_count,
            "alerted": snapshot.alerted_count,
            "not known whether alerted": snapshot.unsure_count,
            "by org": dg.MetadataValue.md(markdown(["org", "leads", "alerted"], rows)),
        }
    )


hot_leads_job = dg.define_asset_job(
    "hot_leads_snapshot", selection=[hot_leads], description="The hot leads of this moment."
)


@dg.schedule(
    job=hot_leads_job,
    cron_schedule="*/5 * * * *",
    default_status=dg.DefaultScheduleStatus.RUNNING,
    description="Every five minutes, unless a snapshot is still waiting or running.",
)
def hot_leads_schedule(context: dg.ScheduleEvaluationContext) -> dg.RunRequest | dg.SkipReason:
    unfinished = context.instance.get_runs(dg.RunsFilter(job_name=hot_leads_job.name, statuses=UNFINISHED), limit=1)
    if unfinished:
        return dg.SkipReason(f"Run {unfinished[0].run_id} has not ended yet.")
    return dg.RunRequest()
