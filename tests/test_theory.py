"""Closed forms from the literature, through the simulator: loss, two queues, and energy.

Each test states its tolerance and where it comes from; measured values were within half of it when it was set.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from adaptsplit import estimators as est
from adaptsplit.devices.server import ServerSpec, server_trace
from adaptsplit.envs import Simulator, World, build_world, episode_seeds
from adaptsplit.envs.exogenous import Server
from adaptsplit.envs.layout import BATTERY_J
from adaptsplit.links.generators import GilbertElliottParameters
from adaptsplit.outcome import Outcomes, Path
from adaptsplit.scenario import Scenario, load_scenario

Array = NDArray[Any]

EXIT, SENT = (0, 0, 0), (0, 0, 1)


def scenario_of(link: dict[str, Any], **changes: Any) -> Scenario:
    """``flight-lte`` with one kind of generated link, two exit rules (exit, send) and a decision that takes no time."""
    document = load_scenario("flight-lte").file.model_dump(mode="json", exclude_none=True)
    document |= {"thresholds": [0.0, 1.01], "sender": "fifo", "window": 8, **changes}
    document["device"]["decision_s"] = 0.0
    document["links"] = {
        split: [{"kind": "generate", "family": "drawn", "seeds": [seeds], **link}]
        for split, seeds in (("train", "1-20"), ("validation", 21), ("test", 22))
    }
    return load_scenario(document)


def timed(world: World, wire_bytes: float, head_s: float = 1e-4, tail_s: float = 1e-4) -> World:
    """The world with constant stage times (encoding takes none) and messages of one size on the wire."""
    s, o = world.stages, world.outcomes
    stages = s._replace(
        head=np.full_like(s.head, head_s),
        encode=np.zeros_like(s.encode),
        tail=np.full_like(s.tail, tail_s),
        signal=np.zeros_like(s.signal),
    )
    return world._replace(
        stages=stages, outcomes=o._replace(payload=np.full_like(o.payload, wire_bytes - est.OVERHEAD_BYTES))
    )


def fly(world: World, n: int, share_sent: float = 1.0) -> Outcomes:
    """Records (n, F) of n devices that send a frame with probability ``share_sent``, and else let its exit answer."""
    simulator, rng = Simulator(world, n, keep_all=True), np.random.default_rng(0)
    simulator.reset(episode_seeds(0, n, "train"))
    while not simulator.done.all():
        simulator.step(np.where(rng.random((n, 1)) < share_sent, SENT, EXIT))
    return simulator.outcomes()


def test_gilbert_elliott_loss_is_the_share_of_retransmissions() -> None:
    """A message of one packet is sent again with the loss of the moment: in the long run (1 - p) * h + p * l, with p
    the stationary share of the bad state, r / (p + r) of Gilbert (1960) and Elliott (1963).

    20 traces of 600 s with a correlation time of 1/3 s: the bad state's share has a standard error of 0.0035, the loss
    0.001; 150 000 messages add 0.0008. Tolerance 0.004, three standard errors.
    """
    chain = {"loss_good": 0.01, "loss_bad": 0.3, "mean_good_s": 1.0, "mean_bad_s": 0.5, "bad_bps": 5e6}
    chain |= {"rtt_good_s": 0.05, "rtt_bad_s": 0.05}
    scenario = scenario_of({"generator": "gilbert-elliott", "duration_s": 600, "parameters": chain})
    log = fly(timed(build_world(scenario, "train"), 1400.0), 512)
    latency = log["remote_latency_s"]
    once = 1e-4 + 8 * 1400.0 / 5e6 + 0.05 + 1e-4
    again = latency > once + 0.025
    np.testing.assert_allclose(latency, np.where(again, once + 0.05, once), atol=1e-6)
    expected = (1.0 / 1.5) * 0.01 + (0.5 / 1.5) * 0.3
    assert GilbertElliottParameters(**chain).mean_loss == pytest.approx(expected)
    assert again.mean() == pytest.approx(expected, abs=0.004)
    of_traces = np.mean([trace.loss.mean() for trace in scenario.links("train")])
    assert again.mean() == pytest.approx(of_traces, abs=0.003)


def test_message_of_several_packets_survives_only_whole() -> None:
    """k packets: sent again with probability 1 - (1 - l)^k; loss 0.1, 4 packets (1400 bytes each): 0.3439."""
    steady = {"capacity_bps": 1e7, "rtt_s": 0.02, "loss": 0.1}
    scenario = scenario_of({"generator": "constant", "duration_s": 60, "parameters": steady}, episode_s=30)
    log = fly(timed(build_world(scenario, "train"), 4 * 1400.0), 256)
    again = log["remote_latency_s"] > 1e-4 + 8 * 5600.0 / 1e7 + 0.02 + 1e-4 + 0.01
    assert again.mean() == pytest.approx(1 - 0.9**4, abs=0.006)  # 76 800 messages: standard error 0.0017


FPS, SLOTS = 240.0, 20  # a frame period is a slot; a message occupies the link for 20 of them


def _fifo_world() -> World:
    """A constant link on which one message takes exactly ``SLOTS`` frame periods, plain first in first out."""
    wire_bytes = 1000.0
    steady = {"capacity_bps": 8 * wire_bytes * FPS / SLOTS, "rtt_s": 0.0}
    link = {"generator": "constant", "duration_s": 60, "parameters": steady}
    scenario = scenario_of(link, fps=FPS, episode_s=30, deadline_s=20)
    return timed(build_world(scenario, "train"), wire_bytes)


def _lindley(handed_over: Array) -> Array:
    """Waits (n, F) in slots of a queue without a window, for frames (n, F) that are handed over or not."""
    left, waits = np.zeros(len(handed_over)), np.zeros(handed_over.shape)
    for slot, arrives in enumerate(handed_over.T):
        waits[:, slot] = left
        left = np.maximum(left + SLOTS * arrives - 1.0, 0.0)
    return waits


@pytest.mark.parametrize(("utilisation", "bias"), [(0.3, 1e-6), (0.6, 0.005)])
def test_waiting_time_of_the_fifo_link(utilisation: float, bias: float) -> None:
    """Frames that are sent at random (Bernoulli) to a link of constant service: a Geo/D/1 queue.

    Its mean wait is p s (s - 1) / (2 (1 - p s)) slots for a service of s slots and a chance p per slot (Hunter,
    Mathematical Techniques of Applied Probability, 1983), which is (s - 1) / s of M/D/1's rho D / (2 (1 - rho)): they
    meet as slots get short. 6400 s with a correlation time of about D / (1 - rho)^2: standard errors of 1 per cent,
    tolerance 3. ``bias``: by how much at most the window of 8 shortens the mean wait of the very same arrivals. At a
    utilisation of 0.3 it never binds; at 0.6 it passes over one frame in 9000, and the mean wait is 0.34 per cent less.
    """
    log = fly(_fifo_world(), 256, share_sent=utilisation / SLOTS)
    handed_over, sent = log["path"] != Path.EXIT, log["sent_bytes"] > 0
    free = _lindley(handed_over)[:, int(5 * FPS) :][handed_over[:, int(5 * FPS) :]] / FPS  # 5 s until stationary
    log, sent = log[:, int(5 * FPS) :], sent[:, int(5 * FPS) :]
    assert sent.mean() * SLOTS == pytest.approx(utilisation, rel=0.01)
    service = SLOTS / FPS
    waits = log["remote_latency_s"][sent].astype(np.float64) - service - 2e-4
    assert waits.min() > -1e-5
    assert waits.mean() == pytest.approx(free.mean(), rel=bias)
    geo = utilisation * (SLOTS - 1) / (2 * (1 - utilisation)) / FPS
    poisson = utilisation * service / (2 * (1 - utilisation))
    assert geo == pytest.approx(poisson * (SLOTS - 1) / SLOTS)
    assert waits.mean() == pytest.approx(geo, rel=0.03)
    assert waits.mean() == pytest.approx(poisson, rel=0.08)


@pytest.mark.parametrize("utilisation", [0.3, 0.6])
def test_jobs_see_the_servers_mean_wait(utilisation: float) -> None:
    """Others' jobs are Poisson with exponential service: M/M/1, mean unfinished work rho S / (1 - rho).

    Ours are so short (1 us) that they add nothing, and come independently of it, so they see the time average (PASTA:
    Wolff 1982). Over T = an hour of the server's trace a mean has a relative standard error of about
    sqrt(2 (1 + rho) S / (rho (1 - rho)^2 T)) (the number in the system; Whitt 1989): 1.0 and 1.4 per cent. The grid of
    2 ms delays a job by 1 ms of 20. Tolerance 5 per cent.
    """
    job_s, duration = 0.02, 3600.0
    spec = ServerSpec(utilisation=({"utilisation": utilisation, "mean_s": 10.0},), job_s=job_s)  # type: ignore[arg-type]
    trace = server_trace(spec, 1, duration)
    server = Server(trace.work_s, trace.backlog_s, trace.jobs.astype(np.float64), trace.dt_s, 0.0, 1.0)
    steady = {"capacity_bps": 1e7, "rtt_s": 0.0}
    scenario = scenario_of({"generator": "constant", "duration_s": 60, "parameters": steady}, deadline_s=10)
    world = timed(build_world(scenario, "train"), 1000.0, tail_s=1e-6)._replace(server=server)
    log = fly(world, 512)
    waits = log["remote_latency_s"].astype(np.float64) - 1e-4 - 8000 / 1e7 - 1e-6
    assert waits.min() > -1e-5
    assert (waits > 1e-5).mean() == pytest.approx(utilisation, abs=0.02)  # busy with probability rho
    assert waits.mean() == pytest.approx(utilisation * job_s / (1 - utilisation), rel=0.05)


def test_energy_of_an_episode_in_closed_form() -> None:
    """Constant link, constant stages, every frame sent: the battery gives what four products say.

    Per frame (active - idle) * head + (beta - tail) * airtime + alpha * bits; beside it (flight + idle + tail) * time.
    """
    steady = {"capacity_bps": 1e6, "rtt_s": 0.03}
    scenario = scenario_of({"generator": "constant", "duration_s": 60, "parameters": steady})
    world = timed(build_world(scenario, "train"), 5000.0, head_s=0.02)
    simulator = Simulator(world, 4, keep_all=True)
    simulator.reset(episode_seeds(0, 4, "train"))
    first = simulator.states[:, BATTERY_J].copy()
    while not simulator.done.all():
        simulator.step(np.tile(SENT, (4, 1)))
    board, radio, frames = scenario.compute, scenario.radio, scenario.frames_per_episode
    computing = (board.active_w - board.idle_w) * 0.02
    sending = (radio.beta_w - radio.tail_w) * 8 * 5000 / 1e6 + radio.alpha_w_per_mbps * 1e-6 * 8 * 5000
    always = (scenario.flight_w + board.idle_w + radio.tail_w) * scenario.episode_s
    assert first - simulator.states[:, BATTERY_J] == pytest.approx(frames * (computing + sending) + always, rel=1e-6)
