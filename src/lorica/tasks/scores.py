"""Scores of answers.  N rows, C classes; confusion K (C, C): K[t, p] rows of class t were answered with p.

accuracy    share of rows answered rightly
F1          2 TP / (2 TP + FP + FN) of each class; macro: their mean over the classes that rows or answers have
Matthews    (N tr K - sum_k p_k t_k) / sqrt((N^2 - sum p_k^2) (N^2 - sum t_k^2))        Gorodkin 2004, equation 8
Pearson     cov(x, y) / (std x std y);  Spearman: Pearson of the ranks, equal values sharing their mean rank

Where a denominator is zero (one side is constant) the score is 0, which says as much as the answers do.
"""

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.integer]
Floats = npt.NDArray[np.floating]


def of_classes(answers: Ints, targets: Ints, classes: int) -> dict[str, float]:
    K = confusion(answers, targets, classes)
    return {"accuracy": accuracy(K), "f1": macro_f1(K), "matthews": matthews(K)}


def of_label_sets(answers: npt.NDArray[np.bool_], targets: npt.NDArray[np.bool_]) -> dict[str, float]:
    """(N, C) each.  `accuracy`: rows whose labels are all right and no other; `f1`: of all labels taken together;
    `f1_macro`: the mean over labels."""
    hits, wrong = answers & targets, answers ^ targets
    return {
        "accuracy": float((~wrong).all(1).mean()),
        "f1": _f1(hits.sum(), wrong.sum()),
        "f1_macro": _mean_f1(hits.sum(0), wrong.sum(0)),
    }


def of_numbers(answers: Floats, targets: Floats) -> dict[str, float]:
    return {
        "pearson": pearson(answers, targets),
        "spearman": pearson(ranks(answers), ranks(targets)),
        "mean_absolute_error": float(np.abs(answers - targets).mean()),
    }


def confusion(answers: Ints, targets: Ints, classes: int) -> Ints:
    return np.bincount(targets * classes + answers, minlength=classes * classes).reshape(classes, classes)


def accuracy(K: Ints) -> float:
    return float(np.trace(K) / K.sum())


def macro_f1(K: Ints) -> float:
    hits = np.diag(K)
    return _mean_f1(hits, K.sum(0) + K.sum(1) - 2 * hits)


def _mean_f1(hits: Ints, wrong: Ints) -> float:
    seen = hits + wrong > 0
    return float(np.mean(2 * hits[seen] / (2 * hits[seen] + wrong[seen]))) if seen.any() else 0.0


def _f1(hits: int, wrong: int) -> float:
    return float(2 * hits / (2 * hits + wrong)) if hits + wrong else 0.0


def matthews(K: Ints) -> float:
    total, answered, wanted = K.sum(), K.sum(0).astype(float), K.sum(1).astype(float)
    scale = (total**2 - (answered**2).sum()) * (total**2 - (wanted**2).sum())
    return float((total * np.trace(K) - answered @ wanted) / np.sqrt(scale)) if scale > 0 else 0.0


def pearson(x: Floats, y: Floats) -> float:
    x, y = x - x.mean(), y - y.mean()
    scale = np.sqrt((x @ x) * (y @ y))
    return float(x @ y / scale) if scale > 0 else 0.0


def ranks(values: Floats) -> Floats:
    """From 1; equal values share the mean of their places."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = counts.cumsum()
    return (last - (counts - 1) / 2)[inverse]
