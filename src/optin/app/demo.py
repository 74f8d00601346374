"""The demo: a real encoder, real sentences, the whole job, nothing from a hub.

MiniLM gets a sentiment head by logistic regression on its pooled embeddings, is pruned to half of its MACs
with 256 unlabelled sentences, saved, reloaded, and compared with the dense network on 1,000 held-out ones.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from ..pipeline import prune
from ..recipe import Recipe
from ..running.batch import without_labels
from ..space.options import Calibration
from ..storage.loading import load
from ..storage.saving import NETWORK, update_figures
from ..storage.silenced import silenced
from ..support.folders import check_new
from ..support.progress import Track, silent
from ..support.untyped import Figures, Foreign
from ..tasks import Examples, load_tokenizer, task_spec
from ..tasks.text import bucketed, calibration_batches, encode, evaluate
from .benchmark import compare_speed
from .demo_data import Sentences, minilm_folder, rotten_tomatoes

BUDGET = "50%"
TRAINING = 3000  # labelled sentences that the head is fitted to
LENGTH = 128
CALIBRATION = Calibration(max_length=LENGTH)


def run_demo(out: Path, track: Track = silent) -> Figures:
    """Run everything; returns the figures and the paths of what was written."""
    check_new(out / "pruned", NETWORK, overwrite=True)
    train, held_out = rotten_tomatoes()
    folder = str(minilm_folder())
    tokenizer = load_tokenizer(folder)
    dense = classifier(folder, tokenizer, train.head(TRAINING), track)
    recipe = Recipe(model="sentence-transformers/all-MiniLM-L6-v2", budget=BUDGET, calibration=CALIBRATION)
    unlabelled = Examples(train.texts[TRAINING:])
    batches = calibration_batches(dense, unlabelled, tokenizer, recipe.calibration, recipe.seed)
    result = prune(dense, batches, recipe=recipe, track=track)
    spec, examples = task_spec("text-classification"), Examples(held_out.texts, None, list(held_out.labels))
    result.save(out / "pruned", tokenizer, overwrite=True)
    pruned = load(out / "pruned")
    result.report["quality"] = {
        "examples": len(examples),
        "dense": evaluate(dense, tokenizer, spec, examples, track=track),
        "pruned": evaluate(pruned, tokenizer, spec, examples, reference=dense, track=track),
    }
    speed = [item.to_dict() for item in compare_speed(dense, pruned, track=track)]
    result.report["speed"] = speed
    update_figures(result, out / "pruned")  # with what only the reloaded network could show
    files = {name: str(out / "pruned" / name) for name in ("report.html", "README.md", "model.safetensors")}
    return {"pruning": {**result.report, "saved": str(out / "pruned")}, "speed": speed, "files": files}


def classifier(folder: str, tokenizer: object, sentences: Sentences, track: Track = silent) -> nn.Module:
    """BERT with a two-class head fitted by logistic regression; the encoder stays as it is."""
    from transformers import AutoModelForSequenceClassification

    with silenced():
        model: Foreign = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=2).eval()
    examples = Examples(sentences.texts)
    groups = bucketed(examples, range(len(examples)), 64)
    features = []
    with torch.inference_mode():
        for group in track(groups, "embed for the head", len(groups)):
            batch = without_labels(dict(encode(tokenizer, examples, group, LENGTH)))
            features.append(model.base_model(**batch).pooler_output)
    order = [index for group in groups for index in group]
    weight, bias = logistic_regression(
        torch.cat(features).clone(), torch.tensor([sentences.labels[i] for i in order])
    )
    with torch.no_grad():
        model.classifier.weight.copy_(weight)
        model.classifier.bias.copy_(bias)
    network: nn.Module = model
    return network


def logistic_regression(features: Tensor, labels: Tensor, penalty: float = 1e-3) -> tuple[Tensor, Tensor]:
    """Weights of shape (classes, dim) and bias of shape (classes,), by L-BFGS on the mean loss plus a ridge."""
    classes = nn.Linear(features.shape[1], int(labels.max()) + 1)
    nn.init.zeros_(classes.weight)
    nn.init.zeros_(classes.bias)
    optimizer = torch.optim.LBFGS(classes.parameters(), max_iter=200, line_search_fn="strong_wolfe")

    def loss() -> float:
        optimizer.zero_grad()
        value = nn.functional.cross_entropy(classes(features), labels) + penalty * classes.weight.square().sum()
        value.backward()
        return float(value.detach())

    optimizer.step(loss)
    return classes.weight.detach(), classes.bias.detach()
