"""Whatever is wrong with what a user gives, the answer is one line, the right exit status, and nothing damaged.

Each row of the table is a claim: these words, on these files, end so and say so.  Every tree is compared before and
after, so that nothing is half written.
"""

import errno
import hashlib
import json
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import lorica
from lorica.cli.entry import run
from lorica.tasks.causal_lm import CausalLanguageModelling
from tiny_bases import stir

WRONG, FAILED = 2, 1
Prepare = Callable[[Path], None]


@pytest.fixture(scope="module")
def home(place: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working directory with a base, rows, a recipe and an adapter of that base."""
    folder = tmp_path_factory.mktemp("home")
    shutil.copytree(place / "base", folder / "base")
    rows = [{"prompt": f"{number} and one: ", "completion": str(number + 1)} for number in range(8)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "recipe.yaml").write_text(RECIPE)
    attached = lorica.attach(lorica.load_base(str(folder / "base")), lorica.LoRA(r=2))
    stir(attached.named_parameters())
    attached.save(folder / "adapter", recipe={"data": {"train": "rows.jsonl"}})
    return folder


RECIPE = """\
model: ./base
method: {name: lora, r: 2}
data: {train: rows.jsonl}
train: {steps: 3, rows_per_step: 4, learning_rate: 1e-3, checkpoint_every: 1}
output: out/run
"""


def tree(folder: Path) -> dict[str, str]:
    """Every name below a folder, and what its file holds."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
        for path in sorted(folder.rglob("*"))
    }


@dataclass(frozen=True)
class Case:
    """`words` end with `status` and one line (or `lines` of them) that holds all of `said`."""

    words: tuple[str, ...]
    status: int
    said: tuple[str, ...]
    prepare: Prepare | None = None
    lines: int = 1


def file(name: str, content: str | bytes) -> Prepare:
    raw = content if isinstance(content, bytes) else content.encode()

    def prepare(home: Path) -> None:
        path = home / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(raw)

    return prepare


def base(name: str, change: Callable[[Path], None]) -> Prepare:
    """A copy of the base with one thing wrong."""

    def prepare(home: Path) -> None:
        shutil.copytree(home / "base", home / name)
        change(home / name)

    return prepare


def config(**entries: object) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        path = folder / "config.json"
        kept = {key: value for key, value in (json.loads(path.read_text()) | entries).items() if value is not None}
        path.write_text(json.dumps(kept))

    return change


def cut(name: str, share: float) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        data = (folder / name).read_bytes()
        (folder / name).write_bytes(data[: int(share * len(data))])

    return change


