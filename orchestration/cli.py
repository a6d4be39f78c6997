"""The `audience` command: one thin shell over the functions that Dagster calls too.

Exit codes: 0 done, 1 a check failed or differences were found, 2 bad input or refused.
"""

from __future__ import annotations

import signal
import subprocess
import sys
from dataclasses import asdict
from datetime import date, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from orchestration.commands.campaigns import campaigns_app
from orchestration.commands.database import db_app
from orchestration.commands.exports import exports_app
from orchestration.commands.members import members_app
from orchestration.commands.operations import operations_app
from orchestration.commands.output import AsJson, print_json, show, terminal
from orchestration.commands.rights import rights_app
from orchestration.commands.segments import segments_app
from orchestration.commands.suppressions import suppressions_app
from orchestration.errors import CheckFailed, UserError

if TYPE_CHECKING:
    from orchestration.exports.log import LogReport

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="Audience Intelligence: who your visitors are, from your own events, in your own PostgreSQL.",
)
app.add_typer(db_app, name="db")
app.add_typer(members_app, name="members")
app.add_typer(segments_app, name="segments")
app.add_typer(exports_app, name="exports")
app.add_typer(campaigns_app, name="campaigns")
app.add_typer(suppressions_app)
app.add_typer(operations_app)
app.add_typer(rights_app)

SAMPLE_EVENTS = 60_000
SAMPLE_SEED = 7


def main() -> None:
    """Runs the command and turns errors into a sentence and an exit code."""
    signal.signal(signal.SIGINT, _interrupt)
    try:
        app()
    except UserError as error:
        _complain(str(error), 2)
    except CheckFailed as error:
        _complain(str(error), 1)
    except BrokenPipeError:
        sys.stderr.close()


def _interrupt(*_: object) -> None:
    _complain("Interrupted: what was not committed is undone; run the command again.", 130)


def _complain(message: str, code: int) -> None:
    print(f"audience: {message}", file=sys.stderr)
    sys.exit(code)


@app.command(epilog="Example: audience sample --events 60000 --seed 7 --out events/")
def sample(
    out: Annotated[Path, typer.Option(help="Folder for the files; made when missing.")],
    events: Annotated[int, typer.Option(min=1000, help="How many rows, about.")] = SAMPLE_EVENTS,
    seed: Annotated[int, typer.Option(help="Same seed, same bytes.")] = SAMPLE_SEED,
    end: Annotated[str, typer.Option(help="Last day of arrivals, YYYY-MM-DD.")] = "2026-06-30",
    as_json: AsJson = False,
) -> None:
    """Write four months of seeded sample events, in the files a user would load."""
    from orchestration.sample import write_sample

    try:
        last = date.fromisoformat(end)
    except ValueError as error:
        raise UserError(f"--end {end!r} is not a day ({error}): give YYYY-MM-DD.") from error
    with terminal().progress("Writing events", events) as advance:
        files = write_sample(out, events=events, seed=seed, end=last, progress=advance)
    if as_json:
        print_json([{"path": str(f.path), "rows": f.rows} for f in files])
    else:
        print(
            f"{sum(f.rows for f in files):,} rows in {len(files)} files in {out}. Load them with: audience load {out}"
        )


@app.command(epilog="Example: audience load events/*.ndjson.gz tickets.csv orders.parquet")
def load(
    files: Annotated[list[Path], typer.Argument(metavar="FILES...", help="Files or folders.")], as_json: AsJson = False
) -> None:
    """Load newline-JSON (plain or .gz), CSV and Parquet files of events; every row is accounted for."""
    report = _load(files)
    show(report, as_json, terminal().print_load)


def _load(files: list[Path]):
    from orchestration.load import load_files

    total = sum(path.stat().st_size for path in files if path.is_file())
    with terminal().transfer("Loading", total) as advance:
        return load_files(files, progress=advance)


@app.command(epilog="Example: audience build --as-of 2026-06-30T02:00:00+02:00")
def build(
    as_of: Annotated[str | None, typer.Option(help="The moment the answer is for, ISO 8601. Default: now.")] = None,
    full_refresh: Annotated[
        bool, typer.Option("--full-refresh", help="Recompute everything; only differences are written.")
    ] = False,
    select: Annotated[str | None, typer.Option(help="dbt's --select: build a part.")] = None,
    as_json: AsJson = False,
) -> None:
    """Run the whole dbt build: what landed since the last one, in dependency order, with its tests."""
    report = _build(as_of, full_refresh, select)
    show(report, as_json, terminal().print_build)


