from __future__ import annotations

import dataclasses

import pytest
import torch
from scipy.stats import spearmanr

import optin
from optin.describing import describe
from optin.errors import CheckpointError, InputError, NumericalError
from optin.recipe import Recipe
from optin.running.batch import split
from optin.running.batches import Batches
from optin.running.gating import gated
from optin.running.job import Job
from optin.running.modules import inference_mode_of
from optin.running.outputs import read_output
from optin.running.replay import recorded_blocks
from optin.running.tensors import hidden_of
from optin.scoring.compensated import Reader, eliminate
from optin.scoring.criteria import Criterion
from optin.scoring.exact import Reference, exact_parts
from optin.scoring.job import Scoring
from optin.scoring.probe import differentiate, draw_probes, trajectory_objective
from optin.scoring.sketch import UnitTotals, balanced, part_scales
from optin.scoring.token_weights import token_weights
from optin.scoring.trajectory import Positions, draw_rows, gram, manifold_loss, output_loss, unit_rows
from optin.space.options import Trajectory
from optin.space.scores import Curve
from optin.space.units import Tap
from optin.storage.networks import resnet
from optin.support.progress import silent
from tests.networks import ATTENTION, EAGER_ONLY, HEADS, HEADS_OF, NEURONS, REPRESENTATIVE, build, inputs, tokens
from tests.slow import slow_but

CPU = torch.device("cpu")
RECIPE = Recipe().override(trajectory__rows=12, trajectory__draws=4)


def naive(model, space, batch, group, unit, options, seed):
    """Both losses of removing one unit, by one full masked forward: the definition."""
    positions = Positions(batch, options.rows, torch.Generator().manual_seed(seed))
    dense, masked = [], []
    multiplier = torch.ones(group.size)
    multiplier[unit] = 0
    with recorded_blocks(model, space.blocks, dense):
        reference = model(**batch)
    with gated(model, space, {group.name: multiplier}), recorded_blocks(model, space.blocks, masked):
        output = model(**batch)
    middle = 0.0
    body = len(space.body)  # what pools behind it is no block whose embeddings are compared
    for a, b in zip(map(hidden_of, dense[:body]), map(hidden_of, masked[:body]), strict=True):
        rows = positions.rows(a)
        middle += manifold_loss(gram(unit_rows(b, rows)), gram(unit_rows(a, rows)))
    read = [read_output(value, positions) for value in (output, reference)]
    return float(middle), float(output_loss(*read, options.temperature))


@pytest.mark.parametrize(
    ("architecture", "head"),
    slow_but(
        lambda case: case[0] in REPRESENTATIVE,
        [
            (architecture, head)
            for architecture, heads in sorted(HEADS_OF.items())
            for head in heads
            if head not in ("SequenceClassification", "MaskedLM")
        ],
    ),
)
def test_exact_resumed_and_stacked_equals_one_full_forward_per_unit(architecture, head):
    model = build(architecture, head, "eager" if architecture in EAGER_ONLY else "sdpa")
    space, batch = describe(model), inputs(model)
    with inference_mode_of(model), torch.inference_mode():
        reference = Reference.of(model, space, batch, RECIPE.trajectory, seed=3)
        for group in space:
            units = [0, group.size - 1, 1]
            middle, final = reference.losses(group, units)
            for place, unit in enumerate(units):
                expected = naive(model, space, batch, group, unit, RECIPE.trajectory, 3)
                assert float(middle[place]) == pytest.approx(expected[0], rel=1e-2, abs=1e-6)
                assert float(final[place]) == pytest.approx(expected[1], rel=1e-2, abs=2e-6)


