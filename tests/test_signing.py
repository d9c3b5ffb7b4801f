"""Signatures: what is signed is fixed to the byte, and whatever is not in order is refused with its code."""

from __future__ import annotations

import base64
import hashlib
import json
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization as pem
from cryptography.hazmat.primitives.asymmetric.ed448 import Ed448PrivateKey
from typer.testing import CliRunner

from adaptsplit import observation as obs
from adaptsplit.bundle_sign import trust_of
from adaptsplit.cli_deploy import keys_app
from adaptsplit.errors import ConfigError
from adaptsplit.signing import (
    CLOCK_TOLERANCE_S,
    MAX_SIGNATURE_BYTES,
    Refusal,
    RefusedBundle,
    Statement,
    Trust,
    canonical,
    decisions_hash,
    parse_signature,
    sign_statement,
)
from adaptsplit.signing_keys import key_id, load_private, load_public, make_keys

MUTATIONS = 100_000
NOW = 1_763_700_000

# RFC 8032, section 7.1, TEST 1 (empty message) and TEST 2 (message 72)
SECRET = bytes.fromhex("9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60")
PUBLIC = bytes.fromhex("d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a")
EMPTY_SIGNED = (
    "e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e06522490155"
    "5fb8821590a33bacc61e39701cf9b46bd25bf5f0595bbe24655141438e7a100b"
)
# RFC 8410: what stands before the 32 bytes of a private and of a public key
PRIVATE_PREFIX, PUBLIC_PREFIX = "302e020100300506032b657004220420", "302a300506032b6570032100"


def write_pem(path: Path, kind: str, prefix: str, raw: bytes) -> Path:
    text = base64.b64encode(bytes.fromhex(prefix) + raw).decode()
    path.write_text(f"-----BEGIN {kind} KEY-----\n{text}\n-----END {kind} KEY-----\n")
    path.chmod(0o600)
    return path


@pytest.fixture
def private(tmp_path: Path) -> Path:
    return write_pem(tmp_path / "rfc.key", "PRIVATE", PRIVATE_PREFIX, SECRET)


@pytest.fixture
def public(tmp_path: Path) -> Path:
    return write_pem(tmp_path / "rfc.pub", "PUBLIC", PUBLIC_PREFIX, PUBLIC)


@pytest.fixture
def trust(public: Path, tmp_path: Path) -> Trust:
    return Trust((load_public(public),), tmp_path / "memory.json", clock=lambda: NOW)


def statement(**changes: Any) -> Statement:
    values: dict[str, Any] = {
        "manifest": "ab" * 32,
        "name": "flight-lte-ppo",
        "version": 7,
        "issued": NOW - 100,
        "not_after": NOW + 1000,
        "observation": obs.schema_hash(),
        "decisions": "0123456789abcdef",
    }
    return Statement(**{**values, **changes})


def refusal(trust: Trust, data: bytes) -> Refusal | None:
    try:
        trust.check(data, "signature.json")
    except RefusedBundle as error:
        refused = error
    else:
        return None
    assert str(refused).startswith(f"[{refused.code}] signature.json") or refused.code is Refusal.MEMORY
    assert "\n" not in str(refused)
    return refused.code


# ---- to the byte ----


def test_keys_and_signatures_are_those_of_rfc_8032(private: Path, public: Path) -> None:
    key = load_private(private)
    assert key.public_key().public_bytes_raw() == load_public(public).public_bytes_raw() == PUBLIC
    assert key.sign(b"").hex() == EMPTY_SIGNED
    assert key_id(key.public_key()) == hashlib.sha256(PUBLIC).hexdigest()[:16] == "21fe31dfa154a261"


def test_the_signed_bytes_are_written_by_hand(private: Path) -> None:
    made = statement(observation="f" * 16, issued=1, not_after=2, name="caf\u00e9 \U0001f681")
    text = (
        'adaptsplit bundle statement 1\n{"decisions":"0123456789abcdef","issued":1,"manifest":"' + "ab" * 32 + '",'
        '"name":"caf\\u00e9 \\ud83d\\ude81","not_after":2,"observation":"ffffffffffffffff","version":7}'
    )
    assert made.to_bytes() == text.encode("ascii")
    key = load_private(private)
    signed = json.loads(sign_statement(made, key))
    key.public_key().verify(bytes.fromhex(signed["signature"]), text.encode("ascii"))
    assert list(signed) == ["schema", "key", "signature", "statement"]


def test_canonical_json_has_one_form() -> None:
    assert canonical({"b": [1, 0.5], "a": {"z": None, "y": "\u00fc"}}) == b'{"a":{"y":"\\u00fc","z":null},"b":[1,0.5]}'
    assert decisions_hash({"a": 1, "b": 2}) == decisions_hash({"b": 2, "a": 1}) != decisions_hash({"a": 1, "b": 3})
    with pytest.raises(ValueError, match="not JSON compliant"):
        canonical(float("nan"))


