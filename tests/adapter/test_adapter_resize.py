"""resize: the best adapter of another rank, and what is known of a delta from its factors: spectrum, overlap."""

import json
import math

import pytest
import torch
from safetensors.torch import load_file

import lorica
from adapter_folders import CONFIG, MANIFEST, TENSORS, verified
from lorica import adapter, durable
from lorica.adapter.spectra import Product, Spectrum, effective_rank, together
from lorica.errors import AdapterError, RequestError
from lorica.methods import DoRA, LoRA, Prompt
from tiny_bases import GPT2, LLAMA, stir
from tiny_layers import CONVNET, MOE

EPS = torch.finfo(torch.float32).eps
METHOD = LoRA(
    r=6, alpha=9, rslora=True, target_modules=["q_proj", "down_proj"], rank_pattern={"layers.1.mlp.down_proj": 4}
)


def made(folder, method=METHOD, base=LLAMA, mark=""):
    attached = adapter.attach(base.build(torch.float32), method)
    stir(((f"{mark}{key}", p) for key, p in attached.named_parameters()), std=0.2)
    attached.save(folder)
    return folder


def dense(folder):
    """s B A in float64, from the files alone; every pattern of these folders names whole paths."""
    tensors, config = load_file(folder / TENSORS), json.loads((folder / CONFIG).read_text())
    found = {}
    for key in (key for key in tensors if key.endswith(".lora_A.weight")):
        A, B = tensors[key].double(), tensors[key.replace("lora_A", "lora_B")].double()
        path = key.removeprefix("base_model.model.").removesuffix(".lora_A.weight")
        alpha = config["alpha_pattern"].get(path, config["lora_alpha"])
        found[path] = alpha / (math.sqrt(len(A)) if config["use_rslora"] else len(A)) * (B @ A)
    return found


@pytest.mark.parametrize("r", [1, 3, 8])
def test_the_result_is_the_best_of_its_rank(r, tmp_path):
    found = lorica.resize(made(tmp_path / "a"), tmp_path / "out", r=r)
    before, after = dense(tmp_path / "a"), dense(tmp_path / "out")
    assert before.keys() == after.keys()
    for site in found.sites:
        U, S, Vt = torch.linalg.svd(before[site.site.name], full_matrices=False)
        best = (U[:, :r] * S[:r]) @ Vt[:r]
        assert float((after[site.site.name] - best).norm()) < 10 * EPS * float(S.norm())
        assert site.made.rank == min(r, site.before)
        assert site.before == (4 if "layers.1.mlp" in site.site.name else 6)
        torch.testing.assert_close(torch.tensor(site.spectrum).double(), S[: site.before], rtol=1e-5, atol=0)
        tail = float(S[r:].norm() / S.norm())
        assert site.error == pytest.approx(tail, abs=10 * EPS)
        assert site.energy == pytest.approx(1 - tail**2, abs=1e-12)


def test_the_totals_are_those_of_all_sites_as_one_vector(tmp_path):
    found = lorica.resize(made(tmp_path / "a"), tmp_path / "out", r=2)
    before, after = dense(tmp_path / "a"), dense(tmp_path / "out")
    size = math.sqrt(sum(float(d.square().sum()) for d in before.values()))
    off = math.sqrt(sum(float((after[name] - before[name]).square().sum()) for name in before))
    assert found.error == pytest.approx(off / size, rel=1e-6)
    assert found.energy == pytest.approx(1 - (off / size) ** 2, rel=1e-6)
    told = json.loads((tmp_path / "out" / MANIFEST).read_text())["resized"]
    assert told == {"r": 2, "error": found.error, "energy": found.energy}


@pytest.mark.parametrize("energy", [0.5, 0.9, 0.99])
def test_every_site_has_the_least_rank_that_keeps_the_energy(energy, tmp_path):
    found = lorica.resize(made(tmp_path / "a"), tmp_path / "out", energy=energy)
    for site in found.sites:
        squares = torch.linalg.svdvals(dense(tmp_path / "a")[site.site.name]).square()
        shares = (squares.cumsum(0) / squares.sum()).tolist()
        assert shares[site.made.rank - 1] >= energy
        assert site.made.rank == 1 or shares[site.made.rank - 2] < energy
    ranks = json.loads((tmp_path / "out" / CONFIG).read_text())
    assert {ranks["r"], *ranks["rank_pattern"].values()} == {site.made.rank for site in found.sites}
    assert ranks["alpha_pattern"] == ranks["rank_pattern"], "the scale is 1 everywhere"
    assert ranks["lora_alpha"] == ranks["r"]


