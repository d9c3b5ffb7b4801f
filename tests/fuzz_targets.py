"""All targets of fuzzing by name."""

from __future__ import annotations

from collections.abc import Callable

from fuzz_files import FILES
from fuzz_frames import FRAMES
from fuzz_parsers import PARSERS
from fuzz_sessions import SESSIONS
from fuzz_updates import UPDATES
from fuzz_yaml import YAML
from fuzzing import Target

LIVE: dict[str, Callable[[], Target]] = {**PARSERS, **SESSIONS, **UPDATES}
TARGETS: dict[str, Callable[[], Target]] = {**LIVE, **FRAMES, **FILES, **YAML}
BEHIND = ("edge-link", "fleet", "policy-updater", "policy-update")
"""Slower users of what ``control``, ``signature`` and ``manifest`` parse: 20,000 to 25,000 inputs each."""
ON_THE_WIRE = (*LIVE, *(name for name in FRAMES if name.startswith("codec-")), "signature", "manifest", "yaml")
"""Decoders of what a network brings, and YAML: 10^5 inputs each in the ordinary suite (but ``BEHIND``)."""
