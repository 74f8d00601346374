"""JSON in the place of what optin writes: report, plan, sweep, scores, export, marker, latencies and partial sums."""

from __future__ import annotations

import dataclasses
import json
import os

import pytest
import torch
from safetensors.torch import load_file, save_file

import optin
from optin.app.commands import run_report
from optin.app.placement import Placement
from optin.choosing import timed
from optin.describing import describe
from optin.errors import CheckpointError, InputError, OptinError
from optin.recipe import Recipe
from optin.running.batches import Batches
from optin.scoring.exact import exact_parts
from optin.scoring.job import Scoring
from optin.support.files import json_text, read_json
from optin.support.folders import MARKER, read_marker
from optin.support.progress import silent
from tests.contract.test_architectures import random_plan
from tests.networks import ATTENTION, build, tokens

TEXTS = {
    "nothing": "",
    "half": '{"a": [1, 2',
    "twice": '{"a": 1, "a": 2}',
    "twice inside": '{"x": {"a": 1, "a": 2}}',
    "not a number": '{"a": NaN}',
    "infinity": '{"a": -Infinity}',
    "1e400": '{"a": 1e400}',
    "5,000 digits": '{"a": ' + "9" * 5000 + "}",
    "50 digits": '{"a": ' + "9" * 50 + "}",
    "deep lists": "[" * 10_000 + "]" * 10_000,
    "deep mappings": '{"a":' * 10_000 + "1" + "}" * 10_000,
    "sixty levels": "[" * 60 + "]" * 60,
    "half a character": '{"a": "\\ud800"}',
    "half a character in a key": '{"\\udfff": 1}',
    "more": "{} {}",
    "a comment": "{} // here",
    "a byte order mark": "\ufeff{}",
    "single quotes": "{'a': 1}",
    "a tabulator": '{"a": "\t"}',
}


@pytest.mark.parametrize("name", TEXTS)
def test_a_text_is_refused_in_a_line(name, tmp_path):
    (tmp_path / "x.json").write_text(TEXTS[name])
    with pytest.raises(CheckpointError, match="not JSON") as refused:
        read_json(tmp_path / "x.json")
    assert "\n" not in str(refused.value) and len(str(refused.value)) < 1000


@pytest.mark.parametrize("kind", ["folder", "pipe", "bytes", "large", "around", "300 letters", "no such", "device"])
def test_what_is_no_file_of_text(kind, tmp_path):
    place = tmp_path / "x.json"
    if kind == "folder":
        place.mkdir()
    elif kind == "pipe":
        os.mkfifo(place)
    elif kind == "bytes":
        place.write_bytes(b'{"a": "\xff"}')
    elif kind == "large":
        with place.open("wb") as file:
            file.truncate(2**40)
    elif kind == "around":
        place.symlink_to(place)
    elif kind == "300 letters":
        place = tmp_path / ("x" * 300)
    elif kind == "device":
        place.symlink_to("/dev/zero")
    with pytest.raises(OptinError) as refused:
        read_json(place)
    assert "\n" not in str(refused.value)


def test_figures_that_are_no_numbers_are_written_as_nothing():
    assert json.loads(json_text({"a": float("nan"), "b": [float("inf"), 1.0]})) == {"a": None, "b": [None, 1.0]}


@pytest.fixture(scope="module")
def result():
    torch.manual_seed(0)
    model = build("bert")
    found = optin.prune(model, [tokens(model, seed=seed) for seed in range(2)], "60%", recipe=CHEAP)
    found.report["quality"] = {"examples": 4, "dense": {"accuracy": 0.9}, "pruned": {"accuracy": float("nan")}}
    times = {"batch": 1, "length": 8, "dense_ms": 2.0, "pruned_ms": 1.0, "speedup": 2.0}
    found.report["speed"] = [times]
    return found


CHEAP = Recipe().override(criterion="magnitude")


@pytest.fixture(scope="module")
def folder(result, tmp_path_factory):
    return result.save(tmp_path_factory.mktemp("json") / "small")


PLACES = (
    "macs", "macs.dense", "parameters", "bytes", "groups", "curves", f"curves.{ATTENTION[0]}", "breakdown", "seconds",
    "seconds.search", "quality", "quality.examples", "quality.dense", "quality.pruned.accuracy", "speed",
    "speed.0", "speed.0.batch", "speed.0.speedup", "budget", "length",
)  # fmt: skip
VALUES = {
    "a list": [], "lists": [[]], "a mapping": {"a": {"b": []}}, "a word": "x", "true": True, "nothing": None,
    "a huge number": 10**39, "a negative number": -1, "a fraction": 0.5, "nought": 0,
}  # fmt: skip