def test_all_of_the_energy_is_the_adapter_itself(tmp_path):
    found = lorica.resize(made(tmp_path / "a"), tmp_path / "out", energy=1.0)
    assert found.error < 10 * EPS
    assert [site.made.rank for site in found.sites] == [site.before for site in found.sites]


def test_a_tail_of_which_rounding_is_all_is_no_rank(tmp_path):
    """An adapter blended with itself has twice the factors and not one direction more."""
    folder = made(tmp_path / "a")
    lorica.combine({str(folder): 0.5, f"{tmp_path}/./a": 0.5}, tmp_path / "twice")
    assert {len(t) for k, t in load_file(tmp_path / "twice" / TENSORS).items() if "lora_A" in k} == {12, 8}
    found = lorica.resize(tmp_path / "twice", tmp_path / "out", r=12)
    assert {site.made.rank for site in found.sites} == {6, 4}
    assert found.error < 10 * EPS


@pytest.mark.parametrize(
    ("base", "targets"),
    [(GPT2, ["c_attn", "wte"]), (CONVNET, ["image", "signal", "out"]), (MOE, ["q_proj", "experts"])],
    ids=["gpt2", "convolutions", "experts"],
)
def test_every_kind_of_layer_is_resized_and_a_whole_rank_changes_nothing(base, targets, tmp_path):
    folder = made(tmp_path / "a", LoRA(r=3, alpha=5, target_modules=targets), base)
    lorica.resize(folder, tmp_path / "out", r=3)
    before, after = (weights(base, each) for each in (folder, tmp_path / "out"))
    bare = dict(base.build().named_parameters())
    assert any(float((before[name] - bare[name]).norm()) > 0.1 for name in bare)
    for name in bare:
        assert float((after[name] - before[name]).norm()) < 1e-6 * float(before[name].norm())


def weights(base, folder):
    model = adapter.load(base.build(), folder, other_base=True).merge(probed=False)
    return {name: p.detach() for name, p in model.named_parameters()}


def test_the_folder_names_the_adapter_that_it_was(tmp_path):
    folder = made(tmp_path / "a")
    found = lorica.resize(folder, tmp_path / "out", r=2)
    told = json.loads((tmp_path / "out" / MANIFEST).read_text())
    assert told["made"] == "resized"
    assert told["parents"] == [{"digest": durable.sha256(folder / TENSORS), "source": str(folder)}]
    assert verified(tmp_path / "out").ok
    assert "records no base" in found.unproven


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({}, ["one of the two"]),
        ({"r": 2, "energy": 0.5}, ["one of the two"]),
        ({"r": 0}, ["r: 0"]),
        ({"energy": 1.5}, ["energy: 1.5"]),
    ],
)
def test_a_size_without_meaning_is_refused(options, told, tmp_path):
    with pytest.raises(RequestError) as refused:
        lorica.resize(made(tmp_path / "a"), tmp_path / "out", **options)
    assert all(word in line for word, line in zip(told, str(refused.value).splitlines(), strict=True))
    assert not (tmp_path / "out").exists()


def test_what_has_no_delta_is_not_resized(tmp_path):
    for number, method in enumerate((DoRA(r=2, alpha=5), Prompt(length=3))):
        with pytest.raises(AdapterError, match="leave"):
            lorica.resize(made(tmp_path / f"{number}", method), tmp_path / "out", r=1)


def test_an_adapter_without_effect_is_not_resized(tmp_path):
    adapter.attach(LLAMA.build(torch.float32), METHOD).save(tmp_path / "a")
    with pytest.raises(AdapterError, match="changes nothing"):
        lorica.resize(tmp_path / "a", tmp_path / "out", r=1)
    with pytest.raises(AdapterError, match="nothing to cut"):
        lorica.resize(tmp_path / "a", tmp_path / "out", r=1, untrained=True)


