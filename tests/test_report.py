from __future__ import annotations

import dataclasses
import json
import re
import shutil
from html.parser import HTMLParser

import pytest
import yaml
from huggingface_hub import ModelCard

import optin
from optin.recipe import Recipe
from optin.result import shown
from optin.storage.headline import sentence, tiles
from optin.storage.report import layers, plot, render
from tests.networks import tokenizer
from tests.test_cli import run, workspace  # noqa: F401


class Page(HTMLParser):
    """What a page holds: tags that were opened and not closed, images, figures and their texts."""

    VOID = ("meta", "link", "br", "img", "input", "circle", "path", "polyline", "wbr")

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.images: list[dict[str, str | None]] = []
        self.links: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        if tag not in self.VOID:
            self.open.append(tag)
        if tag in ("svg", "img") or given.get("role") == "img":
            self.images.append(given)
        self.links += [given[name] for name in ("src", "href") if given.get(name)]

    def handle_endtag(self, tag):
        if tag not in self.VOID:
            assert self.open.pop() == tag


@pytest.fixture
def result(bert, batches):
    found = optin.prune(bert, batches, "60%", recipe=Recipe(model="someone/something"))
    found.report["quality"] = {"examples": 40, "dense": {"accuracy": 0.9}, "pruned": {"accuracy": 0.875, "kl": 0.01}}
    return found


def test_the_page_stands_alone_and_says_everything(result, tmp_path):
    folder = result.save(tmp_path / "small")
    html = (folder / "report.html").read_text()
    page = Page(html)
    assert page.open == [] and "<script" not in html and all(link.startswith("data:") for link in page.links)
    assert len(page.images) == 7 + len(layers(result.report["breakdown"])) + 7  # units, work, curves
    assert all(image.get("aria-label") or image.get("alt") for image in page.images)
    for words in ("0.875", f"{result.plan.pruned.macs:,}", "40 examples only", "weights, MB", "someone/something"):
        assert words in html
    assert html.index("0.875") < html.index("What stayed")


def test_the_page_opens_with_a_sentence_and_three_figures(result):
    speeds = [{"batch": batch, "length": 9, "dense_ms": 2.0, "pruned_ms": 1.0, "speedup": 1.94} for batch in (1, 32)]
    report = {**result.report, "speed": speeds, "machine": {"device": "a processor, 2 threads", "date": "2026-11-28"}}
    share = f"{100 * report['bytes']['pruned'] / report['bytes']['dense']:.0f} %"
    html = render(report, result.plan, result.recipe, "someone/something")
    said = f"1.9 times as fast, {share} of the size of someone/something, 2.5 points of accuracy lost on 40 examples."
    assert said in html and html.index(said) < html.index("MACs per example")
    assert [(tile.value, tile.good) for tile in tiles(report)] == [("1.9", True), (share, True), ("-2.5", False)]
    assert "a processor, 2 threads, 2026-11-28" in html and 'class="tile bad"' in html
    same = {"quality": {"dense": {"accuracy": 0.9}, "pruned": {"accuracy": 0.9}}}
    same["quality"]["interval"] = {"accuracy": [-0.011, 0.0]}
    assert sentence(same, "x") == "No points of accuracy lost (95 % interval 0.0 to 1.1)."
    gained = {"quality": {"dense": {"f1": 0.8}, "pruned": {"f1": 0.81}, "interval": {"f1": [-0.001, 0.02]}}}
    assert sentence(gained, "x") == "1.0 points of f1 gained (95 % interval -0.1 to 2.0)."
    del same["quality"]["interval"]
    assert sentence(same, "x") == "No points of accuracy lost." and sentence({}, "x") == "" and tiles({}) == []


def test_other_budgets_are_offered_without_a_script(result):
    points = [{"macs": share / 100, "parameters": share / 200, "kl": 1 / share} for share in range(90, 20, -10)]
    report = {**result.report, "macs": {"dense": 1000, "pruned": 496}, "outlook": points}
    report["speed"] = [{"batch": 32, "length": 9, "dense_ms": 2.0, "pruned_ms": 1.0, "speedup": 1 / 0.55}]
    html = render(report, result.plan, result.recipe, "x")
    page = Page(html)
    assert page.open == [] and "<script" not in html
    assert html.count('type="radio"') == 7 and html.count(" checked>") == 1
    assert 'id="budget-5" checked' in html and "#budget-5:checked ~ .estimate-5" in html
    own = re.search(r'<p class="estimate-5">(.*?)</p>', html).group(1)
    assert "50%" in own and "25% of the parameters" in own and "0.02" in own
    assert "<strong>1.8</strong> times as fast" in own  # between no gain with all MACs and what was measured
    assert "Other budgets" not in render(result.report, result.plan, result.recipe, "x")


def test_words_of_others_are_text(result):
    hostile = Recipe(model="<script>alert(1)</script>")
    html = render(result.report, result.plan, hostile, "<img src=x>")
    assert "<script" not in html and "<img src=x>" not in html
    bare = render({}, dataclasses.replace(result.plan, provenance={}), Recipe(), "bare")
    assert Page(bare).open == [] and "Quality was not measured" in bare


def test_the_work_is_all_there(result):
    found = layers(result.report["breakdown"])
    assert sum(layer["dense"] for layer in found) == result.plan.dense.macs
    assert sum(layer["pruned"] for layer in found) == result.plan.pruned.macs
    names = [layer["name"] for layer in layers({f"a.{n}.x": {"dense": 1, "pruned": 1} for n in (10, 9, 1)})]
    assert names == ["a.1", "a.9", "a.10"]


