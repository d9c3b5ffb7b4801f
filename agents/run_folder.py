"""The folder of a training run while it is written. Needs neither torch nor stable-baselines3.

``policy.npz`` is the policy that was best on the validation split, ``run.json`` what made it and the validation curve,
``training.jsonl`` one line per validation, ``checkpoint.pt`` what the trainer needs to go on. All of them change at
once: new files are written beside the old ones (``policy.next.npz``), then ``run.json`` with their hashes replaces the
old one, then they take their places. A process that dies at any moment leaves a run that ``Run.restore`` can read.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from adaptsplit import observation as obs
from adaptsplit.agents.build import POLICY_FILE
from adaptsplit.agents.validation import ValidationPoint
from adaptsplit.config import Config
from adaptsplit.errors import ConfigError, DataError
from adaptsplit.files import write_whole

if TYPE_CHECKING:
    from adaptsplit.scenario import Scenario

SCHEMA = "adaptsplit.run/1"
RUN_FILE = "run.json"
LOG_FILE = "training.jsonl"
CHECKPOINT_FILE = "checkpoint.pt"
TENSORBOARD_FOLDER = "tensorboard"
PACKAGES = ("stable-baselines3", "sb3-contrib", "torch", "numpy", "gymnasium")


class Saveable(Protocol):
    """A controller that writes its own policy file."""

    def save(self, path: Path) -> None:
        """Write the policy file."""
        ...


class Run:
    """The run's folder while it is written: ``prepare`` or ``restore`` first, then ``add`` and ``write`` in turn."""

    def __init__(self, scenario: Scenario, agent: str, parameters: Config, folder: Path, seed: int) -> None:
        self.scenario, self.agent, self.parameters, self.folder, self.seed = scenario, agent, parameters, folder, seed
        self.curve: list[ValidationPoint] = []
        self.warnings: list[str] = []
        self.seconds_before = 0.0
        self.hashes: dict[str, str] = {}
        self._pending: list[str] = []

    @property
    def best(self) -> ValidationPoint:
        """The point of the largest validation reward so far."""
        return max(self.curve, key=lambda point: point.reward)

    def prepare(self) -> None:
        """Make the folder and clear what an earlier run left; ConfigError when it holds other things."""
        folder = self.folder
        known = not folder.exists() or (folder / RUN_FILE).is_file()
        if not known and (not folder.is_dir() or any(folder.iterdir())):
            raise ConfigError(f"{folder}: exists and is no run; name another folder with --out")
        folder.mkdir(parents=True, exist_ok=True)
        for name in (RUN_FILE, LOG_FILE, POLICY_FILE, CHECKPOINT_FILE):
            (folder / name).unlink(missing_ok=True)
            _beside(folder / name).unlink(missing_ok=True)
        for events in (folder / TENSORBOARD_FOLDER).glob("events.out.tfevents.*"):
            events.unlink()

    def restore(self) -> dict[str, Any]:
        """Take up the folder's run: curve, warnings, seconds; return its ``run.json``.

        ConfigError when there is none, or of another agent, scenario or decision space; DataError when it is damaged.
        """
        value = read_run(self.folder)
        same = (self.agent, self.scenario.name, self.scenario.space.to_dict(), obs.schema_hash())
        found = tuple(value[key] for key in ("agent", "scenario", "space", "observation"))
        if same != found:
            raise ConfigError(
                f"{self.folder / RUN_FILE}: a run of {found[0]!r} on {found[1]!r} with another space; train anew, or "
                "elsewhere"
            )
        self.curve = [ValidationPoint(**point) for point in value["validation"]]
        self.warnings, self.seconds_before = list(value["warnings"]), float(value["seconds"])
        self.hashes = hashes_of(value)
        self._settle()
        self._cut_log()
        return value

    def add(
        self,
        point: ValidationPoint,
        policy: Saveable | Callable[[Path], object],
        seconds: float,
        reward: float,
        warning: str | None = None,
    ) -> None:
        """Record a validation; stage the policy (or what writes its file) when it is the best one.

        ``seconds`` of training since this process began it; ``reward`` the mean training reward per frame; ``warning``
        what this validation gave rise to.
        """
        self.curve.append(point)
        if self.best is point:
            place = _beside(self.folder / POLICY_FILE)
            (policy if callable(policy) else policy.save)(place)
            self._note(POLICY_FILE, place.read_bytes())
        line = {**point.to_dict(), "seconds": round(self.seconds_before + seconds, 2), "training_reward": reward}
        if warning is not None:
            self.warnings.append(warning)
            line["warning"] = warning
        with (self.folder / LOG_FILE).open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")

    def stage(self, name: str, data: bytes) -> None:
        """Write a file beside its place; ``write`` puts it there."""
        _beside(self.folder / name).write_bytes(data)
        self._note(name, data)

    def _note(self, name: str, data: bytes) -> None:
        self.hashes[name] = hashlib.sha256(data).hexdigest()
        if name not in self._pending:
            self._pending.append(name)

    def write(self, steps: int, seconds: float, extra: Mapping[str, Any] | None = None) -> None:
        """Write ``run.json`` for ``steps`` frames of training and put the staged files in their places.

        ``extra`` keys are added to it (and win). The run is complete when it has the ``steps`` of its parameters.
        """
        value = self._document(steps, seconds) | dict(extra or {})
        write_whole(self.folder / RUN_FILE, (json.dumps(value, indent=1) + "\n").encode())
        for name in self._pending:
            _beside(self.folder / name).replace(self.folder / name)
        self._pending.clear()

    def _document(self, steps: int, seconds: float) -> dict[str, Any]:
        return {
            "schema": SCHEMA,
            "agent": self.agent,
            "scenario": self.scenario.name,
            "seed": self.seed,
            "steps": steps,
            "complete": steps >= int(getattr(self.parameters, "steps", 0)),
            "seconds": round(self.seconds_before + seconds, 2),
            "space": self.scenario.space.to_dict(),
            "observation": obs.schema_hash(),
            "hyperparameters": self.parameters.model_dump(mode="json"),
            "best": self.best.to_dict() if self.curve else None,
            "validation": [point.to_dict() for point in self.curve],
            "warnings": self.warnings,
            "checkpoint_sha256": self.hashes.get(CHECKPOINT_FILE),
            "files": dict(sorted(self.hashes.items())),
            "versions": _versions(),
        }

    def _settle(self) -> None:
        """Finish or undo what a process that died had begun: only files that ``run.json`` names take their places."""
        for name in {*self.hashes, POLICY_FILE, CHECKPOINT_FILE}:
            staged = _beside(self.folder / name)
            if not staged.is_file():
                continue
            if hashlib.sha256(staged.read_bytes()).hexdigest() == self.hashes.get(name):
                staged.replace(self.folder / name)
            else:
                staged.unlink()

    def _cut_log(self) -> None:
        """Drop the log's lines of validations that ``run.json`` does not know."""
        place = self.folder / LOG_FILE
        last = self.curve[-1].steps if self.curve else 0
        lines = place.read_text(encoding="utf-8").splitlines(keepends=True) if place.is_file() else []
        kept = [line for line in lines if _steps_of(line) <= last]
        place.write_text("".join(kept), encoding="utf-8")


