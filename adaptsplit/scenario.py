"""A scenario: profile, links, device, server, frame source, objective and splits, in one strict YAML file.

``load_scenario`` takes a shipped name, a path or a mapping. Everything that an experiment depends on is in the file
or named by it; the data directory (recorded traces, labelled images) is named by the ``data`` argument, the file's
``data`` key or the environment variable ``ADAPTSPLIT_DATA``, in this order.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import cached_property, lru_cache
from importlib import resources
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from adaptsplit.config import Config, parse, read_yaml
from adaptsplit.decision import DEFAULT_THRESHOLDS, BranchSpec, DecisionSpace, exit_rules
from adaptsplit.devices import ComputePreset, RadioPreset, compute_presets, radio_presets, scale_factor
from adaptsplit.devices.compute import ThermalPreset
from adaptsplit.devices.load import LoadSpec
from adaptsplit.devices.server import ServerSpec
from adaptsplit.errors import ConfigError, UnknownNameError
from adaptsplit.links import LinkSpec, LinkTrace, build_links
from adaptsplit.objective import Objective
from adaptsplit.profiles import Profile, ProfileSummary
from adaptsplit.profiles.published import PREFIX, no_network, published_profile
from adaptsplit.registry import did_you_mean

DATA_VARIABLE = "ADAPTSPLIT_DATA"
SPLITS = ("train", "validation", "test")
Sender = Literal["latest", "fifo"]


class Priors(Config):
    """What a device believes of link and server before it has heard anything."""

    goodput_bps: float = Field(gt=0)
    rtt_s: float = Field(gt=0)
    server_s: float = Field(ge=0)


class DeviceSpec(Config):
    """The device on board: named presets, flight power and battery.

    ``load`` is other work on the board, as a process; ``thermal`` follows its temperature, and throttles (the preset
    must have a thermal block; ``ambient_c`` replaces its ambient); ``dvfs`` lets the governor move the clock.
    """

    compute: str
    radio: str
    flight_w: float = Field(0.0, ge=0)
    battery_wh: float = Field(gt=0)
    decision_s: float = Field(0.0002, ge=0)
    load: LoadSpec | None = None
    thermal: bool = False
    ambient_c: float | None = Field(None, ge=-40, le=60)
    dvfs: bool = False


class LinkSplits(Config):
    """Recordings or seeds of each split; no trace may be in two of them."""

    train: list[LinkSpec] = Field(min_length=1)
    validation: list[LinkSpec] = Field(min_length=1)
    test: list[LinkSpec] = Field(min_length=1)


class ScenarioFile(Config):
    """The file's form; every unknown key is an error."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9-]{0,63}$")
    description: str
    profile: str
    frames: str
    fps: float = Field(gt=0, le=240)
    deadline_s: float = Field(gt=0, le=60)
    episode_s: float = Field(gt=0, le=3600)
    window: int = Field(2, ge=1, le=8)
    sender: Sender = "latest"
    label_free: bool = False
    thresholds: tuple[float, ...] = DEFAULT_THRESHOLDS
    patience: tuple[float, ...] = (1.0,)
    skip: bool = False
    branches: tuple[str, ...] | None = None
    device: DeviceSpec
    server: ServerSpec | None = None
    priors: Priors
    objective: Objective
    links: LinkSplits
    data: str | None = None