def test_exact_compares_the_last_embeddings_alone_if_asked(bert):
    space, batch = describe(bert), inputs(bert)
    options = RECIPE.override(trajectory__embeddings="last").trajectory
    with inference_mode_of(bert), torch.inference_mode():
        everything = Reference.of(bert, space, batch, RECIPE.trajectory, seed=3)
        last = Reference.of(bert, space, batch, options, seed=3)
        for group in (group for group in space if group.layer < len(space.body)):
            (all_middle, all_final), (middle, final) = everything.losses(group, [0, 1]), last.losses(group, [0, 1])
            assert torch.equal(final, all_final)
            assert torch.equal(middle, all_middle) if group.layer == 2 else (middle < all_middle).all()


def test_exact_skips_what_it_can(bert):
    """Removing units of the last block must not run the blocks before it."""
    space, batch = describe(bert), tokens(bert)
    calls = []
    with inference_mode_of(bert), torch.inference_mode():
        reference = Reference.of(bert, space, batch, RECIPE.trajectory, seed=0)
        bert.bert.encoder.layer[1].attention.register_forward_hook(lambda *_: calls.append(1))
        bert.bert.encoder.layer[2].intermediate.dense.register_forward_hook(lambda *_: calls.append(2))
        reference.losses(space[NEURONS[2]], [0, 1])
    assert calls == []


def test_exact_resumes_after_a_kill(bert, batches, tmp_path):
    space, file = describe(bert), tmp_path / "partial"
    calibration = Batches.of(batches, CPU)
    expected = exact_parts(Scoring(bert, space, calibration, RECIPE))
    seen = []

    def killed(items, description, total):
        for item in items:
            seen.append(item)
            if len(seen) == 20:
                raise KeyboardInterrupt
            yield item

    with pytest.raises(KeyboardInterrupt):
        exact_parts(Scoring(bert, space, calibration, RECIPE, killed, file))
    steps = []

    def counted(items, description, total):
        steps.append(total)
        yield from items

    resumed = exact_parts(Scoring(bert, space, calibration, RECIPE, counted, file))
    assert steps[0] < len(space) * 8
    for part, groups in expected.items():
        for name, value in groups.items():
            assert torch.equal(resumed[part][name], value)


def test_partial_scores_of_another_run_are_refused(bert, batches, tmp_path):
    space, file = describe(bert), tmp_path / "partial"
    calibration = Batches.of(batches[:1], CPU)
    exact_parts(Scoring(bert, space, calibration, RECIPE, silent, file))
    with pytest.raises(CheckpointError, match="another run"):
        exact_parts(Scoring(bert, space, calibration, RECIPE.override(seed=1), silent, file))
    file.write_bytes(b"damaged")
    with pytest.raises(CheckpointError, match="damaged"):
        exact_parts(Scoring(bert, space, calibration, RECIPE, silent, file))


@pytest.mark.slow
@pytest.mark.parametrize(("embeddings", "first"), [("all", 0), ("last", 2)])
def test_the_sketch_converges_to_the_squared_jacobian(embeddings, first, bert, batches):
    """For one micro-batch and one choice of rows the estimate tends to || d phi / d m ||^2, computed in full."""
    space, batch = describe(bert), batches[0]
    group = space[NEURONS[1]]
    space = dataclasses.replace(space, groups=(group,))
    mask = batch["attention_mask"].bool()
    rows = draw_rows(mask, 99, torch.Generator())

    def phi(multiplier):
        blocks = []
        with gated(bert, space, {group.name: multiplier}), recorded_blocks(bert, space.body, blocks):
            bert(**batch)
        return torch.cat([gram(unit_rows(hidden_of(block), rows)).flatten() for block in blocks[first:]])

    with inference_mode_of(bert):
        jacobian = torch.autograd.functional.jacobian(phi, torch.ones(group.size))
    expected = jacobian.square().sum(0).double()
    options = Trajectory(rows=99, embeddings=embeddings)
    objective = trajectory_objective(bert, space, options, torch.Generator().manual_seed(0))
    totals = UnitTotals(space)
    for _ in range(1500):
        totals.add(differentiate(bert, space, batch, objective))
    estimate = totals.mean["manifold"][group.name]
    assert spearmanr(estimate, expected).statistic > 0.97
    assert float((estimate / expected).median()) == pytest.approx(1, abs=0.05)


