"""Convolutional networks: the properties of the contract suite, on networks of every kind of connection."""

from __future__ import annotations

import copy
import json
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import BitImageProcessorPil

import optin
from optin.app import cli
from optin.describing import describe
from optin.describing.inputs import example_inputs, image_input
from optin.errors import ArchitectureError, CheckpointError, InputError
from optin.recipe import Recipe
from optin.refit.compensation import compensate
from optin.refit.readout import head_maps
from optin.running.batches import Batches
from optin.running.gating import gated, masks
from optin.running.job import Job
from optin.running.outputs import answers
from optin.running.replay import recorded_blocks
from optin.running.surgery import shrink
from optin.scoring.exact import Reference, exact_parts
from optin.scoring.job import Scoring
from optin.scoring.probe import read_final, states
from optin.scoring.trajectory import manifold_loss, output_loss
from optin.space.plans import Plan
from optin.storage.libraries import create, save_other
from optin.tasks import load_model, load_processor
from tests.networks import plan_of, shaken
from tests.slow import slow_but

CPU = torch.device("cpu")
RECIPE = Recipe().override(trajectory__draws=8, refit__folds=2)
SIDE = 28


class Residual(nn.Module):
    """conv, norm, activation, conv, norm, sum, activation; a projection where the shape changes."""

    def __init__(self, inner: int, outer: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(inner, outer, 3, stride, 1, bias=False), nn.BatchNorm2d(outer)
        self.conv2, self.norm2 = nn.Conv2d(outer, outer, 3, 1, 1, bias=False), nn.BatchNorm2d(outer)
        self.middle, self.last = nn.ReLU(), nn.ReLU()
        self.shortcut = nn.Identity()
        if stride > 1:
            self.shortcut = nn.Sequential(nn.Conv2d(inner, outer, 1, stride, bias=False), nn.BatchNorm2d(outer))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.middle(self.norm1(self.conv1(x)))
        return self.last(self.norm2(self.conv2(y)) + self.shortcut(x))


class Squeezed(nn.Module):
    """A depth-wise convolution and squeeze-and-excitation between two point-wise ones, as in EfficientNet."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.expand, self.norm1 = nn.Conv2d(width, 3 * width, 1), nn.BatchNorm2d(3 * width)
        self.depthwise, self.norm2 = (
            nn.Conv2d(3 * width, 3 * width, 3, 1, 1, groups=3 * width),
            nn.BatchNorm2d(3 * width),
        )
        self.squeeze, self.excite = nn.Conv2d(3 * width, width, 1), nn.Conv2d(width, 3 * width, 1)
        self.project = nn.Conv2d(3 * width, width, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = nn.functional.silu(self.norm1(self.expand(x)))
        y = nn.functional.silu(self.norm2(self.depthwise(y)))
        y = y * self.excite(nn.functional.silu(self.squeeze(y.mean((2, 3), keepdim=True)))).sigmoid()
        return x + self.project(y)


class Dense(nn.Module):
    """What comes in, with what is made of it behind: the next reads both."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.inner, self.outer = nn.Conv2d(width, 8, 1), nn.Conv2d(8, 4, 3, 1, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([x, self.outer(self.inner(x).relu())], 1)


def plain() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(8, 12, 3, padding=1), nn.ReLU(), nn.Conv2d(12, 10, 3), nn.BatchNorm2d(10), nn.ReLU(),
        nn.Flatten(), nn.Linear(10 * 12 * 12, 14), nn.ReLU(), nn.Dropout(0.5), nn.Linear(14, 5),
    )  # fmt: skip


def residual() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(),
        Residual(8, 8), Residual(8, 8), Residual(8, 12, 2), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 5),
    )  # fmt: skip


def squeezed() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, 2), nn.BatchNorm2d(6), Squeezed(6), Squeezed(6), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(6, 5),
    )  # fmt: skip


def dense() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 6, 3), Dense(6), Dense(10), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(14, 5)
    )


