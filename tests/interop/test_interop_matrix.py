"""A sample of the matrix (`make interop` runs the whole): PEFT's adapters and ours, both ways, by outputs."""

import pytest

from campaign.interop.cases import OPTIONS, cases, sample
from campaign.interop.controls import CONTROLS
from campaign.interop.families import FAMILIES
from campaign.interop.judge import judged


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    return tmp_path_factory.mktemp("bases")


@pytest.mark.parametrize("case", sample(), ids=lambda case: case.name)
def test_an_adapter_computes_the_same_here_and_in_peft_or_is_refused_by_name(case, bases, tmp_path):
    for verdict in judged(case, bases, tmp_path):
        assert verdict.outcome != "wrong", (verdict.way, verdict.faults)


@pytest.mark.parametrize("control", CONTROLS, ids=repr)
def test_the_matrix_turns_red_when_our_side_is_broken(control, bases, tmp_path):
    witness = control.cases()[-1]  # BART, whose embeddings are scaled
    with control.broken():
        assert any(verdict.outcome == "wrong" for verdict in judged(witness, bases, tmp_path))


def test_the_sample_holds_every_option_and_every_family():
    chosen = sample()
    assert {case.option for case in chosen} == set(OPTIONS)
    assert {case.family.name for case in chosen} == set(FAMILIES)


def test_the_whole_is_at_least_150_adapters():
    assert sum(case.setting.refused is None for case in cases()) >= 150
