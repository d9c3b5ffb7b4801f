"""The edge server's session: pure (event, now) -> actions, for any number of devices and several models.

Every frame message is acknowledged on arrival. Frames wait in one bounded queue per model (``batching``): earliest
deadline first, a fair share for each device; what cannot be answered in time is dropped with a result that says so.
Messages that are not ours, damaged or repeated are counted; nothing a device sends can stop the others.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from adaptsplit.device_bridge.batching import MAX_PER_DEVICE, Job, TailQueue
from adaptsplit.device_bridge.messages import (
    MODEL_BYTES,
    Ack,
    FrameMessage,
    Heartbeat,
    Result,
    ServerLoad,
    Status,
    parse_message,
)
from adaptsplit.device_bridge.rate_limit import RateLimit
from adaptsplit.device_bridge.topics import DeviceTopics, device_of
from adaptsplit.errors import AdaptsplitError, ConfigError, MessageError

__all__ = ["MAX_PER_DEVICE", "EdgeSession", "Job", "Lane", "Reply", "TailAnswer", "Work"]

MAX_QUEUE = 64
MAX_QUEUE_BYTES = 32 << 20
MAX_DEVICES = 4096
ANY_MODEL = bytes(MODEL_BYTES)
NO_LOAD = ServerLoad(0, 0.0)


@dataclass(frozen=True, slots=True)
class Reply:
    """Publish on the data plane, or on the control connection for a heartbeat's reply."""

    topic: str
    payload: bytes
    control: bool = False


@dataclass(frozen=True, slots=True)
class Work:
    """Run the tail of ``model`` on these jobs of one branch, then call ``finished``."""

    jobs: tuple[Job, ...]

    @property
    def job(self) -> Job:
        """The first, or only, job."""
        return self.jobs[0]

    @property
    def model(self) -> bytes:
        """Whose tail."""
        return self.jobs[0].model


EdgeAction: TypeAlias = Reply | Work


@dataclass(frozen=True, slots=True)
class TailAnswer:
    """What the tail says: one class per cell, and the calibrated confidence."""

    prediction: bytes
    confidence: float


@dataclass(slots=True)
class Lane:
    """One model: how many branches its decision space has, and its queue."""

    branches: int
    queue: TailQueue


