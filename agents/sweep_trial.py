"""One training trial in a process of its own: ``python -m adaptsplit.agents.sweep_trial``, JSON in, JSON lines out.

The first line on standard input is a ``TrialSpec``. The process then writes one JSON object per line on standard output
(``kind``: ``point`` at every validation, ``done`` or ``failed`` at the end); everything that is printed goes to
standard error, the trial's log. When standard input ends, the parent is gone, and the trial ends as by SIGTERM. A trial
that was cut off goes on from its checkpoint; one that is complete trains nothing.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from adaptsplit.agents.build import POLICY_FILE
from adaptsplit.agents.run_folder import CHECKPOINT_FILE, LOG_FILE, RUN_FILE, read_run
from adaptsplit.config import Config, parse, parse_json
from adaptsplit.errors import AdaptsplitError, ConfigError, DataError

if TYPE_CHECKING:
    from adaptsplit.agents.validation import ValidationPoint
    from adaptsplit.scenario import Scenario

RUN_FILES = (POLICY_FILE, LOG_FILE, CHECKPOINT_FILE, RUN_FILE)
PARTIAL_FILES = ("policy.next.npz", "checkpoint.next.pt")
MAX_SPEC_BYTES = 4 << 20
PARENT_GONE_S = 30.0
"""How long a trial whose parent is gone may take to end (it writes a checkpoint) before it is ended outright."""

State = Literal["absent", "half", "done"]
Send = Callable[[dict[str, Any]], None]


class TrialSpec(Config):
    """What one trial trains: ``seeds`` one after the other, each into ``folder/SEED``.

    ``scenario`` is the content of the scenario's file, ``base`` the folder that its relative paths start from, ``data``
    the directory of recorded data, ``parameters`` the agent's whole record (steps and envs included).
    """

    name: str
    scenario: dict[str, Any]
    base: str
    data: str | None
    agent: str
    parameters: dict[str, Any]
    seeds: tuple[int, ...] = Field(min_length=1)
    folder: str
    validations: int = Field(ge=1)
    validation_episodes: int = Field(ge=1)


def spec_of(scenario: Scenario, name: str, agent: str, parameters: Config, seeds: tuple[int, ...], folder: Path,
            validations: int, validation_episodes: int) -> TrialSpec:  # fmt: skip
    """Return the spec that trains ``agent`` on ``scenario``; paths are made absolute."""
    return TrialSpec(
        name=name,
        scenario=scenario.file.model_dump(mode="json"),
        base=str(scenario.base.resolve()),
        data=None if scenario.data is None else str(scenario.data.resolve()),
        agent=agent,
        parameters=parameters.model_dump(mode="json"),
        seeds=seeds,
        folder=str(folder.resolve()),
        validations=validations,
        validation_episodes=validation_episodes,
    )


def state_of(spec: TrialSpec, seed: int) -> State:
    """Return how far the run of one seed is; ConfigError when its folder holds a run of something else.

    DataError when its ``run.json`` is damaged.
    """
    folder = Path(spec.folder) / str(seed)
    if not (folder / RUN_FILE).is_file():
        return "absent"
    run = read_run(folder)
    wanted = {"agent": spec.agent, "scenario": spec.scenario["name"], "seed": seed} | spec.parameters
    found = {key: run[key] for key in ("agent", "scenario", "seed")} | dict(run["hyperparameters"])
    other = [f"{key} {found.get(key)!r}, not {wanted.get(key)!r}" for key in wanted if found.get(key) != wanted[key]]
    if other:
        raise ConfigError(
            f"{folder}: holds a run with {'; '.join(other[:4])}; name another --out, or train it anew with --anew"
        )
    return "done" if int(run["steps"]) >= int(spec.parameters["steps"]) else "half"


def run_trial(spec: TrialSpec, send: Send) -> None:
    """Train every seed of a trial in this process; ``send`` gets a ``point`` for each validation."""
    from adaptsplit.scenario import Scenario, ScenarioFile

    file = parse(ScenarioFile, spec.scenario, f"trial {spec.name}")
    scenario = Scenario(file, Path(spec.base), None if spec.data is None else Path(spec.data))
    for seed in spec.seeds:
        state = state_of(spec, seed)
        if state != "done":
            _train(spec, scenario, seed, send, resume=state == "half")


def _train(spec: TrialSpec, scenario: Scenario, seed: int, send: Send, *, resume: bool) -> None:
    from adaptsplit.agents.hyperparameters import AGENTS
    from adaptsplit.agents.training import Hooks, train
    from adaptsplit.agents.validation import Validator

    folder = Path(spec.folder) / str(seed)
    validator = Validator(scenario, spec.validation_episodes)

    def validate(controller: Any, steps: int) -> ValidationPoint:
        point = validator(controller, steps)
        send({"kind": "point", "seed": seed, "steps": steps, "reward": point.reward})
        return point

    def attempt(resume: bool) -> None:
        train(
            scenario,
            spec.agent,
            folder,
            seed=seed,
            progress=False,
            resume=resume,
            parameters=parse(AGENTS[spec.agent], spec.parameters, f"trial {spec.name}"),
            validations=spec.validations,
            validation_episodes=spec.validation_episodes,
            hooks=Hooks(validate=validate),
        )

    try:
        if not resume:
            clear(folder)
        attempt(resume)
    except DataError as error:
        if not resume:
            raise
        print(f"{error}\nthis run starts anew", file=sys.stderr)
        clear(folder)
        attempt(resume=False)


def clear(folder: Path) -> None:
    """Remove the files of a run that cannot be gone on with; only ever a run's own files."""
    for name in (*RUN_FILES, *PARTIAL_FILES):
        for path in (folder / name, *folder.glob(f"{name}.draft-*")):
            path.unlink(missing_ok=True)


def main() -> int:
    """Run the trial that standard input asks for; 0 when it is complete."""
    channel = _claim_stdout()

    def send(message: dict[str, Any]) -> None:
        with contextlib.suppress(BrokenPipeError):  # the parent is gone: _end_with_parent acts on it
            os.write(channel, json.dumps(message).encode() + b"\n")

    try:
        spec = parse_json(TrialSpec, _first_line(), "trial", "see adaptsplit sweep --help", ConfigError)
        threading.Thread(target=_end_with_parent, daemon=True).start()
        run_trial(spec, send)
    except (
        Exception,
        KeyboardInterrupt,
    ) as error:  # SIGTERM ends training by KeyboardInterrupt, its checkpoint written
        traceback.print_exc()
        text = (
            str(error) if isinstance(error, AdaptsplitError | KeyboardInterrupt) else f"{type(error).__name__}: {error}"
        )
        send({"kind": "failed", "error": text})
        return 1
    send({"kind": "done"})
    return 0


def _claim_stdout() -> int:
    """Return standard output's descriptor for messages only; whatever else prints there lands in the log."""
    channel = os.dup(1)
    os.dup2(2, 1)
    return channel


def _first_line() -> bytes:
    """Read up to the first line's end, unbuffered: the thread that waits for the end reads the same descriptor."""
    data = b""
    while not data.endswith(b"\n") and len(data) < MAX_SPEC_BYTES:
        part = os.read(0, 1 << 16)
        if not part:
            break
        data += part
    return data


def _end_with_parent() -> None:
    while os.read(0, 1024):
        pass
    threading.Timer(PARENT_GONE_S, os._exit, (1,)).start()
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    sys.exit(main())