def without_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def pickled(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def remote_code(folder: Path) -> None:
    config(model_type="mine", architectures=["Mine"], auto_map={"AutoModelForCausalLM": "modeling_mine.Mine"})(folder)
    (folder / "modeling_mine.py").write_text("raise SystemExit('code of the base was run')\n")


def other_width(home: Path) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    shutil.copytree(home / "base", home / "wide")
    wide = json.loads((home / "base/config.json").read_text()) | {"hidden_size": 64, "head_dim": 16}
    LlamaForCausalLM(LlamaConfig(**wide)).save_pretrained(home / "wide")


def other_weights(home: Path) -> None:
    from safetensors.torch import load_file, save_file

    shutil.copytree(home / "base", home / "sibling")
    tensors = load_file(home / "base/model.safetensors")
    save_file(
        {name: tensor * 1.01 for name, tensor in tensors.items()}, home / "sibling/model.safetensors", {"format": "pt"}
    )


def adapter(name: str, change: Callable[[Path], None]) -> Prepare:
    def prepare(home: Path) -> None:
        shutil.copytree(home / "adapter", home / name)
        change(home / name)

    return prepare


def not_finite(folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / "adapter_model.safetensors")
    next(iter(tensors.values()))[0, 0] = float("nan")
    save_file(tensors, folder / "adapter_model.safetensors")
    (folder / "lorica.json").unlink()


def manifest(text: str) -> Callable[[Path], None]:
    return lambda folder: (folder / "lorica.json").write_text(text) and None


def flipped(folder: Path) -> None:
    data = bytearray((folder / "adapter_model.safetensors").read_bytes())
    data[-5] ^= 1
    (folder / "adapter_model.safetensors").write_bytes(data)


def train(*settings: str) -> tuple[str, ...]:
    return ("train", "recipe.yaml", *(word for setting in settings for word in ("--set", setting)))


def plan(*settings: str) -> tuple[str, ...]:
    return ("plan", *train(*settings)[1:])


NF4 = {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}
GOOD = '{"prompt": "a", "completion": "b"}\n'
LONG = json.dumps({"prompt": "a" * 300, "completion": "b"}) + "\n"
UNDER_A_FILE = "is a file, and a folder is needed there"

CASES: dict[str, Case] = {
    # Recipes
    "no recipe": Case(("train", "recipes.yaml"), WRONG, ("no such recipe", "did you mean 'recipe.yaml'?")),
    "a folder as recipe": Case(("plan", "base"), WRONG, ("base: cannot be read",)),
    "an empty recipe": Case(("plan", "nil.yaml"), WRONG, ("a recipe is a mapping",), file("nil.yaml", "")),
    "a recipe of bytes": Case(
        ("plan", "bytes.yaml"), WRONG, ("bytes.yaml: cannot be read",), file("bytes.yaml", b"\xff\xfe\0")
    ),
    "a recipe that is no YAML": Case(
        ("plan", "broken.yaml"), WRONG, ("broken.yaml:2:",), file("broken.yaml", "model: x\n  y: [1\n")
    ),
    "a key twice": Case(
        ("plan", "twice.yaml"), WRONG, ("twice.yaml:2", "twice"), file("twice.yaml", "model: x\nmodel: y\n")
    ),
    "an unknown key": Case(plan("metod.r=3"), WRONG, ("metod: unknown key; did you mean 'method'?",)),
    "an unknown key inside": Case(plan("train.learning_rat=3"), WRONG, ("train.learning_rat", "'learning_rate'?")),
    "a name from elsewhere": Case(plan("train.batch_size=8"), WRONG, ("train.batch_size", "'rows_per_step'?")),
    "a PEFT name": Case(plan("method.lora_alpha=8"), WRONG, ("method.lora_alpha", "write alpha")),
    "an unknown method": Case(plan("method.name=lorra"), WRONG, ("lorra", "did you mean 'lora'?")),
    "an unknown task": Case(plan("task=casual_lm"), WRONG, ("casual_lm", "did you mean 'causal_lm'?")),
    "text for a number": Case(plan("train.epochs=many"), WRONG, ("train.epochs", "'many'")),
    "a learning rate of NaN": Case(train("train.learning_rate=.nan"), WRONG, ("train.learning_rate", "not nan")),
    "an infinite learning rate": Case(train("train.learning_rate=.inf"), WRONG, ("train.learning_rate", "finite")),
    "an infinite alpha": Case(train("method.alpha=.inf"), WRONG, ("method.alpha", "finite")),
    "alpha of NaN": Case(plan("method.alpha=.nan"), WRONG, ("method.alpha", "finite")),
    "an infinite clip": Case(plan("train.clip=.inf"), WRONG, ("train.clip", "finite")),
    "no steps": Case(train("train.steps=0"), WRONG, ("train.steps",)),
    "several mistakes": Case(
        plan("method.rank=3", "train.epohcs=2", "data.max_length=one", "modl=x"), WRONG, ("unknown key",), lines=4
    ),
    # Methods on a base
    "r=0": Case(train("method.r=0"), WRONG, ("method.r", "greater than or equal to 1", "0")),
    "r below 0": Case(plan("method.r=-4"), WRONG, ("method.r", "greater than or equal to 1", "-4")),
    "r beyond the layer": Case(
        train("method.r=17", "method.target_modules=[k_proj]"), WRONG, ("r: 17 is beyond", "k_proj", "1 to 16"), lines=2
    ),
    "no such target": Case(train("method.target_modules=[q_prj]"), WRONG, ("'q_prj'", "did you mean 'q_proj'")),
    "two targets, one unknown": Case(plan("method.target_modules=[q_proj, W_pack]"), WRONG, ("'W_pack'", "it has")),
    "no targets": Case(plan("method.target_modules=[]"), WRONG, ("target_modules: names nothing",)),
    "a rank for no site": Case(plan("method.rank_pattern={qproj: 3}"), WRONG, ("rank_pattern", "'qproj'", "'q_proj'")),
    # Bases
    "no base": Case(train("model=./bse"), WRONG, ("bse: no such folder",)),
    "a file as base": Case(plan("model=rows.jsonl"), WRONG, ("rows.jsonl: a file",)),
    "a base without config": Case(plan("model=./adapter"), WRONG, ("adapter: no config.json",)),
    "a base without weights": Case(
        train("model=./bare"), WRONG, ("bare: no safetensors weights",), base("bare", without_weights)
    ),
    "a base of pickles": Case(train("model=./old"), WRONG, ("only pickled weights",), base("old", pickled)),
    "a truncated base": Case(
        train("model=./cut"), WRONG, ("model.safetensors: damaged",), base("cut", cut("model.safetensors", 0.7))
    ),
    "a base cut in its header": Case(
        ("eval", "--model", "cut2", "--data", "rows.jsonl"),
        WRONG,
        ("model.safetensors: damaged",),
        base("cut2", cut("model.safetensors", 0.001)),
    ),
    "an empty weights file": Case(
        train("model=./nil"), WRONG, ("model.safetensors: damaged",), base("nil", cut("model.safetensors", 0))
    ),
    "a config of no JSON": Case(
        plan("model=./cfg"), WRONG, ("config.json: not readable as JSON",), base("cfg", cut("config.json", 0.5))
    ),
    "a config that says another width": Case(
        train("model=./lies"), WRONG, ("the config says",), base("lies", config(intermediate_size=64)), lines=6
    ),
    "a base that needs code": Case(train("model=./code"), WRONG, ("auto_map", "never runs"), base("code", remote_code)),
    "an unknown kind of base": Case(
        plan("model=./kind"), WRONG, ("'lama' is unknown", "'llama'"), base("kind", config(model_type="lama"))
    ),
    "a tokenizer of no JSON": Case(
        train("model=./words"), WRONG, ("the tokenizer cannot be read",), base("words", cut("tokenizer.json", 0.5))
    ),
    "no tokenizer": Case(
        ("data", "rows.jsonl", "--model", "mute"),
        WRONG,
        ("brings no tokenizer",),
        base("mute", lambda folder: [path.unlink() for path in folder.glob("tokenizer*")] and None),
    ),
    "a base on the hub, offline": Case(train("model=nobody/nothing"), WRONG, ("HF_HUB_OFFLINE is set",)),
    "an adapter on the hub, offline": Case(
        ("generate", "nobody/nothing", "--prompt", "a"), FAILED, ("HF_HUB_OFFLINE is set",)
    ),
    "a type of numbers there is not": Case(plan("model.dtype=float12"), WRONG, ("model.dtype", "'float12'")),
    "a type of numbers for eval": Case(
        ("eval", "adapter", "--model", "base", "--data", "rows.jsonl", "--dtype", "flot32"),
        WRONG,
        ("'flot32'", "did you mean 'float32'?"),
    ),
    "a device there is not": Case(train("model.device=abacus"), WRONG, ("abacus",)),
    "a device there is not, planned for": Case(plan("model.device=abacus"), WRONG, ("'abacus' is no device", "cuda:1")),
    "a card there is not": Case(
        (*plan(), "--device", "RTX 9090"), WRONG, ("--device: no device is called 'RTX 9090'", "'RTX 4090'")
    ),
    "no memory": Case((*plan(), "--memory", "0GB"), WRONG, ("--memory: '0GB' is no amount of memory", "24GiB")),
    "less than no memory": Case((*plan(), "--memory", "-4GB"), WRONG, ("--memory: '-4GB' is no amount",)),
    "memory in other words": Case((*plan(), "--memory", "plenty"), WRONG, ("--memory: 'plenty' is no amount",)),
    "memory beyond any machine": Case((*plan(), "--memory", "1e30GB"), WRONG, ("--memory: '1e30GB' is no amount",)),
    "a base quantised twice": Case(
        plan("model={source: ./four, quantize: nf4}"),
        WRONG,
        ("quantize: four is stored as nf4 already; leave quantize out",),
        base("four", config(quantization_config=NF4)),
    ),
    "a base quantised twice, trained": Case(
        train("model={source: ./four, quantize: int8}"), WRONG, ("quantize: four is stored as nf4 already",)
    ),
    "a quantisation there is not": Case(plan("model={source: ./base, quantize: nf5}"), WRONG, ("did you mean 'nf4'?",)),
    "double quantisation of nothing": Case(
        plan("model={source: ./base, double_quant: true}"), WRONG, ("double_quant: is of quantize: nf4",)
    ),
    # Rows
    "no file of rows": Case(train("data.train=row.jsonl"), WRONG, ("row.jsonl: no such file", "'rows.jsonl'")),
    "an empty file": Case(train("data.train=e.jsonl"), WRONG, ("there are no rows",), file("e.jsonl", "")),
    "an empty file for eval": Case(train("data.eval=e.jsonl"), WRONG, ("data.eval: there are no rows",)),
    "broken JSON at a line": Case(
        train("data.train=b.jsonl"), WRONG, ("b.jsonl:2: column 12",), file("b.jsonl", GOOD + '{"prompt": x}\n' + GOOD)
    ),
    "wrong columns": Case(
        ("data", "w.csv", "--model", "base"),
        WRONG,
        ("w.csv:2", "promt", "did you mean 'prompt'?"),
        file("w.csv", "promt,completion\na,b\n"),
    ),
    "wrong columns in training": Case(train("data.train=w.csv"), WRONG, ("w.csv:2", "fit no shape")),
    "mixed shapes": Case(
        train("data.train=m.jsonl"), WRONG, ("m.jsonl:2: a text row among",), file("m.jsonl", GOOD + '{"text": "a"}\n')
    ),
    "numbers that are not finite": Case(
        train("data.train=n.jsonl"),
        WRONG,
        ("n.jsonl:2", "NaN is not JSON"),
        file("n.jsonl", GOOD + '{"prompt": "a", "completion": "b", "score": NaN}\n'),
    ),
    "a field that is no text": Case(
        train("data.train=f.jsonl"),
        WRONG,
        ("f.jsonl:2: field 'completion': text, not a number",),
        file("f.jsonl", GOOD + '{"prompt": "a", "completion": 3}\n'),
    ),
    "three broken rows": Case(
        train("data.train=t.jsonl"), WRONG, ("t.jsonl:",), file("t.jsonl", "{\n" + GOOD + "[]\nnull\n"), lines=3
    ),
    "all rows too long": Case(
        train("data.train=l.jsonl"), WRONG, ("l.jsonl", "longer than 128 tokens", "3"), file("l.jsonl", LONG * 3)
    ),
    "all rows too long for eval": Case(train("data.eval=l.jsonl"), WRONG, ("data.eval", "longer than 128 tokens", "3")),
    "all rows too long to score": Case(
        ("eval", "adapter", "--model", "base", "--data", "l.jsonl"), WRONG, ("longer than 128 tokens", "3")
    ),
    "too long, and that is an error": Case(
        train("data.train=l.jsonl", "data.over_length=error"), WRONG, ("l.jsonl:", "more than 128"), lines=3
    ),
    "nothing to learn": Case(
        train("data.train=s.jsonl"),
        WRONG,
        ("s.jsonl", "empty completion"),
        file("s.jsonl", '{"prompt": "a", "completion": ""}\n'),
    ),
    "max_length above the base's": Case(train("data.max_length=4096"), WRONG, ("above the 128 tokens",)),
    "the same rows for both": Case(train("data.eval=rows.jsonl"), WRONG, ("rows.jsonl is trained on as well",)),
    "a broken template": Case(train("data.template='{% if %}'"), WRONG, ("chat template",)),
    "a template that is not there": Case(train("data.template=no.jinja"), WRONG, ("no.jinja cannot be read",)),
    "no rows to score": Case(
        ("eval", "adapter", "--model", "base", "--data", "row.jsonl"), WRONG, ("row.jsonl: no such file",)
    ),
    "broken rows to score": Case(
        ("eval", "adapter", "--model", "base", "--data", "b.jsonl"), WRONG, ("b.jsonl:2: column 12",)
    ),
    # Adapters
    "no adapter": Case(("inspect", "adaptor"), WRONG, ("adaptor: no such folder",)),
    "a file as adapter": Case(("inspect", "rows.jsonl"), WRONG, ("rows.jsonl: a file",)),
    "a base as adapter": Case(("inspect", "base"), FAILED, ("no adapter_model.safetensors",)),
    "a flipped bit": Case(("inspect", "flip"), FAILED, ("SHA-256",), adapter("flip", flipped)),
    "a flipped bit, generating": Case(
        ("generate", "flip", "--model", "base", "--prompt", "a"), FAILED, ("adapter_model.safetensors", "SHA-256")
    ),
    "a truncated adapter": Case(
        ("inspect", "short"), FAILED, ("bytes, not",), adapter("short", cut("adapter_model.safetensors", 0.5))
    ),
    "a truncated config": Case(
        ("merge", "half", "--model", "base", "--out", "out/m"),
        FAILED,
        ("adapter_config.json",),
        adapter("half", cut("adapter_config.json", 0.5)),
    ),
    "an adapter that is not finite": Case(("inspect", "nan"), FAILED, ("not finite",), adapter("nan", not_finite)),
    "a manifest of no JSON": Case(
        ("inspect", "man"), FAILED, ("lorica.json: is not valid",), adapter("man", manifest("{"))
    ),
    "a manifest of another format": Case(
        ("inspect", "later"), FAILED, ("format 9 is not 1", "upgrade"), adapter("later", manifest('{"format": 9}'))
    ),
    "an adapter of another width": Case(
        ("eval", "adapter", "--model", "wide", "--data", "rows.jsonl"), FAILED, ("another base",), other_width
    ),
    "an adapter of other weights": Case(
        ("generate", "adapter", "--model", "sibling", "--prompt", "a"), FAILED, ("another base",), other_weights
    ),
    "merged into other weights": Case(
        ("merge", "adapter", "--model", "sibling", "--out", "out/m"), FAILED, ("another base",)
    ),
    "merged into another width": Case(
        ("merge", "adapter", "--model", "wide", "--out", "out/m"), FAILED, ("another base",)
    ),
    "merged over something": Case(("merge", "adapter", "--model", "base", "--out", "base"), FAILED, ("not empty",)),
    # Prompts
    "an empty prompt": Case(
        ("generate", "adapter", "--model", "base", "--prompt", ""), WRONG, ("the prompt is empty",)
    ),
    "a prompt beyond the base": Case(
        ("generate", "adapter", "--model", "base", "--prompt", "a" * 300), WRONG, ("300", "128")
    ),
    # Places to write to
    "output under a file": Case(train("output=rows.jsonl/run"), FAILED, (UNDER_A_FILE,)),
    "output where nothing can be": Case(train("output=/proc/run"), FAILED, ("/proc/run",)),
    "merged under a file": Case(
        ("merge", "adapter", "--model", "base", "--out", "rows.jsonl/m"), FAILED, (UNDER_A_FILE,)
    ),
    "output that is a file": Case(train("output=rows.jsonl"), FAILED, (UNDER_A_FILE,)),
}


@pytest.fixture
def here(home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    from huggingface_hub import constants

    monkeypatch.chdir(home)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.delenv("LORICA_TRACEBACK", raising=False)
    return home


@pytest.fixture(scope="module")
def prepared(home: Path) -> Path:
    """The home with the files of every case, so that any case can run alone."""
    for case in CASES.values():
        if case.prepare:
            case.prepare(home)
    return home


@pytest.mark.parametrize("name", CASES)
def test_bad_input_is_one_line_with_its_exit_status_and_nothing_is_damaged(
    name: str, here: Path, prepared: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    case, before = CASES[name], tree(here)
    status = run(case.words)
    out, err = capsys.readouterr()
    errors = [line for line in err.splitlines() if line.startswith("error: ")]
    assert (status, len(errors)) == (case.status, case.lines), err
    assert "Traceback" not in err
    assert "unexpected" not in err
    assert out == ""
    for word in case.said:
        assert word in "\n".join(errors)
    assert tree(here) == before


def test_a_base_whose_weights_are_not_at_hand_is_planned_from_its_config(
    here: Path, prepared: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status = run((*plan("model={source: ./bare, quantize: nf4}"), "--json"))
    out, err = capsys.readouterr()
    assert (status, err) == (0, "")
    assert json.loads(out)["memory_bytes"]["weights"] > 0


def test_rows_that_do_not_fit_at_once_are_scored_in_smaller_parts_and_that_is_said(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("eval", "adapter", "--model", "base", "--data", "rows.jsonl", "--json")
    assert run(words) == 0
    whole, real = json.loads(capsys.readouterr().out), CausalLanguageModelling.loss

    def cramped(self: CausalLanguageModelling, model: Any, batch: Any) -> Any:
        if len(batch.layout.documents) > 2:
            raise MemoryError
        return real(self, model, batch)

    monkeypatch.setattr(CausalLanguageModelling, "loss", cramped)
    assert run(words) == 0
    out, err = capsys.readouterr()
    assert json.loads(out) == pytest.approx(whole, rel=1e-5)
    assert "evaluation: out of memory with" in err
    assert "which changes rounding alone" in err


def test_a_loss_that_is_not_finite_ends_the_run_and_names_its_rows(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A learning rate of 1e30 makes weights whose products leave float32 at the second step."""
    status = run(train("train.learning_rate=1e30", "train.clip=null", "output=out/diverged"))
    err = capsys.readouterr().err
    (line,) = [line for line in err.splitlines() if line.startswith("error: ")]
    assert status == FAILED
    assert "step 2: the loss is not finite with rows.jsonl:" in line
    assert "lower learning_rate" in line
    left = tree(here / "out/diverged")
    assert "adapter" not in left, "what diverged is not kept"
    assert any(name.startswith("checkpoints/") for name in left), "what came before it is"
    assert not [name for name in left if ".tmp-" in name]
    shutil.rmtree(here / "out")


@contextmanager
def no_file_above(size: int) -> Iterator[None]:
    """The system refuses to make any file larger (EFBIG), as a full disk refuses to make it at all."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@contextmanager
def full_after(size: int) -> Iterator[None]:
    """A disk with room for so many bytes more."""
    left = size

    def limited(descriptor: int, data: memoryview) -> None:
        nonlocal left
        os.write(descriptor, data[: max(left, 0)])
        left = max(left - len(data), -1)
        if left < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lorica.durable._write_all", limited)
        yield


@pytest.mark.parametrize("size", [1, 600, 4000, 12000])
def test_a_full_disk_is_one_line_and_leaves_nothing_half_written(
    size: int, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with full_after(size):
        status = run(train("output=out/full"))
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert status == FAILED
    assert "ENOSPC" in line
    assert "bytes needed" in line
    assert "out/full" in line
    left = tree(here / "out")
    shutil.rmtree(here / "out")
    assert not [name for name in left if ".tmp-" in name]
    assert "full/adapter" not in left


def test_files_that_may_not_grow_are_one_line_and_a_merge_is_whole_or_not_there(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = tree(here)
    with no_file_above(50_000):
        status = run(("merge", "adapter", "--model", "base", "--out", "out/merged"))
    (line,) = capsys.readouterr().err.splitlines()
    assert status == FAILED
    assert "out/merged/model.safetensors" in line
    assert "EFBIG" in line
    shutil.rmtree(here / "out")
    assert tree(here) == before


def process(here: Path, *words: str, **streams: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "lorica", *words]
    return subprocess.run(command, cwd=here, text=True, timeout=300, check=False, stderr=subprocess.PIPE, **streams)  # type: ignore[call-overload]


def test_in_a_process_of_its_own_the_answer_is_the_same(here: Path, prepared: Path) -> None:
    """No warning of a library, no traceback and nothing on stdout beside the lines that the table has."""
    before = tree(here)
    done = process(here, *plan("method.rank=3", "train.epohcs=2"), stdout=subprocess.PIPE)
    assert (done.returncode, done.stdout) == (WRONG, "")
    assert [line.partition(":")[0] for line in done.stderr.splitlines()] == ["error", "error"]
    done = process(here, *train("data.train=b.jsonl"), stdout=subprocess.PIPE)
    assert (done.returncode, done.stdout) == (WRONG, "")
    assert done.stderr.splitlines()[-1].startswith("error: b.jsonl:2: column 12")
    assert tree(here) == before


def test_a_full_disk_behind_stdout_is_one_line(here: Path) -> None:
    with Path("/dev/full").open("w") as full:
        done = process(here, "--help", stdout=full)
    assert done.returncode == FAILED
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ")
    assert "No space left" in line
