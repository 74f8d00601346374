from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import SegformerImageProcessorPil

import optin
from optin.app import cli
from optin.app.commands import run_draw, run_evaluate
from optin.app.placement import Placement
from optin.errors import InputError
from optin.space.options import Task
from optin.tasks import load_scenes, segmentation, task_spec
from optin.tasks.images import open_image
from optin.tasks.metrics import intersections
from tests.slow import slow_but
from tests.test_cnn import of_transformers

SPEC = task_spec("semantic-segmentation")
COLOURS = {"sky": [10, 20, 30], "road": [40, 50, 60], "car": [70, 80, 90]}


def save(pixels, *path) -> None:
    path[0].joinpath(*path[1:-1]).mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels.astype(np.uint8)).save(path[0].joinpath(*path[1:]))


@pytest.fixture
def pairs(tmp_path):
    """Eight scenes a part: three classes in stripes, a corner that counts for nothing; one scene is broken."""
    tmp_path = tmp_path / "pairs"  # results lie beside what they are made of, never in it
    generator = np.random.default_rng(0)
    for part in ("train", "val"):
        for index in range(8):
            mask = np.repeat(np.arange(3), 24)[None].repeat(64, 0)
            mask[:4, :4] = 255
            image = 80 * np.minimum(mask, 2)[..., None] + generator.integers(0, 60, (64, 72, 3))
            save(image, tmp_path, part, "images", f"{index}.png")
            save(mask, tmp_path, part, "masks", f"{index}.png")
    (tmp_path / "val" / "images" / "3.png").write_bytes(b"broken")
    return tmp_path


def scenes(folder, part="evaluation", **options):
    return load_scenes(SPEC, Task(data=str(folder), **options), part, labelled=True)


def test_pairs_of_folders(pairs):
    found = scenes(pairs, "calibration")
    assert len(found) == 8 and found.read(0).size == (72, 64)
    assert np.unique(found.mask(0)).tolist() == [0, 1, 2, 255]
    assert found.select([5]).mask(0).shape == (64, 72)


def test_cityscapes_as_downloaded(tmp_path):
    ids = np.array([[7, 8, 33], [0, 26, 23]])
    for city in ("aachen", "bochum"):
        save(np.zeros((2, 3, 3)), tmp_path, "leftImg8bit", "val", city, f"{city}_1_leftImg8bit.png")
        save(ids, tmp_path, "gtFine", "val", city, f"{city}_1_gtFine_labelIds.png")
    found = scenes(tmp_path)
    assert len(found) == 2 and len(found.classes) == 19
    assert found.mask(1).tolist() == [[0, 1, 18], [255, 13, 10]]
    (tmp_path / "gtFine" / "val" / "bochum" / "bochum_1_gtFine_labelIds.png").unlink()
    with pytest.raises(InputError, match="lacks the mask of 'bochum_1'"):
        scenes(tmp_path)


def test_coloured_masks(pairs):
    mask = np.zeros((64, 72, 3), np.uint8)
    mask[:, :40], mask[:, 40:] = COLOURS["car"], COLOURS["sky"]
    save(mask, pairs, "val", "masks", "0.png")
    with pytest.raises(InputError, match=r"classes\.json"):
        scenes(pairs).mask(0)
    (pairs / "classes.json").write_text(json.dumps(COLOURS))
    found = scenes(pairs)
    assert found.classes == ("sky", "road", "car")
    assert np.unique(found.mask(0)).tolist() == [0, 2]
    mask[0, 0] = 1, 2, 3
    save(mask, pairs, "val", "masks", "0.png")
    with pytest.raises(InputError, match=r"\[1, 2, 3\]"):
        scenes(pairs).mask(0)
    (pairs / "classes.json").write_text('{"sky": 3}')
    with pytest.raises(InputError, match="must map class names"):
        scenes(pairs)


def test_missing_folders_and_masks_are_named(pairs, tmp_path):
    (pairs / "val" / "masks" / "5.png").unlink()
    with pytest.raises(InputError, match=r"lacks the mask of '5\.png' \(1 in all\)"):
        scenes(pairs)
    with pytest.raises(InputError, match="holds no scenes"):
        scenes(pairs / "train" / "masks")
    with pytest.raises(InputError, match="--data"):
        load_scenes(SPEC, Task(), "evaluation", labelled=True)


