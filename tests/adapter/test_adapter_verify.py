"""verify names what is wrong with a folder, and load refuses what verify would not pass."""

import json
from types import SimpleNamespace

import pytest
import torch

from adapter_folders import CONFIG, MANIFEST, TENSORS, failing, forged, saved, verified
from lorica import adapter
from lorica.adapter import file as adapter_file
from lorica.errors import AdapterError
from lorica.methods import LoRA
from tiny_bases import LLAMA, stir

RANK = "base_model.model.model.layers.0.mlp.up_proj.lora_B.weight"


def flipped(folder):
    data = bytearray((folder / TENSORS).read_bytes())
    data[-3] ^= 1
    (folder / TENSORS).write_bytes(data)


def cut(folder):
    (folder / TENSORS).write_bytes((folder / TENSORS).read_bytes()[:-8])


def other_config(folder):
    config = json.loads((folder / CONFIG).read_text())
    (folder / CONFIG).write_text(json.dumps(config | {"lora_alpha": 8}))


def other_manifest(folder):
    saved(folder.parent / "other", method=LoRA(r=2))
    (folder / MANIFEST).write_bytes((folder.parent / "other" / MANIFEST).read_bytes())


def not_finite(folder):
    forged(folder, lambda tensors, config: tensors[RANK].fill_(float("inf")))


def other_rank(folder):
    forged(folder, lambda tensors, config: config.update(r=5))


def without_effect(folder):
    forged(folder, lambda tensors, config: [t.zero_() for key, t in tensors.items() if "lora_B" in key])