# ---- refusals ----


def test_a_good_signature_is_taken(trust: Trust, private: Path) -> None:
    signed = trust.check(sign_statement(statement(), load_private(private)), "here")
    assert signed.statement == statement()
    assert trust.memory is not None
    assert not trust.memory.exists()  # only a bundle that was found whole is remembered


REFUSED: dict[str, tuple[dict[str, Any], Refusal | None]] = {
    "other observation": ({"observation": "0" * 16}, Refusal.OBSERVATION),
    "just expired": ({"not_after": NOW - CLOCK_TOLERANCE_S}, None),
    "expired": ({"not_after": NOW - CLOCK_TOLERANCE_S - 1}, Refusal.EXPIRED),
    "clock a little behind": ({"issued": NOW + CLOCK_TOLERANCE_S}, None),
    "from the future": ({"issued": NOW + CLOCK_TOLERANCE_S + 1}, Refusal.EARLY),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_signed_is_checked_too(case: str, trust: Trust, private: Path) -> None:
    changes, code = REFUSED[case]
    assert refusal(trust, sign_statement(statement(**changes), load_private(private))) == code


def test_decisions_may_be_pinned(trust: Trust, private: Path) -> None:
    data = sign_statement(statement(), load_private(private))
    assert refusal(replace(trust, decisions="0123456789abcdef"), data) is None
    assert refusal(replace(trust, decisions="f" * 16), data) == Refusal.DECISIONS


def test_another_key_is_refused_under_its_own_name_and_under_ours(trust: Trust, tmp_path: Path) -> None:
    stranger = load_private(make_keys(tmp_path, "stranger")[0])
    data = sign_statement(statement(), stranger)
    assert refusal(trust, data) == Refusal.KEY
    value = json.loads(data)
    value["key"] = key_id(trust.keys[0])
    assert refusal(trust, json.dumps(value).encode()) == Refusal.SIGNATURE
    assert refusal(replace(trust, keys=(*trust.keys, stranger.public_key())), data) is None
    assert refusal(replace(trust, keys=()), data) == Refusal.KEY


def test_any_change_of_the_statement_breaks_the_signature(trust: Trust, private: Path) -> None:
    data = sign_statement(statement(), load_private(private))
    for key, old in statement().content().items():
        value = json.loads(data)
        value["statement"][key] = old + 1 if isinstance(old, int) else ("0" if old[0] != "0" else "1") + old[1:]
        assert refusal(trust, json.dumps(value).encode()) == Refusal.SIGNATURE, key


MALFORMED = {
    "empty": b"",
    "no object": b"[]",
    "not JSON": b"{",
    "deep": b"[" * 8000,
    "not a number": b'{"a": NaN}',
    "large": b" " * (MAX_SIGNATURE_BYTES + 1),
    "bytes": bytes(range(256)),
    "unknown key": b'{"schema": "adaptsplit.signature/1", "signatur": ""}',
    "long number": b'{"a": ' + b"9" * 5000 + b"}",
}


@pytest.mark.parametrize("case", MALFORMED)
def test_what_is_no_signature_file_is_malformed(case: str, trust: Trust) -> None:
    assert refusal(trust, MALFORMED[case]) == Refusal.MALFORMED


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("adaptsplit.signature/1", "adaptsplit.signature/2"),
        ('"version": 7', '"version": 7.0'),
        ('"version": 7', '"version": "7"'),
        ('"version": 7', '"version": true'),
        ('"version": 7', '"version": 0'),
        ('"version": 7', '"version": 7, "version": 9'),
        ('"version": 7', '"version": 7, "extra": 9'),
        ('"version": 7', '"version": 1e400'),
    ],
)
def test_a_signature_file_has_one_schema(old: str, new: str, trust: Trust, private: Path) -> None:
    text = sign_statement(statement(), load_private(private)).decode()
    assert old in text
    assert refusal(trust, text.replace(old, new).encode()) == Refusal.MALFORMED


# ---- versions ----


def test_a_rollback_and_a_reused_version_are_refused(trust: Trust, private: Path) -> None:
    def data(**changes: Any) -> bytes:
        return sign_statement(statement(**changes), load_private(private))

    trust.remember(statement(version=7))
    assert refusal(trust, data(version=7)) is None  # the device starts again
    assert refusal(trust, data(version=8)) is None
    assert refusal(trust, data(version=6)) == Refusal.ROLLBACK
    assert refusal(trust, data(version=6, name="another-line")) == Refusal.ROLLBACK
    assert refusal(trust, data(version=7, manifest="cd" * 32)) == Refusal.REPLAY
    trust.remember(statement(version=3))  # never goes back
    assert refusal(trust, data(version=6)) == Refusal.ROLLBACK
    assert refusal(replace(trust, memory=None), data(version=6)) is None