class EdgeSession:
    """See the module's text. One batch per model is at work at a time.

    ``lanes`` by the models' ids; the first also takes frames that name no model. Without ``lanes`` there is one model
    of ``branches`` branches, with a queue of ``max_queue``. ``limit``: how much one device may send; what is above is
    counted (``rate_limited``) and neither parsed nor answered. None: no limit.
    """

    def __init__(
        self,
        fleet: str,
        branches: int = 0,
        max_queue: int = MAX_QUEUE,
        *,
        lanes: Mapping[bytes, Lane] | None = None,
        limit: RateLimit | None = None,
    ) -> None:
        self.fleet = fleet
        self._limit = limit
        self.counts: Counter[str] = Counter()
        self.lanes = dict(lanes or {ANY_MODEL: Lane(branches, TailQueue(max_queue, MAX_QUEUE_BYTES))})
        self._first = next(iter(self.lanes))
        self._prefix = DeviceTopics(fleet, "d").leaf("").removesuffix("d/")
        self._last: OrderedDict[str, tuple[bytes, int]] = OrderedDict()

    @property
    def waiting(self) -> int:
        """Jobs in the queues."""
        return sum(len(lane.queue) for lane in self.lanes.values())

    @property
    def idle(self) -> bool:
        """Whether nothing waits or is at work."""
        return all(lane.queue.idle for lane in self.lanes.values())

    def received(self, topic: str, payload: bytes, now: float) -> list[EdgeAction]:
        """A message came from somebody; MessageError never leaves this method."""
        try:
            device, leaf = device_of(topic, self.fleet)
            if self._limit is not None and not self._limit.allows(device, now):
                self.counts["rate_limited"] += 1
                return []
            message = parse_message(payload)
            if leaf == "up" and isinstance(message, FrameMessage):
                return self._frame(device, message, now)
            if leaf == "heartbeat" and isinstance(message, Heartbeat) and not message.reply:
                return [self._pulse(device, message)]
            raise MessageError(f"{type(message).__name__} on {leaf!r}")
        except (MessageError, ConfigError):
            self.counts["malformed"] += 1
            return []

    def finished(self, work: Work, answers: Sequence[TailAnswer | AdaptsplitError], now: float) -> list[EdgeAction]:
        """The tail has answered, or refused (an error: its container does not decode or fit), each of the jobs."""
        queue = self.lanes[work.model].queue
        queue.done(now)
        self.counts["batches"] += 1
        load = self._load(work.model, now)
        actions: list[EdgeAction] = []
        for job, answer in zip(work.jobs, answers, strict=True):
            actions.append(self._answer(job, answer, now, load))
        return [*actions, *self._next(work.model, now)]

    def worked(self, job: Job, answer: TailAnswer, now: float) -> list[EdgeAction]:
        """``finished`` for a batch of one that was answered."""
        return self.finished(Work((job,)), [answer], now)

    def refused(self, job: Job, error: AdaptsplitError, now: float) -> list[EdgeAction]:
        """``finished`` for a batch of one that could not be used."""
        return self.finished(Work((job,)), [error], now)

    def _pulse(self, device: str, beat: Heartbeat) -> Reply:
        self.counts["heartbeats"] += 1
        reply = Heartbeat(beat.session, beat.sequence, beat.sent_us, reply=True)
        return Reply(DeviceTopics(self.fleet, device).leaf("heartbeat/reply"), reply.to_bytes(), control=True)

    def _frame(self, device: str, message: FrameMessage, now: float) -> list[EdgeAction]:
        model = message.model or self._first
        if model not in self.lanes:  # another server's business; nothing here may answer for it
            self.counts["other_model"] += 1
            return []
        if message.branch >= self.lanes[model].branches:
            raise MessageError(f"branch {message.branch} of {self.lanes[model].branches}")
        self.counts["frames"] += 1
        self.counts["bytes"] += len(message.container)
        reply = Reply(self._down(device), Ack(message.session, message.sequence, message.frame).to_bytes())
        if self._repeated(device, message):
            self.counts["repeated"] += 1
            return [reply]
        queue = self.lanes[model].queue
        if queue.idle:
            return [reply, Work(queue.start(Job(device, message, now, now, model)))]
        return [reply, *self._admit(Job(device, message, now, model=model), now)]

    def _admit(self, job: Job, now: float) -> list[EdgeAction]:
        """Take a job in that something stands before, unless it would be late for that."""
        queue = self.lanes[job.model].queue
        why = "dropped_full" if queue.full(job) else "dropped_hopeless" if queue.hopeless(job, now) else ""
        if why:
            self.counts[why] += 1
            return [self._result(job, now, Status.DROPPED, self._load(job.model, now))]
        queue.push(job)
        return self._next(job.model, now)

    def _repeated(self, device: str, message: FrameMessage) -> bool:
        session, sequence = self._last.pop(device, (b"", -1))
        repeated = session == message.session and message.sequence <= sequence
        self._last[device] = (message.session, max(sequence, message.sequence) if repeated else message.sequence)
        if len(self._last) > MAX_DEVICES:
            self._last.popitem(last=False)
        return repeated

    def _next(self, model: bytes, now: float) -> list[EdgeAction]:
        """Start the next batch of a model whose tail is free; drop what has waited past its deadline."""
        queue = self.lanes[model].queue
        if queue.at_work or not len(queue):
            return []
        batch, late = queue.take(now)
        actions: list[EdgeAction] = [Work(batch)] if batch else []
        if not late:
            return actions
        self.counts["dropped_late"] += len(late)
        load = self._load(model, now)
        return [*(self._result(job, now, Status.DROPPED, load) for job in late), *actions]

    def _answer(self, job: Job, answer: TailAnswer | AdaptsplitError, now: float, load: ServerLoad) -> EdgeAction:
        if isinstance(answer, AdaptsplitError):
            self.counts["refused"] += 1
            return self._result(job, now, Status.REFUSED, load)
        self.counts["answered"] += 1
        self.counts["residence_us"] += round((now - job.arrived) * 1e6)
        return self._result(job, now, Status.DONE, load, answer)

    def _load(self, model: bytes, now: float) -> ServerLoad:
        queue = self.lanes[model].queue
        return NO_LOAD if queue.idle else ServerLoad(len(queue), queue.wait_s(now))

    def _result(
        self, job: Job, now: float, status: Status, load: ServerLoad, answer: TailAnswer | None = None
    ) -> EdgeAction:
        residence = now - job.arrived
        queue = min(max((job.begun or now) - job.arrived, 0.0), residence)
        m = job.message
        prediction, confidence = (b"", 0.0) if answer is None else (answer.prediction, answer.confidence)
        told = load if m.model else None
        result = Result(m.session, m.sequence, m.frame, residence, queue, confidence, status, prediction, told)
        return Reply(self._down(job.device), result.to_bytes())

    def _down(self, device: str) -> str:
        """Return the topic for a device whose id came out of ``device_of``, which has checked it."""
        return f"{self._prefix}{device}/down"
