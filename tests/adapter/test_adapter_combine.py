"""combine: one adapter of several.  The exact blend is exact, every other is as far from it as it says."""

import json
import math
from itertools import product

import pytest
import torch
from safetensors.torch import load_file

import lorica
from adapter_folders import CONFIG, MANIFEST, TENSORS, forged, verified
from lorica import adapter, durable
from lorica.adapter import spectra
from lorica.adapter.combine import HOWS, How, joined, weighed
from lorica.errors import AdapterError, RequestError
from lorica.methods import (
    IA3,
    AdaLoRA,
    BitFit,
    Bottleneck,
    DoRA,
    HiRA,
    LoHa,
    LoKr,
    LoRA,
    LoRAFA,
    MultiLoRA,
    Prefix,
    Prompt,
    VeRA,
)
from oracles.blends import ties
from tiny_bases import BERT, GPT2, LLAMA, stir
from tiny_layers import ATTENTION, CONVNET, MOE

METHODS = {
    "a": LoRA(r=3, alpha=7, target_modules="attention", rank_pattern={"q_proj": 5}, alpha_pattern={"v_proj": 11}),
    "b": LoRA(r=2, alpha=5, rslora=True, target_modules=["q_proj", "v_proj", "down_proj"]),
}
WEIGHTS = {"a": 0.7, "b": -0.4}
EPS = torch.finfo(torch.float32).eps


def made(folder, method, base=LLAMA, mark=""):
    """An adapter with noise in every tensor, other noise for another mark."""
    attached = adapter.attach(base.build(torch.float32), method)
    stir(((f"{mark}{key}", p) for key, p in attached.named_parameters()), std=0.2)
    for key, parameter in attached.named_parameters():
        if key.endswith(".lora_E"):  # AdaLoRA ends with two of four
            parameter.data[2:] = 0
    attached.save(folder)
    return folder


@pytest.fixture
def folders(tmp_path):
    return {name: made(tmp_path / name, method, mark=name) for name, method in METHODS.items()}


def weights_of(folders):
    return {str(folder): WEIGHTS[name] for name, folder in folders.items()}


def dense(folder):
    """s B A of every linear, in float64, from the files as PEFT's format says: nothing of ours is asked."""
    tensors, config = load_file(folder / TENSORS), json.loads((folder / CONFIG).read_text())
    found = {}
    for key in (key for key in tensors if key.endswith(".lora_A.weight")):
        A, B = tensors[key].double(), tensors[key.replace("lora_A", "lora_B")].double()
        path = key.removeprefix("base_model.model.").removesuffix(".lora_A.weight")
        alphas = [a for name, a in config["alpha_pattern"].items() if path == name or path.endswith(f".{name}")]
        alpha = alphas[0] if alphas else config["lora_alpha"]
        found[path] = alpha / (math.sqrt(len(A)) if config["use_rslora"] else len(A)) * (B @ A)
    return found


def blended(folders, weights=WEIGHTS):
    """The exact blend, dense."""
    total = {}
    for name, folder in folders.items():
        for path, delta in dense(folder).items():
            total[path] = total.get(path, 0) + weights[name] * delta
    return total


def norm(deltas):
    return math.sqrt(sum(float(delta.square().sum()) for delta in deltas.values()))


def apart(found, expected):
    assert found.keys() == expected.keys()
    return norm({path: found[path] - expected[path] for path in expected}) / norm(expected)


def test_the_exact_blend_is_the_weighted_sum_of_the_deltas(folders, tmp_path):
    """Each entry of B is rounded once to float32, which moves B A by at most half a unit of |B| |A|."""
    found = lorica.combine(weights_of(folders), tmp_path / "out")
    tensors, expected = load_file(tmp_path / "out" / TENSORS), blended(folders)
    for path, delta in dense(tmp_path / "out").items():
        A, B = (tensors[f"base_model.model.{path}.lora_{x}.weight"].double().abs() for x in "AB")
        assert bool(((delta - expected[path]).abs() <= 0.5 * EPS * (B @ A)).all())
    assert found.error < EPS
    assert {site.site.name: site.made.rank for site in found.sites}["model.layers.0.self_attn.q_proj"] == 5 + 2


