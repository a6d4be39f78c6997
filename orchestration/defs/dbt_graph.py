"""The dbt project as Dagster assets: one build of everything selected, under the build lock."""

import os
from collections.abc import Iterator, Mapping
from typing import Any

import dagster as dg
from dagster_dbt import DagsterDbtTranslator, DbtCliResource, DbtProject, dbt_assets

from orchestration import database
from orchestration.build import LOCK_HELD, build_lock, parse_landed_user_agents
from orchestration.dbt import executable
from orchestration.settings import manifest_path, project_dir, target_folder

dbt_project = DbtProject(
    project_dir=project_dir(), profiles_dir=project_dir() / "profiles", target_path=target_folder()
)
dbt_resource = DbtCliResource(project_dir=dbt_project, dbt_executable=executable())


def group_of(properties: Mapping[str, Any]) -> str:
    """The asset group of a dbt node: its folder under models/, or seeds."""
    folders = properties["fqn"][1:-1]
    return "seeds" if properties["resource_type"] == "seed" else folders[0] if folders else "models"


class AudienceTranslator(DagsterDbtTranslator):
    """Asset specs from the manifest: groups by folder, PostgreSQL as the kind."""

    def get_asset_spec(self, manifest: Mapping[str, Any], unique_id: str, project: DbtProject | None) -> dg.AssetSpec:
        spec = super().get_asset_spec(manifest, unique_id, project)
        if unique_id.startswith("source."):
            return spec
        return spec.replace_attributes(
            group_name=group_of(self.get_resource_props(manifest, unique_id)), kinds={"dbt", "postgres"}
        )


@dbt_assets(manifest=manifest_path(), dagster_dbt_translator=AudienceTranslator(), name="audience_dbt_assets")
def audience_dbt_assets(context: dg.AssetExecutionContext, dbt: DbtCliResource) -> Iterator[Any]:
    """Builds the selected models, seeds and tests; each asset carries the rows that it wrote or removed."""
    os.environ.update(database.pg_variables())
    with build_lock():
        parse_landed_user_agents()
        os.environ[LOCK_HELD] = "held"
        try:
            invocation = dbt.cli(["build", "--exclude-resource-type", "unit_test"], context=context)
            yield from invocation.stream()
        finally:
            os.environ.pop(LOCK_HELD)
