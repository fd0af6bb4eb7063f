"""A tiny base with adapters of several methods in folders, a shelf of them, and an engine that is stepped by hand."""

import time
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from zlib import crc32

import torch

from lorica import adapter
from lorica.methods import IA3, DoRA, LoRA, VeRA
from lorica.models import generate
from lorica.models.causal_lm import CausalLM
from lorica.serve.engine import Ended, Engine, Limits, Request, Shelf, Wrote
from tiny_bases import LLAMA, VOCABULARY, Base


def served():
    from transformers import LlamaConfig

    return CausalLM(
        LlamaConfig(
            vocab_size=VOCABULARY,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
            max_position_embeddings=64,
        )
    )


SERVED = Base("served", served, LLAMA.inputs, LLAMA.read)
"""Its widths are multiples of 16: torch computes the rest behind a whole number of vectors in another way."""
BLOCK_BYTES = 2 * 2 * 16 * 16 * 8
"""Two layers, keys and values, tokens, width of a head, bytes of a number."""
METHODS = {
    "lora": LoRA(r=3, alpha=7),
    "wide": LoRA(r=6, alpha=5, rslora=True, target_modules="attention"),
    "dora": DoRA(r=2, alpha=5),
    "vera": VeRA(r=8),
    "ia3": IA3(),
}
NAMES = tuple(METHODS)
_kept = TemporaryDirectory()


@cache
def folder(name, dtype=torch.float64, noise=0, base=SERVED):
    """The adapter `name` with noise in every tensor, saved with its proof; `noise` tells two of one method apart."""
    place = Path(_kept.name) / f"{base.name}-{name}-{noise}-{dtype}"
    attached = adapter.attach(base.build(dtype), METHODS[name], seed=noise)
    with torch.no_grad():
        for key, parameter in attached.named_parameters():
            generator = torch.Generator().manual_seed(crc32(f"{name} {noise} {key}".encode()))
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    attached.save(place)
    return place


@cache
def alone(name, dtype=torch.float64, noise=0, base=SERVED):
    """The base with one adapter, or none, and nothing else."""
    model = base.build(dtype)
    return model if name is None else adapter.load(model, folder(name, dtype, noise, base)).eval().model


def answer(name, prompt, count, *, dtype=torch.float64, noise=0, base=SERVED, **options):
    """What `lorica.models.generate` answers."""
    (tokens,) = generate(alone(name, dtype, noise, base), [list(prompt)], count, **{"stop_ids": (), **options})
    return tokens


def prompt(length, seed=0):
    generator = torch.Generator().manual_seed(1000 * seed + length)
    return tuple(torch.randint(3, VOCABULARY, (length,), generator=generator).tolist())


def shelf_of(*names, dtype=torch.float64, base=SERVED, **options):
    shelf = Shelf(adapter.Bank(base.build(dtype)), **options)
    for name in names:
        shelf.load_own(name, folder(name, dtype, 0, base))
    return shelf


def engine_on(shelf, **limits):
    """Not started: it moves when it is stepped.  Blocks for 8 documents of 64 tokens."""
    return Engine(shelf.bank.model, shelf, Limits(**{"cache_bytes": 32 * BLOCK_BYTES, **limits}))


class Heard:
    """A listener that remembers."""

    def __init__(self):
        self.events = []
        self.ticket = None

    def __call__(self, event):
        self.events.append(event)

    @property
    def tokens(self):
        return [event.token for event in self.events if isinstance(event, Wrote)]

    @property
    def end(self):
        ends = [event for event in self.events if isinstance(event, Ended)]
        assert len(ends) <= 1
        assert not ends or self.events[-1] is ends[0]
        return ends[0] if ends else None


def ask(engine, tokens, count, choice=None, **options):
    heard = Heard()
    heard.ticket = engine.submit(Request(tokens=tuple(tokens), max_tokens=count, choice=choice, **options), heard)
    return heard


def finish(engine, seconds=60):
    """Steps until nothing is left; where there is nothing to do, the threads that bring adapters get their turn."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        moved = engine.step()
        stats = engine.stats()
        if not moved and not stats.running and not stats.waiting:
            return stats
        if not moved:
            time.sleep(0.0005)
    raise AssertionError("the engine did not come to an end")
