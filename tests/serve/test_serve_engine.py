"""The engine: every request is answered as it would be alone, and holds nothing once it has ended."""

import random
import time

import pytest
import torch

from lorica.adapter import Bank
from lorica.errors import QueueFullError, RequestError, RunError, UnknownAdapterError
from lorica.models import generate
from lorica.models.causal_lm import CausalLM
from lorica.serve.engine import Request
from lorica.serve.engine.runner import Runner
from lorica.serve.engine.sampler import Chooser
from lorica.serve.engine.scheduler import Scheduler
from serve_bases import BLOCK_BYTES, NAMES, SERVED, alone, answer, ask, engine_on, finish, folder, prompt, shelf_of

EVERY = (None, *NAMES)


@pytest.fixture(scope="module")
def shelf():
    return shelf_of(*NAMES)


def test_requests_of_every_method_together_are_answered_as_each_alone(shelf):
    engine = engine_on(shelf)
    heard = {(name, length): ask(engine, prompt(length), 20, name) for name in EVERY for length in (1, 5, 16, 17, 33)}
    stats = finish(engine)
    for (name, length), found in heard.items():
        assert found.tokens == answer(name, prompt(length), 20)
        assert found.end.reason == "length"
        assert found.end.usage.written == 20
    told = {name: [found.tokens for (own, _), found in heard.items() if own == name] for name in EVERY}
    assert all(told[one] != told[other] for one in EVERY for other in EVERY if one != other), "mixing would show"
    assert stats.blocks_used == 0


def test_a_sampled_request_is_answered_as_generate_answers_with_its_seed(shelf):
    options = [{"temperature": 0.9, "seed": seed, "top_k": 30, "top_p": 0.9} for seed in range(4)]
    options += [{"temperature": 1.3, "seed": 5}, {"temperature": 0.9, "seed": 5, "top_k": 30, "top_p": 0.9}, {}]
    engine = engine_on(shelf)
    heard = [ask(engine, prompt(9), 12, "lora", **each) for each in options]
    finish(engine)
    for each, found in zip(options, heard, strict=True):
        assert found.tokens == answer("lora", prompt(9), 12, **each)
    assert len({tuple(found.tokens) for found in heard}) == len(heard)


def test_a_blend_is_answered_as_the_bank_alone_answers_it(shelf):
    weights = {"lora": 0.7, "dora": -0.4}
    bank = Bank(SERVED.build())
    for name in weights:
        bank.add(name, folder(name))
    with bank.use(weights) as model:
        (expected,) = generate(model, [list(prompt(7))], 12, stop_ids=())
    engine = engine_on(shelf)
    heard = ask(engine, prompt(7), 12, weights)
    ask(engine, prompt(8), 12, "ia3")
    finish(engine)
    assert heard.tokens == expected != answer("lora", prompt(7), 12)


def test_a_stop_token_ends_its_request_alone_and_is_heard(shelf):
    free = answer("lora", prompt(5), 20)
    stop = free[3]
    engine = engine_on(shelf)
    heard, other = ask(engine, prompt(5), 20, "lora", stop_ids=frozenset({stop})), ask(engine, prompt(6), 20, "lora")
    finish(engine)
    assert heard.tokens == free[: free.index(stop) + 1]
    assert heard.end.reason == "stop"
    assert len(other.tokens) == 20


def test_an_answer_ends_where_the_context_does(shelf):
    engine = engine_on(shelf)
    heard = ask(engine, prompt(60), 20)
    finish(engine)
    assert heard.tokens == answer(None, prompt(60), 20)
    assert len(heard.tokens) == 5


def test_logprobs_are_those_of_the_logits_that_chose(shelf):
    engine = engine_on(shelf)
    heard = ask(engine, prompt(6), 4, "dora", logprobs=3)
    finish(engine)
    document = list(prompt(6))
    for event in heard.events[:-1]:
        logits = alone("dora")(torch.tensor([document])).logits[0, -1].detach()
        expected = logits.log_softmax(-1)
        assert abs(event.logprob - float(expected[event.token])) < 1e-12
        assert [token for token, _ in event.top] == expected.topk(3).indices.tolist()
        assert event.top[0] == (event.token, event.logprob)
        document.append(event.token)


