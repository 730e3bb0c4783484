"""What all commands share: where they print, how they fail, and the arguments they have in common."""

import os
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from rich.console import Console
from rich.status import Status
from rich.table import Table
from rich.text import Text
from typer import Argument, Option

from conf.compose import groups, known_values, valid_keys
from fedlodrop.console.printing import printable, printable_lines

EXIT_FAILED, EXIT_BAD_INPUT, EXIT_NOBODY, EXIT_INTERRUPTED = 1, 2, 3, 130


def complete_override(incomplete: str) -> list[str]:
    """Return the overrides that begin like this: keys, or the choices and words that a key takes.

    bash cuts words at ``=`` and wants what stands behind it alone.
    """
    words, prefix = os.environ.get("COMP_WORDS", "").split(), ""
    if "=" in words[-2:]:
        key, value = words[len(words) - 1 - words[::-1].index("=") - 1], incomplete.lstrip("=")
    elif "=" in incomplete:
        key, _, value = incomplete.partition("=")
        prefix = f"{key}="
    else:
        found = [f"{key}=" for key in (*groups(), *valid_keys()) if key.startswith(incomplete)]
        if len(found) == 1:  # two candidates, else the shell puts a blank behind the =
            found += [found[0] + word for word in known_values(found[0][:-1]) or ("VALUE",)]
        return found
    return [prefix + choice for choice in known_values(key) if choice.startswith(value)]


Overrides = Annotated[
    list[str] | None,
    Argument(help="Overrides, e.g. allocator=equal network.num_devices=20", autocompletion=complete_override),
]
ConfigFiles = Annotated[
    list[Path] | None,
    Option("--config", help="YAML file on top of the defaults, also a run's config.yaml; several: the last wins"),
]
RunFolder = Annotated[Path, Argument(help="Folder of a run")]


class PlainConsole(Console):
    """A console that shows text as it is: no markup, no emoji, nothing that a terminal would obey."""

    def __init__(self, *, stderr: bool = False) -> None:
        super().__init__(markup=False, emoji=False, highlight=False, stderr=stderr)

    def render_str(self, text: str, **options: Any) -> Text:
        """Return text for printing, line by line without control characters."""
        return super().render_str(printable_lines(text), **options)

    def print(self, *objects: Any, **options: Any) -> None:
        """Print; in a file or pipe, which have no edge, a table of figures takes the width that it needs."""
        for table in objects:
            if isinstance(table, Table) and not self.is_terminal and not table.show_lines:  # sentences wrap
                table.width = self.measure(table, options=self.options.update(max_width=10_000)).maximum
                options["crop"] = False
        super().print(*objects, **options)


out, err = PlainConsole(), PlainConsole(stderr=True)


def say(line: str) -> None:
    """Print one line: no colours, no wrapping, nothing that a terminal would obey."""
    out.print(printable(line), soft_wrap=True)


def working(text: str) -> Status:
    """Show what is being done while a person at a terminal waits; elsewhere nothing, so that output can be piped."""
    return err.status(text)


def complain(message: str) -> None:
    """Print one line about what went wrong on standard error."""
    err.print(f"fedlodrop: {printable(message)}", style="red", soft_wrap=True)


def fail(message: str, code: int = EXIT_FAILED) -> NoReturn:
    """Complain and end the command with an exit code."""
    complain(message)
    raise typer.Exit(code)
