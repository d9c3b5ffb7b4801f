"""Cutting networks: which cuts there are, what they cost, and that head and tail give exactly what the whole gives."""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from networks import FAMILIES, DenseBlock, network
from torch import Tensor, nn

from adaptsplit.errors import ConfigError, ModelError, UnknownNameError
from adaptsplit.models import load_recipe, split_trace
from adaptsplit.models.architecture import SplitModel
from adaptsplit.models.macs import count_macs
from adaptsplit.models.split import SplitNetwork, cut_points, split
from adaptsplit.models.split_table import CutTime, best

EXAMPLE = torch.zeros(1, 3, 32, 32)


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def cut_everywhere(model: nn.Module, example: Tensor = EXAMPLE) -> SplitNetwork:
    return split(model, ["all"], example)


@cache
def cut(family: str) -> SplitNetwork:
    """One network of the family, cut at every point; no test changes it."""
    return cut_everywhere(network(family))


@pytest.mark.parametrize("family", FAMILIES)
def test_every_cut_of_every_family_gives_the_same_bits(family: str) -> None:
    parts = cut(family)
    proof = parts.verify(seed=1)
    assert proof.bit_equal
    assert len(proof.differences) == len(parts.cuts) + 1 >= 6
    assert proof.batches == (1, 2, 5)
    mine = {parameter.data_ptr() for parameter in parts.whole.parameters()}
    used = {p.data_ptr() for half in (*parts.heads.values(), *parts.tails.values()) for p in half.parameters()}
    assert used == mine, "the parts share the network's weights"


