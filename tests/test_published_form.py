"""The YAML form of published tables: what it refuses, how it says so, and that no mutation breaks it."""

from __future__ import annotations

import copy
import random
from pathlib import Path
from typing import Any

import pytest

from adaptsplit.config import parse
from adaptsplit.errors import AdaptsplitError, ConfigError
from adaptsplit.profiles.published import PublishedTable, load_table, published_names, published_table, to_profile


def valid(name: str = "branchynet-alexnet") -> dict[str, Any]:
    """A shipped table as plain YAML values."""
    value: dict[str, Any] = published_table(name).model_dump(mode="json", by_alias=True)
    return value


def refuse(value: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse(PublishedTable, value, "table.yaml")


def test_plain_values_round_trip() -> None:
    for name in published_names():
        again = parse(PublishedTable, valid(name), name)
        assert again.digest == published_table(name).digest


def test_unknown_key_names_the_nearest() -> None:
    value = valid()
    value["cuts"][0]["device_ms"] = 3
    refuse(value, r"cuts\.0\.device_ms: unknown key; did you mean 'device_s'")


@pytest.mark.parametrize(
    ("path", "found", "message"),
    [
        (("accuracy",), 1.5, r"accuracy: .*less than or equal to 1 \(found 1.5\)"),
        (("local_s",), 0, "local_s: .*greater than or equal to 0.000000001"),
        (("local_s",), float("nan"), "local_s: .*finite"),
        (("classes",), 1, "classes: .*greater than or equal to 2"),
        (("cuts",), [], "cuts: .*at least 1 item"),
        (("cuts", 0, "codecs", 0, "bytes"), 0, "bytes: .*greater than 0"),
        (("cuts", 0, "codecs", 0, "bytes"), 2**24 + 1, "bytes: .*less than or equal to 16777216"),
        (("cuts", 0, "name"), "local", "cut name 'local' is taken twice"),
        (("cuts", 0, "name"), "exit2", "cut name 'exit2' is taken twice"),
        (("cuts", 0, "macs_after"), None, "cut 'exit1' has neither server_s nor macs_after"),
        (("server", "macs_per_s"), None, "server.macs_per_s is needed"),
        (("cuts", 0, "exit", "overall"), 0.1, "overall 0.1 is impossible|accuracy on the samples that stay"),
        (("cuts", 0, "exit", "confidence"), 0.95, r"confidence 0.95 must lie above 0.3\d+.* not above 0.8976"),
        (("cuts", 0, "codecs", 0, "quality"), 0.1, "codec 'raw-f32' has a quality that overall and share make"),
        (("server", "macs_per_s"), 1e3, r"input: 2\.825e\+04 s on the server; at most 300"),
        (("spread",), 1.0, "spread: .*less than 1"),
    ],
)
def test_a_value_out_of_range_is_named(path: tuple[str | int, ...], found: object, message: str) -> None:
    value: Any = valid()
    place = value
    for part in path[:-1]:
        place = place[part]
    place[path[-1]] = found
    refuse(value, message)


def test_a_fact_without_source_or_model_is_refused() -> None:
    value = valid()
    del value["modelled"]["bytes"]
    refuse(value, "bytes: neither in sources nor in modelled; say where each comes from")
    value = valid("tx2-vgg16")
    del value["modelled"]["server_s"]
    value["sources"]["server_s"] = "measured"
    refuse(value, "server_s is null in some cuts; say under modelled how it is filled")
    value = valid()
    value["sources"]["exits"] = value["modelled"].pop("exits")
    refuse(value, "an exit's accuracy is null; say under modelled")


def test_codec_seconds_need_a_source() -> None:
    value = valid("orin-nx-yolov8n")
    del value["modelled"]["codec_s"]
    refuse(value, "codec_s: neither in sources nor in modelled")


def test_a_claim_about_an_unknown_cut_is_refused() -> None:
    value = valid("orin-nx-yolov8n")
    value["claims"][0]["best"] = "p9"
    refuse(value, "best 'p9' is no cut of this table")


def test_two_codecs_of_one_name_are_refused() -> None:
    value = valid("orin-nx-yolov8n")
    value["cuts"][0]["codecs"][0]["name"] = "int8"
    refuse(value, "codec name 'int8' is taken twice")


def test_a_file_that_is_no_table(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"absent\.yaml: cannot be read"):
        load_table(tmp_path / "absent.yaml")
    (tmp_path / "list.yaml").write_text("- 1\n")
    with pytest.raises(ConfigError, match="expected a mapping"):
        load_table(tmp_path / "list.yaml")
    (tmp_path / "tag.yaml").write_text("name: !!python/object/apply:os.getcwd []\n")
    with pytest.raises(ConfigError, match="not valid YAML"):
        load_table(tmp_path / "tag.yaml")


ODD: list[Any] = [None, True, -1, 0, 2, 0.5, 1e-320, 1e308, 10**30, float("nan"), float("inf")]
ODD += ["", "x" * 5000, "p1", [], {}]


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every path to a value inside nested mappings and lists."""
    found = [path] if path else []
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        found += places(item, (*path, key))
    return found


def mutate(value: Any, rng: random.Random) -> None:
    """Replace, delete, duplicate or scale one value somewhere."""
    path = rng.choice(places(value))
    parent = value
    for part in path[:-1]:
        parent = parent[part]
    what = rng.randrange(4)
    if what == 0:
        del parent[path[-1]]
    elif what == 1 and isinstance(parent, list):
        parent.append(copy.deepcopy(parent[path[-1]]))
    elif what == 2 and isinstance(parent[path[-1]], int | float):
        parent[path[-1]] *= rng.choice([-1, 0.1, 0.9, 1.1, 10, 1000])
    else:
        parent[path[-1]] = copy.deepcopy(rng.choice(ODD))


def test_fuzz_values() -> None:
    """4000 mutated tables: each is refused by a ConfigError, or gives a profile (tried on the first 150)."""
    rng = random.Random(7)
    originals = [
        valid(name) for name in ("branchynet-alexnet", "branchynet-lenet", "orin-nx-yolov8n", "pi-gpu-resnet18")
    ]
    accepted = refused = 0
    for _ in range(4000):
        value = copy.deepcopy(rng.choice(originals))
        for _ in range(rng.randint(1, 3)):
            mutate(value, rng)
        try:
            table = parse(PublishedTable, value, "fuzz")
        except ConfigError:
            refused += 1
            continue
        accepted += 1
        if accepted <= 150:
            assert len(to_profile(table, "train", 16)) == 16
    assert refused > 2000
    assert accepted > 150


def test_fuzz_text(tmp_path: Path) -> None:
    """400 damaged files: read or refused by an error of ours, never by another one."""
    rng = random.Random(8)
    source = Path(__file__).resolve().parents[1] / "adaptsplit/profiles/published/tables/branchynet-lenet.yaml"
    text = source.read_bytes()
    path = tmp_path / "fuzz.yaml"
    refused = 0
    for _ in range(400):
        damaged = bytearray(text)
        for _ in range(rng.randint(1, 4)):
            at = rng.randrange(len(damaged))
            damaged[at : at + rng.choice([0, 1, 7])] = bytes(
                rng.choices(b":-{}[]\n\t 0x9e&*!#'\"\xff", k=rng.randint(0, 3))
            )
        path.write_bytes(bytes(damaged))
        try:
            load_table(path)
        except AdaptsplitError:
            refused += 1
    assert refused > 100
