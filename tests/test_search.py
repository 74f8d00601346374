from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from optin.choosing.allocation import check_search
from optin.choosing.search import SEARCHES, find, rearranged
from optin.errors import BudgetError, InputError
from optin.recipe import Recipe
from optin.running.cost import CostModel, Term
from optin.space.budget import Budget
from optin.space.scores import Curve
from optin.space.units import UnitGroup, UnitSpace

FIXED = 50


def problem(sizes, prices, seed, joint=0, entry=None):
    """Groups of heads and neurons in turn, with random convex removal curves.

    Args:
        entry: what the first unit of each group costs beside its price, of groups that may go as a whole.
        joint: MACs that grow with the square of a group, and with two at once, per pair of units.
    """
    generator = torch.Generator().manual_seed(seed)
    least = 1 if entry is None else 0
    groups = tuple(
        UnitGroup(f"g{i}", "head" if i % 2 == 0 else "neuron", size, 0, (), (), min_keep=least)
        for i, size in enumerate(sizes)
    )
    space = UnitSpace("toy", groups)
    terms = [
        Term(f"g{i}", size * price, (f"g{i}",)) for i, (size, price) in enumerate(zip(sizes, prices, strict=True))
    ]
    terms += [Term("there", entry, (), there=group.name) for group in groups if entry]
    for one, other in itertools.pairwise(groups) if joint else ():
        terms += [
            Term("map", joint * one.size**2, (one.name, one.name)),
            Term("maps", joint * one.size * other.size, (one.name, other.name)),
        ]
    cost = CostModel("MACs", space.sizes, (Term("fixed", FIXED, ()), *terms))
    curves = {g.name: Curve.from_importance(torch.rand(g.size, generator=generator)) for g in groups}
    return space, curves, cost


PROBLEMS = st.tuples(
    st.lists(st.integers(2, 12), min_size=2, max_size=5), st.integers(1, 60), st.integers(1, 9), st.integers(0, 99)
)


@settings(max_examples=150)
@given(
    PROBLEMS,
    st.floats(0.05, 0.99),
    st.sampled_from(sorted(SEARCHES)),
    st.integers(0, 5),
    st.one_of(st.none(), st.integers(0, 90)),
)
def test_the_budget_is_never_exceeded_and_hardly_missed(raw, share, method, joint, entry):
    sizes, head, neuron, seed = raw
    prices = [head if i % 2 == 0 else neuron for i in range(len(sizes))]
    space, curves, cost = problem(sizes, prices, seed, joint, entry)
    least = cost({group.name: group.min_keep for group in space})
    if share * cost.dense < least:
        with pytest.raises(BudgetError, match="Ask for"):
            find(space, curves, cost, Budget(share), method)
        return
    kept = find(space, curves, cost, Budget(share), method)
    limit = Budget(share).limit(cost.dense)
    assert all(group.min_keep <= kept[group.name] <= group.size for group in space)
    assert cost(kept) <= limit
    more = [{**kept, group.name: kept[group.name] + 1} for group in space if kept[group.name] < group.size]
    assert all(cost(counts) > limit for counts in more)


@settings(max_examples=40)
@given(st.integers(0, 999), st.floats(0.65, 0.95))
def test_lagrange_is_nearly_optimal(seed, share):
    """Against all choices: at most the best with one step less of the budget."""
    space, curves, cost = problem([4, 5, 3], [7, 3, 5], seed)
    limit = Budget(share).limit(cost.dense)

    def total(counts):
        return sum(float(curves[g.name].cost[g.size - k]) for g, k in zip(space, counts, strict=True))

    choices = itertools.product(*(range(1, group.size + 1) for group in space))
    feasible = [(total(counts), cost(dict(zip(space.sizes, counts, strict=True)))) for counts in choices]
    kept = find(space, curves, cost, Budget(share), "lagrange")
    best_with_less = min(value for value, price in feasible if price <= max(limit - 7, FIXED + 15))
    assert total(kept.values()) <= best_with_less + 1e-9


@settings(max_examples=40)
@given(st.integers(0, 999), st.floats(0.3, 0.95))
def test_parts_go_where_that_is_best(seed, share):
    """Against all choices, whole parts gone among them: at most the best with one part less of the budget."""
    space, curves, cost = problem([4, 5, 3], [7, 3, 5], seed, entry=20)
    limit = Budget(share).limit(cost.dense)

    def total(counts):
        return sum(float(curves[g.name].cost[g.size - k]) for g, k in zip(space, counts, strict=True))

    choices = itertools.product(*(range(group.size + 1) for group in space))
    feasible = [(total(counts), cost(dict(zip(space.sizes, counts, strict=True)))) for counts in choices]
    kept = find(space, curves, cost, Budget(share), "lagrange")
    best_with_less = min(value for value, price in feasible if price <= max(limit - 48, FIXED))
    assert total(kept.values()) <= best_with_less + 1e-9