class Scenario:
    """A loaded scenario; profiles and links are read when first asked for, and kept."""

    def __init__(self, file: ScenarioFile, base: Path, data: Path | None) -> None:
        self.file = file
        self.base = base
        self.data = data_directory(data, file.data)
        self.name, self.description, self.frames = file.name, file.description, file.frames
        self.fps, self.deadline_s, self.window, self.sender = file.fps, file.deadline_s, file.window, file.sender
        self.episode_s, self.label_free = file.episode_s, file.label_free
        self.objective, self.priors = file.objective, file.priors
        self.frames_per_episode = round(file.episode_s * file.fps)
        self.decision_s, self.flight_w = file.device.decision_s, file.device.flight_w
        self.battery_j = file.device.battery_wh * 3600.0
        self.compute: ComputePreset = compute_presets.get(file.device.compute)
        self.radio: RadioPreset = radio_presets.get(file.device.radio)
        self._profiles: dict[str, Profile] = {}
        self._links: dict[str, list[LinkTrace]] = {}

    @property
    def published(self) -> bool:
        """Whether the profile is a published table (``profile: published:NAME``), whose outcomes are modelled."""
        return self.file.profile.startswith(PREFIX)

    @cached_property
    def profile_path(self) -> Path:
        """The profile's folder: a name shipped with the package, or a path beside the file, the data or the caller."""
        shipped = Path(str(resources.files("adaptsplit.data"))) / self.file.profile
        places = [self.base / self.file.profile, Path(self.file.profile), shipped]
        if self.data is not None:
            places.append(self.data / self.file.profile)
        for place in places:
            if (place / "profile.json").is_file():
                return place
        looked = ", ".join(str(place) for place in places)
        raise ConfigError(
            f"scenario {self.name!r}: profile {self.file.profile!r} not found (looked in {looked}); "
            "measure it with: adaptsplit profile MODEL --frames SRC --out PROFILE"
        )

    @property
    def model_path(self) -> Path:
        """The model folder that the profile was measured with: inside the profile's folder, the same, or beside it.

        ConfigError when there is none; a published table has no network at all.
        """
        if self.published:
            raise no_network(self.file.profile)
        for place in (self.profile_path / "model", self.profile_path, self.profile_path.parent / "model"):
            if (place / "model.json").is_file():
                return place
        raise ConfigError(
            f"{self.profile_path}: no model beside the profile; put the MODEL folder at {place / 'model'}"
        )

    def profile(self, split: str) -> Profile:
        """Return the measured table of one split, restricted to the scenario's branches."""
        if split not in self._profiles:
            name = self.file.profile
            check_split(split)
            loaded = published_profile(name, split) if self.published else Profile.load(self.profile_path, split)
            chosen = loaded if self.file.branches is None else loaded.select(self.file.branches)
            self._profiles[split] = chosen.with_skip() if self.file.skip else chosen
        return self._profiles[split]

    @cached_property
    def space(self) -> DecisionSpace:
        """The decision space: the profile's branches (and ``skip``), every threshold with every patience."""
        branches: tuple[BranchSpec, ...] = self.profile("train").branches
        return DecisionSpace(branches, *exit_rules(self.file.thresholds, self.file.patience))

    @lru_cache(maxsize=1)  # noqa: B019  (a scenario lives as long as the process that asks it)
    def summary(self) -> ProfileSummary:
        """Return the summary of the train split that rule controllers and bundles use."""
        return self.profile("train").summary()

    @cached_property
    def stage_scale(self) -> float:
        """Modelled stage time on the named board / measured stage time on the profiling host."""
        return float(scale_factor(self.profile("train").host_macs_per_s, self.compute))

    @property
    def codec_scale(self) -> float:
        """As ``stage_scale``, for codecs, content signals and the decision."""
        return self.compute.scalar_slowdown

    @property
    def compute_w(self) -> float:
        """Power of the board above idle while it computes (W)."""
        return self.compute.active_w - self.compute.idle_w

    @cached_property
    def thermal(self) -> ThermalPreset | None:
        """Thermal constants of the board, when the scenario follows its temperature."""
        if self.file.device.thermal and self.compute.thermal is None:
            raise ConfigError(
                f"scenario {self.name!r}: board {self.compute.name!r} has no thermal block; leave out thermal: true"
            )
        return self.compute.thermal if self.file.device.thermal else None

    @property
    def base_w(self) -> float:
        """Power that is drawn whatever is decided: flight, the idle board, the radio in its connected state (W)."""
        return self.flight_w + self.compute.idle_w + self.radio.tail_w

    @property
    def radio_w(self) -> float:
        """Power of a transmission above the connected state, at zero rate (W)."""
        return self.radio.beta_w - self.radio.tail_w

    @property
    def radio_j_per_bit(self) -> float:
        """Energy of a transmission per bit, beside ``radio_w`` (J)."""
        return self.radio.alpha_w_per_mbps * 1e-6

    def links(self, split: str) -> list[LinkTrace]:
        """Return the traces of one split."""
        if split not in self._links:
            self._links[split] = build_links(getattr(self.file.links, check_split(split)), self.data)
        return self._links[split]


def check_split(split: str) -> str:
    """Return ``split``; ConfigError for a name that is none."""
    if split not in SPLITS:
        raise ConfigError(f"split {split!r}{did_you_mean(split, SPLITS)} Expected one of {', '.join(SPLITS)}.")
    return split


def scenario_names() -> list[str]:
    """Return the names of the shipped scenarios."""
    folder = resources.files("adaptsplit.scenarios")
    return sorted(item.name.removesuffix(".yaml") for item in folder.iterdir() if item.name.endswith(".yaml"))


def load_scenario(source: str | Path | Mapping[str, Any], data: str | Path | None = None) -> Scenario:
    """Load a shipped scenario by name, a YAML file by path, or a mapping. ConfigError lists every fault."""
    directory = None if data is None else Path(data)
    if isinstance(source, Mapping):
        return Scenario(parse(ScenarioFile, source, "scenario"), Path(), directory)
    path = Path(source)
    if str(source) in scenario_names():
        path = Path(str(resources.files("adaptsplit.scenarios"))) / f"{source}.yaml"
    elif not path.is_file():
        names = scenario_names()
        hint = did_you_mean(str(source), names)
        raise UnknownNameError(
            f"scenario {str(source)!r}: no shipped scenario and no file{hint} Shipped: {', '.join(names)}."
        )
    return Scenario(parse(ScenarioFile, read_yaml(path), str(path)), path.parent, directory)


def data_directory(given: str | Path | None, key: str | None = None) -> Path | None:
    """Return the data directory: ``given``, else the file's ``data`` key, else ADAPTSPLIT_DATA, else None.

    ConfigError when the one that is named does not exist.
    """
    named = given or key or os.environ.get(DATA_VARIABLE)
    if not named:
        return None
    if not Path(named).is_dir():
        raise ConfigError(f"data directory {named}: not found; name it by --data, the key 'data' or {DATA_VARIABLE}")
    return Path(named)
