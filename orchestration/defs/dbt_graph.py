"""The dbt project as Dagster assets: one build of everything selected, under the build lock."""

import os
from collections.abc import Iterator, Mapping
from typing import Any

import dagster as dg
import psycopg
from dagster_dbt import DagsterDbtTranslator, DagsterDbtTranslatorSettings, DbtCliResource, DbtProject, dbt_assets
from dagster_dbt.core.dbt_cli_event import DbtCliEventMessage
from dagster_dbt.errors import DagsterDbtCliRuntimeError
from pydantic import Field

from orchestration import alerts, database, night
from orchestration.build import LOCK_HELD, NodeResult, build_lock, parse_landed_user_agents
from orchestration.dbt import executable
from orchestration.defs.policies import BUILD_RETRIES, OWNERS, documentation, mart_freshness
from orchestration.defs.segments import markdown
from orchestration.errors import UserError
from orchestration.settings import manifest_path, project_dir, project_variables, target_folder

A_RUN_FAILED = "operations.md#a-run-failed"
# What is written about each group.
PAGES = {"marts": "metrics.md", "contacts": "security.md", "seeds": "operations.md", "staging": "event_contract.md"}

dbt_project = DbtProject(
    project_dir=project_dir(), profiles_dir=project_dir() / "profiles", target_path=target_folder()
)
dbt_resource = DbtCliResource(project_dir=dbt_project, dbt_executable=executable())


class BuildConfig(dg.Config):
    """What a build does beside following what changed."""

    full_refresh: bool = Field(default=False, description="Recompute every table; wants confirm.")
    confirm: str = Field(default="", description="The name of the schema, without which a full refresh is refused.")


def group_of(properties: Mapping[str, Any]) -> str:
    """The asset group of a dbt node: its folder under models/, or seeds."""
    folders = properties["fqn"][1:-1]
    return "seeds" if properties["resource_type"] == "seed" else folders[0] if folders else "models"


class AudienceTranslator(DagsterDbtTranslator):
    """Asset specs from the manifest: groups by folder, PostgreSQL as the kind, freshness of what is read. Descriptions are those
    of the YAML alone: the SQL is long, and says an operator nothing."""

    def get_description(self, dbt_resource_props: Mapping[str, Any]) -> str:
        return dbt_resource_props["description"]

    def get_asset_check_spec(
        self, asset_spec: dg.AssetSpec, manifest: Mapping[str, Any], unique_id: str, project: DbtProject | None
    ) -> dg.AssetCheckSpec | None:
        spec = super().get_asset_check_spec(asset_spec, manifest, unique_id, project)
        if spec is None:
            return None
        description = self.get_resource_props(manifest, unique_id)["description"]
        return spec._replace(description=description, metadata={**spec.metadata, **documentation(A_RUN_FAILED)})

    def get_asset_spec(self, manifest: Mapping[str, Any], unique_id: str, project: DbtProject | None) -> dg.AssetSpec:
        spec = super().get_asset_spec(manifest, unique_id, project)
        if unique_id.startswith("source."):
            return spec
        properties = self.get_resource_props(manifest, unique_id)
        group = group_of(properties)
        is_table = properties["config"].get("materialized") == "maintained"
        return spec.replace_attributes(
            group_name=group,
            kinds={"dbt", "postgres"},
            owners=OWNERS,
            metadata={**spec.metadata, **documentation(PAGES.get(group, "operations.md"))},
            freshness_policy=mart_freshness() if group == "marts" and is_table else None,
        )


translator = AudienceTranslator(settings=DagsterDbtTranslatorSettings(enable_source_tests_as_checks=True))

build = dg.AssetSpec(
    "build",
    group_name="operations",
    kinds={"dbt"},
    owners=OWNERS,
    description="Each whole or partial build that succeeded: what it wrote, how long it took and what took longest.",
    metadata=documentation("operations.md#every-night"),
)


@dbt_assets(
    manifest=manifest_path(), dagster_dbt_translator=translator, name="audience_dbt_assets", retry_policy=BUILD_RETRIES
)
def audience_dbt_assets(context: dg.AssetExecutionContext, dbt: DbtCliResource, config: BuildConfig) -> Iterator[Any]:
    """Builds the selected models, seeds and tests, after a build that is running. Each asset carries the rows that it wrote
    or removed; what fails raises Failure with names alone, because a message of the database may quote rows."""
    arguments = ["build", "--exclude-resource-type", "unit_test"]
    if config.full_refresh:
        _refuse_unconfirmed(config.confirm)
        arguments += ["--full-refresh"]
    os.environ.update(database.pg_variables())
    variables = project_variables()
    nodes: list[NodeResult] = []
    with build_lock(wait_seconds=variables["build_wait_minutes"] * 60) as lock:
        parse_landed_user_agents()
        os.environ[LOCK_HELD] = "held"
        try:
            # one folder for all: one build at a time writes it, and it does not grow with the nights
            invocation = dbt.cli(arguments, context=context, target_path=target_folder() / "dagster")
            for event in invocation.stream_raw_events():
                yield from _asset_events(event, context, lock, nodes)
        except DagsterDbtCliRuntimeError as error:
            raise _failure(nodes) from error
        finally:
            os.environ.pop(LOCK_HELD)
        yield dg.AssetMaterialization("build", metadata=_metadata(nodes, lock))


def _refuse_unconfirmed(confirm: str) -> None:
    try:
        night.refuse_unconfirmed(confirm)
    except UserError as error:
        raise dg.Failure(str(error), allow_retries=False) from error


def _asset_events(
    event: DbtCliEventMessage, context: dg.AssetExecutionContext, lock: psycopg.Connection, nodes: list[NodeResult]
) -> Iterator[Any]:
    """Dagster's events of one line of dbt's log; its node is added to `nodes`."""
    node = night.node_of(event.raw_event)
    if node:
        nodes.append(node)
    for found in event.to_default_asset_events(
        manifest=manifest_path(), dagster_dbt_translator=translator, context=context, project=dbt_project
    ):
        if isinstance(found, dg.Output) and node:
            rows = night.rows_about(lock, night.relation_of(event.raw_event))
            numbers = {"rows changed": node.rows, "rows, about": rows, "seconds": node.seconds}
            known = {name: number for name, number in numbers.items() if number is not None}
            yield found.with_metadata({**found.metadata, **known})
        else:
            yield found


def _failure(nodes: list[NodeResult]) -> dg.Failure:
    names = night.failed_names(nodes)
    return dg.Failure(
        f"The build failed: {', '.join(names) or 'dbt ended without a result'}. What dbt says is in stdout of the run; "
        f"what to do: {alerts.documentation(A_RUN_FAILED)}",
        metadata={"failed": ", ".join(names), **documentation(A_RUN_FAILED)},
        allow_retries=night.is_worth_a_retry(nodes),
    )


def _metadata(nodes: list[NodeResult], lock: psycopg.Connection) -> dict[str, Any]:
    models = [node for node in nodes if node.kind == "model"]
    slowest = [(node.name, round(node.seconds, 2), node.rows) for node in night.slowest(nodes)]
    newest = night.newest_receipt(lock)
    return {
        "models changed": sum(bool(node.rows) for node in models),
        "rows changed": sum(node.rows or 0 for node in models),
        "seconds in models": round(sum(node.seconds for node in models), 2),
        "tests": sum(node.kind == "test" for node in nodes),
        "slowest models": dg.MetadataValue.md(markdown(["model", "seconds", "rows changed"], slowest)),
        **night.deliveries(lock),
        **({"lag of the newest event, minutes": night.lag_minutes(newest)} if newest else {}),
    }