def test_paper_takes_the_best_of_all_head_counts():
    """Heads of price 10 and neurons of price 1: importance by hand."""
    space, curves, cost = problem([3, 10], [10, 1], 0)
    curves["g0"] = Curve.from_importance(torch.tensor([5.0, 50.0, 6.0]))
    curves["g1"] = Curve.from_importance(torch.arange(10.0))
    # 20 above what must stay (one head, one neuron): two heads give 11, one head and 9 neurons give 6 + 36.
    kept = find(space, curves, cost, Budget(FIXED + 11 + 20, relative=False), "paper")
    assert kept == {"g0": 2, "g1": 10}
    assert curves["g0"].keep(2) == (1, 2)


def test_counts_are_rounded_as_asked():
    space, curves, cost = problem([4, 40, 4, 40], [11, 2, 11, 2], 3)
    kept = find(space, curves, cost, Budget(0.6), "lagrange", {"g1": 8, "g3": 8})
    assert kept["g1"] % 8 == 0 and kept["g3"] % 8 == 0
    assert cost(kept) <= 0.6 * cost.dense


def test_free_units_are_removed_first_and_ties_are_settled():
    space, curves, cost = problem([4, 10], [5, 1], 0)
    curves = {name: Curve.from_importance(torch.zeros(len(curve.order))) for name, curve in curves.items()}
    kept = find(space, curves, cost, Budget(0.9), "lagrange")
    assert kept == find(space, curves, cost, Budget(0.9), "lagrange")


def test_an_unknown_search_is_named():
    with pytest.raises(InputError, match="Did you mean 'lagrange'"):
        check_search(Recipe(search="lagrang"))


def test_a_search_that_chooses_no_tokens_is_not_asked_to():
    with pytest.raises(InputError, match="chooses no tokens"):
        check_search(Recipe().override(search="paper", tokens__merge="search"))


def test_curve_by_hand():
    curve = Curve.from_importance(torch.tensor([3.0, 1.0, 2.0]))
    assert curve.order.tolist() == [1, 2, 0]
    assert curve.cost.tolist() == [0.0, 1.0, 3.0, 6.0]
    assert curve.keep(2) == (0, 2) and curve.keep(3) == (0, 1, 2)
    assert curve.importance.tolist() == [3.0, 1.0, 2.0]


@given(st.integers(2, 8), st.integers(0, 8), st.integers(0, 99))
def test_rearranging_never_adds_to_what_the_removals_add_up_to(size, count, seed):
    gradients = torch.randn(5, size, generator=torch.Generator().manual_seed(seed))
    curve, count = Curve.from_importance(gradients.square().sum(0)), min(count, size)

    def length(kept):
        return float(gradients[:, [unit for unit in range(size) if unit not in kept]].sum(1).square().sum())

    kept = rearranged(curve, gradients, count)
    assert len(kept) == count and length(kept) <= length(curve.keep(count)) + 1e-5


def test_rearranging_finds_the_pair_that_cancels():
    gradients = torch.tensor([[1.0, 1.1, -1.2, 3.0], [0.2, 1.0, -1.0, 0.0]])
    curve = Curve.from_importance(gradients.square().sum(0))
    assert curve.keep(2) == (2, 3) and rearranged(curve, gradients, 2) == (0, 3)


@pytest.mark.parametrize("method", sorted(SEARCHES))
@pytest.mark.parametrize("multiple", [1, 3, 8])
@pytest.mark.parametrize("share", [0.5, 0.7, 0.75, 0.8, 0.9])
def test_curves_whose_steps_grow_and_fall(method, multiple, share):
    """Costs of any shape, counts in steps that do not divide the group: the counts are those that may be kept."""
    space, curves, cost = problem([4, 20, 3, 13], [40, 2, 30, 3], 0)
    generator = torch.Generator().manual_seed(1)
    for name, curve in curves.items():
        steps = torch.rand(len(curve.order), generator=generator, dtype=torch.float64).sort(descending=True).values
        curves[name] = Curve(curve.order, torch.cat([steps.new_zeros(1), steps.cumsum(0)]))
    multiples = {group.name: multiple for group in space if group.kind != "head"}
    kept = find(space, curves, cost, Budget(share), method, multiples)
    assert cost(kept) <= share * cost.dense
    for group in space:
        step = multiples.get(group.name, 1)
        assert kept[group.name] == group.size or (kept[group.name] % step == 0 and kept[group.name] >= group.min_keep)
