"""Command lines: `exex run`, `exex journal`, `exex doctor` and more, and `python -m exex.run`. Only this imports click."""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click

from exex.commands.ending import USAGE, told_errors
from exex.config import Config
from exex.errors import ConfigError, ExexError
from exex.launch.world import expected_world
from exex.version import __version__

if TYPE_CHECKING:
    from exex.launch.job import Job

_SCRIPT_SETTINGS: dict[str, Any] = {"allow_interspersed_args": False, "help_option_names": ["-h", "--help"]}
_INTERRUPTED = 130


def _config_options() -> list[click.Parameter]:
    """`--config` and one option per field of `Config`. Values arrive as they were typed: `Config.load` judges them."""
    options: list[click.Parameter] = [
        click.Option(["--config"], metavar="FILE", help="TOML file with these settings; also EXEX_CONFIG.")
    ]
    for field in Config.fields_help():
        text = f"{field.help} Also {field.variable}."
        if field.kind == "bool":
            spelling = f"{field.option}/--no-{field.option.removeprefix('--')}"
            options.append(click.Option([spelling, field.name], default=None, is_flag=True, help=text))
        else:
            many = field.kind == "words"
            options.append(click.Option([field.option, field.name], metavar=field.metavar, help=text, multiple=many))
    return options


def _script_arguments(required: bool = True) -> list[click.Parameter]:
    return [
        click.Argument(["script"], required=required),
        click.Argument(["args"], nargs=-1, type=click.UNPROCESSED),
    ]


def _take_config(params: dict[str, Any], env: Mapping[str, str]) -> tuple[Config, list[str]]:
    """Settings from file, variables and `params`, which lose their flags; and those flags as words again.

    Raises:
        ConfigError: see `Config.load`.
    """
    file: str | None = params.pop("config")
    flags = {field.name: params.pop(field.name) for field in Config.fields_help()}
    flags = {name: (",".join(value) or None) if isinstance(value, tuple) else value for name, value in flags.items()}
    words = [] if file is None else ["--config", file]
    for field in Config.fields_help():
        value = flags[field.name]
        if isinstance(value, bool):
            words.append(field.option if value else f"--no-{field.option.removeprefix('--')}")
        elif value is not None:
            words += [field.option, value]
    return Config.load(file, env, flags), words


def _check_script(script: str | None, config: Config | None = None) -> None:
    if script is None:
        if config is not None and config.listen:
            return
        raise ConfigError("Missing argument 'SCRIPT'; a job without one needs --listen, to take clients from elsewhere")
    if not os.path.isfile(script):
        what = "is a directory" if os.path.isdir(script) else "does not exist"
        raise ConfigError(f"the script {script} {what} (current directory: {os.getcwd()})")


# ---- python -m exex.run ----


def parse_run_args(argv: Sequence[str]) -> tuple[Config, str, list[str]]:
    """What `python -m exex.run` was told: settings, the script, and the script's arguments, which stay as they are.

    On a usage error the process ends with status 2; of all ranks only the first says why.

    Args:
        argv: without the program's name.
    """
    rank = expected_world(os.environ).rank
    with contextlib.ExitStack() as quiet:
        if rank:
            null = quiet.enter_context(open(os.devnull, "w"))
            quiet.enter_context(contextlib.redirect_stdout(null))
            quiet.enter_context(contextlib.redirect_stderr(null))
        command = click.Command(
            "exex.run",
            context_settings=_SCRIPT_SETTINGS,
            params=[*_config_options(), *_script_arguments(required=False)],
            help="Run SCRIPT as the client of an exex job; to be started on every rank by srun, mpiexec or aprun.",
        )
        try:
            with command.make_context("python -m exex.run", list(argv)) as context:
                config, _ = _take_config(context.params, os.environ)
                script: str | None = context.params["script"]
                _check_script(script, config)
                return config, script or "", list(context.params["args"])
        except click.ClickException as error:
            error.show()
            sys.exit(error.exit_code)
        except click.exceptions.Exit as end:
            sys.exit(end.exit_code)
        except ConfigError as error:
            print(f"exex: {error}", file=sys.stderr)
            sys.exit(USAGE)


# ---- exex ----


_ELSEWHERE = {
    "campaign": "campaigns",
    "cancel": "clients",
    "clients": "clients",
    "journal": "kept",
    "logs": "kept",
    "report": "kept",
    "results": "clients",
    "shutdown": "clients",
    "submit-call": "clients",
}
"""Commands, and their modules in `commands`, which are imported when they are wanted: every rank imports this module."""