def random(*shape, seed):
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def whole_spectrum(matrix):
    return Spectrum(*torch.linalg.svd(matrix, full_matrices=False))


def products():
    """Tall, wide, and of more ranks than the matrix has; and three matrices at once."""
    for seed, (d_out, r, d_in) in enumerate([(9, 3, 5), (4, 3, 11), (3, 7, 4)]):
        yield Product(random(d_out, r, seed=seed), random(r, d_in, seed=seed + 10))
    yield Product(random(3, 6, 2, seed=5), random(3, 2, 7, seed=6))


@pytest.mark.parametrize("held", list(products()), ids=lambda held: str(tuple(held.dense().shape)))
def test_the_factors_tell_what_the_matrix_does(held):
    """Norm, inner product, singular values and the best of a rank, against the matrix itself in float64."""
    whole = held.dense()
    other = Product(random(*held.B.shape, seed=20), random(*held.A.shape, seed=21))
    size = float(whole.norm())
    assert held.norm() == pytest.approx(size, rel=1e-13)
    assert held.dot(other) == pytest.approx(float((whole * other.dense()).sum()), abs=1e-12 * size * other.norm())
    found, expected = held.spectrum(), whole_spectrum(whole)
    k = found.S.shape[-1]
    torch.testing.assert_close(found.S, expected.S[..., :k], rtol=0, atol=1e-13 * size)
    torch.testing.assert_close(held.singular_values(), found.S, rtol=0, atol=1e-13 * size)
    torch.testing.assert_close(together([held, other]).dense(), whole + other.dense(), rtol=0, atol=1e-13 * size)
    for r in range(1, k + 1):
        torch.testing.assert_close(found.cut(r).dense(), expected.cut(r).dense(), rtol=0, atol=1e-12 * size)


@pytest.mark.parametrize("shape", [(9, 14), (14, 9), (2, 6, 11)], ids=str)
def test_the_leading_triplets_of_a_matrix_are_those_of_its_whole_spectrum(shape):
    matrix = random(*shape, seed=7)
    whole, size = whole_spectrum(matrix), float(matrix.norm())
    for r in (1, 4, 20):
        found, k = Spectrum.leading(matrix, r), min(r, *shape[-2:])
        torch.testing.assert_close(found.S, whole.S[..., :k], rtol=0, atol=1e-12 * size)
        torch.testing.assert_close(found.cut(r).dense(), whole.cut(r).dense(), rtol=0, atol=1e-11 * size)
        assert found.energy(r) == pytest.approx(whole.energy(r), abs=1e-13)


def test_a_small_rest_of_large_products_is_measured_to_its_own_digits():
    """Gram matrices would lose it: their rounding is of the size of the squares."""
    held = Product(random(8, 3, seed=1), random(3, 8, seed=2))
    rest = Product(1e-11 * random(8, 1, seed=3), random(1, 8, seed=4))
    near = together([together([held, rest]), held.times(-1)])
    assert near.norm() == pytest.approx(rest.norm(), rel=1e-3)
    gram = ((near.B.mT @ near.B) * (near.A @ near.A.mT)).sum()
    assert abs(float(gram)) ** 0.5 != pytest.approx(rest.norm(), rel=1)


def values(*values):
    return torch.tensor(values, dtype=torch.float64)


def test_the_effective_rank_is_exp_of_the_entropy_of_the_singular_values():
    assert effective_rank(values(3.0, 3.0, 3.0, 3.0)) == pytest.approx(4)
    assert effective_rank(values(5.0, 0.0, 0.0)) == pytest.approx(1)
    p = [0.5, 0.3, 0.2]
    assert effective_rank(values(*p)) == pytest.approx(math.exp(-sum(x * math.log(x) for x in p)))
    assert effective_rank(values(0.0, 0.0)) == 0
    assert effective_rank(torch.stack([values(3.0, 3.0), values(3.0, 0.0)])) == pytest.approx(1.5)


def test_singular_values_that_are_rounding_are_no_rank():
    ranks = [whole_spectrum(torch.diag(values(*each))).rank for each in ((5.0, 1e-30, 0.0), (0.0, 0.0), (1.0, 1e-9))]
    assert ranks == [1, 0, 2]


