"""Exit rules by hand-known cases, their fits against theory, and thresholds tuned on the packaged model's answers."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

import numpy as np
import pytest

from adaptsplit.errors import ConfigError
from adaptsplit.models.exits import fit_cascade, fit_correctness
from adaptsplit.models.exits_tune import tune_thresholds
from adaptsplit.runtime.exits import (
    Cascade,
    Correctness,
    confidence,
    entropy_score,
    geometric,
    patience_stops,
    softmax64,
    statistics,
    threshold_stops,
)

Arrays = tuple[np.ndarray, np.ndarray]


def made_exits(count: int = 3000, classes: int = 6, seed: int = 0) -> Arrays:
    """Three exits that see independent, ever clearer evidence: probabilities (3, n, K), calibrated, and labels (n,)."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, count)
    found = []
    for strength in (0.8, 1.3, 2.0):
        evidence = rng.normal(size=(count, classes))
        evidence[np.arange(count), labels] += strength
        found.append(softmax64(evidence * strength))  # Bayes: the posterior of a Gaussian shift
    return np.stack(found), labels


def test_scores_of_answers_known_by_hand() -> None:
    flat, sure, half = np.full(4, 0.25), np.array([1.0, 0, 0, 0]), np.array([0.5, 0.5, 0, 0])
    p = np.stack([flat, sure, half])
    assert confidence(p) == pytest.approx([0.25, 1.0, 0.5])
    assert entropy_score(p) == pytest.approx([0.0, 1.0, 0.5])  # log 2 / log 4 = 1/2
    largest, entropy, margin, sharp = statistics(half)
    assert (largest, entropy, margin, sharp) == pytest.approx((0.5, 0.5, 0.0, 0.5))
    assert statistics(np.array([0.8, 0.2, 0, 0]))[2] == pytest.approx(0.6)


def test_branchynets_rule_is_a_threshold_on_the_entropy_score() -> None:
    p, _ = made_exits(400)
    entropy = -(p[0] * np.log(p[0])).sum(-1)
    limit = 0.9
    assert np.array_equal(entropy <= limit, entropy_score(p[0]) >= 1 - limit / np.log(p.shape[-1]))


def test_a_frame_stops_at_the_first_exit_that_is_sure_enough() -> None:
    scores = np.array([[0.9, 0.2, 0.5, 0.1], [0.1, 0.8, 0.4, 0.2], [0.0, 0.0, 0.0, 0.9]])
    assert threshold_stops(scores, (0.5, 0.8)).tolist() == [0, 1, 0, 2]
    assert threshold_stops(scores, (2.0, 2.0)).tolist() == [2, 2, 2, 2]
    with pytest.raises(ConfigError, match="1 thresholds for 3 exits"):
        threshold_stops(scores, (0.5,))


def test_patience_counts_exits_that_agree() -> None:
    answers = np.array([[0, 0, 0], [1, 0, 1], [1, 0, 0], [2, 0, 1]])
    assert patience_stops(answers, 1).tolist() == [2, 1, 3]
    assert patience_stops(answers, 2).tolist() == [3, 2, 3]
    assert patience_stops(answers, 3).tolist() == [3, 3, 3]
    cells = np.array([[[0, 0, 0, 0]], [[0, 0, 0, 1]], [[0, 0, 0, 1]]])
    assert patience_stops(cells, 1).tolist() == [2]
    assert patience_stops(cells, 1, agreement=0.75).tolist() == [1]
    with pytest.raises(ConfigError, match="patience 0"):
        patience_stops(answers, 0)


def test_the_geometric_cascade_by_hand() -> None:
    p = np.array([[[0.8, 0.2]], [[0.5, 0.5]]])
    found = geometric(2, 2)(p)
    assert found[0, 0] == pytest.approx([0.8, 0.2])
    assert found[1, 0] == pytest.approx([2 / 3, 1 / 3])  # sqrt(.8 .5) : sqrt(.2 .5) = 2 : 1
    with pytest.raises(ConfigError, match="of 1 exits; this cascade has 2"):
        geometric(2, 2)(p[:1])


def test_a_fitted_cascade_finds_the_weights_of_bayes_rule() -> None:
    """Independent calibrated evidence multiplies: every weight is 1, every bias the same."""
    p, labels = made_exits(6000)
    cascade = fit_cascade(p, labels)
    for weights, bias in zip(cascade.weights, cascade.bias, strict=True):
        assert weights == pytest.approx([1.0] * len(weights), abs=0.08)
        assert np.ptp(bias) < 0.25
    fresh, truth = made_exits(4000, seed=1)

    def nll(q: np.ndarray) -> float:
        return float(-np.log(q[np.arange(len(truth)), truth]).mean())

    ensemble, plain = cascade(fresh), geometric(3, fresh.shape[-1])(fresh)
    assert nll(ensemble[2]) < 0.97 * min(nll(fresh[2]), nll(plain[2]))
    assert (ensemble[1].argmax(-1) == truth).mean() > (fresh[1].argmax(-1) == truth).mean() + 0.02


def test_a_useless_exit_gets_no_weight() -> None:
    p, labels = made_exits(3000)
    misleading = p[0][:, ::-1].copy()  # probabilities of other classes
    cascade = fit_cascade(np.stack([misleading, p[2]]), labels)
    assert cascade.weights[1] == pytest.approx((0.0, 1.0), abs=0.1)
    assert all(weight >= 0 for weights in cascade.weights for weight in weights)


