from __future__ import annotations

import pytest
import torch

from optin.arch import describe
from optin.modules import hidden_of, patched_forward
from optin.replay import Recorder, Trail, recorded_blocks, resumed_at, run_block, standing_in
from optin.trajectory import answers
from optin.units import Tap
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
            before = standing_in(before, hidden_of(outputs[position - 1]))
        alone = run_block(model, blocks, batch, before)
        assert torch.equal(hidden_of(alone), hidden_of(outputs[position]))
        with resumed_at(model, blocks, before):
            assert torch.equal(answers(model(**batch)), expected)
    assert torch.equal(answers(model(**batch)), expected)


@torch.inference_mode()
def test_a_block_can_stop_half_way(bert):
    tap = Tap("bert.encoder.layer.1.attention.output.LayerNorm", "input")
    recorder, late = Recorder([tap]), Recorder([Tap("bert.encoder.layer.1.intermediate", "input")])
    with recorder.recording(bert), late.recording(bert):
        blocks = describe(bert).blocks
        assert run_block(bert, blocks, tokens(bert), [torch.randn(4, 9, 24)], until=tap) is None
    assert len(recorder.calls[tap]) == 1
    assert not next(iter(late.calls.values()))


@torch.inference_mode()
def test_the_trail_names_what_was_done_before_a_consumer(bert):
    block = "bert.encoder.layer.0"
    consumers = [f"{block}.attention.output.dense", f"{block}.output.dense"]
    trail = Trail(block, consumers)
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
