"""Bottleneck adapters in plain loops, from Houlsby et al. 2019, arXiv:1902.00751, figure 2.

    h + W_up f(W_down h + b_down) + b_up        W_down (m, d), W_up (d, m)

Numbers in and out are nested lists.
"""

import math

F = {
    "relu": lambda x: max(0.0, x),
    "gelu": lambda x: 0.5 * x * (1 + math.erf(x / math.sqrt(2))),
    "swish": lambda x: x / (1 + math.exp(-x)),
    "tanh": math.tanh,
}


def bottleneck(h, down, down_bias, up, up_bias, name):
    """One token: h (d) -> (d)."""
    inner = [math.fsum(w * x for w, x in zip(row, h, strict=True)) + b for row, b in zip(down, down_bias, strict=True)]
    inner = [F[name](x) for x in inner]
    outer = [math.fsum(w * x for w, x in zip(row, inner, strict=True)) + b for row, b in zip(up, up_bias, strict=True)]
    return [x + y for x, y in zip(h, outer, strict=True)]
