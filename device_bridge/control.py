"""The control plane's messages: versioned JSON envelopes that any MQTT tool can read.

    {"schema": "adaptsplit.state/1", "seq": 7, "session": "<32 hex digits>", "ts": 1763.., "mono": 12.5, "data": {...}}

``ts`` is UTC in ms and only shown, ``mono`` the sender's monotonic clock in ms. Unknown keys are ignored, missing ones
refused; so are NaN, Infinity and anything above 64 KiB, before it is parsed.
"""

from __future__ import annotations

import json
from typing import Any, Literal, NoReturn, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from adaptsplit.config import printable
from adaptsplit.errors import MessageError

MAX_CONTROL_BYTES = 64 * 1024
_TEXT = 4096


class _Data(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True, allow_inf_nan=False)


class Connection(_Data):
    """Whether its sender is there; CONNECTION_BROKEN is the last will."""

    state: Literal["ONLINE", "OFFLINE", "CONNECTION_BROKEN"]


class Birth(_Data):
    """A device describes itself."""

    library: str = Field(max_length=_TEXT)
    bundle: str = Field(max_length=_TEXT)
    controllers: list[str] = Field(max_length=64)
    observation: str = Field(max_length=64)
    branches: list[str] = Field(max_length=256)
    classes: list[str] = Field(max_length=256)
    fps: float
    deadline_s: float
    window: int


class State(_Data):
    """Telemetry of a device, about once a second; the newest is all that counts."""

    frame: int
    controller: str = Field(max_length=_TEXT)
    decision: str = Field(max_length=_TEXT)
    goodput_bps: float
    rtt_s: float
    unacked: int
    edge: Literal["online", "offline", "unknown"]
    paths: dict[str, int] = Field(max_length=32)


class Event(_Data):
    """Something that happened on a device."""

    kind: str = Field(max_length=64)
    detail: str = Field(max_length=_TEXT)


Data: TypeAlias = Connection | Birth | State | Event
SCHEMAS: dict[str, type[Connection] | type[Birth] | type[State] | type[Event]] = {
    "adaptsplit.connection/1": Connection,
    "adaptsplit.birth/1": Birth,
    "adaptsplit.state/1": State,
    "adaptsplit.event/1": Event,
}
_NAMES = {model: name for name, model in SCHEMAS.items()}


class Envelope(BaseModel):
    """One control message; ``data`` is one of the models above, chosen by ``schema``."""

    model_config = ConfigDict(extra="ignore", frozen=True, allow_inf_nan=False)

    schema_: str = Field(alias="schema", max_length=64)
    seq: int = Field(ge=0, lt=1 << 32)
    session: str = Field(pattern=r"^[0-9a-f]{32}$")
    ts: int = Field(ge=0, lt=1 << 53)
    mono: float = Field(ge=0)
    data: dict[str, Any]

    def content(self) -> Data:
        """Return ``data`` as its model; MessageError for an unknown schema or a missing or wrong key."""
        model = SCHEMAS.get(self.schema_)
        if model is None:
            raise MessageError(f"schema {self.schema_!r}; known: {', '.join(SCHEMAS)}")
        try:
            return model.model_validate(self.data)
        except ValidationError as error:
            raise MessageError(f"{self.schema_}: {_short(error)}") from error


def build_control(data: Data, *, seq: int, session: bytes, ts_ms: int, mono_ms: float) -> bytes:
    """Return the JSON of one control message; ``session`` is the sender's 16-byte session id."""
    value = {
        "schema": _NAMES[type(data)],
        "seq": seq % (1 << 32),
        "session": session.hex(),
        "ts": ts_ms,
        "mono": round(mono_ms, 3),
        "data": data.model_dump(),
    }
    return json.dumps(value, separators=(",", ":"), allow_nan=False).encode()


def parse_control(payload: bytes) -> tuple[Envelope, Data]:
    """Parse a control message into its envelope and content; MessageError for anything else."""
    if len(payload) > MAX_CONTROL_BYTES:
        raise MessageError(f"control message of {len(payload)} bytes; at most {MAX_CONTROL_BYTES}")
    try:
        envelope = Envelope.model_validate(json.loads(payload, parse_constant=_refuse))
    except ValidationError as error:
        raise MessageError(f"control message: {_short(error)}") from error
    except (ValueError, RecursionError) as error:
        raise MessageError(f"control message is not JSON: {str(error)[:200]}") from error
    return envelope, envelope.content()


def json_schemas() -> dict[str, Any]:
    """Return the JSON schema of the envelope and of each kind of content, for publication."""
    contents = {name: model.model_json_schema() for name, model in SCHEMAS.items()}
    return {"adaptsplit.envelope/1": Envelope.model_json_schema(by_alias=True), **contents}


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not allowed")


def _short(error: ValidationError) -> str:
    first = error.errors(include_url=False, include_input=False)[0]
    place = printable(".".join(str(part)[:200] for part in first["loc"])) or "(top)"
    return f"{error.error_count()} fault(s), first at {place}: {first['msg']}"
