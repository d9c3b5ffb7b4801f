"""Ed25519 key files in the usual PEM forms (PKCS #8, SubjectPublicKeyInfo), as ``openssl genpkey`` writes them.

A private key file is readable by its owner only and is refused otherwise. It is not encrypted: keep it on the machine
that signs, never on a device.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization as pem
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from adaptsplit.errors import ConfigError
from adaptsplit.files import check_private, write_new

PrivateKey = Ed25519PrivateKey
PublicKey = Ed25519PublicKey
MAX_KEY_BYTES = 8 << 10
PRIVATE_SUFFIX, PUBLIC_SUFFIX = ".key", ".pub"


def key_id(key: PublicKey) -> str:
    """Return 16 hex digits that name a key: the start of the SHA-256 of its 32 raw bytes."""
    return hashlib.sha256(key.public_bytes_raw()).hexdigest()[:16]


def verifies(key: PublicKey, signature: bytes, data: bytes) -> bool:
    """Whether the owner of ``key`` signed ``data``."""
    try:
        key.verify(signature, data)
    except InvalidSignature:
        return False
    return True


def make_keys(folder: Path, name: str) -> tuple[Path, Path]:
    """Write ``NAME.key`` (private, mode 0600) and ``NAME.pub``; return both. ConfigError where one exists."""
    if not name or name != Path(name).name or name.startswith("."):
        raise ConfigError(f"key name {name!r}; expected a plain file name without a folder, such as 'fleet'")
    private, public = folder / f"{name}{PRIVATE_SUFFIX}", folder / f"{name}{PUBLIC_SUFFIX}"
    key = Ed25519PrivateKey.generate()
    nothing = pem.NoEncryption()
    secret = key.private_bytes(pem.Encoding.PEM, pem.PrivateFormat.PKCS8, nothing)
    open_ = key.public_key().public_bytes(pem.Encoding.PEM, pem.PublicFormat.SubjectPublicKeyInfo)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for path, data, mode in ((private, secret, 0o600), (public, open_, 0o644)):
            write_new(path, data, mode)
    except FileExistsError as error:
        raise ConfigError(f"{error.filename}: exists; a key is never overwritten: choose another name") from error
    except OSError as error:
        raise ConfigError(f"{folder}: cannot be written ({error.strerror}); name another folder with --out") from error
    return private, public


def load_private(path: Path) -> PrivateKey:
    """Read a private key; ConfigError for another kind of key, or one that others may read."""
    data = _read(path)
    if b"PUBLIC KEY-----" in data:
        raise ConfigError(f"{path}: a public key; give the private one, {path.stem}{PRIVATE_SUFFIX}")
    check_private(path)
    try:
        key = pem.load_pem_private_key(data, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise ConfigError(f"{path}: no private key in PEM form; make one with `adaptsplit keys make`") from error
    if not isinstance(key, Ed25519PrivateKey):
        raise ConfigError(f"{path}: not an Ed25519 key; make one with `adaptsplit keys make`")
    return key


def load_public(path: Path) -> PublicKey:
    """Read a public key; ConfigError for anything else."""
    data = _read(path)
    try:
        key = pem.load_pem_public_key(data)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise ConfigError(
            f"{path}: no public key in PEM form; give the {PUBLIC_SUFFIX} file of `adaptsplit keys make`"
        ) from error
    if not isinstance(key, Ed25519PublicKey):
        raise ConfigError(f"{path}: not an Ed25519 key; give the {PUBLIC_SUFFIX} file of `adaptsplit keys make`")
    return key


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            data = file.read(MAX_KEY_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror}); give the path of a key file") from error
    if len(data) > MAX_KEY_BYTES:
        raise ConfigError(f"{path}: more than {MAX_KEY_BYTES} bytes; no key file")
    return data
