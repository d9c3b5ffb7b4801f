"""Policy updates during a live run, over a real broker: taken, refused, tried, taken back; and `adaptsplit deploy`."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from policy_cases import announce, envelope, export_policy, signed_copy, update_of
from typer.testing import CliRunner

from adaptsplit import observation as obs
from adaptsplit.cli import app
from adaptsplit.device_bridge.agent import DeviceAgent
from adaptsplit.device_bridge.broker import EmbeddedBroker
from adaptsplit.device_bridge.camera import Camera, flight_order
from adaptsplit.device_bridge.control import Birth, Event, PolicyReported, parse_control
from adaptsplit.device_bridge.device_options import DeviceOptions
from adaptsplit.device_bridge.mqtt import MqttTransport
from adaptsplit.device_bridge.policy_canary import CanaryLimits
from adaptsplit.device_bridge.policy_device import PolicySource, start_policy
from adaptsplit.device_bridge.policy_sender import Parcel, PolicySender
from adaptsplit.device_bridge.topics import DeviceTopics
from adaptsplit.device_bridge.transport import BrokerAddress
from adaptsplit.errors import ConfigError, MessageError
from adaptsplit.frames import open_frames
from adaptsplit.guard_range import range_of
from adaptsplit.signing_keys import PrivateKey, load_private, make_keys

FRAMES = 20
LIMITS = CanaryLimits(
    frames=FRAMES, trips=0.1, recovered=0.7, misses=0.9
)  # a busy machine may be late once (10 frames)


@pytest.fixture(scope="module")
def broker() -> Iterator[EmbeddedBroker]:
    with EmbeddedBroker() as running:
        yield running


@dataclass
class Fleet:
    """What a fleet's operator has: keys, and signed bundles by version."""

    folder: Path
    key: PrivateKey
    public: Path
    made: list[Path] = field(default_factory=list)

    def bundle(self, seed: int, number: int, edit: Callable[[dict[str, Any]], object] | None = None) -> Path:
        """Return a bundle of policy ``seed`` that holds from now on; at 10 frames a second, for a short test."""
        to = self.folder / f"signed-{number}-{len(list(self.folder.iterdir()))}"

        def faster(manifest: dict[str, Any]) -> None:
            manifest["context"]["fps"] = 10.0
            if edit is not None:
                edit(manifest)

        return signed_copy(self.made[seed], to, self.key, number, faster, now=time.time())


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Fleet:
    folder = tmp_path_factory.mktemp("fleet")
    private, public = make_keys(folder, "k")
    return Fleet(folder, load_private(private), public, [export_policy(folder / "made", seed) for seed in (0, 1)])


class Flight:
    """A device that flies in a thread of this process, without an edge server; a context manager."""

    def __init__(self, broker: EmbeddedBroker, device: str, source: PolicySource, controllers: tuple[str, ...]) -> None:
        self.policy = start_policy(source, controllers, None)
        frames = open_frames("flight", split="test")
        self._camera = Camera(frames, flight_order(frames, 0, 3000))
        options = DeviceOptions(broker.url, "default", device, "native", edge_wait_s=0.0, drain_s=0.0, state_s=0.0)
        self._make = lambda: DeviceAgent(
            self.policy.bundle, self._camera, controllers, options, parts=(self.policy.part,)
        )
        self.agent: DeviceAgent

    def __enter__(self) -> Flight:
        self._camera.__enter__()
        self.agent = self._make().__enter__()
        self._thread = threading.Thread(target=self.agent.run)
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.agent.stop()
        self._thread.join(20.0)
        self.agent.__exit__()
        self._camera.__exit__()


