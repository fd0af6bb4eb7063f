"""docs/from-peft.md: every snippet runs, on tiny bases that lie under the names it gives, and the two sides agree."""

import ast
import io
import json
import re
import warnings
from collections.abc import Callable
from contextlib import chdir, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers
from torch import nn

import lorica
from lorica.recipe import Recipe

DOCUMENT = Path(__file__).parents[2] / "docs" / "from-peft.md"
LLAMA, ROBERTA, ADAPTER = "meta-llama/Llama-2-7b-hf", "FacebookAI/roberta-base", "trained"
STEPS = (
    "half precision",
    "query and value",
    "classifier",
    "Chat tuning",
    "all seven",
    "accumulation",
    "in memory",
    "own loop",
    "Trainer",
    "trainable",
    "moved",
    "generate",
    "Merge",
    "QLoRA",
    "loaded yourself",
    "base in four bits",
    "as it is",
    "New tokens",
)
CHAT = (
    "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '<end>' }}{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)
WORDS = ["one", "two", "three", "four", "five", "six", "seven", "eight"]
ROWS = [
    {"prompt": f"after {word}: ", "completion": then}
    for word, then in zip(WORDS, [*WORDS[1:], "nine"], strict=True)
    for _ in range(8)
]
CHATS = [
    {"messages": [{"role": "user", "content": row["prompt"]}, {"role": "assistant", "content": row["completion"]}]}
    for row in ROWS[::8]
]


@dataclass(frozen=True)
class Section:
    title: str
    theirs: str
    ours: str


def sections() -> list[Section]:
    parts = re.split(r"^## ", DOCUMENT.read_text(), flags=re.MULTILINE)[1:]
    blocks = {part.partition("\n")[0]: re.findall(r"```python\n(.*?)```", part, re.DOTALL) for part in parts}
    return [Section(title, *pair) for title, pair in blocks.items()]


SECTIONS = sections()


def section(word: str) -> Section:
    return next(each for each in SECTIONS if word in each.title)


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny base under each name of the document, and one trained adapter."""
    folder = tmp_path_factory.mktemp("habits")
    torch.manual_seed(0)
    words = byte_tokenizer()
    llama = transformers.LlamaConfig(
        vocab_size=len(words),
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=128,
        eos_token_id=0,
        bos_token_id=None,
        pad_token_id=0,
    )
    transformers.LlamaForCausalLM(llama).save_pretrained(folder / LLAMA)
    words.save_pretrained(folder / LLAMA)
    roberta = transformers.RobertaConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=34,
    )
    transformers.RobertaForMaskedLM(roberta).save_pretrained(folder / ROBERTA)
    attached = lorica.attach(lorica.load_base(folder / LLAMA), lorica.LoRA(r=8, alpha=32, target_modules="minimal"))
    with torch.no_grad():
        for parameter in attached.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    attached.save(folder / ADAPTER)
    return folder


def byte_tokenizer() -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {letter: number for number, letter in enumerate(["<end>", *alphabet])}
    words: Any = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    words.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    words.decoder = decoders.ByteLevel()
    return transformers.PreTrainedTokenizerFast(tokenizer_object=words, eos_token="<end>", pad_token="<end>")


def talking(tokenizer: Any, title: str) -> Any:
    """With a template where chats are taught, as the tokenizer of a chat model has it."""
    tokenizer.chat_template = CHAT if "Chat" in title else None
    return tokenizer


def encoded(rows: list[dict[str, str]]) -> list[dict[str, list[int]]]:
    """Rows of one length, as a collator that does not pad needs them."""
    texts = [byte_tokenizer()(f"{row['prompt']:>14}{row['completion']:>6}")["input_ids"] for row in rows]
    return [{"input_ids": ids, "labels": ids} for ids in texts]


def batches_of(title: str) -> list[dict[str, torch.Tensor]]:
    if "classifier" in title:
        ids = torch.randint(4, 64, (3, 8, 12), generator=torch.Generator().manual_seed(1))
        return [{"input_ids": part, "labels": part[:, 0] % 2} for part in ids]
    rows = torch.tensor([row["input_ids"] for row in encoded(ROWS[::4])]).view(2, 8, -1)
    return [{"input_ids": part, "labels": part} for part in rows]


def train(model: Any) -> None:
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    for batch in batches_of(""):
        model(**batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()


def their_model() -> nn.Module:
    return transformers.AutoModelForCausalLM.from_pretrained(LLAMA)


def their_adapter(title: str) -> nn.Module:
    if "generate" in title or "Merge" in title:
        return peft.PeftModel.from_pretrained(their_model(), ADAPTER, is_trainable=True)
    config = peft.LoraConfig(r=8, lora_alpha=32, target_modules=["q_proj", "v_proj"])
    return peft.get_peft_model(their_model(), config)  # type: ignore[arg-type]


def our_adapter(title: str) -> lorica.Attached:
    if "generate" in title or "Merge" in title:
        return lorica.load(lorica.load_base(LLAMA), ADAPTER)
    return lorica.attach(lorica.load_base(LLAMA), lorica.LoRA(r=8, alpha=32, target_modules="minimal"))


MAKERS: dict[str, Callable[[str], Any]] = {
    "torch": lambda title: torch,
    "peft": lambda title: peft,
    "transformers": lambda title: transformers,
    "lorica": lambda title: lorica,
    "tokenizer": lambda title: talking(transformers.AutoTokenizer.from_pretrained(LLAMA), title),
    "rows": lambda title: CHATS if "Chat" in title else ROWS,
    "held_out": lambda title: ROWS[::8],
    "encoded": lambda title: encoded(ROWS),
    "encoded_held_out": lambda title: encoded(ROWS[::8]),
    "batches": batches_of,
    "train": lambda title: train,
    "peft_model": their_adapter,
    "attached": our_adapter,
}


@dataclass(frozen=True)
class Ran:
    """What a block leaves: its names, what it printed, and the folder it ran in."""

    names: dict[str, Any]
    said: str
    place: Path


def run(code: str, title: str, model: Callable[[], nn.Module], shelf: Path, place: Path) -> Ran:
    place.mkdir()
    for name in (LLAMA, ROBERTA, ADAPTER):
        (place / name).parent.mkdir(exist_ok=True)
        (place / name).symlink_to(shelf / name)
    used = {node.id for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Name)}
    said = io.StringIO()
    with chdir(place), redirect_stdout(said), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        transformers.set_seed(0)
        names = {name: make(title) for name, make in MAKERS.items() if name in used}
        if "model" in used:
            names["model"] = model()
            talking(getattr(names["model"], "tokenizer", byte_tokenizer()), title)
        exec(compile(code, str(DOCUMENT), "exec"), names)
    return Ran(names, said.getvalue(), place)


@pytest.fixture
def both(shelf: Path, tmp_path: Path) -> Callable[[str], tuple[Ran, Ran]]:
    """Runs the two blocks of the section with this word in its title."""

    def ran(word: str) -> tuple[Ran, Ran]:
        found = section(word)
        theirs = run(found.theirs, found.title, their_model, shelf, tmp_path / "theirs")
        ours = run(found.ours, found.title, lambda: lorica.load_base(LLAMA), shelf, tmp_path / "ours")
        return theirs, ours

    return ran


def trained(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def test_every_step_is_there_with_both_sides() -> None:
    assert len(SECTIONS) >= len(STEPS)
    assert all(section(word).theirs and section(word).ours for word in STEPS)


@pytest.mark.parametrize("found", SECTIONS, ids=lambda found: found.title)
def test_a_step_is_no_longer_here_than_there(found: Section) -> None:
    theirs, ours = (len(lines_of_code(code)) for code in (found.theirs, found.ours))
    assert ours <= theirs


def lines_of_code(code: str) -> list[str]:
    return [line for line in code.splitlines() if line.strip() and not line.strip().startswith("#")]


def test_half_precision(both) -> None:
    theirs, ours = both("half precision")
    assert {p.dtype for p in theirs.names["model"].parameters()} == {torch.float16}
    assert {p.dtype for p in ours.names["model"].parameters()} == {torch.float16}
    assert ours.names["model"].tokenizer.get_vocab() == theirs.names["tokenizer"].get_vocab()


@pytest.mark.parametrize("word", ["query and value", "all seven", "as it is"])
def test_the_line_of_trainable_parameters_is_the_same(both, word: str) -> None:
    theirs, ours = both(word)
    assert re.fullmatch(r"trainable params: [\d,]+ \|\| all params: [\d,]+ \|\| trainable%: [\d.]+\n", ours.said)
    assert ours.said == theirs.said


def test_a_classifier_trains_the_same_parameters_and_its_new_head(both) -> None:
    theirs, ours = both("classifier")
    attached = ours.names["attached"]
    assert attached.trainable_parameters == trained(theirs.names["model"])
    norms = attached.update_norms()
    assert {name for name in norms if name.startswith("classifier")} == {
        f"classifier.{layer}.{leaf}" for layer in ("dense", "out_proj") for leaf in ("weight", "bias")
    }
    assert min(norms.values()) > 0


def test_chat_tuning_learns_what_the_assistant_says(both) -> None:
    theirs, ours = both("Chat")
    assert ours.names["attached"].trainable_parameters == trained(theirs.names["model"])
    assert ours.names["run"].steps == theirs.names["trainer"].state.global_step == 3
    answers = sum(len(row["completion"]) + 1 for row in ROWS[::8])  # one token a byte, and the end
    assert {line["label_tokens"] for line in ours.names["run"].history} == {answers}


def test_batches_epochs_and_warm_up_mean_the_same(both) -> None:
    theirs, ours = both("accumulation")
    run = ours.names["run"]
    assert run.steps == theirs.names["trainer"].state.global_step == 3 * len(ROWS) // 32
    rates = [line["learning_rate"] for line in run.history if "learning_rate" in line]
    assert rates == pytest.approx([3e-4 * step / 101 for step in range(1, run.steps + 1)])
    assert len(list(theirs.place.glob("out/checkpoint-*"))) == 3
    saved = [path.name for path in (ours.place / "out" / "checkpoints").iterdir() if path.is_dir()]
    assert saved, "one an epoch, of which the newest are kept"


def test_the_recipe_is_that_call() -> None:
    (text,) = re.findall(r"```yaml\n(.*?)```", DOCUMENT.read_text(), re.DOTALL)
    call = ast.parse(section("accumulation").ours).body[0].value  # type: ignore[attr-defined]
    asked = {word.arg: ast.literal_eval(word.value) for word in call.keywords if isinstance(word.value, ast.Constant)}
    from lorica.recipe import text as yaml

    recipe = Recipe(**yaml.read(text, "the document"))
    written = recipe.train.model_dump()
    assert {name: written[name] for name in asked if name != "output"} == {
        name: value for name, value in asked.items() if name != "output"
    }
    assert recipe.output == asked["output"]


def test_rows_in_memory_give_an_evaluation_loss(both) -> None:
    theirs, ours = both("in memory")
    last = [float(ran.said.strip().splitlines()[-1]) for ran in (theirs, ours)]
    # Both near the loss of one guess among 257 bytes, from bases that are the same noise.
    assert last[1] == pytest.approx(last[0], rel=0.1)


def test_ones_own_loop_moves_every_site(both) -> None:
    theirs, ours = both("own loop")
    assert min(ours.names["attached"].update_norms().values()) > 0
    assert trained(theirs.names["peft_model"]) == ours.names["attached"].trainable_parameters


def test_trainer_writes_adapters_and_takes_the_same_steps(both) -> None:
    theirs, ours = both("Trainer")
    assert ours.names["trainer"].state.global_step == theirs.names["trainer"].state.global_step
    checkpoints = sorted(ours.place.glob("trainer/checkpoint-*"))
    assert len(checkpoints) == 2
    for checkpoint in checkpoints:
        assert json.loads((checkpoint / "adapter" / "adapter_config.json").read_text())["peft_type"] == "LORA"
        assert not (checkpoint / "model.safetensors").exists()


def test_what_is_trainable_is_listed_under_the_names_of_the_file(both) -> None:
    theirs, ours = both("trainable")
    assert ours.said == theirs.said.replace(".default.", ".")


def test_norms_of_updates_are_zero_before_and_not_after(both) -> None:
    theirs, ours = both("moved")
    for ran in (theirs, ours):
        assert set(ran.names["before"].values()) == {0.0}
        assert min(ran.names["after"].values()) > 0
    assert set(ours.names["after"]) == {name.removeprefix("base_model.model.") for name in theirs.names["after"]}


def test_a_saved_adapter_says_the_same_in_both(both) -> None:
    theirs, ours = both("generate")
    assert ours.said == theirs.said
    assert len(ours.said.strip()) > 0


def test_a_merged_model_is_the_same_for_every_loader(both) -> None:
    theirs, ours = both("Merge")
    ids = torch.tensor([[5, 6, 7, 8, 9]])
    with torch.no_grad():
        expected = theirs.names["merged"](ids).logits
        loaders = (transformers.AutoModelForCausalLM.from_pretrained, lorica.load_base)
        for place in (theirs.place, ours.place):
            for load in loaders:
                found = load(place / "merged")(ids).logits  # type: ignore[operator]
                assert float((found - expected).abs().max() / expected.abs().max()) < 1e-5
    words = transformers.AutoTokenizer.from_pretrained(ours.place / "merged")
    assert words.get_vocab() == byte_tokenizer().get_vocab()


def test_new_tokens_train_their_rows_alone(both) -> None:
    theirs, ours = both("New tokens")
    assert list(ours.names["tokens"]) == theirs.names["tokens"]
    assert ours.names["attached"].trainable_parameters == trained(theirs.names["model"])
    assert ours.names["model"].config.vocab_size == theirs.names["model"].config.vocab_size == 259


@pytest.mark.parametrize("word", ["QLoRA", "loaded yourself"])
def test_four_bits_hold_the_same_weights_and_train_the_same(both, word: str) -> None:
    from lorica.kernels.quantised import held_by

    theirs, ours = both(word)
    attached, model = ours.names["attached"], theirs.names["model"]
    assert attached.trainable_parameters == trained(model)
    for name in ("model.layers.1.mlp.down_proj", "model.layers.0.self_attn.q_proj"):
        mine = held_by(attached.model.get_submodule(name).base)
        other = held_by(model.get_base_model().get_submodule(name).base_layer)
        assert mine is not None
        assert other is not None
        assert torch.equal(mine.codes, other.codes)
        assert (mine.scales is None) == (other.scales is None)  # type: ignore[union-attr]


def test_merging_without_four_bits_is_one_call(both) -> None:
    theirs, ours = both("base in four bits")
    merged = [lorica.load_base(ran.place / "merged", dtype="float32") for ran in (theirs, ours)]
    ids = torch.tensor([[5, 6, 7, 8]])
    found, expected = (model(ids).logits for model in merged[::-1])
    # theirs is merged and stored in bfloat16, ours as the base is stored: 15 linears' roundings, see models/numerics
    assert (found - expected).abs().max() <= 4 * 15**0.5 * 2**-8 * expected.abs().max()