class Spy:
    """Every row of logits by the document that it is for."""

    def __init__(self, monkeypatch):
        self.rows = {}
        original = Chooser.__call__

        def noted(chooser, logits):
            for document, row in zip(chooser.documents, logits, strict=True):
                self.rows.setdefault(document.listener, []).append(row.clone())
            return original(chooser, logits)

        monkeypatch.setattr(Chooser, "__call__", noted)

    def of(self, heard):
        return torch.stack(self.rows[heard])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_logits_are_equal_to_the_bit_alone_and_in_random_companies(dtype, monkeypatch):
    """A hundred in all, of up to 7 others that come and go, with prompts cut into chunks of any size; 400 more, in one
    pass without an engine, are in `test_peft_rows.py`."""
    spy, shelf = Spy(monkeypatch), shelf_of(*NAMES, dtype=dtype)
    expected = {}
    for name in EVERY:
        engine = engine_on(shelf, prompt_alone=64)
        heard = ask(engine, prompt(21), 6, name)
        finish(engine)
        expected[name] = spy.of(heard)
    for seed in range(50):
        draw = random.Random(seed)
        engine = engine_on(shelf, prompt_chunk=draw.choice([1, 3, 7, 16, 40]), prompt_alone=draw.choice([5, 16, 40]))
        watched = draw.choice(EVERY)
        mates = [(draw.randrange(1, 40), draw.randrange(1, 9), draw.choice(EVERY)) for _ in range(draw.randrange(1, 8))]
        before = draw.randrange(len(mates) + 1)
        for length, count, name in mates[:before]:
            ask(engine, prompt(length, seed), count, name)
        for _ in range(draw.randrange(4)):
            engine.step()
        heard = ask(engine, prompt(21), 6, watched)
        for length, count, name in mates[before:]:
            ask(engine, prompt(length, seed), count, name, temperature=draw.choice([0.0, 1.0]))
            engine.step()
        finish(engine)
        assert torch.equal(spy.of(heard), expected[watched]), f"company {seed}"


def test_sampled_rows_drawn_together_are_those_drawn_alone():
    """Rows of one temperature are drawn in one call: its sorting and summing must not see the rows beside."""
    from lorica.models.sampling import Sampling, generators_of

    logits = torch.randn(7, 301, generator=torch.Generator().manual_seed(0))
    sampling = Sampling(temperature=0.8, top_p=0.9, top_k=50)
    for seed in range(100):
        together = sampling.choose(logits, generators_of(seed, 7))
        each = [sampling.choose(logits[row : row + 1], [g])[0] for row, g in enumerate(generators_of(seed, 7))]
        assert together == each


def test_what_is_preempted_is_computed_again_and_changes_nothing(shelf, monkeypatch):
    spy = Spy(monkeypatch)
    engine = engine_on(shelf, cache_bytes=6 * BLOCK_BYTES)
    heard = {seed: ask(engine, prompt(12, seed), 40, "lora", temperature=0.7, seed=seed) for seed in range(4)}
    stats = finish(engine)
    assert stats.preempted > 0
    assert stats.blocks_used == 0
    for seed, found in heard.items():
        assert found.tokens == answer("lora", prompt(12, seed), 40, temperature=0.7, seed=seed)
        assert found.end.usage.written == 40
        room = engine_on(shelf)
        again = ask(room, prompt(12, seed), 40, "lora", temperature=0.7, seed=seed)
        finish(room)
        assert torch.equal(spy.of(again), spy.of(found))


def test_the_oldest_is_never_preempted(shelf):
    engine = engine_on(shelf, cache_bytes=5 * BLOCK_BYTES)
    heard = [ask(engine, prompt(12, seed), 40) for seed in range(5)]
    finish(engine)
    first = heard[0]
    assert all(found.end.reason == "length" for found in heard)
    assert first.tokens == answer(None, prompt(12, 0), 40)


def test_cancelling_frees_blocks_within_a_step(shelf):
    engine = engine_on(shelf, running=2)
    running, other, waiting = (ask(engine, prompt(30, seed), 30, "lora") for seed in range(3))
    for _ in range(3):
        engine.step()
    assert engine.stats().blocks_used > 0
    for heard in (running, other, waiting):
        heard.ticket.cancel()
    engine.step()
    stats = engine.stats()
    assert (stats.blocks_used, stats.running, stats.waiting) == (0, 0, 0)
    assert [heard.end.reason for heard in (running, other, waiting)] == ["cancelled"] * 3
    running.ticket.cancel()
    engine.step()
    assert len([event for event in running.events if event is running.end]) == 1


def test_a_cancellation_before_the_first_step_is_heard(shelf):
    engine = engine_on(shelf)
    heard = ask(engine, prompt(30), 30)
    heard.ticket.cancel()
    engine.step()
    assert heard.end.reason == "cancelled"


