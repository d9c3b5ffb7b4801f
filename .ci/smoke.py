"""Smoke test of the base install: run in an environment that holds the wheel and nothing of the training stack."""

import importlib.util
import sys
from pathlib import Path

import numpy as np

HEAVY = ("torch", "gymnasium", "stable_baselines3", "numba", "matplotlib")
present = [name for name in HEAVY if importlib.util.find_spec(name)]
assert not present, f"the base install pulls in {present}"

from adaptsplit import observation  # noqa: E402
from adaptsplit.bundle import load_bundle  # noqa: E402
from adaptsplit.codecs import get_codec  # noqa: E402
from adaptsplit.device_bridge import device, edge  # noqa: E402
from adaptsplit.frames import open_frames  # noqa: E402
from adaptsplit.runtime import DeviceRuntime, EdgeRuntime  # noqa: E402
from adaptsplit.runtime.folder import ModelFolder  # noqa: E402

assert device.run_device
assert edge.serve
bundle = load_bundle(Path(sys.argv[1]))
state = bundle.controller.init(1, np.random.default_rng(0))
decision, state = bundle.controller.act(np.full((1, observation.SIZE), 0.5, dtype=np.float32), state)
assert decision.shape == (1, 3)

folder = ModelFolder.open(bundle.model_path)
frame = open_frames("flight", split="test").frame(0)
branch = next(branch for branch in bundle.space.branches if branch.kind == "split")
head = DeviceRuntime(folder).head(branch.name, frame.image)
codec = get_codec(branch.codecs[-1])
answer = EdgeRuntime(folder).tail(branch.name, codec.decode(codec.encode(head.features)))
right = float(np.mean(answer.prediction == frame.labels))
print(f"bundle runs: decision {bundle.space.name(decision[0])}, {right:.0%} of the first test frame's cells right")
assert right >= 0.5
