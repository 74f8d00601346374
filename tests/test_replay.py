from __future__ import annotations

import pytest
import torch
from torch import nn

import optin
from optin.describing import describe
from optin.errors import ArchitectureError
from optin.recipe import Recipe
from optin.running.modules import patched_forward
from optin.running.outputs import answers
from optin.running.replay import (
    FinishedParts,
    Recorder,
    check_replay,
    recorded_blocks,
    resumed_at,
    run_block,
    with_last_state,
)
from optin.running.tensors import hidden_of
from optin.space.units import Tap
from tests.networks import HEADS_OF, build, inputs, tokens


@pytest.mark.parametrize("architecture", sorted(HEADS_OF))
@torch.inference_mode()
def test_a_block_run_alone_gives_what_it_gave(architecture):
    model = build(architecture)
    space, batch = describe(model), inputs(model)
    blocks, outputs = space.blocks, []
    with recorded_blocks(model, blocks, outputs):
        expected = answers(model(**batch))
    assert len(outputs) == len(blocks)
    for position in range(len(blocks)):
        before = outputs[:position]
        if space.chained:
            before = with_last_state(before, hidden_of(outputs[position - 1]))
        alone = run_block(model, blocks, batch, before)
        assert torch.equal(hidden_of(alone), hidden_of(outputs[position]))
        with resumed_at(model, blocks, before):
            assert torch.equal(answers(model(**batch)), expected)
    assert torch.equal(answers(model(**batch)), expected)


@torch.inference_mode()
def test_a_block_can_stop_half_way(bert):
    tap = Tap("bert.encoder.layer.1.attention.output.LayerNorm", "input")
    recorder, late = Recorder([tap]), Recorder([Tap("bert.encoder.layer.1.intermediate", "input")])
    blocks = describe(bert).blocks
    with recorder.recording(bert), late.recording(bert):
        assert run_block(bert, blocks, tokens(bert), [torch.randn(4, 9, 24)], until=tap) is None
    assert len(recorder.calls[tap]) == 1
    assert not next(iter(late.calls.values()))


@torch.inference_mode()
def test_the_trail_names_what_was_done_before_a_consumer(bert):
    block = "bert.encoder.layer.0"
    consumers = [f"{block}.attention.output.dense", f"{block}.output.dense"]
    trail = FinishedParts(block, consumers)
    with trail.recording(bert):
        bert(**tokens(bert))
    assert list(trail.finished[consumers[0]]) == [f"{block}.attention.self"]
    assert list(trail.finished[consumers[1]]) == [f"{block}.attention", f"{block}.intermediate"]


def test_a_patch_comes_off_even_after_an_error(bert):
    layer = bert.bert.encoder.layer[0]
    with pytest.raises(ZeroDivisionError), patched_forward(layer, lambda *args: 1 / 0):
        layer()
    assert "forward" not in vars(layer)
    own = layer.forward
    layer.forward = own
    with patched_forward(layer, lambda *args: 3):
        assert layer() == 3
    assert vars(layer)["forward"] is own


class InPlace(nn.Module):
    """Activations, sums and products that work in place, on what blocks and consumers made and read."""

    def __init__(self, inplace: bool) -> None:
        super().__init__()
        self.inplace = inplace
        self.stem, self.act = nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(inplace)
        self.a, self.act_a = nn.Conv2d(8, 12, 3, padding=1), nn.Hardswish(inplace)
        self.b = nn.Conv2d(12, 8, 3, padding=1)
        self.squeeze, self.act_s, self.excite = nn.Conv2d(8, 6, 1), nn.ReLU(inplace), nn.Conv2d(6, 8, 1)
        self.c, self.act_c, self.head = nn.Conv2d(8, 16, 1), nn.SiLU(inplace), nn.Linear(16, 5)

    def forward(self, x):
        x = self.act(self.stem(x))
        y = self.b(self.act_a(self.a(x)))
        weight = self.excite(self.act_s(self.squeeze(y.mean((2, 3), keepdim=True)))).sigmoid()
        if self.inplace:
            y *= weight
            y += x
        else:
            y = y * weight + x
        return self.head(self.act_c(self.c(y)).mean((2, 3)))


@pytest.mark.parametrize("criterion", ["compensated", "sketch", "exact"])
def test_operations_in_place_change_nothing(criterion):
    """Neither the plan nor the refit of a network that computes the same without them."""
    models = [InPlace(inplace).eval() for inplace in (False, True)]
    models[1].load_state_dict(models[0].state_dict())
    batches = [{"x": torch.randn(4, 3, 16, 16)} for _ in range(6)]
    torch.testing.assert_close(models[0](**batches[0]), models[1](**batches[0]))
    recipe = Recipe(criterion=criterion)
    plain, inplace = (optin.prune(model, batches, "70%", recipe=recipe) for model in models)
    assert plain.plan.keep == inplace.plan.keep
    for name, value in plain.model.state_dict().items():
        torch.testing.assert_close(inplace.model.state_dict()[name], value, atol=1e-5, rtol=1e-4)


class Skips(nn.Module):
    """A block reads more than what the one before it returned, which nothing says."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(6, 6) for _ in range(3))

    def forward(self, x):
        first = self.layers[0](x)
        second = self.layers[1](first.relu())
        return self.layers[2](second.relu() + first)


def test_a_network_that_does_not_go_on_from_its_blocks_is_refused():
    model, blocks = Skips(), [f"layers.{index}" for index in range(3)]
    batch = {"x": torch.randn(4, 6)}
    with torch.inference_mode():
        with pytest.raises(ArchitectureError, match="cannot go on from behind 'layers.1'"):
            check_replay(model, blocks, batch, chained=True)
        check_replay(model, blocks, batch, chained=False)
        with pytest.raises(ArchitectureError, match="run 3 times, not 4"):
            check_replay(model, [*blocks, "layers.1"], batch, chained=True)


class Between(nn.Module):
    """Between two blocks modules of other widths work on what the network returns elsewhere."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.deep = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 32, 3, padding=1)
        self.side, self.up, self.out = nn.Conv2d(32, 24, 1), nn.Conv2d(56, 12, 3, padding=1), nn.Conv2d(12, 4, 1)

    def forward(self, x):
        deep = self.deep(self.down(x).relu()).relu()
        return self.out(self.up(torch.cat([self.side(deep).relu(), deep], 1)).relu())


def test_modules_between_blocks_work_on_their_own_shapes():
    model, batches = Between().eval(), [{"x": torch.randn(4, 3, 32, 32)} for _ in range(3)]
    for criterion in ("compensated", "exact"):
        result = optin.prune(model, batches, "70%", recipe=Recipe(criterion=criterion))
        assert result.plan.pruned.macs <= 0.7 * result.plan.dense.macs