def test_the_correctness_predictor_is_calibrated_where_the_confidence_is_not() -> None:
    p, labels = made_exits(6000)
    overconfident = softmax64(3 * np.log(p[1]))
    right = overconfident.argmax(-1) == labels
    found = fit_correctness(overconfident[:3000], right[:3000])
    score, truth = found(overconfident[3000:]), right[3000:]
    assert score.mean() == pytest.approx(truth.mean(), abs=0.025)
    assert confidence(overconfident[3000:]).mean() > truth.mean() + 0.15
    for low, high in ((0.0, 0.5), (0.5, 0.75), (0.75, 1.0)):
        inside = (score >= low) & (score < high)
        assert score[inside].mean() == pytest.approx(truth[inside].mean(), abs=0.06)
    assert Correctness((0.0,) * 4, 0.0)(p[0]) == pytest.approx(0.5)


def test_one_threshold_is_the_best_of_all_thresholds() -> None:
    """Two exits: the tuned setting must be as cheap as brute force over every possible threshold."""
    p, labels = made_exits(1000)
    scores, right = confidence(p[[0, 2]]), (p[[0, 2]].argmax(-1) == labels).astype(float)
    tuned = tune_thresholds(scores, right, (1.0, 3.0), target_accuracy=0.6, held_out=0.5)
    cheapest = np.inf
    for limit in [*np.unique(scores[0, :500]), 2.0]:
        stops = threshold_stops(scores[:, :500], (float(limit),))
        if right[:, :500][stops, np.arange(500)].mean() >= 0.6:
            cheapest = min(cheapest, float(np.array([1.0, 3.0])[stops].mean()))
    assert tuned.chosen.accuracy >= 0.6
    assert tuned.chosen.cost <= cheapest + 0.03
    assert tuned.chosen.cost >= cheapest - 1e-9


def test_thresholds_meet_a_target_on_frames_that_chose_nothing() -> None:
    p, labels = made_exits(8000)
    right = (p.argmax(-1) == labels).astype(float)
    tuned = tune_thresholds(confidence(p), right, (1.0, 2.0, 4.0), target_accuracy=0.62)
    assert tuned.chosen.held_accuracy == pytest.approx(0.62, abs=0.03)
    assert tuned.chosen.held_cost < 3.0
    assert sum(tuned.chosen.held_shares) == pytest.approx(1.0)
    costs, quality = [point.cost for point in tuned.curve], [point.accuracy for point in tuned.curve]
    assert costs == sorted(costs)
    assert quality == sorted(quality)
    limited = tune_thresholds(confidence(p), right, (1.0, 2.0, 4.0), target_latency=2.0)
    assert 1.9 < limited.chosen.cost <= 2.0
    assert limited.chosen.held_cost == pytest.approx(2.0, abs=0.1)


def test_targets_out_of_reach_say_what_is_in_reach() -> None:
    p, labels = made_exits(400)
    scores, right = confidence(p), (p.argmax(-1) == labels).astype(float)
    with pytest.raises(ConfigError, match=r"target accuracy 0\.999 is out of reach: the best setting gives 0\."):
        tune_thresholds(scores, right, (1.0, 2.0, 4.0), target_accuracy=0.999)
    with pytest.raises(ConfigError, match=r"target latency 0\.5 is out of reach: the cheapest setting costs 1"):
        tune_thresholds(scores, right, (1.0, 2.0, 4.0), target_latency=0.5)
    with pytest.raises(ConfigError, match="give one target"):
        tune_thresholds(scores, right, (1.0, 2.0, 4.0))
    with pytest.raises(ConfigError, match="costs fall with depth"):
        tune_thresholds(scores, right, (3.0, 2.0, 4.0), target_latency=2.0)
    with pytest.raises(ConfigError, match=r"expected \(E, n\)"):
        tune_thresholds(scores, right[:2], (1.0, 2.0, 4.0), target_latency=2.0)
    with pytest.raises(ConfigError, match="leaves one side empty"):
        tune_thresholds(scores, right, (1.0, 2.0, 4.0), target_latency=2.0, held_out=1.0)


@pytest.fixture(scope="module")
def packaged() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Probabilities (3, n, 16, K) of three exits of the packaged model, labels (n, 16), MACs up to each exit (3,)."""
    from adaptsplit.frames import open_frames
    from adaptsplit.runtime import DeviceRuntime, ModelFolder

    folder = ModelFolder.open(Path(str(resources.files("adaptsplit.data"))) / "flight" / "model")
    device, source = DeviceRuntime(folder), open_frames("flight", split="calibration")
    names = ("stem", "shallow", "deep")
    frames = [source.frame(i) for i in range(0, len(source), 20)]
    found = np.array([[device.head(name, frame.image).exit_probabilities for frame in frames] for name in names])
    macs = np.array([folder.card.branch(name).macs_head + folder.card.branch(name).macs_exit for name in names])
    return found, np.array([frame.labels for frame in frames]), macs


def test_exits_of_the_packaged_model(packaged: tuple[np.ndarray, np.ndarray, np.ndarray]) -> None:
    p, labels, macs = packaged
    correct = (p.argmax(-1) == labels).mean(-1)
    everything = correct[-1].mean()
    tuned = tune_thresholds(confidence(p).mean(-1), correct, macs, target_accuracy=0.94, held_out=0.4)
    assert everything > 0.9
    assert tuned.chosen.held_accuracy > 0.9
    assert tuned.chosen.held_cost < 0.8 * macs[-1]
    cells = p.reshape(3, -1, p.shape[-1])
    half = cells.shape[1] // 2
    cascade: Cascade = fit_cascade(cells[:, :half], labels.reshape(-1)[:half].astype(np.int64), bias=False)
    ensemble = cascade(cells[:, half:])
    truth = labels.reshape(-1)[half:]
    own = [(q.argmax(-1) == truth).mean() for q in cells[:, half:]]
    together = [(q.argmax(-1) == truth).mean() for q in ensemble]
    assert all(b > a - 0.01 for a, b in zip(own, together, strict=True))
