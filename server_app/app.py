"""The ServerApp: compose, run, and turn every failure into one line."""

from logging import ERROR, INFO

from flwr.app import Context
from flwr.common.logger import log
from flwr.serverapp import Grid, ServerApp

from conf.compose import PACKAGES, ConfigError
from tasks.process import prepare_process

prepare_process()
app = ServerApp()

EXIT_FAILED, EXIT_BAD_INPUT, EXIT_NOBODY, EXIT_DIVERGED = 1, 2, 3, 4
REFUSED = "refused: "  # a run that would end the same way again; deploy/submit.py does not try it again


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
    from server_app.checkpoint import StorageError
    from server_app.session import open_results, run_session

    overrides = str(context.run_config.get("overrides", ""))
    try:
        results = open_results(overrides)
    except (ConfigError, StorageError, OSError) as error:  # the folder may be another's: nothing is written into it
        log(ERROR, "fedlodrop: %s", error)
        passing = isinstance(error, StorageError)
        raise RunEndedError(f"{'' if passing else REFUSED}{error}", EXIT_BAD_INPUT) from None
    try:
        run_session(grid, overrides, results, lambda line: log(INFO, "%s", line))
    except Exception as error:
        message, code = _told(error)
        results.fail(message.removeprefix(REFUSED), code)
        log(ERROR, "fedlodrop: %s", message.removeprefix(REFUSED))
        if code == EXIT_FAILED:
            raise
        raise RunEndedError(message, code) from None
    finally:
        results.release()
    log(INFO, "done: %s", results.folder)
    log(INFO, "next: fedlodrop report %s", results.folder)


def _told(error: Exception) -> tuple[str, int]:
    """Return what to say of an error, and the exit code; errors of our own classes are the user's to mend."""
    from server_app.checkpoint import StorageError
    from server_app.rounds import DivergedError, FruitlessRunError, WorkerDiedError
    from strategy.round.roster import FederationError

    ours = type(error).__module__.split(".")[0] in PACKAGES
    codes: dict[type[Exception], int] = {FruitlessRunError: EXIT_NOBODY, DivergedError: EXIT_DIVERGED}
    if not ours or not isinstance(error, (ValueError, FederationError, WorkerDiedError, *codes)):
        return f"{type(error).__name__}: {error}", EXIT_FAILED
    passing = isinstance(error, (StorageError, FederationError, WorkerDiedError))
    return f"{'' if passing else REFUSED}{error}", codes.get(type(error), EXIT_BAD_INPUT)
