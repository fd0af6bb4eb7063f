"""Turns: an adapter with a hundred requests waits as long as one with a single request."""

from dataclasses import dataclass
from types import SimpleNamespace

import pytest

from lorica.serve.engine.fair import FairQueues


@dataclass(eq=False)
class Waiting:
    lease: SimpleNamespace
    cost: int


def document(name, cost=80):
    return Waiting(SimpleNamespace(name=name), cost)


def everything(queues, may=lambda each: True):
    taken = []
    while (each := queues.take(may)) is not None:
        taken.append(each.lease.name)
    return taken


def filled(quantum=80, **counts):
    queues = FairQueues(quantum)
    for name, count in counts.items():
        for _ in range(count):
            queues.put(document(name))
    return queues


def test_one_busy_adapter_starves_nobody():
    taken = everything(filled(busy=100, rare=1))
    assert taken.index("rare") <= 1
    assert len(taken) == 101


def test_turns_alternate_while_several_wait():
    taken = everything(filled(a=10, b=10, c=10))
    for start in range(0, 30, 3):
        assert sorted(taken[start : start + 3]) == ["a", "b", "c"]


def test_shares_are_of_tokens_and_not_of_requests():
    queues = FairQueues(100)
    for _ in range(20):
        queues.put(document("long", 400))
    for _ in range(80):
        queues.put(document("short", 100))
    taken = everything(queues)
    for end in range(20, 90, 10):
        long, short = taken[:end].count("long") * 400, taken[:end].count("short") * 100
        assert abs(long - short) <= 800, "two of the longest documents"


def test_a_queue_whose_first_may_not_go_is_passed_over_and_keeps_its_place():
    queues = filled(away=3, here=2)
    assert everything(queues, lambda each: each.lease.name == "here") == ["here", "here"]
    assert len(queues) == 3
    assert everything(queues) == ["away"] * 3


def test_clients_that_ask_one_thing_after_another_keep_no_dear_request_waiting():
    """Each sends its next request when its last is taken, so that one always waits that costs little."""
    quantum, clients, cost, dear = 256, 40, 30, 4000
    queues = FairQueues(quantum)
    queues.put(document("dear", dear))
    for client in range(clients):
        queues.put(document(f"client {client}", cost))
    others = []
    for _ in range(dear // quantum * clients * quantum // cost + 1):
        taken = queues.take(lambda each: True)
        if taken.lease.name == "dear":
            return
        others.append(taken)
        queues.put(document(taken.lease.name, cost))
    pytest.fail(f"{len(others)} requests went first, more than the share of all others")


def test_what_is_put_back_is_first_again_and_costs_nothing():
    queues = filled(a=2)
    first = queues.take(lambda each: True)
    queues.put_back(first)
    assert queues.take(lambda each: True) is first
    assert len(queues) == 1


def test_a_document_can_leave_while_it_waits():
    queues = filled(a=1, b=2)
    gone = next(iter(queues))
    queues.remove(gone)
    assert everything(queues) == ["b", "b"]
    assert len(queues) == 0


def test_in_one_queue_for_all_the_rare_one_would_wait_for_a_hundred():
    """The control: the same requests under one name."""
    queues = FairQueues(80)
    for _ in range(100):
        queues.put(document("all"))
    last = document("all")
    queues.put(last)
    taken = []
    while (each := queues.take(lambda each: True)) is not None:
        taken.append(each)
    assert taken.index(last) == 100
