"""Every method of the table before every law that applies to it."""

from pathlib import Path

import pytest
from table import CASES, Row

import laws
from tiny_bases import Base


def over(condition=lambda row: True):
    chosen = [(base, row) for base, row in CASES if condition(row)]
    return pytest.mark.parametrize(("base", "row"), chosen, ids=[f"{row}-{base}" for base, row in chosen])


@over(lambda row: row.starts)
def test_the_start_is_the_base(base: Base, row: Row):
    laws.the_start_is_the_base(base, row.method)


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


@over(lambda row: row.slopes)
def test_gradients_are_slopes(base: Base, row: Row):
    laws.gradients_are_slopes(base, row.method)


@over()
def test_recomputation_changes_nothing(base: Base, row: Row):
    laws.recomputation_changes_nothing(base, row.method)


@over()
def test_micro_batches_draw_the_masks_of_the_whole(base: Base, row: Row):
    laws.micro_batches_draw_the_masks_of_the_whole(base, row.method)
