"""The shelf: what is served is what was loaded and checked out, for as long as somebody is answered with it."""

import itertools
import shutil
import threading
import time
from dataclasses import replace

import pytest
import torch
from test_serve_engine import wait_for

from adapter_folders import forged
from lorica import adapter
from lorica.errors import AdapterError, RequestError, UnknownAdapterError
from lorica.methods import LoRA
from lorica.serve.engine import Shelf
from lorica.serve.engine import shelf as shelf_module
from lorica.serve.engine import tiers as tiers_module
from lorica.serve.engine import verified as verified_module
from serve_bases import NAMES, answer, ask, engine_on, finish, folder, prompt, shelf_of
from tiny_bases import LLAMA


def copied(place, name="lora"):
    shutil.copytree(folder(name), place)
    return place


def described(shelf, name):
    return [each for each in shelf.list() if each.name == name]


def test_an_adapter_is_described_as_it_is():
    shelf = shelf_of("lora")
    (found,) = shelf.list()
    assert (found.name, found.generation, found.state, found.rank, found.method) == ("lora", 1, "ready", 3, "lora")
    assert found.tier == "device"
    assert found.bytes == shelf.bank.bytes("lora#1")
    assert len(found.digest) == 64


def without_effect(tensors, config):
    for key, tensor in tensors.items():
        if "lora_B" in key:
            tensor.zero_()


def other_weights(tensors, config):
    for tensor in tensors.values():
        tensor.mul_(1.5)


def other_scale(tensors, config):
    config["lora_alpha"] = 9


def not_finite(tensors, config):
    next(iter(tensors.values())).fill_(float("nan"))


@pytest.mark.parametrize("change", [without_effect, other_weights, other_scale, not_finite])
def test_an_adapter_that_does_not_check_out_is_refused_and_never_served(change, tmp_path):
    shelf = shelf_of("dora")
    with pytest.raises(AdapterError):
        shelf.load_own("bad", forged(copied(tmp_path / "bad"), change))
    assert [each.name for each in shelf.list()] == ["dora"]
    with pytest.raises(UnknownAdapterError):
        shelf.lease("bad")
    assert shelf.bank.names == ("dora#1",)


@pytest.mark.parametrize("change", [other_weights, other_scale])
def test_without_the_proof_a_forged_adapter_would_be_served(change, tmp_path, monkeypatch):
    """The control: reading and fitting alone let it pass."""
    whole = verified_module.verify
    passed = lambda *given, **named: replace(whole(*given, **named), status="verified")  # noqa: E731
    monkeypatch.setattr(verified_module, "verify", passed)
    shelf = shelf_of("dora")
    assert shelf.load_own("bad", forged(copied(tmp_path / "bad"), change)).name == "bad"


def test_a_damaged_file_is_refused(tmp_path):
    place = copied(tmp_path / "bad")
    data = bytearray((place / "adapter_model.safetensors").read_bytes())
    data[-3] ^= 1
    (place / "adapter_model.safetensors").write_bytes(data)
    with pytest.raises(AdapterError, match="SHA-256"):
        shelf_of().load_own("bad", place)


def test_an_adapter_of_another_base_is_refused(tmp_path):
    attached = adapter.attach(LLAMA.build(), LoRA(r=2))
    with torch.no_grad():
        for _, parameter in attached.named_parameters():
            parameter.add_(0.1)
    attached.save(tmp_path / "other")
    with pytest.raises(AdapterError):
        shelf_of().load_own("bad", tmp_path / "other")


def test_an_adapter_of_others_without_a_record_is_served_when_it_fits(tmp_path):
    place = copied(tmp_path / "peft")
    (place / "lorica.json").unlink()
    shelf = shelf_of()
    shelf.load_own("theirs", place)
    engine = engine_on(shelf)
    heard = ask(engine, prompt(9), 10, "theirs")
    finish(engine)
    assert heard.tokens == answer("lora", prompt(9), 10)


