"""Coverage-guided fuzzing of the decoders with Atheris (libFuzzer): ``python benchmarks/fuzz.py control --seconds 60``.

Atheris is not a dependency: ``pip install atheris`` (3.0 has wheels for Linux, Python 3.11 and later). It drives the
same targets as ``tests/test_fuzz_decoders.py`` and holds each to the same caps; the mutations are libFuzzer's, steered
by which branches of our modules an input reaches, mixed with our own ones. One process per target: libFuzzer ends the
process. Prints one line of JSON per target; whatever is found stands in ``--out`` as a file, to become a line of
``tests/test_fuzz_found.py``.
"""

from __future__ import annotations

import argparse
import importlib
import json
import random
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))

OWN_MUTATIONS = 0.25  # share of inputs that are our mutators', which know the layouts; the rest are libFuzzer's
COMPILED = [f"adaptsplit.codecs.{name}_kernel" for name in ("static", "context")]  # numba's: it reads bytecode
COMPILED += ["adaptsplit.codecs.context_vector", "adaptsplit.estimators", "adaptsplit.envs"]
MAX_BYTES = 4096  # of an input: small inputs reach the same branches sooner


def main() -> None:
    """Fuzz the named targets one after another, or all decoders of what a network brings."""
    options = _parser().parse_args()
    if options.child:
        _fuzz(options.targets[0], options.seconds, options.out)
        return
    options.out.mkdir(parents=True, exist_ok=True)
    failed = [name for name in options.targets or _on_the_wire() if not _run(name, options.seconds, options.out)]
    if failed:
        raise SystemExit(f"found something: {', '.join(failed)}; the inputs are in {options.out}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("targets", nargs="*", help="names of fuzz_targets.TARGETS; default: what a network brings")
    parser.add_argument("--seconds", type=int, default=60, help="of each target")
    parser.add_argument("--out", type=Path, default=Path("fuzz-out"), help="where findings go")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    return parser


def _on_the_wire() -> tuple[str, ...]:
    from fuzz_targets import ON_THE_WIRE

    return ON_THE_WIRE


def _run(name: str, seconds: int, out: Path) -> bool:
    """Fuzz one target in a process of its own and print what came of it; whether nothing was found."""
    command = [sys.executable, __file__, name, "--seconds", str(seconds), "--out", str(out), "--child"]
    start = time.monotonic()
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    said = done.stdout + done.stderr
    (out / f"{name}.txt").write_text(said)
    covered = re.findall(r"cov: (\d+) ft: (\d+) corp: (\d+)", said)
    numbers = dict(zip(("branches", "features", "corpus"), map(int, covered[-1]), strict=True)) if covered else {}
    inputs = re.findall(r"^#(\d+)", said, re.MULTILINE)
    row = {"target": name, "found": done.returncode != 0, "seconds": round(time.monotonic() - start, 1)}
    print(json.dumps({**row, "inputs": int(inputs[-1]) if inputs else 0, **numbers}), flush=True)
    return done.returncode == 0


def _fuzz(name: str, seconds: int, out: Path) -> None:
    """Fuzz one target in this process; libFuzzer ends it."""
    atheris: Any = importlib.import_module("atheris")
    with atheris.instrument_imports(include=["adaptsplit"], exclude=COMPILED):
        import fuzzing as own
        from fuzz_targets import TARGETS

        target = TARGETS[name]()
        for data in target.whole:
            own.outcome(target, data)  # imports what is only imported at the first use, while imports are instrumented
    mutate = _mutator(atheris, target.mutators)

    def one(data: bytes) -> None:
        start = time.thread_time()
        own.outcome(target, data)
        if time.thread_time() - start > target.most_s and own.seconds(target, data) > target.most_s:
            raise RuntimeError(f"{name}: slower than {target.most_s:g} s")

    seeds = out / f"{name}-corpus"
    seeds.mkdir(exist_ok=True)
    for number, data in enumerate(target.whole):
        (seeds / f"seed-{number}").write_bytes(data)
    limits = [f"-max_total_time={seconds}", f"-max_len={MAX_BYTES}", "-rss_limit_mb=2048", "-timeout=10"]
    atheris.Setup([sys.argv[0], *limits, f"-artifact_prefix={out / name}-", str(seeds)], one, custom_mutator=mutate)
    with own.silent():
        atheris.Fuzz()


def _mutator(atheris: Any, own: Any) -> Any:
    """Return libFuzzer's own mutation, in turn with ours."""

    def mutate(data: bytes, max_size: int, seed: int) -> bytes:
        rng = random.Random(seed)
        if rng.random() < OWN_MUTATIONS:
            return bytes(rng.choice(own)(rng)[:max_size])
        return bytes(atheris.Mutate(data, max_size))

    return mutate


if __name__ == "__main__":
    main()
