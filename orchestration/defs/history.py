"""Dagster's own history, which otherwise grows with every run: old runs are forgotten, with their events and logs."""

from datetime import UTC, datetime, timedelta

import dagster as dg

from orchestration.defs.hot_leads import UNFINISHED, hot_leads_job
from orchestration.settings import project_variables

ENDED = [status for status in dg.DagsterRunStatus if status not in UNFINISHED]
# Runs that are forgotten in one go; the rest follows the next day.
BATCH = 5_000


@dg.op
def delete_old_runs(context: dg.OpExecutionContext) -> None:
    """Deletes runs that ended long ago; those of hot leads, which are 288 a day, sooner."""
    variables = project_variables()
    days = {None: variables["run_history_days"], hot_leads_job.name: variables["hot_lead_run_history_days"]}
    counts = {name or "all": forget(context.instance, name, kept) for name, kept in days.items()}
    context.add_output_metadata({f"runs forgotten, {name}": count for name, count in counts.items()})


def forget(instance: dg.DagsterInstance, job_name: str | None, days: int) -> int:
    """Deletes ended runs of a job, by default of every job, that were made more than `days` ago; how many."""
    before = datetime.now(UTC) - timedelta(days=days)
    old = instance.get_run_records(
        dg.RunsFilter(job_name=job_name, statuses=ENDED, created_before=before), limit=BATCH, ascending=True
    )
    for record in old:
        run_id = record.dagster_run.run_id
        instance.compute_log_manager.delete_logs(prefix=[run_id])
        instance.delete_run(run_id)
    return len(old)


@dg.job(
    name="forget_old_runs", executor_def=dg.in_process_executor, description="Deletes Dagster's records of old runs."
)
def forget_job() -> None:
    delete_old_runs()


forget_schedule = dg.ScheduleDefinition(
    name="forget_old_runs",
    job=forget_job,
    cron_schedule="30 4 * * *",
    default_status=dg.DefaultScheduleStatus.RUNNING,
    description="Every day at 04:30 UTC.",
)