def test_verifying_leaves_the_model_in_service_as_it_is():
    from traces import traces

    shelf = shelf_of("lora")
    before = traces(shelf.bank.model)
    shelf._verified(folder("dora"))
    assert traces(shelf.bank.model) == before


@pytest.mark.parametrize(
    "name", ["", ".a", "-a", "a/b", "../a", "a" * 65, "a b", "a\n", "a#1", "ä", "a\x00", "%2e%2e", "a+b"]
)
def test_a_name_that_is_none_is_refused(name):
    with pytest.raises(RequestError, match="names no adapter"):
        shelf_of().load_own(name, folder("lora"))


@pytest.fixture
def rooted(tmp_path):
    """A root with one adapter, and another beside it that links inside lead to."""
    root = tmp_path / "root"
    copied(root / "good")
    copied(tmp_path / "secret")
    (root / "link").symlink_to(tmp_path / "secret")
    (root / "file").write_text("x")
    return shelf_of(root=root)


def test_a_folder_is_found_by_its_name_under_the_root(rooted):
    assert rooted.load("a", "good").number == 1


@pytest.mark.parametrize(
    "asked", ["absent", "../secret", "link", "good/../../secret", "", ".", "file", "a\0b", "x" * 5000, "/etc", "~"]
)
def test_outside_of_the_root_and_absent_are_one_error(rooted, asked, tmp_path):
    with pytest.raises(RequestError) as error:
        rooted.load("a", asked)
    assert str(error.value).endswith("no such adapter folder")
    assert rooted.list() == ()


def test_an_absolute_path_is_outside_too(rooted, tmp_path):
    with pytest.raises(RequestError, match="no such adapter folder"):
        rooted.load("a", tmp_path / "secret")


def test_without_a_root_check_the_secret_would_be_loaded(rooted, monkeypatch):
    """The control: joining alone."""
    monkeypatch.setattr(Shelf, "_under_root", lambda shelf, asked: shelf.root / asked)
    assert rooted.load("a", "../secret").number == 1


def test_a_name_is_taken_until_it_is_unloaded():
    shelf = shelf_of("lora")
    with pytest.raises(AdapterError, match="served already"):
        shelf.load_own("lora", folder("lora"))
    shelf.unload("lora")
    assert shelf.list() == ()
    assert shelf.bank.names == ()
    assert shelf.load_own("lora", folder("lora")).number == 2
    with pytest.raises(UnknownAdapterError, match="did you mean 'lora'"):
        shelf.replace_own("lara", folder("lora"))


def test_a_replacement_that_fails_leaves_the_old_one_served(tmp_path):
    shelf = shelf_of("lora")
    with pytest.raises(AdapterError):
        shelf.replace_own("lora", forged(copied(tmp_path / "bad"), other_weights))
    engine = engine_on(shelf)
    heard = ask(engine, prompt(9), 10, "lora")
    finish(engine)
    assert heard.tokens == answer("lora", prompt(9), 10)


def test_requests_in_flight_finish_on_the_old_generation_and_it_then_goes():
    shelf = shelf_of("lora")
    engine = engine_on(shelf, running=1)
    running, waiting = ask(engine, prompt(9), 20, "lora"), ask(engine, prompt(8), 20, "lora")
    engine.step()
    assert shelf.replace_own("lora", folder("lora", noise=1)).number == 2
    assert [(each.generation, each.state, each.in_flight) for each in described(shelf, "lora")] == [
        (1, "draining", 2),
        (2, "ready", 0),
    ]
    new = ask(engine, prompt(9), 20, "lora")
    finish(engine)
    assert running.tokens == answer("lora", prompt(9), 20)
    assert waiting.tokens == answer("lora", prompt(8), 20)
    assert new.tokens == answer("lora", prompt(9), 20, noise=1)
    wait_for(lambda: shelf.bank.names == ("lora#2",))


