"""What a job that listens is told from the shell."""

from __future__ import annotations

import sys
from typing import Any

import click

from exex.commands.ending import told_errors
from exex.errors import ConfigError, ExexError

_ADDRESS = click.option("--address", default="", metavar="HOST:PORT", help="Where to reach the job, instead of what FILE says.")


@click.command()
@click.argument("file", type=click.Path(dir_okay=False))
@_ADDRESS
def clients(file: str, address: str) -> None:
    """List the clients of the job of connection file FILE."""
    from exex.client.shell import clients_table

    with told_errors("clients"):
        print(clients_table(file, address))


@click.command()
@click.argument("file", type=click.Path(dir_okay=False))
@click.option("--client", default="", metavar="CLIENT", help="Only tasks of this client, by name or number.")
@click.option("--task", "tasks", multiple=True, type=click.IntRange(0), metavar="N", help="Only this task; may be repeated.")
@_ADDRESS
def cancel(file: str, client: str, tasks: tuple[int, ...], address: str) -> None:
    """Cancel tasks of the job of connection file FILE; without options, all."""
    from exex.client import shell

    with told_errors("cancel"):
        count = shell.cancel(file, client, tasks, address)
        print(f"{count} task{'s' * (count != 1)} cancelled")


@click.command("submit-call", context_settings={"ignore_unknown_options": True})
@click.argument("file", type=click.Path(dir_okay=False))
@click.argument("function", metavar="MODULE:FUNCTION")
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
@click.option("--wait/--detach", default=True, help="Print what it returns, or leave it to exex results. Default: --wait.")
@click.option("--name", default="", metavar="NAME", help="Of the client; with --detach, results are found by it.")
@click.option("--tag", default="", metavar="TEXT", help="A word for the task.")
@_ADDRESS
def submit_call(**params: Any) -> None:
    """Call a function in the job of connection file FILE. Arguments are JSON where they parse as that, else text."""
    from exex.client import shell

    with told_errors("submit-call"):
        if not params["wait"] and not params["name"]:
            raise ConfigError("--detach needs --name NAME, by which the result is found")
        file, function, words = params["file"], params["function"], params["arguments"]
        options = {"name": params["name"], "detach": not params["wait"], "tag": params["tag"], "address": params["address"]}
        try:
            print(shell.submit_call(file, function, words, **options))
        except ExexError:
            raise
        except Exception as error:
            print(f"exex submit-call: {function} raised {type(error).__name__}: {error}", file=sys.stderr)
            sys.exit(1)


@click.command()
@click.argument("file", type=click.Path(dir_okay=False))
@click.argument("name")
@_ADDRESS
def results(file: str, name: str, address: str) -> None:
    """Collect what tasks of the detached client NAME have returned; wait for those that have not ended."""
    from exex.client import shell

    with told_errors("results"):
        for task, app, tag, text in shell.results(file, name, address):
            print(f"{task} {app}{f' [{tag}]' if tag else ''}: {text}")


@click.command()
@click.argument("file", type=click.Path(dir_okay=False))
@click.option("--cancel", "now", is_flag=True, help="Cancel tasks, instead of waiting until all are done.")
@_ADDRESS
def shutdown(file: str, now: bool, address: str) -> None:
    """End the job of connection file FILE, which has no script, when all of its tasks are done."""
    from exex.client import shell

    with told_errors("shutdown"):
        left = shell.shutdown(file, now, address)
        if left:
            print(f"the job {'cancels' if now else 'ends after'} {left} task{'s' * (left != 1)}")
