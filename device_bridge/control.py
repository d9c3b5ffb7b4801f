"""The control plane's messages: versioned JSON envelopes that any MQTT tool can read.

    {"schema": "adaptsplit.state/1", "seq": 7, "session": "<32 hex digits>", "ts": 1763.., "mono": 12.5, "data": {...}}

``seq`` counts the messages of one topic within a session, from 1 (a last will has 0); ``session`` names one life of the
sender. ``ts`` is UTC in ms and only shown, ``mono`` the sender's monotonic clock in ms. Unknown keys are ignored,
missing ones refused; so are NaN, Infinity and anything above 64 KiB, before it is parsed. The rules that hold here are
numbered in ``contract``; the JSON schemas are in the folder ``schemas`` (``docs/make_schemas.py`` writes them).
"""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal, NoReturn

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    ValidationError,
    model_serializer,
)

from adaptsplit.config import printable
from adaptsplit.errors import MessageError

MAX_CONTROL_BYTES = 64 * 1024
SESSION_HEX = r"^[0-9a-f]{32}$"
MAX_TTL_MS = 300_000  # a command that may wait for longer is not a command but a desired state
MAX_CHUNK_BYTES = 100 * 1024  # AWS IoT Core takes messages of 128 KB
MAX_ITEMS = 256  # of a mapping; the longest that is allowed anywhere below
_TEXT = 4096
_SHA256 = r"^[0-9a-f]{64}$"
_UUID = r"^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$"
Shown = Annotated[str, AfterValidator(printable)]
"""Text that people will see: what would move a terminal's cursor is escaped, whoever sent it."""


class Data(BaseModel):
    """Base of everything that an envelope can hold; a new kind is one class and one line of ``SCHEMAS``."""

    model_config = ConfigDict(extra="ignore", frozen=True, allow_inf_nan=False)


class Connection(Data):
    """Whether its sender is there; CONNECTION_BROKEN is the last will."""

    state: Literal["ONLINE", "OFFLINE", "CONNECTION_BROKEN"]


class Birth(Data):
    """A device describes itself."""

    library: Shown = Field(max_length=_TEXT)
    bundle: Shown = Field(max_length=_TEXT)
    controllers: list[Shown] = Field(max_length=64)
    observation: Shown = Field(max_length=64)
    branches: list[Shown] = Field(max_length=256)
    classes: list[Shown] = Field(max_length=256)
    fps: float
    deadline_s: float
    window: int


