"""A time budget for a call that cannot be trusted to return.

A ``TimeBox`` runs calls in a thread of its own and stops waiting after the budget. It never has more than one thread:
a call that overran is asked to stop (an exception is raised in its thread), and until it has ended every further call
is refused at once. So a policy that sleeps costs one idle thread, a policy that loops is stopped, and neither delays a
decision by more than one budget. What no thread can stop is native code that keeps the interpreter's lock; a bundle
holds no native code.
"""

from __future__ import annotations

import contextlib
import ctypes
import queue
import threading
import weakref
from collections.abc import Callable
from typing import Any, Generic, TypeVar

T = TypeVar("T")


class Overrun(Exception):
    """The call did not return within its budget, or an earlier one still has not."""


class CallError(Exception):
    """The call raised; ``kind`` and ``detail`` tell what, as text, so that nothing of the failed call is kept."""

    def __init__(self, kind: str, detail: str) -> None:
        super().__init__(f"{kind}: {detail}" if detail else kind)
        self.kind = kind


class _Stop(BaseException):
    """Raised inside the thread of a call that overran."""


class _Job:
    """One call. ``lock`` decides who was first: the end of the call, or the wish to stop it."""

    __slots__ = ("done", "error", "finished", "function", "lock", "value")

    def __init__(self, function: Callable[[], Any]) -> None:
        self.function = function
        self.done = threading.Event()
        self.lock = threading.Lock()
        self.finished = False
        self.value: Any = None
        self.error: CallError | None = None

    def run(self) -> None:
        """Call the function; keep its value, or what it raised as text."""
        try:
            self.value = self.function()
        except BaseException as error:  # SystemExit of a policy must not end the device either
            self.error = CallError(type(error).__name__, _text(error))
            with contextlib.suppress(Exception):
                error.__traceback__ = None  # a policy that keeps its errors must not keep this job, and so its thread
        with self.lock:
            self.finished = True
        self.done.set()

    def interrupt(self, thread: threading.Thread) -> None:
        """Raise ``_Stop`` in the thread unless the call has ended.

        ``PyThreadState_SetAsyncExc`` (Python/C API) acts at the next bytecode, so not before a sleep returns.
        """
        with self.lock:
            if not self.finished and thread.ident is not None:
                ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread.ident), ctypes.py_object(_Stop))


_Jobs = queue.SimpleQueue[_Job | None]


def _work(jobs: _Jobs) -> None:
    with contextlib.suppress(_Stop):
        while (job := jobs.get()) is not None:
            job.run()
            del job  # keep nothing of it alive while waiting


def _text(error: BaseException) -> str:
    """Return the first line of an error, at most 200 characters; an error that cannot even be printed has none."""
    try:
        return str(error).partition("\n")[0][:200]
    except Exception:
        return ""


class TimeBox(Generic[T]):
    """Runs one call at a time for at most ``budget_s`` seconds of the caller's time.

    Not for use by several threads at once. Its thread ends with the object, or with ``close``.
    """

    def __init__(self, budget_s: float) -> None:
        self.budget_s = budget_s
        self._thread: threading.Thread | None = None
        self._jobs: _Jobs = queue.SimpleQueue()
        self._late: _Job | None = None
        self._end: weakref.finalize[Any, Any] | None = None

    @property
    def busy(self) -> bool:
        """Whether a call that overran is still running."""
        return self._late is not None and self._thread is not None and self._thread.is_alive()

    def call(self, function: Callable[[], T]) -> T:
        """Return ``function()``; Overrun when it takes longer than the budget, CallError for whatever it raises."""
        if self.busy:
            self._interrupt()
            raise Overrun("an earlier call is still running")
        job = _Job(function)
        self._start()
        self._jobs.put(job)
        if not job.done.wait(self.budget_s):
            self._late = job
            self._interrupt()
            self.close()  # its thread ends after this call; the next call gets a new one
            raise Overrun(f"no answer within {self.budget_s * 1e3:.3g} ms")
        if job.error is not None:
            try:
                raise job.error
            finally:
                del job  # no cycle through the error's traceback: the thread ends with the box, not with the collector
        value: T = job.value
        return value

    def close(self) -> None:
        """Let the thread end once it is idle."""
        if self._end is not None:
            self._end()
            self._end = None

    def _start(self) -> None:
        if self._end is not None and self._thread is not None and self._thread.is_alive():
            return
        self._late, self._jobs = None, queue.SimpleQueue()
        self._thread = threading.Thread(target=_work, args=(self._jobs,), name="adaptsplit-guard", daemon=True)
        self._thread.start()
        self._end = weakref.finalize(self, self._jobs.put, None)

    def _interrupt(self) -> None:
        if self._late is not None and self._thread is not None:
            self._late.interrupt(self._thread)
