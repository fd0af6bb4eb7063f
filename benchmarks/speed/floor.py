"""Operations that a step cannot do without, and the seconds they take at the rate of the best matrix product.

    adapter     4 N_lin + 6 N_lora + 4 p V D + 7 S Q L      a token of a document of S tokens, a share p of them
    full        6 N_lin            + 6 p V D + 7 S Q L      learned

4: forward, and the gradient of the input; 6: that of the weight too.  Attention below the diagonal alone: 2 S Q L
forward, 5 S Q L backward with its probabilities made once more.
"""

from collections.abc import Sequence

from benchmarks.speed.shapes import Shape


def step_operations(shape: Shape, lengths: Sequence[int], *, r: int | None) -> float:
    """Of one step over documents of these lengths, all tokens learned but each first one.  r None: full fine-tuning."""
    return sum(_document(shape, length, r) for length in lengths)


def _document(shape: Shape, length: int, r: int | None) -> float:
    linear = shape.layers * sum(d_in * d_out for d_in, d_out in shape.linears)
    low_rank = 0 if r is None else r * shape.layers * sum(d_in + d_out for d_in, d_out in shape.linears)
    each = 6 if r is None else 4
    attention = 7 * length * shape.query_width * shape.layers
    head = each * (length - 1) * shape.vocabulary * shape.width
    return length * (each * linear + 6 * low_rank + attention) + head
