"""AdaLoRA in plain loops, from Zhang et al. 2023, arXiv:2303.10512, equations 3, 4 and 8 to 12 (12 as the code has it).

    h = W0 x + (alpha / r) P diag(l) Q x        P (d_out, r), l (r), Q (r, d_in)

A site is a dict of nested lists: P, l, Q.  Gradients have the same form.
"""

import math

Vector = list[float]
Matrix = list[Vector]
Site = dict[str, list]


def times(matrix: Matrix, vector: Vector) -> Vector:
    return [math.fsum(entry * x for entry, x in zip(row, vector, strict=True)) for row in matrix]


def adalora(x: Vector, W: Matrix, bias: Vector, site: Site, s: float, mask: Vector | None = None) -> Vector:
    """One token: x (d_in) -> (d_out); `mask` is the dropout mask of that token."""
    dropped = x if mask is None else [value * kept for value, kept in zip(x, mask, strict=True)]
    scaled = [value * entry for value, entry in zip(site["l"], times(site["Q"], dropped), strict=True)]
    update = times(site["P"], scaled)
    return [base + b + s * u for base, b, u in zip(times(W, x), bias, update, strict=True)]


def orthogonality(sites: list[Site]) -> float:
    """The mean over all matrices of || P^T P - I ||_F and || Q Q^T - I ||_F, as in the authors' code."""
    norms = []
    for site in sites:
        columns = [[row[i] for row in site["P"]] for i in range(len(site["l"]))]
        for vectors in (columns, site["Q"]):
            total = 0.0
            for i, first in enumerate(vectors):
                for j, second in enumerate(vectors):
                    gram = math.fsum(a * b for a, b in zip(first, second, strict=True))
                    total += (gram - (1.0 if i == j else 0.0)) ** 2
            norms.append(math.sqrt(total))
    return math.fsum(norms) / len(norms)


def budget(step: int, start: int, end: int, warmup: int, final: int, total: int) -> int:
    if step <= warmup:
        return start
    if step >= total - final:
        return end
    return int(end + (start - end) * (1 - (step - warmup) / (total - final - warmup)) ** 3)


class Entry:
    """Sensitivity and uncertainty of one number."""

    def __init__(self) -> None:
        self.mean = self.doubt = 0.0

    def see(self, weight: float, gradient: float, beta1: float, beta2: float) -> None:
        sensitivity = abs(weight * gradient)
        self.mean = beta1 * self.mean + (1 - beta1) * sensitivity
        self.doubt = beta2 * self.doubt + (1 - beta2) * abs(sensitivity - self.mean)

    @property
    def score(self) -> float:
        return self.mean * self.doubt


class Allocator:
    """The scores of every entry of every site."""

    def __init__(self, sites: list[Site], beta1: float, beta2: float) -> None:
        self.betas = beta1, beta2
        self.entries = [
            {
                "P": [[Entry() for _ in row] for row in site["P"]],
                "l": [Entry() for _ in site["l"]],
                "Q": [[Entry() for _ in row] for row in site["Q"]],
            }
            for site in sites
        ]

    def see(self, sites: list[Site], gradients: list[Site]) -> None:
        for entries, site, gradient in zip(self.entries, sites, gradients, strict=True):
            for entry, weight, slope in zip(entries["l"], site["l"], gradient["l"], strict=True):
                entry.see(weight, slope, *self.betas)
            for part in ("P", "Q"):
                for row, weights, slopes in zip(entries[part], site[part], gradient[part], strict=True):
                    for entry, weight, slope in zip(row, weights, slopes, strict=True):
                        entry.see(weight, slope, *self.betas)

    def triplets(self) -> list[float]:
        scores = []
        for entries in self.entries:
            for i, value in enumerate(entries["l"]):
                left = math.fsum(row[i].score for row in entries["P"]) / len(entries["P"])
                right = math.fsum(entry.score for entry in entries["Q"][i]) / len(entries["Q"][i])
                scores.append(value.score + left + right)
        return scores

    def kept(self, budget: int) -> list[bool]:
        """The best; of equals the first."""
        scores = self.triplets()
        best = sorted(range(len(scores)), key=lambda place: (-scores[place], place))[:budget]
        return [place in best for place in range(len(scores))]
