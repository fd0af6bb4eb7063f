"""Each start is what its paper says, and the identities that follow from it hold."""

from dataclasses import replace

import nf4
import pytest
import starts as oracle
import torch
from torch import Tensor, nn

from lorica.errors import TargetError
from lorica.kernels import DenseWeight
from lorica.kernels.quantised import quantised
from lorica.methods.contract import Start
from lorica.methods.lora import LoRA, LoRALinear, MovedLinear
from lorica.methods.starts import EVA, LoRAGA, PiSSA
from lorica.methods.starts.eva import BUFFER, Inputs, Stream, dealt
from lorica.methods.starts.lora_ga import Gradients
from lorica.methods.statistic import Adapted
from lorica.models.ambient import Pass
from lorica.site import Site

D_OUT, D_IN, R = 14, 11, 3
SITE = Site(name="layers.0.q", kind="linear", shape=(D_OUT, D_IN))
STORED = Site(name="layers.0.q", kind="linear", shape=(D_OUT, D_IN), stored="nf4")
ROUNDING = 1e-12


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def start(W: Tensor, given: dict[str, Tensor] | None = None) -> Start:
    return Start(
        torch.Generator().manual_seed(0), torch.device("cpu"), torch.float64, DenseWeight(W), None, given or {}
    )


def module(init: object, W: Tensor, r: int = R, given: dict[str, Tensor] | None = None, **more: object) -> MovedLinear:
    return MovedLinear(LoRA(r=r, alpha=8, init=init, **more), SITE, start(W, given))


def moved(layer: MovedLinear) -> MovedLinear:
    with torch.no_grad():
        layer.A.add_(0.3 * normal(*layer.A.shape, seed=5))
        layer.B.add_(0.3 * normal(*layer.B.shape, seed=6))
    return layer


def near(found: Tensor, expected: Tensor, tolerance: float = ROUNDING) -> bool:
    return bool((found - expected).abs().max() <= tolerance * expected.abs().max())


@pytest.mark.parametrize("rslora", [False, True])
def test_pissa_takes_the_principal_part_in_equal_halves(rslora: bool):
    W = normal(D_OUT, D_IN)
    layer = module("pissa", W, rslora=rslora)
    A, B = oracle.pissa(W, R, layer.scale)
    assert near(layer.B0 @ layer.A0, B @ A)
    assert near(layer.A0 @ layer.A0.T, A @ A.T)
    assert near(layer.B0.T @ layer.B0, B.T @ B)


@pytest.mark.parametrize("r", range(1, 9))
def test_what_pissa_leaves_is_the_least_that_rank_r_can_leave(r: int):
    """Eckart and Young: the squares of the singular values from r on."""
    W = normal(D_OUT, D_IN)
    layer = module("pissa", W, r)
    left = (W - layer.scale * layer.B0 @ layer.A0).square().sum()
    assert left.item() == pytest.approx(oracle.eigenvectors(W.T @ W)[0][r:].sum().item(), rel=1e-10)


def test_the_fast_svd_leaves_hardly_more():
    """On a spectrum that falls as 1/i; without power iterations it leaves more."""
    U, V = (torch.linalg.qr(normal(60, 60, seed=seed))[0] for seed in (1, 2))
    W = U / torch.arange(1, 61) @ V
    left = {}
    for niter in (None, 0, 4):
        site = Site(name="wide", kind="linear", shape=(60, 60))
        A, B = PiSSA(niter=niter).factors(site, 6, 2.0, start(W))
        left[niter] = float((W - 2.0 * B @ A).norm())
    assert left[None] <= left[4] <= 1.001 * left[None]
    assert left[0] > left[4]


def in_four_bits(W: Tensor) -> Tensor:
    codes, scales = nf4.quantised(W.float().flatten().numpy())
    return torch.from_numpy(nf4.dequantised(codes, scales, W.numel())).view_as(W).double()


def repaired(W: Tensor, r: int = R, **options: object) -> LoRALinear:
    weight = quantised(W, "nf4", double=False)
    begin = replace(start(W), weight=weight, original=lambda _: W)
    return LoRALinear(LoRA(r=r, alpha=8, init={"name": "loftq", **options}), STORED, begin).requires_grad_(False)


@pytest.mark.parametrize("r", [1, R, D_IN])
def test_loftq_is_the_papers_first_round_and_leaves_the_least(r: int):
    W = normal(D_OUT, D_IN)
    layer = repaired(W, r)
    Q, A, B = oracle.loftq(W, in_four_bits, r, layer.scale, T=1)
    assert near(layer.B @ layer.A, B @ A, 1e-6), "absmax of a block is rounded to float32 in either"
    assert near(layer.A @ layer.A.T, A @ A.T, 1e-6)
    squares = oracle.eigenvectors((W - Q).T @ (W - Q))[0]
    left = float((W - layer.merged(Q)).square().sum())
    assert left == pytest.approx(float(squares[r:].sum()), abs=1e-6 * float(squares.sum()))
    assert left < float(squares.sum())