def test_the_product_of_sums_is_another_thing_and_the_report_says_so(folders, monkeypatch):
    """What PEFT calls `linear` sums A and B each: every B meets every A."""

    def linear(held):
        held = list(held)
        r = max(each.rank for each in held)
        grown = [
            spectra.Product(
                torch.nn.functional.pad(p.B, (0, r - p.rank)), torch.nn.functional.pad(p.A, (0, 0, 0, r - p.rank))
            )
            for p in held
        ]
        return spectra.Product(sum(p.B for p in grown), sum(p.A for p in grown))

    parts = weighed([adapter.read(f) for f in folders.values()], list(WEIGHTS.values()))
    site = "model.layers.0.self_attn.q_proj"
    wrong = linear(part.deltas[site].product.times(part.weight) for part in parts).dense()
    right = blended(folders)[site]
    assert float((wrong - right).norm() / right.norm()) > 0.3
    monkeypatch.setattr(
        "lorica.adapter.combine._made",
        lambda parts, name, how, blend: (linear(part.deltas[name].product.times(part.weight) for part in parts), 1.0),
    )
    told = next(each for each in joined(parts, How()) if each.site.name == site)
    assert told.error == pytest.approx(float((wrong - right).norm() / right.norm()), rel=1e-5)


def test_it_answers_as_the_bank_does_with_the_same_blend(folders, tmp_path):
    """In float64, so that what is left is the rounding of B to the float32 of the file."""
    lorica.combine(weights_of(folders), tmp_path / "out")
    bank = adapter.Bank(LLAMA.build())
    for name, folder in folders.items():
        bank.add(name, folder, other_base=True)
    with torch.no_grad(), bank.use(WEIGHTS) as model:
        expected = LLAMA.output(model)
    with torch.no_grad():
        found = LLAMA.output(adapter.load(LLAMA.build(), tmp_path / "out", other_base=True).model)
        bare = LLAMA.output(LLAMA.build())
    assert float((found - expected).abs().max() / expected.abs().max()) < 10 * EPS
    assert float((bare - expected).abs().max() / expected.abs().max()) > 0.1


@pytest.mark.parametrize("r", [1, 3, 6])
def test_svd_is_the_best_of_its_rank(r, folders, tmp_path):
    found = lorica.combine(weights_of(folders), tmp_path / "out", how="svd", r=r)
    expected, got = blended(folders), dense(tmp_path / "out")
    for site in found.sites:
        exact = expected[site.site.name]
        U, S, Vt = torch.linalg.svd(exact, full_matrices=False)
        best = (U[:, :r] * S[:r]) @ Vt[:r]
        assert float((got[site.site.name] - best).norm()) < 10 * EPS * float(exact.norm())
        tail = float(S[r:].norm() / S.norm())
        assert site.error == pytest.approx(tail, abs=10 * EPS)
        assert site.energy == pytest.approx(1 - tail**2, abs=1e-12)


def test_svd_needs_no_matrix_of_the_weights_size(folders, tmp_path, monkeypatch):
    def never(self):
        raise AssertionError("a dense delta was made")

    monkeypatch.setattr(spectra.Product, "dense", never)
    lorica.combine(weights_of(folders), tmp_path / "svd", how="svd", r=2)
    lorica.combine(weights_of(folders), tmp_path / "exact")
    with pytest.raises(AssertionError, match="dense"):
        lorica.combine(weights_of(folders), tmp_path / "ties", how="ties")


@pytest.mark.parametrize("how", HOWS)
def test_the_error_that_is_told_is_that_of_the_dense_matrices(how, folders, tmp_path):
    options = {} if how == "exact" else {"r": 4}
    found = lorica.combine(weights_of(folders), tmp_path / "out", how=how, **options)
    expected, got = blended(folders), dense(tmp_path / "out")
    assert found.error == pytest.approx(apart(got, expected), rel=1e-6, abs=1e-13)
    for site in found.sites:
        name = site.site.name
        off = float((got[name] - expected[name]).norm() / expected[name].norm())
        assert site.error == pytest.approx(off, rel=1e-6, abs=1e-13)
        assert site.made.rank <= (options.get("r") or 7)
    told = json.loads((tmp_path / "out" / MANIFEST).read_text())["combined"]
    assert (told["how"], told["error"]) == (how, found.error)


