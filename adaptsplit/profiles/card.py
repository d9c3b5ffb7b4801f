"""``profile.json``: what was measured, of which model, on which frames and host."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from adaptsplit.config import Config, parse_json
from adaptsplit.decision import BranchSpec
from adaptsplit.errors import ProfileError
from adaptsplit.files import write_whole

CARD_FILE = "profile.json"
MAX_CARD_BYTES = 1 << 20
MAX_BRANCHES = 64
MAX_RATES = 32

Text = Annotated[str, Field(max_length=400)]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class BranchCard(Config):
    """One branch of the decision space, as in ``BranchSpec``."""

    name: Annotated[str, Field(min_length=1, max_length=64)]
    kind: Literal["split", "offload", "local", "skip"]
    codecs: Annotated[tuple[Text, ...], Field(max_length=MAX_RATES)]
    exit: Text | None

    def spec(self) -> BranchSpec:
        """Return the branch; ConfigError when its fields contradict each other."""
        return BranchSpec(self.name, self.kind, self.codecs, self.exit)


class ModelRef(Config):
    """The model: name, SHA-256 of its ``model.json`` (it lists the hashes of all files), MACs of the full model."""

    name: Text
    digest: Sha256
    macs_full: Annotated[int, Field(gt=0)]


class Host(Config):
    """The measuring host. ``macs_per_s`` = MACs of the full model / median time of the local branch.

    ``clock``: ``thread`` = CPU time of the thread that runs the stage, ``wall`` where the system has no such clock.
    """

    macs_per_s: Annotated[float, Field(gt=0)]
    cpu: Text
    system: Text
    clock: Literal["thread", "wall"]
    workers: Annotated[int, Field(ge=1)]


class Measured(Config):
    """Provenance of one split: the frame source's text and seed, host, date (as passed in) and package versions."""

    frames: Text
    seed: Annotated[int, Field(ge=0)]
    count: Annotated[int, Field(gt=0)]
    date: Text
    host: Host
    versions: dict[str, Text]


class SplitCard(Measured):
    """One split on disk: its provenance and the SHA-256 of its npz file."""

    sha256: Sha256


class ProfileCard(Config):
    """The content of ``profile.json``."""

    schema_: Literal["adaptsplit.profile/1"] = Field(alias="schema")
    classes: Annotated[tuple[Text, ...], Field(min_length=2, max_length=255)]
    branches: Annotated[tuple[BranchCard, ...], Field(min_length=1, max_length=MAX_BRANCHES)]
    model: ModelRef
    splits: dict[Annotated[str, Field(pattern=r"^[a-z][a-z-]{0,31}$")], SplitCard]


def read_card(folder: Path) -> ProfileCard:
    """Read ``folder/profile.json``; ProfileError names the fault and the cure."""
    path = folder / CARD_FILE
    try:
        if path.stat().st_size > MAX_CARD_BYTES:
            raise ProfileError(f"{path}: {path.stat().st_size} bytes; at most {MAX_CARD_BYTES} are read")
        data = path.read_bytes()
    except OSError as error:
        raise ProfileError(
            f"{path}: cannot be read ({error.strerror}); a profile is what `adaptsplit profile` writes"
        ) from error
    return parse_json(ProfileCard, data, str(path), "copy the folder again", ProfileError)


def write_card(folder: Path, card: ProfileCard) -> None:
    """Write ``folder/profile.json`` (atomically: a killed process leaves the old one)."""
    write_whole(folder / CARD_FILE, (card.model_dump_json(by_alias=True, indent=1) + "\n").encode())