def test_the_sketch_ranks_like_exact(bert, batches):
    calibration, space = Batches.of(batches, CPU), describe(bert)
    recipe = RECIPE.override(trajectory__draws=256)
    totals = UnitTotals(space)
    for _, probe in draw_probes(Job(bert, space, calibration, recipe)):
        totals.add(probe)
    sketch = balanced(totals.mean, 1.0)
    exact = balanced(exact_parts(Scoring(bert, space, calibration, recipe)), 1.0)
    for names in (ATTENTION, NEURONS):
        ours, theirs = (torch.cat([each[name] for name in names]) for each in (sketch, exact))
        assert spearmanr(ours, theirs).statistic > 0.8


def test_parts_are_balanced():
    parts = {"manifold": {"a": torch.tensor([1.0, 3.0])}, "output": {"a": torch.tensor([30.0, 10.0])}}
    assert balanced(parts, 1.0)["a"].tolist() == pytest.approx([0.5 + 1.5, 1.5 + 0.5])
    assert balanced(parts, 0.0)["a"].tolist() == pytest.approx([1.5, 0.5])
    parts["manifold"]["a"].zero_()
    assert part_scales(parts, 1.0)["manifold"] == 0.0


def test_token_weights(bert, batches):
    """Mean 1 over tokens that count, plus the floor; nothing at padding."""
    space = describe(bert)
    _, probe = next(draw_probes(Job(bert, space, Batches.of(batches, CPU), RECIPE.override(trajectory__draws=8))))
    (weights,) = token_weights(probe, "bert.encoder.layer.1.output.dense", 0.25, 1.0)
    mask = probe.masks["bert.encoder.layer.1.output.dense"]
    assert float(weights[mask].mean()) == pytest.approx(1.25, rel=1e-4)
    assert float(weights[~mask].abs().sum()) == 0
    # In the last block of a classifier only the first token matters to the output.
    (last,) = token_weights(probe, "bert.encoder.layer.2.output.dense", 0.0, 0.0)
    assert float(last[:, 1:].abs().max()) < 1e-6 * float(last[:, 0].max())