WHOLE = 40
"""A rank that no delta of the tiny base has more of: the cut takes nothing away."""


def test_ties_is_the_papers_site_by_site(folders, tmp_path):
    """Two votes of a and one of b, in plain loops."""
    lorica.combine({str(folders["a"]): 2.0, str(folders["b"]): 1.0}, tmp_path / "out", how="ties", r=WHOLE, density=0.3)
    deltas = {name: dense(folder) for name, folder in folders.items()}
    got = dense(tmp_path / "out")
    for path in got:
        votes = [deltas[name][path] for name in "aab" if path in deltas[name]]
        expected = torch.tensor(ties([d.flatten().tolist() for d in votes], 0.3, scale=float(len(votes))))
        assert float((got[path].flatten() - expected).norm() / expected.norm()) < 100 * EPS


def test_what_dare_drops_follows_from_the_seed_and_from_no_order(folders, tmp_path):
    weights = weights_of(folders)
    turned = dict(reversed(weights.items()))
    for name, (given, seed) in {"one": (weights, 3), "again": (turned, 3), "other": (weights, 4)}.items():
        lorica.combine(given, tmp_path / name, how="dare", r=WHOLE, density=0.5, seed=seed)
    one, again, other = (dense(tmp_path / name) for name in ("one", "again", "other"))
    assert apart(again, one) < 100 * EPS
    assert apart(other, one) > 0.1


def test_dare_of_one_adapter_is_its_delta_with_entries_dropped_and_the_rest_rescaled(folders, tmp_path):
    lorica.combine({str(folders["a"]): 0.5}, tmp_path / "out", how="dare", r=WHOLE, density=0.25)
    deltas = dense(folders["a"])
    for path, got in dense(tmp_path / "out").items():
        ratio = got / (0.5 * deltas[path] / 0.25)
        kept = ratio.abs() > 0.5
        size = deltas[path].abs() > 0.05 * deltas[path].abs().max()  # rounding of the cut shows beside small entries
        torch.testing.assert_close(ratio[kept & size], torch.ones_like(ratio)[kept & size], rtol=0, atol=1e-3)
        assert 0.1 < float(kept.double().mean()) < 0.4


CASES = {
    "conv1d and embeddings": (GPT2, ["c_attn", "mlp.c_proj", "wte"]),
    "convolutions": (CONVNET, ["volume", "image", "signal", "out"]),
    "attention of torch": (ATTENTION, ["attn", "cross.out_proj"]),
    "experts": (MOE, ["q_proj", "experts"]),
}


@pytest.mark.parametrize("how", ["exact", "svd", "ties"])
@pytest.mark.parametrize("case", CASES)
def test_every_kind_of_layer_is_combined(case, how, tmp_path):
    """The weights that the result merges to are W and the weighed changes, cut to a rank that takes nothing away."""
    base, targets = CASES[case]
    folders = {
        "a": made(tmp_path / "a", LoRA(r=2, alpha=5, target_modules=targets), base, "a"),
        "b": made(tmp_path / "b", LoRA(r=2, alpha=7, target_modules=targets), base, "b"),
    }
    options = {"exact": {}, "svd": {"r": 4}, "ties": {"density": 1.0, "r": 400}}[how]
    made_from = {str(folders["a"]): 0.6, str(folders["b"]): -0.3}
    found = lorica.combine(made_from, tmp_path / "out", how=how, **options)
    W = changed(base, None)
    a, b, out = (changed(base, folder) for folder in (folders["a"], folders["b"], tmp_path / "out"))
    wanted = {name: 0.6 * (a[name] - W[name]) - 0.3 * (b[name] - W[name]) for name in W}
    if how == "ties":
        votes = [{name: weight * (each[name] - W[name]) for name in W} for each, weight in ((a, 0.6), (b, -0.3))]
        wanted = {name: _agreed([vote[name] for vote in votes], wanted[name], (0.6, 0.3)) for name in W}
    moved = [name for name in W if bool(wanted[name].any())]
    assert len(moved) == len(found.sites)
    for name in W:
        size = float(wanted[name].norm()) or 1.0
        assert float((out[name] - W[name] - wanted[name]).norm()) < 1e-5 * size


