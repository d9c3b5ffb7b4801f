"""Bundles: what goes in comes out, and anything missing, extra or changed is refused with the file's name."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from adaptsplit import observation as obs
from adaptsplit.agents import InterleavedController, PolicyNet, kind_of, make_controller, save_policy
from adaptsplit.bundle import Bundle, _build, export_bundle, load_bundle
from adaptsplit.bundle_manifest import parse_manifest
from adaptsplit.bundle_sign import sign_bundle
from adaptsplit.cli_deploy import keys_app
from adaptsplit.device_bridge.describe import session_config
from adaptsplit.errors import BundleError, ConfigError
from adaptsplit.evaluation.fidelity import check_flyable
from adaptsplit.guard import GuardedController
from adaptsplit.guard_range import range_of
from adaptsplit.runtime import ModelFolder
from adaptsplit.scenario import Scenario, load_scenario
from adaptsplit.signing import Refusal, RefusedBundle, Trust, decisions_hash, sign_statement
from adaptsplit.signing_keys import PrivateKey, load_private, make_keys
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


# ---- the guard ----


def test_what_is_learned_runs_inside_the_guard_when_asked(learned: Path, scenario: Scenario) -> None:
    bundle = load_bundle(learned)
    both = bundle.build(["bundle", "deadline"], 10, guard=True)
    assert isinstance(both, InterleavedController)
    assert isinstance(both.parts[0], GuardedController)
    assert [part.name for part in both.parts] == ["ppo-7", "deadline"]
    assert not isinstance(both.parts[1], GuardedController)
    assert bundle.build(["bundle"], 10, guard=True).name == "ppo-7"
    times = bundle.answer_s
    assert times.shape == (len(scenario.space.branches),)
    expected = scenario.decision_s + bundle.stages.signal(0.95) + bundle.stages.head(0, 0.95)
    assert times[0] == pytest.approx(expected)


def test_the_trained_range_travels_with_the_policy(run: Path, scenario: Scenario, tmp_path: Path) -> None:
    trained = range_of(np.full((2, obs.SIZE), 0.5))
    bundle = export_bundle(str(run), scenario, tmp_path / "b", trained=trained)
    assert bundle.manifest.trained == trained
    guard = bundle.build(["bundle"], 10, guard=True)
    _, state = guard.act(batch(1), guard.init(1, np.random.default_rng(0)))
    assert [event.reason.value for event in state.events] == ["out-of-range"]


# ---- signatures ----

NOW = 1_763_700_000


@pytest.fixture(scope="module")
def key(tmp_path_factory: pytest.TempPathFactory) -> PrivateKey:
    return load_private(make_keys(tmp_path_factory.mktemp("keys"), "fleet")[0])


def trust(key: PrivateKey, memory: Path | None = None, now: float = NOW) -> Trust:
    return Trust((key.public_key(),), memory, clock=lambda: now)


def refused(folder: Path, trusted: Trust | None) -> Refusal:
    with pytest.raises(RefusedBundle) as error:
        load_bundle(folder, trusted)
    return error.value.code


def test_a_signed_bundle_is_verified_and_remembered(copy: Path, key: PrivateKey, tmp_path: Path) -> None:
    assert load_bundle(copy).assurance.startswith("not signed")
    signed = sign_bundle(copy, key, number=3, valid_s=86400, now=NOW)
    assert load_bundle(copy).assurance.startswith("signed, but the signature was not checked")
    bundle = load_bundle(copy, trust(key, tmp_path / "memory.json"))
    assert bundle.signed == signed
    assert bundle.assurance == "signed by a trusted key, version 3, until 2025-11-22"
    assert json.loads((tmp_path / "memory.json").read_text())["version"] == 3
    assert load_bundle(copy, trust(key, tmp_path / "memory.json")).digest == bundle.digest
    assert sign_bundle(copy, key, now=NOW).version == NOW


def test_a_device_with_a_key_takes_nothing_else(copy: Path, key: PrivateKey, tmp_path: Path) -> None:
    """Unsigned, wrong key, expired, early, older, reused: each with its code, and nothing is remembered of it."""
    memory = tmp_path / "memory.json"
    stranger = load_private(make_keys(tmp_path, "stranger")[0])
    assert refused(copy, trust(key, memory)) == Refusal.UNSIGNED
    sign_bundle(copy, stranger, now=NOW)
    assert refused(copy, trust(key, memory)) == Refusal.KEY
    sign_bundle(copy, key, number=5, valid_s=100, now=NOW)
    assert refused(copy, trust(key, memory, NOW + 161)) == Refusal.EXPIRED
    assert refused(copy, trust(key, memory, NOW - 61)) == Refusal.EARLY
    assert not memory.exists()
    load_bundle(copy, trust(key, memory))
    sign_bundle(copy, key, number=4, now=NOW)
    assert refused(copy, trust(key, memory)) == Refusal.ROLLBACK
    manifest = json.loads((copy / "manifest.json").read_text())
    (copy / "manifest.json").write_text(json.dumps(manifest | {"name": "other"}))
    sign_bundle(copy, key, number=5, now=NOW)
    assert refused(copy, trust(key, memory)) == Refusal.REPLAY
    assert json.loads(memory.read_text())["version"] == 5


def test_what_was_changed_after_signing_is_refused(copy: Path, key: PrivateKey, tmp_path: Path) -> None:
    sign_bundle(copy, key, now=NOW)
    memory = tmp_path / "memory.json"
    policy = (copy / "policy.npz").read_bytes()
    (copy / "policy.npz").write_bytes(policy[:-1] + bytes([policy[-1] ^ 1]))
    assert refused(copy, trust(key, memory)) == refused(copy, None) == Refusal.CHANGED
    (copy / "policy.npz").write_bytes(policy)
    text = (copy / "manifest.json").read_text()
    (copy / "manifest.json").write_text(text + " ")
    assert refused(copy, trust(key, memory)) == Refusal.CHANGED
    assert load_bundle(copy).digest  # whole for whoever trusts no key
    (copy / "manifest.json").unlink()
    assert refused(copy, trust(key, memory)) == Refusal.CHANGED
    assert not memory.exists()


def test_nothing_is_read_before_the_signature(copy: Path, key: PrivateKey) -> None:
    (copy / "manifest.json").write_bytes(b"[" * 100_000)
    assert refused(copy, trust(key)) == Refusal.UNSIGNED
    (copy / "signature.json").write_bytes(b" " * 10_000)
    assert refused(copy, trust(key)) == Refusal.MALFORMED


@pytest.mark.parametrize(
    ("change", "code"), [({"decisions": "0" * 16}, Refusal.DECISIONS), ({"observation": "0" * 16}, Refusal.OBSERVATION)]
)
def test_schemas_are_part_of_what_is_signed(change: dict[str, str], code: Refusal, copy: Path, key: PrivateKey) -> None:
    statement = sign_bundle(copy, key, now=NOW)
    assert statement.decisions == decisions_hash(load_bundle(copy).manifest.space)
    (copy / "signature.json").write_bytes(sign_statement(statement.model_copy(update=change), key))
    assert refused(copy, trust(key)) == code


@pytest.mark.parametrize("options", [{"number": 0}, {"valid_s": 0}, {"number": 1 << 41}, {"valid_s": 1 << 41}])
def test_a_signature_needs_a_version_and_a_time(options: dict[str, Any], copy: Path, key: PrivateKey) -> None:
    with pytest.raises(ConfigError, match="whole numbers above 0"):
        sign_bundle(copy, key, **options)
    assert not (copy / "signature.json").exists()


def test_signing_on_the_command_line(copy: Path, tmp_path: Path) -> None:
    private, public = make_keys(tmp_path, "fleet")
    run = CliRunner().invoke
    done = run(keys_app, ["sign", str(copy), "--key", str(private), "--version", "9", "--days", "1"])
    assert done.stdout.startswith("signed: flight-lte-ppo-7, version 9, until ")
    shown = run(keys_app, ["verify", str(copy), "--trust", str(public), "--json"])
    assert json.loads(shown.stdout)["version"] == 9
    (copy / "signature.json").unlink()
    failed = run(keys_app, ["verify", str(copy), "--trust", str(public)]).exception
    assert isinstance(failed, RefusedBundle)
    assert failed.code is Refusal.UNSIGNED


def test_too_many_files_are_refused(copy: Path) -> None:
    for k in range(300):
        (copy / f"f{k}").touch()
    assert refused(copy, None) == Refusal.CHANGED


MUTATIONS = 100_000 if os.environ.get("ADAPTSPLIT_FUZZ") == "full" else 2_000


@pytest.mark.timeout(900)
def test_mutated_manifests_are_loaded_or_refused(learned: Path) -> None:
    """Values are dropped and replaced inside the JSON, and bytes of it: a BundleError comes out, or a bundle."""
    data, rng = (learned / "manifest.json").read_bytes(), random.Random(2024)
    built = 0
    for _ in range(MUTATIONS):
        with contextlib.suppress(BundleError):
            manifest = parse_manifest(_mutated(data, rng), learned / "manifest.json")
            built += _build(learned, manifest, "").manifest is manifest
    assert 0 < built < MUTATIONS


JUNK: tuple[Any, ...] = (None, True, -1, 1e308, 10**400, "", "../x", "\ud800", [], {}, [[[]]], {"a": {}})


def _mutated(data: bytes, rng: random.Random) -> bytes:
    if rng.random() < 0.5:
        at = rng.randrange(len(data))
        return data[:at] + rng.randbytes(rng.randint(0, 4)) + data[at + rng.randint(0, 8) :]
    value = json.loads(data)
    place = value
    while True:
        keys = list(place) if isinstance(place, dict) else list(range(len(place)))
        key = rng.choice(keys)
        if not (isinstance(place[key], dict | list) and place[key] and rng.random() < 0.7):
            break
        place = place[key]
    if rng.random() < 0.2:
        del place[key]
    else:
        place[key] = rng.choice(JUNK)
    return json.dumps(value).encode()
