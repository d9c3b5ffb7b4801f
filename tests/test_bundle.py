"""Bundles: what goes in comes out, and anything missing, extra or changed is refused with the file's name."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from adaptsplit import observation as obs
from adaptsplit.agents import InterleavedController, PolicyNet, kind_of, make_controller, save_policy
from adaptsplit.bundle import Bundle, export_bundle, load_bundle
from adaptsplit.device_bridge.agent import session_config
from adaptsplit.errors import BundleError, ConfigError
from adaptsplit.evaluation.fidelity import check_flyable
from adaptsplit.runtime import ModelFolder
from adaptsplit.scenario import Scenario, load_scenario
from adaptsplit.testing import check_controller


@pytest.fixture(scope="module")
def scenario() -> Scenario:
    return load_scenario("flight-lte")


@pytest.fixture(scope="module")
def run(scenario: Scenario, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run's folder with a random network of the right size."""
    folder = tmp_path_factory.mktemp("runs") / "ppo-7"
    folder.mkdir()
    rng = np.random.default_rng(0)
    shapes = ((obs.SIZE, 32), (32, len(scenario.space.table)))
    layers = tuple((rng.normal(0, 0.5, s).astype(np.float32), np.zeros(s[1], dtype=np.float32)) for s in shapes)
    save_policy(folder / "policy.npz", "ppo", scenario.space, PolicyNet(layers, "tanh", "flat"))
    return folder