def _agreed(votes, total, sizes):
    agree = [vote.sign() == total.sign() for vote in votes]
    weight = sum(size * each.double() for size, each in zip(sizes, agree, strict=True))
    return sum(sizes) * sum(torch.where(e, v, 0) for e, v in zip(agree, votes, strict=True)) / weight.clamp_min(1e-9)


def changed(base, folder):
    """The weights of a base in float64, with the adapter merged where there is one."""
    model = base.build()
    if folder is not None:
        model = adapter.load(model, folder, other_base=True).merge(probed=False)
    return {name: p.detach().clone() for name, p in model.named_parameters()}


FAMILY = (
    MultiLoRA(n=2, r=2),
    LoRAFA(r=2, alpha=5),
    LoRAFA(r=2, alpha=5, corrected=True),
    AdaLoRA(r=2, init_r=4, alpha=9),
    LoHa(r=2, alpha=5),
)


@pytest.mark.parametrize("method", FAMILY, ids=lambda method: method.kind)
def test_whatever_is_a_product_by_its_file_alone_is_combined(method, tmp_path):
    folder, other = made(tmp_path / "a", method, mark="a"), made(tmp_path / "b", METHODS["b"], mark="b")
    lorica.combine({str(folder): 0.5, str(other): 1.5}, tmp_path / "out")
    W, a, b, out = (changed(LLAMA, each) for each in (None, folder, other, tmp_path / "out"))
    for name in W:
        wanted = 0.5 * (a[name] - W[name]) + 1.5 * (b[name] - W[name])
        assert float((out[name] - W[name] - wanted).norm()) <= 1e-6 * (float(wanted.norm()) or 1e-9)


def test_the_folder_names_its_parents_with_their_digests_and_weights(folders, tmp_path):
    lorica.combine(weights_of(folders), tmp_path / "out")
    told = json.loads((tmp_path / "out" / MANIFEST).read_text())
    assert told["made"] == "combined"
    assert told["parents"] == [
        {"digest": durable.sha256(folder / TENSORS), "source": str(folder), "weight": WEIGHTS[name]}
        for name, folder in folders.items()
    ]
    drawn = str(adapter.Lineage.of(tmp_path / "out")).splitlines()
    assert "0.7 x" in drawn[1]
    assert "-0.4 x" in drawn[2]
    assert told["base"]["fingerprint"] == json.loads((folders["a"] / MANIFEST).read_text())["base"]["fingerprint"]


def test_without_a_base_the_folder_says_that_no_outputs_were_recorded_and_verifies_what_it_can(folders, tmp_path):
    found = lorica.combine(weights_of(folders), tmp_path / "out")
    assert "records no base" in found.unproven
    checks = {check.name: check.detail for check in verified(tmp_path / "out").checks}
    assert "no outputs were recorded" in checks["proof"]
    assert "fingerprint" in checks["base"]
    assert verified(tmp_path / "out").ok


def named(folders, base):
    """The folders with another name of the base, or another fingerprint of it, in what they record."""
    for folder in folders.values():
        forged(folder, lambda tensors, config: config.update(base_model_name_or_path=base))
    return folders


def test_a_base_that_would_have_to_be_fetched_is_not(folders, tmp_path, monkeypatch):
    def never(*args, **options):
        raise AssertionError("the hub was asked")

    monkeypatch.setattr("huggingface_hub.snapshot_download", never)
    found = lorica.combine(weights_of(named(folders, "owner/never-fetched")), tmp_path / "out")
    assert "not on this machine" in found.unproven
    assert json.loads((tmp_path / "out" / CONFIG).read_text())["base_model_name_or_path"] == "owner/never-fetched"


