"""A fleet's own certificate authority: one folder of PEM files (X.509, RFC 5280; keys on the curve P-256).

ca.crt, ca.key, ca.crl      the authority: its certificate, its private key, the list of what it has revoked
ID.crt, ID.key              one holder: a device, an edge server, a monitor, an operator, or the broker (``broker``)

The common name is the holder's id, the organisation is the fleet, the organisational unit is the role. Clients may only
be clients and the broker only a server (extended key usage). Private keys are readable by their owner only.
"""

from __future__ import annotations

import contextlib
import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives import serialization as pem
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from adaptsplit.device_bridge.topics import check_id
from adaptsplit.errors import ConfigError
from adaptsplit.files import check_private, write_new, write_whole

BROKER = "broker"
ROLES = ("device", "edge", "monitor", "operator", BROKER)
AUTHORITY = "ca"
CA_DAYS, DAYS = 3650, 365  # our choice: the life of a fleet, and one year
_TOLERANCE = timedelta(minutes=5)  # of clocks that are slow when a certificate is new
_MAX_PEM_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Holder:
    """Whom a certificate is for: id, role and fleet; ``hosts`` are the names and addresses of a broker."""

    name: str
    role: str
    fleet: str
    hosts: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Authority:
    """The authority in a folder, with its private key. ``create`` makes one, ``load`` reads one."""

    folder: Path
    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey

    @classmethod
    def create(cls, folder: Path, fleet: str, days: int = CA_DAYS) -> Authority:
        """Make the authority of a fleet in ``folder``; ConfigError where there is one, or the folder is read-only."""
        check_id("fleet", fleet)
        key = ec.generate_private_key(ec.SECP256R1())
        names = _name(f"adaptsplit {fleet}", fleet, "authority")
        builder = _builder(names, key.public_key(), days).issuer_name(names)
        builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        builder = builder.add_extension(_usage(authority=True), critical=True)
        authority = cls(folder, builder.sign(key, hashes.SHA256()), key)
        _make_folder(folder)
        _write(folder / f"{AUTHORITY}.key", _private_pem(key), 0o600)
        _write(folder / f"{AUTHORITY}.crt", authority.certificate.public_bytes(pem.Encoding.PEM), 0o644)
        _write(folder / f"{AUTHORITY}.crl", authority._list([]), 0o644)
        return authority

    @classmethod
    def load(cls, folder: Path) -> Authority:
        """Read the authority of a folder; ConfigError where it is missing or not ours."""
        certificate = load_certificate(folder / f"{AUTHORITY}.crt")
        path = folder / f"{AUTHORITY}.key"
        check_private(path)
        try:
            key = pem.load_pem_private_key(_read(path), password=None)
        except (ValueError, TypeError) as error:
            raise ConfigError(f"{path}: no unencrypted private key in PEM form; {_CURE}") from error
        if not isinstance(key, ec.EllipticCurvePrivateKey) or key.public_key() != certificate.public_key():
            raise ConfigError(f"{path}: not the key of {AUTHORITY}.crt beside it; {_CURE}")
        return cls(folder, certificate, key)

    @property
    def fleet(self) -> str:
        """The fleet that it is for."""
        return fleet_of(self.certificate)

    def issue(
        self, name: str, role: str, hosts: Sequence[str] = (), days: int = DAYS, *, start: datetime | None = None
    ) -> tuple[Path, Path]:
        """Write ``NAME.crt`` and ``NAME.key`` (mode 0600); return both.

        Args:
            name: id of the device, edge server or monitor; ``broker`` for the broker.
            role: one of ``ROLES``.
            hosts: for the broker: names and addresses that clients reach it by (subject alternative names).
            days: how long it holds, at most until the authority's own end.
            start: when it begins to hold; None for now.

        Raises:
            ConfigError: unknown role, bad id, missing hosts, or the holder has a certificate already.
        """
        _check(name, role, hosts)
        if (self.folder / f"{name}.crt").exists():
            raise ConfigError(
                f"{self.folder / name}.crt: exists; nothing is overwritten: revoke it, or name another id"
            )
        key = ec.generate_private_key(ec.SECP256R1())
        signed = self._sign(key.public_key(), Holder(name, role, self.fleet, tuple(hosts)), days, start)
        paths = self.folder / f"{name}.crt", self.folder / f"{name}.key"
        _write(paths[1], _private_pem(key), 0o600)
        _write(paths[0], signed.public_bytes(pem.Encoding.PEM), 0o644)
        return paths

    def revoke(self, name: str) -> Path:
        """Add ``NAME.crt`` to the revocation list and set it aside (``NAME.crt.SERIAL.revoked``); return the list."""
        path = self.folder / f"{check_id('holder', name)}.crt"
        if name == AUTHORITY:
            raise ConfigError("the authority cannot revoke itself; make a new one in another folder")
        if not path.exists():
            raise ConfigError(f"no certificate of {name!r} in {self.folder}; there are {_issued(self.folder)}")
        serial = load_certificate(path).serial_number
        entry = x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(datetime.now(UTC)).build()
        listed = self.folder / f"{AUTHORITY}.crl"
        _replace(listed, self._list([*load_revoked(listed), entry]))
        for old in (path, path.with_suffix(".key")):
            if old.exists():
                old.rename(old.with_name(f"{old.name}.{serial:x}.revoked"))
        return listed

    def _sign(
        self, public: ec.EllipticCurvePublicKey, holder: Holder, days: int, start: datetime | None
    ) -> x509.Certificate:
        names = _name(holder.name, holder.fleet, holder.role)
        end = self.certificate.not_valid_after_utc
        builder = _builder(names, public, days, start, end).issuer_name(self.certificate.subject)
        use = ExtendedKeyUsageOID.SERVER_AUTH if holder.role == BROKER else ExtendedKeyUsageOID.CLIENT_AUTH
        own = self.key.public_key()
        builder = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        builder = builder.add_extension(_usage(authority=False), critical=True)
        builder = builder.add_extension(x509.ExtendedKeyUsage([use]), critical=False)
        builder = builder.add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(own), critical=False)
        if holder.hosts:
            alternatives = x509.SubjectAlternativeName([_host(host) for host in holder.hosts])
            builder = builder.add_extension(alternatives, critical=False)
        return builder.sign(self.key, hashes.SHA256())

    def _list(self, revoked: Sequence[x509.RevokedCertificate]) -> bytes:
        """Return the list; it holds as long as the authority, for a list past its date shuts everybody out."""
        builder = x509.CertificateRevocationListBuilder().issuer_name(self.certificate.subject)
        builder = builder.last_update(datetime.now(UTC) - _TOLERANCE)
        builder = builder.next_update(self.certificate.not_valid_after_utc)
        for entry in revoked:
            builder = builder.add_revoked_certificate(entry)
        return builder.sign(self.key, hashes.SHA256()).public_bytes(pem.Encoding.PEM)


