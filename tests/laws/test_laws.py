"""Every method of the table before every law that applies to it; LORICA_LAWS=whole leaves no sampled case out."""

import os
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from table import CASES, Row, in_turn

import laws
from tiny_bases import Base, KeptBase

WHOLE = os.environ.get("LORICA_LAWS") == "whole"
TURNS = count()


def over(condition: Callable[[Row], bool] = lambda row: True) -> Any:
    turn = next(TURNS)
    chosen = [(base, row) for base, row in CASES if condition(row) and (WHOLE or in_turn(base, row, turn))]
    return pytest.mark.parametrize(("base", "row"), chosen, ids=[f"{row}-{base}" for base, row in chosen])


@over(lambda row: row.starts)
def test_the_start_is_the_base(base: Base, row: Row):
    laws.the_start_is_the_base(base, row.method)


@over(lambda row: row.repairs)
def test_the_start_repairs_what_quantising_took(base: KeptBase, row: Row):
    laws.the_start_repairs_what_quantising_took(base, row.method)


@over(lambda row: row.mergeable)
def test_forward_is_the_merged_weight(base: Base, row: Row):
    laws.forward_is_the_merged_weight(base, row.method)


@over()
def test_everything_declared_moves_and_nothing_else(base: Base, row: Row):
    laws.everything_declared_moves_and_nothing_else(base, row.method)


@over()
def test_detaching_gives_back_the_base(base: Base, row: Row):
    laws.detaching_gives_back_the_base(base, row.method)


@over(lambda row: row.mergeable)
def test_merging_leaves_a_plain_model_of_the_same_outputs(base: Base, row: Row):
    laws.merging_leaves_a_plain_model_of_the_same_outputs(base, row.method)


@over(lambda row: row.stored)
def test_saving_and_loading_keeps_every_bit(base: Base, row: Row, tmp_path: Path):
    laws.saving_and_loading_keeps_every_bit(base, row.method, tmp_path)


@over()
def test_parameters_are_counted(base: Base, row: Row):
    laws.parameters_are_counted(base, row.method, row.count)


@over(lambda row: not row.bent)
def test_gradients_are_slopes(base: Base, row: Row):
    laws.gradients_are_slopes(base, row.method)


@over()
def test_recomputation_changes_nothing(base: Base, row: Row):
    laws.recomputation_changes_nothing(base, row.method)


@over()
def test_micro_batches_draw_the_masks_of_the_whole(base: Base, row: Row):
    laws.micro_batches_draw_the_masks_of_the_whole(base, row.method)
