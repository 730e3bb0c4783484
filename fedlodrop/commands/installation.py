"""The installation: doctor."""

from pathlib import Path

from fedlodrop.commands.shared import EXIT_FAILED, fail, out, say


def doctor() -> None:
    """Check versions, Ray, ports, disk, memory, model files and hub access, and say how to mend what is wrong."""
    from fedlodrop.console.doctor import BROKEN, OK, WARNING, examine

    findings = examine(Path.cwd() / "results")
    colours = {OK: "green", WARNING: "yellow", BROKEN: "red"}
    for finding in findings:
        out.print(f"{finding.state:8}", style=colours[finding.state], end="")
        say(f"{finding.name:14}{finding.found}")
        if finding.mend:
            say(f"{'':22}-> {finding.mend}")
    broken = [finding.name for finding in findings if finding.state == BROKEN]
    if broken:
        fail(f"{len(broken)} check(s) failed: {', '.join(broken)}", EXIT_FAILED)
    say("this installation can run federations")
