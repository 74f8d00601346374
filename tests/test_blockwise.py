"""Scoring block by block gives what scoring at once gives, in the memory of one block."""

from __future__ import annotations

import weakref

import pytest
import torch

import optin
from optin.describing import describe
from optin.errors import CheckpointError, InputError
from optin.recipe import Recipe
from optin.running.store import Store
from optin.scoring import blockwise
from optin.scoring.blockwise import by_blocks, not_by_blocks
from optin.scoring.compensated import moment_bytes
from optin.scoring.moments import Moments
from optin.scoring.resume import forget
from optin.storage.networks import resnet
from tests.networks import HEADS_OF, build, inputs
from tests.slow import slow_but
from tests.zoo import NETWORKS, built

RECIPE = Recipe().override(trajectory__rows=12, trajectory__draws=40)
BLOCKS = RECIPE.override(offload=True)


def network(name):
    """A network, and three batches of it of several sizes: 28 draws, those of the second pass two at once."""
    if name not in HEADS_OF:
        model = built(name)
        whole = [NETWORKS[name].inputs() for _ in range(4)]
        cat = {key: torch.cat([batch[key] for batch in whole]) for key in whole[0]}
        return model, [
            {key: value[part] for key, value in cat.items()} for part in (slice(5), slice(5, 11), slice(11, 14))
        ]
    model = build(name)
    return model, [inputs(model, batch=size, seed=size) for size in (5, 6, 3)]


def assert_same(got, expected, batches):
    for name, curve in expected.curves.items():
        largest = float(curve.cost.max())
        torch.testing.assert_close(got.curves[name].cost, curve.cost, rtol=0, atol=1e-4 * largest)
        clear = curve.cost.diff() > 1e-3 * largest  # units that cost alike may change places
        assert torch.equal(got.curves[name].order[clear], curve.order[clear])
    assert list(got.curves) == list(expected.curves)
    for index in range(len(batches)):
        for name in expected.weights.consumers:
            for value, same in zip(got.weights(index, name), expected.weights(index, name), strict=True):
                torch.testing.assert_close(value, same, rtol=1e-4, atol=1e-5)


# The classifier of BERT has a head with neurons; Llama's keys are grouped.
KINDS = ("bert", "vit", "llama", "timm-swin", "own:torch-transformer")


@pytest.mark.parametrize("name", slow_but(("bert", "llama"), KINDS))
def test_blocks_one_by_one_give_the_scores_of_all_at_once(name):
    model, batches = network(name)
    expected = optin.score(model, batches, recipe=RECIPE)
    assert_same(optin.score(model, batches, recipe=BLOCKS), expected, batches)


@pytest.mark.parametrize(
    "changes",
    [
        {"criterion": "sketch"},
        {"trajectory__embeddings": "last", "trajectory__coupling": 0.5},
        {"exclude": "bert.encoder.layer.0,bert.encoder.layer.2,bert.pooler"},
    ],
)
def test_other_options(changes):
    """The last embeddings alone, the first block and the head without groups, one in the middle alone."""
    model, batches = network("bert")
    expected = optin.score(model, batches, recipe=RECIPE.override(**changes))
    assert_same(optin.score(model, batches, recipe=BLOCKS.override(**changes)), expected, batches)


def test_what_waits_on_disk_is_the_same(monkeypatch):
    model, batches = network("bert")
    expected = optin.score(model, batches, recipe=RECIPE)
    monkeypatch.setattr(blockwise, "Store", lambda: Store(0))
    assert_same(optin.score(model, batches, recipe=BLOCKS), expected, batches)


def most_bytes(monkeypatch, model, batches, recipe):
    """The bytes of all moments that are there at once, at most."""
    alive, most, make = weakref.WeakSet(), [0], Moments.__init__

    def counted(self, *arguments):
        make(self, *arguments)
        alive.add(self)
        kept = [value for one in alive for value in vars(one).values() if isinstance(value, torch.Tensor)]
        most[0] = max(most[0], sum(value.nbytes for value in kept))

    with monkeypatch.context() as patch:
        patch.setattr(Moments, "__init__", counted)
        optin.score(model, batches, recipe=recipe)
    return most[0]


