"""Bank: every row of a batch gets its own adapter, as if it had been alone with it."""

import threading

import pytest
import torch

from lorica import adapter
from lorica.errors import AdapterError, RequestError
from lorica.kernels import Noise
from lorica.methods import LoRA
from lorica.models import ambient, generate
from tiny_bases import BASES, BERT, LLAMA, T5, stir

METHODS = {
    "a": LoRA(r=3, alpha=7, dropout=0.2),
    "b": LoRA(r=2, alpha=5, target_modules="attention", dropout=0.2),
}


def files(base):
    """Two adapters in memory, noise in every tensor."""
    found = {}
    for seed, (name, method) in enumerate(METHODS.items()):
        attached = adapter.attach(base.build(), method, seed=seed)
        stir(((f"{name}{key}", p) for key, p in attached.named_parameters()), std=0.2)
        found[name] = attached.file()
    return found


def banked(base, **options):
    bank = adapter.Bank(base.build())
    for name, file in files(base).items():
        bank.add(name, file, **options)
    return bank


@torch.no_grad()
def output(base, model):
    return base.output(model)


def close(found, expected, eps=1e-12):
    return float((found - expected).abs().max()) <= eps * max(1.0, float(expected.abs().max()))


@pytest.mark.parametrize("base", BASES, ids=repr)
def test_each_row_computes_what_it_would_alone_with_its_adapter(base):
    alone = {name: output(base, adapter.load(base.build(), file).model) for name, file in files(base).items()}
    alone[None] = output(base, base.build())
    bank = banked(base)
    assert torch.equal(output(base, bank.model), alone[None])
    for choice in ("a", "b", None):
        with bank.use(choice):
            assert close(output(base, bank.model), alone[choice])
    with bank.use(["b", None, "a"]) as model:
        found = output(base, model)
    for row, choice in enumerate(["b", None, "a"]):
        assert close(found[row], alone[choice][row])
    assert torch.equal(output(base, bank.model), alone[None])


@pytest.mark.parametrize("base", [LLAMA, BERT], ids=repr)
def test_two_routes_in_one_batch_give_the_gradients_of_separate_runs(base):
    noise = Noise(seed=3, step=2, rows=torch.tensor([40, 7, 12]))
    expected = {}
    for name, rows in (("a", [0, 2]), ("b", [1])):
        attached = adapter.load(base.build(), files(base)[name]).train(base=False)
        with ambient.entered(ambient.Pass(noise=noise)):
            base.loss(attached.model, rows).backward()
        expected[name] = {key: p.grad for key, p in attached.named_parameters()}
    bank = banked(base, trainable=True)
    for site in bank.model.modules():
        if type(site).__name__ == "BankSite":
            site.train()
    with ambient.entered(ambient.Pass(noise=noise)), bank.use(["a", "b", "a"]) as model:
        base.loss(model).backward()
    for name, gradients in expected.items():
        for key, parameter in bank.named_parameters(name):
            assert gradients[key] is not None
            assert close(parameter.grad, gradients[key])


@pytest.mark.parametrize("base", [LLAMA, T5], ids=repr)
def test_a_blend_is_the_weighted_sum_of_the_deltas(base):
    weights = {"a": 0.7, "b": -0.3}
    model = base.build()
    merged = dict(model.named_parameters())
    with torch.no_grad():
        for name, file in files(base).items():
            scale = METHODS[name].alpha / METHODS[name].r
            for key in (key for key in file.tensors if ".lora_A." in key):
                A, B = file.tensors[key], file.tensors[key.replace("lora_A", "lora_B")]
                site = key.removeprefix("base_model.model.").removesuffix(".lora_A.weight")
                merged[f"{site}.weight"] += weights[name] * scale * B @ A
    with banked(base).use(weights) as blended:
        assert close(output(base, blended), output(base, model), 1e-11)


def test_adding_and_removing_one_never_disturbs_another():
    bank, other = banked(LLAMA, trainable=True), files(LLAMA)["b"]
    with bank.use("a") as model:
        expected = output(LLAMA, model)
    bank.add("c.with.dots", other)
    bank.remove("b")
    assert all(p.requires_grad for _, p in bank.named_parameters("a"))
    assert not any(p.requires_grad for _, p in bank.named_parameters("c.with.dots"))
    with bank.use("a") as model:
        assert torch.equal(output(LLAMA, model), expected)
    bank.add("b", adapter.load(LLAMA.build(), files(LLAMA)["a"]))
    with bank.use("b") as model:
        assert close(output(LLAMA, model), expected)


