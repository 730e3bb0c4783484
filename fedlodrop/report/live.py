"""The report of a run that goes on, served to browsers of this machine: read-only, under an address nobody guesses."""

import secrets
import socket
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import uvicorn
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, PlainTextResponse, Response
from starlette.routing import Route

from fedlodrop.report.data import ReportError
from fedlodrop.report.page import build_report

_HOST = "127.0.0.1"
_FILES = ("environment.json", "rounds.jsonl", "summary.json", "failure.json")
_PRIVATE = {"Cache-Control": "no-store", "Referrer-Policy": "no-referrer", "X-Content-Type-Options": "nosniff"}


def live_app(folder: Path, token: str) -> Starlette:
    """Return the server of a run's report at ``/token/``; the page loads itself anew when the run's files change."""

    def page(request: Request) -> Response:
        try:
            return HTMLResponse(build_report([folder], live=_version(folder)), headers=_PRIVATE)
        except ReportError as error:  # nothing is written yet
            return PlainTextResponse(f"{error}\n", headers={**_PRIVATE, "Refresh": "2"})

    def version(request: Request) -> Response:
        return PlainTextResponse(_version(folder), headers=_PRIVATE)

    hosts = Middleware(TrustedHostMiddleware, allowed_hosts=[_HOST, "localhost"])  # no page of another name reads it
    return Starlette(routes=[Route(f"/{token}/", page), Route(f"/{token}/version", version)], middleware=[hosts])


def watch(folder: Path, port: int, say: Callable[[str], None]) -> None:
    """Serve a run's report on the loopback interface, port 0: a free one, until Ctrl-C."""
    token = secrets.token_urlsafe(16)
    with socket.create_server((_HOST, port)) as listener:
        say(f"live report of {folder}: http://{_HOST}:{listener.getsockname()[1]}/{token}/   (Ctrl-C ends it)")
        settings = uvicorn.Config(live_app(folder, token), log_level="warning", access_log=False)
        with suppress(KeyboardInterrupt):
            uvicorn.Server(settings).run(sockets=[listener])


def _version(folder: Path) -> str:
    """Say in a word which state of a run its files describe."""
    found = [path.stat() for name in _FILES if (path := folder / name).exists()]
    return "-".join(f"{stat.st_mtime_ns}.{stat.st_size}" for stat in found)