def read_run(folder: Path) -> dict[str, Any]:
    """Return a folder's ``run.json``; ConfigError when there is none, DataError when it is not ours."""
    where = folder / RUN_FILE
    if not where.is_file():
        raise ConfigError(f"{folder}: holds no {RUN_FILE} to resume; train without --resume first")
    try:
        value: dict[str, Any] = json.loads(where.read_bytes())
        for point in value["validation"]:
            ValidationPoint(**point)
        float(value["seconds"]), int(value["steps"]), int(value["seed"]), list(value["warnings"])
        missing = {"agent", "scenario", "space", "observation", "hyperparameters"} - set(value)
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise DataError(f"{where}: not a run of ours ({error!r}); train anew without --resume") from error
    if missing or value.get("schema") != SCHEMA:
        raise DataError(f"{where}: not a run of ours (schema {value.get('schema')!r}); train anew without --resume")
    return value


def hashes_of(value: Mapping[str, Any]) -> dict[str, str]:
    """Return the SHA-256 of each file that a ``run.json`` names; older ones name the checkpoint only."""
    named = {name: str(digest) for name, digest in dict(value.get("files") or {}).items() if Path(name).name == name}
    if value.get("checkpoint_sha256"):
        named.setdefault(CHECKPOINT_FILE, str(value["checkpoint_sha256"]))
    return named


def _beside(path: Path) -> Path:
    return path.with_name(f"{path.stem}.next{path.suffix}")


def _steps_of(line: str) -> int:
    try:
        return int(json.loads(line).get("steps", 0))
    except (ValueError, AttributeError, TypeError):
        return 1 << 62


def _versions() -> dict[str, str]:
    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found
