"""What commands print: tables for people, JSON for programs."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from typing import Annotated, Any

import typer

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for programs instead of tables for people.")]


def terminal() -> Any:
    """The module that prints for people; read when it is needed, because it takes a while."""
    from orchestration import terminal

    return terminal


def print_json(value: Any) -> None:
    print(json.dumps(value, indent=2, default=str))


def show(found: Any, as_json: bool, print_table: Callable[[Any], None]) -> None:
    """Prints a dataclass, or a list of them, as JSON or by a function of the terminal."""
    if as_json:
        print_json([asdict(one) for one in found] if isinstance(found, list | tuple) else asdict(found))
    else:
        print_table(found)
