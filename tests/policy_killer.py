"""Updates the policies of a store over and over, and is killed: a process of its own for ``test_live_policy_kill``.

    python policy_killer.py FOLDER ROUNDS SEED          SIGKILL after a random time
    python policy_killer.py FOLDER ROUNDS SEED STEP     SIGKILL just before change n of the disk, n = 1, 1 + STEP, ...

FOLDER holds ``factory``, two bundles ``a`` and ``b`` with other policies, and the key ``k.key``. Every round forks a
child that opens the store and updates it until it dies; then the store is opened here. One JSON line per round.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from policy_cases import NOW, FakeHost, announce, chunk_of, chunks_in, envelope, trust_in, update_of

from adaptsplit.device_bridge.policy_reasons import Reason
from adaptsplit.device_bridge.policy_store import PolicyStore, version_of
from adaptsplit.device_bridge.policy_update import Update
from adaptsplit.device_bridge.policy_updater import PolicyUpdater
from adaptsplit.signing import Statement, sign_statement
from adaptsplit.signing_keys import PrivateKey, load_private

CHANGES = {"os.rename", "os.link", "os.remove", "os.mkdir", "os.rmdir", "os.chmod"}


class Wait(NamedTuple):
    """When to kill: after so many seconds, counted from the end of the child's start or from its beginning."""

    opened: bool
    seconds: float


def resigned(update: Update, key: PrivateKey, version: int) -> Update:
    """Return the same policy under another version."""
    statement = json.loads(update.signature)["statement"] | {"version": version, "issued": NOW}
    return Update(sign_statement(Statement(**statement), key), update.manifest, update.files)


def update_for_ever(folder: Path, seed: int, tell: Callable[[str], object], rounds: int) -> None:
    """Do ``rounds`` updates: two of three are kept, the others rolled back; tell before and after each end."""
    rng = random.Random(seed)
    key = load_private(folder / "k.key")
    kinds = [update_of(folder / name) for name in ("a", "b")]
    store = PolicyStore(folder / "store", trust_in(key))
    opened = store.open(folder / "factory")
    host = FakeHost()
    updater = PolicyUpdater(store, host, opened.bundle)
    tell(f"opened {version_of(opened.bundle)}")
    highest = version_of(opened.bundle)
    if store.state.trial is not None:
        finish(updater, rng, tell, highest)
    for _ in range(rounds):
        known = json.loads((folder / "store" / "highest.json").read_text())["version"]
        highest = max(highest, known) + 1
        update = resigned(rng.choice(kinds), key, highest)
        desired = announce(update, f"{highest:032x}")
        updater.desired(envelope(desired), 0.0)
        for number in range(chunks_in(update)):
            updater.chunk(desired.sha256, number, chunk_of(update, number), 0.0)
        assert store.state.trial is not None, host.said[-1]
        finish(updater, rng, tell, highest)
    store.close()


def finish(updater: PolicyUpdater, rng: random.Random, tell: Callable[[str], object], version: int) -> None:
    """End a trial, in one way or the other."""
    if rng.random() < 2 / 3:
        updater.judged(None, "", 0.0)
        tell(f"kept {version}")
    else:
        tell(f"dropping {version}")
        updater.judged(Reason.GUARD_TRIPS, "on purpose", 0.0)
        tell(f"dropped {version}")


def child(folder: Path, seed: int, pipe: int, die_at: int | None) -> None:
    """Be the process that dies."""
    if die_at is not None:
        seen = 0

        def hook(event: str, arguments: tuple[Any, ...]) -> None:
            nonlocal seen
            seen += changes_disk(event, arguments) and str(arguments[0]).startswith(str(folder))
            if seen == die_at and event != "os.kill":
                os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(hook)
    update_for_ever(folder, seed, lambda text: os.write(pipe, f"{text}\n".encode()), 2 if die_at else 1000)
    os._exit(0)


def changes_disk(event: str, arguments: tuple[Any, ...]) -> bool:
    """Whether an audit event announces a change: a file opened for writing, a name made, moved or removed."""
    if event != "open":
        return event in CHANGES
    return isinstance(arguments[2], int) and bool(arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))


def one_round(folder: Path, seed: int, wait: Wait | None, die_at: int | None) -> tuple[list[str], bool]:
    """Fork, kill, return (what the child told, whether it was killed)."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            child(folder, seed, writer, die_at)
        except BaseException:
            os.write(writer, traceback.format_exc().encode())
        finally:
            os._exit(3)
    os.close(writer)
    with os.fdopen(reader) as told:
        lines = [told.readline().strip()] if wait is not None and wait.opened else []
        if wait is not None:
            time.sleep(wait.seconds)
            os.kill(pid, signal.SIGKILL)
        status = os.waitpid(pid, 0)[1]
        lines += told.read().splitlines()
    if os.WIFEXITED(status) and os.WEXITSTATUS(status):
        raise SystemExit(f"the child failed: {lines[-5:]}")
    return lines, os.WIFSIGNALED(status)


def times(folder: Path) -> tuple[float, float]:
    """Return how long a start and an update take here, s."""
    marks = [time.perf_counter()]
    update_for_ever(folder, 1, lambda text: marks.append(time.perf_counter()), 2)
    return marks[1] - marks[0], (marks[-1] - marks[1]) / 2


def main(folder: Path, rounds: int, seed: int, step: int = 0) -> None:
    """Kill ``rounds`` times; after each, open the store as the next start would. With a step, until one lives on.

    Of random instants, one in five is in a start, the others are spread over one and a half updates.
    """
    rng, key = random.Random(seed), load_private(folder / "k.key")
    start_s, update_s = (0.0, 0.0) if step else times(folder)
    for n in range(1, rounds + 1):
        wait = Wait(True, rng.uniform(0.0, 1.5 * update_s)) if n % 5 else Wait(False, rng.uniform(0.0, start_s))
        lines, killed = one_round(folder, seed + n, None if step else wait, 1 + step * (n - 1) if step else None)
        store = PolicyStore(folder / "store", trust_in(key))
        opened = store.open(folder / "factory")
        found = {"version": version_of(opened.bundle), "path": opened.bundle.path.parent.name, "killed": killed}
        found |= {"fallback": None if opened.fallback is None else version_of(opened.fallback), "told": lines}
        store.park()
        store.close()
        print(json.dumps(found), flush=True)
        if step and not killed:
            return


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), *map(int, sys.argv[4:]))