def test_a_deadline_cuts_off_what_runs_and_what_waits(shelf):
    engine = engine_on(shelf, running=1)
    late, waiting = ask(engine, prompt(9), 50, deadline=0.03), ask(engine, prompt(9, 1), 50, deadline=0.05)
    engine.step()
    time.sleep(0.12)
    engine.step()
    assert late.end.reason == waiting.end.reason == "deadline"
    assert late.tokens == answer(None, prompt(9), 50)[: len(late.tokens)]
    assert engine.stats().blocks_used == 0


def test_a_failing_pass_ends_its_requests_and_no_other(shelf, monkeypatch):
    """A prompt's pass fails; what is being decoded beside it goes on."""
    engine = engine_on(shelf)
    decoded = ask(engine, prompt(5), 20, "lora")
    engine.step()
    original = Runner.prefill

    def failing(runner, pieces):
        raise ZeroDivisionError("injected")

    monkeypatch.setattr(Runner, "prefill", failing)
    failed = [ask(engine, prompt(20, seed), 5, "dora") for seed in range(2)]
    engine.step()
    monkeypatch.setattr(Runner, "prefill", original)
    assert [heard.end.reason for heard in failed] == ["error"] * 2
    assert "ZeroDivisionError" in failed[0].end.message
    after = ask(engine, prompt(20, 7), 5, "dora")
    finish(engine)
    assert decoded.tokens == answer("lora", prompt(5), 20)
    assert after.tokens == answer("dora", prompt(20, 7), 5)
    assert engine.stats().blocks_used == 0


def test_a_failing_decoding_pass_leaves_prompts_and_later_requests_alone(shelf, monkeypatch):
    engine = engine_on(shelf, prompt_chunk=4)
    decoded = ask(engine, prompt(3), 20)
    engine.step()
    reading = ask(engine, prompt(40), 5)
    engine.step()
    original = CausalLM.logits

    def once(model, hidden, layout):
        monkeypatch.setattr(CausalLM, "logits", original)
        raise MemoryError("injected")

    monkeypatch.setattr(CausalLM, "logits", once)
    engine.step()
    finish(engine)
    assert decoded.end.reason == "error"
    assert reading.tokens == answer(None, prompt(40), 5)


def test_logits_that_are_no_numbers_end_their_request_alone(shelf, monkeypatch):
    original = CausalLM.logits

    def poisoned(model, hidden, layout):
        logits = original(model, hidden, layout)
        logits[layout.positions == 7] = float("nan")
        return logits

    monkeypatch.setattr(CausalLM, "logits", poisoned)
    engine = engine_on(shelf)
    first, second = ask(engine, prompt(5), 20), ask(engine, prompt(9), 20)
    finish(engine)
    assert first.end.reason == "error"
    assert len(first.tokens) == 3
    assert second.tokens == answer(None, prompt(9), 20)