class State(Data):
    """Telemetry of a device, about once a second; the newest is all that counts.

    mode: who decided last: a learned policy, a rule (or static decision), or the recovery of the guard.
    edges: the edge servers that the device knows to be there. battery, load: fraction. What is not
    known (None) is left out of the message. draining: it takes up no more frames, and will soon be OFFLINE.
    """

    frame: int
    controller: Shown = Field(max_length=_TEXT)
    decision: Shown = Field(max_length=_TEXT)
    goodput_bps: float
    rtt_s: float
    unacked: int
    edge: Literal["online", "offline", "unknown"]
    paths: dict[Shown, int] = Field(max_length=32)
    mode: Literal["learned", "rule", "recovery"] = "rule"
    edges: list[Shown] = Field(default=[], max_length=64)
    draining: bool = False
    battery: float | None = None
    load: float | None = None
    temperature_c: float | None = None
    signal_dbm: float | None = None
    latitude_deg: float | None = None
    longitude_deg: float | None = None
    altitude_m: float | None = None

    @model_serializer(mode="wrap")
    def _what_is_known(self, whole: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {name: value for name, value in whole(self).items() if value is not None}


class DecisionCounts(Data):
    """What was decided, and what became of it, over the frames that ended since the last message of this kind.

    frames: how many; first, last: the lowest and highest of their indices. ``decisions`` (by name), ``paths`` and
    ``controllers`` each sum to ``frames``; decisions beyond the most frequent 63 are counted as ``other``.
    """

    frames: int = Field(ge=1)
    first: int = Field(ge=0)
    last: int = Field(ge=0)
    decisions: dict[Shown, int] = Field(max_length=64)
    paths: dict[Shown, int] = Field(max_length=32)
    controllers: dict[Shown, int] = Field(max_length=64)


class Event(Data):
    """Something that happened on a device."""

    kind: Shown = Field(max_length=64)
    detail: Shown = Field(max_length=_TEXT)


class EdgeQueue(BaseModel):
    """The queue of one model of an edge server: jobs that wait, how long a new frame would (s), the largest batch."""

    model_config = ConfigDict(extra="ignore", frozen=True, allow_inf_nan=False)

    waiting: int = Field(ge=0)
    wait_s: float = Field(ge=0)
    max_batch: int = Field(ge=1)


class EdgeState(Data):
    """Telemetry of an edge server, about once a second: its queues by model id (hex), and what it has counted.

    workers: "shared" for a member of a group, whose name is told to nobody; "" for one alone.
    """

    queues: dict[Annotated[str, Field(pattern=r"^[0-9a-f]{16}$")], EdgeQueue] = Field(max_length=64)
    counts: dict[Shown, int] = Field(max_length=64)
    workers: Shown = Field(default="", max_length=64)
    draining: bool = False


class Command(Data):
    """Something that a device is asked to do; the topic (``cmd/{name}``) says what.

    life: the session of the device that is meant, from any of its messages: a command never reaches a later life.
    seq: rises from command to command of one sender (the envelope's session). ttl_ms counts from ``issued_ms``, UTC.
    """

    cmd_id: str = Field(pattern=_UUID)
    life: str = Field(pattern=SESSION_HEX)
    seq: int = Field(ge=0, lt=1 << 32)
    issued_ms: int = Field(ge=0, lt=1 << 53)
    ttl_ms: int = Field(ge=1, le=MAX_TTL_MS)
    args: dict[str, bool | int | float | str] = Field(default={}, max_length=16)


class CommandReply(Data):
    """What became of a command. ``reason`` is for people, ``data`` what the command gave (DONE only)."""

    cmd_id: str = Field(pattern=_UUID)
    status: Literal["DONE", "REFUSED", "EXPIRED", "DUPLICATE", "OUT_OF_ORDER", "UNKNOWN"]
    reason: Shown = Field(default="", max_length=_TEXT)
    data: dict[str, Any] = Field(default={}, max_length=256)


class PolicyDesired(Data):
    """The policy that a device shall run. Nothing here is believed: what counts is signed, in ``signature``.

    job: names this request in the answers. signature: the content of the update's ``signature.json``. sha256, size: of
    the update's bytes; its first ``manifest_bytes`` are the manifest, the files that changed follow in order of their
    names. They come in chunks of ``chunk_bytes`` (the last is shorter) on ``policy/chunk/{sha256}/{n}``.
    """

    job: str = Field(pattern=SESSION_HEX)
    signature: dict[str, Any] = Field(max_length=16)
    sha256: str = Field(pattern=_SHA256)
    size: int = Field(ge=1, lt=1 << 40)
    manifest_bytes: int = Field(ge=1, lt=1 << 40)
    chunk_bytes: int = Field(ge=1024, le=MAX_CHUNK_BYTES)


class PolicyReported(Data):
    """What became of a desired policy (the words of AWS IoT Jobs, and ROLLED_BACK).

    job, version: of the desired policy. stage: of IN_PROGRESS. reason: code, "" where nothing is wrong; detail: for
    people. missing: chunks of ``sha256`` that the device asks for now. active_version (0: not signed), active: version
    and manifest digest of the policy that decides.
    """

    job: str = Field(pattern=r"^([0-9a-f]{32})?$")
    version: int = Field(ge=0, lt=1 << 53)
    status: Literal["QUEUED", "IN_PROGRESS", "SUCCEEDED", "FAILED", "REJECTED", "ROLLED_BACK"]
    stage: Literal["", "download", "verify", "self-test", "canary"] = ""
    reason: Shown = Field(default="", max_length=64)
    detail: Shown = Field(default="", max_length=_TEXT)
    progress: float = Field(default=0.0, ge=0, le=1)
    sha256: str = Field(default="", pattern=r"^([0-9a-f]{64})?$")
    missing: list[Annotated[int, Field(ge=0, lt=1 << 20)]] = Field(default=[], max_length=16)
    active_version: int = Field(default=0, ge=0, lt=1 << 53)
    active: str = Field(default="", pattern=r"^([0-9a-f]{64})?$")


SCHEMAS: dict[str, type[Data]] = {
    "adaptsplit.connection/1": Connection,
    "adaptsplit.birth/1": Birth,
    "adaptsplit.state/1": State,
    "adaptsplit.event/1": Event,
    "adaptsplit.decision/1": DecisionCounts,
    "adaptsplit.edge/1": EdgeState,
    "adaptsplit.command/1": Command,
    "adaptsplit.reply/1": CommandReply,
    "adaptsplit.policy-desired/1": PolicyDesired,
    "adaptsplit.policy-reported/1": PolicyReported,
}
_NAMES = {model: name for name, model in SCHEMAS.items()}


def schema_name(data: Data) -> str:
    """Return the name that an envelope carries for this content."""
    return _NAMES[type(data)]


class Envelope(BaseModel):
    """One control message; ``data`` is one of the models above, chosen by ``schema``."""

    model_config = ConfigDict(extra="ignore", frozen=True, allow_inf_nan=False)

    schema_: str = Field(alias="schema", max_length=64)
    seq: int = Field(ge=0, lt=1 << 32)
    session: str = Field(pattern=SESSION_HEX)
    ts: int = Field(ge=0, lt=1 << 53)
    mono: float = Field(ge=0)
    data: dict[str, Any]

    def content(self) -> Data:
        """Return ``data`` as its model; MessageError for an unknown schema or a missing or wrong key."""
        model = SCHEMAS.get(self.schema_)
        if model is None:
            raise MessageError(f"schema {self.schema_!r}; known: {', '.join(SCHEMAS)}")
        _check_items(self.schema_, self.data)
        try:
            return model.model_validate(self.data)
        except ValidationError as error:
            raise MessageError(f"{self.schema_}: {_short(error)}") from error


def build_control(data: Data, *, seq: int, session: bytes, ts_ms: int, mono_ms: float) -> bytes:
    """Return the JSON of one control message; ``session`` is the sender's 16-byte session id."""
    value = {
        "schema": schema_name(data),
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


def _check_items(schema: str, data: dict[str, Any]) -> None:
    """Refuse a long mapping before it is validated: pydantic makes its faults, one per entry, before it counts them."""
    for name, value in data.items():
        if isinstance(value, dict) and len(value) > MAX_ITEMS:
            raise MessageError(f"{schema}: {printable(name[:80])} holds {len(value)} entries; at most {MAX_ITEMS}")


def _short(error: ValidationError) -> str:
    first = error.errors(include_url=False, include_input=False)[0]
    place = printable(".".join(str(part)[:200] for part in first["loc"])) or "(top)"
    return f"{error.error_count()} fault(s), first at {place}: {first['msg']}"
