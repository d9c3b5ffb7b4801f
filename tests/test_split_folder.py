"""From a cut network to a model folder: what the network sees, what is sent, exits, files, and the whole way."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from cases import SMALL_SCENARIO, command
from networks import network
from PIL import Image
from sklearn.linear_model import LogisticRegression
from torch import nn

from adaptsplit.errors import ConfigError
from adaptsplit.frames import open_frames
from adaptsplit.models.split import SplitNetwork, split
from adaptsplit.models.split_body import as_input, branch_names
from adaptsplit.models.split_folder import FolderResult, FrameSettings, make_folder
from adaptsplit.models.split_frames import Eye, FromMap, ToMap, View, gather, scaled
from adaptsplit.models.split_probe import fit_probe, pooled
from adaptsplit.runtime import DeviceRuntime, EdgeRuntime, ModelFolder

EXAMPLE = torch.zeros(1, 3, 32, 32)
SHAPE = (3, 32, 32)


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four classes of five noisy 64 x 64 tiles: stripes of four periods, in colours that overlap."""
    root = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    for label, name in enumerate(("bare", "crops", "town", "water")):
        (root / name).mkdir()
        for i in range(5):
            tile = rng.normal(110 + 10 * label, 45, (64, 64, 3))
            tile[:: label + 2] += 50
            Image.fromarray(np.clip(tile, 0, 255).astype(np.uint8)).save(root / name / f"{i}.png")
    return root


def settings(pictures: Path) -> FrameSettings:
    return FrameSettings(f"folder:{pictures}", fit=20, calibrate=20)


@pytest.fixture(scope="module")
def parts() -> SplitNetwork:
    return split(network("resnet"), ["maxpool", "layer2.0"], EXAMPLE)


@pytest.fixture(scope="module")
def made(parts: SplitNetwork, pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> FolderResult:
    out = tmp_path_factory.mktemp("made") / "model"
    return make_folder(parts, settings(pictures), out, View(SHAPE, cells=4), answers="probe")


def test_the_eye_cuts_cells_and_the_map_puts_them_back() -> None:
    image = torch.rand(1, 3, 256, 256)
    cells = Eye(View((3, 64, 64), cells=4))(image)
    assert torch.equal(cells[6], image[0, :, 64:128, 128:192]), "cell 6 is row 1, column 2"
    assert torch.equal(ToMap((3, 64, 64), 4)(cells), image)


def test_scaling_averages_whole_pixels_and_then_interpolates() -> None:
    x = torch.rand(2, 3, 64, 64)
    assert torch.allclose(scaled(x, 64, 16, 16)[1, 2, 3, 4], x[1, 2, 12:16, 16:20].mean())
    assert torch.equal(scaled(x, 64, 64, 64), x)
    assert scaled(x, 64, 30, 48).shape == (2, 3, 30, 48)
    assert scaled(x, 64, 96, 96).shape == (2, 3, 96, 96)
    flat = torch.full((1, 1, 64, 64), 0.25)
    assert torch.allclose(scaled(flat, 64, 28, 28), torch.full((1, 1, 28, 28), 0.25))


def test_the_eye_normalises_per_channel_and_sees_grey() -> None:
    image = torch.zeros(1, 3, 256, 256)
    image[:, 1] = 1.0
    seen = Eye(View((3, 32, 32), mean=(0.5, 0.25, 0.0), std=(0.5, 0.5, 2.0)))(image)
    assert seen[0, :, 0, 0].tolist() == [-1.0, 1.5, 0.0]
    assert Eye(View((1, 32, 32)))(image)[0, 0, 0, 0] == pytest.approx(0.587)


@pytest.mark.parametrize("cells", [1, 4])
@pytest.mark.parametrize("shape", [(5, 3, 4), (7, 6), (9,), (2, 3, 4, 5)])
def test_maps_are_the_tensors_in_another_form(shape: tuple[int, ...], cells: int) -> None:
    x = torch.rand(cells * cells, *shape)
    there, back = ToMap(shape, cells), FromMap(shape, cells)
    assert there(x).shape == (1, *there.size)
    assert torch.equal(back(there(x)), x)


def test_a_channel_of_the_map_is_a_channel_of_the_tensor() -> None:
    tokens, vectors = torch.rand(16, 6, 7), torch.rand(16, 9)
    assert torch.equal(ToMap((6, 7), 4)(tokens)[0, 2], tokens[:, :, 2])
    assert torch.equal(ToMap((9,), 4)(vectors)[0, 2].flatten(), vectors[:, 2])


def test_bad_views_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"expected 1 \(one answer per frame\) or 4"):
        View(SHAPE, cells=2)
    with pytest.raises(ConfigError, match="frames have 3 channels"):
        View((4, 32, 32))
    with pytest.raises(ConfigError, match="expected 1 or 3 numbers"):
        View(SHAPE, mean=(0.5, 0.5))
    with pytest.raises(ConfigError, match="numbers above 0"):
        View(SHAPE, std=(0.0,))


