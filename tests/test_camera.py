"""Cameras through OpenCV: recordings, a network stream for real, a stand-in that goes away, a device on one."""

from __future__ import annotations

import itertools
import socket
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from adaptsplit.bundle import export_bundle
from adaptsplit.device_bridge.camera import Camera, endless_order, flight_order
from adaptsplit.device_bridge.device import DeviceOptions, run_device
from adaptsplit.device_bridge.live_camera import LiveCamera
from adaptsplit.errors import ConfigError, DataError, MissingExtraError, RunError
from adaptsplit.frames import open_frames
from adaptsplit.frames.capture import Capture, is_live, shown, square
from adaptsplit.outcome import Path as Route
from adaptsplit.scenario import load_scenario

cv2 = pytest.importorskip("cv2", reason="needs the extra camera")

GREYS = (20, 60, 100, 140, 180, 220)


def wait_for(done: Callable[[], bool], timeout_s: float = 10.0) -> None:
    until = time.monotonic() + timeout_s
    while not done():
        assert time.monotonic() < until, "it did not come about in time"
        time.sleep(0.01)


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two seconds at 20 pictures a second, 320 x 240, MJPEG; picture k is grey ``GREYS[k // 7]``."""
    path = tmp_path_factory.mktemp("video") / "clip.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), 20.0, (320, 240))
    for k in range(40):
        writer.write(np.full((240, 320, 3), GREYS[k // 7], dtype=np.uint8))
    writer.release()
    return path


# ---- recordings ----


def test_a_recording_is_a_frame_source_at_ten_frames_a_second(recording: Path) -> None:
    source = open_frames(f"camera:{recording}", split="test")
    assert len(source) == 20
    assert source.segments == [(0, 20)]
    for index in (0, 3, 4, 19):
        frame = source.frame(index)
        assert frame.image.shape == (256, 256, 3)
        assert frame.image.dtype == np.uint8
        assert abs(float(frame.image.mean()) - GREYS[2 * index // 7]) < 3
        assert (frame.labels == -1).all()


def test_going_back_gives_the_same_pictures(recording: Path) -> None:
    source = open_frames(f"camera:{recording}", split="test")
    first = [source.frame(k).image for k in range(20)]
    again = [source.frame(k).image for k in (19, 0, 7, 7)]
    assert all((a == first[k]).all() for a, k in zip(again, (19, 0, 7, 7), strict=True))
    images, labels = source.batch(np.random.default_rng(1), 5)
    assert images.shape == (5, 256, 256, 3)
    assert labels.shape == (5, 16)
    with pytest.raises(IndexError, match=r"outside 0\.\.19"):
        source.frame(20)


def test_a_recording_flies_for_ever_in_a_loop(recording: Path) -> None:
    source = open_frames(f"camera:{recording}", split="test")
    with Camera(source, endless_order(source, 15), ahead=4) as camera:
        assert camera.frames is None
        assert camera.first == 15
        camera.wait_ready()
        greys = [float(camera.shot(k).frame.image.mean()) for k in range(12)]
    wanted = [GREYS[2 * ((15 + k) % 20) // 7] for k in range(12)]
    assert np.abs(np.array(greys) - wanted).max() < 3


def test_an_endless_order_is_the_flight_order_without_an_end() -> None:
    source = open_frames("flight", split="test")
    assert list(itertools.islice(endless_order(source, 100), 700)) == flight_order(source, 100, 700)
    with pytest.raises(ConfigError, match="first frame 999999"):
        endless_order(source, 999_999)


def test_files_that_are_no_recordings_are_named(tmp_path: Path, recording: Path) -> None:
    (tmp_path / "text.avi").write_text("no video")
    with pytest.raises(DataError, match=r"text\.avi: not a recording that OpenCV reads"):
        open_frames(f"camera:{tmp_path / 'text.avi'}", split="test")
    with pytest.raises(ConfigError, match="nothing at"):
        open_frames(f"camera:{tmp_path / 'absent.mp4'}", split="test")
    with pytest.raises(DataError, match="not a file"):
        open_frames(f"camera:{tmp_path}", split="test")


def test_a_cut_recording_fails_with_a_reason_and_does_not_crash(tmp_path: Path, recording: Path) -> None:
    data = recording.read_bytes()
    (tmp_path / "cut.avi").write_bytes(data[: len(data) * 2 // 3])
    try:
        source = open_frames(f"camera:{tmp_path / 'cut.avi'}", split="test")
        for k in range(len(source)):
            source.frame(k)
    except DataError as error:
        assert "cut.avi" in str(error)  # noqa: PT017
        return
    assert len(source) < 20


# ---- addresses ----


@pytest.mark.parametrize(
    ("source", "live"),
    [
        ("camera:0", True),
        ("camera:/dev/video2", True),
        ("camera:rtsp://10.0.0.2/main", True),
        ("camera:gst:nvarguscamerasrc ! appsink", True),
        ("camera:clip.mp4", False),
        ("flight", False),
        ("folder:0", False),
    ],
)
def test_cameras_are_told_from_recordings(source: str, live: bool) -> None:
    assert is_live(source) == live


def test_a_live_camera_is_no_frame_source() -> None:
    with pytest.raises(ConfigError, match=r"camera:rtsp://\*\*\*@10\.0\.0\.2/main is live; only `adaptsplit device`"):
        open_frames("camera:rtsp://user:secret@10.0.0.2/main", split="test")


def test_passwords_are_not_shown() -> None:
    assert shown("rtsp://user:p@ss@host:554/x") == "rtsp://***@host:554/x"
    assert shown("rtsp://host/x") == "rtsp://host/x"
    assert shown("0") == "0"


def test_without_opencv_the_cure_is_named(monkeypatch: pytest.MonkeyPatch, recording: Path) -> None:
    monkeypatch.setitem(__import__("sys").modules, "cv2", None)
    for opening in (lambda: open_frames(f"camera:{recording}", split="test"), lambda: Capture("0", 0.1)):
        with pytest.raises(MissingExtraError, match=r"opencv-python-headless.*pip install 'adaptsplit\[camera\]'"):
            opening()


def test_the_middle_square_is_taken_and_colours_are_in_order() -> None:
    picture = np.zeros((100, 300, 3), dtype=np.uint8)
    picture[:, 100:200] = (255, 128, 0)  # BGR: blue
    image = square(picture)
    assert image.shape == (256, 256, 3)
    assert tuple(image[128, 128]) == (0, 128, 255)
    assert tuple(image[128, 4]) == (0, 128, 255)
    assert square(np.full((50, 50), 7, dtype=np.uint8))[0, 0].tolist() == [7, 7, 7]
    assert square(np.full((50, 50, 4), 7, dtype=np.uint8)).shape == (256, 256, 3)


# ---- a stand-in for a camera: it gives pictures at a rate, and goes away ----


class FakeReader:
    """Gives ``count`` pictures 5 ms apart whose grey rises by one, then ends."""

    def __init__(self, count: int, opened: bool = True, wait_s: float = 0.005) -> None:
        self.count, self.opened, self.wait_s = count, opened, wait_s
        self.given = 0
        self.released = False

    def isOpened(self) -> bool:
        return self.opened

    def grab(self) -> bool:
        time.sleep(self.wait_s)
        self.given += 1
        return self.given <= self.count

    def retrieve(self) -> tuple[bool, NDArray[np.uint8]]:
        return True, np.full((64, 64, 3), self.given % 256, dtype=np.uint8)

    def release(self) -> None:
        self.released = True


def test_the_newest_picture_and_the_one_a_period_before() -> None:
    capture = Capture("0", 0.05, opener=lambda place: FakeReader(10**6))
    try:
        wait_for(lambda: capture.counts["frames"] >= 8)
        image, before = capture.newest(1.0)
        assert before is not None
        gap = int(image[0, 0, 0]) - int(before[0, 0, 0])
        assert 1 <= gap <= 20  # about ten pictures of 5 ms, fewer when the machine is busy
        time.sleep(0.1)
        later, _ = capture.newest(1.0)
        assert later[0, 0, 0] > image[0, 0, 0]
    finally:
        capture.close()


def test_a_camera_that_goes_away_is_opened_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("adaptsplit.frames.capture.RETRY_S", 0.3)
    readers = [FakeReader(0, opened=False), FakeReader(10), FakeReader(10**6)]
    made: list[FakeReader] = []

    def opener(place: str) -> FakeReader:
        made.append(readers[len(made)])
        return made[-1]

    capture = Capture("0", 0.01, stale_s=0.1, opener=opener)
    try:
        with pytest.raises(RunError, match=r"camera 0 cannot be opened; is it there"):
            capture.newest(0.05)
        wait_for(lambda: capture.counts["opened"] == 1)
        capture.newest(1.0)
        wait_for(lambda: capture.counts["lost"] == 2)
        time.sleep(0.12)
        with pytest.raises(RunError, match=r"has given no frame for 0\.1 s"):
            capture.newest(0.01)
        capture.newest(5.0)
        assert capture.counts["opened"] == 2
        assert [reader.released for reader in made] == [True, True, False]
    finally:
        capture.close()
    assert made[-1].released
    assert not any(thread.name == "camera" for thread in threading.enumerate())


def test_each_frame_of_a_run_is_one_picture_and_the_warm_up_is_forgotten() -> None:
    with LiveCamera(Capture("0", 0.02, opener=lambda place: FakeReader(10**6)), None, 0.02) as camera:
        warm = camera.shot(0)
        time.sleep(0.05)
        camera.wait_ready()
        first = camera.shot(0)
        assert first.frame.image[0, 0, 0] != warm.frame.image[0, 0, 0]
        time.sleep(0.05)
        assert camera.shot(0) is first
        assert camera.shot(1).frame.image[0, 0, 0] != first.frame.image[0, 0, 0]
        assert camera.labels(0) is None
        for number in range(2, 100):
            camera.shot(number)
        assert len(camera._shots) <= 64


def test_a_camera_without_pictures_fails_the_frame_soon() -> None:
    silent = FakeReader(10**6, wait_s=30.0)
    capture = Capture("0", 0.05, opener=lambda place: silent)
    camera = LiveCamera(capture, None, 0.05)
    camera._ready = True
    begun = time.monotonic()
    with pytest.raises(RunError, match="has given no frame"):
        camera.shot(0)
    assert time.monotonic() - begun < 1.0
    capture._closing.set()


# ---- a network camera, for real: MJPEG over HTTP through OpenCV's FFmpeg ----


class Stream(BaseHTTPRequestHandler):
    """Sends a multipart stream of JPEG pictures for ever."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "multipart/x-mixed-replace; boundary=b")
        self.end_headers()
        try:
            for k in itertools.count():
                picture = np.full((96, 128, 3), 50 + k % 100, dtype=np.uint8)
                data = cv2.imencode(".jpg", picture)[1].tobytes()
                head = f"--b\r\nContent-Type: image/jpeg\r\nContent-Length: {len(data)}\r\n\r\n"
                self.wfile.write(head.encode() + data + b"\r\n")
                time.sleep(0.01)
        except OSError:
            return

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""


@pytest.fixture
def network_camera() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Stream)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}/video.mjpg"
    server.shutdown()
    server.server_close()


def test_a_network_camera_is_read_by_opencv(network_camera: str) -> None:
    capture = Capture(network_camera, 0.05)
    try:
        image, _ = capture.newest(10.0)
        assert image.shape == (256, 256, 3)
        assert 45 <= image.mean() <= 155
        wait_for(lambda: capture.counts["frames"] > 3)
    finally:
        capture.close()


def test_a_camera_that_is_not_there_is_told() -> None:
    capture = Capture("97", 0.05)
    try:
        with pytest.raises(RunError, match="camera 97 cannot be opened"):
            capture.newest(0.3)
    finally:
        capture.close()


def test_a_device_flies_on_a_network_camera(network_camera: str, tmp_path: Path) -> None:
    """Without a broker, as a service would: every frame of the camera ends in one record, answered by the device."""
    bundle = export_bundle("deadline", load_scenario("flight-lte"), tmp_path / "bundle")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        broker = f"mqtt://127.0.0.1:{probe.getsockname()[1]}"
    options = DeviceOptions(broker=broker, connect_s=0.1, edge_wait_s=0.0, drain_s=1.0, service=True)
    summary, log = run_device(bundle, network_camera_name(network_camera), ["deadline"], options, count=20)
    records = log.outcomes()["deadline"]
    assert summary["frames"] == len(records) == 20
    assert records["frame"].tolist() == list(range(20))
    assert (records["path"] != Route.MISS).mean() > 0.5
    assert np.isnan(records["quality"][records["path"] != Route.MISS]).all()  # nobody knows what it saw
    assert summary["session"].get("stage_failed", 0) == 0


def network_camera_name(url: str) -> str:
    """Return what ``--frames`` calls it."""
    return f"camera:{url}"
