"""The decision service's session: pure (event, now) -> actions; one controller decides for many devices at once.

Observations gather for a few milliseconds and go through the controller as one batch. The newest observation of a
device counts. A controller without state decides on the whole batch in one call; one with state gets a state for each
device, begun anew with each of the device's sessions. Whatever goes wrong here is silence, and silence is the device's
own business (``advice``): nothing that the service says or fails to say can hold up a frame.
"""

from __future__ import annotations

import math
from collections import Counter, OrderedDict
from dataclasses import dataclass

import numpy as np

from adaptsplit import observation as obs
from adaptsplit.controller import Controller, Decisions, State, Stateless
from adaptsplit.decision import DecisionSpace
from adaptsplit.device_bridge.advice_messages import SCHEMA, Advice, ObservationMessage, parse_observation, space_id
from adaptsplit.device_bridge.edge_session import Reply
from adaptsplit.device_bridge.rate_limit import RateLimit
from adaptsplit.device_bridge.topics import DeviceTopics, device_of
from adaptsplit.errors import AdaptsplitError, ConfigError, MessageError

MAX_PENDING = 1024
MAX_DEVICES = 4096
WINDOW_S = 0.002


@dataclass(frozen=True, slots=True)
class _Asked:
    message: ObservationMessage
    arrived: float


class DecisionSession:
    """See the module's text. ConfigError for a controller that learns: the service hears of no outcomes.

    ``limit``: how much one device may ask; what is above is counted (``rate_limited``). None: no limit.
    """

    def __init__(
        self,
        fleet: str,
        controller: Controller,
        space: DecisionSpace,
        window_s: float = WINDOW_S,
        seed: int = 0,
        *,
        limit: RateLimit | None = None,
    ) -> None:
        if controller.learns:
            raise ConfigError(f"controller {controller.name!r} learns, and a decision service hears of no outcomes")
        self.fleet = fleet
        self.counts: Counter[str] = Counter()
        self._controller, self._space, self._window_s = controller, space, window_s
        self._decisions = space_id(space)
        self._seed = seed
        self._limit = limit
        self._batchable = isinstance(controller, Stateless)
        self._pending: OrderedDict[str, _Asked] = OrderedDict()
        self._states: OrderedDict[str, tuple[bytes, State]] = OrderedDict()

    def received(self, topic: str, payload: bytes, now: float) -> None:
        """A message came from somebody; what cannot be used is counted, and never raises."""
        try:
            device, leaf = device_of(topic, self.fleet)
            if self._limit is not None and not self._limit.allows(device, now):
                self.counts["rate_limited"] += 1
                return
            if leaf != "observe":
                raise MessageError(f"a message on {leaf!r}")
            message = parse_observation(payload)
        except AdaptsplitError:
            self.counts["malformed"] += 1
            return
        if (message.schema, message.decisions, message.values.size) != (SCHEMA, self._decisions, obs.SIZE):
            self.counts["other_space"] += 1
            return
        self._ask(device, _Asked(message, now))

    def due(self) -> float:
        """Return when the batch closes (infinity: nothing has come)."""
        if not self._pending:
            return math.inf
        first = next(iter(self._pending.values())).arrived
        return first + self._window_s if len(self._pending) < MAX_PENDING else first

    def decide(self, now: float) -> list[Reply]:
        """Decide for everybody who has asked; call it when ``due``. No reply for what the controller fails on."""
        asked, self._pending = self._pending, OrderedDict()
        if not asked:
            return []
        self.counts["batches"] += 1
        self.counts["largest"] = max(self.counts["largest"], len(asked))
        groups = [list(asked)] if self._batchable else [[device] for device in asked]
        return [reply for group in groups for reply in self._answers(group, asked, now)]

    def _ask(self, device: str, asked: _Asked) -> None:
        self.counts["observations"] += 1
        if (old := self._pending.get(device)) is not None:
            self.counts["superseded"] += 1
            asked = _Asked(asked.message, old.arrived)
        elif len(self._pending) >= MAX_PENDING:
            self.counts["dropped_full"] += 1
            return
        self._pending[device] = asked

    def _answers(self, devices: list[str], asked: OrderedDict[str, _Asked], now: float) -> list[Reply]:
        try:
            rows = self._act(devices, [asked[device].message for device in devices])
        except Exception:  # a controller may do anything; its devices go on with their own rules
            self.counts["failed"] += len(devices)
            return []
        self.counts["advised"] += len(devices)
        return [self._reply(device, asked[device], row, now) for device, row in zip(devices, rows, strict=True)]

    def _act(self, devices: list[str], messages: list[ObservationMessage]) -> Decisions:
        """Return (n, 3) canonical decisions; raises for whatever is none."""
        observations = np.stack([message.values for message in messages])
        state = None if self._batchable else self._state(devices[0], messages[0].session)
        chosen, state = self._controller.act(observations, state)
        if not self._batchable:
            self._states[devices[0]] = messages[0].session, state
        return self._space.canonical(np.asarray(chosen).reshape(len(devices), 3))

    def _state(self, device: str, session: bytes) -> State:
        known, state = self._states.pop(device, (b"", None))
        if known != session:
            state = self._controller.init(1, np.random.default_rng(self._seed))
        if len(self._states) >= MAX_DEVICES:
            self._states.popitem(last=False)
        return state

    def _reply(self, device: str, asked: _Asked, row: Decisions, now: float) -> Reply:
        branch, rate, threshold = (int(i) for i in row)
        m = asked.message
        advice = Advice(m.session, m.sequence, branch, rate, threshold, now - asked.arrived)
        return Reply(DeviceTopics(self.fleet, device).leaf("advice"), advice.to_bytes())