def test_the_larger_the_rank_the_less_is_left_and_nothing_at_the_full_one():
    W = normal(D_OUT, D_IN)
    Q = in_four_bits(W)
    left = [float((W - repaired(W, r).merged(Q)).norm()) for r in range(1, D_IN + 1)]
    assert left == sorted(left, reverse=True)
    assert left[-1] < 1e-6 * W.norm()


def test_a_fast_repair_leaves_hardly_more():
    W = normal(D_OUT, D_IN)
    Q = in_four_bits(W)
    whole, fast = (float((W - repaired(W, 1, **options).merged(Q)).norm()) for options in ({}, {"niter": 2}))
    assert whole <= fast < 1.01 * whole


def test_another_model_s_weight_is_no_original():
    W = normal(D_OUT, D_IN)
    weight = quantised(W, "nf4", double=False)
    for other in (normal(D_OUT, D_IN, seed=3), W + 0.3 * normal(D_OUT, D_IN, seed=3)):
        with pytest.raises(TargetError, match=r"layers\.0\.q: the base is .* from the original"):
            LoRALinear(LoRA(init="loftq"), STORED, replace(start(W), weight=weight, original=lambda _: other))  # noqa: B023


def test_a_weight_that_quantising_leaves_as_it_is_has_nothing_to_put_back():
    with pytest.raises(TargetError, match="took less than rank 3"):
        repaired(in_four_bits(normal(D_OUT, D_IN)))


def test_olora_has_orthonormal_columns_and_the_first_rows_of_R():
    W = normal(D_OUT, D_IN)
    layer = module("olora", W)
    A, B = oracle.olora(W, R)
    assert near(layer.B0.T @ layer.B0, torch.eye(R, dtype=torch.float64))
    assert near(layer.B0 @ layer.A0, B @ A)
    assert near(layer.A0.abs(), A.abs())


@pytest.mark.parametrize("init", ["pissa", "olora"])
def test_a_moved_start_is_the_papers_residual_and_a_lora_of_twice_the_rank(init: str):
    W, x = normal(D_OUT, D_IN), normal(4, D_IN, seed=2)
    layer = moved(module(init, W))
    factors = [tensor.detach() for tensor in (layer.A0, layer.B0, layer.A, layer.B)]
    expected = oracle.residual(W, *factors, layer.scale)
    assert not near(expected, W, 0.1)
    base = nn.Linear(D_IN, D_OUT).double()
    base.weight.data.copy_(W)
    assert near(layer(x, base, Pass()), x @ expected.T + base.bias)
    assert near(layer.merged(W), expected)
    file = layer.finished()
    assert file["A"].shape == (2 * R, D_IN)
    assert near(W + layer.scale * file["B"] @ file["A"], expected)
    signed = torch.cat([layer.B, -layer.B0], 1) @ torch.cat([layer.A, layer.A0])
    assert near(file["B"] @ file["A"], signed), "and as PEFT writes it"


def test_half_precision_keeps_more_of_the_file_than_of_peft_s_form():
    """[B - B0, B0] [A; A - A0] rounds the small differences; [B, -B0] [A; A0] subtracts what was rounded."""
    W = normal(D_OUT, D_IN)
    layer = module("pissa", W).requires_grad_(False)
    with torch.no_grad():
        layer.A.add_(1e-3 * normal(*layer.A.shape, seed=5))
        layer.B.add_(1e-3 * normal(*layer.B.shape, seed=6))
    exact = layer.B @ layer.A - layer.B0 @ layer.A0
    file = layer.finished()

    def error(B: Tensor, A: Tensor) -> float:
        return float((B.bfloat16().double() @ A.bfloat16().double() - exact).norm() / exact.norm())

    ours = error(file["B"], file["A"])
    theirs = error(torch.cat([layer.B, -layer.B0], 1), torch.cat([layer.A, layer.A0]))
    assert ours < 2**-8
    assert theirs > 30 * ours


@pytest.mark.parametrize("gamma", [16.0, 4.0])
def test_lora_ga_takes_the_gradient_s_directions_as_the_authors_do(gamma: float):
    G = sum(g.T @ x for x, g in tokens())
    A0, B0 = found(LoRAGA(gamma=gamma))
    A, B = oracle.lora_ga(G, R, gamma)
    assert near(A0.T @ A0, A.T @ A, 1e-10)
    assert near(B0 @ B0.T, B @ B.T, 1e-10)


