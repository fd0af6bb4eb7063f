"""transformers' Trainer over an attached model: what it writes and reads back, and what nobody writes by accident."""

import shutil
import warnings
from pathlib import Path

import pytest
import torch
import transformers as hf
from safetensors.torch import load_file

import lorica
from lorica.errors import CheckpointError, RequestError

VOCABULARY = 61


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A tied base, whose shared weight Trainer could not even write."""
    torch.manual_seed(1)
    config = hf.LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        tie_word_embeddings=True,
    )
    place = tmp_path_factory.mktemp("base")
    hf.LlamaForCausalLM(config).save_pretrained(place)
    return place


def rows(count: int = 12) -> list[dict[str, list[int]]]:
    ids = torch.randint(3, VOCABULARY, (count, 9), generator=torch.Generator().manual_seed(2)).tolist()
    return [{"input_ids": row, "labels": row} for row in ids]


def attached(folder: Path, load=lorica.load_base) -> lorica.Attached:
    return lorica.attach(load(folder), lorica.LoRA(r=4, alpha=8, dropout=0.2), seed=3)


def trainer(handle: lorica.Attached, out: Path, **more) -> lorica.Trainer:
    settings = {
        "max_steps": 6,
        "per_device_train_batch_size": 2,
        "learning_rate": 1e-2,
        "save_strategy": "steps",
        "save_steps": 2,
        "eval_strategy": "steps",
        "eval_steps": 2,
        "lr_scheduler_type": "constant",
        "report_to": [],
        "disable_tqdm": True,
        "use_cpu": True,
        "dataloader_pin_memory": False,
        **more,
    }
    arguments = hf.TrainingArguments(str(out), **settings)
    return lorica.Trainer(handle, arguments, train_dataset=rows(), eval_dataset=rows(4))


@pytest.fixture(autouse=True)
def without_the_warnings_of_others():
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=FutureWarning)
        yield


LOADERS = {"own": lorica.load_base, "theirs": hf.AutoModelForCausalLM.from_pretrained}


@pytest.fixture(scope="module", params=LOADERS)
def finished(request, folder, tmp_path_factory) -> tuple[str, lorica.Attached, Path]:
    """Who runs the base, the adapter after six steps, and the folder that Trainer wrote."""
    out = tmp_path_factory.mktemp("run")
    handle = attached(folder, LOADERS[request.param])
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=FutureWarning)
        trainer(handle, out).train()
    return request.param, handle, out


def test_a_run_that_is_resumed_ends_with_the_bits_of_one_that_was_not(folder, finished, tmp_path):
    name, whole, out = finished
    resumed = attached(folder, LOADERS[name])
    trainer(resumed, tmp_path).train(resume_from_checkpoint=str(out / "checkpoint-4"))
    assert all(torch.equal(value, resumed.state()[key]) for key, value in whole.state().items())
    assert min(whole.update_norms().values()) > 0


def test_a_checkpoint_holds_an_adapter_that_loads_and_nothing_of_the_base(folder, finished):
    name, handle, out = finished
    for step in (2, 4, 6):
        place = out / f"checkpoint-{step}"
        assert not list(place.glob("model*"))
        assert load_file(place / "adapter" / "adapter_model.safetensors").keys() == handle.state().keys()
    loaded = lorica.load(LOADERS[name](folder), out / "checkpoint-6" / "adapter")
    assert all(torch.equal(value, loaded.state()[key]) for key, value in handle.state().items())


def test_a_checkpoint_without_an_adapter_is_refused_in_one_line(folder, finished, tmp_path):
    _, _, out = finished
    shutil.copytree(out / "checkpoint-2", tmp_path / "checkpoint-2")
    (tmp_path / "checkpoint-2" / "adapter" / "adapter_model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="no adapter_model"):
        trainer(attached(folder), tmp_path).train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))


def test_the_best_adapter_is_in_place_at_the_end(folder, tmp_path):
    handle = attached(folder)
    # The worst loss is asked for, so that the best is not the last.
    run = trainer(handle, tmp_path / "run", load_best_model_at_end=True, greater_is_better=True, max_steps=4)
    run.train()
    best = Path(str(run.state.best_model_checkpoint))
    assert best.name == "checkpoint-2"
    expected = load_file(best / "adapter" / "adapter_model.safetensors")
    assert all(torch.equal(value, expected[key]) for key, value in handle.state().items())


def test_saving_at_the_end_and_again_writes_the_adapter(folder, tmp_path):
    handle = attached(folder)
    run = trainer(handle, tmp_path / "run", save_strategy="no", max_steps=1)
    run.train()
    run.save_model()
    run.save_model()
    assert (tmp_path / "run" / "adapter" / "adapter_model.safetensors").is_file()


def test_trainer_may_ask_for_recomputed_blocks(folder, tmp_path):
    plain, recomputed = attached(folder), attached(folder)
    trainer(plain, tmp_path / "a", max_steps=2, save_strategy="no").train()
    trainer(recomputed, tmp_path / "b", max_steps=2, save_strategy="no", activation_checkpointing=True).train()
    assert recomputed.model.model.recomputed_layers == 2
    assert all(torch.allclose(value, recomputed.state()[key], atol=1e-6) for key, value in plain.state().items())


def test_a_model_is_not_taken_for_a_handle(folder):
    with pytest.raises(RequestError, match=r"give the handle of lorica\.attach"):
        lorica.Trainer(lorica.load_base(folder))


@pytest.mark.parametrize("load", LOADERS.values(), ids=LOADERS)
def test_save_pretrained_writes_the_adapter_while_one_is_in_place_and_the_model_afterwards(folder, load, tmp_path):
    handle = attached(folder, load)
    model = handle.model
    with torch.no_grad():
        for parameter in handle.parameters():
            parameter.add_(0.1)
    model.save_pretrained(tmp_path / "adapter")
    assert load_file(tmp_path / "adapter" / "adapter_model.safetensors").keys() == handle.state().keys()
    assert not list((tmp_path / "adapter").glob("model*"))
    expected = model(torch.tensor([[3, 4, 5]])).logits.detach()
    handle.merge().save_pretrained(tmp_path / "merged")
    assert "save_pretrained" not in vars(model)
    for again in (lorica.load_base, hf.AutoModelForCausalLM.from_pretrained):
        found = again(tmp_path / "merged")(torch.tensor([[3, 4, 5]])).logits.detach()
        assert float((found - expected).abs().max() / expected.abs().max()) < 1e-5


NOT_AS_SAVED = [
    lorica.LoRA(r=4, alpha=8, init="pissa"),
    lorica.Prefix(length=3, hidden=6),
    lorica.VeRA(r=5, save_projection=False),
]


@pytest.mark.parametrize("method", NOT_AS_SAVED, ids=lambda method: method.kind)
def test_what_is_not_saved_as_it_is_trained_resumes_to_the_bit(folder, tmp_path, method):
    """PiSSA's file holds twice the rank, a prefix's no MLP, VeRA's no pair: a checkpoint has what is trained, and what
    it started from, beside that."""

    def started() -> lorica.Attached:
        return lorica.attach(lorica.load_base(folder), method, seed=3)

    whole, resumed = started(), started()
    trainer(whole, tmp_path / "a", max_steps=4).train()
    trainer(resumed, tmp_path / "b", max_steps=4).train(resume_from_checkpoint=str(tmp_path / "a" / "checkpoint-2"))
    assert all(torch.equal(value, resumed.state()[key]) for key, value in whole.state().items())
    (kept,) = lorica.load(lorica.load_base(folder), tmp_path / "a" / "checkpoint-4" / "adapter").plan.methods
    assert getattr(kept, "r", None) == {"lora": 8, "vera": 5}.get(method.kind)
