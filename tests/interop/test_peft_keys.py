"""Keys of PEFT's files as other programs spell them become PEFT's own, or the file is refused."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lorica.errors import AdapterError
from lorica.methods import LoRA
from lorica.methods.peft_keys import PREFIX

PATHS = st.lists(st.sampled_from(["model", "layers", "0", "q_proj", "lora", "lora_A", "weight", "default"]), min_size=1)
ENDS = ("lora_A.weight", "lora_B.weight", "lora_embedding_A", "lora_embedding_B")


@given(st.sets(PATHS.map(".".join), min_size=1), st.sampled_from(ENDS))
def test_what_peft_writes_stays_as_it_is(paths, end):
    keys = {f"{PREFIX}{path}.{end}" for path in paths}
    assert LoRA.plain_keys(keys) == {key: key for key in keys}


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        ("a.q.lora_A.weight", "base_model.model.a.q.lora_A.weight"),
        ("base_model.model.a.q.lora_B.default.weight", "base_model.model.a.q.lora_B.weight"),
        ("base_model.model.a.lora_A.lora_A.default.weight", "base_model.model.a.lora_A.lora_A.weight"),
        ("base_model.model.e.lora_embedding_A.mine", "base_model.model.e.lora_embedding_A"),
        ("base_model.model._orig_mod.a.q.lora_A.weight", "base_model.model.a.q.lora_A.weight"),
        ("base_model.model.a._fsdp_wrapped_module.q.lora_A.weight", "base_model.model.a.q.lora_A.weight"),
        ("base_model.model.head.modules_to_save.default.bias", "base_model.model.head.bias"),
    ],
)
def test_each_spelling_becomes_pefts_own(key, expected):
    assert LoRA.plain_keys([key]) == {key: expected}


def test_two_adapters_in_one_file_are_refused_by_name():
    keys = [f"base_model.model.q.lora_A.{name}.weight" for name in ("sql", "json")]
    with pytest.raises(AdapterError, match=r"json, sql.*save_pretrained"):
        LoRA.plain_keys(keys)


def test_one_tensor_under_two_names_is_refused():
    with pytest.raises(AdapterError, match="two names"):
        LoRA.plain_keys(["base_model.model.q.lora_A.weight", "q.lora_A.weight"])