def test_inspect_shows_the_singular_values_and_the_effective_rank(tmp_path):
    folder = made(tmp_path / "a", METHOD)
    told = adapter.inspect(folder)
    for site in told.sites:
        S = torch.linalg.svdvals(dense(folder)[site.name])
        torch.testing.assert_close(
            torch.tensor(site.singular_values, dtype=torch.float64), S[: len(site.singular_values)], rtol=1e-12, atol=0
        )
        p = S[S > 1e-12] / S.sum()
        assert site.effective_rank == pytest.approx(math.exp(-float((p * p.log()).sum())))
        assert site.norm == pytest.approx(math.hypot(*site.singular_values))
    entry = told.to_dict()["sites"][0]
    assert entry["singular_values"] == list(told.sites[0].singular_values)
    assert "effective rank" in str(told)
    assert f"{told.sites[0].singular_values[0]:.3g}" in str(told)


def test_inspect_has_no_spectrum_where_there_is_no_product(tmp_path):
    told = adapter.inspect(made(tmp_path / "a", DoRA(r=2, alpha=5)))
    assert all(site.singular_values is None for site in told.sites)
    assert "singular values" not in str(told)
    assert "singular_values" not in told.to_dict()["sites"][0]


def test_overlap_is_that_of_the_dense_deltas(tmp_path):
    """Cosine of the deltas; phi and principal angles of the spaces that torch's SVD of the whole matrix spans."""
    one, other = made(tmp_path / "a", METHOD, mark="a"), made(tmp_path / "b", LoRA(r=3, alpha=5), mark="b")
    found = lorica.overlap(one, other)
    first, second = dense(one), dense(other)
    assert {site.name for site in found.sites} == first.keys() & second.keys()
    assert set(found.only_second) == second.keys() - first.keys()
    for site in found.sites:
        D1, D2 = first[site.name], second[site.name]
        assert site.cosine == pytest.approx(float((D1 * D2).sum() / (D1.norm() * D2.norm())), abs=1e-12)
        (U1, S1, V1), (U2, S2, V2) = (torch.linalg.svd(D, full_matrices=False) for D in (D1, D2))
        i, j = (int((1e-10 * S[0] < S).sum()) for S in (S1, S2))
        assert site.ranks == (i, j)
        for spaces, P, Q in ((site.outputs, U1[:, :i], U2[:, :j]), (site.inputs, V1[:i].T, V2[:j].T)):
            cosines = torch.linalg.svdvals(P.T @ Q)
            assert spaces.phi == pytest.approx(float(cosines.square().sum()) / min(i, j), abs=1e-10)
            assert spaces.chance == max(i, j) / len(P)
            assert spaces.angles == pytest.approx(torch.rad2deg(cosines.clamp(max=1).acos()).tolist(), abs=1e-4)
    total = sum(float((first[n] * second[n]).sum()) for n in first.keys() & second.keys())
    sizes = [math.sqrt(sum(float(d.square().sum()) for d in each.values())) for each in (first, second)]
    assert found.cosine == pytest.approx(total / math.prod(sizes), abs=1e-12)
    assert f"{found.cosine:+.3f}" in str(found)
    json.dumps(found.to_dict(), allow_nan=False)


def test_an_adapter_coincides_with_itself_and_its_part_lies_within_it(tmp_path):
    folder = made(tmp_path / "a", METHOD)
    lorica.resize(folder, tmp_path / "part", r=2)
    itself, part = lorica.overlap(folder, folder), lorica.overlap(folder, tmp_path / "part")
    for site in itself.sites:
        assert (site.cosine, site.inputs.phi, site.outputs.phi) == pytest.approx((1, 1, 1))
    for site in part.sites:
        assert site.ranks[1] == 2
        assert (site.inputs.phi, site.outputs.phi) == pytest.approx((1, 1), abs=1e-5)
        assert 0 < site.cosine < 0.999


def test_adapters_of_two_bases_have_no_overlap(tmp_path):
    other = made(tmp_path / "b", LoRA(r=2, alpha=5), GPT2)
    with pytest.raises(AdapterError, match="fingerprint"):
        lorica.overlap(made(tmp_path / "a"), other)
    assert not lorica.overlap(tmp_path / "a", other, other_base=True).sites