@pytest.mark.parametrize("content", [b"", b"{}", b"[1]", b"\xff", b'{"version": 7}', b" " * 5000])
def test_a_damaged_memory_is_not_an_empty_one(content: bytes, trust: Trust, private: Path) -> None:
    assert trust.memory is not None
    trust.memory.write_bytes(content)
    assert refusal(trust, sign_statement(statement(), load_private(private))) == Refusal.MEMORY


def test_a_memory_that_cannot_be_written_refuses(trust: Trust, tmp_path: Path) -> None:
    with pytest.raises(RefusedBundle, match=r"\[memory-damaged\].*cannot be written"):
        replace(trust, memory=tmp_path / "no" / "such" / "folder").remember(statement())


# ---- fuzzing ----


def mutate(data: bytes, rng: random.Random) -> bytes:
    """Flip, cut, double, insert or swap a few bytes."""
    out = bytearray(data)
    for _ in range(rng.randint(1, 3)):
        at, kind = rng.randrange(len(out) or 1), rng.randrange(5)
        if kind == 0 and out:
            out[at] ^= 1 << rng.randrange(8)
        elif kind == 1:
            del out[at : at + rng.randint(1, 40)]
        elif kind == 2:
            out[at:at] = out[at : at + rng.randint(1, 40)]
        elif kind == 3:
            out[at:at] = rng.choice([b"null", b"-1", b"1e999", b'"', b"{", b"[[", b"\xff\xfe", b"\\ud800", b"9" * 30])
        elif out:
            out[at] = rng.randrange(256)
    return bytes(out)


def test_mutated_signature_files_are_refused_and_nothing_else_happens(trust: Trust, private: Path) -> None:
    data = sign_statement(statement(), load_private(private))
    good, rng = parse_signature(data, "good").statement, random.Random(8032)
    taken = 0
    for _ in range(MUTATIONS):
        mutated = mutate(data, rng)
        try:
            assert trust.check(mutated, "fuzz").statement == good  # spaces and the like may differ, the content not
            taken += 1
        except RefusedBundle:
            pass
    assert taken < MUTATIONS // 2


# ---- key files ----


def test_keys_are_made_once_and_the_private_one_is_private(tmp_path: Path) -> None:
    private, public = make_keys(tmp_path / "new", "fleet")
    assert private.stat().st_mode & 0o777 == 0o600
    assert load_private(private).public_key().public_bytes_raw() == load_public(public).public_bytes_raw()
    with pytest.raises(ConfigError, match="never overwritten"):
        make_keys(tmp_path / "new", "fleet")
    for name in ("", "../fleet", ".fleet", "a/b"):
        with pytest.raises(ConfigError, match="plain file name"):
            make_keys(tmp_path, name)
    with pytest.raises(ConfigError, match="cannot be written"):
        make_keys(private / "folder", "fleet")


def test_wrong_key_files_are_refused(private: Path, public: Path, tmp_path: Path) -> None:
    other = tmp_path / "ed448.key"
    plain = pem.NoEncryption()
    other.write_bytes(Ed448PrivateKey.generate().private_bytes(pem.Encoding.PEM, pem.PrivateFormat.PKCS8, plain))
    other.chmod(0o600)
    locked = tmp_path / "locked.key"
    cipher = pem.BestAvailableEncryption(b"secret")
    locked.write_bytes(load_private(private).private_bytes(pem.Encoding.PEM, pem.PrivateFormat.PKCS8, cipher))
    locked.chmod(0o600)
    for path, text in ((other, "not an Ed25519"), (locked, "no private key"), (tmp_path / "none", "cannot be read")):
        with pytest.raises(ConfigError, match=text):
            load_private(path)
    with pytest.raises(ConfigError, match="no public key"):
        load_public(private)
    (tmp_path / "large").write_bytes(b" " * 9000)
    with pytest.raises(ConfigError, match="no key file"):
        load_public(tmp_path / "large")
    private.chmod(0o640)
    with pytest.raises(ConfigError, match="chmod 600"):
        load_private(private)


# ---- the command line ----


def test_keys_on_the_command_line(tmp_path: Path) -> None:
    made = CliRunner().invoke(keys_app, ["make", "fleet", "--out", str(tmp_path), "--json"])
    assert made.exit_code == 0, made.output
    value = json.loads(made.stdout)
    assert CliRunner().invoke(keys_app, ["show", value["public"]]).stdout.strip() == value["key"]
    assert value["private"] == str(tmp_path / "fleet.key")


def test_trust_options(public: Path, tmp_path: Path) -> None:
    trust = trust_of([public], tmp_path / "deep" / "memory.json")
    assert trust is not None
    assert [key_id(key) for key in trust.keys] == ["21fe31dfa154a261"]
    assert (tmp_path / "deep").is_dir()
    assert trust_of(None, None) is None
    with pytest.raises(ConfigError, match="without --trust"):
        trust_of(None, tmp_path / "memory.json")
    with pytest.raises(ConfigError, match="cannot be made"):
        trust_of([public], public / "x" / "memory.json")