def _issued(folder: Path) -> str:
    names = sorted(path.stem for path in folder.glob("*.crt") if path.stem != AUTHORITY)
    return ", ".join(names[:20]) or "none"


_CURE = "make one with `adaptsplit keys ca FLEET --out DIR`"


def load_certificate(path: Path) -> x509.Certificate:
    """Read one certificate; ConfigError for anything else."""
    try:
        return x509.load_pem_x509_certificate(_read(path))
    except ValueError as error:
        raise ConfigError(f"{path}: no certificate in PEM form; make one with `adaptsplit keys issue`") from error


def load_revoked(path: Path) -> list[x509.RevokedCertificate]:
    """Read the entries of a revocation list; ConfigError for anything else."""
    try:
        return list(x509.load_pem_x509_crl(_read(path)))
    except ValueError as error:
        raise ConfigError(f"{path}: no revocation list in PEM form; {_CURE}") from error


def holder_of(certificate: x509.Certificate) -> Holder:
    """Return whom a certificate is for; ConfigError where it does not say so as ours do."""
    values = [_attribute(certificate, oid) for oid in (NameOID.COMMON_NAME, NameOID.ORGANIZATIONAL_UNIT_NAME)]
    found = [e.value for e in certificate.extensions if isinstance(e.value, x509.SubjectAlternativeName)]
    hosts = tuple(str(name.value) for names in found for name in names)
    return Holder(values[0], values[1], fleet_of(certificate), hosts)


