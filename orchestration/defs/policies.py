"""How runs are limited and retried, how fresh assets have to be, whose they are and where to read about them. The numbers are
variables of the project."""

from __future__ import annotations

from datetime import timedelta

import dagster as dg

from orchestration import alerts
from orchestration.settings import project_dir, project_variables

OWNERS = ["team:audience"]
# deploy/dagster.yaml lets one run with this tag work at a time. What holds in any case is the database's lock.
BUILD_TAG = "audience/build"
# An attempt that failed is repeated after one minute, then two. It goes on where the last one ended, because each model is
# a transaction.
BUILD_RETRIES = dg.RetryPolicy(max_retries=2, delay=60, backoff=dg.Backoff.EXPONENTIAL)


def build_tags() -> dict[str, str]:
    """Tags of a run that builds. A run whose process died is started again, twice at most."""
    variables = project_variables()
    return {
        BUILD_TAG: "yes",
        "dagster/max_retries": "2",
        # what failed by itself was retried within the run
        "dagster/retry_on_asset_or_op_failure": "false",
        "dagster/max_runtime": str(variables["build_max_hours"] * 3600),
    }


def documentation(page: str) -> dict[str, dg.MetadataValue]:
    """Metadata that lead to a page of the documentation: a link where it is published, else the file's path."""
    place = alerts.documentation(page)
    if "://" in place:
        return {"documentation": dg.MetadataValue.url(place)}
    return {"documentation": dg.MetadataValue.path(str(project_dir() / place))}


def mart_freshness() -> dg.FreshnessPolicy:
    """Built every night."""
    variables = project_variables()
    return _window(variables["build_late_after_hours"], variables["build_missing_after_hours"])


def source_freshness() -> dg.FreshnessPolicy:
    """Events of every day."""
    variables = project_variables()
    return _window(variables["events_late_after_hours"], variables["events_missing_after_hours"])


def _window(late: int, missing: int) -> dg.FreshnessPolicy:
    return dg.FreshnessPolicy.time_window(fail_window=timedelta(hours=missing), warn_window=timedelta(hours=late))
