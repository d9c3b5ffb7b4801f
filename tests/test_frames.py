"""Frames: splits are disjoint, access is deterministic, the world is coherent, the signals are bounded."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as Pillow

from adaptsplit.errors import ConfigError, UnknownNameError
from adaptsplit.frames import (
    SPLITS,
    difference,
    frame_sources,
    image_hash,
    open_frames,
    sharpness,
)
from adaptsplit.frames.camera import CLEAR, Conditions, Pose, View, World, fly, look_up, shoot, squared, weather
from adaptsplit.frames.flight import build_world
from adaptsplit.frames.preview import contact_sheet
from adaptsplit.frames.worldsource import SEGMENTS, WorldSource

SOME = [0, 1, 299]
GOLDEN_LABELS = [7, 7, 7, 7, 9, 9, 7, 7, 9, 9, 9, 7, 9, 9, 9, 9]
"""Frame 123 of the test split; its mean RGB per cell is below."""
GOLDEN_SHARPNESS = 0.08668
GOLDEN_MEANS = [
    [[122, 118, 106], [118, 116, 105], [120, 117, 106], [121, 117, 106]],
    [[128, 137, 124], [125, 135, 122], [125, 121, 109], [122, 118, 106]],
    [[121, 135, 122], [124, 138, 124], [127, 140, 127], [125, 128, 116]],
    [[114, 127, 115], [118, 131, 118], [125, 138, 125], [132, 147, 132]],
]


@pytest.fixture(scope="module")
def flight() -> WorldSource:
    source = open_frames("flight", split="test")
    assert isinstance(source, WorldSource)
    return source


def checker_world(side: int = 1024) -> World:
    """A map of 64-pixel squares whose colour states their class."""
    rows, columns = np.indices((side // 64, side // 64))
    plan = ((rows * 7 + columns * 3) % 10).astype(np.uint8)
    labels = plan.repeat(64, 0).repeat(64, 1)
    return World(Pillow.fromarray(np.stack([labels * 20] * 3, axis=-1)), labels)


def test_names_of_sources() -> None:
    assert frame_sources.names() == ["camera", "flight", "folder", "tiles"]
    with pytest.raises(UnknownNameError, match="did you mean 'flight'"):
        open_frames("flihgt", split="test")


@pytest.mark.parametrize(
    ("source", "split", "message"),
    [
        ("flight", "tset", "did you mean 'test'"),
        ("flight:there", "test", "takes no path"),
        ("tiles", "test", "needs a path"),
        ("tiles:/no/such/place", "test", "nothing at /no/such/place"),
    ],
)
def test_bad_text_says_the_cure(source: str, split: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        open_frames(source, split=split)


def test_negative_seed_and_index_are_refused(flight: WorldSource) -> None:
    with pytest.raises(ConfigError, match="negative"):
        open_frames("flight", split="test", seed=-1)
    for index in (-1, len(flight)):
        with pytest.raises(IndexError, match="outside"):
            flight.frame(index)


@pytest.mark.parametrize("split", SPLITS)
def test_shapes_and_segments(split: str) -> None:
    source = open_frames("flight", split=split)
    frame = source.frame(1)
    assert (frame.image.shape, frame.image.dtype) == ((256, 256, 3), np.uint8)
    assert (frame.labels.shape, frame.labels.dtype) == ((16,), np.int16)
    assert (frame.index, frame.segment) == (1, 0)
    assert len(source.segments) == SEGMENTS[split]
    assert sum(length for _, length in source.segments) == len(source)
    assert source.split == split


def test_splits_and_seeds_share_no_frame() -> None:
    sources = [open_frames("flight", split=split) for split in SPLITS]
    sources.append(open_frames("flight", split="test", seed=1))
    hashes = [image_hash(source.frame(index).image) for source in sources for index in SOME]
    assert len(set(hashes)) == len(hashes)


def test_the_world_is_the_one_that_the_embedded_model_learned(flight: WorldSource) -> None:
    frame = flight.frame(123)
    means = frame.image.reshape(4, 64, 4, 64, 3).mean(axis=(1, 3))
    assert frame.labels.tolist() == GOLDEN_LABELS
    assert np.abs(means - np.array(GOLDEN_MEANS)).max() < 1.5
    assert frame.image.std() == pytest.approx(24.65, abs=0.3)
    assert sharpness(frame.image) == pytest.approx(GOLDEN_SHARPNESS, rel=0.02)


def test_segments_are_different_worlds(flight: WorldSource) -> None:
    first, second = flight.world(0), flight.world(1)
    assert (first.labels != second.labels).mean() > 0.5


def test_order_of_access_does_not_matter(flight: WorldSource) -> None:
    forward = [image_hash(flight.frame(index).image) for index in (0, 5, 301)]
    other = open_frames("flight", split="test")
    backward = [image_hash(other.frame(index).image) for index in (301, 5, 0)]
    assert forward == backward[::-1]


def test_another_process_sees_the_same_pixels(flight: WorldSource) -> None:
    code = (
        "from adaptsplit.frames import open_frames, image_hash;"
        "print(image_hash(open_frames('flight', split='test').frame(123).image).hex())"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1]), "PYTHONHASHSEED": "7"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == image_hash(flight.frame(123).image).hex()


def test_label_is_the_class_at_the_centre_of_the_cell() -> None:
    world = checker_world()
    for heading in (0.0, 0.7, 2.0, -2.9):
        for mirror in (False, True):
            pose = Pose(500.0, 520.0, heading, 1.03, mirror)
            image = shoot(world, pose, CLEAR, (0, 0))
            centres = image[32::64, 32::64, 0].ravel().astype(int)
            close = np.abs(centres - 20 * look_up(world, pose).astype(int)) <= 1
            assert close.mean() > 0.8  # a centre within a pixel of a border is mixed by the interpolation


def test_most_cells_show_one_class(flight: WorldSource) -> None:
    shares = []
    for index in range(0, 900, 30):
        pose, world = flight.pose(index), flight.world(index // 300)
        shown = shoot(World(Pillow.fromarray(np.stack([world.labels] * 3, -1)), world.labels), pose, CLEAR, (0, 0))
        cells = shown[..., 0].reshape(4, 64, 4, 64).transpose(0, 2, 1, 3).reshape(16, -1)
        shares.extend((cells == flight.frame(index).labels[:, None]).mean(axis=1).tolist())
    assert np.mean(np.array(shares) > 0.95) > 0.7


def test_all_classes_are_seen(flight: WorldSource) -> None:
    seen = {int(label) for index in range(0, 900, 20) for label in flight.frame(index).labels}
    assert seen == set(range(len(flight.classes)))
    assert len(flight.classes) >= 8


def test_consecutive_frames_overlap(flight: WorldSource) -> None:
    images = [flight.frame(index).image for index in range(100, 130)]
    near = np.mean([difference(b, a) for a, b in pairwise(images)])
    far = np.mean([difference(flight.frame(k).image, images[0]) for k in (0, 200, 299, 310, 450, 599)])
    assert near < 0.4 * far
    for a, b in pairwise([flight.pose(k) for k in range(300)]):
        assert np.hypot(a.x - b.x, a.y - b.y) < 0.1 * 256
        assert abs(a.heading - b.heading) < 0.2


def test_flights_stay_on_the_map_and_keep_moving() -> None:
    for key in range(40):
        poses = fly(np.random.Generator(np.random.PCG64(key)), 300, 2560, Conditions())
        places = np.array([(pose.x, pose.y) for pose in poses])
        assert places.min() >= 200.0
        assert places.max() <= 2360.0
        assert np.hypot(*np.diff(places, axis=0).T).min() > 2.0


def test_difficulty_drifts() -> None:
    views = weather(np.random.Generator(np.random.PCG64(3)), 3000, Conditions())
    haze = np.array([view.haze for view in views])
    assert haze.min() < 0.05
    assert haze.max() > 0.4
    assert np.abs(np.diff(haze)).max() < 0.08
    assert {view.blur for view in views} >= set(range(1, 9))


def test_haze_lowers_the_contrast_and_blur_the_sharpness() -> None:
    world = build_world(np.random.Generator(np.random.PCG64(5)))
    pose = Pose(900.0, 900.0, 0.3)
    clear = shoot(world, pose, CLEAR, (0, 0))
    hazy = shoot(world, pose, weather_like(haze=0.6), (0, 0))
    blurred = shoot(world, pose, weather_like(blur=9), (0, 0))
    assert hazy.std() < 0.5 * clear.std()
    assert sharpness(blurred) < sharpness(clear)
    assert abs(float(blurred.mean()) - float(clear.mean())) < 4.0


def weather_like(haze: float = 0.0, blur: int = 1) -> View:
    return View(haze=haze, blur=blur, noise=0.0, gain=(1.0, 1.0, 1.0))


def test_training_batches() -> None:
    source = open_frames("flight", split="model-train")
    images, labels = source.batch(np.random.Generator(np.random.PCG64(1)), 8)
    assert (images.shape, labels.shape) == ((8, 256, 256, 3), (8, 16))
    assert len({image_hash(image) for image in images}) == 8
    again, same = open_frames("flight", split="model-train").batch(np.random.Generator(np.random.PCG64(1)), 2)
    assert np.array_equal(images[:2], again)
    assert np.array_equal(labels[:2], same)


def test_squared_pose_lies_on_the_grid() -> None:
    pose = squared(Pose(501.0, 333.0, 1.4, 1.05))
    world = checker_world()
    image = shoot(world, pose, CLEAR, (0, 0))
    cells = image[..., 0].reshape(4, 64, 4, 64).transpose(0, 2, 1, 3).reshape(16, -1)
    assert (np.ptp(cells, axis=1) <= 1).all()


def test_signals_are_bounded_and_follow_what_they_mean(flight: WorldSource) -> None:
    image = flight.frame(0).image
    flat = np.full_like(image, 77)
    noise = np.random.Generator(np.random.PCG64(0)).integers(0, 256, image.shape, dtype=np.uint8)
    stripes = np.zeros_like(image)
    stripes[::8] = 255
    assert sharpness(flat) == 0.0
    assert sharpness(flat) < sharpness(image) < sharpness(noise) <= 1.0
    assert difference(image, None) == difference(image, image) == 0.0
    assert difference(flat, np.zeros_like(flat)) == pytest.approx(77 / 255)
    assert sharpness(stripes) == pytest.approx(0.5)


def test_speeds_are_printed(flight: WorldSource) -> None:
    image, previous = flight.frame(300).image, flight.frame(301).image
    started = time.perf_counter()
    for index in range(300, 400):
        flight.frame(index)
    frames = 100 / (time.perf_counter() - started)
    started = time.perf_counter()
    for _ in range(100):
        sharpness(image)
        difference(image, previous)
    print(f"flight: {frames:.0f} frames/s; both signals: {(time.perf_counter() - started) * 10:.3f} ms")


def test_contact_sheet(flight: WorldSource, tmp_path: Path) -> None:
    contact_sheet(flight, tmp_path / "sheet.png", count=7)
    with Pillow.open(tmp_path / "sheet.png") as sheet:
        assert sheet.size == (6 * 260, 2 * 260 + 22)
    with pytest.raises(ConfigError, match="count 0"):
        contact_sheet(flight, tmp_path / "sheet.png", count=0)
