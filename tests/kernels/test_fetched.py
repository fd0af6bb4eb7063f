"""Weights and other tensors that lie elsewhere: the same bits as those that are here, in a bounded amount of room."""

from pathlib import Path

import pytest
import torch

from lorica.errors import RequestError, RunError
from lorica.kernels import DenseWeight, FrozenWeight
from lorica.kernels.elsewhere import File, InFile, Order, Store, file_system
from lorica.kernels.fetched import Fetched, form_of, numbers_of
from lorica.kernels.quantised import quantised

CPU = torch.device("cpu")


def drawn(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def fetched(weight: FrozenWeight, store: Store, order: Order, kind: torch.dtype | None = None) -> Fetched:
    parts = {name: store.keep(tensor) for name, tensor in numbers_of(weight).items()}  # type: ignore[arg-type]
    return Fetched(form=form_of(weight), parts=parts, kind=kind or weight.dtype, place=CPU, order=order)  # type: ignore[arg-type]


FORMS = {
    "float32": DenseWeight,
    "bfloat16": lambda W: DenseWeight(W.bfloat16()),
    "nf4": lambda W: quantised(W.bfloat16(), "nf4", double=False),
    "nf4, doubly": lambda W: quantised(W.bfloat16(), "nf4", double=True),
    "int8": lambda W: quantised(W, "int8"),
}


@pytest.mark.parametrize("form", FORMS)
def test_products_with_a_fetched_weight_are_those_with_the_weight_itself(form: str, tmp_path: Path) -> None:
    """Two weights of different shapes in turn: each finds its own numbers though they share one workspace.  Few rows
    and many, which other products take."""
    store, order = Store(CPU, tmp_path), Order()
    held = [FORMS[form](drawn(*shape, seed=seed)) for seed, shape in enumerate(((48, 64), (96, 32)))]
    away = [fetched(weight, store, order) for weight in held]
    for rows in (5, 200):
        for weight, other in zip(held, away, strict=True):
            x = drawn(rows, weight.shape[1], dtype=weight.dtype, seed=7).requires_grad_()
            y = x.detach().clone().requires_grad_()
            bias, grad = drawn(weight.shape[0], dtype=weight.dtype), drawn(rows, weight.shape[0], dtype=weight.dtype)
            here, there = weight.linear(x, bias), other.linear(y, bias)
            here.backward(grad)
            there.backward(grad)
            assert torch.equal(here, there)
            assert torch.equal(x.grad, y.grad)  # type: ignore[arg-type]
            assert torch.equal(weight.dense(), other.dense())
            assert (other.shape, other.dtype, other.device) == (weight.shape, weight.dtype, weight.device)


def test_a_weight_that_is_stored_in_another_type_is_cast_as_it_would_be_when_it_is_loaded(tmp_path: Path) -> None:
    W, x = drawn(32, 64), drawn(3, 64, dtype=torch.bfloat16)
    other = fetched(DenseWeight(W), Store(CPU, tmp_path), Order(), torch.bfloat16)
    assert torch.equal(other.product(x), DenseWeight(W.bfloat16()).product(x))
    assert other.dtype == other.dense().dtype == torch.bfloat16


def test_what_was_read_after_the_same_two_is_asked_for_before_it_is_read() -> None:
    """Forward and backward pass a layer in opposite directions: what follows depends on where one came from."""
    order = Order()
    passes = ["a", "b", "c", "c", "b", "a"]
    for name in passes:
        order.read(name)
    told = [order.read(name) for name in passes]
    assert told[1:5] == ["c", "c", "b", "a"]


def test_a_file_does_not_grow_with_tensors_that_come_and_go(tmp_path: Path) -> None:
    store = Store(CPU, tmp_path)
    for step in range(62):
        sizes = [1000 + 7 * (step % 31), 1500, 1999]
        kept = [store.keep(drawn(size, seed=size), passing=True) for size in sizes]
        assert all(torch.equal(each.tensor(), drawn(size, seed=size)) for each, size in zip(kept, sizes, strict=True))
        del kept
    assert store._file is not None
    assert store._file._end <= 4096 + 3 * 8192
    assert not list(tmp_path.iterdir()), "the file has no name that a killed process would leave behind"


def test_a_file_that_became_shorter_is_an_error_in_one_line(tmp_path: Path) -> None:
    path = tmp_path / "weights"
    path.write_bytes(bytes(400))
    kept = InFile(File.of(path), 100, (100,), torch.float32)
    with pytest.raises(RunError, match="weights: ends within"):
        kept.tensor()


def test_a_folder_that_is_memory_itself_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lorica.kernels.elsewhere.file_system", lambda folder: "tmpfs")
    with pytest.raises(RequestError, match="is memory itself"):
        Store(CPU, tmp_path)


def test_the_file_system_of_a_folder_is_that_of_the_nearest_mount(monkeypatch: pytest.MonkeyPatch) -> None:
    mounts = "disk / ext4 rw\nnone /data tmpfs rw\ndisk2 /data/runs xfs rw\n"
    monkeypatch.setattr(Path, "read_text", lambda self, **_: mounts)
    kinds = [file_system(Path(place)) for place in ("/srv/me", "/data/tmp", "/data/runs/a", "/database")]
    assert kinds == ["ext4", "tmpfs", "xfs", "ext4"]