def test_unloading_refuses_at_once_and_waits_for_those_in_flight():
    shelf = shelf_of("lora")
    engine = engine_on(shelf)
    heard = ask(engine, prompt(9), 20, "lora")
    thread = threading.Thread(target=shelf.unload, args=("lora",))
    thread.start()
    wait_for(lambda: described(shelf, "lora")[0].state == "draining")
    with pytest.raises(UnknownAdapterError):
        ask(engine, prompt(9), 20, "lora")
    assert thread.is_alive()
    finish(engine)
    thread.join(10)
    assert not thread.is_alive()
    assert heard.tokens == answer("lora", prompt(9), 20)
    assert shelf.bank.names == ()


def slowly(monkeypatch, seconds):
    """Every file takes as long to read."""
    original = shelf_module.Verifier.__call__

    def slow(verifier, place):
        time.sleep(seconds)
        return original(verifier, place)

    monkeypatch.setattr(shelf_module.Verifier, "__call__", slow)


def test_a_name_that_is_being_loaded_is_shown_and_taken(monkeypatch):
    shelf = shelf_of()
    slowly(monkeypatch, 0.3)
    thread = threading.Thread(target=shelf.load_own, args=("lora", folder("lora")))
    thread.start()
    wait_for(shelf.list)
    assert [(each.name, each.state) for each in shelf.list()] == [("lora", "loading")]
    with pytest.raises(AdapterError, match="being loaded"):
        shelf.load_own("lora", folder("lora"))
    with pytest.raises(UnknownAdapterError):
        shelf.lease("lora")
    thread.join()
    assert [each.state for each in shelf.list()] == ["ready"]


def longest_gap(engine, load):
    """Seconds between two steps, at most, from the beginning of a load to its end."""
    times, thread = [time.monotonic()], threading.Thread(target=load)
    thread.start()
    while thread.is_alive():
        if not engine.stats().running:
            ask(engine, prompt(5), 50, "dora")
        engine.step()
        times.append(time.monotonic())
    return max(after - before for before, after in itertools.pairwise(times))


def test_a_slow_load_does_not_keep_others_from_being_answered(monkeypatch):
    shelf = shelf_of("dora")
    slowly(monkeypatch, 1.0)
    assert longest_gap(engine_on(shelf), lambda: shelf.load_own("lora", folder("lora"))) < 0.5


def test_a_load_that_the_engine_waits_for_would_be_felt(monkeypatch):
    """The control: the shelf is locked while it reads."""
    shelf = shelf_of("dora")
    slowly(monkeypatch, 1.0)

    def load():
        with shelf._lock:
            shelf.load_own("lora", folder("lora"))

    assert longest_gap(engine_on(shelf), load) > 0.9


ALIKE = ("lora", "wide", "dora")
"""Of nearly one size: where there is room for the two largest, there is for any two."""


def evicting(count, names=ALIKE, **options):
    """A shelf of these adapters whose device holds the largest `count` of them."""
    sizes = sorted(each.bytes for each in shelf_of(*names).list())
    return shelf_of(*names, device_bytes=sum(sizes[-count:]), **options)


def tiers_of(shelf):
    return {each.name: each.tier for each in shelf.list()}


@pytest.mark.parametrize("host", [None, 1])
def test_what_has_no_room_on_the_device_is_brought_when_it_is_asked_for(host):
    """host 1: a byte, so that nothing is kept in memory and folders are read again."""
    shelf = evicting(1, NAMES, host_bytes=host)
    below = "host" if host is None else "disk"
    assert set(tiers_of(shelf).values()) == {"device", below}
    engine = engine_on(shelf)
    for turn in range(2):
        for name in NAMES:
            heard = ask(engine, prompt(9, turn), 5, name)
            finish(engine)
            assert heard.tokens == answer(name, prompt(9, turn), 5)
            assert tiers_of(shelf)[name] == "device"
            _, held = shelf.resident()
            assert held <= shelf._tiers.device_bytes
    assert {each.state for each in shelf.list()} == {"ready"}


