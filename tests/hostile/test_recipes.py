"""Recipes: each is refused in one line that names the line or the option, and nothing is expanded."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from optin.errors import InputError, OptinError
from optin.recipe import PRESETS, Recipe, recipe_of
from optin.space.options import Tokens, Trajectory

DOUBLING = "a: &a [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{new}: &{new} [{', '.join([f'*{old}'] * 10)}]\n" for old, new in zip("abcdefg", "bcdefgh", strict=True)
)
TEXTS = {
    "twice": ("seed: 1\nbudget: 50%\nseed: 2\n", "line 3.*'seed' is there twice"),
    "twice inside": ("trajectory:\n  rows: 8\n  rows: 9\n", "line 3.*'rows'"),
    "aliases that double": (DOUBLING, "references"),
    "an anchor": ("seed: &a 1\n", "references"),
    "a reference to itself": ("a: &a [*a]\n", "references"),
    "a merge": ("<<: {seed: 1}\n", "unknown option"),
    "a date": ("seed: 2020-01-01\n", "'seed' must be int"),
    "a time": ("budget: 2020-01-01T00:00:00Z\n", "cannot read the budget"),
    "python": ("seed: !!python/object/apply:os.system [id]\n", "tag"),
    "a tag of python names": ("seed: !!python/name:os.system\n", "tag"),
    "binary": ("model: !!binary aGVsbG8=\n", "tag"),
    "binary of nothing": ("model: !!binary =====\n", "tag"),
    "a timestamp": ("model: !!timestamp 2020-99-99\n", "tag"),
    "an integer by tag": ("seed: !!int x\n", "tag"),
    "a float by tag": ("seed: !!float abc\n", "tag"),
    "a set": ("!!set {seed}\n", "tag"),
    "an ordered map": ("!!omap [seed: 1]\n", "tag"),
    "a tag of one's own": ("seed: !mine 1\n", "tag"),
    "5,000 digits": ("seed: " + "9" * 5000 + "\n", "'seed' must be int"),
    "30 digits": ("seed: " + "9" * 30 + "\n", "between 0 and 2"),
    "1e400": ("trajectory: {temperature: 1e400}\n", "temperature"),
    "1.0e+400": ("trajectory: {temperature: 1.0e+400}\n", "temperature"),
    "not a number": ("trajectory: {temperature: .nan}\n", "temperature"),
    "infinity": ("refit: {ridge: .inf}\n", "ridge"),
    "minus infinity": ("refit: {floor: -.inf}\n", "floor"),
    "sixties": ("seed: 12:30:45\n", "'seed' must be int"),
    "octal": ("seed: 0o17\n", "'seed' must be int"),
    "a leading nought": ("seed: 010\n", "'seed' must be int"),
    "hexadecimal": ("seed: 0x10\n", "'seed' must be int"),
    "deep lists": ("[" * 3000, "levels"),
    "deep mappings": ("{a: " * 3000, "levels"),
    "deep blocks": ("\n".join(" " * i + "a:" for i in range(500)), "levels"),
    "a list": ("- seed\n- 1\n", "must be a mapping"),
    "a word": ("beta\n", "must be a mapping"),
    "nothing": ("", "must be a mapping"),
    "two documents": ("seed: 1\n---\nseed: 2\n", "not YAML"),
    "a list for a key": ("? [a, b]\n: 1\n", "a key must be a word"),
    "a mapping for a key": ("? {a: 1}\n: 1\n", "a key must be a word"),
    "a number for a key": ("1: 2\n", "unknown option"),
    "nothing for a key": ("~: 2\n", "unknown option"),
    "no end": ('model: "x\n', "not YAML"),
    "a tabulator": ("\tseed: 1\n", "not YAML"),
    "a null byte": ("model: a\0b\n", "not YAML"),
    "a bell": ("model: a\ab\n", "not YAML"),
    "a colon too many": ("a: b: c\n", "not YAML"),
    "a directive": ("%YAML 9.9\n---\nseed: 1\n", "not YAML"),
    "true for a number": ("seed: true\n", "'seed' must be int"),
    "a list for a number": ("seed: [1]\n", "'seed' must be int"),
    "a number for a section": ("trajectory: 3\n", "must be a mapping"),
    "a list for a section": ("calibration: [32]\n", "must be a mapping"),
    "a number for a path": ("task: {data: 3}\n", "'task.data' must be str"),
    "an unknown preset": ("preset: fast\n", "unknown preset"),
    "a list of presets": ("preset: [beta]\n", "unknown preset"),
    "many examples": ("calibration: {examples: 1000000000000}\n", "calibration.examples"),
    "many draws": ("trajectory: {draws: 1000000000}\n", "trajectory.draws"),
    "many rows": ("trajectory: {rows: 100000000}\n", "trajectory.rows"),
    "a long batch": ("calibration: {batch_size: 100000000000}\n", "batch_size"),
    "endless training": ("training: {epochs: 1.0e+300}\n", "epochs"),
    "an empty path": ("task: {data: ''}\n", "no path"),
    "a long option": ("x" * 1000 + ": 1\n", "unknown option"),
    "full-width digits": ("budget: \uff15\uff10%\n", "only look like"),
}


@pytest.mark.parametrize("name", TEXTS)
def test_a_text_is_refused_in_a_line(name, tmp_path):
    text, words = TEXTS[name]
    (tmp_path / "r.yaml").write_text(text)
    with pytest.raises(OptinError, match=words) as refused:
        Recipe.load(tmp_path / "r.yaml")
    assert "\n" not in str(refused.value) and len(str(refused.value)) < 2000


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_a_preset_for_a_file(name):
    with pytest.raises(InputError, match=f"--preset {name}"):
        Recipe.load(name)


@pytest.mark.parametrize("kind", ["folder", "pipe", "bytes", "large", "unreadable", "300 letters", "no such", "null"])
def test_what_is_no_file_of_text(kind, tmp_path):
    place: str | Path = tmp_path / "r.yaml"
    if kind == "folder":
        place.mkdir()
    elif kind == "pipe":
        os.mkfifo(place)
    elif kind == "bytes":
        place.write_bytes(b"model: \xff\xfe\n")
    elif kind == "large":
        place.write_text("#" * (2**20 + 1))
    elif kind == "unreadable":
        place.symlink_to(place)  # around and around
    elif kind == "300 letters":
        place = tmp_path / ("x" * 300)
    elif kind == "null":
        place = "a\0b"
    with pytest.raises(InputError):
        Recipe.load(place)


def test_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "r.yaml").write_text("seed: 3\ntask: {data: ~/texts}\n")
    recipe = Recipe.load("~/r.yaml")
    assert (recipe.seed, recipe.task.data) == (3, str(tmp_path / "texts"))


def test_numbers_are_read_as_they_are_written(tmp_path):
    (tmp_path / "r.yaml").write_text("seed: 7\nrefit: {ridge: 1e-4, enabled: no}\ntrajectory: {balance: 2}\n")
    recipe = Recipe.load(tmp_path / "r.yaml")
    assert (recipe.seed, recipe.refit.ridge, recipe.refit.enabled, recipe.trajectory.balance) == (7, 1e-4, False, 2.0)


@pytest.mark.parametrize("value", ["recipe.yaml", {"seed": "one"}, {"sed": 1}, 3, Tokens()])
def test_what_is_no_recipe(value):
    with pytest.raises(InputError, match="Recipe|option"):
        recipe_of(value)


@pytest.mark.parametrize(
    "options",
    [{"seed": "1"}, {"seed": True}, {"seed": 1.5}, {"trajectory": None}, {"task": "sst2"}, {"rearrange": 1}],
)
def test_wrong_types_in_python(options):
    with pytest.raises(InputError, match="must be"):
        Recipe(**options)
    with pytest.raises(InputError, match="rows"):
        Trajectory(rows="8")
