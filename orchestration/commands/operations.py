"""Commands of whoever keeps it running: what is wrong, back-up and restore."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from orchestration.commands.output import AsJson, show, terminal
from orchestration.errors import CheckFailed

if TYPE_CHECKING:
    from orchestration.doctor import Finding

operations_app = typer.Typer(rich_markup_mode=None)


@operations_app.command("doctor", epilog="Example: audience doctor --json")
def doctor(as_json: AsJson = False) -> None:
    """Check versions, connection, privileges, locks, disk, clock and freshness, and say what to do; 1 if a check failed."""
    from orchestration.doctor import examine

    findings = examine()
    show(findings, as_json, _print_findings)
    if wrong := [one.name for one in findings if one.state == "failed"]:
        raise CheckFailed(f"{len(wrong)} of {len(findings)} checks failed: {', '.join(wrong)}.")


def _print_findings(findings: list[Finding]) -> None:
    out = terminal().out
    for one in findings:
        out.print(f"{one.state:8}{one.name:14}{one.found}", markup=False, soft_wrap=True, highlight=False)
        if one.remedy:
            out.print(f"{'':22}{one.remedy}", markup=False, soft_wrap=True, highlight=False)
