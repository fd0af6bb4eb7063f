"""Damaged adapter files: a sample of `make campaign`, and what the reader of tensors takes and refuses."""

import json
import struct
from itertools import chain, islice

import pytest
import torch
from safetensors.torch import load as safetensors_load
from safetensors.torch import save as safetensors_save

from campaign.adapters import Case, closed, giants, mutant, opened, specimen
from campaign.files import adapter_controls, exhaustive
from campaign.judge import Judge, Tally
from lorica.adapter.file import TENSORS
from lorica.adapter.tensors import tensors
from lorica.errors import AdapterError

QUICK_GIANTS = {"a header of lists", "a header beyond the largest", "names of 62 dots and 50,000 modules to save"}


@pytest.fixture(scope="module")
def judge() -> Judge:
    return Judge()


def test_damage_is_refused_or_changes_nothing(judge: Judge) -> None:
    """Every 101st bit and length, 800 mutants: with lorica.json the same tensors or AdapterError, without what
    safetensors and PEFT read."""
    tally = Tally()
    for case in chain(islice(exhaustive(), 0, None, 101), (mutant(2, number) for number in range(800))):
        judge(case, tally)
    assert not tally.failed, tally.failures
    assert tally.total > 1200
    assert sum(kind.get("refused", 0) for kind in tally.counts.values()) > 800


def test_files_made_to_take_memory_or_time_are_refused_at_once(judge: Judge) -> None:
    tally = Tally()
    for giant in giants():
        if giant.what in QUICK_GIANTS:
            judge(Case(giant.what, giant.make()), tally)
    assert tally.total == len(QUICK_GIANTS)
    assert not tally.failed, tally.failures


def test_the_campaign_notices_each_guard_that_is_taken_out(judge: Judge) -> None:
    told = adapter_controls(judge)
    assert all(control["red"] for control in told.values()), told


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_what_safetensors_writes_is_read_to_the_bit(dtype: torch.dtype) -> None:
    saved = {"a.b": torch.randn(3, 5).to(dtype), "a": torch.randn(7).to(dtype), "scalar": torch.tensor(2.0).to(dtype)}
    found = tensors(bytearray(safetensors_save(saved, {"format": "pt", "note": 'a "quoted" \\ word'})), "file")
    assert found.keys() == saved.keys()
    assert all(torch.equal(found[name], saved[name]) and found[name].dtype == dtype for name in saved)


def test_a_header_that_leaves_tensors_off_their_boundaries_is_read() -> None:
    """The format asks for no alignment; torch does."""
    header, payload = opened(specimen("lora")[TENSORS])
    for blanks in range(4):
        data = closed(json.dumps(header).encode() + b" " * blanks, payload)
        theirs = safetensors_load(data)
        assert all(torch.equal(theirs[name], tensor) for name, tensor in tensors(bytearray(data), "file").items())


ONE = b'"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}'


def changed(**entries: object) -> bytes:
    """A header of one tensor, with entries of it changed."""
    entry = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]} | entries
    return closed(
        json.dumps({"a": {key: value for key, value in entry.items() if value is not None}}).encode(), b"\0" * 8
    )


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "0 bytes are there"),
        (b"\0" * 9, "9 bytes are there"),
        (struct.pack("<Q", 2**63) + b"{}", "takes 9223372036854775808"),
        (closed(b"{}", b""), "holds no tensor"),
        (closed(b"[]", b""), "not a header of safetensors"),
        (closed(b'{"__metadata__":{"a":1}}', b""), "not a header"),
        (closed(b'{"\\ud800":{}}', b""), "not a header"),
        (closed(b'{"__metadata__":{"a":"\xff"}}', b""), "is not UTF-8"),
        (changed(dtype="I32"), "stored as I32; an adapter holds F64, F32, F16, BF16"),
        (changed(dtype="F8_E4M3"), "stored as F8_E4M3"),
        (changed(shape=[3]), r"F32 \[3\] in 8 bytes"),
        (changed(shape=[2**61, 4]), "in 8 bytes"),
        (changed(shape=[1] * 9 + [2]), "in 8 bytes"),
        (changed(shape=[-2]), "not a header"),
        (changed(shape=[2.0]), "not a header"),
        (changed(shape=[0], data_offsets=[0, 0]), "the tensors take 0 bytes, and 8 are there"),
        (changed(data_offsets=[4, 12]), "begins at byte 4 of the tensors, where 0 is next"),
        (changed(data_offsets=[8, 0]), "in -8 bytes"),
        (changed(shape=[4], data_offsets=[0, 16]), "take 16 bytes, and 8 are there"),
        (changed(extra=1), "not a header"),
        (changed(dtype=None), "not a header"),
        (closed(b"{%s,%s}" % (ONE, ONE), b"\0" * 4), "'a' is there twice"),
        (changed() + b"\0", "take 8 bytes, and 9 are there"),
        (changed()[:-8] + struct.pack("<ff", 1, float("nan")), "a holds values that are not finite"),
    ],
)
def test_a_header_that_lies_is_refused_with_what_is_wrong(data: bytes, said: str) -> None:
    with pytest.raises(AdapterError, match=said) as refused:
        tensors(bytearray(data), "adapter_model.safetensors")
    assert str(refused.value).startswith("adapter_model.safetensors: ")
    assert "\n" not in str(refused.value)
