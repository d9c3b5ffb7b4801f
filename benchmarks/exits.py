"""Exit rules on a model's recorded exits: accuracy and mean MACs on frames that tuned nothing.

    python benchmarks/exits.py [MODEL] [--quick] [--json] [--targets 0.94,0.95,0.96]

Exits of MODEL (default: the packaged one) in order of depth. Predictor, cascade and thresholds are fitted on frames of
the calibration split; the figures are those of the test split, other land and other flights. A frame that stops at an
exit pays all heads up to it once (the trunk is shared) and every exit on the way.
"""

from __future__ import annotations

import argparse
import json
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np

from adaptsplit.errors import ConfigError
from adaptsplit.frames import open_frames
from adaptsplit.models.exits import fit_cascade, fit_correctness
from adaptsplit.models.exits_tune import tune_thresholds
from adaptsplit.runtime import DeviceRuntime, ModelFolder
from adaptsplit.runtime.exits import confidence, entropy_score, geometric, patience_stops

EXITS = ("stem", "shallow", "deep")
Answers = tuple[np.ndarray, np.ndarray]


def record(folder: ModelFolder, frames: str, split: str, count: int, data: Path | None) -> Answers:
    """Return probabilities (E, n, 16, K) of every exit and labels (n, 16)."""
    source, device = open_frames(frames, split=split, data=data), DeviceRuntime(folder)
    chosen = [source.frame(int(i)) for i in np.unique(np.linspace(0, len(source) - 1, count).astype(int))]
    found = [[device.head(name, frame.image).exit_probabilities for frame in chosen] for name in EXITS]
    return np.array(found, np.float64), np.array([frame.labels for frame in chosen], np.int64)


def costs(folder: ModelFolder) -> np.ndarray:
    """Return the million MACs (E,) that a frame has cost when it stops at each exit."""
    cards = [folder.card.branch(name) for name in EXITS]
    exits = np.cumsum([card.macs_exit for card in cards])
    return (np.array([card.macs_head for card in cards]) + exits) / 1e6


def variants(fit: Answers, test: Answers) -> dict[str, tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]]:
    """Return per rule: scores (E, n) and answers' probabilities, of the fitting and of the test frames."""
    (p, labels), (q, _) = fit, test
    cells, truth = p.reshape(len(p), -1, p.shape[-1]), labels.reshape(-1)
    found = {}
    for name, score in (("confidence", confidence), ("entropy (BranchyNet)", entropy_score)):
        found[name] = (score(p).mean(-1), p, score(q).mean(-1), q)
    predictors = [fit_correctness(cell, cell.argmax(-1) == truth) for cell in cells]
    scores = [np.stack([f(x).mean(-1) for f, x in zip(predictors, part, strict=True)]) for part in (p, q)]
    found["learned correctness"] = (scores[0], p, scores[1], q)
    cascades = {
        "geometric ensemble": geometric(len(p), p.shape[-1]),
        "cascade (ZTW)": fit_cascade(cells, truth),
        "cascade (ZTW), no bias": fit_cascade(cells, truth, bias=False),
    }
    for name, cascade in cascades.items():
        found[name] = (confidence(cascade(p)).mean(-1), cascade(p), confidence(cascade(q)).mean(-1), cascade(q))
    return found


def share_right(probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return the share of right cells (E, n)."""
    return np.asarray((probabilities.argmax(-1) == labels).mean(-1))


def rows(fit: Answers, test: Answers, price: np.ndarray, targets: list[float]) -> list[dict[str, Any]]:
    """Return one row per rule and target."""
    made: list[dict[str, Any]] = []
    for name, (score, answers, test_score, test_answers) in variants(fit, test).items():
        scores = np.concatenate([score, test_score], axis=1)
        right = np.concatenate([share_right(answers, fit[1]), share_right(test_answers, test[1])], axis=1)
        for target in targets:
            row: dict[str, Any] = {"rule": name, "target": target}
            try:
                held = test_score.shape[1] / scores.shape[1]
                chosen = tune_thresholds(scores, right, price, target_accuracy=target, held_out=held).chosen
            except ConfigError as error:
                made.append(row | {"fault": str(error)})
                continue
            given = {"accuracy": chosen.held_accuracy, "mmacs": chosen.held_cost, "shares": chosen.held_shares}
            made.append(row | given | {"thresholds": chosen.thresholds})
    for agreement in (0.75, 0.9, 1.0):
        stops = patience_stops(test[0].argmax(-1), 1, agreement)
        accuracy = share_right(*test)[stops, np.arange(len(stops))].mean()
        shares = np.bincount(stops, minlength=len(EXITS)) / len(stops)
        given = {"accuracy": float(accuracy), "mmacs": float(price[stops].mean()), "shares": shares.tolist()}
        made.append({"rule": f"patience 1, {agreement:.0%} of cells agree", "target": None, **given})
    return made


def main() -> None:
    """Print the table, or JSON with ``--json``."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    packaged = Path(str(resources.files("adaptsplit.data"))) / "flight" / "model"
    parser.add_argument("model", type=Path, nargs="?", default=packaged)
    parser.add_argument("--frames", default="flight")
    parser.add_argument("--data", type=Path)
    parser.add_argument("--count", type=int, default=400, help="frames of each split")
    parser.add_argument("--targets", default="0.94,0.95,0.96")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", action="store_true")
    o = parser.parse_args()
    folder, count = ModelFolder.open(o.model), 40 if o.quick else o.count
    fit, test = (record(folder, o.frames, split, count, o.data) for split in ("calibration", "test"))
    price = costs(folder)
    found = rows(fit, test, price, [float(target) for target in o.targets.split(",")])
    alone = dict(zip(EXITS, zip(share_right(*test).mean(-1).tolist(), price.tolist(), strict=True), strict=True))
    if o.json:
        print(json.dumps({"alone": alone, "rows": found}, indent=1))
        return
    for name, (accuracy, cost) in alone.items():
        print(f"every frame stops at {name}: {accuracy:.2%}, {cost:.1f} MMAC")
    print("| rule | target | accuracy | MMAC | share per exit |\n| --- | --: | --: | --: | --- |")
    for row in found:
        target = "" if row["target"] is None else f"{row['target']:.0%}"
        if "fault" in row:
            print(f"| {row['rule']} | {target} | {row['fault']} | | |")
            continue
        shares = ", ".join(f"{share:.0%}" for share in row["shares"])
        print(f"| {row['rule']} | {target} | {row['accuracy']:.2%} | {row['mmacs']:.1f} | {shares} |")


if __name__ == "__main__":
    main()