def fleet_of(certificate: x509.Certificate) -> str:
    """Return the fleet (the subject's organisation) of a certificate."""
    return check_id("fleet", _attribute(certificate, NameOID.ORGANIZATION_NAME))


def _check(name: str, role: str, hosts: Sequence[str]) -> None:
    if role not in ROLES:
        raise ConfigError(f"role {role!r}; expected one of {', '.join(ROLES)}")
    check_id(role, name)
    if name == AUTHORITY or (name == BROKER) != (role == BROKER):
        raise ConfigError(
            f"{role} id {name!r}: the broker is called {BROKER!r}, and nothing else is; {AUTHORITY!r} is taken"
        )
    if (role == BROKER) != bool(hosts):
        raise ConfigError(f"role {role!r} with {len(hosts)} hosts; the broker needs --host NAME, others have none")


def _name(common: str, fleet: str, role: str) -> x509.Name:
    values = {NameOID.COMMON_NAME: common, NameOID.ORGANIZATION_NAME: fleet, NameOID.ORGANIZATIONAL_UNIT_NAME: role}
    return x509.Name([x509.NameAttribute(oid, value) for oid, value in values.items()])


def _builder(
    subject: x509.Name,
    public: ec.EllipticCurvePublicKey,
    days: int,
    start: datetime | None = None,
    latest: datetime | None = None,
) -> x509.CertificateBuilder:
    begin = start or datetime.now(UTC) - _TOLERANCE
    end = begin + timedelta(days=days)
    builder = x509.CertificateBuilder().subject_name(subject).public_key(public)
    builder = builder.serial_number(x509.random_serial_number())
    builder = builder.not_valid_before(begin).not_valid_after(end if latest is None else min(end, latest))
    return builder.add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)


def _usage(*, authority: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not authority,
        key_cert_sign=authority,
        crl_sign=authority,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _host(text: str) -> x509.GeneralName:
    with contextlib.suppress(ValueError):
        return x509.IPAddress(ipaddress.ip_address(text))
    try:
        return x509.DNSName(text)
    except ValueError as error:
        raise ConfigError(f"host {text!r}: expected a host name in ASCII, or an IP address") from error


def _attribute(certificate: x509.Certificate, oid: x509.ObjectIdentifier) -> str:
    found = certificate.subject.get_attributes_for_oid(oid)
    if len(found) != 1:
        raise ConfigError(f"certificate of {certificate.subject.rfc4514_string()!r}: not made by `adaptsplit keys`")
    return str(found[0].value)


def _private_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(pem.Encoding.PEM, pem.PrivateFormat.PKCS8, pem.NoEncryption())


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"{folder}: cannot be made ({error.strerror}); name another folder") from error


def _write(path: Path, data: bytes, mode: int) -> None:
    try:
        write_new(path, data, mode)
    except FileExistsError as error:
        raise ConfigError(f"{path}: exists; nothing is overwritten: choose another folder or id") from error
    except OSError as error:
        raise ConfigError(f"{path}: cannot be written ({error.strerror}); choose another folder") from error


def _replace(path: Path, data: bytes) -> None:
    """Replace a file at one instant, so that a broker that starts now reads the old list or the new one."""
    try:
        write_whole(path, data)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be written ({error.strerror})") from error


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            data = file.read(_MAX_PEM_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror}); {_CURE}") from error
    if len(data) > _MAX_PEM_BYTES:
        raise ConfigError(f"{path}: more than {_MAX_PEM_BYTES} bytes; not a file of ours")
    return data
