"""Several trained policies as one: the mean of their outputs, exactly, in one plain ``policy.npz``.

Runs that differ by their seed make different mistakes where the training frames say little; the mean of their outputs
(Q values of a DQN, logits of an actor) makes fewer (bagging: Breiman, Machine Learning 24, 1996; mean of Q functions:
Anschel et al., Averaged-DQN, ICML 2017). The members' networks lie side by side in one: hidden layers block by block,
the last one stacked and divided by their number, so nothing new is needed on a device.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from adaptsplit.agents.build import POLICY_FILE
from adaptsplit.agents.policy import Floats32, PolicyController, PolicyNet, load_policy
from adaptsplit.agents.run_folder import Saveable
from adaptsplit.errors import ConfigError

ENSEMBLE_FILE = "ensemble.json"
SCHEMA = "adaptsplit.ensemble/1"


def merge(nets: Sequence[PolicyNet]) -> PolicyNet:
    """Return the network whose outputs are the mean of the members'.

    ConfigError unless all have the same activation, head and number of layers.
    """
    if not nets:
        raise ConfigError("an ensemble needs at least one policy; name run folders of 'adaptsplit train'")
    forms = {(net.activation, net.head, len(net.layers)) for net in nets}
    if len(forms) > 1:
        raise ConfigError(f"policies of different forms {sorted(forms)}; an ensemble takes runs of one agent")
    columns = list(zip(*(net.layers for net in nets), strict=True))
    layers = [_merged([w for w, _ in c], [b for _, b in c], i, len(columns)) for i, c in enumerate(columns)]
    return PolicyNet(tuple(layers), nets[0].activation, nets[0].head)


def _merged(
    weights: Sequence[Floats32], biases: Sequence[Floats32], place: int, count: int
) -> tuple[Floats32, Floats32]:
    """Put one layer of every member together: the first shares its inputs, the last its outputs."""
    shares, joins = place == 0, place == count - 1
    size = np.float32(len(weights))
    if joins:
        weight = (sum(weights) if shares else np.concatenate(weights)) / size
        return np.asarray(weight, dtype=np.float32), np.asarray(sum(biases) / size, dtype=np.float32)
    if shares:
        return np.concatenate(weights, axis=1), np.concatenate(biases)
    whole = np.zeros((sum(len(w) for w in weights), sum(w.shape[1] for w in weights)), dtype=np.float32)
    row = column = 0
    for weight in weights:
        whole[row : row + len(weight), column : column + weight.shape[1]] = weight
        row, column = row + len(weight), column + weight.shape[1]
    return whole, np.concatenate(biases)


def members_of(runs: Sequence[Path]) -> list[Path]:
    """Return the run folders named, or inside the folders named (``DIR/SEED``), sorted.

    ConfigError for a folder that holds none.
    """
    found: list[Path] = []
    for run in runs:
        inside = [run] if (run / POLICY_FILE).is_file() else sorted(p.parent for p in run.glob(f"*/{POLICY_FILE}"))
        if not inside:
            raise ConfigError(f"{run}: no run, and no folder of runs; name folders that 'adaptsplit train' wrote")
        found += inside
    return found


def plain_policies(runs: Sequence[Path | str]) -> tuple[list[Path], list[PolicyController]]:
    """Return the run folders that ``runs`` name and their policies.

    ConfigError for folders without runs, policies that are no plain networks, or of different spaces; DataError for a
    damaged policy.
    """
    folders = members_of([Path(run) for run in runs])
    policies = [load_policy(folder / POLICY_FILE) for folder in folders]
    plain = [policy for policy in policies if isinstance(policy, PolicyController)]
    if len(plain) < len(policies):
        raise ConfigError("an ensemble takes plain networks; trees, tables and recurrent policies cannot be merged")
    if any(policy.space != plain[0].space for policy in plain):
        raise ConfigError("policies of different decision spaces; an ensemble takes runs on one scenario")
    return folders, plain


def write_members(policy: Saveable, members: Sequence[Path], out: Path, more: Mapping[str, Any] | None = None) -> None:
    """Write the run folder of an ensemble: the policy, and who its members are; ConfigError when ``out`` is not one."""
    if out.exists() and any(out.iterdir()) and not (out / ENSEMBLE_FILE).is_file():
        raise ConfigError(f"{out}: exists and is no ensemble; name another folder with --out")
    out.mkdir(parents=True, exist_ok=True)
    policy.save(out / POLICY_FILE)
    value = {"schema": SCHEMA, "members": [str(folder) for folder in members], **(more or {})}
    (out / ENSEMBLE_FILE).write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")


def ensemble(runs: Sequence[Path | str], out: Path | str, name: str = "ensemble") -> PolicyController:
    """Merge the policies of run folders (or of folders of run folders) and write the run folder ``out``.

    Errors as of ``plain_policies`` and ``write_members``.
    """
    folders, plain = plain_policies(runs)
    merged = PolicyController(name, plain[0].space, merge([policy.net for policy in plain]))
    write_members(merged, folders, Path(out))
    return merged