def test_a_base_that_goes_by_the_name_and_is_another_proves_nothing(folders, tmp_path):
    """These adapters were made on the tiny base, and say that it was the embedded one."""
    found = lorica.combine(weights_of(named(folders, "embedded")), tmp_path / "out")
    assert found.unproven is not None
    assert "out" in {path.name for path in tmp_path.iterdir()}
    assert apart(dense(tmp_path / "out"), blended(folders)) < EPS
    with pytest.raises(AdapterError):
        lorica.combine(weights_of(folders), tmp_path / "second", model="embedded")
    assert not (tmp_path / "second").exists()


def test_adapters_of_others_need_no_lorica_json(folders, tmp_path):
    for folder in folders.values():
        (folder / MANIFEST).unlink()
    lorica.combine(weights_of(folders), tmp_path / "out")
    assert apart(dense(tmp_path / "out"), blended(folders)) < EPS
    assert lorica.inspect(tmp_path / "out").lineage.parents


HELD = {
    "dora": (DoRA(r=2, alpha=5), "no product that the file alone tells"),
    "hira": (HiRA(r=2), "no product that the file alone tells"),
    "lokr": (LoKr(r=2, alpha=5), "no product that the file alone tells"),
    "vera": (VeRA(r=8), "no product that the file alone tells"),
    "ia3": (IA3(), "no product that the file alone tells"),
    "prompt": (Prompt(length=3), "changes no weight"),
    "prefix": (Prefix(length=3), "changes no weight"),
    "bottleneck": (Bottleneck(), "changes no weight"),
    "bitfit": (BitFit(), "saved whole or trained by itself"),
    "a saved head": (LoRA(r=2, alpha=5, modules_to_save=["lm_head"]), "saved whole or trained by itself"),
}