def test_generation_follows_the_route_of_each_prompt():
    prompts, bank = [[5, 9, 11], [7, 8], [20, 4, 6, 9]], banked(LLAMA)
    alone = {}
    for choice in ("a", "b", None):
        with bank.use(choice) as model:
            alone[choice] = generate(model, prompts, 6, stop_ids=())
    assert alone["a"] != alone[None]
    with bank.use(["b", None, "a"]) as model:
        found = generate(model, prompts, 6, stop_ids=())
    assert found == [alone["b"][0], alone[None][1], alone["a"][2]]


@pytest.mark.parametrize("base", [LLAMA, BERT], ids=repr)
def test_any_other_number_of_choices_than_rows_is_refused(base):
    with banked(base).use(["a", "b"]) as model, pytest.raises(RequestError, match="one a row"):
        output(base, model)


class TokensFirst(torch.nn.Module):
    """As FSMT and XLNet: what its linear sees is (tokens, rows, d)."""

    def __init__(self):
        super().__init__()
        self.embed = torch.nn.Embedding(8, 4)
        self.proj = torch.nn.Linear(4, 4)

    def forward(self, ids):
        return self.proj(self.embed(ids).transpose(0, 1)).transpose(0, 1)


class Routed(TokensFirst):
    """Its expert sees every second token, whosesoever it is."""

    def __init__(self):
        super().__init__()
        self.experts = torch.nn.ModuleList([torch.nn.Linear(4, 4)])

    def forward(self, ids):
        return self.experts[0](self.embed(ids).flatten(0, 1)[::2])


@pytest.mark.parametrize("kind", [TokensFirst, Routed])
def test_rows_that_a_site_cannot_tell_apart_are_refused_and_one_choice_is_not(kind):
    """Four tokens of two rows, so that either count divides the other."""
    torch.manual_seed(0)
    model, ids = kind(), torch.arange(8).reshape(2, 4)
    names = ["experts.0"] if kind is Routed else ["proj"]
    alone = adapter.attach(model, LoRA(r=1, target_modules=names))
    stir(alone.named_parameters())
    file, expected = alone.file(), alone(ids).detach()
    alone.detach()
    bank = adapter.Bank(model)
    bank.add("a", file, other_base=True)
    with bank.use(["a", None]), pytest.raises(AdapterError, match="does not tell whose row"):
        model(ids)
    with bank.use("a"):
        assert torch.allclose(model(ids), expected)


def test_a_family_that_counts_tokens_first_has_one_adapter_for_a_batch():
    from transformers import LongformerConfig, LongformerModel

    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    model = LongformerModel(LongformerConfig(vocab_size=16, attention_window=[4], **sizes)).eval()
    attached = adapter.attach(model, LoRA(r=1, target_modules=["query"]))
    stir(attached.named_parameters())
    file = attached.file()
    attached.detach()
    bank = adapter.Bank(model)
    bank.add("a", file)
    with pytest.raises(AdapterError, match="longformer counts tokens before rows"), bank.use(["a", None]):
        pass
    with bank.use(["a", "a"]):
        model(torch.arange(4).reshape(2, 2))


def test_names_are_checked_with_the_nearest_one():
    bank = adapter.Bank(LLAMA.build())
    bank.add("json", files(LLAMA)["a"])
    with pytest.raises(AdapterError, match="'jsn'; did you mean 'json'"), bank.use(["json", "jsn"]):
        pass
    with pytest.raises(AdapterError, match="is taken"):
        bank.add("json", files(LLAMA)["a"])


def test_what_rows_cannot_choose_is_refused():
    attached = adapter.attach(BERT.build(), LoRA(r=2, modules_to_save=["classifier"]))
    stir(attached.named_parameters())
    file = attached.file()
    with pytest.raises(AdapterError, match="modules saved whole"):
        adapter.Bank(BERT.build()).add("x", file)


def test_a_bank_gives_back_the_base_and_shares_it_with_no_other_handle():
    model = LLAMA.build()
    modules, expected = dict(model.named_modules()), output(LLAMA, model)
    bank = adapter.Bank(model)
    bank.add("a", files(LLAMA)["a"])
    with pytest.raises(AdapterError, match="carries an adapter already"):
        adapter.attach(model, LoRA(r=2))
    assert bank.detach() is model
    assert {name: id(m) for name, m in model.named_modules()} == {name: id(m) for name, m in modules.items()}
    assert torch.equal(output(LLAMA, model), expected)


def test_the_model_can_be_walked_by_one_thread_while_another_adds_and_removes():
    bank, over, failed = banked(LLAMA), threading.Event(), []

    def walk():
        try:
            while not over.is_set():
                dict(bank.model.named_parameters(remove_duplicate=False))
        except RuntimeError as error:
            failed.append(error)

    held, threads = bank.remove("a"), [threading.Thread(target=walk) for _ in range(2)]
    for thread in threads:
        thread.start()
    for _ in range(300):
        bank.add("a", held)
        bank.remove("a")
    over.set()
    for thread in threads:
        thread.join()
    assert not failed
