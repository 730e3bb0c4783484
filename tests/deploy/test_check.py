"""What stops a role is said in one line before Flower starts; a SuperLink that is not there yet stops nobody."""

from __future__ import annotations

import importlib.util
import os
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from types import ModuleType

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from tests.support.flower import ROOT, free_port

Capture = pytest.CaptureFixture[str]
GOOD = "partition-id=0"


@pytest.fixture(scope="module")
def check() -> ModuleType:
    spec = importlib.util.spec_from_file_location("check", ROOT / "deploy" / "check.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _certificate(folder: Path, name: str, days: int = 2) -> None:
    """Write a certificate that is its own authority: NAME.pem and NAME.key."""
    key, title = ec.generate_private_key(ec.SECP256R1()), x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    until = datetime.now(UTC) + timedelta(days=days)
    host = x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))])
    made = x509.CertificateBuilder(
        title, title, key.public_key(), x509.random_serial_number(), until - timedelta(days=9), until
    )
    (folder / f"{name}.pem").write_bytes(made.add_extension(host, False).sign(key, SHA256()).public_bytes(Encoding.PEM))
    private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    (folder / f"{name}.key").write_bytes(private)


@pytest.fixture(scope="module")
def secrets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("secrets")
    _certificate(folder, "server")
    _certificate(folder, "other")
    (folder / "ca.crt").write_bytes((folder / "server.pem").read_bytes())
    for name, kind, phrase in (("node-0", "ecdsa", ""), ("locked", "ecdsa", "phrase"), ("other-kind", "ed25519", "")):
        subprocess.run(["ssh-keygen", "-q", "-t", kind, "-N", phrase, "-f", str(folder / name)], check=True)
    (folder / "garbage").write_text("no key")
    (folder / "folder").mkdir()
    return folder


@pytest.fixture(scope="module")
def server(secrets: Path) -> Iterator[str]:
    """Answer TLS handshakes with the server's certificate."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(secrets / "server.pem", secrets / "server.key")
    listener = socket.create_server(("", 0))

    def serve() -> None:
        while True:
            try:
                context.wrap_socket(listener.accept()[0], server_side=True).close()
            except ssl.SSLError:
                continue
            except OSError:
                if listener.fileno() < 0:
                    return

    threading.Thread(target=serve, daemon=True).start()
    yield f"127.0.0.1:{listener.getsockname()[1]}"
    listener.close()


def test_a_sound_node_passes_and_a_superlink_that_is_not_there_is_waited_for(
    check: ModuleType, secrets: Path, server: str, tmp_path: Path, capsys: Capture
) -> None:
    (tmp_path / "own.tsv").write_text("sentence\tlabel\n")
    config = f'partition-id=0 cpu-hz=1.7e9 radio.command="tc.sh eth0" task.train_file="{tmp_path / "own.tsv"}"'
    node = ["supernode", str(secrets), "node-0", str(tmp_path)]
    assert check.main([*node, server, str(free_port()), config]) == 0 and not capsys.readouterr().err
    for address in (f"127.0.0.1:{free_port()}", "nowhere.invalid:9093"):
        assert check.main([*node, address, str(free_port()), config]) == 0
        assert f"no SuperLink answers at {address}" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["own.tsv"]  # nothing stays behind


@pytest.mark.parametrize(
    ("name", "config", "said"),
    [
        ("missing", GOOD, "missing cannot be read (No such file"),
        ("folder", GOOD, "folder cannot be read (Is a directory"),
        ("locked", GOOD, "is locked by a passphrase"),
        ("other-kind", GOOD, "private key on an elliptic curve"),
        ("garbage", GOOD, "private key on an elliptic curve"),
        ("node-0", "cpu-hz=1e9", "expected partition-id=K"),
        ("node-0", 'partition-id="0"', "expected partition-id=K"),
        ("node-0", "partition-id=zero", "cannot read the node's settings"),
        ("node-0", "partition-id=0 task.train_file=data/x.tsv", "texts in double quotes"),
        ("node-0", "partition-id=0 max-tx-power=0.1", "unknown key 'max-tx-power'"),
        ("node-0", "partition-id=0 cpu-hz=1e30", "cpu-hz must be a number from"),
        ("node-0", 'partition-id=0 task.train_file="nowhere.tsv"', "found none at nowhere.tsv"),
    ],
)
def test_what_a_node_lacks_is_said_in_one_line(
    name: str, config: str, said: str, check: ModuleType, secrets: Path, server: str, tmp_path: Path, capsys: Capture
) -> None:
    assert check.main(["supernode", str(secrets), name, str(tmp_path), server, str(free_port()), config]) == 2
    printed = capsys.readouterr().err
    assert said in printed and printed.startswith("supernode: ") and printed.count("\n") == 1


def test_wrong_authorities_names_addresses_ports_and_folders(
    check: ModuleType, secrets: Path, server: str, tmp_path: Path, capsys: Capture
) -> None:
    stranger = tmp_path / "stranger"
    stranger.mkdir()
    (stranger / "ca.crt").write_bytes((secrets / "other.pem").read_bytes())
    (stranger / "node-0").write_bytes((secrets / "node-0").read_bytes())
    port, taken = str(free_port()), server.rpartition(":")[2]
    for folder, state, address, own, said in (
        (stranger, tmp_path, server, port, "is not accepted: self-signed certificate"),
        (secrets, tmp_path, f"127.0.0.2:{taken}", port, "not valid for '127.0.0.2'"),
        (secrets, tmp_path, "127.0.0.1", port, "expected the SuperLink as ADDRESS:PORT"),
        (secrets, tmp_path, server, taken, f"cannot listen on 127.0.0.1:{taken}"),
        (secrets, tmp_path / "missing", server, port, "cannot write to"),
        (secrets, Path("/proc"), server, port, "cannot write to"),
    ):
        assert check.main(["supernode", str(folder), "node-0", str(state), address, own, GOOD]) == 2
        assert said in capsys.readouterr().err


def test_what_the_superlink_lacks(check: ModuleType, secrets: Path, tmp_path: Path, capsys: Capture) -> None:
    sound, port = tmp_path / "sound", str(free_port())
    sound.mkdir()
    for name in ("server.pem", "server.key"):
        (sound / name).write_bytes((secrets / name).read_bytes())
    assert check.main(["superlink", str(sound), str(tmp_path), "127.0.0.1", port]) == 0
    (sound / "server.key").write_bytes((secrets / "other.key").read_bytes())
    assert check.main(["superlink", str(sound), str(tmp_path), "127.0.0.1", port]) == 2
    assert "KEY_VALUES_MISMATCH" in capsys.readouterr().err
    _certificate(sound, "server", days=-1)
    assert check.main(["superlink", str(sound), str(tmp_path), "127.0.0.1", port]) == 2
    assert "expired on" in capsys.readouterr().err
    (sound / "server.pem").write_text("no certificate")
    assert check.main(["superlink", str(sound), str(tmp_path), "127.0.0.1", port]) == 2
    assert "make both with deploy/certificates.sh" in capsys.readouterr().err


def test_an_operator_reads_why_the_superlink_cannot_be_reached(
    check: ModuleType, secrets: Path, server: str, capsys: Capture
) -> None:
    port = server.rpartition(":")[2]
    assert check.main(["operator", str(secrets), server]) == 0
    for address, said in (
        (f"127.0.0.2:{port}", "not valid for '127.0.0.2'"),
        (f"127.0.0.1:{free_port()}", "no SuperLink answers at"),
    ):
        assert check.main(["operator", str(secrets), address]) == 2  # who asks now does not wait
        assert said in capsys.readouterr().err


_FLWR = """#!/bin/sh
case $3 in
  *known.pub) echo "[code: 23] Public key already in use." >&2; exit 1 ;;
  *bad.pub) echo "no such file" >&2; exit 1 ;;