def test_the_first_step_of_lora_ga_is_the_best_gradient_step_of_rank_2r():
    """What its start is chosen for: dA = s B0^T G and dB = s G A0^T change W' by s (B0 dA + dB A0) = s^2 k^2 G_2r."""
    G = sum(g.T @ x for x, g in tokens())
    A0, B0 = found(LoRAGA())
    s, k = 8 / R, D_OUT**0.25 / 4
    change = s * (B0 @ (s * B0.T @ G) + (s * G @ A0.T) @ A0)
    U, S, Vt = torch.linalg.svd(G)
    best = U[:, : 2 * R] * S[: 2 * R] @ Vt[: 2 * R]
    assert near(change, (s * k) ** 2 * best, 1e-10)


def tokens() -> list[tuple[Tensor, Tensor]]:
    return [(normal(9, D_IN, seed=seed), normal(9, D_OUT, seed=seed + 10)) for seed in range(3)]


def found(config: LoRAGA) -> tuple[Tensor, Tensor]:
    statistic = Gradients(config, [Adapted(SITE, R)])
    for (site,) in statistic.passes():
        for x, g in tokens():
            statistic.see(site, x[None], g[None])
    factors = statistic.factors()
    return factors["layers.0.q.A"], factors["layers.0.q.B"]


def test_eva_finds_the_directions_of_a_full_svd_of_all_inputs():
    """To rounding where what is kept holds all that was seen."""
    X = normal(4 * BUFFER, 3, seed=3) @ normal(3, D_IN, seed=4) + 0.1 * normal(4 * BUFFER, D_IN, seed=5)
    stream = Stream(most=4, tau=1.0)
    for part in X.split(100):
        stream.add(part)
    V, shares = stream.directions()
    expected, explained = oracle.directions(X, 4)
    assert near((V @ expected.T).abs(), torch.eye(4, dtype=torch.float64), 1e-9)
    assert near(shares, explained[:4], 1e-9)


def test_eva_finds_them_closely_where_it_keeps_less():
    scales = torch.arange(1, 81, dtype=torch.float64) ** -1.0
    X = normal(4 * BUFFER, 80, seed=3) * scales @ torch.linalg.qr(normal(80, 80, seed=4))[0]
    stream = Stream(most=4, tau=1.0)
    for part in X.split(100):
        stream.add(part)
    V, shares = stream.directions()
    expected, explained = oracle.directions(X, 4)
    assert len(stream.SV) == 16
    assert (V @ expected.T).diagonal().abs().min() > 0.999
    assert near(shares, explained[:4], 1e-3)


def test_eva_stops_once_its_directions_stand_still():
    X = normal(8 * BUFFER, 3, seed=3) @ normal(3, D_IN, seed=4)
    read = {}
    for tau in (0.9, 1.0):
        statistic = Inputs(EVA(tau=tau, rho=1), [Adapted(SITE, 2)])
        for (site,) in statistic.passes():
            rows = X.split(128)
            read[tau] = next((n for n, x in enumerate(rows) if statistic.done or statistic.see(site, x, None)), 32)
    assert read[0.9] == 2 * BUFFER / 128
    assert read[1.0] > read[0.9]


def test_eva_deals_ranks_to_the_layers_that_need_most_directions():
    shares = {"flat": [0.2, 0.19, 0.18, 0.17, 0.1, 0.05], "steep": [0.9, 0.05, 0.02, 0.01], "middle": [0.5, 0.3, 0.1]}
    capped = {name: torch.tensor(values[:4], dtype=torch.float64) for name, values in shares.items()}
    assert dealt(capped, 6) == oracle.ranks(shares, 2, 2.0) == {"flat": 3, "steep": 1, "middle": 2}
    assert dealt({name: values[:2] for name, values in capped.items()}, 6) == dict.fromkeys(shares, 2), "rho 1"


def test_layers_that_read_one_tensor_share_one_stream():
    sites = [Site(name=name, kind="linear", shape=(8, 6)) for name in ("q", "k", "o")]
    statistic = Inputs(EVA(), [Adapted(site, 2) for site in sites])
    for q, k, o in statistic.passes():
        for seed in range(2):
            x = normal(30, 6, seed=seed)
            statistic.see(q, x, None)
            statistic.see(k, x, None)
            statistic.see(o, normal(30, 6, seed=seed + 7), None)
    assert statistic.streams["q"] is statistic.streams["k"] is not statistic.streams["o"]
    assert statistic.streams["q"].directions()[1].sum() <= 1
    expected, _ = oracle.directions(torch.cat([normal(30, 6, seed=seed) for seed in range(2)]), 1)
    assert (statistic.factors()["k.A"][0] @ expected[0]).abs() > 1 - ROUNDING
