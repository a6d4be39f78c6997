"""What the command prints for people: progress on standard error, tables on standard output."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import TYPE_CHECKING, Any

from rich import box
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

if TYPE_CHECKING:
    from orchestration.build import BuildReport
    from orchestration.exports.door import Entry
    from orchestration.exports.runner import Export
    from orchestration.load import LoadReport
    from orchestration.members import Member
    from orchestration.segments import Change, Materialization, Preview, Segment
    from orchestration.standing_exports import Made
    from orchestration.summary import Summary
    from orchestration.verify import Difference, VerifyReport

# Wide enough for every table when standard output is a file or a pipe.
out = Console(highlight=False, width=None if sys.stdout.isatty() else 120, soft_wrap=False)
err = Console(stderr=True, highlight=False)


@contextmanager
def progress(title: str, total: int) -> Iterator[Callable[[int], None]]:
    """A bar over `total` rows; the yielded function takes how many more are done."""
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=err,
        transient=True,
    ) as bar:
        task = bar.add_task(title, total=total)
        yield lambda rows: bar.advance(task, rows)


@contextmanager
def transfer(title: str, total_bytes: int) -> Iterator[Callable[[int, int], None]]:
    """A bar over bytes; the yielded function takes bytes done and rows done."""
    with Progress(
        TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TextColumn("{task.fields[rows]:,} rows"),
        TimeElapsedColumn(), console=err, transient=True, disable=not err.is_terminal,
    ) as bar:  # fmt: skip
        task = bar.add_task(title, total=total_bytes or None, rows=0)
        yield lambda done, rows: bar.update(task, completed=done, rows=rows)


@contextmanager
def steps(title: str, first: str = "dbt is starting") -> Iterator[Callable[[int, int, str], None]]:
    """A bar over numbered steps; the yielded function takes done, total and the step's name. first: what comes before."""
    with Progress(
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[step]}"),
        TimeElapsedColumn(), console=err, transient=True, disable=not err.is_terminal,
    ) as bar:  # fmt: skip
        task = bar.add_task(title, total=None, step=first)
        yield lambda done, total, step: bar.update(task, completed=done, total=total, step=step)


