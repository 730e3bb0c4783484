"""`export --push` against a hub of our own on the loopback interface: what is uploaded, and what a refusal says."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from fedlodrop.cli import cli
from tests.support.runs import run


class Hub(ThreadingHTTPServer):
    """Takes one commit; every file travels inside it."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answers)
        self.created: dict[str, Any] = {}
        self.files: dict[str, bytes] = {}
        self.refuse = False

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Answers(BaseHTTPRequestHandler):
    server: Hub

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"] or 0))
        if self.server.refuse or self.headers["Authorization"] != "Bearer hf_test":
            return self._answer({"error": "Invalid username or password."}, 401)
        if self.path.endswith("/repos/create"):
            self.server.created = json.loads(body)
            return self._answer(
                {"url": f"{self.server.address}/me/commands", "name": "me/commands", "id": "me/commands"}
            )
        if "/preupload/" in self.path:
            asked = json.loads(body)["files"]
            return self._answer(
                {"files": [{"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in asked]}
            )
        if "/commit/" in self.path:
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    self.server.files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            return self._answer(
                {
                    "commitUrl": f"{self.server.address}/me/commands/commit/1",
                    "commitOid": "1" * 40,
                    "hookOutput": "",
                    "success": True,
                }
            )
        return self._answer({"errors": [], "warnings": []})  # of the card's head

    def do_GET(self) -> None:
        self._answer({"id": "me/commands", "sha": "0" * 40, "siblings": []})

    def _answer(self, content: Any, status: int = 200) -> None:
        text = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *args: Any) -> None:
        pass


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with Hub() as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", server.address)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
        monkeypatch.setenv("HF_TOKEN", "hf_test")
        yield server
        server.shutdown()


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("push") / "run"
    assert run(folder, "run.num_rounds=1", "network.num_devices=2") == 0
    return folder


def test_adapter_card_licence_and_metrics_arrive(hub: Hub, trained: Path, tmp_path: Path) -> None:
    words = ["export", str(trained), "--out", str(tmp_path / "e"), "--push", "me/commands", "--private"]
    done = CliRunner().invoke(cli, words)
    assert done.exit_code == 0 and f"pushed: {hub.address}/me/commands" in done.output, (done.output, done.exception)
    assert hub.created["name"] == "commands" and hub.created["organization"] == "me"
    assert hub.created.get("private") is True or hub.created.get("visibility") == "private"
    assert {path.name for path in (tmp_path / "e").iterdir()} == set(hub.files)
    assert hub.files["adapter_model.safetensors"] == (tmp_path / "e" / "adapter_model.safetensors").read_bytes()
    head = yaml.safe_load(hub.files["README.md"].decode().split("---")[1])
    (model,) = head["model-index"]
    found = {metric["type"]: metric["value"] for metric in model["results"][0]["metrics"]}
    summary = json.loads((trained / "summary.json").read_text())
    assert head["license"] == "apache-2.0" and model["name"] == "commands" and found == summary["final"]["eval"]


@pytest.mark.parametrize(("name", "says"), [("me/commands", "401"), ("not a name", "not a name")])
def test_a_refusal_is_one_line_and_the_export_stays(
    hub: Hub, trained: Path, tmp_path: Path, name: str, says: str
) -> None:
    hub.refuse = True
    done = CliRunner().invoke(cli, ["export", str(trained), "--out", str(tmp_path / "e"), "--push", name])
    assert isinstance(done.exception, ValueError) and says in str(done.exception) and "\n" not in str(done.exception)
    assert "hf auth login" in str(done.exception) and (tmp_path / "e" / "README.md").exists() and not hub.files
