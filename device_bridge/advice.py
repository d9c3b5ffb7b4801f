"""A device that asks a decision service: ``--controller service`` (or ``service:RULE``), with a rule of its own.

For each frame the device sends its observation and goes on at once: it takes the newest advice if that answers an
observation of at most ``max_age_s`` ago, and its own rule's decision otherwise. So no frame ever waits for the service,
and silence of the service costs at most ``max_age_s`` of old advice.
"""

from __future__ import annotations

import threading
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from adaptsplit.agents.base import ControllerContext, Kind, full_name
from adaptsplit.controller import Controller, Decisions, Observations, State
from adaptsplit.decision import DecisionSpace
from adaptsplit.device_bridge.advice_messages import SCHEMA, ObservationMessage, parse_advice, space_id
from adaptsplit.device_bridge.parts import QuietPart
from adaptsplit.device_bridge.process import new_session
from adaptsplit.errors import ConfigError, MessageError
from adaptsplit.outcome import Outcomes

if TYPE_CHECKING:
    from adaptsplit.device_bridge.agent import DeviceAgent
    from adaptsplit.profiles import ProfileSummary

MAX_ASKED = 64
MAX_AGE_S = 0.5  # advice on older observations costs more than the rule saves: docs/fleet.md has the measurement
DEFAULT_RULE = "deadline"
Publish = Callable[[bytes], object]


class Desk:
    """What was asked and what was answered: pure but for the caller's clock; thread-safe. Times in s."""

    def __init__(self, space: DecisionSpace, max_age_s: float = MAX_AGE_S) -> None:
        self.counts: Counter[str] = Counter()
        self.max_age_s = max_age_s
        self._space, self._decisions = space, space_id(space)
        self._session, self._sequence = new_session(), 0
        self._asked: OrderedDict[int, float] = OrderedDict()
        self._newest: tuple[float, Decisions] | None = None
        self._lock = threading.Lock()

    def ask(self, observation: NDArray[np.float32], now: float) -> bytes:
        """Return the message that asks for a decision on an observation (D,)."""
        with self._lock:
            self._sequence += 1
            self._asked[self._sequence] = now
            if len(self._asked) > MAX_ASKED:
                self._asked.popitem(last=False)
            self.counts["asked"] += 1
            message = ObservationMessage(self._session, self._sequence, SCHEMA, self._decisions, observation)
        return message.to_bytes()

    def heard(self, payload: bytes) -> None:
        """An advice came: untrusted bytes. What is not for us, old, repeated or no legal decision is counted."""
        try:
            advice = parse_advice(payload)
            if advice.session != self._session:
                raise MessageError("advice for another session")
            row = self._space.canonical(np.array([[advice.branch, advice.rate, advice.threshold]]))
        except (MessageError, IndexError):
            self.counts["malformed"] += 1
            return
        with self._lock:
            if (asked_at := self._asked.pop(advice.sequence, None)) is None:
                self.counts["unasked"] += 1
            elif self._newest is None or asked_at > self._newest[0]:
                self._newest = asked_at, row
                self.counts["heard"] += 1

    def newest(self, now: float) -> Decisions | None:
        """Return the newest advice (1, 3), or None when the observation that it answers is too old."""
        with self._lock:
            if self._newest is None or now - self._newest[0] > self.max_age_s:
                return None
            return self._newest[1]


class AdvisedController:
    """Takes a decision service's advice while it is fresh, else its own rule's decision.

    It is of kind ``learned``, so that a device puts it into its guard: what comes over a network is not to be trusted
    more than what a network of neurons says. Without ``publish`` (in the simulator) it is its rule.
    """

    learns = False
    kind: Kind = "learned"

    def __init__(self, name: str, rule: Controller, desk: Desk, clock: Callable[[], float] = time.monotonic) -> None:
        if rule.learns:
            raise ConfigError(f"controller {name!r}: {rule.name!r} learns; the rule for silence must be fixed")
        self.name, self.rule, self.desk = name, rule, desk
        self.publish: Publish | None = None
        self._clock = clock

    def init(self, n: int, rng: np.random.Generator) -> State:
        """Return the rule's state."""
        return self.rule.init(n, rng)

    def act(self, observation: Observations, state: State) -> tuple[Decisions, State]:
        """Ask about the observation, and return fresh advice on an earlier one, or what the rule decides."""
        own, state = self.rule.act(observation, state)
        if self.publish is None or len(observation) != 1:
            return own, state
        now = self._clock()
        advice = self.desk.newest(now)
        self.publish(self.desk.ask(observation[0], now))
        self.desk.counts["advised" if advice is not None else "own"] += 1
        return (own if advice is None else advice), state

    def learn(self, outcomes: Outcomes, state: State) -> State:
        """Learn nothing."""
        return state


def service(
    space: DecisionSpace, summary: ProfileSummary | None, context: ControllerContext, argument: str
) -> Controller:
    """Build ``service[:RULE]``; RULE is any controller that does not learn (default: the deadline rule)."""
    from adaptsplit.agents.build import build_controller

    rule = build_controller(argument or DEFAULT_RULE, space, summary, context)
    return AdvisedController(full_name("service", argument), rule, Desk(space))


def advised_in(controller: object) -> Iterator[AdvisedController]:
    """Yield every advised controller in one that may be guarded or interleaved."""
    if isinstance(controller, AdvisedController):
        yield controller
    for part in (*getattr(controller, "parts", ()), getattr(controller, "learned", None)):
        if part is not None:
            yield from advised_in(part)


class AdvicePart(QuietPart):
    """Joins a device's advised controllers to its link; does nothing on a device that has none."""

    name = "advice"
    leaves: tuple[str, ...] = ("advice",)

    def __init__(self) -> None:
        self._agent: DeviceAgent | None = None
        self._controllers: list[AdvisedController] = []

    def started(self, agent: DeviceAgent) -> None:
        """Join them."""
        self._agent = agent
        self._join()

    def message(self, leaf: str, payload: bytes, now: float) -> None:
        """Hand an advice over."""
        for controller in self._controllers:
            controller.desk.heard(payload)

    def tick(self, now: float) -> None:
        """Join what an update of the policy has put in their place, and tell the device's counts."""
        self._join()
        self._tell()

    def settled(self, controller: str, outcome: Outcomes) -> None:
        """Tell the device's counts."""
        self._tell()

    def _tell(self) -> None:
        assert self._agent is not None
        for key in {key for controller in self._controllers for key in controller.desk.counts}:
            self._agent.counts[f"advice_{key}"] = sum(c.desk.counts[key] for c in self._controllers)

    def _join(self) -> None:
        assert self._agent is not None
        self._controllers = [found for part in self._agent.decider.parts for found in advised_in(part)]
        for controller in self._controllers:
            controller.publish = self._publish

    def _publish(self, payload: bytes) -> None:
        assert self._agent is not None
        self._agent.link.publish("observe", payload, qos=0)
