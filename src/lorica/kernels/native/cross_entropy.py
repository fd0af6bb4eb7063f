"""Losses of logits, and their gradient in the logits' place, in C: each row in three passes while it is in cache."""

import ctypes
from functools import cache

import torch
from torch import Tensor

from lorica.kernels.native.build import Function, library


def to_gradient_(logits: Tensor, labels: Tensor) -> Tensor:
    """Losses (N,) float32 of logits (N, vocabulary), bfloat16 and contiguous, which become softmax - one-hot.

    IndexError where one of labels (N,) int64 is none of the vocabulary.
    """
    labels = labels.contiguous()
    losses = logits.new_empty(len(labels), dtype=torch.float32)
    if _function()(logits.data_ptr(), labels.data_ptr(), losses.data_ptr(), *logits.shape):
        raise IndexError(f"labels of {int(labels.min())} to {int(labels.max())}: the head has {logits.shape[1]} logits")
    return losses


@cache
def _function() -> Function:
    return library().function("lorica_cross_entropy", 3, ctypes.c_int64, ctypes.c_int64)
