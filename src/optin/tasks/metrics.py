"""Metrics by name, computed by torchmetrics."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from ..errors import DependencyError, InputError
from ..support.untyped import Foreign

OVERLAP = 10  # neighbours that "overlap@10" compares


def measure(names: tuple[str, ...], predictions: Tensor, targets: Tensor, classes: int) -> dict[str, float]:
    """Evaluate metrics.

    Args:
        predictions: class indices or logits, values, or embeddings of shape (example, dim).
        targets: labels of the same shape; for embeddings the dense network's.
        classes: number of classes, for classification.
    """
    return {name: float(METRICS[name](predictions, targets, classes)) for name in names}


def check_metrics() -> None:
    """Find out whether metrics can be computed.

    Raises:
        DependencyError: torchmetrics is not installed.
    """
    _functional()


def _functional() -> Foreign:
    try:
        import torchmetrics.functional as functional
    except ImportError:
        raise DependencyError("metrics need the package 'torchmetrics': pip install 'optin[tasks]'") from None
    return functional


def _classification(name: str, **options: object) -> Callable[[Tensor, Tensor, int], Tensor]:
    def metric(predictions: Tensor, targets: Tensor, classes: int) -> Tensor:
        value: Tensor = getattr(_functional(), name)(
            predictions, targets, task="multiclass", num_classes=max(classes, 2), **options
        )
        return value

    return metric


def _top5(predictions: Tensor, targets: Tensor, classes: int) -> Tensor:
    """Share of examples whose class is among the five with the largest logits."""
    value: Tensor = _functional().accuracy(
        predictions, targets, task="multiclass", num_classes=max(classes, 2), top_k=min(5, classes)
    )
    return value


def _f1(predictions: Tensor, targets: Tensor, classes: int) -> Tensor:
    """F1 of class 1, as GLUE reports it for pairs of sentences."""
    value: Tensor = _functional().f1_score(predictions, targets, task="binary")
    return value


def _correlation(name: str) -> Callable[[Tensor, Tensor, int], Tensor]:
    def metric(predictions: Tensor, targets: Tensor, classes: int) -> Tensor:
        value: Tensor = getattr(_functional(), name)(predictions.float(), targets.float())
        return value

    return metric


def _cosine(predictions: Tensor, targets: Tensor, classes: int) -> Tensor:
    return torch.nn.functional.cosine_similarity(predictions, targets, dim=-1).mean()


def _overlap(predictions: Tensor, targets: Tensor, classes: int) -> Tensor:
    """Mean share of each example's nearest neighbours that both networks agree on."""
    count = min(OVERLAP, len(targets) - 1)

    def neighbours(values: Tensor) -> Tensor:
        similarity = torch.nn.functional.normalize(values, dim=-1)
        similarity = similarity @ similarity.mT
        similarity.fill_diagonal_(-torch.inf)
        return torch.zeros_like(similarity).scatter_(1, similarity.topk(count).indices, 1)

    return (neighbours(predictions) * neighbours(targets)).sum() / (len(targets) * max(count, 1))


def divergence(reference: Float[Tensor, "row classes"], values: Float[Tensor, "row others"]) -> Float[Tensor, ""]:
    """KL(reference || values) of the distributions behind logits, averaged over rows."""
    return divergences(reference, values).mean()


def divergences(
    reference: Float[Tensor, "*rows classes"], values: Float[Tensor, "*rows others"]
) -> Float[Tensor, "*rows"]:
    """KL(reference || values) of every row.

    A class that the reference masks, with a logit of minus infinity, adds nothing.

    Raises:
        InputError: the rows are of different classes.
    """
    if reference.shape != values.shape:
        raise InputError(
            f"the networks cannot be compared: one has {reference.shape[-1]:,} outputs and the other "
            f"{values.shape[-1]:,}."
        )
    log_ref, log_p = F.log_softmax(reference.float(), -1), F.log_softmax(values.float(), -1)
    terms = (log_ref.exp() * (log_ref - log_p)).masked_fill(log_ref == -torch.inf, 0)
    return terms.sum(-1).clamp_min(0)  # which rounding may fall below


def chrf(said: str, wanted: str) -> tuple[float, float]:
    """chrF of one text, from 0 to 1, and 1: the mean over texts is what is reported (Popovic, 2015)."""
    score = _functional().text.chrf_score([said], [[wanted]], n_word_order=0)
    return float(score), 1.0


def word_errors(said: str, wanted: str) -> tuple[float, float]:
    """Words that must be changed, put in or taken out, and words that are wanted: their sums make the error rate.

    Where nothing is to be said, as in silence, every word is one too many.
    """
    words = len(wanted.split())
    if words == 0:
        return float(len(said.split())), 0.0
    return float(_functional().text.word_error_rate([said], [wanted])) * words, float(words)


def intersections(predictions: Tensor, targets: Tensor, classes: int, ignored: int) -> Tensor:
    """How many pixels of each class (row) were found to be of each class (column)."""
    value: Tensor = _functional().confusion_matrix(
        predictions, targets, task="multiclass", num_classes=max(classes, 2), ignore_index=ignored
    )
    return value


METRICS: Mapping[str, Callable[[Tensor, Tensor, int], Tensor]] = {
    "accuracy": _classification("accuracy"),
    "top5": _top5,
    "macro-f1": _classification("f1_score", average="macro"),
    "matthews": _classification("matthews_corrcoef"),
    "f1": _f1,
    "pearson": _correlation("pearson_corrcoef"),
    "spearman": _correlation("spearman_corrcoef"),
    "cosine": _cosine,
    "overlap@10": _overlap,
}
