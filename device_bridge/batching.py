"""The queue of one model's tail: earliest deadline first, in batches, with a model of how long a batch takes.

A free worker never waits. While it works, jobs gather; when it is free, the job whose deadline comes first leads the
next batch, and jobs of the same branch join in the order of their deadlines until the batch is full or one more would
make the leader late. What cannot be answered in time by the time model is not taken in (``TailQueue.hopeless``): a
device learns at once, and the server spends nothing on answers that nobody can use.
"""

from __future__ import annotations

from bisect import insort
from collections import Counter
from dataclasses import dataclass

from adaptsplit.device_bridge.messages import FrameMessage

MAX_PER_DEVICE = 8
MEMORY_JOBS = 200.0  # batches after which the time model has forgotten to 1/e; an assumption
US = 1e6


@dataclass(frozen=True, slots=True)
class Job:
    """A frame that waits for the tail of ``model``; times in s on the edge's clock."""

    device: str
    message: FrameMessage
    arrived: float
    begun: float = 0.0
    model: bytes = b""

    @property
    def deadline(self) -> float:
        """When its answer is of no more use. The budget counts from sending, so this is late by the uplink's time."""
        return self.arrived + self.message.budget_us / US


_NOTHING = (0.0, 0.0, 0.0, 0.0, 0.0)


class BatchTimes:
    """Time of a batch of k jobs of one branch, s: ``a + b k`` by least squares that forget; 0 before any was seen."""

    def __init__(self, memory: float = MEMORY_JOBS) -> None:
        self._keep = 1.0 - 1.0 / memory
        self._sums: dict[int, tuple[float, float, float, float, float]] = {}

    def note(self, branch: int, k: int, seconds: float) -> None:
        """A batch of ``k`` took ``seconds``."""
        n, sk, skk, st, skt = self._sums.get(branch, _NOTHING)
        q = self._keep
        self._sums[branch] = q * n + 1.0, q * sk + k, q * skk + k * k, q * st + seconds, q * skt + k * seconds

    def predict(self, branch: int, k: int = 1) -> float:
        """Return the expected time of a batch of ``k``, never below 0."""
        if branch not in self._sums:
            return 0.0
        n, sk, skk, st, skt = self._sums[branch]
        spread = n * skk - sk * sk
        slope = (n * skt - sk * st) / spread if spread > 1e-9 * n * n else st / sk
        return max((st - slope * sk) / n + slope * k, 0.0)


class TailQueue:
    """Jobs of one model. ``at_work`` is the batch that runs; times in s on the edge's clock.

    ``max_batch`` 1 where a batch costs as much as its jobs one by one (a CPU, or networks with a fixed batch axis).
    """

    def __init__(self, max_jobs: int, max_bytes: int, max_batch: int = 1, times: BatchTimes | None = None) -> None:
        self.times = times or BatchTimes()
        self.max_batch = max_batch
        self.at_work: tuple[Job, ...] = ()
        self._max_jobs, self._max_bytes = max_jobs, max_bytes
        self._jobs: list[Job] = []
        self._bytes = 0
        self._owned: Counter[str] = Counter()

    def __len__(self) -> int:
        return len(self._jobs)

    @property
    def idle(self) -> bool:
        """Whether nothing waits or is at work."""
        return not (self._jobs or self.at_work)

    def full(self, job: Job) -> bool:
        """Whether there is no room for this device's job: in all, or in its own share."""
        size = self._bytes + len(job.message.container)
        full = len(self._jobs) >= self._max_jobs or size > self._max_bytes
        return full or self._owned[job.device] >= MAX_PER_DEVICE

    def hopeless(self, job: Job, now: float) -> bool:
        """Whether a job that came now would be late behind what must be done before it."""
        wait = self.wait_s(now, job.deadline)
        return wait > 0.0 and now + wait + self.times.predict(job.message.branch) > job.deadline

    def wait_s(self, now: float, deadline: float = float("inf")) -> float:
        """Return the expected wait of a job with this deadline: the rest of the batch, and jobs due before it."""
        if not self._jobs:
            return self._rest_s(now)
        before: Counter[int] = Counter(job.message.branch for job in self._jobs if job.deadline <= deadline)
        return self._rest_s(now) + sum(self._span(branch, count) for branch, count in before.items())

    def start(self, job: Job) -> tuple[Job, ...]:
        """Put a job to work that came to a free worker, with nothing before it (``idle``); it has begun already."""
        self.at_work = (job,)
        return self.at_work

    def push(self, job: Job) -> None:
        """Take a job in; jobs of equal deadline keep their order."""
        insort(self._jobs, job, key=lambda other: other.deadline)
        self._bytes += len(job.message.container)
        self._owned[job.device] += 1

    def take(self, now: float) -> tuple[tuple[Job, ...], list[Job]]:
        """Return (the next batch, now at work; jobs that waited past their deadline), both out of the queue."""
        late = [job for job in self._jobs if now > job.arrived and now >= job.deadline]
        for job in late:
            self._remove(job)
        batch: list[Job] = []
        for job in self._jobs:
            if self._joins(job, batch, now):
                batch.append(job)
        for job in batch:
            self._remove(job)
        self.at_work = tuple(Job(job.device, job.message, job.arrived, now, job.model) for job in batch)
        return self.at_work, late

    def done(self, now: float) -> None:
        """The batch at work has ended."""
        if self.at_work:
            first = self.at_work[0]
            self.times.note(first.message.branch, len(self.at_work), now - first.begun)
        self.at_work = ()

    def _joins(self, job: Job, batch: list[Job], now: float) -> bool:
        if not batch:
            return True
        leader, branch = batch[0], batch[0].message.branch
        in_time = now + self.times.predict(branch, len(batch) + 1) <= leader.deadline
        return len(batch) < self.max_batch and job.message.branch == branch and in_time

    def _rest_s(self, now: float) -> float:
        if not self.at_work:
            return 0.0
        first = self.at_work[0]
        return max(first.begun + self.times.predict(first.message.branch, len(self.at_work)) - now, 0.0)

    def _span(self, branch: int, count: int) -> float:
        """Time of ``count`` jobs of a branch in batches."""
        whole, rest = divmod(count, self.max_batch)
        return whole * self.times.predict(branch, self.max_batch) + (self.times.predict(branch, rest) if rest else 0.0)

    def _remove(self, job: Job) -> None:
        self._jobs.remove(job)
        self._bytes -= len(job.message.container)
        self._owned[job.device] -= 1
        if not self._owned[job.device]:
            del self._owned[job.device]
