"""The edge server's session: pure (event, now) -> actions, for any number of devices.

Every frame message is acknowledged on arrival. Frames wait in one bounded queue for the tail; a frame whose deadline
has passed in the queue, or that finds it full, is dropped with a result that says so. Messages that are not ours,
damaged or repeated are counted; nothing a device sends can stop the others.
"""

from __future__ import annotations

from collections import Counter, OrderedDict, deque
from dataclasses import dataclass
from typing import TypeAlias

from adaptsplit.device_bridge.messages import Ack, FrameMessage, Heartbeat, Result, Status, parse_message
from adaptsplit.device_bridge.topics import DeviceTopics, device_of
from adaptsplit.errors import AdaptsplitError, ConfigError, MessageError

MAX_QUEUE = 64
MAX_QUEUE_BYTES = 32 << 20
MAX_PER_DEVICE = 8
MAX_DEVICES = 4096


@dataclass(frozen=True, slots=True)
class Reply:
    """Publish on the data plane, or on the control connection for a heartbeat's reply."""

    topic: str
    payload: bytes
    control: bool = False


@dataclass(frozen=True, slots=True)
class Job:
    """A frame that waits for the tail; times in s on the edge's clock."""

    device: str
    message: FrameMessage
    arrived: float
    begun: float = 0.0


@dataclass(frozen=True, slots=True)
class Work:
    """Run the tail on this job, then call ``worked`` or ``refused``."""

    job: Job


EdgeAction: TypeAlias = Reply | Work


@dataclass(frozen=True, slots=True)
class TailAnswer:
    """What the tail says: one class per cell, and the calibrated confidence."""

    prediction: bytes
    confidence: float


class EdgeSession:
    """See the module's text. One job is at work at a time."""

    def __init__(self, fleet: str, branches: int, max_queue: int = MAX_QUEUE) -> None:
        self.fleet = fleet
        self.counts: Counter[str] = Counter()
        self._branches = branches
        self._max_queue = max_queue
        self._queue: deque[Job] = deque()
        self._queued_bytes = 0
        self._queued: Counter[str] = Counter()
        self._working = False
        self._last: OrderedDict[str, tuple[bytes, int]] = OrderedDict()

    @property
    def waiting(self) -> int:
        """Jobs in the queue."""
        return len(self._queue)

    def received(self, topic: str, payload: bytes, now: float) -> list[EdgeAction]:
        """A message came from somebody; MessageError never leaves this method."""
        try:
            device, leaf = device_of(topic, self.fleet)
            message = parse_message(payload)
            if leaf == "up" and isinstance(message, FrameMessage):
                return self._frame(device, message, now)
            if leaf == "heartbeat" and isinstance(message, Heartbeat) and not message.reply:
                return [self._pulse(device, message)]
            raise MessageError(f"{type(message).__name__} on {leaf!r}")
        except (MessageError, ConfigError):
            self.counts["malformed"] += 1
            return []

    def worked(self, job: Job, answer: TailAnswer, now: float) -> list[EdgeAction]:
        """The tail has answered."""
        self.counts["answered"] += 1
        self.counts["residence_us"] += round((now - job.arrived) * 1e6)
        self._working = False
        reply = self._result(job, now, Status.DONE, answer.prediction, answer.confidence)
        return [reply, *self._next(now)]

    def refused(self, job: Job, error: AdaptsplitError, now: float) -> list[EdgeAction]:
        """The container could not be decoded, or does not fit the model."""
        self.counts["refused"] += 1
        self._working = False
        return [self._result(job, now, Status.REFUSED), *self._next(now)]

    def _pulse(self, device: str, beat: Heartbeat) -> Reply:
        self.counts["heartbeats"] += 1
        reply = Heartbeat(beat.session, beat.sequence, beat.sent_us, reply=True)
        return Reply(DeviceTopics(self.fleet, device).leaf("heartbeat/reply"), reply.to_bytes(), control=True)

    def _frame(self, device: str, message: FrameMessage, now: float) -> list[EdgeAction]:
        if message.branch >= self._branches:
            raise MessageError(f"branch {message.branch} of {self._branches}")
        self.counts["frames"] += 1
        self.counts["bytes"] += len(message.container)
        ack = Ack(message.session, message.sequence, message.frame)
        actions: list[EdgeAction] = [Reply(DeviceTopics(self.fleet, device).leaf("down"), ack.to_bytes())]
        if self._repeated(device, message):
            self.counts["repeated"] += 1
            return actions
        job = Job(device, message, now)
        if self._full(job):
            self.counts["dropped_full"] += 1
            return [*actions, self._result(job, now, Status.DROPPED)]
        self._queue.append(job)
        self._queued[device] += 1
        self._queued_bytes += len(message.container)
        return actions + self._next(now)

    def _full(self, job: Job) -> bool:
        """Whether the queue is full for this device: in all, or by its own share."""
        size = self._queued_bytes + len(job.message.container)
        full = len(self._queue) >= self._max_queue or size > MAX_QUEUE_BYTES
        return full or self._queued[job.device] >= MAX_PER_DEVICE

    def _pop(self) -> Job:
        job = self._queue.popleft()
        self._queued_bytes -= len(job.message.container)
        self._queued[job.device] -= 1
        if not self._queued[job.device]:
            del self._queued[job.device]
        return job

    def _repeated(self, device: str, message: FrameMessage) -> bool:
        session, sequence = self._last.pop(device, (b"", -1))
        repeated = session == message.session and message.sequence <= sequence
        self._last[device] = (message.session, max(sequence, message.sequence) if repeated else message.sequence)
        if len(self._last) > MAX_DEVICES:
            self._last.popitem(last=False)
        return repeated

    def _next(self, now: float) -> list[EdgeAction]:
        """Start the oldest job that can still make its deadline."""
        actions: list[EdgeAction] = []
        while self._queue and not self._working:
            job = self._pop()
            waited = now - job.arrived
            if waited > 0.0 and waited * 1e6 >= job.message.budget_us:
                self.counts["dropped_late"] += 1
                actions.append(self._result(job, now, Status.DROPPED))
            else:
                self._working = True
                actions.append(Work(Job(job.device, job.message, job.arrived, now)))
        return actions

    def _result(
        self, job: Job, now: float, status: Status, prediction: bytes = b"", confidence: float = 0.0
    ) -> EdgeAction:
        residence = now - job.arrived
        queue = min(max((job.begun or now) - job.arrived, 0.0), residence)
        m = job.message
        result = Result(m.session, m.sequence, m.frame, residence, queue, confidence, status, prediction)
        return Reply(DeviceTopics(self.fleet, job.device).leaf("down"), result.to_bytes())
