from __future__ import annotations

import dataclasses
import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import optin
from optin.describing import describe
from optin.errors import CheckpointError, InputError
from optin.space.plans import Cost, Plan, from_ranges, to_ranges
from tests.networks import ATTENTION, NEURONS, plan_of

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=10,
)


def full(space) -> Plan:
    keep = {group.name: tuple(range(group.size)) for group in space}
    return Plan(space.architecture, space.sizes, keep, Cost(10, 5), Cost(10, 5), 16, {"seed": 0})


@given(st.sets(st.integers(0, 300)))
def test_ranges_and_back(units):
    ordered = tuple(sorted(units))
    assert from_ranges(to_ranges(ordered), 301) == ordered


def test_ranges_by_hand():
    assert to_ranges((0, 1, 2, 5, 7, 8)) == "0-2,5,7-8"


@pytest.mark.parametrize("text", ["3", "1,1", "2,1", "0-99999999999", "-1", "1-", "a", "0-1-2", " 1", "1,", "²"])
def test_ranges_that_do_not_fit_are_refused(text):
    with pytest.raises(CheckpointError):
        from_ranges(text, 3)


def test_a_plan_survives_json(bert, tmp_path):
    plan = full(describe(bert))
    plan.save(tmp_path / "plan.json")
    assert Plan.load(tmp_path / "plan.json") == plan
    assert Plan.from_dict(json.loads(json.dumps(plan.to_dict()))) == plan


@given(JSON)
def test_no_json_breaks_the_reader(data):
    with pytest.raises(CheckpointError):
        Plan.from_dict(data)


@given(st.data())
def test_no_change_of_a_plan_breaks_the_reader(data):
    """Replace any entry of a valid plan by anything: it is read, or refused in one line."""
    good = {
        "format": 1,
        "architecture": "bert",
        "length": 16,
        "dense": {"macs": 10, "parameters": 5},
        "pruned": {"macs": 5, "parameters": 3},
        "groups": {ATTENTION[0]: {"size": 4, "keep": "0-2"}},
        "provenance": {},
    }
    places = [(good, key) for key in good] + [(good["dense"], "macs"), (good["groups"], ATTENTION[0])]
    places += [(good["groups"][ATTENTION[0]], key) for key in ("size", "keep")]
    place, key = data.draw(st.sampled_from(places))
    place[key] = data.draw(JSON)
    try:
        Plan.from_dict(good)
    except CheckpointError as error:
        assert "\n" not in str(error)


def test_missing_and_broken_files(tmp_path):
    with pytest.raises(InputError, match="no such file"):
        Plan.load(tmp_path / "none.json")
    (tmp_path / "broken.json").write_text("{")
    with pytest.raises(CheckpointError, match="not JSON"):
        Plan.load(tmp_path / "broken.json")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"architecture": "gpt2"}, "is for 'gpt2'"),
        ({"keep": {}}, "says nothing about"),
        ({"sizes": {}}, "expects None units"),
        ({"extra": (0,)}, "does not have"),
        ({ATTENTION[0]: (0, 9)}, "below 4"),
        ({ATTENTION[0]: (1, 0)}, "ascending"),
        ({"bert.pooler.dense": ()}, "must stay"),
    ],
)
def test_a_plan_that_does_not_fit_is_refused(bert, change, message):
    space = describe(bert)
    plan = full(space)
    fields = {"architecture": plan.architecture, "sizes": dict(plan.sizes), "keep": dict(plan.keep)}
    for key, value in change.items():
        if key in fields:
            fields[key] = value
        else:
            fields["keep"][key] = value
    with pytest.raises(CheckpointError, match=message):
        Plan(**fields, dense=plan.dense, pruned=plan.pruned, length=16).validate(space)


def test_plans_and_folders_of_the_first_version_are_read(bert, tmp_path):
    """They named groups by the numbers of layers, and held no description."""
    old = {ATTENTION[place]: f"layers.{place}.heads" for place in range(3)}
    old |= {NEURONS[place]: f"layers.{place}.neurons" for place in range(3)}
    space = describe(bert)
    keep = {group.name: range(group.size - (group.name in old)) for group in space}
    plan = plan_of(bert, keep)
    expected = optin.apply(bert, plan).model
    first = dataclasses.replace(
        plan,
        sizes={old[name]: size for name, size in plan.sizes.items() if name in old},
        keep={old[name]: units for name, units in plan.keep.items() if name in old},
    )
    first.save(tmp_path / "plan.json")
    got = optin.apply(bert, Plan.load(tmp_path / "plan.json")).model
    assert all(map(torch.equal, got.state_dict().values(), expected.state_dict().values()))
    folder = optin.apply(bert, plan).save(tmp_path / "small")
    config = json.loads((folder / "config.json").read_text())
    config["optin"] = first.to_dict()
    (folder / "config.json").write_text(json.dumps(config))
    loaded = optin.load(folder)
    assert all(map(torch.equal, loaded.state_dict().values(), expected.state_dict().values()))
    with pytest.raises(CheckpointError, match="says nothing about the group"):
        optin.apply(bert, dataclasses.replace(first, keep={**first.keep, "layers.9.heads": (0,)}))
