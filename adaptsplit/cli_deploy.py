"""Commands around keys: signatures of bundles, and the certificates of a fleet's devices, edge servers and broker."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from adaptsplit.cli_base import Json, Out, emit

if TYPE_CHECKING:
    from adaptsplit.signing import Statement

keys_app = typer.Typer(
    help="Keys: signatures of bundles (a device started with --trust takes nothing else), and certificates for TLS.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

BundleFolder = Annotated[Path, typer.Argument(metavar="BUNDLE", help="Bundle folder, from `adaptsplit export`.")]
TrustOption = Annotated[
    list[Path] | None, typer.Option("--trust", help="Public key (.pub) whose bundles are taken; may be repeated.")
]
MemoryOption = Annotated[
    Path | None,
    typer.Option("--trust-memory", help="File of the highest version taken (default: ~/.adaptsplit/trust.json)."),
]
DAY_S = 86400
Folder = Annotated[Path, typer.Option("--dir", help="Folder of the authority, from `keys ca`.")]


@keys_app.command("make")
def make(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Name of the key, such as the fleet's.")],
    out: Out,
    as_json: Json = False,
) -> None:
    """Make an Ed25519 key pair: NAME.key stays on the machine that signs, NAME.pub goes to the devices."""
    from adaptsplit.signing_keys import key_id, load_public, make_keys

    private, public = make_keys(out, name)
    identity = key_id(load_public(public))
    if as_json:
        emit({"key": identity, "private": str(private), "public": str(public)})
    else:
        typer.echo(f"key {identity}\nprivate, keep it here: {private}\npublic, for --trust:   {public}")


@keys_app.command("show")
def show(
    public: Annotated[Path, typer.Argument(metavar="KEY", help="Public key (.pub).")], as_json: Json = False
) -> None:
    """Print the id of a public key, as signatures name it."""
    from adaptsplit.signing_keys import key_id, load_public

    identity = key_id(load_public(public))
    if as_json:
        emit({"key": identity})
    else:
        typer.echo(identity)


@keys_app.command("sign")
def sign(
    bundle: BundleFolder,
    key: Annotated[Path, typer.Option("--key", help="Private key (.key).")],
    number: Annotated[
        int | None, typer.Option("--version", min=1, help="Version; devices take higher ones only (default: the time).")
    ] = None,
    days: Annotated[int, typer.Option("--days", min=1, max=36500, help="Days that the signature holds.")] = 30,
    min_library: Annotated[
        str | None, typer.Option("--min-library", help="Oldest adaptsplit that may run it, such as 0.2.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Verify a bundle and sign it; writes signature.json into it."""
    from adaptsplit.bundle_sign import sign_bundle
    from adaptsplit.signing_keys import load_private

    how = sign_bundle(bundle, load_private(key), number=number, valid_s=days * DAY_S, min_library=min_library)
    _tell(how, "signed", as_json)


@keys_app.command("verify")
def verify(bundle: BundleFolder, trust: TrustOption = None, as_json: Json = False) -> None:
    """Check a bundle as a device with --trust would, but for versions taken before; exit code 2 with the reason."""
    from adaptsplit.bundle import load_bundle
    from adaptsplit.errors import ConfigError
    from adaptsplit.signing import Trust
    from adaptsplit.signing_keys import load_public

    if not trust:
        raise ConfigError("no key to check with; name a public key with --trust")
    loaded = load_bundle(bundle, Trust(tuple(load_public(key) for key in trust)))
    assert loaded.signed is not None, "load_bundle verifies when it is given a trust"
    _tell(loaded.signed, "verified", as_json)


@keys_app.command("ca")
def ca(
    fleet: Annotated[str, typer.Argument(metavar="FLEET", help="The fleet's name, as --fleet says it.")],
    out: Out,
    days: Annotated[int, typer.Option("--days", min=1, max=36500, help="Days that it holds.")] = 3650,
) -> None:
    """Make a fleet's certificate authority: ca.crt goes everywhere, ca.key stays here."""
    from adaptsplit.device_bridge.certificates import Authority

    authority = Authority.create(out, fleet, days)
    typer.echo(f"authority of fleet {authority.fleet}: {out / 'ca.crt'}\nprivate, keep it here: {out / 'ca.key'}")


@keys_app.command("issue")
def issue(
    name: Annotated[
        str, typer.Argument(metavar="ID", help="Id of the device or edge server; `broker` for the broker.")
    ],
    folder: Folder,
    role: Annotated[str, typer.Option("--role", help="device, edge, monitor, operator or broker.")] = "device",
    host: Annotated[
        list[str] | None, typer.Option("--host", help="For the broker: its name or IP address; may be repeated.")
    ] = None,
    days: Annotated[int, typer.Option("--days", min=1, max=36500, help="Days that it holds.")] = 365,
) -> None:
    """Make a certificate and a private key (ID.crt, ID.key): device, edge server, monitor, operator or broker."""
    from adaptsplit.device_bridge.certificates import Authority

    certificate, private = Authority.load(folder).issue(name, role, host or (), days)
    typer.echo(f"{role} {name}: {certificate}\nprivate, only for {name}: {private}")


@keys_app.command("revoke")
def revoke(
    name: Annotated[str, typer.Argument(metavar="ID", help="Whose certificate.")],
    folder: Folder,
) -> None:
    """Revoke a certificate; a broker refuses it from its next start on."""
    from adaptsplit.device_bridge.certificates import Authority

    typer.echo(f"revoked {name}; bring {Authority.load(folder).revoke(name)} to the broker and start it again")


def _tell(statement: Statement, what: str, as_json: bool) -> None:
    document: dict[str, Any] = statement.content()
    if as_json:
        emit(document)
        return
    from datetime import UTC, datetime

    until = datetime.fromtimestamp(statement.not_after, UTC).isoformat()
    typer.echo(f"{what}: {statement.name}, version {statement.version}, until {until}")
