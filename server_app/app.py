"""The ServerApp: compose, run, and turn every failure into one line."""

from __future__ import annotations

from logging import ERROR, INFO

from flwr.app import Context
from flwr.common.logger import log
from flwr.serverapp import Grid, ServerApp

from conf.compose import PACKAGES, ConfigError
from tasks.process import prepare_process

prepare_process()
app = ServerApp()

EXIT_FAILED, EXIT_BAD_INPUT, EXIT_NOBODY_SERVED = 1, 2, 3


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run one federation (Flower's entry point)."""
    from server_app.rounds import NobodyServedError, WorkerDiedError
    from server_app.session import open_results, run_session
    from strategy.sampling import FederationError

    overrides = str(context.run_config.get("overrides", ""))
    try:
        results = open_results(overrides)
    except ConfigError as error:
        log(ERROR, "fedlodrop: %s", error)
        raise SystemExit(EXIT_BAD_INPUT) from None
    try:
        run_session(grid, overrides, results, lambda line: log(INFO, "%s", line))
    except Exception as error:
        # User errors are ValueErrors of our own making and need no traceback; anything else does.
        expected = isinstance(error, (ValueError, FederationError, NobodyServedError, WorkerDiedError)) and _ours(error)
        code = EXIT_NOBODY_SERVED if isinstance(error, NobodyServedError) else EXIT_BAD_INPUT if expected else EXIT_FAILED
        message = str(error) if expected else f"{type(error).__name__}: {error}"
        results.fail(message, code)
        log(ERROR, "fedlodrop: %s", message)
        if not expected:
            raise
        raise SystemExit(code) from None
    finally:
        results.release()
    log(INFO, "done: %s", results.folder)
    log(INFO, "next: fedlodrop report %s", results.folder)


def _ours(error: BaseException) -> bool:
    """Whether an error class is defined in this project, whose messages are written for users."""
    return type(error).__module__.split(".")[0] in PACKAGES
