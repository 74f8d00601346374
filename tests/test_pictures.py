from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from PIL import Image

import optin
from optin.app.pictures import _block, _kind, draw, draw_tokens, merged_groups
from optin.describing import describe
from optin.errors import InputError
from optin.recipe import Recipe
from optin.tasks import Images
from tests.networks import build, inputs, plan_of
from tests.test_images import processor

RECIPE = Recipe().override(trajectory__rows=12, trajectory__draws=4, tokens__merge="search", tokens__examples=4)


@pytest.fixture
def small(tmp_path):
    """A pruned network whose tokens merge, on images with many patches alike."""
    model = build("vit")
    batches = [inputs(model, seed=seed) for seed in range(2)]
    for batch in batches:
        batch["pixel_values"] = batch["pixel_values"][..., ::8, ::8].repeat_interleave(8, -1).repeat_interleave(8, -2)
    result = optin.prune(model, batches, "60%", recipe=RECIPE)
    result.save(tmp_path / "small", processor())
    return tmp_path / "small", result


def test_pictures_beside_the_report(small):
    folder, _ = small
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 20, 3), dtype=np.uint8))
    written = draw(folder, folder, Images(lambda index: picture, 3, None), count=2)
    assert [path.name for path in written] == ["kept.svg", "tokens-0.png", "tokens-1.png"]
    first = (folder / "kept.svg").read_bytes()
    assert b"<svg" in first
    draw(folder, folder)
    assert (folder / "kept.svg").read_bytes() == first
    with Image.open(written[1]) as drawn:
        assert drawn.size[0] > 100


def test_groups_are_those_of_the_schedule(small):
    _, result = small
    groups = merged_groups(result.model, inputs(result.model, batch=1))
    assert groups.shape == (4, 4)
    assert len(groups.unique()) == 16 - sum(result.plan.tokens)
    with pytest.raises(InputError, match="no tokens merge"):
        merged_groups(build("vit"), inputs(result.model, batch=1))


def test_merged_patches_share_a_colour(tmp_path):
    image = Image.fromarray(np.arange(48, dtype=np.uint8).reshape(4, 4, 3))
    path = draw_tokens(image, torch.tensor([[0, 0], [0, 1]]), tmp_path / "tokens.png")
    with Image.open(path) as drawn:
        assert drawn.size == (800, 440)


def test_of_tokens_that_do_not_merge_nothing_is_drawn(tmp_path):
    model = build("vit")
    result = optin.prune(model, [inputs(model, seed=seed) for seed in range(2)], "99%", recipe=RECIPE)
    assert result.plan.tokens and not any(result.plan.tokens)
    result.save(tmp_path / "small", processor())
    picture = Image.fromarray(np.zeros((20, 20, 3), dtype=np.uint8))
    written = draw(tmp_path / "small", tmp_path / "small", Images(lambda index: picture, 3, None), count=2)
    assert [path.name for path in written] == ["kept.svg"]
    with pytest.raises(InputError, match="no tokens merge"):
        merged_groups(optin.load(tmp_path / "small"), inputs(model, batch=1))


def test_rows_are_named_by_their_blocks(bert):
    space = describe(bert)
    plan = plan_of(bert, {group.name: range(group.size) for group in space})
    plan = dataclasses.replace(plan, description=space)
    assert [_kind(plan, name) for name in plan.keep] == ["heads", "neurons"] * 3 + ["neurons"]
    assert [_block(name) for name in plan.keep] == ["0", "0", "1", "1", "2", "2", "bert.pooler.dense"]
    bare = dataclasses.replace(plan, description=None)
    assert _kind(bare, "layers.3.neurons") == "neurons" and _block("stages.1.blocks.0.fc1") == "1.0"
