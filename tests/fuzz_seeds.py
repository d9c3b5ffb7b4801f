"""Valid messages that the targets of fuzzing damage, and what stands for a device and its connections."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from types import SimpleNamespace
from typing import Any

import numpy as np
from fuzz_policies import SPACE
from fuzzing import SESSION, sealed

from adaptsplit import fuzzing as fz
from adaptsplit import observation as obs
from adaptsplit.codecs import get_codec
from adaptsplit.device_bridge.advice_messages import (
    SCHEMA,
    ObservationMessage,
    space_id,
)
from adaptsplit.device_bridge.control import (
    Birth,
    Command,
    CommandReply,
    Connection,
    Data,
    DecisionCounts,
    EdgeQueue,
    EdgeState,
    Event,
    PolicyDesired,
    PolicyReported,
    State,
    build_control,
)
from adaptsplit.device_bridge.messages import (
    Ack,
    FrameMessage,
    Heartbeat,
    Result,
    ServerLoad,
    Status,
)
from adaptsplit.errors import MessageError
from adaptsplit.signing import Statement, sign_statement
from adaptsplit.signing_keys import PrivateKey

LIFE = SESSION.hex()
KEY = PrivateKey.from_private_bytes(bytes(32))
NOW = 1_763_700_000
FLEET = "default"
UUID = "01234567-89ab-cdef-0123-456789abcdef"


def frame_of(model: bytes = b"") -> FrameMessage:
    """Return a frame message, of version 2 where it names a model."""
    codec: Any = get_codec("q4c-zstd")
    values = np.linspace(-1.0, 1.0, 64).astype(np.float32).reshape(4, 4, 4)
    return FrameMessage(SESSION, 7, 300, 2, 3, 5_000_001, 180_000, codec.encode(values), model)


def short_messages() -> list[bytes]:
    """Return one of each other message."""
    load = ServerLoad(3, 0.02)
    short = (
        Ack(SESSION, 7, 300),
        Result(SESSION, 7, 300, 0.012, 0.002, 0.75, Status.DONE, bytes(range(16))),
        Result(SESSION, 7, 300, 0.012, 0.002, 0.75, Status.DONE, bytes(range(16)), load),
        Result(SESSION, 8, 301, 0.3, 0.3, 0.0, Status.DROPPED, b""),
        Heartbeat(SESSION, 4, 4_000_000),
        Heartbeat(SESSION, 4, 1, reply=True),
    )
    return [message.to_bytes() for message in short]


def data_plane() -> tuple[list[bytes], list[fz.Mutator]]:
    """Return all messages, and mutators of them."""
    short, frames = short_messages(), [frame_of(), frame_of(bytes(8))]
    mutators = [fz.sealed_of(data[:-4], sealed) for data in short]
    for frame in frames:
        head = len(frame.to_bytes()) - len(frame.container)
        mutators.append(fz.sealed_of(frame.to_bytes()[: head - 4], sealed, frame.container))
    return [*short, *(frame.to_bytes() for frame in frames)], mutators


def contents() -> tuple[Data, ...]:
    """Return content of every schema."""
    state = State(
        frame=1, controller="c", decision="stem/0/0", goodput_bps=1e6, rtt_s=0.1, unacked=0, edge="online",
        paths={"exit": 2}, edges=["e"], battery=0.5,
    )  # fmt: skip
    birth = Birth(
        library="1", bundle="b", controllers=["a"], observation="0", branches=["s"], classes=["x"], fps=10,
        deadline_s=0.2, window=2,
    )  # fmt: skip
    edge_state = EdgeState(queues={"0" * 16: EdgeQueue(waiting=1, wait_s=0.1, max_batch=4)}, counts={"frames": 3})
    decision = DecisionCounts(frames=2, first=3, last=4, decisions={"a": 2}, paths={"exit": 2}, controllers={"c": 2})
    reply = CommandReply(cmd_id=UUID, status="DONE", data={"x": [1]})
    reported = PolicyReported(job="1" * 32, version=2, status="IN_PROGRESS", stage="download", missing=[0, 1])
    online, event = Connection(state="ONLINE"), Event(kind="link", detail="up")
    return (online, event, state, birth, edge_state, decision, command(), reply, desired(), reported)


def command(name_of_controller: str = "bundle") -> Command:
    """Return a command that holds for all of this file's inputs."""
    args: dict[str, bool | int | float | str] = {"name": name_of_controller, "block": 5}
    return Command(cmd_id=UUID, life=LIFE, seq=1, issued_ms=NOW * 1000, ttl_ms=1000, args=args)


def statement(manifest: bytes = b"") -> Statement:
    """Return the statement about a manifest's bytes."""
    digest = hashlib.sha256(manifest).hexdigest()
    hashes = {"observation": obs.schema_hash(), "decisions": "0" * 16}
    return Statement(manifest=digest, name="n", version=2, issued=NOW, not_after=NOW + 1000, **hashes)


def desired() -> PolicyDesired:
    """Return the announcement of an update of 5000 bytes."""
    signature = json.loads(sign_statement(statement(), KEY))
    sizes = {"size": 5000, "manifest_bytes": 4000, "chunk_bytes": 1024}
    return PolicyDesired(job="1" * 32, signature=signature, sha256="2" * 64, **sizes)


def envelope(content: Data) -> bytes:
    """Return a control message as it travels."""
    return build_control(content, seq=1, session=SESSION, ts_ms=5, mono_ms=1.0)


def observation_of() -> ObservationMessage:
    """Return what a device sees."""
    return ObservationMessage(SESSION, 3, SCHEMA, space_id(SPACE), np.full(obs.SIZE, 0.5, np.float32))


def agent() -> Any:
    """Return what stands for a device around its parts."""
    link = SimpleNamespace(session=LIFE, tell=lambda *_, **__: True, event=lambda *_: None)
    decider = SimpleNamespace(learning=True)
    return SimpleNamespace(link=link, decider=decider, counts=Counter(), summary=dict, options=None, bundle=None)


class NoTransport:
    """Stands for a connection: takes all, sends nothing."""

    def __init__(self, *_: object, **__: object) -> None:
        self.counts: Counter[str] = Counter()

    def publish(self, *_: object, **__: object) -> bool:
        return True

    def publish_latest(self, *_: object, **__: object) -> bool:
        return True

    def wait_connected(self, timeout_s: float) -> None:
        """It stands."""


def unless_counted(counts: Counter[str], name: str, before: int) -> None:
    """Tell a rise of a count as a refusal."""
    if counts[name] > before:
        raise MessageError("counted as malformed")
