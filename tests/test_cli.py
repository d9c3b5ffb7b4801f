"""The command line: exit codes, JSON on standard output, and never a traceback for a user's mistake."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from adaptsplit.scenario import load_scenario

pytestmark = pytest.mark.timeout(300)


def run(*arguments: str | Path, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "adaptsplit.cli", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, timeout=280)


def test_it_tells_its_version() -> None:
    with (Path(__file__).parents[1] / "pyproject.toml").open("rb") as file:
        expected = tomllib.load(file)["project"]["version"]
    assert run("--version").stdout.startswith(f"adaptsplit {expected}, Python 3.")


def refused(done: subprocess.CompletedProcess[str], *words: str, code: int = 2) -> None:
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    for word in words:
        assert word in done.stderr.replace("\n", " "), done.stderr


COMMANDS = [
    "demo",
    "fit",
    "split",
    "profile",
    "train",
    "train-general",
    "retarget",
    "ensemble",
    "distil",
    "tune",
    "sweep",
    "evaluate",
    "league",
    "fidelity",
    "decide",
    "conformance",
    "deploy",
    "learn",
    "export",
    "fly",
    "broker",
    "edge",
    "device",
    "scenarios",
    "links",
]


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_teaches(command: str) -> None:
    done = run(command, "--help")
    assert done.returncode == 0
    assert len(done.stdout) > 200


def test_bad_usage_is_2() -> None:
    refused(run("evaluate"))
    refused(run("tain"))


def test_scenarios_as_json() -> None:
    done = run("scenarios", "list", "--json")
    assert {item["name"] for item in json.loads(done.stdout)} >= {"flight-lte", "eurosat-uplinks"}
    assert json.loads(run("scenarios", "show", "flight-lte", "--json").stdout)["fps"] == 10


def test_the_list_says_what_is_here_and_what_was_found() -> None:
    found = {item["name"]: item for item in json.loads(run("scenarios", "list", "--json").stdout)}
    item = found["flight-lte"]
    assert (item["families"], item["links"], item["profile"]) == (["lte"], "generated", "measured")
    assert (item["available"], item["missing"]) == (True, None)
    shown = run("scenarios", "list").stdout
    assert "flight-lte  generated links (lte); ready" in shown


def test_diagnose_wants_one_scenario_or_all() -> None:
    refused(run("scenarios", "diagnose"), "name one scenario, or give --all")
    refused(run("scenarios", "diagnose", "flight-lte", "--all"), "name one scenario, or give --all")
    refused(run("scenarios", "diagnose", "flight-lt"), "did you mean 'flight-lte'")


def test_diagnose_writes_prints_and_is_listed(tmp_path: Path) -> None:
    catalog = tmp_path / "diagnoses.json"
    options = ("--quick", "--episodes", "2", "--out", tmp_path / "out", "--write", "--catalog", catalog)
    done = run("scenarios", "diagnose", "flight-lte", *options)
    assert done.returncode == 0, done.stderr
    document = json.loads((tmp_path / "out" / "diagnosis.json").read_text(encoding="utf-8"))
    assert f"adapting pays: {document['verdict']}"[:60] in done.stdout
    entry = json.loads(catalog.read_text(encoding="utf-8"))["entries"]["flight-lte"]
    assert (entry["verdict"], entry["hash"]) == (document["verdict"], document["hash"])
    again = run("scenarios", "diagnose", "flight-lte", *options)
    assert "flight-lte: unchanged" in again.stderr
    assert "adapting pays" not in again.stdout


def test_unknown_scenario_key(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    text = (Path(load_scenario("flight-lte").base) / "flight-lte.yaml").read_text(encoding="utf-8")
    path.write_text(text.replace("deadline_s:", "deadlin_s:"), encoding="utf-8")
    refused(run("scenarios", "show", path), "deadlin_s", "did you mean 'deadline_s'")


def test_trace_with_text_in_it(tmp_path: Path) -> None:
    path = tmp_path / "broken.up"
    path.write_text("1\n2\nthree\n4\n", encoding="utf-8")
    refused(run("links", "describe", path), str(path.name), "3")


def test_links_describe(tmp_path: Path) -> None:
    path = tmp_path / "good.up"
    path.write_text("\n".join(str(i * 12) for i in range(1, 500)), encoding="utf-8")
    done = run("links", "describe", path, "--json")
    assert json.loads(done.stdout)["links"][0]["family"] is not None


def test_broken_profile(tmp_path: Path) -> None:
    shipped = load_scenario("flight-lte").profile_path
    shutil.copytree(shipped, tmp_path / "profile")
    file = tmp_path / "profile" / "profile-test.npz"
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(bytes(data))
    path = tmp_path / "mine.yaml"
    text = (Path(load_scenario("flight-lte").base) / "flight-lte.yaml").read_text(encoding="utf-8")
    path.write_text(text.replace("profile: flight", "profile: profile"), encoding="utf-8")
    done = run("evaluate", path, "--agents", "random", "--episodes", "2", "--out", tmp_path / "out")
    refused(done, "profile-test.npz")


def test_bundle_with_one_flipped_byte(tmp_path: Path) -> None:
    assert run("export", "deadline", "--scenario", "flight-lte", "--out", tmp_path / "bundle").returncode == 0
    head = next((tmp_path / "bundle" / "model").glob("head-*.onnx"))
    data = bytearray(head.read_bytes())
    data[100] ^= 1
    head.write_bytes(bytes(data))
    refused(run("device", "--bundle", tmp_path / "bundle", "--count", "1"), head.name)


def test_unknown_agent_names_the_nearest(tmp_path: Path) -> None:
    done = run("evaluate", "flight-lte", "--agents", "deadlin", "--episodes", "1", "--out", tmp_path)
    refused(done, "did you mean 'deadline'")


def test_evaluate_writes_results_and_report(tmp_path: Path) -> None:
    done = run("evaluate", "flight-lte", "--agents", "static,deadline", "--episodes", "4", "--out", tmp_path, "--json")
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert document == json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))
    names = {row["name"] for row in document["controllers"]}
    assert document["best_static"]["hindsight"] in names
    assert "deadline" in names
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "deadline" in page
    assert "http://" not in page.replace("http://www.w3.org", "")