def test_the_moments_of_one_block_are_in_memory(monkeypatch):
    model, batches = network("bert")
    space = describe(model)
    largest = max(moment_bytes(model, part) for part in by_blocks(space).values())
    rest = 3000 * len(space)  # weights of the rows that wait
    assert most_bytes(monkeypatch, model, batches, BLOCKS) <= largest + rest
    assert most_bytes(monkeypatch, model, batches, RECIPE) > 2.9 * largest


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("albert", "a block of it runs several times"),
        ("t5", "more than what the one before it returned"),
        ("resnet", "are read in . blocks"),
    ],
)
def test_what_cannot_be_taken_apart_is_refused_before_any_work(name, reason, monkeypatch):
    model, batches = (resnet(20), [torch.randn(4, 3, 32, 32)]) if name == "resnet" else network(name)
    monkeypatch.setattr(blockwise, "_by_blocks", None)
    with pytest.raises(InputError, match=f"(?s)cannot be scored block by block: .*{reason}.*Leave out 'offload'"):
        optin.score(model, batches, recipe=BLOCKS)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"recipe": BLOCKS.override(criterion="exact")}, "'exact' is not scored block by block"),
        ({"recipe": BLOCKS, "engine": "ray"}, "on this machine"),
        ({"recipe": BLOCKS.override(tokens__merge="search")}, "its tokens merge"),
    ],
)
def test_what_offload_does_not_go_with(options, said):
    model, batches = network("vit")
    with pytest.raises(InputError, match=said):
        optin.score(model, batches, **options)


@pytest.mark.parametrize("number", slow_but((61,), (10, 33, 61, 89)))
def test_finished_blocks_are_not_run_again_after_a_kill(number, tmp_path, monkeypatch):
    """Killed among the states, in the last block, in the one before it, and in the first: 28 draws a block."""
    model, batches = network("bert")
    expected, file = optin.score(model, batches, recipe=BLOCKS), tmp_path / "partial"

    def killed(items, description, total):
        for place, item in enumerate(items):
            if description == "score" and place == number:
                raise KeyboardInterrupt
            yield item

    with pytest.raises(KeyboardInterrupt):
        optin.score(model, batches, recipe=BLOCKS, resume=file, track=killed)
    assert file.exists() == (number >= 28)
    run, differentiated = [], blockwise._Walk._differentiated
    monkeypatch.setattr(
        blockwise._Walk, "_differentiated", lambda self, *place: run.append(place[0]) or differentiated(self, *place)
    )
    got = optin.score(model, batches, recipe=BLOCKS, resume=file)
    assert sorted(set(run)) == list(range(3 if number < 56 else 2 if number < 84 else 1))
    for name, curve in expected.curves.items():
        assert torch.equal(got.curves[name].order, curve.order) and torch.equal(got.curves[name].cost, curve.cost)
    assert_same(got, expected, batches)
    forget(file)
    assert not list(tmp_path.iterdir())


def test_what_was_kept_must_be_what_was_written(tmp_path):
    model, batches = network("bert")
    file = tmp_path / "partial"
    optin.score(model, batches, recipe=BLOCKS, resume=file)
    with pytest.raises(CheckpointError, match="another run"):
        optin.score(model, batches, recipe=RECIPE, resume=file)
    with pytest.raises(CheckpointError, match="another run"):
        optin.score(model, batches[:2], recipe=BLOCKS, resume=file)
    for kept in (tmp_path / "partial-blocks").iterdir():
        data = bytearray(kept.read_bytes())
        data[-1] ^= 1
        kept.write_bytes(data)
    with pytest.raises(CheckpointError, match="is damaged"):
        optin.score(model, batches, recipe=BLOCKS, resume=file)
    forget(file)
    assert not list(tmp_path.iterdir())


def test_a_chain_of_blocks_can_be_taken_apart():
    model = build("bert")
    assert not_by_blocks(model, describe(model), RECIPE) is None
