"""The `fedlodrop` command: the list of its commands, and errors as one line."""

import os
import re
import signal
import sys
from collections.abc import Callable
from importlib.metadata import version
from typing import Annotated

import typer

from fedlodrop.commands.results import chat, explain, export, figures, predict, report, watch
from fedlodrop.commands.runs import compare_runs, config, doctor, pack, resume, run, runs, show, table
from fedlodrop.commands.shared import EXIT_BAD_INPUT, complain, say
from fedlodrop.commands.studies import bench, calibrate, compare, sweep
from tasks.process import prepare_process

# One line per command, under the heading it has in `fedlodrop --help`. Heavy imports belong inside the commands.
COMMANDS: dict[str, tuple[Callable[..., None], ...]] = {
    "Run": (run, resume, sweep, compare, calibrate),
    "Look at results": (report, watch, explain, figures, predict, chat, export),
    "Runs": (runs, show, compare_runs, table, pack),
    "Measure": (bench,),
    "Set up": (config, doctor),
}

cli = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False)


@cli.callback(invoke_without_command=True)
def _root(shown: Annotated[bool, typer.Option("--version", help="Print it")] = False) -> None:
    """Federated LoRA with dropout over wireless devices."""
    if shown:
        say(f"fedlodrop {version('fedlodrop')}")
        raise typer.Exit


for _heading, _commands in COMMANDS.items():
    for _command in _commands:
        cli.command(rich_help_panel=_heading)(_command)


def main() -> None:
    """Run the command line; expected errors become one line and a non-zero exit."""
    prepare_process()
    for place, word in enumerate(sys.argv):  # no shell expands the ~ in --out=~/x
        sys.argv[place] = re.sub(r"^(--[\w-]+=)(~.*)", lambda found: found[1] + os.path.expanduser(found[2]), word)
    for number in (signal.SIGTERM, signal.SIGHUP):  # as Ctrl-C: what the command started ends with it
        if signal.getsignal(number) is signal.SIG_DFL:
            signal.signal(number, signal.default_int_handler)
    try:
        cli(standalone_mode=True)
    except OSError as error:  # a disk that is full or gone, a place that cannot be written: no fault of the code alone
        places = [str(place) for place in (error.filename, error.filename2) if place is not None]
        complain(f"{error.strerror or error}{': ' * bool(places)}{' -> '.join(places)}")
        sys.exit(EXIT_BAD_INPUT)
    except (ValueError, RuntimeError) as error:
        complain(str(error))
        sys.exit(EXIT_BAD_INPUT)


if __name__ == "__main__":
    main()
