"""The Gymnasium environment: one device, one decision per step."""

from __future__ import annotations

from typing import Any, Literal

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from adaptsplit import observation
from adaptsplit.decision import DecisionSpace
from adaptsplit.envs.layout import FRAME, NOW, SLOT_FRAME, SLOT_USED, TERMINATED
from adaptsplit.envs.simulator import Simulator
from adaptsplit.envs.world import World, build_world
from adaptsplit.errors import ConfigError
from adaptsplit.outcome import OUTCOME, Path
from adaptsplit.scenario import Scenario, load_scenario

Array = NDArray[Any]
Actions = Literal["multi", "flat"]
_RECORD = OUTCOME.names or ()
_PATHS = {int(path): path.name for path in Path}


def action_space(space: DecisionSpace, actions: Actions) -> gym.spaces.MultiDiscrete | gym.spaces.Discrete:
    """Return ``MultiDiscrete([B, R, T])``, or ``Discrete`` over the table of decisions that differ."""
    if actions == "multi":
        return gym.spaces.MultiDiscrete(list(space.shape))
    if actions == "flat":
        return gym.spaces.Discrete(len(space.table))
    raise ConfigError(f"actions {actions!r}: expected 'multi' or 'flat'")


def observation_space() -> gym.spaces.Box:
    """Return the box of normalised observations (``adaptsplit.observation.FIELDS``)."""
    return gym.spaces.Box(0.0, 1.0, (observation.SIZE,), dtype=np.float32)


def step_with(
    simulator: Simulator, space: DecisionSpace, actions: Actions, taken: Array, out: Array | None = None
) -> tuple[Array, Array, Array]:
    """Step a simulator with a batch of actions of either form; ``out`` as in ``Simulator.step``."""
    if actions == "flat":
        return simulator.step_codes(space.codes[np.asarray(taken, dtype=np.int64).ravel()], out)
    return simulator.step(np.atleast_2d(taken), out)


def action_masks(space: DecisionSpace, actions: Actions) -> NDArray[np.bool_]:
    """Return which entries of the (flattened) action space are distinct decisions."""
    return np.ones(len(space.table), dtype=np.bool_) if actions == "flat" else space.masks()[1]


class SplitEnv(gym.Env[Array, Any]):
    """Adaptive control of a split network over a bad link.

    **Decision.** For the frame at hand: head branch, compression rate, exit threshold: ``MultiDiscrete([B, R, T])``, or
    with ``actions="flat"`` the index into ``DecisionSpace.table``. Every action is legal; combinations that make no
    difference are mapped to one (``DecisionSpace.canonical``), ``action_masks`` tells the distinct ones.

    **Observation.** ``Box(0, 1, (D,))``: ``adaptsplit.observation.FIELDS``, what a device knows at that moment.

    **Reward.** The sum of the rewards of the frames settled since the last step: frame k itself unless it waits for the
    sender's window, frames that were overtaken while the device was busy (misses), and waiting frames that were
    settled meanwhile. The terms stand in ``info["terms"]``.

    **Episode.** ``episode_s`` seconds of a looped recording over a stretch of a flight. ``truncated`` at its end,
    ``terminated`` when the battery is empty.

    **Arguments.** ``scenario``: shipped name, path, mapping or ``Scenario``; ``split``: "train" (default), "validation"
    or "test"; ``data``: directory of recorded data.
    """

    metadata: dict[str, Any] = {  # noqa: RUF012 (declared so by Gymnasium)
        "render_modes": []
    }

    def __init__(
        self,
        scenario: Any,
        split: str = "train",
        actions: Actions = "multi",
        data: str | None = None,
        render_mode: str | None = None,
    ) -> None:
        if render_mode is not None:
            raise ConfigError(f"render_mode {render_mode!r}: this environment has none; evaluate writes a timeline")
        self.scenario: Scenario = scenario if isinstance(scenario, Scenario) else load_scenario(scenario, data)
        self.decisions = self.scenario.space
        self.actions: Actions = actions
        self.action_space = action_space(self.decisions, actions)
        self.observation_space = observation_space()
        self.world: World = build_world(self.scenario, split)
        self._simulator = Simulator(self.world, 1, threads=1)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Array, dict[str, Any]]:
        """Start an episode; ``options={"episode_seed": int}`` names it, else it is drawn from the generator."""
        super().reset(seed=seed)
        named = (options or {}).get("episode_seed")
        chosen = int(self.np_random.integers(0, 1 << 63)) if named is None else int(named)
        first = self._simulator.reset(np.array([chosen], dtype=np.uint64))
        return first[0].copy(), {"episode_seed": chosen, "frame": 0, "time_s": 0.0}

    def step(self, action: Any) -> tuple[Array, float, bool, bool, dict[str, Any]]:
        """Decide on the frame at hand."""
        frame = int(self._simulator.states[0, FRAME])
        observations, rewards, done = step_with(self._simulator, self.decisions, self.actions, np.asarray(action))
        ended, empty = bool(done[0]), bool(self._simulator.states[0, TERMINATED])
        return observations[0].copy(), float(rewards[0]), empty, ended and not empty, self._info(frame)

    def action_masks(self) -> NDArray[np.bool_]:
        """Return which entries of the (flattened) action space are distinct decisions."""
        return action_masks(self.decisions, self.actions)

    def _info(self, decided: int) -> dict[str, Any]:
        """Frame at hand and time; how the frame just decided ended, unless it still waits for the sender's window."""
        log, state = self._simulator.logs[0], self._simulator.states[0]
        record = dict(zip(_RECORD, log[decided % len(log)].item(), strict=True))
        waits = state[SLOT_USED] == 1.0 and int(state[SLOT_FRAME]) == decided
        return {
            "frame": int(state[FRAME]),
            "time_s": float(state[NOW]),
            "settled": not waits,
            "path": _PATHS[record["path"]],
            "terms": self.scenario.objective.terms_of(record),
        }