def _build(as_of: str | None = None, full_refresh: bool = False, select: str | None = None):
    from orchestration.build import build as run_build

    with terminal().steps("Building") as advance:
        return run_build(as_of=as_of, full_refresh=full_refresh, select=select, progress=advance)


@app.command(epilog="Example: audience verify --org north_hall --day 2026-06-12")
def verify(
    org: Annotated[list[str] | None, typer.Option(help="An org to check; may be repeated. Default: by chance.")] = None,
    day: Annotated[list[str] | None, typer.Option(help="A local day, YYYY-MM-DD; may be repeated.")] = None,
    orgs: Annotated[int, typer.Option(min=1, help="How many orgs, when none is named.")] = 3,
    days: Annotated[int, typer.Option(min=1, help="How many days of each, when none is named.")] = 1,
    seed: Annotated[int | None, typer.Option(help="Chooses the same orgs and days again. Default: a new one.")] = None,
    everything: Annotated[bool, typer.Option("--all", help="Check every org and day.")] = False,
    as_json: AsJson = False,
) -> None:
    """Recompute a sample of orgs and days from the events and compare every table, cell by cell."""
    from orchestration.verify import verify as run_verify

    if everything and (org or day or seed is not None):
        raise UserError("--all checks every org and day: leave out --org, --day and --seed.")
    with terminal().steps("Verifying", "orgs and days are chosen") as advance:
        report = run_verify(
            orgs=org or (), days=[_day(text) for text in day or ()], org_count=orgs, day_count=days, seed=seed,
            everything=everything, progress=advance,
        )  # fmt: skip
    if as_json:
        print_json({"exact": not report.differing, "differing": report.differing, **asdict(report)})
    else:
        terminal().print_verify(report)
    if report.differing:
        raise CheckFailed(
            f"{report.differing:,} cells or rows differ from what the events say. Keep a copy of the tables, report it, "
            "and repair them with audience build --full-refresh."
        )


def _day(text: str) -> date:
    try:
        return date.fromisoformat(text)
    except ValueError as error:
        raise UserError(f"--day {text!r} is not a day ({error}): give YYYY-MM-DD.") from error


@app.command(epilog="Example: audience demo")
def demo(events: Annotated[int, typer.Option(min=1000, help="Rows of the sample, about.")] = SAMPLE_EVENTS) -> None:
    """Everything on the embedded server: sample, load, build, and what the marts say."""
    from orchestration import database, embedded, segments, summary
    from orchestration.sample import write_sample
    from orchestration.settings import audience_home, external_server, target_schema

    if external_server():
        raise UserError(
            "The demo runs on the embedded server, and the environment names another (DATABASE_URL or PGHOST): "
            "unset it, or load your own events there with audience load."
        )
    screen = terminal()
    server = embedded.start()
    print(f"PostgreSQL is running in {server.data}.")
    last = date(2026, 6, 30)
    folder = audience_home() / "sample"
    with screen.progress("Writing events", events) as advance:
        files = write_sample(folder, events=events, seed=SAMPLE_SEED, end=last, progress=advance)
    screen.print_load(_load([file.path for file in files]))
    screen.print_build(_build(as_of=f"{last + timedelta(days=1)}T12:00:00+00:00"))
    with database.connect() as connection:
        for org in summary.orgs(connection, target_schema()):
            screen.print_summary(summary.summarize(connection, target_schema(), org, last))
    with segments.connect() as connection:
        segments.sync(connection)
        screen.print_materializations(segments.materialize(connection))
    screen.print_next_steps()


@app.command("verify-log", epilog="Example: audience verify-log")
def verify_log(as_json: AsJson = False) -> None:
    """Compute the chain of the export log again; 1 if any row was changed, removed or written anew."""
    from orchestration.exports import log

    report = log.verify_log()
    show(report, as_json, _print_log)


def _print_log(report: LogReport) -> None:
    print(f"exact: {report.rows:,} rows are as they were written, and agree with {report.heads:,} heads kept outside.")


@app.command(epilog="Example: audience dev --port 3000")
def dev(port: Annotated[int, typer.Option(help="Port of the Dagster UI on 127.0.0.1.")] = 3000) -> None:
    """Run the Dagster UI and its daemon until Ctrl-C."""
    from orchestration import dagster_host

    sys.exit(dagster_host.serve(port))


@app.command(
    epilog="Example: audience dbt test --select audience_customers",
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
)
def dbt(context: typer.Context) -> None:
    """Run any dbt command on the server in use; starts the embedded one."""
    from orchestration import database
    from orchestration import dbt as runner

    sys.exit(subprocess.call(runner.command(*context.args), env=database.environment()))


if __name__ == "__main__":
    main()