def test_more_adapters_than_fit_are_all_answered_at_once(monkeypatch):
    monkeypatch.setattr(tiers_module, "HOLD", 0.05)
    shelf = evicting(2)
    engine = engine_on(shelf, running=4)
    heard = [(name, seed, ask(engine, prompt(9, seed), 8, name)) for seed in range(4) for name in ALIKE]
    finish(engine)
    for name, seed, found in heard:
        assert found.tokens == answer(name, prompt(9, seed), 8)


def busy_until(shelf, engine, wanted, seconds=5.0):
    """Two adapters are kept busy for ever; whether `wanted` is answered all the same."""
    until = time.monotonic() + seconds
    others = [name for name in ALIKE if tiers_of(shelf)[name] == "device"]
    heard, lengths = None, itertools.cycle(range(3, 40, 7))
    while (heard is None or heard.end is None) and time.monotonic() < until:
        by_adapter = engine.stats().by_adapter
        for name in others:
            if name not in by_adapter or by_adapter[name].waiting < 2:
                ask(engine, prompt(5), next(lengths), name)
        engine.step()
        if heard is None and engine.stats().running == 8:
            heard = ask(engine, prompt(9), 3, wanted)
    return heard is not None and heard.end is not None


def test_adapters_that_are_busy_for_ever_yield_to_one_that_is_not_there(monkeypatch):
    monkeypatch.setattr(tiers_module, "HOLD", 0.05)
    shelf = evicting(2)
    absent = next(name for name, tier in tiers_of(shelf).items() if tier != "device")
    assert busy_until(shelf, engine_on(shelf, running=8), absent)


def test_without_yielding_it_would_wait_for_ever(monkeypatch):
    """The control."""
    monkeypatch.setattr(tiers_module.Tiers, "_find_one_to_yield", lambda tiers, wanted, now: None)
    shelf = evicting(2)
    absent = next(name for name, tier in tiers_of(shelf).items() if tier != "device")
    assert not busy_until(shelf, engine_on(shelf, running=8), absent, seconds=1.0)


def test_a_blend_brings_all_of_its_parts():
    shelf = evicting(2)
    engine = engine_on(shelf)
    weights = {"lora": 0.5, "dora": 0.5}
    found = [ask(engine, prompt(9), 8, weights) for _ in range(2)]
    finish(engine)
    alone = engine_on(shelf_of("lora", "dora"))
    expected = ask(alone, prompt(9), 8, weights)
    finish(alone)
    assert [heard.tokens for heard in found] == [expected.tokens] * 2


def test_a_folder_that_changed_meanwhile_is_not_served_under_the_old_name(tmp_path):
    (lora,) = shelf_of("lora").list()
    place = copied(tmp_path / "mine")
    shelf = shelf_of(device_bytes=lora.bytes, host_bytes=1)
    shelf.load_own("mine", place)
    shelf.load_own("dora", folder("dora"))
    assert tiers_of(shelf)["mine"] == "disk"
    forged(place, other_weights)
    engine = engine_on(shelf)
    heard = ask(engine, prompt(9), 5, "mine")
    wait_for(lambda: (engine.step(), heard.end)[1])
    assert heard.end.reason == "error"
    assert "changed since it was loaded" in heard.end.message
    with pytest.raises(AdapterError, match="replace it"):
        ask(engine, prompt(9), 5, "mine")
    shelf.replace_own("mine", folder("lora"))
    again = ask(engine, prompt(9), 5, "mine")
    finish(engine)
    assert again.tokens == answer("lora", prompt(9), 5)


def test_an_adapter_larger_than_the_device_room_is_refused():
    with pytest.raises(AdapterError, match="on the device"):
        shelf_of("lora", device_bytes=100)
