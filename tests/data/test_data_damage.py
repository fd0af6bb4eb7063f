"""Malformed data files: a sample of the 300 of `make campaign`."""

import pytest

from campaign.files import data_controls, read_case
from campaign.rows import DEFECTS


@pytest.mark.parametrize("defect", DEFECTS)
def test_a_malformed_file_is_counted_or_refused_with_its_place(defect: str) -> None:
    """Each defect twice, with its place, shape and format by other dice than the campaign's."""
    first = list(DEFECTS).index(defect)
    said = [read_case(7, number) for number in (first, first + len(DEFECTS))]
    assert [name for name, _ in said] == [defect, defect]
    assert [verdict for _, verdict in said if verdict.startswith("FAILED")] == []


def test_readers_that_guess_keep_or_let_pass_are_noticed() -> None:
    told = data_controls(7)
    assert all(control["red"] for control in told.values()), told
