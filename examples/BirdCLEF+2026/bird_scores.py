"""How good scores are: ROC-AUC by class and on average. Knows tensors alone."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def roc_auc(scores: Tensor, truth: Tensor) -> float:
    """The chance that a positive has a higher score than a negative; a tie counts half.

    Args:
        scores: ``[N]``, finite.
        truth: booleans ``[N]``.

    Returns:
        In 0…1; NaN where there is no positive or no negative.
    """
    positives, negatives = int(truth.sum()), int((~truth).sum())
    if not (positives and negatives):
        return math.nan
    _, place, count = scores.unique(return_inverse=True, return_counts=True)
    count = count.double()
    ranks = count.cumsum(0) - (count - 1) / 2  # those of equal scores have their mean
    above = ranks[place[truth]].sum().item() - positives * (positives + 1) / 2
    return above / (positives * negatives)


def macro_roc_auc(scores: Tensor, truth: Tensor) -> tuple[float, list[float]]:
    """The mean over the classes that have positives (and negatives), and each class's own.

    Args:
        scores: ``[N, classes]``.
        truth: booleans of the same shape.

    Raises:
        ValueError: a score is not finite, or no class has both.
    """
    if not bool(torch.isfinite(scores).all()):
        raise ValueError("scores are not finite: the net has diverged, take a lower learning rate")
    found = [roc_auc(*pair) for pair in zip(scores.T, truth.T, strict=True)]
    counting = [area for area in found if not math.isnan(area)]
    if not counting:
        raise ValueError("no label is heard in some held-out windows and not in others")
    return sum(counting) / len(counting), found