def test_gradients_of_a_unit_follow_from_those_of_its_consumer(bert, batches):
    """d<v, phi> / dm_u = sum over tokens of x_u (W_u . g)."""
    space = describe(bert)
    _, probe = next(draw_probes(Job(bert, space, Batches.of(batches, CPU), RECIPE.override(trajectory__draws=8))))
    for group in space:
        (gate,) = group.gates
        weight = bert.get_parameter(f"{gate.module}.weight")
        for part in ("manifold", "output"):
            (g,), (x,) = probe.outputs[part][gate.module], probe.inputs[gate.module]
            expected = (x * (g @ weight)).flatten(0, -2).sum(0).view(group.size, -1).sum(1)
            torch.testing.assert_close(probe.units[part][group.name], expected, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("block", [1, 3])
def test_elimination_costs_what_the_best_refit_leaves(block):
    """Against least squares solved anew for every prefix of the order."""
    generator = torch.Generator().manual_seed(block)
    x = torch.randn(200, 12, dtype=torch.float64, generator=generator)
    x[:, 3] = x[:, 4] + 0.1 * x[:, 3]
    weight = torch.randn(5, 12, dtype=torch.float64, generator=generator)
    root = torch.randn(5, 5, dtype=torch.float64, generator=generator)
    ones = torch.cat([x, torch.ones(200, 1, dtype=torch.float64)], 1)
    second = ones.mT @ ones / 200
    reader = Reader.of(weight, second, root.mT @ root, block)
    for unit, alone in enumerate(reader.alone):
        own = slice(unit * block, (unit + 1) * block)
        lost = (x[:, own] @ weight[:, own].mT @ root.mT).square().sum(1).mean()
        assert float(alone) == pytest.approx(float(lost))
    order, steps = eliminate([reader], torch.ones(12 // block))
    assert sorted(order.tolist()) == list(range(12 // block))
    for removed in range(1, 12 // block):
        gone = [unit * block + i for unit in order[:removed].tolist() for i in range(block)]
        stay = [i for i in range(13) if i not in gone]
        refit = torch.linalg.lstsq(ones[:, stay], x @ weight.mT).solution
        residual = (x @ weight.mT - ones[:, stay] @ refit) @ root.mT
        assert float(steps[:removed].sum()) == pytest.approx(
            float(residual.square().sum(1).mean()), rel=1e-6, abs=1e-9
        )


def test_heads_leave_in_greedy_order():
    """The first to go is the one whose removal alone costs least."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(300, 8, dtype=torch.float64, generator=generator)
    ones = torch.cat([x, torch.ones(300, 1, dtype=torch.float64)], 1)
    weight = torch.randn(3, 8, dtype=torch.float64, generator=generator)
    second = ones.mT @ ones / 300
    readers = [Reader.of(weight, second, torch.eye(3, dtype=torch.float64), 2)]
    order, steps = eliminate(readers, torch.ones(4))
    alone = []
    for unit in range(4):
        stay = [i for i in range(9) if i // 2 != unit or i == 8]
        fit = torch.linalg.lstsq(ones[:, stay], x @ weight.mT).solution
        alone.append(float((x @ weight.mT - ones[:, stay] @ fit).square().sum(1).mean()))
    assert int(order[0]) == alone.index(min(alone))
    assert float(steps[0]) == pytest.approx(min(alone))


def test_coupled_units_stay_longer():
    """Without refit and with all of the coupling, a unit that goes first costs what the sketch says of it."""
    generator = torch.Generator().manual_seed(0)
    second = torch.diag(torch.rand(9, dtype=torch.float64, generator=generator) + 0.1)  # nothing makes up for another
    weight = torch.randn(3, 8, dtype=torch.float64, generator=generator)
    reader = Reader.of(weight, second, torch.eye(3, dtype=torch.float64), 1)
    seen = torch.rand(8, dtype=torch.float64, generator=generator)
    order, steps = eliminate([reader], seen / reader.alone)
    torch.testing.assert_close(steps, seen[order])


@pytest.mark.parametrize("criterion", ["compensated", "sketch", "magnitude", "random"])
@pytest.mark.parametrize("head", HEADS)
def test_curves_are_whole_and_rise(criterion, head, batches):
    model = build("bert", head)
    scores = optin.score(model, batches[:3], recipe=RECIPE.override(criterion=criterion))
    for group in describe(model):
        curve = scores.curves[group.name]
        assert sorted(curve.order.tolist()) == list(range(group.size))
        assert float(curve.cost[0]) == 0 and bool((curve.cost.diff() >= 0).all())


def test_magnitude_by_hand(bert, batches):
    scores = optin.score(bert, batches, recipe=Recipe(criterion="magnitude"))
    layer = bert.bert.encoder.layer[0]
    expected = (
        layer.intermediate.dense.weight[7].square().sum()
        + layer.intermediate.dense.bias[7].square()
        + layer.output.dense.weight[:, 7].square().sum()
    )
    assert float(scores.curves[NEURONS[0]].importance[7]) == pytest.approx(float(expected.detach()), rel=1e-5)


def test_fisher_by_hand(bert, batches):
    labelled = [{**batch, "labels": torch.tensor([0, 1, 2, 0])} for batch in batches]
    recipe = Recipe(criterion="fisher").override(trajectory__draws=8)
    scores = optin.score(bert, labelled, recipe=recipe)
    space, expected = describe(bert), torch.zeros(20)
    for batch in labelled:
        for micro in split(batch, 4):
            multiplier = torch.ones(20, requires_grad=True)
            with gated(bert, space, {NEURONS[1]: multiplier}):
                loss = bert(**micro).loss
            expected += torch.autograd.grad(loss, multiplier)[0].square()
    got = scores.curves[NEURONS[1]].importance
    torch.testing.assert_close(got, expected.double(), rtol=1e-3, atol=1e-7)


def test_fisher_of_a_network_without_a_loss_of_its_own():
    model = resnet(8).eval()
    batch = {"input": torch.randn(4, 3, 32, 32), "labels": torch.tensor([0, 1, 2, 0])}
    scores = optin.score(model, [batch], recipe=Recipe(criterion="fisher").override(trajectory__draws=1))
    space = describe(model)
    group = space.groups[-1]
    multiplier = torch.ones(group.size, requires_grad=True)
    with gated(model, space, {group.name: multiplier}):
        loss = torch.nn.functional.cross_entropy(model(batch["input"]), batch["labels"])
    expected = torch.autograd.grad(loss, multiplier)[0].square()
    torch.testing.assert_close(scores.curves[group.name].importance, expected.double(), rtol=1e-3, atol=1e-9)


def test_fisher_needs_labels(bert, batches):
    with pytest.raises(InputError, match="needs labels"):
        optin.score(bert, batches, recipe=Recipe(criterion="fisher"))
    bare = build("bert", "Model")
    with pytest.raises(InputError, match="no loss"):
        optin.score(bare, [{**batches[0], "labels": torch.zeros(4)}], recipe=Recipe(criterion="fisher"))


def test_activations_that_break_are_named(bert, batches):
    with torch.no_grad():
        bert.bert.encoder.layer[1].output.LayerNorm.weight.fill_(3e38)
    for criterion in ("compensated", "exact"):
        with pytest.raises(NumericalError, match=r"encoder\.layer\.1"):
            optin.score(bert, batches, recipe=Recipe(criterion=criterion))


def broken(change):
    def criterion(scoring):
        curves = {group.name: Curve.from_importance(torch.rand(group.size)) for group in scoring.space}
        curves[ATTENTION[0]] = change(curves[ATTENTION[0]])
        return {name: curve for name, curve in curves.items() if curve is not None}

    return criterion


BROKEN = {
    "NaN": (lambda curve: Curve(curve.order, curve.cost * torch.nan), "holds NaN"),
    "a unit twice": (lambda curve: Curve(curve.order * 0, curve.cost), "does not order its 4 units"),
    "too few costs": (lambda curve: Curve(curve.order, curve.cost[1:]), "does not have 5 costs"),
    "single precision": (lambda curve: Curve(curve.order, curve.cost.float()), "in float64"),
    "no curve": (lambda curve: None, "no removal curve"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_what_is_no_removal_curve_is_refused(case, bert, batches, monkeypatch):
    change, said = BROKEN[case]
    monkeypatch.setattr("optin.scoring.criteria.criterion", lambda name: Criterion(broken(change)))
    with pytest.raises(NumericalError, match=f"{said}.*{ATTENTION[0]}"):
        optin.score(bert, batches)


def test_an_unknown_criterion_is_named(bert, batches):
    with pytest.raises(InputError, match="Did you mean 'compensated'"):
        optin.score(bert, batches, recipe=Recipe(criterion="compensate"))


def test_taps_of_a_consumer_that_runs_twice_are_not_resumed():
    model = build("albert", "Model")
    space = describe(model)
    assert all(group.shared for group in space)
    with inference_mode_of(model), torch.inference_mode():
        reference = Reference.of(model, space, tokens(model), RECIPE.trajectory, 0)
    assert reference.consumers == {} and Tap("x", "input") != Tap("x", "output")


def test_several_draws_at_once_are_those_of_copies(bert):
    space, batch = describe(bert), tokens(bert)

    def objective(batch, output, hidden, stack=1):
        return {"output": output.logits.square().sum()}

    one = differentiate(bert, space, batch, objective)
    three = differentiate(bert, space, batch, objective, 3)
    for name, derivative in one.units["output"].items():
        torch.testing.assert_close(three.units["output"][name], derivative.expand(3, -1), atol=1e-5, rtol=1e-4)