@pytest.mark.parametrize(
    ("damage", "check"),
    [
        (flipped, "files"),
        (cut, "files"),
        (other_config, "files"),
        (other_manifest, "files"),
        (not_finite, "format"),
        (other_rank, "fit"),
        (without_effect, "effect"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_every_damage_is_named_by_its_check_and_refused_by_load(damage, check, tmp_path):
    saved(tmp_path / "a")
    damage(tmp_path / "a")
    found = verified(tmp_path / "a")
    assert not found.ok
    assert failing(found)[0] == check
    with pytest.raises(AdapterError):
        adapter.load(LLAMA.build(torch.float32), tmp_path / "a")


def another_base():
    model = LLAMA.build(torch.float32)
    model.model.norm.weight.data.mul_(1.5)
    return model


def test_a_changed_base_fails_by_its_fingerprint_and_by_its_answers(tmp_path):
    saved(tmp_path / "a")
    found = adapter.verify(tmp_path / "a", lambda file: another_base())
    assert failing(found)[:2] == ["base", "base outputs"]
    with pytest.raises(AdapterError, match="trained on another base"):
        adapter.load(another_base(), tmp_path / "a")
    with pytest.raises(AdapterError, match="trained on another base"):
        adapter.Bank(another_base()).add("a", tmp_path / "a")
    adapter.Bank(another_base()).add("a", tmp_path / "a", other_base=True)


def test_where_fingerprints_cannot_be_compared_the_answers_tell_another_base(tmp_path):
    """A base loaded from a folder when it was trained, one held in memory and cast now."""
    model = LLAMA.build(torch.float32)
    model.base_fingerprint = "f" * 64
    attached = adapter.attach(model, LoRA(r=3))
    stir(attached.named_parameters())
    attached.save(tmp_path / "a")
    adapter.load(LLAMA.build(torch.bfloat16), tmp_path / "a").detach()
    with pytest.raises(AdapterError, match="trained on another base"):
        adapter.load(another_base().bfloat16(), tmp_path / "a")


def test_every_file_is_hashed_once(tmp_path, monkeypatch):
    saved(tmp_path / "a")
    hashed = []
    sha256 = adapter_file._sha256
    monkeypatch.setattr(adapter_file, "_sha256", lambda data: hashed.append(len(data)) or sha256(data))
    assert verified(tmp_path / "a").ok
    assert sorted(hashed) == sorted((tmp_path / "a" / name).stat().st_size for name in (TENSORS, CONFIG))


class Words:
    def __init__(self, words, template):
        self.words, self.chat_template = words, template

    def get_vocab(self):
        return self.words


@pytest.mark.parametrize(
    ("now", "check"),
    [
        (Words({"a": 0, "c": 1}, "{{ messages }}"), "tokenizer"),
        (Words({"a": 0, "b": 1}, "{{ other }}"), "chat template"),
        (None, "tokenizer"),
    ],
    ids=["words", "template", "none"],
)
def test_a_changed_tokenizer_or_template_is_named(now, check, tmp_path):
    def base(words):
        model = LLAMA.build(torch.float32)
        model.tokenizer = words
        return model

    attached = adapter.attach(base(Words({"a": 0, "b": 1}, "{{ messages }}")), LoRA(r=2))
    stir(attached.named_parameters())
    attached.save(tmp_path / "a")
    same = Words({"b": 1, "a": 0}, "{{ messages }}")
    assert adapter.verify(tmp_path / "a", lambda file: base(same)).ok
    assert failing(adapter.verify(tmp_path / "a", lambda file: base(now))) == [check]


def test_how_a_tokenizer_was_last_called_is_no_change_of_it():
    from lorica.adapter.manifest import tokenizer_facts

    def words(**habits):
        text = json.dumps({"model": {"vocab": {"a": 0}}, "padding": None, "truncation": None} | habits)
        return SimpleNamespace(backend_tokenizer=SimpleNamespace(to_str=lambda: text))

    assert tokenizer_facts(words(padding={"length": 8})) == tokenizer_facts(words())
    assert tokenizer_facts(words(model={"vocab": {"b": 0}})) != tokenizer_facts(words())


def test_an_untrained_adapter_verifies_only_when_the_caller_says_so(tmp_path):
    adapter.attach(LLAMA.build(torch.float32), LoRA(r=3)).save(tmp_path / "a")
    assert failing(verified(tmp_path / "a")) == ["effect"]
    assert verified(tmp_path / "a", untrained=True).ok


def test_a_product_of_which_nothing_is_left_has_no_effect(tmp_path):
    """A has its first row alone, B its second column: neither is zero, and the product is."""
    attached = adapter.attach(LLAMA.build(torch.float32), LoRA(r=2, target_modules=["1.mlp.up_proj"]))
    tensors = dict(attached.named_parameters())
    with torch.no_grad():
        for key, parameter in tensors.items():
            parameter.fill_(0.5)
            (parameter[1] if "lora_A" in key else parameter[:, 0]).zero_()
    attached.save(tmp_path / "a")
    with pytest.raises(AdapterError, match="changes nothing"):
        adapter.load(LLAMA.build(torch.float32), tmp_path / "a")


def test_a_folder_of_others_loads_and_is_called_unverified(tmp_path):
    saved(tmp_path / "a")
    (tmp_path / "a" / MANIFEST).unlink()
    adapter.load(LLAMA.build(torch.float32), tmp_path / "a")
    found = verified(tmp_path / "a")
    assert (found.ok, found.status) == (False, "unverified")
    assert failing(found) == ["record"]
    assert "unverified" in str(adapter.inspect(tmp_path / "a"))
    flipped(tmp_path / "a")
    forged_rank = (tmp_path / "a" / CONFIG).read_text().replace('"r": 3', '"r": 4')
    (tmp_path / "a" / CONFIG).write_text(forged_rank)
    assert verified(tmp_path / "a").status == "failed"


def test_verifying_gives_the_base_back_as_it_was(tmp_path):
    saved(tmp_path / "a")
    model = LLAMA.build(torch.float32)
    before = {name: id(p) for name, p in model.named_parameters()}
    threads = torch.get_num_threads()
    adapter.verify(tmp_path / "a", lambda file: model)
    assert {name: id(p) for name, p in model.named_parameters()} == before
    assert torch.get_num_threads() == threads
    adapter.attach(model, LoRA(r=2))


@pytest.mark.parametrize("rank", [2**31 - 1, 10**12, 2**63 - 1, 10**40])
@pytest.mark.parametrize("place", ["r", "rank_pattern"])
def test_a_rank_beyond_any_memory_is_refused_before_anything_is_made(tmp_path, rank, place):
    saved(tmp_path / "a")
    given = rank if place == "r" else {"q_proj": rank}
    forged(tmp_path / "a", lambda tensors, config: config.update({place: given}))
    with pytest.raises(AdapterError, match="2147483647"):
        adapter.load(LLAMA.build(torch.float32), tmp_path / "a")
