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
from collections.abc import Mapping
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


class CheckError(ValueError):
    """Something that keeps a role from working; one line: expected, found, what to do."""


def check_supernode(secrets: Path, name: str, state: str, superlink: str, port: str, config: str) -> str:
    """Check one node; return what its owner should know, empty when there is nothing to say."""
    _check_key(secrets / name)
    _check_config(_parsed(config))
    _check_folder(Path(state))
    _check_port("127.0.0.1", port)
    silent = _check_address(superlink, secrets / "ca.crt")
    return f"{silent}; waiting for it" if silent else ""


def check_superlink(secrets: Path, state: str, host: str, port: str) -> str:
    """Check the SuperLink's files and port."""
    certificate, key = secrets / "server.pem", secrets / "server.key"
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(certificate, key)
        until = x509.load_pem_x509_certificate(_read(certificate)).not_valid_after_utc
    except (OSError, ValueError) as error:  # an SSLError is an OSError
        made = "make both with deploy/certificates.sh"
        raise CheckError(
            f"expected a certificate in {certificate} and its key in {key}, found: {error}; {made}"
        ) from error
    if until < datetime.now(UTC):
        renew = "and no node accepts it; renew it with deploy/certificates.sh"
        raise CheckError(f"{certificate} expired on {until:%Y-%m-%d}, {renew}")
    _check_folder(Path(state))
    _check_port(host, port)
    return ""


def check_operator(secrets: Path, superlink: str) -> str:
    """Check that the SuperLink answers."""
    silent = _check_address(superlink, secrets / "ca.crt")
    if silent:
        raise CheckError(f"{silent}; start it with deploy/superlink.sh, or compare address, port and firewall")
    return ""


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise CheckError(f"{path} cannot be read ({error.strerror}); see step 1 of docs/deployment.md") from error


def _check_key(path: Path) -> None:
    content = _read(path)
    try:
        key = load_ssh_private_key(content, None)
    except TypeError as error:
        raise CheckError(f"the key {path} is locked by a passphrase; make one without: deploy/node_keys.sh") from error
    except ValueError:
        key = None
    if not isinstance(key, EllipticCurvePrivateKey):
        found = "found something else; make one with deploy/node_keys.sh"
        raise CheckError(f"expected a private key on an elliptic curve in {path}, {found}")


def _parsed(config: str) -> Mapping[str, object]:
    from strategy.flower_internals import parse_config_args  # refuses a Flower that it does not know

    try:
        return parse_config_args([config])
    except click.ClickException:
        expected = 'expected KEY=VALUE KEY="TEXT" ..., with texts in double quotes'
        raise CheckError(f"cannot read the node's settings {config!r}; {expected}") from None


def _check_config(config: Mapping[str, object]) -> None:
    unknown = sorted(set(config) - set(KEYS))
    if unknown:
        raise CheckError(f"unknown key {unknown[0]!r} in the node's settings; expected some of {', '.join(KEYS)}")
    place, file = config.get("partition-id"), config.get(OWN_FILE)
    if type(place) is not int or place < 0:
        raise CheckError(
            f"expected partition-id=K with the node's place K = 0, 1, ... in its settings, found {place!r}"
        )
    try:
        check_facts({key: value for key, value in config.items() if key in FACT_RANGES})
    except ProtocolError as error:
        raise CheckError(str(error)) from error
    if file is not None:
        found = local_path(str(file))
        if found is None or not os.access(found, os.R_OK):
            raise CheckError(f"{OWN_FILE}: expected a readable file, found none at {file}; relative to {Path.cwd()}")


def _check_folder(state: Path) -> None:
    probe = state / ".writable"
    try:
        probe.write_bytes(b"x" * 4096)
        probe.unlink()
    except OSError as error:
        raise CheckError(f"cannot write to {state} ({error.strerror}); make room or choose another folder") from error


def _check_port(host: str, port: str) -> None:
    try:
        with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind((host, int(port)))
    except (OSError, OverflowError, ValueError) as error:
        choose = "choose a free port and an address of this machine"
        raise CheckError(f"cannot listen on {host}:{port} ({error}); {choose}") from error


def _check_address(address: str, authority: Path) -> str:
    """Refuse a SuperLink that is not who it should be; say when none answers."""
    host, colon, port = address.rpartition(":")
    if not colon or not port.isdecimal():
        raise CheckError(f"expected the SuperLink as ADDRESS:PORT, found {address!r}")
    try:
        context = ssl.create_default_context(cadata=_read(authority).decode())
    except ValueError as error:
        raise CheckError(
            f"expected the SuperLink's authority in {authority}, found no certificate ({error})"
        ) from error
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
    checks = {"supernode": check_supernode, "superlink": check_superlink}
    try:
        said = checks.get(role, check_operator)(Path(secrets), *rest)
    except (CheckError, RuntimeError) as error:
        print(f"{role}: {error}", file=sys.stderr)
        return 2
    if said:
        print(f"{role}: {said}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
