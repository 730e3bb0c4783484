"""A function in a process of its own: for solvers that do not heed their clock, and for peak memory."""

import ctypes
import os
import signal
import sys
from collections.abc import Callable
from concurrent.futures.process import BrokenProcessPool
from typing import Any
from unittest.mock import patch


class ChildError(RuntimeError):
    """What a function in a child process raised, or that the process died."""


def _end_with(parent: int) -> None:
    """Let the kernel end this process when its parent is gone, however that happens; only Linux can."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
        if os.getppid() != parent:  # it went before the line above
            os._exit(1)


def run_apart(function: Callable[..., Any], *arguments: Any, limit_s: float | None = None, **options: Any) -> Any:
    """Return ``function(*arguments, **options)``, computed in a fresh process that ends when this one does.

    Raises TimeoutError if there is no answer after ``limit_s`` seconds (the process is ended), and ChildError, one
    line, if the function raised or its process died.
    """
    from joblib.externals.loky import ProcessPoolExecutor

    with patch.dict(os.environ, PYTHONSAFEPATH="1"):  # what lies in the current folder is not imported
        pool = ProcessPoolExecutor(1, initializer=_end_with, initargs=(os.getpid(),))
        answer = pool.submit(function, *arguments, **options)
    try:
        return answer.result(limit_s)
    except TimeoutError:
        raise
    except BrokenProcessPool as error:
        raise ChildError("the process died") from error
    except Exception as error:
        raise ChildError(f"{type(error).__name__}: {' '.join(str(error).split())}") from error
    finally:
        pool.shutdown(wait=True, kill_workers=not answer.done())
