"""Optimiser steps, checkpoints and metrics: a task and batches go in, a trained adapter comes out."""