def _table(title: str, columns: Iterable[str], rows: Iterable[Iterable[str]], left: int = 1) -> None:
    table = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False)
    for number, column in enumerate(columns):
        table.add_column(column, justify="left" if number < left else "right", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    out.print(table)


def print_load(report: LoadReport) -> None:
    """One line that adds up, and the reasons of what was rejected."""
    out.print(
        f"Loaded {report.received:,} rows from {len(report.files)} files in {report.seconds:.1f} s: "
        f"{report.accepted:,} accepted + {report.rejected:,} rejected + {report.duplicate:,} duplicate."
    )
    for reason, count in sorted(report.rejected_reasons.items()):
        out.print(f"  rejected: {reason} {count:,}")


def print_build(report: BuildReport) -> None:
    """What changed, in one line a model, and what the tests said."""
    changed = sorted(report.changed, key=lambda node: -(node.rows or 0))
    if changed:
        rows = [(node.name, f"{node.rows:,}", f"{node.seconds:.1f}") for node in changed]
        _table("Rows written or removed", ("model", "rows", "seconds"), rows)
    tests = [node for node in report.nodes if node.kind == "test"]
    for node in report.warned:
        out.print(f"  warning: {node.name}: {node.message}")
    passed = sum(node.status == "pass" for node in tests)
    summary = f"{len(changed)} models changed" if changed else "nothing new, no row changed"
    out.print(f"Built in {report.seconds:.1f} s: {summary}; {passed} of {len(tests)} tests passed.")
    if report.segments:
        moved = f"{sum(one.entered_count for one in report.segments):,} entered, {sum(one.left_count for one in report.segments):,} left"
        out.print(f"Segments: {len(report.segments):,} materialized; {moved}.")


def print_segments(segments: list[Segment]) -> None:
    """Segments in a table, or how to get some."""
    if not segments:
        out.print("There are no segments: audience segments sync makes the declared ones.")
        return
    rows = [
        (segment.org_id, segment.segment_name, segment.origin, str(segment.filter_version), _count(segment.members_count),
         str(segment.materialized_as_of or "never"))
        for segment in segments
    ]  # fmt: skip
    _table("Segments", ("org", "segment", "origin", "version", "members", "as of"), rows, left=3)


def _count(count: int | None) -> str:
    return "-" if count is None else f"{count:,}"


def print_segment(segment: Segment) -> None:
    """One segment with its filter, as it is stored."""
    out.print(
        f"{segment.segment_name} of {segment.org_id}: {segment.description or 'no description'}",
        markup=False,
        soft_wrap=True,
    )
    out.print(
        f"origin {segment.origin}, filter version {segment.filter_version}, changed {segment.updated_at}", markup=False
    )
    out.print(f"members {_count(segment.members_count)}, as of {segment.materialized_as_of or 'never'}", markup=False)
    out.print(json.dumps(segment.filter, indent=2), markup=False, soft_wrap=True)


def print_preview(preview: Preview) -> None:
    """A filter's figures, and who matches its rules."""
    rows = [(rule.path, rule.rule, f"{rule.alone_count:,}", f"{rule.together_count:,}") for rule in preview.rules]
    joined = f"with those before ({preview.combinator})"
    _table(
        "Rules" + (", all of them negated" if preview.is_negated else ""), ("", "rule", "alone", joined), rows, left=2
    )
    contactable = "an unknown number" if preview.contactable_count is None else f"{preview.contactable_count:,}"
    out.print(
        f"{preview.size:,} people of {preview.org_id}, as of {preview.as_of}: {contactable} with an e-mail address "
        f"or a phone number, {preview.consented_count:,} who consented.",
        markup=False, soft_wrap=True,
    )  # fmt: skip


def print_materializations(done: list[Materialization]) -> None:
    """Who is in which segment, who entered and who left."""
    rows = [
        (one.org_id, one.segment_name, _count(one.members_count), f"{one.entered_count:,}", f"{one.left_count:,}")
        for one in done
    ]
    _table("Members of segments", ("org", "segment", "members", "entered", "left"), rows, left=2)


def print_export(done: Export) -> None:
    """Where an export is, and what is in it."""
    entry = done.entry
    if entry.reason:
        out.print(entry.reason, markup=False, soft_wrap=True)
    if entry.rows_count is None:
        out.print(
            f"{entry.segment_name} of {entry.org_id} is asked for. Export {entry.export_id}.",
            markup=False,
            soft_wrap=True,
        )
        return
    changes = f" ({entry.entered_count:,} entered, {entry.left_count:,} left)" if "change" in entry.columns else ""
    counts = entry.format_counts or {}
    left_out = (
        f", {counts['left_out']:,} of them left out, who could not be found by them" if counts.get("left_out") else ""
    )
    out.print(
        f"{entry.rows_count:,} rows{changes} of {entry.segment_name} of {entry.org_id} in {done.file or entry.destination}{left_out}; "
        f"{entry.suppressed_count:,} members suppressed. Export {entry.export_id}.",
        markup=False, soft_wrap=True,
    )  # fmt: skip


def print_exports(entries: list[Entry]) -> None:
    """Exports, each with what became of it last."""
    rows = [
        (
            str(entry.export_id), _moment(entry.logged_at), entry.org_id, entry.segment_name, entry.format, entry.outcome,
            _count(entry.rows_count),
        )
        for entry in entries
    ]  # fmt: skip
    _table("Exports", ("export", "at", "org", "segment", "format", "outcome", "rows"), rows, left=6)


def print_standing_exports(found: list[Made]) -> None:
    """Standing exports, each with what became of it in the night."""
    rows = [
        (
            one.org_id, one.export_name, one.segment_name, one.entry.outcome if one.entry else "",
            _count(one.entry.rows_count if one.entry else None), str(one.export_id or ""),
        )
        for one in found
    ]  # fmt: skip
    _table("Standing exports", ("org", "export", "segment", "this night", "rows", "export id"), rows, left=4)


def print_export_history(entries: list[Entry]) -> None:
    """What was asked for, and all that happened to it."""
    first = entries[0]
    asked = {
        "segment": f"{first.segment_name} of {first.org_id}, version {first.filter_version}", "purpose": first.purpose,
        "personal data": "yes" if first.include_pii else "no", "format": f"{first.format}, {first.kind}",
        "destination": first.destination, "columns": ", ".join(first.columns), "sha256": entries[-1].file_sha256,
    }  # fmt: skip
    for name, value in asked.items():
        out.print(f"{name}: {value if value is not None else '-'}", markup=False, soft_wrap=True)
    rows = [
        (
            _moment(entry.logged_at),
            entry.outcome,
            entry.login_name,
            entry.reason or "",
            _count(entry.rows_count),
        )
        for entry in entries
    ]
    _table(f"Export {first.export_id}", ("at", "outcome", "login", "reason", "rows"), rows, left=4)


def print_changes(changes: list[Change], is_plan: bool) -> None:
    """What sync did, or with a plan would do."""
    for change in changes:
        out.print(
            f"  {change.action}: {change.segment_name} of {change.org_id}: {change.what}", markup=False, soft_wrap=True
        )
    if not changes:
        out.print("The segments are those of the files.")
    elif not is_plan:
        out.print(
            f"{len(changes):,} segments changed. Their members follow with audience segments materialize, or the next build."
        )


def print_members(found: list[Member]) -> None:
    """Who may read which orgs, and what to do with a login that is gone."""
    if not found:
        out.print("No login may read any org yet: audience members add LOGIN --org ORG.")
        return
    rows = [(member.login, ", ".join(member.roles) or "(none)", ", ".join(member.orgs)) for member in found]
    _table("Members", ("login", "role", "orgs"), rows, left=3)
    for gone in (member.login for member in found if not member.exists):
        out.print(f"  {gone} is no login of this server: remove it, before somebody else gets its name", markup=False)


def print_verify(report: VerifyReport) -> None:
    """What was compared, table by table, the first differences, and the verdict."""
    rows = [
        (table.table, f"{table.keys:,}", f"{table.rows:,}", f"{table.waiting:,}" if table.waiting else "", f"{table.differing:,}")
        for table in report.tables
    ]  # fmt: skip
    _table("Recomputed from the events", ("table", "keys", "rows", "waiting", "differing"), rows)
    for table in report.tables:
        if table.all_wait:
            out.print(f"  not compared: {table.table} waits for the next build ({table.all_wait})", markup=False)
    if report.waiting:
        out.print(f"  not compared: {report.waiting:,} keys wait for the next build; it takes what landed meanwhile")
    for difference in report.differences:
        out.print(f"  {_difference(difference)}", markup=False, soft_wrap=True)
    if report.differing:
        first = (
            f", of which the first {len(report.differences)} are listed"
            if report.differing > len(report.differences)
            else ""
        )
        out.print(f"Differences: {report.differing:,}{first}. Checked: {_sample(report)}.", soft_wrap=True)
        out.print("A table is computed from those before it: look at the first one that differs.")
        if report.waits:
            out.print("A build that ended early can look like this, too: run audience build, then verify again.")
    else:
        out.print(f"exact: {report.rows:,} rows are what the events say. Checked: {_sample(report)}.", soft_wrap=True)


def _difference(found: Difference) -> str:
    key = ", ".join(f"{name} {value}" for name, value in found.key.items())
    if found.column:
        return f"{found.table} ({key}) {found.column}: stored {found.stored}, recomputed {found.recomputed}"
    return f"{found.table} ({key}): " + ("extra, its definition gives no such row" if found.stored else "missing")


def _sample(report: VerifyReport) -> str:
    """The orgs and days in words, and how to check them again."""
    if report.sample.days is None:
        return f"every org and day, in {report.seconds:.1f} s"
    orgs: dict[str, list[str]] = {}
    for org_id, day in report.sample.days:
        orgs.setdefault(org_id, []).append(str(day))
    named = "; ".join(f"{org_id} on {', '.join(days)}" for org_id, days in orgs.items())
    return f"{named} (--seed {report.sample.seed}, {report.seconds:.1f} s)"


def _moment(moment: datetime) -> str:
    return f"{moment:%Y-%m-%d %H:%M:%S}"


def _change(now: Any, before: Any) -> str:
    if not before:
        return "-"
    change = (float(now) - float(before)) / float(before)
    return f"{change:+.0%}"


def print_summary(summary: Summary) -> None:
    """The figures of one org: KPIs, channels, devices, cohorts, stages."""
    out.rule(f"[bold]{summary.org_id}[/bold]  {summary.first} to {summary.last}", align="left")
    now, before = summary.kpis, summary.previous_kpis
    formats = {
        "visitors": "{:,.0f}", "sessions": "{:,.0f}", "checkout_rate": "{:.1%}", "purchase_rate": "{:.1%}",
        "orders": "{:,.0f}", "buyers": "{:,.0f}", "net_revenue": "{:,.2f}",
    }  # fmt: skip
    _table(
        "Key figures", ("", "this period", "previous", "change"),
        [(name.replace("_", " "), form.format(now[name]), form.format(before[name]), _change(now[name], before[name]))
         for name, form in formats.items()],
    )  # fmt: skip
    _table(
        "Channels by net revenue", ("channel", "source / medium", "sessions", "visitors", "buyers", "orders", "net revenue"),
        [(row["channel"], f"{row['source']} / {row['medium']}", f"{row['sessions']:,}", f"{row['visitors']:,}",
          f"{row['buyers']:,}", f"{row['orders']:,}", f"{row['net_revenue']:,.2f}") for row in summary.channels],
        left=2,
    )  # fmt: skip
    _table(
        "Device and network", ("device", "network", "sessions", "purchase rate", "mean page load"),
        [(row["device_type"], row["network_type"], f"{row['sessions']:,}", f"{row['purchase_rate'] or 0:.1%}",
          f"{row['mean_page_load_ms'] or 0:,.0f} ms") for row in summary.devices],
        left=2,
    )  # fmt: skip
    print_cohorts(summary)
    _table(
        "Customers by lifecycle stage", ("stage", "customers", "net revenue"),
        [(row["stage"], f"{row['customers']:,}", f"{row['net_revenue']:,.2f}") for row in summary.stages],
    )  # fmt: skip


def print_cohorts(summary: Summary, limit: int = 6) -> None:
    """Share of each weekly cohort that came back, by week; an unfinished week carries a *."""
    cohorts: dict[Any, list[dict[str, Any]]] = {}
    for row in summary.cohorts:
        cohorts.setdefault(row["cohort_week"], []).append(row)
    shown = list(cohorts.items())[:limit]
    weeks = max((len(rows) for _, rows in shown), default=0)
    lines = []
    for week, rows in shown:
        cells = [f"{row['returned_count'] / row['cohort_size']:.0%}{'' if row['is_complete'] else '*'}" for row in rows]
        lines.append((str(week), f"{rows[0]['cohort_size']:,}", *cells, *[""] * (weeks - len(cells))))
    _table(
        f"First {len(shown)} weekly cohorts: share active in week n after the first purchase",
        ("first purchase", "buyers", *(f"w{week}" for week in range(weeks))), lines,
    )  # fmt: skip


def print_next_steps() -> None:
    out.print(
        "[bold]What next[/bold]\n"
        "  audience db psql                 look into the marts, for example: select * from audience.audience_customers limit 5\n"
        "  audience load FILE...            load events of your own: docs/event_contract.md\n"
        "  audience build                   bring the marts up to now; again with nothing new changes nothing\n"
        "  audience segments list           whom to act on: docs/segments.md\n"
        "  audience dev                     the Dagster UI: assets, checks and the nightly schedule\n"
        "  audience db stop                 stop the embedded server\n"
        "The commands are in .venv/bin. Point them at your own PostgreSQL with DATABASE_URL or PGHOST."
    )