def test_the_probe_is_logistic_regression() -> None:
    rng = np.random.default_rng(1)
    x = rng.normal(0, 1, (200, 6)) * [1, 3, 5, 1, 0.5, 0] + 3
    y = (x[:, 0] + 0.3 * x[:, 1] + rng.normal(0, 1, 200) > 3.9).astype(int) + (x[:, 4] > 3.5)
    probe = fit_probe(torch.from_numpy(x).float(), torch.eye(3)[torch.from_numpy(y)])
    spread = np.where(x.std(0) > 0, x.std(0), 1.0)
    expected = LogisticRegression(C=1 / (2 * 200 * 1e-3), tol=1e-8, max_iter=2000).fit((x - x.mean(0)) / spread, y)
    found = probe(torch.from_numpy(x).float()).softmax(-1).numpy()
    assert np.abs(found - expected.predict_proba((x - x.mean(0)) / spread)).max() < 1e-3


def test_a_probe_on_rounding_alone_answers_with_the_shares() -> None:
    x = torch.full((40, 3), 0.7) + 1e-7 * torch.rand(40, 3, generator=torch.Generator().manual_seed(0))
    shares = torch.eye(2)[torch.tensor([0] * 30 + [1] * 10)]
    probe = fit_probe(x, shares)
    assert probe.weight.abs().max() == 0.0
    assert probe(torch.rand(1, 3)).softmax(-1)[0].tolist() == pytest.approx([0.75, 0.25], abs=1e-3)


def test_a_pooled_vector_is_no_row_of_tokens() -> None:
    x = torch.rand(2, 5, 1)
    assert torch.equal(pooled(x), x[:, :, 0])
    assert torch.allclose(pooled(torch.ones(2, 5, 3)), torch.ones(2, 3))


def test_branches_get_names_that_a_folder_takes() -> None:
    cuts = ["0", "layer1.0", "bn1+relu", "vit.encoder.layer.10.attention.output", "layer1_0", "Layer1.0"]
    names = branch_names(cuts)
    assert names[:3] == ["cut0", "layer1_0", "bn1_relu"]
    assert len(set(names)) == len(cuts)
    assert all(len(name) <= 24 and name[0].isalpha() for name in names)