@pytest.mark.parametrize("case", HELD)
def test_what_has_no_delta_is_refused_with_the_reason(case, folders, tmp_path):
    method, reason = HELD[case]
    strange = made(tmp_path / "strange", method)
    with pytest.raises(AdapterError, match=reason):
        lorica.combine({str(strange): 0.5, str(folders["a"]): 0.5}, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_matrix_that_is_not_the_bases_is_never_left_behind(folders, tmp_path):
    """PEFT writes embeddings whole where the vocabulary was resized; only the base tells whether they were trained."""
    own = LLAMA.build(torch.float32).model.embed_tokens.weight.detach()
    for change in (0, 1):
        brought = {"base_model.model.model.embed_tokens.weight": own + change}
        forged(folders["a"], lambda tensors, _, brought=brought: tensors.update(brought))
        with pytest.raises(AdapterError, match=r"embed_tokens\.weight: brings a matrix of its base"):
            lorica.combine(weights_of(folders), tmp_path / "out")
        assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("r", [4, 10**9])
def test_a_rank_that_the_tensors_do_not_have_is_refused_before_it_takes_memory(r, folders, tmp_path):
    forged(folders["b"], lambda _, config: config.update(r=r, rank_pattern={}))
    with pytest.raises(AdapterError, match=rf"q_proj: A is \(2, 32\) in the file, \({r}, 32\) by adapter_config.json"):
        lorica.combine(weights_of(folders), tmp_path / "out")


def test_all_that_is_wrong_with_the_adapters_is_told_at_once(folders, tmp_path):
    strange = made(tmp_path / "dora", DoRA(r=2, alpha=5))
    prompt = made(tmp_path / "prompt", Prompt(length=3))
    other = made(tmp_path / "bert", LoRA(r=2, alpha=5), BERT)
    with pytest.raises(AdapterError) as refused:
        lorica.combine({str(f): 1.0 for f in (folders["a"], strange, prompt, other)}, tmp_path / "out")
    lines = str(refused.value).splitlines()
    assert len(lines) == 3
    assert [str(folder) in line for folder, line in zip((other, strange, prompt), lines, strict=True)] == [True] * 3
    assert "fingerprint" in lines[0]


def test_an_adapter_that_says_nothing_of_its_base_does_not_hide_that_others_have_two(folders, tmp_path):
    other = made(tmp_path / "bert", LoRA(r=2, alpha=5), BERT)
    (folders["a"] / MANIFEST).unlink()
    weights = {str(folder): 1.0 for folder in (folders["a"], folders["b"], other)}
    with pytest.raises(AdapterError, match="fingerprint") as refused:
        lorica.combine(weights, tmp_path / "out")
    assert str(refused.value).startswith(str(other))


def test_numbers_beyond_float32_are_not_written(folders, tmp_path):
    with pytest.raises(lorica.RunError, match="not finite"):
        lorica.combine({str(folders["a"]): 3e38}, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_sites_of_other_shapes_are_no_base_in_common(folders, tmp_path):
    wide = tmp_path / "wide"
    narrow = load_file(folders["b"] / TENSORS)

    made(wide, METHODS["b"])
    forged(
        wide,
        lambda tensors, config: tensors.update({k: torch.cat([t, t], 1) for k, t in narrow.items() if "lora_A" in k}),
    )
    with pytest.raises(AdapterError, match="differ in base"):
        lorica.combine({str(folders["a"]): 1.0, str(wide): 1.0}, tmp_path / "out", other_base=True)


def test_an_adapter_without_effect_and_adapters_that_cancel_are_refused(folders, tmp_path):
    adapter.attach(LLAMA.build(torch.float32), METHODS["b"]).save(tmp_path / "untrained")
    with pytest.raises(AdapterError, match="changes nothing"):
        lorica.combine({str(folders["a"]): 1.0, str(tmp_path / "untrained"): 1.0}, tmp_path / "out")
    made(tmp_path / "twin", METHODS["a"], mark="a")
    for how in ("exact", "svd", "ties"):
        with pytest.raises(AdapterError, match="cancel each other"):
            lorica.combine({str(folders["a"]): 1.0, str(tmp_path / "twin"): -1.0}, tmp_path / "out", how=how)


@pytest.mark.parametrize(
    ("weights", "options", "told"),
    [
        ({}, {}, ["names no adapter"]),
        ({"a": 0.0, "b": math.inf, "c": math.nan, "d": 1e300}, {}, [f"{x}: the weight" for x in "abcd"]),
        ({"a": 1.0}, {"how": "tise"}, ["did you mean 'ties'"]),
        ({"a": 1.0}, {"r": 3, "density": 2.0}, ["sum of all ranks", "density: 2"]),
        ({"a": 1.0}, {"how": "svd", "density": 0.3, "r": 0}, ["prunes nothing", "r: 0"]),
    ],
)
def test_a_request_without_meaning_is_refused_before_anything_is_read(weights, options, told, tmp_path):
    with pytest.raises(RequestError) as refused:
        lorica.combine(weights, tmp_path / "out", **options)
    lines = str(refused.value).splitlines()
    assert len(lines) == len(told)
    assert all(word in line for word, line in zip(told, lines, strict=True))


def test_what_is_there_already_is_not_overwritten(folders, tmp_path):
    with pytest.raises(RequestError, match="is there already"):
        lorica.combine(weights_of(folders), folders["a"])


def test_ranks_of_which_nothing_is_left_are_left_out(folders, tmp_path):
    """Half of the columns of every B are zero, as AdaLoRA leaves them."""

    forged(folders["a"], lambda tensors, config: [t[:, 1:].zero_() for k, t in tensors.items() if "lora_B" in k])
    found = lorica.combine(weights_of(folders), tmp_path / "out")
    assert {site.made.rank for site in found.sites} == {1, 2, 3}
    assert apart(dense(tmp_path / "out"), blended(folders)) < EPS


def test_a_site_that_one_adapter_leaves_alone_has_the_others_delta(folders, tmp_path):
    for how, density in product(("exact", "svd"), (None,)):
        lorica.combine(weights_of(folders), tmp_path / how, how=how, density=density)
        alone = "model.layers.1.mlp.down_proj"
        got, expected = dense(tmp_path / how)[alone], WEIGHTS["b"] * dense(folders["b"])[alone]
        assert float((got - expected).norm()) < 10 * EPS * float(expected.norm())
