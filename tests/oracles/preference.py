"""Preference tuning from Rafailov et al. 2023, arXiv:2305.18290, equation 7, one pair at a time in plain floats."""

import math


def log_probability(logits, tokens, learned):
    """log p of the learned tokens of one document: logits (T, V), each row the prediction of the next token."""
    total = 0.0
    for place in range(1, len(tokens)):
        if learned[place]:
            row = [float(value) for value in logits[place - 1]]
            top = max(row)
            total += row[tokens[place]] - top - math.log(sum(math.exp(value - top) for value in row))
    return total


def loss(policy, reference, beta, smoothing=0.0):
    """policy and reference: (log p(chosen), log p(rejected))."""
    margin = beta * ((policy[0] - reference[0]) - (policy[1] - reference[1]))
    sigmoid = 1 / (1 + math.exp(-margin))
    return -(1 - smoothing) * math.log(sigmoid) - smoothing * math.log(1 - sigmoid)
