"""Tells the operator what went wrong: runs that failed, and what the doctor finds wrong between them."""

import json

import dagster as dg

from orchestration import alerts, watch
from orchestration.doctor import examine


@dg.run_failure_sensor(
    minimum_interval_seconds=30,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="An alert for each run that failed, or whose process died: docs/operations.md.",
)
def failed_runs(context: dg.RunFailureSensorContext) -> None:
    """Raises UserError when the alert did not arrive; it is in the log of alerts."""
    alerts.send("run failed", failure_text(context), "a-run-failed")


def failure_text(context: dg.RunFailureSensorContext) -> str:
    """Which run and step failed. Names alone: an error may quote rows."""
    run = context.dagster_run
    lines = [f"Run {run.run_id} of {run.job_name} failed."]
    for event in context.get_step_failure_events():
        failure = event.step_failure_data.user_failure_data
        failed = failure.metadata.get("failed") if failure else None
        lines.append(f"Step {event.step_key}{f': {failed.value}' if failed and failed.value else ''}.")
    if len(lines) == 1:
        lines.append("No step says why: its process may have died, or its time was up.")
    if run.tags.get("dagster/will_retry") == "true":
        lines.append("It is started again.")
    return "\n".join(lines)


@dg.sensor(
    minimum_interval_seconds=300,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="An alert when a check of audience doctor turns wrong, a day without events or a night without a build "
    "among them, and when it is well again.",
)
def doctors_findings(context: dg.SensorEvaluationContext) -> dg.SkipReason:
    before = json.loads(context.cursor or "{}")
    after, text = watch.news(before, examine())
    if text:
        alerts.send("doctor", text, "the-doctor-found-something")
    # after the alert: killed in between, it is sent again, which is better than never
    context.update_cursor(json.dumps(after))
    return dg.SkipReason(text or "Nothing has changed.")