class Pyramid(nn.Module):
    """Maps of two sizes meet again behind attention: values flow past every module."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.down = nn.Conv2d(3, 8, 4, 4), nn.Conv2d(8, 8, 2, 2)
        self.expand, self.contract = nn.Linear(8, 12), nn.Linear(12, 8)
        self.mix, self.head = nn.Conv2d(16, 10, 3, 1, 1), nn.Conv2d(10, 5, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        fine = self.stem(x)
        coarse = self.down(fine)
        tokens = coarse.flatten(2).transpose(1, 2)
        tokens = tokens + self.contract(self.expand(tokens).relu())
        seen = nn.functional.scaled_dot_product_attention(tokens, tokens, tokens)
        coarse = nn.functional.interpolate(seen.transpose(1, 2).reshape(coarse.shape), size=fine.shape[2:])
        return self.head(self.mix(torch.cat([fine, coarse], 1)).relu()).mean((2, 3))


NETWORKS = {"plain": plain, "residual": residual, "squeezed": squeezed, "dense": dense, "pyramid": Pyramid}


@pytest.fixture(params=NETWORKS)
def network(request) -> nn.Module:
    torch.manual_seed(0)
    model = NETWORKS[request.param]()
    generator = torch.Generator().manual_seed(1)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean = 0.3 * torch.randn(module.num_features, generator=generator)
            module.running_var = 0.5 + torch.rand(module.num_features, generator=generator)
            nn.init.normal_(module.bias, std=0.3, generator=generator)
    return model.eval()


def images(model: nn.Module, batch: int = 4, seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {image_input(model): torch.randn(batch, 3, SIDE, SIDE, generator=generator)}


def some(model: nn.Module, seed: int = 0) -> Plan:
    space, generator = describe(model), torch.Generator().manual_seed(seed)
    keep = {}
    for group in space:
        count = int(torch.randint(group.min_keep, group.size, (1,), generator=generator))
        keep[group.name] = tuple(sorted(torch.randperm(group.size, generator=generator)[:count].tolist()))
    return plan_of(model, keep, SIDE)


def counted(model: nn.Module, side: int = SIDE, width: int | None = None) -> int:
    # What torch counts as nothing on a CPU, it counts in this form.
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        model.requires_grad_(False)(**example_inputs(model, side, width=width))
    return counter.get_total_flops() // 2


@torch.inference_mode()
def test_shrunk_equals_gated_and_macs_equal_an_independent_counter(network):
    batch, plan, space = images(network), some(network), describe(network)
    assert plan.dense.macs == counted(network)
    with gated(network, space, masks(network, plan)):
        expected = network(**batch)
    assert not torch.allclose(expected, network(**batch), atol=1e-3)
    shrink(network, space, plan)
    torch.testing.assert_close(network(**batch), expected, atol=1e-5, rtol=1e-5)
    assert plan.pruned.macs == counted(network)
    assert plan.pruned.parameters == sum(parameter.numel() for parameter in network.parameters())
    assert describe(network).sizes == plan.kept
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            assert module.weight.shape[:2] == (module.out_channels, module.in_channels // module.groups)


def test_exact_scores_equal_removals(network):
    batch, space = images(network), describe(network)
    group = space.groups[0]
    recipe = RECIPE.override(trajectory__draws=1)
    parts = exact_parts(
        Scoring(network, space, Batches.of([batch], CPU), recipe),
        {group.name: [0, 2]} | {other.name: [] for other in space.groups[1:]},
    )
    for place, unit in enumerate((0, 2)):
        mask = torch.ones(group.size)
        mask[unit] = 0
        with torch.inference_mode():
            reference = network(**batch)
            with gated(network, space, {group.name: mask}):
                removed = network(**batch)
        log_p, log_q = (reference / 4).log_softmax(-1), (removed / 4).log_softmax(-1)
        expected = 16 * (log_p.exp() * (log_p - log_q)).sum(-1).mean()
        assert float(parts["output"][group.name][place]) == pytest.approx(float(expected), rel=1e-3, abs=1e-7)


def test_compensation_brings_the_pruned_network_closer(network):
    calibration = [images(network, 16, seed) for seed in range(4)]
    pruned, space, plan = copy.deepcopy(network), describe(network), some(network)
    shrink(pruned, space, plan)

    @torch.inference_mode()
    def distance() -> float:
        return sum(float((network(**x) - pruned(**x)).square().mean()) for x in calibration)

    before = distance()
    compensate(Job(network, space, Batches.of(calibration, CPU), RECIPE), pruned, plan.keep)
    assert distance() < 0.7 * before


def test_the_whole_job_stays_within_every_budget(network):
    calibration = [images(network, 8, seed) for seed in range(3)]
    scores = optin.score(network, calibration, recipe=RECIPE)
    for budget in ("90%", "70%", "50%"):
        result = optin.apply(network, optin.plan(network, scores, budget, recipe=RECIPE), calibration)
        assert result.plan.pruned.macs <= float(budget[:-1]) / 100 * result.plan.dense.macs
        assert counted(result.model) == result.plan.pruned.macs


def test_residual_channels_are_one_group():
    space = describe(residual().eval())
    stream = space["0"]
    assert {gate.module for gate in stream.gates} == {"3.conv1", "4.conv1", "5.conv1", "5.shortcut.0"}
    assert {cut.parameter for cut in stream.cuts if cut.dim == 0 and cut.parameter.endswith("conv2.weight")} == {
        "3.conv2.weight",
        "4.conv2.weight",
    }
    repaired = space["5.conv1"].gates[0]
    assert repaired.total.module == "5.last" and repaired.scale == "5.norm2"


def test_flattened_features_go_with_their_channel():
    gate = describe(plain().eval())["6"].gates[0]
    assert (gate.module, gate.block) == ("10", 144)


def test_concatenated_channels_are_read_one_behind_the_other():
    space = describe(dense().eval())
    assert space.sizes == {"0": 6, "1.inner": 8, "1.outer": 4, "2.inner": 8, "2.outer": 4}
    assert {gate.module: gate.start for gate in space["1.outer"].gates} == {"2.inner": 6, "5": 6}
    assert space["2.outer"].gates[0].start == 10


class Branching(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(x) if x.sum() > 0 else x


def test_what_cannot_be_understood_is_refused_by_name():
    shared = nn.Conv2d(3, 3, 3, padding=1)
    cases = [
        (
            nn.Sequential(shared, nn.ReLU(), shared, nn.Flatten(), nn.Linear(3072, 3)),
            "'0.weight' has several names",
        ),
        (nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 3, groups=2), nn.Flatten(), nn.Linear(7200, 3)), "'1'"),
        (nn.Sequential(nn.Conv2d(3, 8, 1), nn.GroupNorm(2, 8), nn.Conv2d(8, 4, 1)), "normalised in groups in '1'"),
        (Branching(), "no map reads what another makes"),
        (nn.Linear(3, 4), "nothing says what Linear takes"),
    ]
    for model, message in cases:
        with pytest.raises(ArchitectureError, match=message):
            describe(model.eval())


def of_transformers(family: str) -> nn.Module:
    import transformers

    sizes = {"hidden_sizes": [8, 12, 16, 20], "depths": [1, 2, 1, 1], "num_labels": 5}
    swin = transformers.SwinConfig(
        image_size=64, embed_dim=12, depths=[1, 1, 1, 1], num_heads=[1, 2, 2, 2], window_size=2,
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )  # fmt: skip
    widths = {"feature_size": 32, "mask_feature_size": 32, "hidden_dim": 32, "num_queries": 5, "num_labels": 5}
    layers = {"encoder_layers": 1, "decoder_layers": 2, "encoder_feedforward_dim": 24, "dim_feedforward": 24}
    configs = {
        "ResNet": {"embedding_size": 8, "layer_type": "basic", **sizes},
        "ConvNext": sizes,
        "MobileNetV2": {"depth_multiplier": 0.35, "num_labels": 5},
        "EfficientNet": {"width_coefficient": 0.25, "depth_coefficient": 0.1, "num_labels": 5, "hidden_dim": 320},
        "Segformer": {**sizes, "num_attention_heads": [1, 2, 2, 2], "decoder_hidden_size": 16},
        "UperNet": {"backbone_config": swin, "hidden_size": 16, "pool_scales": [1, 2], "num_labels": 5},
        "Mask2Former": {"backbone_config": swin, **widths, **layers, "num_attention_heads": 2},
    }
    config = getattr(transformers, f"{family}Config")(**configs[family])
    head = {"Segformer": "SemanticSegmentation", "UperNet": "SemanticSegmentation"}.get(family, "ImageClassification")
    name = f"{family}For{'UniversalSegmentation' if family == 'Mask2Former' else head}"
    torch.manual_seed(0)
    return shaken(getattr(transformers, name)(config))


FAMILIES = ("ResNet", "ConvNext", "MobileNetV2", "EfficientNet", "Segformer", "UperNet", "Mask2Former")


@pytest.mark.parametrize("family", slow_but(["ResNet", "ConvNext", "Segformer"], FAMILIES))
@torch.inference_mode()
def test_networks_of_transformers(family, tmp_path):
    model = of_transformers(family)
    batch = {"pixel_values": torch.randn(2, 3, 64, 64)}
    space = describe(model)
    assert any(group.kind == "head" for group in space) == (family in ("Segformer", "UperNet", "Mask2Former"))
    keep = {group.name: tuple(range(0, group.size, 2)) for group in space}
    plan = plan_of(model, keep, 64)
    dense, pruned = plan.dense, plan.pruned
    assert dense.macs == counted(model, 64)
    with gated(model, space, masks(model, plan)):
        expected = answers(model(**batch))
    assert not torch.allclose(expected, answers(model(**batch)), atol=1e-4)
    result = optin.apply(model, plan)
    torch.testing.assert_close(answers(result.model(**batch)), expected, atol=1e-4, rtol=1e-4)
    assert pruned.macs == counted(result.model, 64)
    result.save(tmp_path / "small")
    loaded = answers(optin.load(tmp_path / "small")(**batch))
    torch.testing.assert_close(loaded, answers(result.model(**batch)), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("family", slow_but(["Segformer"], ["Segformer", "UperNet", "Mask2Former"]))
def test_segmentation_networks_through_the_whole_job(family, tmp_path):
    model = of_transformers(family)
    calibration = [{"pixel_values": torch.randn(4, 3, 64, 96)} for _ in range(2)]
    recipe = RECIPE.override(trajectory__draws=4)
    optin.save_scores(optin.score(model, calibration, recipe=recipe), tmp_path / "scores")
    plan = optin.plan(model, optin.load_scores(tmp_path / "scores"), "80%", recipe=recipe)
    plan.save(tmp_path / "plan.json")
    assert Plan.load(tmp_path / "plan.json") == plan and plan.size == "64 x 96"
    assert plan.dense.macs == counted(model, 64, 96) and plan.pruned.macs <= 0.8 * plan.dense.macs

    @torch.inference_mode()
    def distance(small: nn.Module) -> float:
        return sum(float((answers(model(**x)) - answers(small(**x))).square().mean()) for x in calibration)

    cut = optin.apply(model, plan).model
    assert counted(cut, 64, 96) == plan.pruned.macs
    assert distance(optin.apply(model, plan, calibration, recipe=recipe).model) < distance(cut)


@pytest.mark.slow
def test_masks_that_are_predicted_behind_every_block_are_no_head():
    model = of_transformers("Mask2Former")
    small = optin.apply(model, some_of(model)).model
    assert not head_maps(model, small, describe(model), {"pixel_values": torch.randn(2, 3, 64, 64)})


@torch.inference_mode()
@pytest.mark.parametrize("family", slow_but(["Segformer"], ["Segformer", "Mask2Former"]))
def test_exact_scores_of_heads_and_neurons_equal_removals(family):
    """Where keys are fewer than queries, where attention samples, where states have the examples second."""
    model = of_transformers(family)
    batch, space = {"pixel_values": torch.randn(3, 3, 64, 64)}, describe(model)
    options = RECIPE.trajectory
    for group in (group for group in space.groups if group.kind != "channel"):
        parts = Reference.of(model, space, batch, options, 0).losses(group, [0, group.size - 1])
        for place, unit in enumerate((0, group.size - 1)):
            mask = torch.ones(group.size)
            mask[unit] = 0
            blocks: list = []
            reference = Reference.of(model, space, batch, options, 0)
            with gated(model, space, {group.name: mask}), recorded_blocks(model, space.blocks, blocks):
                result = model(**batch)
            after = list(zip(states(space, blocks), reference.maps, strict=True))[group.layer :]
            manifold = sum(float(manifold_loss(reference.positions.manifold(state), phi)) for state, phi in after)
            output = read_final(model, result, reference.positions, options)
            final = float(output_loss(output, reference.output, options.temperature))
            assert float(parts[0][place]) == pytest.approx(manifold, rel=1e-2, abs=1e-7)
            assert float(parts[1][place]) == pytest.approx(final, rel=1e-2, abs=1e-7)


def some_of(model: nn.Module) -> Plan:
    """Half of every group."""
    return plan_of(model, {group.name: range(0, group.size, 2) for group in describe(model)}, 64)


TIMM = ("resnet18", "mobilenetv2_035", "efficientnet_lite0", "vgg11_bn", "convnext_atto")
TORCHVISION = ("resnet18", "mobilenet_v2", "efficientnet_b0", "vgg11_bn", "convnext_tiny")


@pytest.mark.parametrize(
    "name",
    slow_but(
        ["timm:mobilenetv2_035", "torchvision:mobilenet_v2"],
        [f"timm:{name}" for name in TIMM] + [f"torchvision:{name}" for name in TORCHVISION],
    ),
)
@torch.inference_mode()
def test_networks_of_timm_and_torchvision(name):
    model = create(name, num_classes=5)
    batch = {"x": torch.randn(2, 3, 64, 64)}
    space, plan = describe(model), some_of(model)
    with gated(model, space, masks(model, plan)):
        expected = model(**batch)
    shrink(model, space, plan)
    torch.testing.assert_close(model(**batch), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", ["vgg11_bn", "resnet20"])
def test_networks_of_our_own_are_saved_and_loaded(name, tmp_path):
    model = create(f"optin:{name}", classes=5)
    small = optin.apply(model, some_of(model))
    small.save(tmp_path / "small")
    loaded = optin.load(tmp_path / "small")
    batch = {"input": torch.randn(2, 3, 32, 32)}
    with torch.inference_mode():
        assert torch.equal(loaded(**batch), small.model(**batch))


def test_a_folder_in_half_precision_is_loaded_in_any(tmp_path):
    save_other(create("optin:resnet20", classes=5).half(), tmp_path / "dense")
    found = [load_model(str(tmp_path / "dense"), **options) for options in ({}, {"dtype": torch.float32})]
    assert [network.classifier.weight.dtype for network in found] == [torch.float16, torch.float32]


def test_a_network_of_torchvision_is_saved_and_loaded(tmp_path):
    model = create("torchvision:resnet18", num_classes=5)
    small = optin.apply(model, some_of(model))
    small.save(tmp_path / "small")
    loaded = load_model(str(tmp_path / "small"))
    batch = {"x": torch.randn(2, 3, 64, 64)}
    with torch.inference_mode():
        assert torch.equal(loaded(**batch), small.model(**batch))


def test_a_module_of_ones_own_is_loaded_into_the_dense_one(network, tmp_path):
    small = optin.apply(network, some(network))
    small.save(tmp_path / "small")
    with pytest.raises(CheckpointError, match="into=network"):
        optin.load(tmp_path / "small")
    loaded = optin.load(tmp_path / "small", into=copy.deepcopy(network))
    with torch.inference_mode():
        assert torch.equal(loaded(**images(network)), small.model(**images(network)))


@pytest.mark.parametrize("source", ["torchvision:resnet17", "optin:resnet57", "optin:resnet56"])
def test_sources_that_do_not_exist_are_refused(source):
    with pytest.raises(InputError, match="resnet"):
        load_model(source)


@pytest.mark.slow
def test_the_job_from_a_folder(tmp_path, monkeypatch, capsys):
    """From a folder and a folder of images to a folder; then every command that looks at it."""
    generator = np.random.default_rng(0)
    for part in ("train", "val"):
        for label, name in enumerate(("dark", "bright")):
            (tmp_path / "data" / part / name).mkdir(parents=True)
            for index in range(8):
                pixels = generator.integers(0, 60, (SIDE, SIDE, 3)) + 190 * label
                Image.fromarray(pixels.astype(np.uint8)).save(tmp_path / "data" / part / name / f"{index}.png")
    dense, small = str(tmp_path / "dense"), str(tmp_path / "small")
    (tmp_path / "dense").mkdir()
    save_other(create("optin:resnet20", classes=2), tmp_path / "dense")
    with pytest.raises(InputError, match=r"preprocessor_config\.json"):
        load_processor(dense)
    BitImageProcessorPil(do_resize=False, do_center_crop=False).save_pretrained(dense)
    data = ["--task", "image-classification", "--data", str(tmp_path / "data")]
    for command in (
        ["inspect", dense],
        ["prune", dense, "--budget", "60%", "--examples", "16", "--out", small, *data, "--preset", "beta"],
        ["inspect", small],
        ["evaluate", small, "--reference", dense, *data],
        ["bench", dense, small, "--batch", "1"],
        ["draw", small],
    ):
        monkeypatch.setattr(sys, "argv", ["optin", *command, "--json"])
        with pytest.raises(SystemExit) as end:
            cli.main()
        assert not end.value.code, capsys.readouterr().err
    report = json.loads((tmp_path / "small" / "report.json").read_text())
    assert report["macs"]["pruned"] <= 0.6 * report["macs"]["dense"]
    assert "library_name: pytorch" in (tmp_path / "small" / "README.md").read_text()


def test_values_may_flow_past_modules():
    space = describe(Pyramid().eval())
    assert not space.chained and space.blocks == ("down", "contract", "mix", "head")
    assert space.sizes == {"stem": 8, "expand": 12, "mix": 10}
