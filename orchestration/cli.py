"""The `audience` command: one thin shell over the functions that Dagster calls too.

Exit codes: 0 done, 1 a check failed or differences were found, 2 bad input or refused.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import asdict
from datetime import date, timedelta
from pathlib import Path
from typing import Annotated, Any
from uuid import UUID

import typer

from orchestration.errors import CheckFailed, UserError

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="Audience Intelligence: who your visitors are, from your own events, in your own PostgreSQL.",
)
db_app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="The embedded PostgreSQL server.")
app.add_typer(db_app, name="db")
members_app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Which logins may read which orgs.")
app.add_typer(members_app, name="members")
segments_app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Segments: named filters of customers.")
app.add_typer(segments_app, name="segments")

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for programs instead of tables for people.")]

SegmentName = Annotated[str, typer.Argument(metavar="NAME", help="Name of the segment.")]
Org = Annotated[str | None, typer.Option("--org", help="Its org; needed when several orgs have one of that name.")]
ExportId = Annotated[str, typer.Argument(metavar="EXPORT_ID", help="As audience exports list shows it.")]
FilterFile = Annotated[Path | None, typer.Option("--filter", help="File of the filter's JSON; - reads standard input.")]

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


def _print_json(value: Any) -> None:
    print(json.dumps(value, indent=2, default=str))


def _reporter():
    from orchestration import terminal

    return terminal


@db_app.command("start", epilog="Example: audience db start")
def db_start() -> None:
    """Start the embedded server, if it is not running."""
    from orchestration import embedded
    from orchestration.settings import external_server

    if external_server():
        raise UserError(
            "The environment names a server of your own (DATABASE_URL or PGHOST), so the embedded one is not "
            "used: unset it to start the embedded server."
        )
    server = embedded.start()
    print(f"PostgreSQL is running in {server.data}. Connect with: audience db psql")


@db_app.command("stop", epilog="Example: audience db stop")
def db_stop() -> None:
    """Stop the embedded server after a clean shutdown."""
    from orchestration import embedded

    print("PostgreSQL has stopped." if embedded.stop() else "PostgreSQL was not running.")


@db_app.command("status", epilog="Example: audience db status --json")
def db_status(as_json: AsJson = False) -> None:
    """Say which server is in use and whether it runs."""
    from orchestration import embedded
    from orchestration.settings import external_server

    external = external_server()
    running = external is not None or embedded.status() is not None
    host = external.variables.get("PGHOST", "") if external else str(embedded.data_folder())
    state = {"server": "external" if external else "embedded", "where": host, "running": running}
    if as_json:
        _print_json(state)
    elif external:
        print(f"A server of your own is used: {host}.")
    else:
        print(f"The embedded server in {host} is {'running' if running else 'stopped'}.")


@db_app.command("url", epilog='Example: psql "$(audience db url)"')
def db_url() -> None:
    """Print a libpq URL of the server in use; starts the embedded one."""
    from orchestration import database

    print(database.url())


@db_app.command(
    "psql",
    epilog='Example: audience db psql -c "select * from audience.audience_overview_daily limit 5"',
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
)
def db_psql(context: typer.Context) -> None:
    """Open psql on the server in use; further arguments go to psql."""
    from orchestration import database, embedded

    program = shutil.which("psql") or embedded.binary("psql")
    os.execve(program, [program, *context.args], database.environment())


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
    with _reporter().progress("Writing events", events) as advance:
        files = write_sample(out, events=events, seed=seed, end=last, progress=advance)
    if as_json:
        _print_json([{"path": str(f.path), "rows": f.rows} for f in files])
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
    if as_json:
        _print_json(asdict(report))
    else:
        _reporter().print_load(report)


def _load(files: list[Path]):
    from orchestration.load import load_files

    total = sum(path.stat().st_size for path in files if path.is_file())
    with _reporter().transfer("Loading", total) as advance:
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
    if as_json:
        _print_json(asdict(report))
    else:
        _reporter().print_build(report)


def _build(as_of: str | None = None, full_refresh: bool = False, select: str | None = None):
    from orchestration.build import build as run_build

    with _reporter().steps("Building") as advance:
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
    with _reporter().steps("Verifying", "orgs and days are chosen") as advance:
        report = run_verify(
            orgs=org or (), days=[_day(text) for text in day or ()], org_count=orgs, day_count=days, seed=seed,
            everything=everything, progress=advance,
        )  # fmt: skip
    if as_json:
        _print_json({"exact": not report.differing, "differing": report.differing, **asdict(report)})
    else:
        _reporter().print_verify(report)
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
    terminal = _reporter()
    server = embedded.start()
    print(f"PostgreSQL is running in {server.data}.")
    last = date(2026, 6, 30)
    folder = audience_home() / "sample"
    with terminal.progress("Writing events", events) as advance:
        files = write_sample(folder, events=events, seed=SAMPLE_SEED, end=last, progress=advance)
    terminal.print_load(_load([file.path for file in files]))
    terminal.print_build(_build(as_of=f"{last + timedelta(days=1)}T12:00:00+00:00"))
    with database.connect() as connection:
        for org in summary.orgs(connection, target_schema()):
            terminal.print_summary(summary.summarize(connection, target_schema(), org, last))
    with segments.connect() as connection:
        segments.sync(connection)
        terminal.print_materializations(segments.materialize(connection))
    terminal.print_next_steps()


@members_app.command("add", epilog="Example: audience members add ana --org north_hall --role analyst")
def members_add(
    login: Annotated[str, typer.Argument(help="A role of the server that logs in, or that a pool takes on.")],
    org: Annotated[list[str], typer.Option(help="An org that it may read; may be repeated.")],
    role: Annotated[str, typer.Option(help="reader, analyst or admin.")] = "reader",
) -> None:
    """Let a login read orgs, in a role: the rows of these orgs and no others."""
    from orchestration import members

    members.add(login, org, role)
    print(f"{login} reads {', '.join(org)} as {role}.")


@members_app.command("remove", epilog="Example: audience members remove ana --org north_hall")
def members_remove(
    login: Annotated[str, typer.Argument(help="The login, also one that the server does not have any more.")],
    org: Annotated[list[str] | None, typer.Option(help="An org to take away; may be repeated. Default: all.")] = None,
) -> None:
    """Take orgs from a login; with the last one its role."""
    from orchestration import members

    count = members.remove(login, org or ())
    print(f"{login} reads {count} {'org' if count == 1 else 'orgs'} less.")


@members_app.command("list", epilog="Example: audience members list --json")
def members_list(as_json: AsJson = False) -> None:
    """List the logins that may read, their roles and orgs."""
    from orchestration import members

    found = members.members()
    if as_json:
        _print_json([asdict(member) for member in found])
    else:
        _reporter().print_members(found)


@segments_app.command("list", epilog="Example: audience segments list --org north_hall")
def segments_list(
    org: Annotated[str | None, typer.Option(help="Segments of one org.")] = None, as_json: AsJson = False
) -> None:
    """List segments with their members at the last materialization."""
    from orchestration import segments

    with segments.connect() as connection:
        found = segments.list_segments(connection, org)
    if as_json:
        _print_json([asdict(segment) for segment in found])
    else:
        _reporter().print_segments(found)


@segments_app.command("show", epilog="Example: audience segments show Champions --org north_hall")
def segments_show(name: SegmentName, org: Org = None, as_json: AsJson = False) -> None:
    """Show one segment and its filter."""
    from orchestration import segments

    with segments.connect() as connection:
        _print_segment(segments.find_segment(connection, name, org), as_json)


@segments_app.command(
    "create", epilog='Example: audience segments create "Big spenders" --org north_hall --filter big_spenders.json'
)
def segments_create(
    name: SegmentName,
    org: Annotated[str, typer.Option(help="The org whose customers it lists.")],
    filter_file: FilterFile,
    description: Annotated[str, typer.Option(help="What it is for.")] = "",
    as_json: AsJson = False,
) -> None:
    """Store a new segment; its filter is the JSON that react-querybuilder exports."""
    from orchestration import segments

    with segments.connect() as connection:
        _print_segment(segments.create_segment(connection, name, org, _filter(filter_file), description), as_json)


@segments_app.command("update", epilog='Example: audience segments update "Big spenders" --filter big_spenders.json')
def segments_update(
    name: SegmentName,
    org: Org = None,
    filter_file: FilterFile = None,
    description: Annotated[str | None, typer.Option(help="What it is for.")] = None,
    as_json: AsJson = False,
) -> None:
    """Change the filter or the description of a stored segment; its members follow at the next materialization."""
    from orchestration import segments

    with segments.connect() as connection:
        document = _filter(filter_file) if filter_file else None
        _print_segment(segments.update_segment(connection, name, org, document, description), as_json)


@segments_app.command("delete", epilog='Example: audience segments delete "Big spenders" --org north_hall')
def segments_delete(name: SegmentName, org: Org = None, as_json: AsJson = False) -> None:
    """Delete a stored segment, with the history of its members."""
    from orchestration import segments

    with segments.connect() as connection:
        deleted = segments.delete_segment(connection, name, org)
    if as_json:
        _print_json(asdict(deleted))
    else:
        print(f"Deleted segment {deleted.segment_name} of {deleted.org_id}, version {deleted.filter_version}.")


@segments_app.command("preview", epilog="Example: audience segments preview --org north_hall --filter draft.json")
def segments_preview(
    name: Annotated[
        str | None, typer.Argument(metavar="[NAME]", help="A segment, or leave it out for a filter.")
    ] = None,
    org: Org = None,
    filter_file: FilterFile = None,
    as_json: AsJson = False,
) -> None:
    """Count whom a segment, or a filter that is not stored, lists now; nothing is kept."""
    from orchestration import segments

    if (name is None) == (filter_file is None) or (filter_file and not org):
        raise UserError("Give the name of a segment, or --filter with --org.")
    with segments.connect() as connection:
        if name is None:
            document = _filter(filter_file)
        else:
            segment = segments.find_segment(connection, name, org)
            document, org = segment.filter, segment.org_id
        found = segments.preview(connection, document, org)
    if as_json:
        _print_json(asdict(found))
    else:
        _reporter().print_preview(found)


@segments_app.command("materialize", epilog="Example: audience segments materialize Champions --org north_hall")
def segments_materialize(
    name: Annotated[str | None, typer.Argument(metavar="[NAME]", help="One segment. Default: all.")] = None,
    org: Org = None,
    as_json: AsJson = False,
) -> None:
    """Observe who is in the segments now, and keep who entered and who left; audience build does it for all."""
    from orchestration import segments

    with segments.connect() as connection:
        done = segments.materialize(connection, name, org)
    if as_json:
        _print_json([asdict(one) for one in done])
    else:
        _reporter().print_materializations(done)
    segments.check(done)


exports_app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="What became of exports.")
app.add_typer(exports_app, name="exports")


@segments_app.command(
    "export", epilog='Example: audience segments export Champions --org north_hall --purpose "Spring newsletter"'
)
def segments_export(
    name: SegmentName,
    purpose: Annotated[str, typer.Option(help="What the list is for; it is logged.")] = "",
    org: Org = None,
    include_pii: Annotated[bool, typer.Option("--include-pii", help="Contact details, too; for admins.")] = False,
    format_name: Annotated[str, typer.Option("--format", help="csv, ndjson, parquet, meta, google or tiktok.")] = "csv",
    to: Annotated[
        str | None, typer.Option(help="A folder, s3://, gs:// ..., https://. Default: exports in AUDIENCE_HOME.")
    ] = None,
    delta: Annotated[
        bool, typer.Option("--delta", help="Who entered and who left since the last acknowledged export.")
    ] = False,
    later: Annotated[bool, typer.Option("--later", help="Ask only: Dagster makes the list.")] = False,
    as_json: AsJson = False,
) -> None:
    """Write who is in a segment into a file; every attempt is logged."""
    from orchestration import segments
    from orchestration.exports import runner

    with segments.connect() as connection:
        done = runner.export_segment(
            connection, name, purpose, org, include_pii=include_pii, is_delta=delta, format_name=format_name, to=to,
            is_queued=later,
        )  # fmt: skip
    _print_export(done, as_json)


def _print_export(done: Any, as_json: bool) -> None:
    if as_json:
        _print_json(asdict(done))
    else:
        _reporter().print_export(done)


@exports_app.command("list", epilog="Example: audience exports list --org north_hall")
def exports_list(
    org: Annotated[str | None, typer.Option(help="One org. Default: all.")] = None, as_json: AsJson = False
) -> None:
    """List exports with what became of them last, of the orgs that you may see."""
    from orchestration import segments
    from orchestration.exports import runner

    with segments.connect() as connection:
        found = runner.latest(connection, org)
    if as_json:
        _print_json([asdict(entry) for entry in found])
    else:
        _reporter().print_exports(found)


@exports_app.command("show", epilog="Example: audience exports show 7d3f0e52-4b0a-4a43-9c1e-0f6a3c1d2e5b")
def exports_show(export_id: ExportId, as_json: AsJson = False) -> None:
    """Show all that happened to an export."""
    from orchestration import segments
    from orchestration.exports import runner

    with segments.connect() as connection:
        found = runner.history(connection, _export_id(export_id))
    if as_json:
        _print_json([asdict(entry) for entry in found])
    else:
        _reporter().print_export_history(found)


@exports_app.command("retry", epilog="Example: audience exports retry 7d3f0e52-4b0a-4a43-9c1e-0f6a3c1d2e5b")
def exports_retry(
    export_id: ExportId,
    to: Annotated[str | None, typer.Option(help="The URL, where the log keeps a part of it.")] = None,
    as_json: AsJson = False,
) -> None:
    """Deliver again what was not delivered, or ask anew for what failed."""
    from orchestration import segments
    from orchestration.exports import runner

    with segments.connect() as connection:
        done = runner.retry(connection, _export_id(export_id), to)
    _print_export(done, as_json)


@exports_app.command("acknowledge", epilog="Example: audience exports acknowledge 7d3f0e52-4b0a-4a43-9c1e-0f6a3c1d2e5b")
def exports_acknowledge(export_id: ExportId) -> None:
    """Say that an export was taken: later deltas begin there."""
    from orchestration import segments
    from orchestration.exports import runner

    with segments.connect() as connection:
        entry = runner.acknowledge(connection, _export_id(export_id))
    print(f"Export {entry.export_id} of {entry.segment_name} of {entry.org_id} is acknowledged.")


@exports_app.command("recover", epilog="Example: audience exports recover")
def exports_recover() -> None:
    """Finish exports whose process was killed; each export does this first."""
    from orchestration import segments
    from orchestration.exports import runner

    with segments.connect() as connection:
        done = runner.recover(connection)
    for entry in done:
        print(f"{entry.export_id} of {entry.segment_name} of {entry.org_id}: {entry.outcome}")
    if not done:
        print("Every export has ended.")


def _export_id(text: str) -> UUID:
    try:
        return UUID(text)
    except ValueError as error:
        raise UserError(f"{text!r} is no id of an export: give the one that audience exports list shows.") from error


@app.command("verify-log", epilog="Example: audience verify-log")
def verify_log(as_json: AsJson = False) -> None:
    """Compute the chain of the export log again; 1 if any row was changed, removed or written anew."""
    from orchestration.exports import log

    report = log.verify_log()
    if as_json:
        _print_json(asdict(report))
    else:
        print(
            f"exact: {report.rows:,} rows are as they were written, and agree with {report.heads:,} heads kept outside."
        )


@segments_app.command("sync", epilog="Example: audience segments sync --plan")
def segments_sync(
    plan: Annotated[
        bool, typer.Option("--plan", help="Say what would change, and change nothing; 1 if anything would.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Make the declared segments those of the files in segments/."""
    from orchestration import segments

    with segments.connect() as connection:
        changes = segments.sync(connection, plan=plan)
    if as_json:
        _print_json([asdict(change) for change in changes])
    else:
        _reporter().print_changes(changes, plan)
    if plan and changes:
        raise CheckFailed(f"{len(changes):,} segments differ from the files: run audience segments sync.")


def _filter(file: Path) -> Any:
    """The document in a file of a filter, of which no more is read than may be valid."""
    from orchestration.filters import parse_filter
    from orchestration.people import read_catalog

    limits = read_catalog().limits
    try:
        with sys.stdin.buffer if str(file) == "-" else file.open("rb") as source:
            text = source.read(limits.bytes + 1)
    except OSError as error:
        raise UserError(
            f"--filter {file} cannot be read ({error.strerror}): correct the name, or give - for standard input."
        ) from error
    return parse_filter(text, limits)


def _print_segment(segment: Any, as_json: bool) -> None:
    if as_json:
        _print_json(asdict(segment))
    else:
        _reporter().print_segment(segment)


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