class Ear:
    """Hears what a device says on the control plane, and speaks as an operator."""

    def __init__(self, broker: EmbeddedBroker, device: str) -> None:
        self.reports: list[PolicyReported] = []
        self.births: list[Birth] = []
        self.events: list[Event] = []
        self.topics = DeviceTopics("default", device)
        leaves = ("policy/reported", "birth", "event")
        self.link = MqttTransport(
            BrokerAddress.parse(broker.url),
            f"ear-{device}",
            [self.topics.leaf(leaf) for leaf in leaves],
            self._hear,
            qos=1,
        )
        self.link.wait_connected(5.0)

    def _hear(self, topic: str, payload: bytes) -> None:
        try:
            data = parse_control(payload)[1]
        except MessageError:
            return
        kinds: list[tuple[type, list[Any]]] = [(PolicyReported, self.reports), (Birth, self.births)]
        for kind, place in [*kinds, (Event, self.events)]:
            if isinstance(data, kind):
                place.append(data)

    def say(self, leaf: str, payload: bytes, retain: bool = False) -> None:
        """Publish on one of the device's topics."""
        self.link.publish(self.topics.leaf(leaf), payload, qos=1, retain=retain)

    def wait(self, found: Callable[[PolicyReported], bool], timeout_s: float = 20.0) -> PolicyReported:
        """Return the first report that ``found`` is true of."""
        until = time.monotonic() + timeout_s
        while time.monotonic() < until:
            for reported in list(self.reports):
                if found(reported):
                    return reported
            time.sleep(0.02)
        raise AssertionError(f"no such report; heard {self.reports}")


def deploy(broker: EmbeddedBroker, *arguments: str) -> tuple[int, dict[str, Any]]:
    done = CliRunner().invoke(app, ["deploy", *arguments, "--broker", broker.url, "--wait", "30", "--json"])
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    document: dict[str, Any] = json.loads(done.stdout)
    return done.exit_code, document


def test_a_policy_is_exchanged_in_flight_and_stays_over_a_restart(
    broker: EmbeddedBroker, fleet: Fleet, tmp_path: Path
) -> None:
    factory, new = fleet.bundle(0, 1), fleet.bundle(1, 2)
    source = PolicySource(factory, [fleet.public], tmp_path / "memory.json", tmp_path / "p", LIMITS)
    with Flight(broker, "one", source, ("bundle",)) as flight:
        ear = Ear(broker, "one")
        code, document = deploy(broker, str(new), "--device", "one")
        assert (code, document["succeeded"], document["version"]) == (0, True, 2), document
        assert flight.agent.decider.names == ["ppo-1"]
        assert flight.agent.decider.counts["exchanges"] == 1
        ear.wait(lambda reported: reported.status == "SUCCEEDED")
        stages = [reported.stage or reported.status for reported in ear.reports]
        wanted = ["QUEUED", "download", "verify", "self-test", "canary", "SUCCEEDED"]
        assert list(dict.fromkeys(stages)) == wanted
        assert ear.births[-1].bundle == flight.agent.bundle.digest
        assert any(event.kind == "policy" and "SUCCEEDED" in event.detail for event in ear.events)

        # the same again changes nothing; a replay of the first announcement, which the broker retains, neither
        before = len(ear.reports)
        code, document = deploy(broker, str(new), "--device", "one")
        assert (code, document["devices"][0]["status"]) == (0, "SUCCEEDED")
        assert flight.agent.decider.counts["exchanges"] == 1
        assert all(reported.status == "SUCCEEDED" for reported in ear.reports[before:])

        # an older one is refused
        code, document = deploy(broker, str(factory), "--device", "one")
        (row,) = document["devices"]
        assert (code, row["status"], row["reason"]) == (1, "REJECTED", "NOT_NEWER")
        ear.link.close()
    rows = np.concatenate(list(flight.agent.log.outcomes().values()))
    assert sorted(rows["frame"].tolist()) == list(range(len(rows))), "every frame has one outcome, across the exchange"
    again = start_policy(source, ("bundle",), None)
    assert again.bundle.signed is not None
    assert again.bundle.signed.version == 2
    again.part.close()


def test_a_device_without_a_key_refuses_and_says_so(broker: EmbeddedBroker, fleet: Fleet) -> None:
    factory = fleet.bundle(0, 1)
    with Flight(broker, "three", PolicySource(factory), ("bundle",)) as flight:
        code, document = deploy(broker, str(fleet.bundle(1, 2)), "--device", "three")
        (row,) = document["devices"]
        assert (code, row["status"], row["reason"]) == (1, "REJECTED", "NOT_ENABLED")
        assert "--trust" in row["detail"]
        assert flight.agent.decider.names == ["ppo-0"]