def test_an_error_outside_of_any_pass_ends_what_there_is_and_not_the_engine(shelf, monkeypatch):
    original = Scheduler.admit
    engine = engine_on(shelf)
    with engine:
        monkeypatch.setattr(Scheduler, "admit", lambda scheduler: 1 // 0)
        lost = ask(engine, prompt(5), 5, "lora")
        wait_for(lambda: lost.end)
        monkeypatch.setattr(Scheduler, "admit", original)
        found = ask(engine, prompt(5), 5, "lora")
        wait_for(lambda: found.end)
    assert lost.end.reason == "error"
    assert found.tokens == answer("lora", prompt(5), 5)
    assert all(each.in_flight == 0 for each in shelf.list())


def test_a_listener_that_fails_loses_its_own_request_alone(shelf):
    engine = engine_on(shelf)

    def broken(event):
        raise OSError("gone")

    engine.submit(Request(tokens=prompt(5), max_tokens=30), broken)
    heard = ask(engine, prompt(5), 8)
    finish(engine)
    assert heard.tokens == answer(None, prompt(5), 8)
    assert engine.stats().ended == {"cancelled": 1, "length": 1}


def wait_for(condition, seconds=20):
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "it did not happen"
        time.sleep(0.002)


def test_requests_from_many_threads_are_answered_as_each_alone(shelf):
    import threading

    engine, found = engine_on(shelf, running=4), {}

    def client(number):
        name = EVERY[number % len(EVERY)]
        heard = ask(engine, prompt(4 + number), 10, name)
        wait_for(lambda: heard.end)
        found[number] = (heard.tokens, name)

    with engine:
        threads = [threading.Thread(target=client, args=(number,)) for number in range(12)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    for number, (tokens, name) in found.items():
        assert tokens == answer(name, prompt(4 + number), 10)
    assert len(found) == 12


def test_closing_ends_everything_and_takes_nothing_more(shelf):
    engine = engine_on(shelf, running=1)
    with engine:
        heard = [ask(engine, prompt(5, seed), 50) for seed in range(3)]
    assert {each.end.reason for each in heard} <= {"cancelled", "length"}
    assert all(each.end for each in heard)
    with pytest.raises(RunError, match="closed"):
        ask(engine, prompt(5), 5)
    assert not engine.alive


def test_a_queue_that_is_full_says_so_and_has_room_again_later(shelf):
    engine = engine_on(shelf, running=1, queue=2)
    for seed in range(3):
        ask(engine, prompt(5, seed), 2)
    with pytest.raises(QueueFullError, match="3 requests wait"):
        ask(engine, prompt(5), 2)
    finish(engine)
    ask(engine, prompt(5), 2)
    assert all(each.in_flight == 0 for each in shelf.list())


@pytest.mark.parametrize(
    ("tokens", "count", "choice", "error"),
    [
        (prompt(65), 1, None, RequestError),
        ((1, 61), 1, None, RequestError),
        ((-1,), 1, None, RequestError),
        (prompt(3), 1, "unknown", UnknownAdapterError),
        (prompt(3), 1, {"lora": 1.0, "lara": 1.0}, UnknownAdapterError),
    ],
)
def test_what_cannot_be_answered_is_refused_and_holds_nothing(shelf, tokens, count, choice, error):
    engine = engine_on(shelf)
    with pytest.raises(error):
        ask(engine, tokens, count, choice)
    assert all(each.in_flight == 0 for each in shelf.list())
    assert engine.stats().waiting == 0


def test_what_the_cache_can_never_hold_is_refused(shelf):
    engine = engine_on(shelf, cache_bytes=2 * BLOCK_BYTES)
    with pytest.raises(RequestError, match="the cache holds 32"):
        ask(engine, prompt(20), 14)
    assert engine.longest(20) == 13
    heard = ask(engine, prompt(20), 13)
    finish(engine)
    assert heard.tokens == answer(None, prompt(20), 13)


def test_one_adapter_with_a_hundred_requests_starves_no_other(shelf):
    engine = engine_on(shelf, running=2, queue=200)
    for seed in range(100):
        ask(engine, prompt(5, seed), 4, "lora")
    for _ in range(3):
        engine.step()
    rare = ask(engine, prompt(5), 4, "dora")
    steps = 0
    while rare.end is None:
        engine.step()
        steps += 1
    assert steps <= 60, "a round of the quantum, and not the hundred before it"
    assert engine.stats().by_adapter["lora"].waiting > 50
    finish(engine)


def test_a_long_prompt_keeps_no_short_one_from_its_first_token(shelf):
    engine = engine_on(shelf, prompt_chunk=8, prompt_alone=8)
    ask(engine, prompt(60), 3)
    engine.step()
    short = ask(engine, prompt(4), 3)
    engine.step()
    assert len(short.tokens) == 1
    finish(engine)


def test_prompts_are_read_in_chunks_while_others_are_decoded_every_step(shelf):
    engine = engine_on(shelf, prompt_chunk=8)
    decoded = ask(engine, prompt(5), 30)
    engine.step()
    ask(engine, prompt(60), 3)
    for step in range(1, 8):
        written = len(decoded.tokens)
        engine.step()
        assert len(decoded.tokens) == written + 1
        assert engine.stats().by_adapter[""].read <= 5 + 9 * step
    finish(engine)


def test_stats_count_what_was_done(shelf):
    engine = engine_on(shelf)
    ask(engine, prompt(20), 5, "lora")
    ask(engine, prompt(20, 1), 5)
    engine.step()
    during = engine.stats()
    assert (during.running, during.waiting) == (2, 0)
    assert during.by_adapter["lora"].running == 1
    stats = finish(engine)
    assert (stats.read, stats.written) == (2 * 24, 10)
    assert stats.by_adapter["lora"].written == 5
    assert stats.by_adapter["lora"].requests == 1
    assert stats.ended == {"length": 2}
    assert stats.resident == len(NAMES)
    assert stats.resident_bytes > 0
