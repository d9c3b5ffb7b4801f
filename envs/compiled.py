"""The base functions made callable from compiled code, and the counter-based random numbers.

``adaptsplit.estimators`` and ``adaptsplit.observation`` stay plain Python (a device has no numba); here the very same
function objects are registered with numba, so that there is one definition of each formula.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar, cast

import numba
import numpy as np
from numba.extending import register_jitable

from adaptsplit import estimators, observation
from adaptsplit.devices import processes, server

F = TypeVar("F", bound=Callable[..., Any])

_SHARED: tuple[Callable[..., Any], ...] = (
    estimators.start,
    estimators.on_sent,
    estimators.on_ack,
    estimators.on_heartbeat,
    estimators.on_result,
    estimators.on_answer,
    estimators.on_exit,
    estimators.on_decision,
    estimators.on_settled,
    estimators.service_elapsed_s,
    estimators.overdue_s,
    estimators.backlog_s,
    estimators.goodput_now,
    estimators.predicted_result_s,
    estimators.may_send,
    observation._known,
    observation.observe,
    *processes.FUNCTIONS,
    *server.FUNCTIONS,
)
for _function in _SHARED:
    register_jitable(_function)


def compiled(function: F) -> F:
    """Compile with numba: cached on disk, IEEE arithmetic in the order written, so that batch and single agree.

    Without numba's reference counting: the core only views arrays that its caller owns, and counting them on every call
    would triple its time.
    """
    return _compile(function, inline=False)


def inlined(function: F) -> F:
    """As ``compiled``, inlined wherever it is called: for leaves, where passing the world costs more than the work."""
    return _compile(function, inline=True)


def _compile(function: F, inline: bool) -> F:
    settings: Any = numba.config
    options: dict[str, Any] = {
        "cache": True,
        "error_model": "numpy",
        "forceinline": inline,
        "_nrt": False,
        "nogil": True,
    }
    previous = settings.CACHE_DIR
    settings.CACHE_DIR = str(_cache_directory())
    try:
        return cast("F", numba.njit(**options)(function))
    finally:
        settings.CACHE_DIR = previous


@lru_cache(maxsize=1)
def _cache_directory() -> Path:
    """Machine code is kept under a hash of all sources that it was made from (numba looks at one file only)."""
    base = Path(__file__).parent
    shared = (estimators, observation, processes, server)
    sources = [*sorted(base.glob("*.py")), *(Path(str(module.__file__)) for module in shared)]
    digest = hashlib.sha256(b"".join(source.read_bytes() for source in sources)).hexdigest()[:16]
    root = os.environ.get("NUMBA_CACHE_DIR") or os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(root) / "adaptsplit" / f"compiled-{digest}"


# Purposes of random draws; a draw is a pure function of (episode seed, counter, purpose).
HEAD, ENCODE, TAIL, LOSS, SIGNAL = 1, 2, 3, 4, 5
EPISODE_LINK, EPISODE_OFFSET, EPISODE_SEGMENT, EPISODE_FRAME, EPISODE_BATTERY, EPISODE_SEED = 11, 12, 13, 14, 15, 16
EPISODE_SERVER, EPISODE_LOAD, EPISODE_WARMTH = 17, 18, 19
FUTURE, FUTURE_SERVER, FUTURE_LOAD = 21, 22, 23

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)
_S30, _S27, _S31, _S11 = np.uint64(30), np.uint64(27), np.uint64(31), np.uint64(11)
_TO_UNIT = 1.0 / 9007199254740992.0  # 2**-53


@inlined
def mix(value: np.uint64) -> np.uint64:
    """Finaliser of SplitMix64 (Steele, Lea, Flood, OOPSLA 2014): a bijection on 64 bits."""
    value = (value ^ (value >> _S30)) * _MIX_1
    value = (value ^ (value >> _S27)) * _MIX_2
    return value ^ (value >> _S31)


@inlined
def key_of(seed: np.uint64, counter: int) -> np.uint64:
    """Return the key of a counter's draws."""
    return mix(seed + _GOLDEN * np.uint64(counter + 1))


@inlined
def bits(seed: np.uint64, counter: int, purpose: int) -> np.uint64:
    """Return 64 random bits for (seed, counter, purpose)."""
    return mix(key_of(seed, counter) + _GOLDEN * np.uint64(purpose + 1))


@inlined
def uniform_of(key: np.uint64, purpose: int) -> float:
    """Return a uniform number in [0, 1) for (key, purpose)."""
    return float(mix(key + _GOLDEN * np.uint64(purpose + 1)) >> _S11) * _TO_UNIT


@inlined
def uniform(seed: np.uint64, counter: int, purpose: int) -> float:
    """Return a uniform number in [0, 1) for (seed, counter, purpose)."""
    return uniform_of(key_of(seed, counter), purpose)


@compiled
def episode_seed(seed: np.uint64, row: int, episode: int) -> np.uint64:
    """Return the seed of the ``episode``-th episode of a batch's ``row``."""
    return bits(bits(seed, row, EPISODE_SEED), episode, EPISODE_SEED)


@compiled
def episode_seeds_of(seed: np.uint64, rows: Any, count: Any, seeds: Any) -> None:
    """Write the next episode's seed of each of ``rows`` into ``seeds`` (len(rows),); ``count`` (n,) moves on."""
    for i in range(rows.shape[0]):
        row = rows[i]
        seeds[i] = episode_seed(seed, row, count[row])
        count[row] += 1