def test_intersections_count_pixels():
    truth = torch.tensor([[0, 0, 1], [2, 2, 255]])
    found = torch.tensor([[0, 1, 1], [2, 0, 0]])
    assert intersections(found, truth, 3, 255).tolist() == [[1, 1, 0], [0, 1, 0], [1, 0, 1]]
    figures = segmentation._figures(intersections(found, truth, 3, 255), ("a", "b", "c"))
    assert figures["miou"] == pytest.approx((1 / 3 + 1 / 2 + 1 / 2) / 3)
    assert figures["pixel-accuracy"] == pytest.approx(3 / 5) and figures["iou c"] == pytest.approx(1 / 2)


class Painter(torch.nn.Module):
    """Says of each pixel the class that its brightness tells."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = torch.nn.Conv2d(3, 3, 1)

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        level = pixel_values.mean(1, keepdim=True)
        return -(level - torch.tensor([0.12, 0.43, 0.74]).view(1, 3, 1, 1)).abs() * 50 + 0 * self.conv(pixel_values)


def processor():
    return SegformerImageProcessorPil(do_resize=False, image_mean=[0.0] * 3, image_std=[1.0] * 3)


def test_a_perfect_painter_is_perfect(pairs):
    figures = segmentation.evaluate(Painter(), processor(), scenes(pairs), reference=Painter())
    assert figures["miou"] > 0.99 and figures["kl"] == pytest.approx(0, abs=1e-6) and figures["skipped"] == 1


@pytest.mark.parametrize(("size", "tile", "starts"), [(64, 64, [0]), (72, 64, [0, 8]), (200, 64, [0, 45, 91, 136])])
def test_tiles_cover_and_overlap(size, tile, starts):
    assert segmentation._starts(size, tile) == starts


def test_tiles_change_nothing_for_a_network_that_looks_at_single_pixels(pairs):
    whole = segmentation.evaluate(Painter(), processor(), scenes(pairs))
    tiles = segmentation.evaluate(Painter(), processor(), scenes(pairs), reference=Painter(), tile=40)
    assert tiles.pop("kl") == pytest.approx(0, abs=1e-6)
    assert tiles == pytest.approx(whole)


def test_masks_that_do_not_fit_are_refused(pairs):
    save(np.zeros((10, 10)), pairs, "val", "masks", "0.png")
    with pytest.raises(InputError, match="72 x 64 pixels and its mask 10 x 10"):
        segmentation.evaluate(Painter(), processor(), scenes(pairs))
    save(np.full((64, 72), 7), pairs, "val", "masks", "0.png")
    with pytest.raises(InputError, match="class 7 and the model 3"):
        segmentation.evaluate(Painter(), processor(), scenes(pairs))


@pytest.mark.parametrize("family", slow_but(["Segformer"], ["Segformer", "Mask2Former"]))
def test_the_job_from_a_folder(family, pairs, tmp_path, monkeypatch, capsys):
    source, small = tmp_path / "dense", tmp_path / "small"
    model = of_transformers(family)
    model.save_pretrained(source)
    processor().save_pretrained(source)
    data = ["--task", "semantic-segmentation", "--data", str(pairs), "--examples", "8", "--budget", "85%"]
    monkeypatch.setattr(sys, "argv", ["optin", "prune", str(source), "--out", str(small), *data, "--json"])
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert not end.value.code, capsys.readouterr().err
    report = json.loads((small / "report.json").read_text())
    assert report["macs"]["pruned"] <= 0.85 * report["macs"]["dense"]
    assert {"miou", "pixel-accuracy", "kl", "skipped"} <= set(report["quality"]["pruned"])
    recipe = optin.Recipe().override(task__name="semantic-segmentation", task__data=str(pairs))
    figures = run_evaluate(str(small), recipe, Placement())
    assert figures["miou"] == pytest.approx(report["quality"]["pruned"]["miou"])
    drawn = run_draw(small, recipe, Placement(), tmp_path / "pictures", 4, str(source))  # the fourth cannot be read
    sizes = [open_image(Path(path)).size for path in drawn.values() if path.endswith(".png")]
    assert len(sizes) == 4 and all(width > 1400 for width, _ in sizes)
    assert list(drawn.values())[-1].endswith("scene-4.png")
    tiles = [
        "evaluate",
        str(small),
        "--task",
        "semantic-segmentation",
        "--data",
        str(pairs),
        "--tile",
        "40",
        "--json",
    ]
    monkeypatch.setattr(sys, "argv", ["optin", *tiles])
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert not end.value.code and "miou" in capsys.readouterr().out
