"""What all commands share: common options, and how a result is printed."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

Json = Annotated[bool, typer.Option("--json", help="Print one JSON document on standard output.")]
Data = Annotated[Path | None, typer.Option("--data", help="Directory of recorded data (also: ADAPTSPLIT_DATA).")]
Seed = Annotated[int, typer.Option("--seed", min=0, help="Seed; the same seed gives the same result.")]
Out = Annotated[Path, typer.Option("--out", help="Where to write.")]
ScenarioName = Annotated[str, typer.Argument(metavar="SCENARIO", help="Shipped name or YAML file.")]
Broker = Annotated[str, typer.Option("--broker", help="mqtt://HOST:PORT, or mqtts://HOST:PORT with TLS.")]
Fleet = Annotated[str, typer.Option("--fleet", help="Fleet name.")]
Ca = Annotated[Path | None, typer.Option("--ca", help="TLS: authority of the broker's certificate (ca.crt).")]
Cert = Annotated[Path | None, typer.Option("--cert", help="TLS: certificate of this client (ID.crt).")]
Key = Annotated[Path | None, typer.Option("--key", help="TLS: private key of this client (ID.key).")]
Insecure = Annotated[bool, typer.Option("--insecure", help="Take mqtt:// (no TLS) beyond the loopback interface.")]
Frames = Annotated[str, typer.Option("--frames", help="flight, tiles:PATH, folder:PATH or camera:FILE.")]

DEFAULT_BROKER = "mqtt://127.0.0.1:1883"
DEFAULT_FLEET = "default"


class Pace(StrEnum):
    """How a device paces its stages."""

    profile = "profile"
    native = "native"


class Split(StrEnum):
    """The splits that a policy can be evaluated on."""

    train = "train"
    validation = "validation"
    test = "test"


def emit(document: Any) -> None:
    """Print one JSON document."""
    typer.echo(json.dumps(document, indent=2, allow_nan=False, default=str))


def today() -> str:
    """Return the date, ISO 8601, UTC."""
    return datetime.now(UTC).date().isoformat()
