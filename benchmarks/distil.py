"""What a small policy loses against the network that it was distilled from, by size; time and memory of each.

    python benchmarks/distil.py --run runs/flight/ppo/0          # some minutes on two quiet cores
    python benchmarks/distil.py --quick                          # trains a short PPO first; two sizes of each form
    python benchmarks/distil.py --run RUN --plot docs/img/distil.png --json

Trees and tables of every size are grown from the same labels, chosen on validation episodes and compared, on further
validation episodes, with their teacher and with the best static decision in hindsight. Times are those of one decision
on one observation, everything in one process; compare ratios, not absolute figures.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
from pathlib import Path
from typing import Any, Literal

from adaptsplit.agents import PolicyController, make_controller
from adaptsplit.agents.distil import STATED_SEED, Distiller, Distilling
from adaptsplit.agents.distil_state import Bench
from adaptsplit.agents.run_folder import RUN_FILE
from adaptsplit.scenario import Scenario, load_scenario

SIZES = (4, 8, 16, 32, 64, 128, 256, 512)
FORMS: tuple[Literal["tree", "lookup"], ...] = ("tree", "lookup")
QUICK = {"rounds": 2, "states": 1500, "episodes": 32, "search_episodes": 16, "selection_episodes": 32}


def trained(scenario: Scenario, folder: Path, steps: int) -> Path:
    """Train a PPO to distil."""
    from adaptsplit.agents.training import train

    train(scenario, "ppo", folder, steps)
    return folder


def curve(distiller: Distiller, bench: Bench, sizes: tuple[int, ...]) -> list[dict[str, Any]]:
    """Distil every size from the same labels and state each one's loss."""
    labels, found = distiller.gather(), []
    for size in sizes:
        best = distiller.best_of(labels, size)
        loss = bench.state(best.policy, len(best.policy.to_bytes()))
        found.append({"form": distiller.settings.form, "limit": size, "criterion": best.criterion, **loss.to_dict()})
        print(f"{distiller.settings.form} of {size}: {loss.to_teacher.value:+.5f}", file=sys.stderr)
    return found


def measure(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Run everything; progress on standard error."""
    scenario = load_scenario(options.scenario, options.data)
    teacher = make_controller(str(folder), scenario)
    agent = str(json.loads((folder / RUN_FILE).read_bytes())["agent"])
    bench = Bench(scenario, teacher, 64 if options.quick else options.episodes, STATED_SEED)
    rows = []
    for form in FORMS:
        settings = Distilling(form=form, leaves=64).model_copy(update=QUICK if options.quick else {})
        distiller = Distiller(teacher, scenario, settings, agent=agent)
        rows += curve(distiller, bench, SIZES[1:3] if options.quick else SIZES)
    return {
        "scenario": scenario.name,
        "teacher": {"name": teacher.name, "bytes": (folder / "policy.npz").stat().st_size, **network(teacher)},
        "machine": {"python": platform.python_version(), "load": os.getloadavg()[0], "cores": os.cpu_count()},
        "rows": rows,
    }


def network(teacher: Any) -> dict[str, int]:
    """Size of the teacher's network: bytes of its weights, and multiplications per decision."""
    if not isinstance(teacher, PolicyController):
        return {}
    weights = [weight.size for weight, _ in teacher.net.layers]
    return {"array_bytes": 4 * sum(w.size + b.size for w, b in teacher.net.layers), "products": sum(weights)}


def table(found: dict[str, Any]) -> str:
    """Return the figures as Markdown."""
    teacher, first = found["teacher"], found["rows"][0]
    gain = first["teacher_reward"] - first["static_reward"]
    lines = ["| form | at most | used | comparisons | student - teacher (95 %) | gain kept | agreement | bytes | us |"]
    lines.append("| --- | --: | --: | --: | --- | --: | --: | --: | --: |")
    for row in found["rows"]:
        d = row["to_teacher"]
        difference = f"{d['value']:+.4f} [{d['low']:+.4f}, {d['high']:+.4f}]"
        kept = "-" if row["kept"] is None else f"{row['kept']:.0%}"
        lines.append(
            f"| {row['form']} | {row['limit']} | {row['cells']} | {row['comparisons']} | {difference} | {kept} "
            f"| {row['agreement']:.0%} | {row['array_bytes']} | {row['decision_us']:.2f} |"
        )
    lines.append(
        f"\nTeacher {teacher['name']} on {found['scenario']}: {first['teacher_reward']:.4f}, {gain:+.4f} over the best "
        f"static decision {first['static']}; {teacher.get('array_bytes', teacher['bytes'])} bytes, "
        f"{teacher.get('products', 0)} products, {first['teacher_us']:.1f} us per decision; {first['episodes']} "
        f"validation episodes. Python {found['machine']['python']}, load {found['machine']['load']:.1f}."
    )
    return "\n".join(lines)


def plot(found: dict[str, Any], path: Path) -> None:
    """Draw loss against size, with the best static decision as the reference."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(7.5, 4.2), layout="constrained")
    for form, colour, label in (("tree", "#1b6ca8", "decision tree"), ("lookup", "#c8553d", "decision table")):
        rows = [row for row in found["rows"] if row["form"] == form]
        value = [row["to_teacher"]["value"] for row in rows]
        low = [v - row["to_teacher"]["low"] for v, row in zip(value, rows, strict=True)]
        high = [row["to_teacher"]["high"] - v for v, row in zip(value, rows, strict=True)]
        sizes = [row["limit"] for row in rows]
        axes.errorbar(sizes, value, (low, high), color=colour, marker="o", capsize=3, label=label)
    first = found["rows"][0]
    static = first["static_reward"] - first["teacher_reward"]
    axes.axhline(0.0, color="#444444", linewidth=1, label=f"teacher ({found['teacher']['name']})")
    axes.axhline(static, color="#888888", linewidth=1, linestyle="--", label=f"best static ({first['static']})")
    axes.set_xscale("log", base=2)
    axes.set_xticks(sizes, [str(size) for size in sizes])
    axes.set_xlabel("at most so many leaves or cells")
    axes.set_ylabel("reward per frame, student - teacher")
    axes.set_title(f"{found['scenario']}: what a small policy loses, with 95 % intervals", loc="left")
    axes.legend(frameon=False)
    axes.grid(alpha=0.25)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)


def main() -> None:
    """Print a table, or JSON with ``--json``."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, help="run folder to distil (default: a PPO is trained first)")
    parser.add_argument("--scenario", default="flight-lte", help="shipped name or YAML file (default: %(default)s)")
    parser.add_argument("--data", type=Path, help="directory of recorded data, for scenarios that need it")
    parser.add_argument("--episodes", type=int, default=256, help="episodes of the statement (default: %(default)s)")
    parser.add_argument("--plot", type=Path, help="write a picture there")
    parser.add_argument("--quick", action="store_true", help="less training, fewer states, two sizes")
    parser.add_argument("--json", action="store_true", help="one JSON document")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        scenario = load_scenario(options.scenario, options.data)
        folder = options.run or trained(scenario, Path(place) / "ppo", 60_000 if options.quick else 1_000_000)
        found = measure(options, folder)
    if options.plot is not None:
        plot(found, options.plot)
    print(json.dumps(found, indent=2) if options.json else table(found))


if __name__ == "__main__":
    main()
