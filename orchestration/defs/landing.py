"""The landing tables as assets, and when something landed in them: collectors write them, not Dagster."""

import dagster as dg

from orchestration import database, night
from orchestration.defs.policies import OWNERS, documentation, source_freshness

DESCRIPTIONS = {
    "events": "Deliveries of events, as collectors and the loader wrote them. An event of this asset says that newer ones landed.",
    "events_removed": "What was deleted or corrected in the landing tables.",
    "retained_events": "Usable events that were received more than raw_events_retention_days ago, in a short form.",
    "rejected_rows": "Rows of files that could not become a row of events.",
    "user_agents": "Distinct user agents, parsed.",
}

landing_tables = [
    dg.AssetSpec(
        dg.AssetKey(["landing", name]),
        group_name="landing",
        kinds={"postgres"},
        owners=OWNERS,
        description=description,
        metadata=documentation("event_contract.md"),
        freshness_policy=source_freshness() if name == "events" else None,
    )
    for name, description in DESCRIPTIONS.items()
]


@dg.sensor(
    minimum_interval_seconds=300,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="Says that newer events landed, with the lag of the newest one.",
)
def landed_events(context: dg.SensorEvaluationContext) -> dg.SensorResult | dg.SkipReason:
    with database.connect() as connection:
        newest = night.newest_receipt(connection)
    if newest is None or newest.isoformat() <= (context.cursor or ""):
        return dg.SkipReason("Nothing newer has landed.")
    metadata = {
        "newest event": dg.MetadataValue.timestamp(newest),
        "lag of the newest event, minutes": night.lag_minutes(newest),
    }
    landed = dg.AssetMaterialization(dg.AssetKey(["landing", "events"]), metadata=metadata)
    return dg.SensorResult(asset_events=[landed], cursor=newest.isoformat())
