"""What left the device of a CPU is ready in the host's memory: bringing it back makes nothing again."""

from test_serve_shelf import ALIKE, evicting

from lorica.adapter import Bank
from serve_bases import ask, engine_on, finish, prompt


def made_while_all_are_asked_twice(monkeypatch, **options):
    shelf, made, prepared = evicting(2, **options), [], Bank.prepared
    monkeypatch.setattr(Bank, "prepared", lambda bank, *given, **more: made.append(1) or prepared(bank, *given, **more))
    engine = engine_on(shelf)
    for name in ALIKE * 2:
        ask(engine, prompt(9, 0), 3, name)
        finish(engine)
    return len(made)


def test_an_adapter_comes_back_without_being_made_again(monkeypatch):
    assert made_while_all_are_asked_twice(monkeypatch) == 0


def test_one_that_had_to_leave_the_host_too_is_made_again(monkeypatch):
    assert made_while_all_are_asked_twice(monkeypatch, host_bytes=1) > 0
