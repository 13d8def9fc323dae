"""`exex campaign`."""

from __future__ import annotations

import os
import sys

import click

from exex.commands.ending import told_errors
from exex.errors import ConfigError

_CAMPAIGN = click.argument("file", type=click.Path(dir_okay=False))


@click.group()
def campaign() -> None:
    """Run one workload at many sizes of a machine; FILE is a TOML file that says which."""


@campaign.command("plan")
@_CAMPAIGN
def plan_campaign(file: str) -> None:
    """Show all jobs and their node-hours, and write their job scripts."""
    from exex.campaign import jobs, plan

    with told_errors("campaign plan"):
        print(jobs.Jobs(plan.read_campaign(file), os.environ).plan())


@campaign.command("submit")
@_CAMPAIGN
@click.option("--wait", is_flag=True, help="Go on until every job has had its turn.")
def submit_campaign(file: str, wait: bool) -> None:
    """Submit jobs that have no result and are not under way, up to at_once."""
    from exex.campaign import jobs, plan

    with told_errors("campaign submit"):
        all_jobs = jobs.Jobs(plan.read_campaign(file), os.environ)
        if wait:
            all_jobs.submit_all(click.echo)
            return
        left = all_jobs.submit(click.echo)
        print(f"{left} more to submit: run this again when some have ended" if left else "nothing more to submit")


@campaign.command("status")
@_CAMPAIGN
def campaign_status(file: str) -> None:
    """Show how the jobs stand. The exit status is 1 while some have no result."""
    from exex.campaign import jobs, plan

    with told_errors("campaign status"):
        standings = jobs.Jobs(plan.read_campaign(file), os.environ).standings()
        print(jobs.status_text(standings))
    sys.exit(0 if all(standing.state is jobs.State.DONE for standing in standings) else 1)


@campaign.command("collect")
@_CAMPAIGN
def collect_campaign(file: str) -> None:
    """Gather the results that there are in results.json."""
    from exex.campaign import plan, results

    with told_errors("campaign collect"):
        read = plan.read_campaign(file)
        print(f"{len(results.collect(read))} of {len(read.points())} results are in {read.directory / 'results.json'}")


@campaign.command("report")
@_CAMPAIGN
def campaign_report(file: str) -> None:
    """Print a table of all results, and draw them if matplotlib is there."""
    from exex.campaign import plan, report, results

    with told_errors("campaign report"):
        read = plan.read_campaign(file)
        sizes, costs = results.sizes(read, results.collect(read)), report.read_costs(read)
        if not sizes:
            raise ConfigError(f"no job of {file} has left a result; see `exex campaign status {file}`")
        print(report.table(read, sizes, costs))
        path = read.directory / "report.png"
        print(f"drawn: {path}" if report.picture(read, sizes, costs, path) else "no picture: matplotlib is not installed")