def test_frames_are_spread_over_few_segments() -> None:
    source = open_frames("flight", split="calibration")
    taken: list[int] = []

    class Watched:
        name, segments, split = source.name, source.segments, source.split

        def __len__(self) -> int:
            return len(source)

        def frame(self, index: int) -> object:
            taken.append(index)
            return type("F", (), {"labels": np.zeros(16, np.int16), "image": np.zeros((256, 256, 3), np.uint8)})

    assert len(gather(Watched(), 60).images) == 60  # type: ignore[arg-type]
    assert sorted({index // 300 for index in taken}) == [0, 3]


def test_the_device_and_the_edge_give_what_torch_gives(made: FolderResult, parts: SplitNetwork, pictures: Path) -> None:
    folder = ModelFolder.open(made.folder)
    device, edge = DeviceRuntime(folder), EdgeRuntime(folder)
    frame = open_frames(f"folder:{pictures}", split="test").frame(7)
    whole = edge.full(frame.image)
    with torch.no_grad():
        seen = Eye(View(SHAPE, cells=4))(as_input(frame.image))
        for cut in parts.cuts:
            branch = branch_names([cut.name])[0]
            sent = parts.heads[cut.name](seen)
            found = device.head(branch, frame.image)
            assert np.allclose(found.features, ToMap(cut.shape, 4)(sent)[0].numpy(), atol=1e-4)
            tail = edge.tail(branch, found.features)
            assert np.array_equal(tail.prediction, whole.prediction), "without a codec the tail is the whole"
    assert device.local(frame.image).confidence == whole.confidence


def test_the_card_says_what_it_is(made: FolderResult, parts: SplitNetwork) -> None:
    card = ModelFolder.open(made.folder).card
    first, last = card.branches
    table = parts.table
    assert [first.cut, last.cut] == ["maxpool", "layer2.0"]
    assert made.branches == {"maxpool": "maxpool", "layer2_0": "layer2.0"}
    assert (first.bottleneck, last.bottleneck) == ((8, 32, 32), (16, 16, 16))
    assert first.macs_head == 16 * table.point("maxpool").head_macs
    assert first.macs_decoder + first.macs_head == last.macs_head == card.full.macs_features
    assert card.macs_full == 16 * table.macs
    assert (first.macs_exit, last.macs_exit) == (16 * 8 * 4, 16 * 16 * 4)
    assert card.training["answers"] == "probe"
    assert made.mixed == 0.0
    assert made.onnx_difference < 1e-4
    assert set(made.accuracy) == {"full", *(f"{kind}:{b}" for kind in ("exit", "tail") for b in made.branches)}
    assert made.accuracy["full"] > 0.5, "chance is 0.25"


def test_own_answers_must_be_the_frames_classes(pictures: Path, tmp_path: Path) -> None:
    ten = split(network("plain", classes=10), ["conv2+max_pool2d"], EXAMPLE)
    with pytest.raises(ConfigError, match=r"gives \(10,\) per image, the frames have 4 classes; cure: --answers probe"):
        make_folder(ten, settings(pictures), tmp_path / "no", View(SHAPE))
    assert not (tmp_path / "no").exists()


def test_requests_that_cannot_be_met_are_refused(
    parts: SplitNetwork, made: FolderResult, pictures: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match="holds a finished model already"):
        make_folder(parts, settings(pictures), made.folder, View(SHAPE))
    with pytest.raises(ConfigError, match="cut for input"):
        make_folder(parts, settings(pictures), tmp_path / "a", View((3, 64, 64)))
    flat = tmp_path / "flat"
    flat.mkdir()
    Image.new("RGB", (8, 8)).save(flat / "a.png")
    with pytest.raises(ConfigError, match="carry no labels"):
        make_folder(parts, FrameSettings(f"folder:{flat}"), tmp_path / "b", View(SHAPE))
    wide = nn.Sequential(nn.Conv2d(3, 64, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 4)).eval()
    large = split(wide, ["0"], torch.zeros(1, 3, 96, 96))
    with pytest.raises(ConfigError, match=r"sends 9437184 values per frame.*cut later"):
        make_folder(large, settings(pictures), tmp_path / "c", View((3, 96, 96), cells=4))


SCENARIO = SMALL_SCENARIO | {
    "name": "mine",
    "description": "A network of the user's over a modelled LTE uplink.",
    "links": {
        split: [{"kind": "generate", "generator": "lte-drone", "seeds": [seeds], "duration_s": 20, "family": "lte"}]
        for split, seeds in (("train", "1-2"), ("validation", "3-4"), ("test", "5-6"))
    },
}


END_TO_END = ("plain", "vgg", "resnet", "mobilenet", "vit", "densenet", "convnext")


@pytest.mark.timeout(300)
# The report's latency figure is empty where every compared controller answers on board.
@pytest.mark.parametrize(
    "family", [pytest.param(f, marks=[] if f in ("resnet", "vit") else [pytest.mark.slow]) for f in END_TO_END]
)
def test_from_a_network_to_a_controller_that_trains(
    family: str, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / f"own_{family}.py").write_text(
        f"from networks import network\ndef make():\n    return network({family!r})\n"
    )
    monkeypatch.chdir(tmp_path)
    frames = ("--frames", f"folder:{pictures}")
    few = ("--fit-frames", "20", "--calibration-frames", "20", "--answers", "probe", "--input", "3,32,32")
    cut = json.loads(command("split", f"own_{family}:make", *few, "--at", "auto", *frames, "--out", "model", "--json"))
    assert cut["proof"]["bit_equal"] is True
    names = tuple(cut["branches"])
    command("profile", "model", *frames, "--limit", "8", "--out", "profile", "--json")
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(SCENARIO | {"profile": "profile", "frames": frames[1]}))
    trained = json.loads(command("train", "mine.yaml", "--agent", "dqn", "--steps", "3000", "--out", "run", "--json"))
    assert trained["steps"] >= 3000
    judged = json.loads(
        command("evaluate", "mine.yaml", "--agents", "static,run", "--episodes", "2", "--out", "report", "--json")
    )
    rows = {row["name"] for row in judged["controllers"]}
    assert "run" in rows
    assert any(name.startswith(f"static:{names[0]}/") for name in rows)
