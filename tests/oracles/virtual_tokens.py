"""What makes the virtual tokens of prefix tuning and P-tuning, in plain loops.

    prefix      MLP(E[i]) -> keys and values of every layer     Li & Liang 2021, arXiv:2101.00190, section 4.3
    p-tuning    MLP([LSTM forwards; LSTM backwards])            Liu et al. 2021, arXiv:2103.10385, equation 3
    LSTM        gates input, forget, cell, output               Hochreiter & Schmidhuber 1997, torch's order of gates

Numbers in and out are nested lists.
"""

import math


def linear(W, b, x):
    return [math.fsum(w * v for w, v in zip(row, x, strict=True)) + bias for row, bias in zip(W, b, strict=True)]


def prefix(E, W1, b1, W2, b2):
    """One row of 2 K E numbers for each virtual token: the keys of a layer, then its values."""
    return [linear(W2, b2, [math.tanh(v) for v in linear(W1, b1, e)]) for e in E]


def relu(x):
    return [max(0.0, v) for v in x]


def mlp_prompt(E, layers):
    """`layers`: three pairs of weight and bias."""
    (W1, b1), (W2, b2), (W3, b3) = layers
    return [linear(W3, b3, relu(linear(W2, b2, relu(linear(W1, b1, e))))) for e in E]


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


def lstm(xs, W_ih, W_hh, b_ih, b_hh):
    """One direction: xs, the inputs in the order in which they are read -> the hidden states in that order."""
    width = len(W_hh[0])
    h, c, out = [0.0] * width, [0.0] * width, []
    for x in xs:
        gates = [a + b for a, b in zip(linear(W_ih, b_ih, x), linear(W_hh, b_hh, h), strict=True)]
        i, f, g, o = (gates[part * width : (part + 1) * width] for part in range(4))
        c = [sigmoid(f[k]) * c[k] + sigmoid(i[k]) * math.tanh(g[k]) for k in range(width)]
        h = [sigmoid(o[k]) * math.tanh(c[k]) for k in range(width)]
        out.append(h)
    return out


def lstm_prompt(E, directions, head):
    """`directions`: for every layer the four tensors forwards and the four backwards; head: two pairs."""
    xs = E
    for forwards, backwards in directions:
        there, back = lstm(xs, *forwards), lstm(xs[::-1], *backwards)[::-1]
        xs = [a + b for a, b in zip(there, back, strict=True)]
    (W1, b1), (W2, b2) = head
    return [linear(W2, b2, relu(linear(W1, b1, x))) for x in xs]
