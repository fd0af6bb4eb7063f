"""The pool of a run's tensors: they never meet, and no more stays resident than they took at one time, and a 64th."""

import ctypes
import os
import random
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from lorica.errors import is_out_of_memory
from lorica.kernels.native import compiled
from lorica.kernels.native.pool import SPARED, Pool, _sources, pool

PAGE, LEAST = 4096, 64 << 10
MIB = 1 << 20

pytestmark = pytest.mark.skipif(pool().lacking is not None, reason=f"no pool: {pool().lacking}")


def anonymous() -> int:
    """Resident bytes of the process that are no file's."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))


@dataclass
class Churn:
    """Tensors of drawn sizes come and go, each filled with a number of its own."""

    seed: int
    held: dict[int, Tensor] = field(default_factory=dict)
    most: int = 0

    def run(self, steps: int) -> Iterator[int]:
        """Bytes of pages that are taken, after each change."""
        draw = random.Random(self.seed)
        for number in range(steps):
            if self.held and draw.random() < 0.48:
                self.take_off(draw.choice(list(self.held)))
            else:
                size = int(draw.choice((1, 1, 1, 8)) * draw.uniform(LEAST, MIB))
                self.held[number] = torch.empty(size, dtype=torch.uint8).fill_(number % 251)
            live = sum(-(-len(tensor) // PAGE) * PAGE for tensor in self.held.values())
            self.most = max(self.most, live)
            yield live

    def take_off(self, number: int) -> None:
        tensor = self.held.pop(number)
        assert int(tensor.min()) == int(tensor.max()) == number % 251


def bounded(one: Pool, seed: int) -> bool:
    """Whether what is resident kept to the bound, by the pool's account and by the system's."""
    one.empty()
    churn, before, kept = Churn(seed), anonymous(), True
    with one.used():
        for live in churn.run(600):
            told = one.held()
            assert (told.live, told.most) == (live, churn.most)
            kept = kept and live <= told.resident <= churn.most + churn.most // SPARED + PAGE
        kept = kept and anonymous() - before <= one.held().resident + 4 * MIB
        for number in list(churn.held):
            churn.take_off(number)
    return kept


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Pool:
    """A pool in which nothing of other tests lives."""
    folder = tmp_path_factory.mktemp("pool")
    (folder / "pool.cpp").write_bytes((compiled.FOLDER / "pool.cpp").read_bytes())
    return made(folder)


@pytest.mark.parametrize("seed", range(3))
def test_tensors_never_meet_and_what_is_resident_is_bounded(own: Pool, seed: int) -> None:
    assert bounded(own, seed)


def test_without_the_bound_the_claim_fails(tmp_path: Path) -> None:
    text = (compiled.FOLDER / "pool.cpp").read_text()
    right = "most_ + most_ / SPARED"
    assert right in text
    (tmp_path / "pool.cpp").write_text(text.replace(right, "most_ * 64"))
    assert not bounded(made(tmp_path), 0)


def test_ranges_that_overlap_are_seen(tmp_path: Path) -> None:
    text = (compiled.FOLDER / "pool.cpp").read_text()
    right = "add({whole.pages - pages, whole.region, range.end()});"
    assert right in text
    (tmp_path / "pool.cpp").write_text(text.replace(right, right.replace("range.end()", "range.end() - 1")))
    with pytest.raises(AssertionError):
        bounded(made(tmp_path), 0)


def made(folder: Path) -> Pool:
    """Of the pool.cpp in a folder."""
    sources = replace(_sources(), files=(folder / "pool.cpp",))
    sources.compile(sources.compiler(), folder / "pool.so")
    return Pool(ctypes.CDLL(str(folder / "pool.so")), "")


def test_a_tensor_outlives_the_use_and_then_gives_its_pages_back(own: Pool) -> None:
    with own.used():
        kept = torch.empty(MIB).fill_(7)
    assert own.held().resident == own.held().live == kept.nbytes
    assert bool((kept == 7).all())
    kept.resize_(2 * MIB)
    assert bool((kept[:MIB] == 7).all())
    del kept
    assert own.held().resident == 0
    elsewhere = torch.empty(MIB)
    assert own.held().live == 0
    del elsewhere


def test_the_last_of_several_users_gives_torchs_own_back(own: Pool) -> None:
    with own.used():
        with own.used():
            pass
        inner = torch.empty(MIB)
        assert own.held().live == inner.nbytes
        del inner


def test_small_tensors_are_torchs(own: Pool) -> None:
    with own.used():
        small = torch.empty(LEAST - 1, dtype=torch.uint8)
        assert own.held().live == 0
        del small


def test_several_threads_share_it(own: Pool) -> None:
    failed: list[BaseException] = []

    def work(seed: int) -> None:
        try:
            churn = Churn(seed)
            for _ in churn.run(300):
                pass
            for number in list(churn.held):
                churn.take_off(number)
        except BaseException as error:
            failed.append(error)

    with own.used():
        threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert own.held().live == 0
    assert not failed


def test_what_is_too_much_is_an_error_that_a_run_knows(own: Pool) -> None:
    with (
        own.used(),
        pytest.raises(RuntimeError, match="pool: can't allocate memory: 1125899906842624 bytes") as error,
    ):
        torch.empty(1 << 50, dtype=torch.uint8)
    assert is_out_of_memory(error.value)


def test_switched_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(compiled.OFF, "0")
    without = pool.__wrapped__()
    assert without.lacking == "LORICA_NATIVE=0"
    with without.used():
        assert without.held().live == 0


LIMITED = """
import resource, torch
from lorica.kernels import pool
with pool().used():
    parts = [torch.ones(24 << 20, dtype=torch.uint8) for _ in range(8)]
    parts = parts[::2]
    used = int(open("/proc/self/statm").read().split()[0]) * 4096
    resource.setrlimit(resource.RLIMIT_AS, (used + (40 << 20),) * 2)
    try:
        torch.ones(400 << 20, dtype=torch.uint8)
        raise SystemExit("there was no limit")
    except RuntimeError as error:
        assert "can't allocate memory" in str(error), error
    more = torch.ones(60 << 20, dtype=torch.uint8)
    assert all(bool((part == 1).all()) for part in parts)
print("ok")
"""


def test_under_a_limit_whole_regions_make_room() -> None:
    """Regions of 32 MiB hold 24 each; half of them are free, and what needs 60 fits beside 40 that the limit leaves."""
    assert ran(LIMITED) == "ok"


FORKED = """
import os, threading, torch
from lorica.kernels import pool
torch.empty(1)  # torch looks an operator up once, under a guard of its own that no fork unlocks
with pool().used():
    over = threading.Event()
    def busy():
        while not over.is_set():
            torch.empty(1 << 20)
    thread = threading.Thread(target=busy)
    thread.start()
    for _ in range(20):
        child = os.fork()
        if not child:
            torch.empty(1 << 20)
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
    over.set()
    thread.join()
print("ok")
"""


def test_a_fork_finds_it_unlocked() -> None:
    assert ran(FORKED) == "ok"


def ran(script: str) -> str:
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    found = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", script], check=False, capture_output=True, text=True, env=env, timeout=60
    )
    assert found.returncode == 0, found.stderr
    return found.stdout.strip()
