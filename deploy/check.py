"""Check what a role needs before Flower starts: one line where Flower has a traceback or waits for ever.

    python deploy/check.py supernode SECRETS NAME STATE SUPERLINK PORT 'KEY=VALUE ...'
    python deploy/check.py superlink SECRETS STATE HOST PORT
    python deploy/check.py operator SECRETS SUPERLINK

Called by the three scripts of these names. Exits with 2 when the role cannot work. A SuperLink that does not answer yet
is no fault: nodes wait for it.
"""

import os
import socket
import ssl
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import click
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
from cryptography.hazmat.primitives.serialization import load_ssh_private_key

from adapter.protocol import FACT_RANGES, ProtocolError, check_facts
from conf.places import local_path

OWN_FILE, RADIO = "task.train_file", "radio.command"
KEYS = ("partition-id", "num-partitions", OWN_FILE, RADIO, *FACT_RANGES)


class CheckError(RuntimeError):
    """Something that keeps a role from working; one line: expected, found, what to do."""


@contextmanager
def refusing(what: str, advice: str) -> Iterator[None]:
    """Say in one line why a step fails, and what to do."""
    try:
        yield
    except (OSError, OverflowError, ValueError) as error:  # an SSLError is an OSError
        raise CheckError(f"{what} ({getattr(error, 'strerror', None) or error}); {advice}") from error


def check_supernode(secrets: Path, name: str, state: str, superlink: str, port: str, config: str) -> str:
    """Check one node; return what its owner should know, empty when there is nothing to say."""
    _check_key(secrets / name)
    _check_config(config)
    _check_folder(Path(state))
    _check_port("127.0.0.1", port)
    silent = _check_address(superlink, secrets / "ca.crt")
    return f"{silent}; waiting for it" if silent else ""


def check_superlink(secrets: Path, state: str, host: str, port: str) -> str:
    """Check the SuperLink's files and port."""
    certificate, key = secrets / "server.pem", secrets / "server.key"
    with refusing(f"expected a certificate, {certificate}, and its key", "make both with deploy/certificates.sh"):
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(certificate, key)
        until = x509.load_pem_x509_certificate(certificate.read_bytes()).not_valid_after_utc
    if until < datetime.now(UTC):
        raise CheckError(f"{certificate} expired on {until:%Y-%m-%d}; renew it with deploy/certificates.sh")
    _check_folder(Path(state))
    _check_port(host, port)
    return ""


def check_operator(secrets: Path, superlink: str) -> str:
    """Check that the SuperLink answers."""
    if silent := _check_address(superlink, secrets / "ca.crt"):
        raise CheckError(f"{silent}; start it with deploy/superlink.sh, or compare address, port and firewall")
    return ""


def _read(path: Path) -> bytes:
    with refusing(f"{path} cannot be read", "see step 1 of docs/deployment.md"):
        return path.read_bytes()


def _check_key(path: Path) -> None:
    content, make = _read(path), "make one without a passphrase: deploy/node_keys.sh"
    with refusing(f"expected a private key on an elliptic curve in {path}", make):
        try:
            if not isinstance(load_ssh_private_key(content, None), EllipticCurvePrivateKey):
                raise ValueError("found something else")
        except TypeError as error:
            raise CheckError(f"the key {path} is locked by a passphrase; {make}") from error


def _check_config(text: str) -> None:
    from strategy.flower_internals import parse_config_args  # refuses a Flower that it does not know

    try:
        config = parse_config_args([text])
    except click.ClickException:
        expected = 'expected KEY=VALUE KEY="TEXT" ..., with texts in double quotes'
        raise CheckError(f"cannot read the node's settings {text!r}; {expected}") from None
    if unknown := sorted(set(config) - set(KEYS)):
        raise CheckError(f"unknown key {unknown[0]!r} in the node's settings; expected some of {', '.join(KEYS)}")
    place, file = config.get("partition-id"), config.get(OWN_FILE)
    if type(place) is not int or place < 0:
        raise CheckError(f"expected partition-id=K in the settings, the node's place K = 0, 1, ..., found {place!r}")
    check_facts({key: value for key, value in config.items() if key in FACT_RANGES})
    if file is not None:
        found = local_path(str(file))
        if found is None or not os.access(found, os.R_OK):
            raise CheckError(f"{OWN_FILE}: expected a readable file, found none at {file}; relative to {Path.cwd()}")


def _check_folder(state: Path) -> None:
    probe = state / ".writable"
    with refusing(f"cannot write to {state}", "make room or choose another folder"):
        probe.write_bytes(b"x" * 4096)
        probe.unlink()


def _check_port(host: str, port: str) -> None:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with refusing(f"cannot listen on {host}:{port}", "choose a free port and an address of this machine"):
        socket.create_server((host, int(port)), family=family).close()


def _check_address(address: str, authority: Path) -> str:
    """Refuse a SuperLink that is not who it should be; say when none answers."""
    host, colon, port = address.rpartition(":")
    if not colon or not port.isdecimal():
        raise CheckError(f"expected the SuperLink as ADDRESS:PORT, found {address!r}")
    with refusing(f"expected the SuperLink's authority in {authority}", "copy the SuperLink's ca.crt"):
        context = ssl.create_default_context(cadata=_read(authority).decode())
    host = host.strip("[]")
    try:
        with socket.create_connection((host, int(port)), timeout=5) as raw:
            context.wrap_socket(raw, server_hostname=host).close()
    except ssl.SSLCertVerificationError as error:
        raise CheckError(
            f"the certificate of {address} is not accepted: {error.verify_message}; compare {authority} with the "
            "SuperLink's, and use a name that was given to deploy/certificates.sh"
        ) from error
    except (OSError, OverflowError) as error:
        return f"no SuperLink answers at {address} ({error})"
    return ""


def main(arguments: list[str]) -> int:
    """Run the command line."""
    role, secrets, *rest = arguments
    checks = {"supernode": check_supernode, "superlink": check_superlink, "operator": check_operator}
    try:
        said, code = checks[role](Path(secrets), *rest), 0
    except (ProtocolError, RuntimeError) as error:
        said, code = str(error), 2
    if said:
        print(f"{role}: {said}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
