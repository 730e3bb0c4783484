"""The ServerApp: compose, run, and turn every failure into one line."""

from logging import ERROR, INFO

from flwr.app import Context
from flwr.common.logger import log
from flwr.serverapp import Grid, ServerApp

from conf.compose import PACKAGES
from tasks.process import prepare_process

prepare_process()
app = ServerApp()

EXIT_FAILED, EXIT_BAD_INPUT, EXIT_NOBODY, EXIT_DIVERGED = 1, 2, 3, 4
# How the reason begins of a run that would end the same way again: deploy/submit.py reads it there, the only thing that
# Flower passes on, and does not try again.
ENDED = {EXIT_BAD_INPUT: "refused:", EXIT_NOBODY: "fruitless:", EXIT_DIVERGED: "diverged:"}


class RunEndedError(RuntimeError):
    """Ends a run with one line for the user, which Flower reports as the run's status.

    A SystemExit ends the process before Flower has noticed, and the run fails a minute later without a reason.
    """

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run one federation (Flower's entry point)."""
    from server_app.session import open_results, run_session

    overrides, results = str(context.run_config.get("overrides", "")), None
    try:
        results = open_results(overrides)
        run_session(grid, overrides, results, lambda line: log(INFO, "%s", line))
    except Exception as error:
        ended = _told(error, begun=results is not None)
        said = str(error) if ended else f"{type(error).__name__}: {error}"
        log(ERROR, "fedlodrop: %s", said)
        if results is not None:  # else the folder may be another's: nothing is written into it
            results.fail(said, ended.exit_code if ended else EXIT_FAILED)
        if ended is None:
            raise
        raise ended from None
    finally:
        if results is not None:
            results.release()
    log(INFO, "done: %s", results.folder)
    log(INFO, "next: fedlodrop report %s", results.folder)


def _told(error: Exception, *, begun: bool) -> RunEndedError | None:
    """Return how a run ends by an error of our own classes, which is the user's to mend; None for any other."""
    from server_app.checkpoint import StorageError
    from server_app.rounds import DivergedError, FruitlessRunError, WorkerDiedError
    from strategy.round.roster import FederationError

    if isinstance(error, (StorageError, FederationError, WorkerDiedError)):  # may be gone at the next try
        return RunEndedError(str(error), EXIT_BAD_INPUT)
    codes: dict[type[Exception], int] = {FruitlessRunError: EXIT_NOBODY, DivergedError: EXIT_DIVERGED}
    ours = isinstance(error, (ValueError, *codes)) and type(error).__module__.split(".")[0] in PACKAGES
    if not ours and (begun or not isinstance(error, OSError)):  # the folder cannot be made
        return None
    code = codes.get(type(error), EXIT_BAD_INPUT)
    return RunEndedError(f"{ENDED[code]} {error}", code)
