"""The rules of the house, read from the files: no database, no dbt."""

import re
from pathlib import Path

import pytest
import yaml

from orchestration.exports.formats import FORMATS
from orchestration.filters import OPERATORS
from orchestration.people import read_catalog

PROJECT = Path(__file__).resolve().parents[2]
LONGEST_MODEL = 150
LAYERS = ("staging", "intermediate", "marts", "contacts", "state")

# What a layer may read. Contacts stand apart: personal data goes from the events into them and nowhere else.
MAY_READ = {
    "staging": {"staging"},
    "intermediate": {"staging", "intermediate"},
    "marts": {"intermediate", "marts"},
    "contacts": {"staging", "intermediate", "contacts"},
    "state": {"staging", "intermediate", "marts", "state"},
}


def sql_files(folder: str) -> list[Path]:
    return sorted((PROJECT / folder).rglob("*.sql"))


MODELS = sql_files("models")
FUNCTIONS = sql_files("functions")
MODEL_NAMES = {file.stem for file in MODELS}
each_model = pytest.mark.parametrize("file", MODELS, ids=lambda file: file.stem)


each_function = pytest.mark.parametrize("file", FUNCTIONS, ids=lambda file: file.stem)


def layer(file: Path) -> str:
    return file.relative_to(PROJECT / "models").parts[0]


def without_comments(text: str) -> str:
    """SQL and Jinja without their comments and quoted texts."""
    return re.sub(r"\{#.*?#\}|--[^\n]*|/\*.*?\*/|'[^']*'", "", text, flags=re.S)


def refs(text: str) -> set[str]:
    """Models and seeds that the text names in ref(), changes(), delta() or then_and_now()."""
    return set(
        re.findall(
            r"\b(?:ref|changes|delta|then_and_now)\(\s*['\"](\w+)['\"]", re.sub(r"\{#.*?#\}", "", text, flags=re.S)
        )
    )


def macro_bodies() -> dict[str, str]:
    text = "\n".join(file.read_text() for file in sql_files("macros"))
    return dict(re.findall(r"\{%-?\s*macro (\w+)\(.*?-?%\}(.*?)\{%-?\s*endmacro", text, flags=re.S))


def reads(file: Path) -> set[str]:
    """What a model reads, itself and by the rule macros that it calls; an audit may compare with anything."""
    macros = macro_bodies()
    text, seen = re.sub(r"\{%-?\s*call audit.*?endcall\s*-?%\}", "", file.read_text(), flags=re.S), set()
    while called := {name for name in macros if re.search(rf"\b{name}\(", text)} - seen:
        seen |= called
        text += "".join(macros[name] for name in called)
    return refs(text)


def described() -> dict[str, list[Path]]:
    """Every model and seed with a description, and the YAML files that have it."""
    found: dict[str, list[Path]] = {}
    for folder in ("models", "seeds"):
        for file in sorted((PROJECT / folder).rglob("*.yml")):
            content = yaml.safe_load(file.read_text()) or {}
            for node in [*content.get("models", []), *content.get("seeds", [])]:
                if (node.get("description") or "").strip():
                    found.setdefault(node["name"], []).append(file)
    return found


@each_model
def test_the_first_line_states_the_grain(file):
    assert re.match(r"-- Grain: one row per \w.*[.:]", file.read_text().splitlines()[0]), (
        f"{file.name} begins with its grain: -- Grain: one row per ..."
    )


@each_model
def test_a_model_is_short(file):
    lines = len(file.read_text().splitlines())
    assert lines <= LONGEST_MODEL, f"{file.name} has {lines} lines: split it at an idea of its own."


@each_model
def test_casts_are_written_out(file):
    assert "::" not in without_comments(file.read_text()), (
        f"{file.name}: write cast(x as type), which every engine reads."
    )


@each_model
def test_a_model_reads_its_own_layer_or_below(file):
    assert layer(file) in LAYERS, f"{file.name} is in no known layer: {layer(file)}"
    layers = {model.stem: layer(model) for model in MODELS}
    read = {name for name in reads(file) if name in layers}
    wrong = {name for name in read if layers[name] not in MAY_READ[layer(file)]}
    assert not wrong, f"{file.stem} ({layer(file)}) reads {', '.join(sorted(wrong))}"


@each_model
def test_a_model_reads_what_exists(file):
    known = MODEL_NAMES | {seed.stem for seed in (PROJECT / "seeds").glob("*.csv")}
    assert reads(file) <= known


