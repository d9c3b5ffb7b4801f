"""Prometheus metrics of a device: ``adaptsplit device --metrics 9400``, then http://127.0.0.1:9400/metrics.

Needs the extra ``device`` (prometheus-client). It listens on the loopback interface unless a host is named: metrics are
not protected by any password. The main loop takes a snapshot once a second and the HTTP thread hands out the last one,
so a scrape never touches the device's state. ``docs/telemetry.md`` lists what there is.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from adaptsplit import estimators as est
from adaptsplit.device_bridge.metrics_server import MetricsServer, parse_where
from adaptsplit.device_bridge.parts import QuietPart
from adaptsplit.outcome import Outcomes, Path

if TYPE_CHECKING:
    from adaptsplit.device_bridge.agent import DeviceAgent

__all__ = ["EdgeMetrics", "MetricsPart", "MetricsServer", "Snapshot", "parse_where"]

SNAPSHOT_S = 1.0
DECISION_BUCKETS_S = (1e-5, 2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 0.01, 0.025, 0.1)
ANSWER_BUCKETS_S = (0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.2, 0.25, 0.35, 0.5, 1.0, 2.0)
MODES = ("learned", "rule", "recovery")
READINGS = ("battery_ratio", "load_ratio", "temperature_celsius", "signal_dbm")


class Snapshot:
    """A collector that hands out the families of its last ``take``; also what the families are made with."""

    def __init__(self, registry: Any) -> None:
        from prometheus_client import metrics_core

        self._core: Any = metrics_core
        self._families: tuple[Any, ...] = ()
        registry.register(self)

    def collect(self) -> Iterator[Any]:
        """Yield the families; called by the HTTP thread."""
        yield from self._families

    def take(self, families: Iterator[Any]) -> None:
        """Replace what is handed out."""
        self._families = tuple(families)

    def gauge(self, name: str, text: str, value: float) -> Any:
        """Return one gauge; NaN stays NaN: it is not known."""
        return self._core.GaugeMetricFamily(f"adaptsplit_{name}", text, value=value)

    def gauges(self, name: str, text: str, label: str, values: Mapping[str, float]) -> Any:
        """Return one gauge for each value of a label."""
        family = self._core.GaugeMetricFamily(f"adaptsplit_{name}", text, labels=[label])
        for key, value in values.items():
            family.add_metric([key], value)
        return family

    def counters(self, name: str, text: str, label: str, values: Mapping[str, float]) -> Any:
        """Return one counter for each value of a label; its name ends in ``_total``."""
        family = self._core.CounterMetricFamily(f"adaptsplit_{name}", text, labels=[label])
        for key, value in values.items():
            family.add_metric([key], value)
        return family

    def info(self, name: str, text: str, values: Mapping[str, str]) -> Any:
        """Return constant labels with the value 1."""
        family = self._core.GaugeMetricFamily(f"adaptsplit_{name}", text, labels=list(values))
        family.add_metric(list(values.values()), 1.0)
        return family


class MetricsPart(QuietPart):
    """The metrics of one device, as a part of its agent; it listens from its construction on."""

    name = "metrics"

    def __init__(self, where: str) -> None:
        self.server = MetricsServer(where)
        from prometheus_client import Histogram

        registry = self.server.registry
        text = "time of one decision of the controller, s"
        self._decisions = Histogram("adaptsplit_decision_seconds", text, buckets=DECISION_BUCKETS_S, registry=registry)
        text = "latency of the answer that counted, s; frames without one are in no bucket"
        self._answers = Histogram("adaptsplit_answer_seconds", text, buckets=ANSWER_BUCKETS_S, registry=registry)
        self._snapshot = Snapshot(registry)
        self._agent: DeviceAgent | None = None
        self._paths = {path.name.lower(): 0 for path in Path}
        self._sums = {"sent_bytes": 0.0, "compute_j": 0.0, "radio_j": 0.0}
        self._next = -math.inf

    def started(self, agent: DeviceAgent) -> None:
        """Take the agent, and a first snapshot."""
        self._agent = agent
        self.tick(0.0)
        self._next = -math.inf

    def settled(self, controller: str, outcome: Outcomes) -> None:
        """Count one frame's end."""
        row = outcome[0]
        self._paths[Path(row["path"]).name.lower()] += 1
        if row["answer_latency_s"] == row["answer_latency_s"]:
            self._answers.observe(float(row["answer_latency_s"]))
        for name in self._sums:
            if math.isfinite(row[name]):
                self._sums[name] += float(row[name])

    def tick(self, now: float) -> None:
        """Take a snapshot once a second."""
        if self._agent is None or now < self._next:
            return
        self._next = now + SNAPSHOT_S
        durations = self._agent.decider.durations
        while durations:
            self._decisions.observe(durations.popleft())
        self._snapshot.take(self._families(self._agent, now))

    def close(self) -> None:
        """End the server."""
        self.server.close()

    def _families(self, agent: DeviceAgent, now: float) -> Iterator[Any]:
        yield from self._frames(agent)
        yield from self._link(agent, now)
        yield from self._policy(agent)
        yield from self._own(agent)

    def _frames(self, agent: DeviceAgent) -> Iterator[Any]:
        s = self._snapshot
        yield s.counters("frames", "frames by how they got their answer", "path", self._paths)
        late, passed = self._paths["fallback_late"], self._paths["fallback_passed"]
        text = "frames that the exit answered in place of the edge: the result was late, or never asked for"
        yield s.counters("fallbacks", text, "cause", {"late": late, "passed": passed})
        yield s.counters("sent_bytes", "payload handed to the link, bytes", "plane", {"data": self._sums["sent_bytes"]})
        energy = {"compute": self._sums["compute_j"], "radio": self._sums["radio_j"]}
        yield s.counters("energy_joules", "modelled energy above idle, J", "part", energy)
        faults = {**agent.counts, **agent.link.counts, **{f"session_{k}": v for k, v in agent.session.counts.items()}}
        yield s.counters("events", "whatever else was counted, by its name in the run's summary", "event", faults)

    def _link(self, agent: DeviceAgent, now: float) -> Iterator[Any]:
        s, x, link = self._snapshot, agent.session.tracker, agent.session.link_state()
        yield s.gauge("goodput_bits_per_second", "estimated goodput, bit/s", link.goodput_bps)
        yield s.gauge("rtt_seconds", "round trip of an almost empty message, s", link.rtt_s)
        heard = max(now - float(x[est.HEARD_AT]), 0.0)
        yield s.gauge("heard_age_seconds", "time since anything came from the edge, s", heard)
        age = now - agent.state_at if math.isfinite(agent.state_at) else math.nan
        yield s.gauge("state_age_seconds", "time since the last state message left, s", age)
        waiting = link.unacked + int(agent.session.waiting)
        yield s.gauge("outbox_frames", "frames sent and not acknowledged, or waiting to be sent", waiting)
        yield s.gauge("edge_online", "1: an edge server is there, 0: none, NaN: unknown", _edge(link.edge))
        planes = {plane: agent.counts[f"{plane}_up"] - agent.counts[f"{plane}_down"] for plane in ("data", "control")}
        yield s.gauges("connected", "1 while the connection to the broker stands", "plane", planes)
        again = {plane: max(agent.counts[f"{plane}_up"] - 1, 0) for plane in planes}
        yield s.counters("reconnects", "connections after the first", "plane", again)

    def _policy(self, agent: DeviceAgent) -> Iterator[Any]:
        s, bundle = self._snapshot, agent.bundle
        yield s.gauges("mode", "1 for who decided last", "mode", {m: float(agent.decider.mode == m) for m in MODES})
        counts = agent.decider.counts
        guard = {name.removeprefix("guard_"): n for name, n in counts.items() if name.startswith("guard_")}
        yield s.counters("guard_switches", "switches of the guard: by reason, and back", "reason", guard)
        recoveries = {"controller": counts["recoveries"]}
        yield s.counters("recoveries", "decisions that the last resort took, outside of any guard", "part", recoveries)
        labels = {
            "bundle": bundle.digest[:12],
            "name": bundle.manifest.name,
            "controller": ",".join(agent.decider.names),
        }
        yield s.info("policy_info", "what decides", labels)
        version = math.nan if bundle.signed is None else bundle.signed.version
        yield s.gauge("policy_version", "version of the signed bundle; NaN when it is not signed", version)

    def _own(self, agent: DeviceAgent) -> Iterator[Any]:
        s = self._snapshot
        yield s.gauge("frame", "index of the frame at hand", agent.session.link_state().frame)
        for name, value in zip(READINGS, agent.reading, strict=True):
            yield s.gauge(name, f"telemetry of the device: {name.replace('_', ' ')}; NaN when not known", value)
        text = "what the vehicle tells over MAVLink, by name (docs/telemetry.md)"
        yield s.gauges("vehicle", text, "value", agent.telemetry.details())


def _edge(state: str) -> float:
    return {"online": 1.0, "offline": 0.0}.get(state, math.nan)


class EdgeMetrics:
    """The metrics of an edge server: counts that ``read`` returns, asked for at each scrape (on the HTTP thread).

    ``gauges`` names those that can sink, such as the length of a queue; all others only rise.
    """

    def __init__(self, where: str, read: Callable[[], Mapping[str, float]], gauges: Collection[str] = ()) -> None:
        self.server = MetricsServer(where)
        self._read, self._gauges = read, gauges
        self._snapshot = Snapshot(self.server.registry)
        self.server.registry.unregister(self._snapshot)
        self.server.registry.register(self)

    def collect(self) -> Iterator[Any]:
        """Yield the families."""
        values = dict(self._read())
        rising = {name: value for name, value in values.items() if name not in self._gauges}
        yield self._snapshot.counters("edge_events", "counts of the edge server, by name", "event", rising)
        now = {name: value for name, value in values.items() if name in self._gauges}
        yield self._snapshot.gauges("edge_state", "present state of the edge server, by name", "value", now)

    def close(self) -> None:
        """End the server."""
        self.server.close()
