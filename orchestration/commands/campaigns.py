"""`audience campaigns`: e-mails to a segment, and what became of each."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from orchestration.commands.output import AsJson, show, terminal
from orchestration.errors import CheckFailed, UserError

if TYPE_CHECKING:
    from orchestration.campaigns.bounces import BounceReport
    from orchestration.campaigns.log import Campaign, Details, Send
    from orchestration.campaigns.runner import DryRun
    from orchestration.campaigns.sending import Report
    from orchestration.campaigns.unsubscribes import UnsubscribeReport

campaigns_app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="E-mail campaigns to a segment.")

CampaignName = Annotated[str, typer.Argument(metavar="NAME", help="Name of the campaign.")]
Org = Annotated[str | None, typer.Option("--org", help="Its org; needed when several orgs have one of that name.")]


@campaigns_app.command(
    "send",
    epilog='Example: audience campaigns send spring --org north_hall --segment Champions --purpose "Spring newsletter" --template mails/spring --yes',
)
def campaigns_send(
    name: CampaignName,
    segment: Annotated[str, typer.Option(help="Whom it goes to: those of the segment who said yes.")],
    template: Annotated[
        Path, typer.Option(help="A folder with subject.txt, body.txt and body.html, or a text file: Subject: ...")
    ],
    purpose: Annotated[str, typer.Option(help="What it is for; it is logged.")] = "",
    org: Annotated[str | None, typer.Option(help="Needed when several orgs have a segment of that name.")] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Send. Without it nothing is sent: a dry run.")] = False,
    limit: Annotated[int | None, typer.Option(min=1, help="Messages of this run at most.")] = None,
    rate: Annotated[float | None, typer.Option(min=0.001, help="Messages a second at most. Default: 10.")] = None,
    as_json: AsJson = False,
) -> None:
    """Send a segment an e-mail, to nobody twice; without --yes show counts and some messages."""
    from orchestration.campaigns import log, runner, sending

    with log.connect() as connection:
        if not yes:
            done = runner.dry_run(connection, name, segment, purpose, template, org)
            show(done, as_json, _print_dry_run)
            return
        with terminal().steps("Sending", "recipients are read") as advance:
            report = runner.send(
                connection, name, segment, purpose, template, org, limit=limit, rate=rate, progress=advance
            )
    show(report, as_json, _print_report)
    if report.stopped == sending.INTERRUPTED:
        raise typer.Exit(130)
    if report.is_incomplete:
        raise CheckFailed(
            f"Campaign {name} of {report.org_id} did not reach everybody: see audience campaigns show, then run it again."
        )


@campaigns_app.command("list", epilog="Example: audience campaigns list --org north_hall")
def campaigns_list(
    org: Annotated[str | None, typer.Option(help="One org. Default: all.")] = None, as_json: AsJson = False
) -> None:
    """List campaigns with what became of their messages, of the orgs that you may see."""
    from orchestration.campaigns import log

    with log.connect() as connection:
        found = log.campaigns(connection, org)
    show(found, as_json, _print_campaigns)


@campaigns_app.command("show", epilog="Example: audience campaigns show spring --org north_hall")
def campaigns_show(name: CampaignName, org: Org = None, as_json: AsJson = False) -> None:
    """Show a campaign, the codes of the mail server, and whom nobody knows to have got it."""
    from orchestration.campaigns import log

    with log.connect() as connection:
        found = log.details(connection, log.find(connection, name, org))
    show(found, as_json, _print_details)


@campaigns_app.command(
    "resolve",
    epilog="Example: audience campaigns resolve spring --org north_hall --as sent 3c1f0a8e5b6d47c2a9e0f1b2c3d4e5f6",
)
def campaigns_resolve(
    name: CampaignName,
    became: Annotated[str, typer.Option("--as", help="sent: the server has it; again: the next run sends it.")],
    messages: Annotated[
        list[str] | None, typer.Argument(metavar="[MESSAGE_ID...]", help="Default: all that are uncertain.")
    ] = None,
    org: Org = None,
    as_json: AsJson = False,
) -> None:
    """Say of uncertain recipients whether the mail server took their message."""
    from orchestration.campaigns import log

    statuses = {"sent": "sent", "again": "deferred"}
    if became not in statuses:
        raise UserError(f"--as {became!r} is no answer: give sent or again.")
    with log.connect() as connection:
        done = log.resolve(connection, log.find(connection, name, org), statuses[became], messages or [])
    show(done, as_json, partial(_print_resolved, became=became))


@campaigns_app.command("bounces", epilog="Example: audience campaigns bounces /var/mail/bounces")
def campaigns_bounces(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A returned message, a mailbox (mbox) or a maildir.")],
    as_json: AsJson = False,
) -> None:
    """Note whose message came back, from the delivery reports of mail servers."""
    from orchestration.campaigns import bounces, log

    with log.connect() as connection:
        report = bounces.note(connection, file)
    show(report, as_json, _print_bounces)


@campaigns_app.command("unsubscribe", epilog="Example: audience campaigns unsubscribe /var/log/nginx/unsubscribe.log")
def campaigns_unsubscribe(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A token a line, alone or in a web server's log.")],
    as_json: AsJson = False,
) -> None:
    """Take off who used the link of a message: no campaign goes to them any more."""
    from orchestration.campaigns import log, unsubscribes

    with log.connect() as connection:
        report = unsubscribes.unsubscribe(connection, file)
    show(report, as_json, _print_unsubscribed)


def _print_unsubscribed(report: UnsubscribeReport) -> None:
    print(
        f"{report.lines_count:,} {'line' if report.lines_count == 1 else 'lines'}: {report.unsubscribed_count:,} taken off, {report.already_count:,} were already, "
        f"{report.ignored_count:,} ignored, {report.invalid_count:,} with a token that was not made here."
    )
    if report.invalid_lines:
        print(f"  not made here: line {', '.join(map(str, report.invalid_lines))}")


def _print_bounces(report: BounceReport) -> None:
    print(
        f"{report.messages_count:,} {'message' if report.messages_count == 1 else 'messages'}: {report.bounced_count:,} bounced, {report.already_count:,} known before, "
        f"{report.unknown_count:,} of no campaign here, {report.other_count:,} no report of a failure."
    )


def _print_report(report: Report) -> None:
    print(
        f"Campaign {report.campaign_name} of {report.org_id}: {report.members_count:,} members, of whom {report.consented_count:,} "
        f"said yes and {report.contactable_count:,} have an address."
    )
    for name in ("sent", "deferred", "failed", "uncertain", "suppressed", "already", "unusable"):
        print(f"  {name}: {getattr(report, f'{name}_count'):,}")
    if report.stopped:
        print(f"It stopped: {report.stopped}. The same command goes on.")


def _print_dry_run(found: DryRun) -> None:
    counts = {
        "members": found.members_count, "said yes": found.consented_count, "have an address": found.contactable_count,
        "suppressed": found.suppressed_count, "dealt with already": found.already_count,
        "address that cannot be used": found.unusable_count, "would be sent to": found.ready_count,
    }  # fmt: skip
    print(f"Campaign {found.campaign_name} of {found.org_id}, a dry run: nothing was sent.")
    for name, count in counts.items():
        print(f"  {name}: {'-' if count is None else f'{count:,}'}")
    for preview in found.previews:
        print(f"\nTo: {preview.recipient}\nSubject: {preview.subject}\n\n{preview.text}")
        if preview.html is not None:
            print(f"\n--- HTML ---\n{preview.html}")
    print("\nSend it with the same command and --yes.")


def _print_campaigns(found: list[Campaign]) -> None:
    if not found:
        print("There are no campaigns: audience campaigns send makes one.")
    for campaign in found:
        counts = ", ".join(f"{status} {count:,}" for status, count in sorted(campaign.counts.items())) or "none"
        print(
            f"{campaign.campaign_name} of {campaign.org_id} to {campaign.segment_name}, {campaign.started_at:%Y-%m-%d %H:%M:%S}: {counts}"
        )


def _print_details(found: Details) -> None:
    _print_campaigns([found.campaign])
    print(f"  export: {found.campaign.export_id}\n  template: {found.campaign.template_sha256}")
    for code in found.codes:
        print(f"  {code.status} with {code.status_code or 'no code'}: {code.people_count:,}")
    if found.uncertain:
        print("Uncertain: look for these in the log of the mail server, then audience campaigns resolve.")
    for send in found.uncertain:
        print(f"  <{send.message_id}@...> to {send.visitor_id}, {send.status_at:%Y-%m-%d %H:%M:%S}")


def _print_resolved(done: list[Send], became: str) -> None:
    what = "sent" if became == "sent" else "to be sent again by the next run"
    print(f"{len(done):,} {'message is' if len(done) == 1 else 'messages are'} {what}.")
