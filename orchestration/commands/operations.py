"""Commands of whoever keeps it running: what is wrong, back-up and restore."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from orchestration.commands.output import AsJson, show, terminal
from orchestration.errors import CheckFailed

if TYPE_CHECKING:
    from orchestration.backup import BackupReport
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


@operations_app.command("backup", epilog="Example: audience backup --out backups/2026-11-24.zip")
def backup(
    out: Annotated[Path, typer.Option(help="The file; it must not be there yet.")], as_json: AsJson = False
) -> None:
    """Write what no build can compute again into a file: what landed, and the state; the marts follow from it."""
    from orchestration.backup import back_up

    with terminal().steps("Backing up", "looking at the tables") as advance:
        report = back_up(out, progress=advance)
    show(report, as_json, _print_backup)


@operations_app.command("restore", epilog="Example: audience restore backups/2026-11-24.zip")
def restore(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Made by audience backup.")], as_json: AsJson = False
) -> None:
    """Fill an empty database with a back-up; then run audience build, which computes the rest."""
    from orchestration.backup import restore as run_restore

    with terminal().steps("Restoring", "making the tables") as advance:
        report = run_restore(file, progress=advance)
    show(report, as_json, _print_restore)


def _print_backup(report: BackupReport) -> None:
    print(
        f"{sum(one.rows for one in report.tables):,} rows of {len(report.tables)} tables as of {report.made_at} are in "
        f"{report.file} ({report.bytes / 1e6:,.1f} MB). It holds personal data."
    )


def _print_restore(report: BackupReport) -> None:
    print(
        f"{sum(one.rows for one in report.tables):,} rows of {len(report.tables)} tables are restored, as of "
        f"{report.made_at}. Compute the marts with: audience build"
    )
