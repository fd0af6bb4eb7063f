"""LayerNorm and RMSNorm with gains and biases of their own, and a linear with its own bias, in plain loops.

LayerNorm   g (x - mean) / sqrt(var + eps) + b      Ba et al. 2016, arXiv:1607.06450
RMSNorm     g x / sqrt(mean x^2 + eps)              Zhang & Sennrich 2019, arXiv:1910.07467
linear      W x + b'                                Ben Zaken et al. 2022, arXiv:2106.10199, section 3
"""

import math


def layer_norm(x, g, b, eps):
    mean = math.fsum(x) / len(x)
    std = math.sqrt(math.fsum((v - mean) ** 2 for v in x) / len(x) + eps)
    return [gain * (v - mean) / std + bias for v, gain, bias in zip(x, g, b, strict=True)]


def rms_norm(x, g, eps):
    rms = math.sqrt(math.fsum(v * v for v in x) / len(x) + eps)
    return [gain * v / rms for v, gain in zip(x, g, strict=True)]


def linear(x, W, b):
    return [math.fsum(w * v for w, v in zip(row, x, strict=True)) + bias for row, bias in zip(W, b, strict=True)]