class _Group(click.Group):
    """Ctrl-C ends with 130, as in a shell; click's own status is 1."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted([*self.commands, *_ELSEWHERE])

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _ELSEWHERE:
            return super().get_command(ctx, cmd_name)
        module = importlib.import_module(f"exex.commands.{_ELSEWHERE[cmd_name]}")
        command: click.Command = getattr(module, cmd_name.replace("-", "_"))
        return command

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            print("exex: interrupted", file=sys.stderr)
            sys.exit(_INTERRUPTED)


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="exex", message="%(prog)s %(version)s")
def main() -> None:
    """Run millions of Python and bash tasks inside one MPI job."""


def _run_command(**params: Any) -> None:
    """Run SCRIPT with workers on this machine; with --listen also clients from elsewhere, or only these.

    Inside an allocation of several nodes use the system's launcher instead: srun python -m exex.run SCRIPT ARGS.
    """
    try:
        workers: int | None = params.pop("workers")
        config, words = _take_config(params, os.environ)
        _check_script(params["script"], config)
        if config.journal:
            from exex.store.beginning import check_before_start

            check_before_start(os.path.abspath(config.journal), config.resume)
        sys.exit(_run(config, words, workers, [params["script"], *params["args"]] if params["script"] else []))
    except ConfigError as error:
        print(f"exex run: {error}", file=sys.stderr)
        sys.exit(USAGE)
    except ExexError as error:
        print(f"exex run: {error}", file=sys.stderr)
        sys.exit(1)


def _run(config: Config, words: list[str], workers: int | None, script_args: Sequence[str]) -> int:
    """Start the world and wait for its end. Returns the job's exit status."""
    from exex.launch import foreground
    from exex.launch.own_command import local_command

    argv, env = local_command(words, workers, config.slots, script_args, os.environ)
    if os.isatty(2):
        env["EXEX_TTY"] = os.ttyname(2)
    return foreground.run_world(argv, env, config.stop_timeout_s)


def _add(
    name: str, callback: Callable[..., None], params: list[click.Parameter], command: type[click.Command] = click.Command
) -> None:
    main.add_command(command(name, callback=callback, params=params, help=callback.__doc__, context_settings=_SCRIPT_SETTINGS))


_add(
    "run",
    _run_command,
    [
        click.Option(
            ["-n", "--workers"],
            type=click.IntRange(1),
            metavar="WORKERS",
            help="Workers beside the manager. Default: as many as use all cores that this process may run on.",
        ),
        *_config_options(),
        *_script_arguments(required=False),
    ],
)


# ---- exex jobscript, exex submit, exex machines ----


class _JobCommand(click.Command):
    """A command with the options of a job script, which are imported when they are wanted: every rank imports this module."""

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        """Also settings of the job, but for `walltime`: the batch system's is meant."""
        from exex.launch.job import OPTIONS

        options = [click.Option([o.option, o.name], metavar=o.metavar, help=o.help, multiple=o.is_list) for o in OPTIONS]
        settings = [option for option in _config_options() if option.name != "walltime"]
        return [*self.params, *options, *settings, *_script_arguments(), *super().get_params(ctx)[len(self.params) :]]


def _plan(params: dict[str, Any]) -> Job:
    """The job that `params` ask for."""
    from exex.launch.job import OPTIONS, plan_job, variables
    from exex.launch.machines import load_machine

    values = {entry.name: params.pop(entry.name) for entry in OPTIONS}
    if values["machine"] is None:
        raise ConfigError("--machine is missing; `exex machines` lists them")
    config, words = _take_config({**params, "walltime": None}, variables(values))
    script_args = [params["script"], *params["args"]]
    machine = load_machine(values["machine"], os.environ)
    return plan_job(machine, values, config=config, words=words, script_args=script_args, python=sys.executable)


def _jobscript_command(**params: Any) -> None:
    """Print the job script that runs SCRIPT on a machine.

    Options stand before SCRIPT; what follows it is the script's own.
    """
    from exex.launch.submit import make_script

    with told_errors("jobscript"):
        print(make_script(_plan(params), os.environ), end="")


