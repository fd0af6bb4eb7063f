"""Scores by their definitions, in plain loops."""

from itertools import product
from math import sqrt


def f1(answers, targets, label):
    hits = sum(a == t == label for a, t in zip(answers, targets, strict=True))
    said, wanted = list(answers).count(label), list(targets).count(label)
    if not hits:
        return 0.0
    precision, recall = hits / said, hits / wanted
    return 2 * precision * recall / (precision + recall)


def macro_f1(answers, targets):
    labels = {*answers, *targets}
    return sum(f1(answers, targets, label) for label in labels) / len(labels)


def matthews(answers, targets, classes):
    """Gorodkin 2004, equation 8: a covariance of the confusion matrix over two variances, in its triple sums."""
    C = [[0] * classes for _ in range(classes)]
    for answer, target in zip(answers, targets, strict=True):
        C[target][answer] += 1
    every = range(classes)
    top = sum(C[k][k] * C[m][n] - C[n][k] * C[k][m] for k, m, n in product(every, repeat=3))
    said = sum(sum(C[j][k] for j in every) * sum(C[g][f] for g in every for f in every if f != k) for k in every)
    wanted = sum(sum(C[k][j] for j in every) * sum(C[f][g] for g in every for f in every if f != k) for k in every)
    return top / sqrt(said * wanted) if said * wanted else 0.0


def pearson(x, y):
    n = len(x)
    mx, my = sum(x) / n, sum(y) / n
    top = sum((a - mx) * (b - my) for a, b in zip(x, y, strict=True))
    return top / sqrt(sum((a - mx) ** 2 for a in x) * sum((b - my) ** 2 for b in y))


def rank(values):
    """Of each value: one more than how many are smaller, and half of how many others are equal."""
    return [1 + sum(b < a for b in values) + (sum(b == a for b in values) - 1) / 2 for a in values]