def test_figures_and_lines():
    assert [shown(value) for value in (None, 0.12345, 12.0, 1234.5, 0.0)] == ["", "0.1235", "12", "1,234", "0"]
    line = plot("t", [0.0, 1.0, 4.0], "t")
    assert [(point["x"], point["y"]) for point in line["points"]] == [(0, 180), (160, 135), (320, 0)]
    assert plot("t", [0.0, 0.0], "t")["points"][1]["y"] == 180


def test_the_card_tells_the_hub(result, tmp_path):
    card = (result.save(tmp_path / "small") / "README.md").read_text()
    metadata = yaml.safe_load(card.split("---")[1])
    assert metadata["base_model"] == "someone/something" and metadata["library_name"] == "transformers"
    assert metadata["pipeline_tag"] == "text-classification"
    (read, _) = ModelCard.load(tmp_path / "small" / "README.md").data.eval_results
    assert (read.metric_type, read.metric_value, read.dataset_type) == ("accuracy", 0.875, "text-classification")
    (found,) = metadata["model-index"][0]["results"]
    assert found["task"]["type"] == "text-classification"
    assert {metric["type"]: metric["value"] for metric in found["metrics"]} == result.report["quality"]["pruned"]


def test_the_card_names_the_data_of_the_hub_and_the_licence(result, tmp_path):
    (tmp_path / "dense").mkdir()
    (tmp_path / "dense" / "README.md").write_text("---\nlicense: mit\n---\n# Dense\n")
    result.report["quality"]["data"] = {"type": "nyu-mll/glue", "config": "sst2", "split": "validation"}
    found = dataclasses.replace(result, recipe=result.recipe.override(model=str(tmp_path / "dense")))
    card = ModelCard.load(found.save(tmp_path / "small") / "README.md").data
    assert card.license == "mit" and card.base_model is None
    assert {(one.dataset_type, one.dataset_config, one.dataset_split) for one in card.eval_results} == {
        ("nyu-mll/glue", "sst2", "validation")
    }


def test_others_can_read_what_was_saved(result, tmp_path):
    folder = result.save(tmp_path / "small", tokenizer())
    (tmp_path / "plain").touch()
    modes = {path.stat().st_mode for path in folder.iterdir()}
    assert modes == {(tmp_path / "plain").stat().st_mode}


def test_reports_on_the_command_line(run, workspace, tmp_path):  # noqa: F811
    common = ("--data", workspace, "--examples", 32, "--quiet")
    assert run("prune", workspace / "dense", "--budget", "60%", "--out", tmp_path / "small", *common)[0] == 0
    first = (tmp_path / "small" / "report.html").read_text()
    assert "ms, batch 1 of length" in first
    sweep = {
        "dense": {"accuracy": 0.5},
        "points": [{"budget": "60%", "macs": 0.6, "parameters": 0.7, "accuracy": 0.4}],
    }
    (tmp_path / "sweep.json").write_text(json.dumps(sweep))
    (tmp_path / "small" / "tokens-0.png").write_bytes(b"png")
    code, out, _ = run("report", tmp_path / "small", "--sweep", tmp_path / "sweep.json", "--json")
    assert code == 0 and json.loads(out)["pictures"] == 1
    second = (tmp_path / "small" / "report.html").read_text()
    assert "Quality against MACs" in second and "data:image/png;base64,cG5n" in second
    assert run("report", tmp_path / "nowhere")[0] == 2


def test_in_a_browser(result, tmp_path):
    """No error, nothing asked of the network, nothing wider than a phone."""
    driver = pytest.importorskip("playwright.sync_api")
    browser = shutil.which("chromium")
    if browser is None:
        pytest.skip("needs chromium")
    page_file = result.save(tmp_path / "small") / "report.html"
    with driver.sync_playwright() as play:
        chromium = play.chromium.launch(executable_path=browser, args=["--headless", "--no-sandbox"])
        for scheme in ("light", "dark"):
            page = chromium.new_page(viewport={"width": 390, "height": 800}, color_scheme=scheme)
            wrong: list[str] = []
            page.on("console", lambda message: wrong.append(message.text))  # noqa: B023
            page.on("pageerror", lambda error: wrong.append(str(error)))  # noqa: B023
            page.on("request", lambda asked: wrong.append(asked.url) if re.match("http|ws", asked.url) else None)  # noqa: B023
            page.goto(page_file.as_uri())
            assert wrong == [] and page.locator("svg").count() == 6
            assert page.evaluate("document.documentElement.scrollWidth") <= 390
            colour = page.evaluate("getComputedStyle(document.body).backgroundColor")
            assert (colour == "rgb(255, 255, 255)") == (scheme == "light")
        chromium.close()


def test_what_is_better_the_lower_it_is():
    def said(name, dense, pruned, interval=None, **others):
        quality = {"dense": {name: dense, **others}, "pruned": {name: pruned, **others}, "examples": 500}
        return {"quality": quality | ({"interval": {name: interval}} if interval else {})}

    worse = said("wer", 0.1, 0.12, [-0.005, 0.03])
    assert sentence(worse, "x") == "2.0 points of wer added (95 % interval -0.5 to 3.0) on 500 examples."
    assert tiles(worse)[0].good is False and tiles(worse)[0].value == "+2.0"
    better = said("wer", 1.2, 1.1, [-0.2, 0.01])
    assert sentence(better, "x") == "10.0 points of wer spared (95 % interval -1.0 to 20.0) on 500 examples."
    assert tiles(better)[0].good is True
    first = said("chrf", 0.5, 0.4, perplexity=3.0)
    assert sentence(first, "x") == "10.0 points of chrf lost on 500 examples."
    odd = said("perplexity", 20.0, 25.0, [4.0, 6.0])
    assert "erplexity 20.0 before and 25.0 after (95 % interval of the difference +4.0 to +6.0)" in sentence(odd, "x")
    assert tiles(odd)[0].value == "1.25" and tiles(odd)[0].good is False