@pytest.fixture(scope="module")
def learned(scenario: Scenario, run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of the run."""
    return export_bundle(str(run), scenario, tmp_path_factory.mktemp("bundles") / "learned").path


@pytest.fixture
def copy(learned: Path, tmp_path: Path) -> Path:
    """A copy of the bundle to damage."""
    return Path(shutil.copytree(learned, tmp_path / "bundle"))


def batch(n: int = 200) -> Any:
    return np.random.default_rng(3).random((n, obs.SIZE), dtype=np.float32)


@pytest.mark.parametrize("name", ["static:local/0/0", "random", "threshold", "deadline", "deadline:sigma=0.5"])
def test_every_kind_of_controller_survives_the_bundle(name: str, scenario: Scenario, tmp_path: Path) -> None:
    bundle = export_bundle(name, scenario, tmp_path / "b")
    made = make_controller(name, scenario)
    assert (bundle.controller.name, kind_of(bundle.controller)) == (made.name, kind_of(made))
    check_controller(bundle.controller, scenario.space)
    one, other = (c.act(batch(), c.init(200, np.random.default_rng(0)))[0] for c in (made, bundle.controller))
    assert np.mean(np.all(one == other, axis=1)) > 0.99  # the summary is stored with 6 digits


def test_a_learned_policy_decides_the_same_from_its_bundle(learned: Path, run: Path, scenario: Scenario) -> None:
    bundle, made = load_bundle(learned), make_controller(str(run), scenario)
    assert bundle.controller.name == "ppo-7"
    assert kind_of(bundle.controller) == "learned"
    assert np.array_equal(bundle.controller.act(batch(), None)[0], made.act(batch(), None)[0])


def test_what_the_device_and_the_edge_need_is_there(learned: Path, scenario: Scenario) -> None:
    bundle = load_bundle(learned)
    assert bundle.space == scenario.space
    assert bundle.context.fps == scenario.fps
    assert bundle.context.deadline_s == scenario.deadline_s
    model = ModelFolder.open(bundle.model_path)
    assert bundle.classes == model.card.classes
    assert model.digest == ModelFolder.open(scenario.model_path).digest
    assert not list(bundle.path.rglob("*.safetensors"))


def test_a_bundle_carries_the_skip_branch_and_patience_that_its_model_knows_nothing_of(tmp_path: Path) -> None:
    reuse = load_scenario("flight-reuse")
    bundle = export_bundle("static:skip/0/0", reuse, tmp_path / "b")
    assert bundle.space == reuse.space
    assert (bundle.space.branches[-1].kind, sorted(set(bundle.space.patience))) == ("skip", [0.5, 1.0])
    assert bundle.controller.name == "static:skip/0/0"
    assert bundle.stages.head(len(bundle.space.branches) - 1) == 0.0
    assert session_config(bundle, bytes(16), 10).retention == pytest.approx(reuse.summary().retention, rel=1e-5)
    assert "skip" not in {card.name for card in ModelFolder.open(bundle.model_path).card.branches}


def test_a_published_table_has_no_network_to_export_or_fly(learned: Path, tmp_path: Path) -> None:
    published = load_scenario("published-tx2-vgg16")
    with pytest.raises(ConfigError, match="numbers without a network") as error:
        export_bundle("deadline", published, tmp_path / "b")
    assert "\n" not in str(error.value)
    assert not list(tmp_path.iterdir())
    with pytest.raises(ConfigError, match="numbers without a network"):
        check_flyable(load_bundle(learned), published)


def test_a_bundle_flies_on_a_scenario_with_its_decisions_only(learned: Path, scenario: Scenario) -> None:
    check_flyable(load_bundle(learned), scenario)
    with pytest.raises(ConfigError, match=r"made for scenario 'flight-lte'.*--scenario flight-reuse"):
        check_flyable(load_bundle(learned), load_scenario("flight-reuse"))


def test_stage_times_are_those_of_the_named_device(learned: Path, scenario: Scenario) -> None:
    stages, profile = load_bundle(learned).stages, scenario.profile("train")
    assert stages.head(0, 0.0) == pytest.approx(profile.head_s[0, 0] * scenario.stage_scale, rel=1e-6)
    assert stages.head(0, 1.0) == pytest.approx(profile.head_s[0, -1] * scenario.stage_scale, rel=1e-6)
    middle = np.median(profile.encode_s[0, 1]) * scenario.codec_scale
    assert stages.encode(0, 1) == pytest.approx(middle, rel=1e-6)
    assert stages.signal(0.2) <= stages.signal(0.8)


def test_build_makes_other_controllers_and_interleaves_them(learned: Path) -> None:
    bundle = load_bundle(learned)
    assert bundle.build(["bundle"], 10) is bundle.controller
    both = bundle.build(["bundle", "static:local/0/0"], 10)
    assert isinstance(both, InterleavedController)
    assert both.block == 10
    assert [part.name for part in both.parts] == ["ppo-7", "static:local/0/0"]


def test_export_replaces_a_bundle_but_no_other_folder(scenario: Scenario, tmp_path: Path) -> None:
    first = export_bundle("random", scenario, tmp_path / "b")
    second = export_bundle("deadline", scenario, tmp_path / "b")
    assert second.controller.name == "deadline"
    assert first.digest != second.digest
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("keep me")
    with pytest.raises(ConfigError, match="no bundle"):
        export_bundle("random", scenario, tmp_path / "mine")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["b", "mine"]


def test_one_flipped_byte_in_any_file_is_found(copy: Path) -> None:
    for path in sorted(path for path in copy.rglob("*") if path.is_file() and path.name != "manifest.json"):
        good = path.read_bytes()
        bad = bytearray(good)
        bad[len(bad) // 2] ^= 1
        path.write_bytes(bytes(bad))
        with pytest.raises(BundleError, match=f"{path.name}.*damaged.*again"):
            load_bundle(copy)
        path.write_bytes(good)
    assert isinstance(load_bundle(copy), Bundle)


def test_missing_and_extra_files_and_links_are_found(copy: Path) -> None:
    (copy / "extra.sh").write_text("echo")
    with pytest.raises(BundleError, match=r"extra\.sh: not listed"):
        load_bundle(copy)
    (copy / "extra.sh").unlink()
    (copy / "policy.npz").rename(copy.parent / "policy.npz")
    with pytest.raises(BundleError, match=r"policy\.npz: missing"):
        load_bundle(copy)
    (copy / "policy.npz").symlink_to(copy.parent / "policy.npz")
    with pytest.raises(BundleError, match=r"policy\.npz: a link"):
        load_bundle(copy)


def test_a_folder_that_is_no_bundle(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="adaptsplit export"):
        load_bundle(tmp_path)


Edit = Callable[[dict[str, Any]], object]
EDITS: dict[str, tuple[Edit, str]] = {
    "unknown key": (lambda m: m.update(extra=1), "unknown key"),
    "schema": (lambda m: m.update(schema="adaptsplit.bundle/9"), "schema"),
    "observation": (lambda m: m.update(observation="0" * 16), "install the same version"),
    "parent path": (lambda m: m["files"].update({"../x": m["files"]["policy.npz"]}), "files"),
    "absolute path": (lambda m: m["files"].update({"/etc/passwd": m["files"]["policy.npz"]}), "files"),
    "backslash": (lambda m: m["files"].update({"a\\b": m["files"]["policy.npz"]}), "files"),
    "no model": (lambda m: m.update(files={}), "not listed"),
    "unknown controller": (lambda m: m["controller"].update(kind="rule", source="deadlin"), "did you mean 'deadline'"),
    "policy elsewhere": (lambda m: m["controller"].update(source="../policy.npz"), "not a file of the bundle"),
    "space": (lambda m: m["space"].update(thresholds=[0.0, 0.5], patience=[1.0, 1.0]), "another decision space"),
    "patience": (lambda m: m["space"].update(patience=[1.0]), "a share in"),
    "no patience": (lambda m: m["space"].pop("patience"), "not of the expected form"),
    "retention": (lambda m: m["summary"].update(retention="much"), "retention"),
    "branches": (lambda m: m["space"].update(branches=[]), "at least one"),
    "stages": (lambda m: m["stages"].update(signal_s=[0.1]), "do not fit"),
    "negative time": (lambda m: m["stages"]["signal_s"].__setitem__(0, -1.0), "below 0"),
    "summary": (lambda m: m["summary"].pop("levels"), "levels"),
    "deadline": (lambda m: m["context"].update(deadline_s=-1), "deadline_s"),
}


@pytest.mark.parametrize("case", EDITS)
def test_a_wrong_manifest_is_refused_with_a_cure(case: str, copy: Path) -> None:
    edit, text = EDITS[case]
    manifest = json.loads((copy / "manifest.json").read_text())
    edit(manifest)
    (copy / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(BundleError, match=text):
        load_bundle(copy)


@pytest.mark.parametrize("text", ["", "[]", "{", '{"a": NaN}', "[" * 100_000])
def test_a_manifest_that_is_no_json_object(text: str, copy: Path) -> None:
    (copy / "manifest.json").write_text(text)
    with pytest.raises(BundleError, match=r"manifest\.json"):
        load_bundle(copy)


def test_a_pickled_policy_with_a_right_hash_is_not_unpickled(copy: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "evil.npz", meta=np.array([print], dtype=object))
    data = (tmp_path / "evil.npz").read_bytes()
    (copy / "policy.npz").write_bytes(data)
    manifest = json.loads((copy / "manifest.json").read_text())
    manifest["files"]["policy.npz"] = {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
    (copy / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(BundleError, match="not a policy file"):
        load_bundle(copy)
