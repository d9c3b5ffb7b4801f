"""The configuration that is shipped for Mosquitto (folder ``mosquitto``), filled in for one fleet.

It needs a folder of certificates (``certificates``): ca.crt, ca.crl, broker.crt, broker.key, and the .crt files of edge
servers and monitors, whose roles decide what they may do. The authority's private key need not be there. Everything is
copied at the start: what is issued or revoked later counts from the next start on.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from cryptography.exceptions import InvalidSignature

from adaptsplit.device_bridge import certificates as certs
from adaptsplit.device_bridge.certificates import AUTHORITY, BROKER, Holder
from adaptsplit.device_bridge.messages import MAX_MESSAGE_BYTES
from adaptsplit.device_bridge.tls import is_loopback
from adaptsplit.device_bridge.topics import MAX_TOPIC_CHARS, PREFIX, check_id
from adaptsplit.errors import ConfigError
from adaptsplit.files import check_private

PORT = 8883  # IANA: secure-mqtt
MAX_CONNECTIONS = 8192  # two for each of the edge server's 4096 devices
MAX_PACKET_BYTES = MAX_MESSAGE_BYTES + 4 * MAX_TOPIC_CHARS
MEMORY_BYTES = 1 << 30  # of the broker's heap: 64 slow clients with full queues (assumption)
_RUNS_AS = ("mosquitto", "nobody")  # whom Mosquitto, started as root, becomes


@dataclass(frozen=True, slots=True)
class Fleet:
    """What a folder of certificates says: the fleet, the broker's hosts, and who has more rights than a device."""

    folder: Path
    name: str
    hosts: tuple[str, ...]
    holders: tuple[Holder, ...]

    @classmethod
    def load(cls, folder: Path) -> Fleet:
        """Read and check a folder; ConfigError names the file and the cure."""
        authority = certs.load_certificate(folder / f"{AUTHORITY}.crt")
        name = certs.fleet_of(authority)
        check_private(folder / f"{BROKER}.key")
        revoked = {entry.serial_number for entry in certs.load_revoked(folder / f"{AUTHORITY}.crl")}
        holders: dict[str, Holder] = {}
        for path in sorted(folder.glob("*.crt")):
            certificate = certs.load_certificate(path)
            if path.stem == AUTHORITY or certificate.serial_number in revoked:
                continue
            holder = certs.holder_of(certificate)
            try:
                certificate.verify_directly_issued_by(authority)
            except (ValueError, TypeError, InvalidSignature) as error:
                raise ConfigError(f"{path}: not signed by {AUTHORITY}.crt beside it; take it out") from error
            if holder.name != path.stem or holder.fleet != name:
                raise ConfigError(
                    f"{path}: is of {holder.name!r}, fleet {holder.fleet!r}; expected {path.stem!r}, {name!r}"
                )
            holders[holder.name] = holder
        if BROKER not in holders:
            raise ConfigError(
                f"{folder}: no valid {BROKER}.crt; cure: adaptsplit keys issue broker --role broker --host NAME"
            )
        return cls(folder, name, holders.pop(BROKER).hosts, tuple(holders.values()))

    def access(self) -> str:
        """Return the access control list."""
        values = {"PREFIX": PREFIX, "FLEET": self.name}
        parts = [_fill("fleet.acl", values)]
        for holder in self.holders:
            if holder.role in ("edge", "monitor", "operator"):
                parts.append(_fill(f"{holder.role}.acl", {**values, "USER": check_id(holder.role, holder.name)}))
        return "".join(parts)


def write_configuration(fleet: Fleet, folder: Path, host: str, port: int, plain_port: int | None = None) -> Path:
    """Write configuration, access list and copies of the broker's files into ``folder``; return the configuration.

    Started as root, Mosquitto becomes another user before it reads them: then they are that user's.
    """
    values = {"HOST": host, "PORT": port, "FOLDER": folder, "MAX_CONNECTIONS": MAX_CONNECTIONS}
    values |= {"MAX_MESSAGE_BYTES": MAX_MESSAGE_BYTES, "MAX_PACKET_BYTES": MAX_PACKET_BYTES}
    values |= {"MEMORY_BYTES": MEMORY_BYTES}
    text = _fill("secure.conf", values)
    if plain_port is not None:
        text += _fill("plain.conf", {"PORT": plain_port})
    contents = {name: (fleet.folder / name).read_bytes() for name in _COPIED}
    contents |= {"fleet.acl": fleet.access().encode("ascii"), "mosquitto.conf": text.encode()}
    for name, content in contents.items():
        path = folder / name
        path.unlink(missing_ok=True)
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(content)
        _give(path)
    _give(folder)
    return folder / "mosquitto.conf"


_COPIED = (f"{AUTHORITY}.crt", f"{AUTHORITY}.crl", f"{BROKER}.crt", f"{BROKER}.key")


def reachable(fleet: Fleet, host: str) -> str:
    """Return a name that the broker's certificate holds for, as clients of a listener on ``host`` would use it."""
    if host in fleet.hosts:
        return host
    if is_loopback(host):
        return next((name for name in fleet.hosts if is_loopback(name)), fleet.hosts[0])
    return fleet.hosts[0]


def _fill(name: str, values: Mapping[str, object]) -> str:
    text = (files("adaptsplit.device_bridge") / "mosquitto" / name).read_text(encoding="utf-8")
    for key, value in values.items():
        if any(character.isspace() for character in str(value)):
            raise ConfigError(f"{key.lower()} {str(value)!r}: white space cannot stand in Mosquitto's configuration")
        text = text.replace(f"@{key}@", str(value))
    return text


def _give(path: Path) -> None:
    if os.name != "posix" or os.geteuid() != 0:
        return
    import pwd

    for name in _RUNS_AS:
        try:
            user = pwd.getpwnam(name)
        except KeyError:
            continue
        os.chown(path, user.pw_uid, user.pw_gid)
        return
