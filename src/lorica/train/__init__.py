"""Optimiser steps, checkpoints and metrics: a task and batches go in, a trained adapter comes out."""

from lorica.train.config import TrainConfig
from lorica.train.loop import fit
from lorica.train.optimizers import OptimizerConfig
from lorica.train.records import EvalRecord, Run, StepRecord
from lorica.train.reporter import Quiet, Reporter, Several

__all__ = ["EvalRecord", "OptimizerConfig", "Quiet", "Reporter", "Run", "Several", "StepRecord", "TrainConfig", "fit"]