def put(data, place, value):
    """Replace the entry at a place, whose last name may have dots in it."""
    head, _, rest = place.partition(".")
    key = int(head) if isinstance(data, list) else head
    if rest and (place not in data if isinstance(data, dict) else True):
        put(data[key], rest, value)
    else:
        data[place if isinstance(data, dict) and place in data else key] = value


@pytest.mark.parametrize("value", VALUES)
def test_reports_of_wrong_types(value, folder, tmp_path):
    """Each entry in turn: a page is made, or the line says which entry it is."""
    original = (folder / "report.json").read_text()
    try:
        for place in PLACES:
            data = json.loads(original)
            put(data, place, VALUES[value])
            (folder / "report.json").write_text(json.dumps(data))
            try:
                run_report(folder, Recipe(), Placement(), tmp_path / "report.html")
            except CheckpointError as error:
                assert "is not what optin writes" in str(error) and "\n" not in str(error)
    finally:
        (folder / "report.json").write_text(original)


@pytest.mark.parametrize("data", [[], "x", 3, None, {}, {"macs": []}, {"speed": {}}])
@pytest.mark.parametrize("file", ["report.json", "plan.json"])
def test_whole_files_of_wrong_types(file, data, folder, tmp_path):
    original = (folder / file).read_text()
    (folder / file).write_text(json.dumps(data))
    try:
        run_report(folder, Recipe(), Placement(), tmp_path / "report.html")
    except OptinError as error:
        assert "\n" not in str(error)
    else:
        assert file == "report.json" and data == {}
    finally:
        (folder / file).write_text(original)


@pytest.mark.parametrize(
    ("entry", "value"),
    [
        ("provenance", {"data": [1]}),
        ("provenance", {"data": {"sha256": 5, "examples": 1}}),
        ("provenance", {"versions": "x"}),
        ("provenance", {"recipe": 3}),
        ("tokens", "x"),
        ("tokens", [-1]),
        ("length", 0),
        ("length", True),
        ("length", 10**9),
        ("width", 1.5),
        ("dense", {"macs": 0, "parameters": 1}),
        ("dense", {"macs": -5, "parameters": 1}),
        ("pruned", {"macs": 10**30, "parameters": 1}),
        ("latency", {"batch": 1, "dense_ms": -1.0, "predicted_ms": 1.0}),
        ("latency", {"batch": 1, "dense_ms": 1, "predicted_ms": 1.0}),
        ("format", True),
        ("architecture", ["bert"]),
        ("groups", {ATTENTION[0]: {"size": 10**9, "keep": "0-999999998"}}),
        ("groups", {f"g{i}": {"size": 10**6, "keep": "0-999999"} for i in range(100)}),
        ("groups", {ATTENTION[0]: {"size": -4, "keep": ""}}),
        ("groups", {ATTENTION[0]: {"size": True, "keep": "0"}}),
        ("groups", {ATTENTION[0]: {"size": 4.0, "keep": "0"}}),
        ("groups", {ATTENTION[0]: {"size": 4, "keep": "0,1,2,3,4,5"}}),
        ("groups", {ATTENTION[0]: [4, "0"]}),
    ],
)
def test_plans_of_wrong_values(entry, value, folder, tmp_path):
    data = json.loads((folder / "plan.json").read_text()) | {entry: value}
    (tmp_path / "plan.json").write_text(json.dumps(data))
    if entry == "provenance":  # which only the report reads
        original = (folder / "plan.json").read_text()
        (folder / "plan.json").write_text(json.dumps(data))
        try:
            run_report(folder, Recipe(), Placement(), tmp_path / "report.html")
        finally:
            (folder / "plan.json").write_text(original)
    else:
        with pytest.raises(CheckpointError) as refused:
            optin.Plan.load(tmp_path / "plan.json")
        assert "\n" not in str(refused.value)


POINT = {"budget": "60%", "macs": 0.6, "parameters": 0.7, "accuracy": 0.4}


