"""Frames from outside: tiles in a folder or tar, folders of pictures, and files that mean harm."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as Pillow

from adaptsplit.errors import ConfigError, DataError
from adaptsplit.frames import SPLITS, UNLABELLED, image_hash, open_frames
from adaptsplit.frames.pictures import MAX_TILE_BYTES, decode_picture
from adaptsplit.frames.preview import contact_sheet
from adaptsplit.frames.tiles import load_tiles, split_of
from adaptsplit.frames.worldsource import WorldSource

GOLDEN_SPLITS = ["calibration", "model-train", "model-train", "model-train", "model-train", "model-train"]
EUROSAT = Path("img_eurosat_rgb") / "eurosat_rgb_15000.tar"


def png(colour: int, size: tuple[int, int] = (64, 64)) -> bytes:
    """A PNG whose pixels state ``colour``, with a little noise so that no two are equal."""
    noise = np.random.Generator(np.random.PCG64(colour)).integers(0, 2, (size[1], size[0], 3))
    stream = io.BytesIO()
    Pillow.fromarray((noise + colour).astype(np.uint8)).save(stream, format="PNG")
    return stream.getvalue()


def write_tar(path: Path, members: list[tuple[tarfile.TarInfo, bytes]], mode: str = "w") -> Path:
    with tarfile.open(path, mode) as archive:  # type: ignore[call-overload]
        for member, data in members:
            member.size = len(data) if member.isreg() else 0
            archive.addfile(member, io.BytesIO(data))
    return path


def good_members(count: int = 40) -> list[tuple[tarfile.TarInfo, bytes]]:
    return [
        (tarfile.TarInfo(f"set/{name}/{name}_{k}.png"), png(base + k))
        for name, base in (("alpha", 0), ("beta", 100))
        for k in range(count)
    ]


def write_folder(root: Path, count: int = 40) -> Path:
    for member, data in good_members(count):
        path = root / member.name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return root


@pytest.fixture(scope="module")
def small_tar(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tar(tmp_path_factory.mktemp("tiles") / "small.tar", good_members())


def test_split_is_by_file_name_and_stable() -> None:
    assert [split_of(f"AnnualCrop_{k}.jpg") for k in range(1, 7)] == GOLDEN_SPLITS
    shares = np.array([[split_of(f"x_{k}.jpg") == split for split in SPLITS] for k in range(20000)]).mean(axis=0)
    assert shares == pytest.approx([0.6, 0.1, 0.1125, 0.0375, 0.15], abs=0.012)


def test_splits_share_no_picture(small_tar: Path) -> None:
    seen = [{image_hash(tile) for tiles in load_tiles(small_tar, split).values() for tile in tiles} for split in SPLITS]
    assert sum(len(hashes) for hashes in seen) == len(set().union(*seen)) == 80


def test_folder_and_tar_give_the_same_tiles(small_tar: Path, tmp_path: Path) -> None:
    root = write_folder(tmp_path)
    from_tar, from_folder = load_tiles(small_tar, "model-train"), load_tiles(root, "model-train")
    assert list(from_tar) == list(from_folder) == ["alpha", "beta"]
    for name, tiles in from_tar.items():
        hashes = {image_hash(tile) for tile in tiles}
        assert hashes == {image_hash(tile) for tile in from_folder[name]}


def test_map_shows_the_class_that_its_labels_say(small_tar: Path) -> None:
    source = open_frames(f"tiles:{small_tar}", split="test")
    assert isinstance(source, WorldSource)
    world = source.world(0)
    beta = np.asarray(world.canvas)[..., 0] >= 100
    assert np.array_equal(beta, world.labels == source.classes.index("beta"))


def test_path_is_looked_for_in_data_first(small_tar: Path) -> None:
    source = open_frames(f"tiles:{small_tar.name}", split="test", data=small_tar.parent)
    assert source.name == "tiles:small.tar"
    with pytest.raises(ConfigError, match=r"nothing at .* and absent\.tar"):
        open_frames("tiles:absent.tar", split="test", data=small_tar.parent)


def test_other_sizes_are_resized(tmp_path: Path) -> None:
    root = write_folder(tmp_path)
    name = next(f"{k}.png" for k in range(99) if split_of(f"{k}.png") == "test")
    (root / "set" / "alpha" / name).write_bytes(png(50, (100, 90)))
    tiles = load_tiles(root, "test")["alpha"]
    assert tiles.shape[1:] == (64, 64, 3)
    assert any(abs(float(tile.mean()) - 50.5) < 0.5 for tile in tiles)


def link(name: str, kind: bytes) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.type = kind
    member.linkname = "/etc/passwd"
    return member


@pytest.mark.parametrize(
    ("member", "data", "message"),
    [
        (link("a/evil.png", tarfile.SYMTYPE), b"", "'a/evil.png'.*link or device"),
        (link("a/evil.png", tarfile.LNKTYPE), b"", "link or device"),
        (link("a/evil.png", tarfile.CHRTYPE), b"", "link or device"),
        (link("a/evil.png", tarfile.FIFOTYPE), b"", "link or device"),
        (tarfile.TarInfo("../a/evil.png"), b"x", "leaves the archive"),
        (tarfile.TarInfo("/a/evil.png"), b"x", "leaves the archive"),
        (tarfile.TarInfo("evil.png"), b"x", "not inside a class folder"),
        (tarfile.TarInfo("a/evil.png"), b"\0" * (MAX_TILE_BYTES + 1), "at most 1048576"),
    ],
)
def test_hostile_members_are_refused_by_name(
    tmp_path: Path, member: tarfile.TarInfo, data: bytes, message: str
) -> None:
    path = write_tar(tmp_path / "evil.tar", [*good_members(3), (member, data)])
    with pytest.raises(DataError, match=message):
        load_tiles(path, "model-train")
    assert sorted(place.name for place in tmp_path.iterdir()) == ["evil.tar"]


def test_undecodable_member_is_named(tmp_path: Path) -> None:
    name = next(f"{k}.png" for k in range(99) if split_of(f"{k}.png") == "test")
    for data in (b"not a picture", png(3)[:200]):
        path = write_tar(tmp_path / "bad.tar", [*good_members(), (tarfile.TarInfo(f"set/alpha/{name}"), data)])
        with pytest.raises(DataError, match=f"set/alpha/{name}.*not a readable picture.*remove it"):
            load_tiles(path, "test")


def test_compressed_cut_and_foreign_files_are_refused(small_tar: Path, tmp_path: Path) -> None:
    packed = write_tar(tmp_path / "packed.tar.gz", good_members(3), mode="w:gz")
    cut, text = tmp_path / "cut.tar", tmp_path / "text.tar"
    cut.write_bytes(small_tar.read_bytes()[:5000])
    text.write_text("no tar at all")
    for path in (packed, cut, text):
        with pytest.raises(DataError, match=path.name):
            load_tiles(path, "model-train")


def test_archive_that_ends_inside_a_picture_is_refused(tmp_path: Path) -> None:
    name = next(f"{k}.png" for k in range(99) if split_of(f"{k}.png") == "test")
    path = write_tar(tmp_path / "cut.tar", [(tarfile.TarInfo(f"alpha/{name}"), png(3))])
    path.write_bytes(path.read_bytes()[:700])
    with pytest.raises(DataError, match=r"cut off|plain tar"):
        load_tiles(path, "test")


def test_split_without_a_picture_of_a_class_is_refused(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "few.tar", good_members(1))
    with pytest.raises(DataError, match="no picture of class"):
        load_tiles(path, "validation")


def test_no_pictures_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no pictures in class folders"):
        load_tiles(tmp_path, "test")
    with pytest.raises(DataError, match="no pictures"):
        open_frames(f"folder:{tmp_path}", split="test")


def test_huge_pictures_are_refused_before_they_are_decoded() -> None:
    for size in ((4097, 8), (20000, 20000)):
        stream = io.BytesIO()
        Pillow.new("1", size).save(stream, format="PNG")
        with pytest.raises(DataError, match="bomb"):
            decode_picture(stream.getvalue(), "bomb.png")


def test_folder_without_labels(tmp_path: Path) -> None:
    for k, name in enumerate(("b.png", "a.png", "notes.txt")):
        (tmp_path / name).write_bytes(png(10 * k, (300, 200)))
    source = open_frames(f"folder:{tmp_path}", split="train")
    assert (len(source), source.classes, source.segments) == (2, [], [(0, 2)])
    first = source.frame(0)
    assert first.image.shape == (256, 256, 3)
    assert abs(float(first.image.mean()) - 10.5) < 0.5
    assert (first.labels == UNLABELLED).all()
    contact_sheet(source, tmp_path / "sheet.png")


def test_folder_with_labels(tmp_path: Path) -> None:
    source = open_frames(f"folder:{write_folder(tmp_path, 3) / 'set'}", split="test")
    assert source.classes == ["alpha", "beta"]
    assert [int(source.frame(k).labels[0]) for k in range(6)] == [0, 0, 0, 1, 1, 1]
    images, labels = source.batch(np.random.Generator(np.random.PCG64(0)), 5)
    assert (images.shape, labels.shape) == ((5, 256, 256, 3), (5, 16))


def test_mixed_or_missing_folders_are_refused(tmp_path: Path) -> None:
    root = write_folder(tmp_path, 1) / "set"
    (root / "stray.png").write_bytes(png(1))
    with pytest.raises(DataError, match="both beside and inside"):
        open_frames(f"folder:{root}", split="test")
    with pytest.raises(DataError, match="not a folder"):
        open_frames(f"folder:{root / 'stray.png'}", split="test")


def test_bad_picture_in_a_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8\xff broken")
    with pytest.raises(DataError, match=r"broken\.jpg"):
        open_frames(f"folder:{tmp_path}", split="test").frame(0)


def test_eurosat(shared_data: Path) -> None:
    if not (shared_data / EUROSAT).exists():
        pytest.skip(f"{EUROSAT} is absent from the shared data")
    tiles = {split: load_tiles(shared_data / EUROSAT, split) for split in SPLITS}
    hashes = [image_hash(tile) for split in SPLITS for stock in tiles[split].values() for tile in stock]
    assert len(hashes) == len(set(hashes)) == 15000
    source = open_frames(f"tiles:{EUROSAT}", split="validation", data=shared_data)
    assert len(source.classes) == 10
    grids = np.stack([source.frame(k).labels.reshape(4, 4) for k in range(0, len(source), 20)])
    assert (grids[:, :, 1:] == grids[:, :, :-1]).mean() > 0.8
    assert (grids[:, 1:] == grids[:, :-1]).mean() > 0.8
