"""Trials on a Ray cluster: the same specs and events as on this machine; results travel back as bytes.

Each trial has an actor (``ray.remote``) that runs it in a process of its own in a temporary folder. The driver asks it
every ``POLL_S`` seconds for its events and log, and gets the run's files whenever there is a new checkpoint, so
that a trial goes on from there when the driver or a node is lost. No shared file system is needed. The nodes need
the same version of adaptsplit; recorded data and profiles of one's own must lie at the same path on each of them, or
under the directory that ADAPTSPLIT_DATA names there.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import os
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import adaptsplit
from adaptsplit.agents.run_folder import RUN_FILE, hashes_of
from adaptsplit.agents.sweep_local import Event, TrialProcesses
from adaptsplit.agents.sweep_plan import Trial
from adaptsplit.agents.sweep_trial import RUN_FILES, TrialSpec
from adaptsplit.errors import MissingExtraError, RunError

POLL_S = 2.0
MAX_FILE_BYTES = 256 << 20
LOCAL = "local"


class TrialHost:
    """What lives on a node: one trial in a process, its folder, and what of it has been fetched."""

    def __init__(self) -> None:
        self._place = tempfile.TemporaryDirectory(prefix="adaptsplit-trial-")
        self._folder = Path(self._place.name)
        self._log = self._folder / "log"
        self._processes: TrialProcesses | None = None
        self._fetched, self._told = "", 0

    def start(self, spec: dict[str, Any], files: dict[str, bytes], timeout_s: float | None) -> str:
        """Start the trial, from the files of an earlier attempt where there are any; return our version here."""
        wanted = TrialSpec.model_validate(spec | {"folder": str(self._folder), "data": _data_here(spec["data"])})
        self._run = self._folder / str(wanted.seeds[0])
        write_files(self._run, files)
        self._processes = TrialProcesses(timeout_s)
        self._processes.start(wanted, self._log)
        return adaptsplit.__version__

    def poll(self, seconds: float) -> tuple[list[dict[str, Any]], dict[str, bytes], bytes]:
        """Return the events of the next ``seconds`` (fewer at the end), the run's files if new, and the log's tail."""
        assert self._processes is not None
        events, until = [], time.monotonic() + seconds
        while time.monotonic() < until and len(self._processes):
            event = self._processes.wait(0.2)
            if event is not None:
                events.append({"kind": event.kind, "value": event.value})
        return events, self._new_files(), self._new_log()

    def _new_files(self) -> dict[str, bytes]:
        files = read_files(self._run)
        digest = hashlib.sha256(files.get(RUN_FILE, b"")).hexdigest()
        if not consistent(files) or digest == self._fetched:
            return {}
        self._fetched = digest
        return files

    def _new_log(self) -> bytes:
        data = self._log.read_bytes()[self._told :]
        self._told += len(data)
        return data


def _data_here(path: str | None) -> str | None:
    """Return the data directory of this node: the driver's path where it exists, else what ADAPTSPLIT_DATA names."""
    return path if path is not None and Path(path).is_dir() else None


def read_files(folder: Path) -> dict[str, bytes]:
    """Return a run's files by name, without those that are missing."""
    return {name: (folder / name).read_bytes() for name in RUN_FILES if (folder / name).is_file()}


def consistent(files: dict[str, bytes]) -> bool:
    """Return whether the files are those that ``run.json`` names (they may be in the middle of being replaced)."""
    try:
        wanted = hashes_of(json.loads(files[RUN_FILE]))
        return bool(wanted) and all(hashlib.sha256(files[name]).hexdigest() == wanted[name] for name in wanted)
    except (KeyError, ValueError, TypeError):
        return False


def write_files(folder: Path, files: dict[str, bytes]) -> None:
    """Write a run's files, ``run.json`` last (the order of RUN_FILES); RunError for a file that is none of them."""
    for name, data in files.items():
        if name not in RUN_FILES or len(data) > MAX_FILE_BYTES:
            raise RunError(f"{folder}: refused {name!r} of {len(data)} bytes: no file of a run")
    for name in (name for name in RUN_FILES if name in files):
        folder.mkdir(parents=True, exist_ok=True)
        beside = folder / f"{name}.new"
        beside.write_bytes(files[name])
        beside.replace(folder / name)


def connect(address: str) -> Any:
    """Return Ray, connected to ``auto``, ``HOST:PORT``, ``ray://HOST:PORT``, or, for ``local``, to one started here.

    MissingExtraError without Ray, RunError when the cluster does not answer. Usage reports are off.
    """
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    try:
        ray: Any = importlib.import_module("ray")
    except ImportError as error:
        raise MissingExtraError("ray", "ray") from error
    try:
        if not ray.is_initialized():
            wanted = {"include_dashboard": False} if address == LOCAL else {"address": address}
            ray.init(log_to_driver=False, logging_level="ERROR", **wanted)
    except (ConnectionError, ValueError, RuntimeError) as error:
        text = " ".join(str(error).split())
        raise RunError(
            f"ray at {address!r}: {text}; start one with: ray start --head, or use --address local"
        ) from error
    return ray


def run_ray(ray: Any, trials: Sequence[Trial], workers: int | None, timeout_s: float | None) -> Iterator[Event]:
    """Run trials on a cluster, ``workers`` at once (default: as many as it has CPUs); yields their events."""
    host = ray.remote(num_cpus=1, max_restarts=0)(TrialHost)
    limit = workers or max(1, int(ray.cluster_resources().get("CPU", 1)))
    waiting = list(reversed(trials))
    at_work: dict[Any, tuple[Trial, Any]] = {}
    try:
        while waiting or at_work:
            while waiting and len(at_work) < limit:
                trial = waiting.pop()
                actor = host.remote()
                spec = trial.spec.model_dump(mode="json")
                at_work[actor.start.remote(spec, read_files(trial.folder), timeout_s)] = trial, actor
            ready, _ = ray.wait(list(at_work), num_returns=1, timeout=POLL_S)
            for reference in ready:
                trial, actor = at_work.pop(reference)
                events = _answer(ray, trial, reference)
                yield from events
                if events and events[-1].kind != "point":
                    ray.kill(actor)
                else:
                    at_work[actor.poll.remote(POLL_S)] = trial, actor
    finally:
        for _, actor in at_work.values():
            ray.kill(actor)


def _answer(ray: Any, trial: Trial, reference: Any) -> list[Event]:
    """Take what an actor says: events for the driver, files and log for the disk."""
    try:
        answer = ray.get(reference)
    except ray.exceptions.RayError as error:
        reason = " ".join(str(error).split())[:300]
        return [Event(trial.name, "failed", {"error": f"ray: {type(error).__name__}: {reason}"})]
    if isinstance(answer, str):
        if answer == adaptsplit.__version__:
            return []
        text = f"the node has adaptsplit {answer}, this machine {adaptsplit.__version__}; install the same version"
        return [Event(trial.name, "failed", {"error": text})]
    events, files, log = answer
    write_files(trial.folder, files)
    trial.log.parent.mkdir(parents=True, exist_ok=True)
    with trial.log.open("ab") as file:
        file.write(log)
    return [Event(trial.name, event["kind"], event["value"]) for event in events]