@pytest.mark.parametrize(
    "sweep",
    [
        [],
        {},
        {"points": []},
        {"points": {}},
        {"points": [3]},
        {"points": [{}]},
        {"points": [{**POINT, "macs": "x"}]},
        {"points": [{**POINT, "accuracy": [1]}]},
        {"points": [{**POINT, "accuracy": 10**39 * 10**39}]},
        {"points": [POINT], "dense": []},
        {"points": [POINT], "dense": {"accuracy": "x"}},
    ],
)
def test_sweeps_of_wrong_types(sweep, folder, tmp_path):
    (tmp_path / "sweep.json").write_text(json.dumps(sweep))
    with pytest.raises(CheckpointError) as refused:
        run_report(folder, Recipe(), Placement(), tmp_path / "report.html", sweep_file=tmp_path / "sweep.json")
    assert "\n" not in str(refused.value)


def test_sweeps_whose_points_differ(folder, tmp_path):
    points = [POINT, {"macs": 0.5, "parameters": 0.5, "other": 1, "accuracy": None}]
    (tmp_path / "sweep.json").write_text(json.dumps({"points": points, "dense": {"accuracy": None}}))
    run_report(folder, Recipe(), Placement(), tmp_path / "report.html", sweep_file=tmp_path / "sweep.json")


@pytest.fixture(scope="module")
def scores(tmp_path_factory):
    torch.manual_seed(0)
    model = build("bert")
    found = optin.score(model, [tokens(model)], recipe=CHEAP)
    return optin.save_scores(found, tmp_path_factory.mktemp("scores") / "scores")


@pytest.mark.parametrize(
    ("entry", "value"),
    [
        ("groups", []),
        ("groups", {ATTENTION[0]: 10**9}),
        ("groups", {ATTENTION[0]: -1}),
        ("groups", {ATTENTION[0]: True}),
        ("groups", {ATTENTION[0]: "4"}),
        ("groups", {"nowhere": 4}),
        ("length", True),
        ("length", -1),
        ("length", "9"),
        ("length", 10**12),
        ("width", []),
        ("provenance", []),
        ("provenance", {}),
        ("provenance", {"network": 5}),
        ("architecture", None),
    ],
)
def test_scores_of_wrong_values(entry, value, scores):
    original = (scores / "scores.json").read_text()
    (scores / "scores.json").write_text(json.dumps(json.loads(original) | {entry: value}))
    try:
        with pytest.raises(OptinError, match=r"[Ss]core again"):
            optin.load_scores(scores)
    finally:
        (scores / "scores.json").write_text(original)


@pytest.mark.parametrize("kind", ["int32", "float32", "short", "infinite", "gradients"])
def test_tensors_of_scores(kind, scores):
    file = scores / "scores.safetensors"
    original, tensors = file.read_bytes(), load_file(file)
    order, cost = tensors[f"{ATTENTION[0]}/order"], tensors[f"{ATTENTION[0]}/cost"]
    wrong = {
        "int32": {f"{ATTENTION[0]}/order": order.int()},
        "float32": {f"{ATTENTION[0]}/cost": cost.float()},
        "short": {f"{ATTENTION[0]}/order": order[:2].clone()},
        "infinite": {f"{ATTENTION[0]}/cost": cost * torch.inf},
        "gradients": {f"{ATTENTION[0]}/gradients": torch.full((2, 4), torch.nan)},
    }[kind]
    save_file(tensors | wrong, file)
    try:
        with pytest.raises(CheckpointError, match="damaged"):
            optin.load_scores(scores)
    finally:
        file.write_bytes(original)


@pytest.mark.parametrize(
    "data",
    [
        [],
        {},
        {"kind": 3},
        {"kind": "network", "files": "x"},
        {"kind": "network", "files": [1, None]},
        {"kind": "network", "files": ["/etc/passwd", "../x", "a/../../x", ""]},
    ],
)
def test_markers_list_nothing_outside(data, tmp_path):
    (tmp_path / MARKER).write_text(json.dumps(data))
    assert read_marker(tmp_path)[1] == set()


