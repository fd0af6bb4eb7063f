"""Causal language modelling against token-by-token definitions, on our decoder and on a foreign model."""

import math

import numpy as np
import pytest
import torch
from transformers import BertConfig, GPT2Config, GPT2LMHeadModel, LlamaConfig, T5Config

from lorica.adapter import attach
from lorica.data import DataConfig, Dataset, Example
from lorica.errors import ModelError
from lorica.methods import LoRA
from lorica.models.causal_lm import CausalLM
from lorica.tasks import TASKS, Draw, Reader

TASK = TASKS["causal_lm"]
CPU = torch.device("cpu")
LENGTHS = (9, 3, 14, 2, 6)


def rows(lengths=LENGTHS, vocabulary=50, seed=0):
    generator = np.random.default_rng(seed)
    for row, length in enumerate(lengths):
        learned = generator.random(length) < 0.6
        learned[0], learned[-1] = False, True
        tokens = generator.integers(0, vocabulary, length).astype(np.int32)
        yield Example(tokens, learned, row + 10, f"rows[{row}]")


def dataset(**options):
    examples = tuple(rows(**options))
    return Dataset(examples, (), len(examples))


def randomised(model, seed=0):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return model.double().eval()


def decoder():
    sizes = {"hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 4}
    return randomised(CausalLM(LlamaConfig(vocab_size=50, num_key_value_heads=2, **sizes)))


def gpt2(dropout=0.0):
    dropouts = {"resid_pdrop": dropout, "embd_pdrop": dropout, "attn_pdrop": dropout}
    return randomised(
        GPT2LMHeadModel(GPT2Config(vocab_size=50, n_positions=32, n_embd=24, n_layer=2, n_head=4, **dropouts))
    )


def by_definition(model, examples):
    """Each learned token on its own: -log softmax of the logits one place before it, in its own document alone."""
    total = torch.zeros((), dtype=torch.float64)
    for example in examples:
        ids = torch.from_numpy(example.input_ids).long()[None]
        logits = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0]
        for t in np.flatnonzero(example.labels):
            total = total - logits[t - 1].log_softmax(-1)[ids[0, t]]
    return total


@pytest.mark.parametrize("build", [decoder, gpt2])
def test_the_loss_is_the_sum_over_learned_tokens_of_their_negative_log_likelihood(build):
    model, examples = build(), list(rows())
    batch = TASK.batch(examples, device=CPU)
    with torch.no_grad():
        loss, expected = TASK.loss(model, batch), by_definition(model, examples)
    assert loss.dtype == torch.float64
    assert TASK.units(batch) == sum(int(example.labels.sum()) for example in examples)
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=0)


def test_the_loss_of_a_foreign_model_is_what_transformers_makes_of_labels():
    model, examples = gpt2(), list(rows())
    width = max(LENGTHS)
    ids, mask = torch.zeros(len(examples), width, dtype=torch.long), torch.zeros(len(examples), width, dtype=torch.long)
    labels = torch.full_like(ids, -100)
    for i, example in enumerate(examples):
        n = len(example)
        ids[i, :n], mask[i, :n] = torch.from_numpy(example.input_ids).long(), 1
        labels[i, :n] = torch.where(torch.from_numpy(example.labels), ids[i, :n], -100)
    with torch.no_grad():
        batch = TASK.batch(examples, device=CPU)
        mean = model(input_ids=ids, attention_mask=mask, labels=labels).loss
        # transformers takes the mean in float32, a few roundings away.
        assert TASK.loss(model, batch).item() / TASK.units(batch) == pytest.approx(mean.item(), rel=1e-6)


def test_an_adapted_head_is_used_with_the_noise_of_its_own_tokens():
    def adapted():
        attached = attach(decoder(), LoRA(r=3, alpha=12, dropout=0.3, target_modules=["q_proj", "lm_head"]), seed=1)
        generator = torch.Generator().manual_seed(3)
        with torch.no_grad():
            for parameter in attached.parameters():
                parameter.copy_(0.2 * torch.randn(parameter.shape, generator=generator))
        return attached.train(base=False)

    attached, examples = adapted(), list(rows())
    whole = TASK.loss(attached.model, TASK.batch(examples, device=CPU, draw=Draw(seed=5, step=2)))
    alone = sum(
        TASK.loss(attached.model, TASK.batch([example], device=CPU, draw=Draw(seed=5, step=2))) for example in examples
    )
    undropped = TASK.loss(attached.model, TASK.batch(examples, device=CPU))
    torch.testing.assert_close(whole, alone, rtol=1e-12, atol=0)
    assert abs((whole - undropped).item()) > 1e-3 * whole.item()
    attached.eval()
    with torch.no_grad():
        torch.testing.assert_close(
            TASK.loss(attached.model, TASK.batch(examples, device=CPU)), by_definition(attached.model, examples)
        )


@pytest.mark.parametrize("build", [decoder, gpt2])
def test_dropout_depends_on_seed_step_and_row_and_not_on_the_batch(build):
    attached = attach(build(), LoRA(r=3, alpha=12, dropout=0.3), seed=1)
    with torch.no_grad():
        for parameter in attached.parameters():
            parameter.add_(0.1)
    attached.train(base=False)
    examples = list(rows())

    def loss(examples, **draw):
        return TASK.loss(attached.model, TASK.batch(examples, device=CPU, draw=Draw(**draw))).item()

    whole = loss(examples, seed=5, step=2)
    assert loss(examples[:2], seed=5, step=2) + loss(examples[2:], seed=5, step=2) == pytest.approx(whole, rel=1e-12)
    assert loss(examples[::-1], seed=5, step=2) == pytest.approx(whole, rel=1e-12)
    others = [loss(examples, seed=6, step=2), loss(examples, seed=5, step=3)]
    assert all(abs(other - whole) > 1e-6 * whole for other in others)


def test_evaluation_is_per_label_token_whatever_bounds_the_memory():
    model, data = decoder(), dataset()
    with torch.no_grad():
        mean = by_definition(model, data.examples).item() / data.label_tokens
    for bound in (1, 7, 10_000):
        metrics = TASK.evaluate(model, data, micro_batch_tokens=bound)
        assert metrics["loss"] == pytest.approx(mean, rel=1e-12)
        assert metrics["perplexity"] == pytest.approx(math.exp(mean), rel=1e-9)
        assert (metrics["rows"], metrics["label_tokens"]) == (len(LENGTHS), data.label_tokens)


def test_evaluation_keeps_no_gradient_and_leaves_the_mode_alone():
    attached = attach(decoder(), LoRA(r=3, alpha=12))
    TASK.evaluate(attached.model, dataset(), micro_batch_tokens=100)
    assert all(parameter.grad is None for parameter in attached.parameters())
    assert not attached.model.training


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (T5Config(architectures=["T5ForConditionalGeneration"]), "name the task: seq2seq"),
        (BertConfig(architectures=["BertModel"]), "BertModel: it writes no next token"),
        (BertConfig(architectures=["BertForMaskedLM"]), "writes no next token"),
    ],
    ids=["t5", "bert", "masked"],
)
def test_a_base_that_writes_no_next_token_is_refused_before_its_rows_are_read(config, said):
    reader = Reader(plain=None, template=None, tokenizer=None, limit=64, config=config)
    with pytest.raises(ModelError, match=said):
        TASK.lessons(DataConfig(train="rows"), reader)