def test_strangers_and_garbage_change_nothing(broker: EmbeddedBroker, fleet: Fleet, tmp_path: Path) -> None:
    stranger = load_private(make_keys(tmp_path, "stranger")[0])
    theirs = signed_copy(fleet.made[1], tmp_path / "theirs", stranger, 9, now=time.time())
    source = PolicySource(fleet.bundle(0, 1), [fleet.public], tmp_path / "memory.json", tmp_path / "p")
    with Flight(broker, "four", source, ("bundle",)) as flight:
        ear = Ear(broker, "four")
        for payload in (b"", b"{", b"\xff" * 100, bytes(70_000), b"[" * 5000, envelope(announce(update_of(theirs)))):
            ear.say("policy/desired", payload)
            ear.say(f"policy/chunk/{'0' * 64}/0", payload)
            ear.say("policy/chunk/x/-1", payload)
        ear.wait(lambda reported: reported.reason == "UNKNOWN_KEY")
        ear.wait(lambda reported: reported.reason == "MALFORMED")
        assert flight.agent.decider.counts["exchanges"] == 0
        assert flight.agent.counts["part_policy"] == 0
        assert flight._thread.is_alive()
        ear.link.close()


def test_a_policy_that_the_guard_cannot_trust_is_taken_back_and_the_rest_of_the_fleet_spared(
    broker: EmbeddedBroker, fleet: Fleet, tmp_path: Path
) -> None:
    """Its trained range holds no real observation, so the guard takes over; a good one then goes to both devices."""
    narrow = range_of(np.full((2, obs.SIZE), 0.5)).model_dump()
    bad = fleet.bundle(1, 5, lambda manifest: manifest.update(trained=narrow))
    sources = [
        PolicySource(fleet.bundle(0, 1), [fleet.public], tmp_path / f"{n}.json", tmp_path / f"p{n}", LIMITS)
        for n in (5, 6)
    ]
    with (
        Flight(broker, "five", sources[0], ("bundle",)) as first,
        Flight(broker, "six", sources[1], ("bundle",)) as rest,
    ):
        with PolicySender(BrokerAddress.parse(broker.url), "default") as sender:
            assert {"five", "six"} <= set(sender.online(1.0))
        chosen = ("--device", "five", "--device", "six")
        code, document = deploy(broker, str(bad), *chosen)
        assert code == 1
        row, spared = document["devices"]
        assert (row["status"], row["reason"], spared["status"]) == ("ROLLED_BACK", "GUARD_TRIPS", "WAITING"), row
        assert int(row["detail"].split(" in ")[1].split()[0]) <= FRAMES  # within the window of the trial
        assert first.agent.decider.names == ["ppo-0"]
        assert [one.agent.decider.counts["exchanges"] for one in (first, rest)] == [2, 0]
        code, document = deploy(broker, str(bad), "--device", "five")
        assert document["devices"][0]["reason"] == "NOT_NEWER"
        code, document = deploy(broker, str(fleet.bundle(1, 6)), *chosen)
        assert (code, document["succeeded"]) == (0, True), document
        assert [one.agent.decider.names for one in (first, rest)] == [["ppo-1"], ["ppo-1"]]


def test_deploy_says_what_is_missing(broker: EmbeddedBroker, fleet: Fleet, tmp_path: Path) -> None:
    run = CliRunner().invoke
    for arguments, text in (
        ([str(fleet.made[0]), "--device", "x"], "keys sign"),
        ([str(fleet.bundle(0, 1))], "--device ID"),
        ([str(fleet.bundle(0, 1)), "--all", "--device", "x"], "--device ID"),
    ):
        failed = run(app, ["deploy", *arguments, "--broker", broker.url]).exception
        assert isinstance(failed, ConfigError)
        assert text in str(failed)
    with pytest.raises(ConfigError, match="expired"):
        Parcel.of(fleet.bundle(0, 1), now=time.time() + 40 * 86400)
    silent = run(app, ["deploy", str(fleet.bundle(0, 1)), "--device", "x", "--broker", broker.url, "--wait", "1"])
    assert silent.exit_code == 1
    assert "x PENDING" in silent.stderr