def _submit_command(dry_run: bool, **params: Any) -> None:
    """Submit a job that runs SCRIPT, and print its id.

    The job script is kept in the current directory. Options stand before SCRIPT; what follows it is the script's own.
    """
    from exex.launch import submit

    with told_errors("submit"):
        _check_script(params["script"])
        job = _plan(params)
        script = submit.make_script(job, os.environ)
        if dry_run:
            print(f"{script}\n# {job.machine.system.submit} {job.name}.sh")
            return
        path = submit.keep_script(script, job.name, os.getcwd())
        print(f"exex submit: the job script is {path}", file=sys.stderr)
        print(submit.submit(job.machine.system, path, os.environ))


@main.group(invoke_without_command=True)
@click.pass_context
def machines(context: click.Context) -> None:
    """List the machines that job scripts can be made for."""
    if context.invoked_subcommand is None:
        from exex.launch.machine_text import machines_table

        with told_errors("machines"):
            print(machines_table(os.environ))


@machines.command()
@click.argument("name")
def show(name: str) -> None:
    """Show all that is known of the machine NAME: nodes, queues, settings."""
    from exex.launch.machine_text import machine_text
    from exex.launch.machines import load_machine

    with told_errors("machines"):
        print(machine_text(load_machine(name, os.environ)))


_DRY_RUN = click.Option(["--dry-run"], is_flag=True, help="Print the job script and the command, and submit nothing.")
_add("jobscript", _jobscript_command, [], _JobCommand)
_add("submit", _submit_command, [_DRY_RUN], _JobCommand)


# ---- exex launch-helper ----


def _programs(names: Sequence[str]) -> frozenset[str]:
    """Programs of these launchers, or of all that compute nodes cannot start."""
    from exex.launch.launchers import launcher_names, load_launcher

    files = [load_launcher(name, os.environ) for name in names or launcher_names(os.environ)]
    return frozenset(os.path.basename(file.program) for file in files if names or not file.from_compute_nodes)


@main.command("launch-helper")
@click.argument("file", metavar="FILE")
@click.option("--launcher", "launchers", metavar="NAME", multiple=True, help="Launcher that it may start. Default: all in need.")
@click.option("--most", type=click.IntRange(1), default=256, metavar="N", help="Launches at once; others wait. Default: 256.")
@click.option("--grace-s", type=click.FloatRange(0), default=5.0, metavar="SECONDS", help="From SIGTERM to SIGKILL. Default: 5.")
@click.option("-v", "--verbose", is_flag=True, help="Say on stderr what is started, and when it is over.")
def launch_helper(file: str, launchers: Sequence[str], most: int, grace_s: float, verbose: bool) -> None:
    """Start launchers for tasks on compute nodes that cannot start them; FILE says how it is reached.

    For job scripts, which start it in the background before the ranks. It ends with them.
    """
    from exex.remote.helper import Options, serve

    with told_errors("launch-helper"):
        serve(Options(os.path.abspath(file), _programs(launchers), most, grace_s, verbose))


# ---- exex pack ----


@main.command()
@click.argument("prefix", required=False)
@click.option("--output", metavar="FILE", help="Archive to write: .tar.zst, .tar.gz, .tar.xz or .tar. Default: by PREFIX's name.")
def pack(prefix: str | None, output: str | None) -> None:
    """Make an archive of the environment PREFIX, for `exex run --stage`. Default: the environment of this exex."""
    from exex.launch import stage_pack

    try:
        print(stage_pack.pack(prefix, output))
    except ConfigError as error:
        print(f"exex pack: {error}", file=sys.stderr)
        sys.exit(USAGE)


@main.command()
def doctor() -> None:
    """See whether a job can start here, and say what to do if not."""
    from exex.launch.doctor import run_doctor

    sys.exit(run_doctor(os.environ))


# ---- exex launchers ----


@main.group(invoke_without_command=True)
@click.pass_context
def launchers(context: click.Context) -> None:
    """List the launchers that exex knows."""
    from exex.launch.launcher_list import launcher_table

    if context.invoked_subcommand is None:
        print(launcher_table(os.environ))


@launchers.command("show")
@click.argument("name")
def show_launcher(name: str) -> None:
    """Print the file of launcher NAME, or of the path NAME, and command lines that are made of it."""
    from exex.launch.launcher_list import launcher_page

    try:
        print(launcher_page(name, os.environ))
    except ConfigError as error:
        print(f"exex launchers: {error}", file=sys.stderr)
        sys.exit(USAGE)