esac
echo "$3" >> "$FLWR_HOME/registered"
"""


def test_keys_that_are_registered_already_do_not_keep_others_out(secrets: Path, server: str, tmp_path: Path) -> None:
    tools = tmp_path / "bin"
    tools.mkdir()
    for name, text in (
        ("flwr", _FLWR),
        ("flower-superlink", ""),
        ("python", f'#!/bin/sh\nexec "{sys.executable}" "$@"\n'),
    ):
        (tools / name).write_text(text)
        (tools / name).chmod(0o755)
    command = [
        str(ROOT / "deploy" / "operator.sh"),
        str(secrets),
        str(tmp_path / "home"),
        server,
        "known",
        "new",
        "bad",
        "last",
    ]
    done = subprocess.run(
        command, env=os.environ | {"FEDLODROP_BIN": str(tools)}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1 and "no such file" in done.stderr and "known is registered already" in done.stdout
    assert (tmp_path / "home" / "registered").read_text().split() == [f"{secrets}/new.pub"]


def test_a_certificate_is_renewed_by_the_authority_that_nodes_trust(tmp_path: Path) -> None:
    def script() -> subprocess.CompletedProcess[str]:
        command = [str(ROOT / "deploy" / "certificates.sh"), str(tmp_path), "127.0.0.1"]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    files = ("ca.crt", "ca.key", "server.pem", "server.key")
    assert script().returncode == 0
    before = [(tmp_path / name).read_bytes() for name in files]
    assert script().returncode == 0
    after = [(tmp_path / name).read_bytes() for name in files]
    assert before[:2] == after[:2] and before[2] != after[2]
    verify = ["openssl", "verify", "-CAfile", str(tmp_path / "ca.crt"), str(tmp_path / "server.pem")]
    assert subprocess.run(verify, capture_output=True, check=False).returncode == 0
    (tmp_path / "ca.key").rename(tmp_path / "elsewhere")
    done = script()  # without its key, the authority is not replaced by another one
    assert done.returncode == 2 and "put ca.key back" in done.stderr and (tmp_path / "ca.crt").read_bytes() == after[0]