@pytest.mark.parametrize(
    "terms",
    [
        {},
        "x",
        [1],
        [["m", 1]],
        [["m", -1, [], None]],
        [["m", 1.5, [], None]],
        [["m", True, [], None]],
        [["m", 10**30, [], None]],
        [["m", 1, "h", None]],
        [["m", 1, ["nowhere"], None]],
        [[None, 1, [], None]],
        [["m", "1", [], None]],
        [["m", 1, [], "nowhere"]],
        [["m", 1, [], ["h"]]],
    ],
)
def test_latencies_of_wrong_types_are_measured_anew(terms, bert, tmp_path, monkeypatch):
    file, space = tmp_path / "x.json", describe(bert)
    monkeypatch.setattr(timed, "_file", lambda key: file)
    file.write_text(json.dumps({"key": {"a": 1}, "terms": [["m", 5, [ATTENTION[0]], None]]}))
    assert timed.kept_terms({"a": 1}, space)[0].amount == 5
    assert timed.kept_terms({"a": 2}, space) is None
    file.write_text(json.dumps({"key": {"a": 1}, "terms": terms}))
    assert timed.kept_terms({"a": 1}, space) is None


@pytest.fixture(scope="module")
def partial(tmp_path_factory):
    torch.manual_seed(0)
    model, file = build("bert"), tmp_path_factory.mktemp("partial") / "x.partial"
    recipe = Recipe().override(criterion="exact", trajectory__draws=2)
    calibration = Batches.of([tokens(model, batch=2)], torch.device("cpu"))

    def run(track=silent):
        return exact_parts(Scoring(model, describe(model), calibration, recipe, track, file))

    run()
    return file, run


@pytest.mark.parametrize(
    "kind",
    ["nan", "scaled", "negative", "too many", "words", "unknown", "shape", "type", "missing", "no sums", "folder"],
)
def test_partial_sums_that_were_not_written_so(kind, partial):
    file, run = partial
    original = file.read_bytes()
    from safetensors import safe_open

    with safe_open(file, "pt") as handle:
        metadata, tensors = dict(handle.metadata()), {name: handle.get_tensor(name) for name in handle.keys()}  # noqa: SIM118
    name = sorted(tensors)[0]
    if kind == "no sums":
        del metadata["sums"]
    elif kind in ("negative", "too many", "words"):
        metadata["done"] = {"negative": "-3", "too many": "99", "words": "x"}[kind]
    elif kind == "missing":
        del tensors[name]
    elif kind == "unknown":
        tensors["elsewhere"] = torch.ones(2)
    else:
        tensors[name] = {
            "nan": tensors[name] * torch.nan,
            "scaled": tensors[name] * 1000,
            "shape": tensors[name][:1].clone(),
            "type": tensors[name].float(),
            "folder": tensors[name],
        }[kind]
    save_file(tensors, file, metadata)
    if kind == "folder":
        file.unlink()
        file.mkdir()
    try:
        with pytest.raises(CheckpointError, match="damaged|no file"):
            run()
    finally:
        if kind == "folder":
            file.rmdir()
        file.write_bytes(original)


@pytest.mark.parametrize(
    "change",
    [
        {"format": "../onnx"},
        {"format": ["onnx"]},
        {"format": None},
        {"inputs": "input_ids"},
        {"inputs": []},
        {"inputs": [1]},
        {"outputs": {}},
        {"single": "no"},
        {"single": 1},
    ],
)
def test_exports_of_wrong_types(change, tmp_path):
    good = {"format": "onnx", "inputs": ["x"], "outputs": ["y"], "single": True}
    (tmp_path / "export.json").write_text(json.dumps(good | change))
    (tmp_path / "model.onnx").write_bytes(b"")
    with pytest.raises((InputError, CheckpointError)) as refused:
        optin.open_exported(tmp_path)
    assert "\n" not in str(refused.value)


def test_names_of_others_are_text_in_the_card(bert, tmp_path):
    plan = random_plan(bert)
    hostile = 'x | y\n---\n# title <img src=x onerror="a()"> [a](http://b) `c`'
    result = dataclasses.replace(
        optin.apply(bert, plan),
        recipe=Recipe(model=hostile),
    )
    result.report["groups"] = {hostile: {"kept": 1, "of": 2}}
    result.report["quality"] = {"examples": 1, "dense": {}, "pruned": {hostile: 0.5}}
    result.report["budget"] = hostile
    card = (result.save(tmp_path / "small") / "README.md").read_text()
    body = card.split("---\n", 2)[2]
    assert "<img" not in body.replace("`x | y", "").split("made by")[0]
    rows = [line for line in body.splitlines() if line.startswith("|")]
    assert all(line.replace("\\|", "").count("|") in (4, 5) for line in rows)
    assert not any(line.startswith("# title") or line == "---" for line in body.splitlines())