@pytest.mark.parametrize("family", FAMILIES)
def test_the_symbolic_tracer_gives_the_same_bits(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(split_trace, "_WAYS", {"torch.fx": split_trace._WAYS["torch.fx"]})
    parts = cut_everywhere(network(family))
    assert parts.table.how == "torch.fx"
    assert parts.verify().bit_equal
    exported = cut(family).table
    assert [p.shape for p in parts.table.listed] == [p.shape for p in exported.listed]
    assert [p.head_macs for p in parts.table.listed] == [p.head_macs for p in exported.listed]


def test_the_reference_trunk_can_be_cut_too() -> None:
    model = SplitModel(load_recipe("smoke").model, tuple("abcdefghij")).eval()
    parts = split(model, ["stem", "trunk.mid"], torch.zeros(1, 3, 256, 256))
    assert parts.verify(batches=(1, 2), inputs=1).bit_equal
    image = torch.rand(1, 3, 256, 256)
    with torch.no_grad():
        assert torch.equal(parts.heads["trunk.mid"](image), model.maps(image)["mid"])


def test_cut_points_of_a_chain_are_those_reckoned_by_hand() -> None:
    table = cut("vgg").table
    assert table.hidden == 0
    found = {p.name: (p.shape, p.float_bytes, p.head_macs, p.natural, p.minor) for p in table.points}
    first, second = 32 * 32 * 8 * 27, 16 * 16 * 16 * 8 * 9
    third = 8 * 8 * 16 * 16 * 9
    assert found["0"] == ((8, 32, 32), 32768, first, False, True)  # its ReLU follows at no cost
    assert found["2"] == ((8, 32, 32), 32768, first, False, False)  # larger than the image
    assert found["3"] == ((8, 16, 16), 8192, first, True, False)
    assert found["6"] == ((16, 16, 16), 16384, first + second, False, False)
    assert found["7"] == ((16, 8, 8), 4096, first + second, True, False)
    assert found["11"] == ((16, 4, 4), 1024, first + second + third, True, False)
    assert table.macs == first + second + third + 64 * 32 + 32 * 4
    assert table.point("7").head_parameters == (27 * 8 + 8) + 16 + (72 * 16 + 16) + 32


@pytest.mark.parametrize("family", [name for name in FAMILIES if name != "vit"])
def test_macs_and_parameters_add_up(family: str) -> None:
    model, table = cut(family).whole, cut(family).table
    assert table.macs == count_macs(model, EXAMPLE)[0]
    assert table.parameters == sum(p.numel() for p in model.parameters())
    for point in table.points:
        assert point.head_macs + point.tail_macs == table.macs
        assert point.head_parameters + point.tail_parameters == table.parameters


def test_attention_is_counted() -> None:
    model = network("vit")  # 17 tokens of 16 values, 2 blocks, 8 x 8 patches
    products = 2 * 17 * 17 * 16  # Q K' and (Q K') V over all heads
    assert cut_points(model, EXAMPLE).macs == count_macs(model, EXAMPLE)[0] + 2 * products


def test_names_are_the_modules_and_aliases_mean_the_same_cut() -> None:
    table = cut("resnet").table
    assert [p.name for p in table.listed] == [
        *("bn1+relu", "maxpool", "layer1.0", "layer1", "layer2.0", "layer2", "avgpool"),
    ]
    assert table.point("layer1.1.relu") is table.point("layer1.1") is table.point("layer1")


def outputs_of(whole: nn.Module, modules: dict[str, nn.Module], image: Tensor) -> dict[str, Tensor]:
    """Run ``whole`` and return what each module gave."""
    seen: dict[str, Tensor] = {}

    def keep(name: str) -> Any:
        return lambda _module, _inputs, output: seen.setdefault(name, output.clone())

    hooks = [module.register_forward_hook(keep(name)) for name, module in modules.items()]
    with torch.no_grad():
        whole(image)
    for hook in hooks:
        hook.remove()
    return seen


def test_the_tensor_of_a_cut_is_what_the_module_of_its_name_gives() -> None:
    for family in ("convnext", "vit", "resnet"):
        parts, image = cut(family), torch.rand(2, 3, 32, 32)
        modules = dict(parts.whole.named_modules())
        named = [one.name for one in parts.cuts if one.name in modules]
        seen = outputs_of(parts.whole, {name: modules[name] for name in named}, image)
        with torch.no_grad():
            assert all(torch.equal(parts.heads[name](image), seen[name]) for name in named)
        assert len(named) >= 4


@pytest.mark.parametrize(("family", "inside"), [("resnet", "layer1.0.bn2"), ("densenet", "block1.layers.1")])
def test_no_cut_inside_a_block(family: str, inside: str) -> None:
    table = cut(family).table
    assert table.hidden > 0
    with pytest.raises(UnknownNameError, match="Inside a residual or dense block several tensors"):
        table.point(inside)


def test_a_dense_block_can_be_cut_at_its_ends_only() -> None:
    table = cut_points(nn.Sequential(nn.Conv2d(3, 4, 1), DenseBlock(4, 2, 3), nn.Conv2d(10, 2, 1)).eval(), EXAMPLE)
    assert [p.name for p in table.listed] == ["0", "1"]


def test_a_network_with_a_skip_to_its_end_has_a_cut_only_before_the_skip() -> None:
    class Skip(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.down, self.up = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 8, 2, 2), nn.ConvTranspose2d(8, 4, 2, 2)

        def forward(self, x: Tensor) -> Tensor:
            x = self.first(x)
            return torch.cat([x, self.up(self.down(x))], 1)

    table = cut_points(Skip().eval(), EXAMPLE)
    assert [p.name for p in table.points] == ["first"]
    assert table.macs == 1024 * 12 + 256 * 8 * 16 + 256 * 8 * 16  # transposed: every input value meets 4 x 4 weights


def test_auto_takes_natural_bottlenecks_and_the_smallest_of_a_third_without() -> None:
    table = cut("densenet").table
    natural = [p.name for p in table.listed if p.natural and p.head_macs < 0.95 * table.macs]
    assert set(natural) <= set(table.auto())
    assert len(table.auto()) <= 4
    assert [one.name for one in split(network("densenet"), ["auto"], EXAMPLE).cuts] == list(table.auto())


def test_predicted_times_choose_as_by_hand() -> None:
    table = cut("vgg").table
    rates = {"device_macs_per_s": 1e8, "server_macs_per_s": 1e10, "bits": 4.0}
    times = {t.name: t for t in table.times(uplink_bps=1e6, rtt_s=0.01, **rates)}
    seven = table.point("7")
    assert times["7"].device_s == pytest.approx(seven.head_macs / 1e8)
    assert times["7"].link_s == pytest.approx(16 * 8 * 8 * 4 / 1e6 + 0.01)
    assert times["7"].server_s == pytest.approx(seven.tail_macs / 1e10)
    assert times["input"].total_s == pytest.approx(3 * 32 * 32 * 8 / 1e6 + 0.01 + table.macs / 1e10)
    assert times["output"].total_s == pytest.approx(table.macs / 1e8)
    by_rate = [best(table.times(uplink_bps=rate, **rates)).name for rate in (1e3, 3e6, 1e10)]
    assert by_rate == ["output", "3", "input"]


def test_throughput_weighs_the_slowest_part_only() -> None:
    times = (CutTime("early", 1.0, 1.0, 1.0), CutTime("late", 1.4, 0.1, 0.1))
    assert best(times).name == "late"
    assert best(times, "throughput").name == "early"


def test_a_part_that_is_not_the_network_is_found_out() -> None:
    parts = split(network("resnet"), ["layer1"], EXAMPLE)
    tail = parts.tails["layer1"]
    parts.tails["layer1"] = lambda x: tail(x) + 1e-4  # type: ignore[assignment]
    with pytest.raises(ModelError, match=r"cut at layer1 > answer: parts and whole differ by .*another cut"):
        parts.verify()
    assert parts.verify(tolerance=2e-4).largest == pytest.approx(1e-4, rel=1e-2)


def test_tails_leave_what_they_are_given() -> None:
    for traced_by in ("torch.export", "torch.fx by stages"):
        stages = [nn.Conv2d(3, 4, 1), nn.ReLU(inplace=True), nn.Conv2d(4, 2, 1)]
        model = nn.Sequential(*([Undecided()] if "stages" in traced_by else []), *stages).eval()
        table = cut_points(model, EXAMPLE)
        assert table.how == traced_by
        place = table.points[-2].name
        parts = split(model, [place], EXAMPLE)
        sent = torch.randn(2, 4, 32, 32)
        before = sent.clone()
        parts.tails[place](sent)
        assert torch.equal(sent, before)
        assert parts.verify().bit_equal


class Undecided(nn.Module):
    """A stage that decides by values, which no tracer can follow."""

    def forward(self, x: Tensor) -> Tensor:
        return x * 2 if float(x.sum()) > 0 else x


def test_a_chain_of_stages_that_decide_by_values_is_cut_between_them() -> None:
    parts = cut_everywhere(nn.Sequential(nn.Conv2d(3, 4, 1), Undecided(), nn.Conv2d(4, 2, 1)).eval())
    assert parts.table.how == "torch.fx by stages"
    assert [one.name for one in parts.cuts] == ["0", "1"]
    assert parts.verify().bit_equal


def test_decisions_by_value_inside_forward_are_refused_with_the_cure() -> None:
    class Deciding(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.mean((2, 3)) if float(x.sum()) > 0 else x.amax((2, 3))

    with pytest.raises(ConfigError, match=r"cannot be traced \(torch.export: .*decisions that depend on values"):
        cut_points(Deciding().eval(), EXAMPLE)


def test_a_fixed_batch_size_is_kept() -> None:
    class Fixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.fc = nn.Conv2d(3, 2, 8, 8), nn.Linear(32, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(self.conv(x).reshape(4, 32))  # whoever wrote this always used four images

    parts = split(Fixed().eval(), ["conv"], torch.zeros(4, 3, 32, 32))
    assert parts.fixed_batch == 4
    assert parts.verify().batches == (4,)


def test_training_mode_is_refused() -> None:
    model = network("vgg")
    model[1].train()  # type: ignore[index]
    with pytest.raises(ConfigError, match=r"'1' is in training mode.*call model.eval\(\)"):
        split(model, ["auto"], EXAMPLE)


def test_a_random_network_cannot_be_proved() -> None:
    class Noisy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 8, 8)

        def forward(self, x: Tensor) -> Tensor:
            return F.dropout(self.conv(x), 0.5, training=True).flatten(1)

    with pytest.raises(ModelError, match="answers the same images differently each time"):
        split(Noisy().eval(), ["conv"], EXAMPLE).verify()


class Several(nn.Module):
    """Gives a mapping of tensors, as Hugging Face's models do."""

    def __init__(self, names: tuple[str, ...]) -> None:
        super().__init__()
        self.names, self.body = names, nn.Conv2d(3, 4, 4, 4)
        self.heads = nn.ModuleList(nn.Linear(4, 3) for _ in names)

    def forward(self, x: Tensor) -> Any:
        x = self.body(x).mean((2, 3))
        return {name: head(x) for name, head in zip(self.names, self.heads, strict=True)}


def test_several_answers_need_a_name_unless_one_is_called_logits() -> None:
    model = Several(("boxes", "classes")).eval()
    with pytest.raises(ConfigError, match=r"gives 2 tensors \(boxes, classes\); name the one"):
        cut_points(model, EXAMPLE)
    with pytest.raises(ConfigError, match="did you mean 'classes'"):
        cut_points(model, EXAMPLE, output="clases")
    parts = split(model, ["body"], EXAMPLE, output="classes")
    assert parts.verify().bit_equal
    with torch.no_grad():
        assert torch.equal(parts.tails["body"](parts.heads["body"](EXAMPLE)), model(EXAMPLE)["classes"])
    assert split(Several(("logits", "aux")).eval(), ["body"], EXAMPLE).verify().bit_equal


def test_views_that_are_changed_in_place_and_read_elsewhere_are_refused_or_right() -> None:
    class Sneaky(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 8, 8)

        def forward(self, x: Tensor) -> Tensor:
            x = self.conv(x)
            rows = x.flatten(1)
            x.clamp_(min=0.0)  # rows sees this
            return rows * 2

    with pytest.raises(ConfigError, match="changes a view in place"):
        cut_points(Sneaky().eval(), EXAMPLE)


def test_a_statement_that_only_changes_in_place_is_not_lost() -> None:
    class Statement(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 8, 8)

        def forward(self, x: Tensor) -> Tensor:
            x = self.conv(x)
            x.clamp_(min=0.0)
            return x * 2

    assert cut_everywhere(Statement().eval()).verify().bit_equal


def test_bad_requests_are_refused_with_the_cure() -> None:
    model = network("resnet")
    with pytest.raises(UnknownNameError, match=r"no cut 'layer3'; did you mean 'layer[12]'"):
        split(model, ["layer3"], EXAMPLE)
    with pytest.raises(ConfigError, match="no cut to make; ResNet has bn1"):
        split(model, [], EXAMPLE)
    with pytest.raises(ConfigError, match="does not take an image batch of shape"):
        cut_points(model, torch.zeros(1, 4, 32, 32))
    with pytest.raises(ConfigError, match="expected float32 of shape"):
        cut_points(model, torch.zeros(1, 3, 32, 32, dtype=torch.float64))
    parts = split(model, ["layer1", "layer2"], EXAMPLE)
    with pytest.raises(ConfigError, match="lies before cut 'layer2'"):
        parts.between("layer2", "layer1")


def test_parts_between_cuts_join() -> None:
    parts = split(network("resnet"), ["layer2", "layer1"], EXAMPLE)
    assert [one.name for one in parts.cuts] == ["layer1", "layer2"]
    image = torch.rand(3, 3, 32, 32)
    with torch.no_grad():
        joined = parts.between("layer1", "layer2")(parts.heads["layer1"](image))
        assert torch.equal(joined, parts.heads["layer2"](image))
        assert joined.shape[1:] == parts.cuts[1].shape
        assert math.prod(joined.shape[1:]) == parts.cuts[1].values