@each_model
def test_only_adapters_read_the_events_as_they_landed(file):
    """Everything else goes through the one canonical shape; a count of what landed is of all rows, not of events."""
    text = re.sub(r"\{%-?\s*call scope.*?endcall\s*-?%\}", "", file.read_text(), flags=re.S)
    sees_events = re.search(r"source\(\s*['\"]landing['\"]\s*,\s*['\"]events['\"]", text)
    counts_what_landed = file.stem in {"rejected_events", "data_quality_daily"}
    assert not sees_events or layer(file) == "staging" or counts_what_landed


def test_every_model_and_seed_is_described_once():
    names = MODEL_NAMES | {seed.stem for seed in (PROJECT / "seeds").glob("*.csv")}
    found = described()
    assert not names - found.keys(), "no description in any YAML file"
    assert not found.keys() - names, "described, but not there"
    assert not {name for name, files in found.items() if len(files) > 1}, "described twice"


@each_function
def test_a_function_states_what_it_returns_and_is_short(file):
    text = file.read_text()
    assert re.match(r"-- Returns: one row\b.*", text), (
        f"{file.name} begins with what it returns: -- Returns: one row ..."
    )
    assert len(text.splitlines()) <= LONGEST_MODEL
    assert "::" not in without_comments(text), f"{file.name}: write cast(x as type)."
    assert refs(text) <= MODEL_NAMES | {seed.stem for seed in (PROJECT / "seeds").glob("*.csv")}


def test_every_function_is_described_with_its_arguments_and_result():
    content = yaml.safe_load((PROJECT / "functions/_functions.yml").read_text())["functions"]
    assert {function["name"] for function in content} == {file.stem for file in FUNCTIONS}
    for function in content:
        parts = [function, function["returns"], *function["arguments"]]
        assert all((part.get("description") or "").strip() for part in parts), function["name"]


def test_a_function_with_its_owners_rights_asks_whose_rows_its_caller_may_read():
    content = yaml.safe_load((PROJECT / "functions/_functions.yml").read_text())["functions"]
    definers = {
        function["name"]
        for function in content
        if function.get("config", {}).get("meta", {}).get("security") == "definer"
    }
    assert definers == {file.stem for file in FUNCTIONS if "may_read_org()" in file.read_text()}


def test_every_function_is_in_the_documentation():
    text = (PROJECT / "docs/functions.md").read_text()
    assert not {file.stem for file in FUNCTIONS if f"`{file.stem}(" not in text}


def test_every_field_and_operator_of_filters_is_in_the_documentation():
    text = (PROJECT / "docs/segments.md").read_text()
    catalog = read_catalog()
    assert not {
        name for name in (*catalog.fields.columns, *catalog.fields.event_types, *OPERATORS) if f"`{name}`" not in text
    }


def test_every_format_of_exports_is_in_the_documentation():
    text = (PROJECT / "docs/export_formats.md").read_text()
    assert not {name for name in FORMATS if f"| `{name}` |" not in text}


def test_every_metric_is_in_the_documentation():
    declared = yaml.safe_load((PROJECT / "models/marts/_semantic_models.yml").read_text())["metrics"]
    text = (PROJECT / "docs/metrics.md").read_text()
    assert {f"| `{metric['name']}` | {metric['description']} |" for metric in declared} == set(
        re.findall(r"^\| `\w+` \| .+ \|$", text.split("## In a metrics layer")[1], re.M)
    )


def test_every_variable_is_used_and_every_used_one_is_declared():
    declared = set(yaml.safe_load((PROJECT / "dbt_project.yml").read_text())["vars"])
    texts = [file for folder in ("macros", "models", "functions", "tests/dbt") for file in sql_files(folder)]
    texts += [file for folder in ("models", "seeds", "functions") for file in (PROJECT / folder).rglob("*.yml")]
    used = set(re.findall(r"\bvar\(\s*['\"](\w+)['\"]", "\n".join(file.read_text() for file in texts)))
    runner = "\n".join(file.read_text() for file in (PROJECT / "orchestration").rglob("*.py"))
    used |= set(re.findall(r"\bvariables(?:\(\))?\[\"(\w+)\"\]", runner))
    assert not declared - used, "declared in dbt_project.yml and used nowhere"
    assert not used - declared, "used, but without a documented default in dbt_project.yml"


def test_every_rule_macro_is_used():
    """A macro that nothing calls is a rule that nobody follows."""
    rules = "\n".join(file.read_text() for file in sql_files("macros/rules"))
    names = set(re.findall(r"\{%-?\s*macro (\w+)\(", rules))
    everything = "\n".join(
        file.read_text() for folder in ("macros", "models", "functions", "tests/dbt") for file in sql_files(folder)
    )
    unused = {name for name in names if len(re.findall(rf"\b{name}[()]", everything)) < 2}
    assert not unused
