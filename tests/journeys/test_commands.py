"""The commands from end to end, as a user types them, on a tiny Llama."""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from lorica.cli.entry import run

ELSEWHERE = ("--set", "output=runs/elsewhere")


def lorica(place: Path, *words: str) -> subprocess.Popen[str]:
    """The installed command in a process of its own."""
    command = [sys.executable, "-m", "lorica", *words]
    return subprocess.Popen(command, cwd=place, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_for(process: subprocess.Popen[str], seen: Callable[[], object]) -> None:
    """While the process lives, and no longer than four minutes."""
    deadline = time.monotonic() + 240
    while not seen() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)


NO_CHECKPOINT = "runs/short: holds no checkpoint to make an adapter of; train first, or name the run's output"


def size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


@pytest.fixture(scope="session")
def trained(place: Path) -> dict[str, Any]:
    """What `lorica train count.yaml --json` prints."""
    process = lorica(place, "train", "count.yaml", "--json")
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    assert "14 sites" in err, "the plan comes first"
    assert err.index("14 sites") < err.index("before training") < err.index("step 12/12")
    return json.loads(out)


@pytest.fixture
def here(place: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(place)
    return place


@pytest.fixture
def said(here: Path, trained: dict[str, Any], capsys: pytest.CaptureFixture[str]):
    """Runs a command in this process and gives its JSON."""

    def said(*words: str) -> Any:
        status = run([*words, "--json"])
        out, err = capsys.readouterr()
        assert status == 0, err
        return json.loads(out)

    return said


@pytest.fixture
def refused(here: Path, trained: dict[str, Any], capsys: pytest.CaptureFixture[str]):
    """Runs a command that fails and gives its exit status and the lines of its error."""

    def refused(*words: str) -> tuple[int, list[str]]:
        status = run(words)
        out, err = capsys.readouterr()
        assert out == ""
        assert "Traceback" not in err
        return status, [line for line in err.splitlines() if line.startswith("error: ")]

    return refused


def test_train_leaves_the_run_folder_that_the_plan_describes(place: Path, trained: dict[str, Any]) -> None:
    folder = place / "runs/count"
    assert {each.name for each in folder.iterdir()} >= {
        "adapter",
        "checkpoints",
        "metrics.jsonl",
        "recipe.yaml",
        "report.html",
    }
    wanted = {"adapter", "steps", "loss", "eval", "seconds", "tokens_per_second", "peak_bytes"}
    assert wanted <= trained.keys()
    assert trained["steps"] == 12
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "loss" in line] == list(range(1, 13))
    assert [line["step"] for line in lines if "eval_loss" in line] == [0, 4, 8, 12], "the base first"
    page = (folder / "report.html").read_text()
    assert "lorica chat runs/count/adapter" in page
    assert "http" not in page, "the page stands alone"


def test_the_adapter_is_better_than_its_base_on_rows_of_the_same_kind(said) -> None:
    adapter, base = "runs/count/adapter", ("--base",)
    after, before = said("eval", adapter, "--data", "eval.jsonl"), said("eval", adapter, "--data", "eval.jsonl", *base)
    assert after["loss"] < before["loss"] - 0.1
    assert {"loss", "perplexity", "rows", "label_tokens"} <= after.keys()
    assert before == said("eval", "--model", "base", "--data", "eval.jsonl")


def test_peft_loads_the_adapter_and_scores_the_same(here: Path, said) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained("base"), "runs/count/adapter").eval()
    words = AutoTokenizer.from_pretrained("base")
    total, count = 0.0, 0
    for row in map(json.loads, (here / "eval.jsonl").read_text().splitlines()):
        prompt, completion = words(row["prompt"])["input_ids"], [*words(row["completion"])["input_ids"], 0]
        labels = torch.tensor([[-100] * len(prompt) + completion])
        with torch.no_grad():
            total += model(input_ids=torch.tensor([prompt + completion]), labels=labels).loss.item() * len(completion)
        count += len(completion)
    ours = said("eval", "runs/count/adapter", "--data", "eval.jsonl")
    assert ours["label_tokens"] == count
    # Float32 sums over 50 inputs a product, two blocks deep.
    assert ours["loss"] == pytest.approx(total / count, rel=1e-5)


def test_merge_writes_a_checkpoint_that_transformers_loads_and_that_says_the_same(here: Path, said) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    said("merge", "runs/count/adapter", "--out", "merged")
    model, words = AutoModelForCausalLM.from_pretrained("merged"), AutoTokenizer.from_pretrained("merged")
    ids = words("after two: ", return_tensors="pt")
    merged = model.generate(**ids, max_new_tokens=6, do_sample=False)[0, ids["input_ids"].shape[1] :].tolist()
    answer = said("generate", "runs/count/adapter", "--prompt", "after two: ", "--max-tokens", "6")
    assert answer["tokens"] == merged
    base = said("generate", "runs/count/adapter", "--prompt", "after two: ", "--max-tokens", "6", "--base")
    assert base["tokens"] != answer["tokens"]


def test_inspect_shows_what_was_trained(said) -> None:
    found = said("inspect", "runs/count/adapter")
    assert len(found["sites"]) == 14
    assert found["trained_parameters"] == 3712
    assert all(site["norm"] > 0 for site in found["sites"])
    assert found["base"]["source"] == "./base"


def test_plan_knows_what_training_trains(said) -> None:
    plan = said("plan", "count.yaml", "--memory", "24")
    assert plan["trainable_parameters"] == 3712
    assert plan["total_parameters"] == 31968 + 3712
    assert (len(plan["sites"]), plan["unmatched"], plan["fits"]) == (14, [], True)
    parts = {"weights", "adapter", "gradients", "optimizer", "activations", "logits", "buffers", "allocator", "context"}
    assert plan["memory_bytes"].keys() == parts | {"peak"}
    assert plan["flops_per_token"] > 4 * 31968
    assert "24 GB" in plan["device"]


def test_data_accounts_for_every_row_and_finds_leaks(said) -> None:
    report = said("data", "train.jsonl", "--model", "base", "--eval", "eval.jsonl")
    assert (report["read"], report["used"], report["shape"]) == (10, 10, "prompt_completion")
    assert report["leakage"]["count"] == 3
    assert "".join(token["text"] for token in report["preview"][0]["tokens"] if token["label"]) == "one<end>"


def test_methods_lists_what_recipes_may_name(said) -> None:
    table = {row["name"]: row for row in said("methods")}
    assert table.keys() >= {"lora", "full"}
    assert table["lora"]["peft_type"] == "LORA"
    assert 0 < table["lora"]["trainable_parameters"] < table["full"]["trainable_parameters"]


def test_chat_answers_each_line_and_ends_on_an_empty_one(
    here: Path, trained: dict[str, Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import io

    monkeypatch.setattr(sys, "stdin", io.StringIO("after two: \nafter two: \n\nnever read\n"))
    assert run(["chat", "runs/count/adapter", "--max-tokens", "6"]) == 0
    first, second = capsys.readouterr().out.splitlines()
    assert first == second, "rows were no chats, so each prompt stands alone"


def test_an_interrupted_run_exits_130_and_resumes_to_the_same_bits(place: Path, trained: dict[str, Any]) -> None:
    words = ("train", "count.yaml", "--set", "output=runs/stopped", "--json")
    process = lorica(place, *words)
    wait_for(process, lambda: size(place / "runs/stopped/metrics.jsonl"))
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=240)
    assert process.returncode == 130, err
    assert "--resume" in err
    assert json.loads(out)["steps"] < 12
    again = lorica(place, "train", "runs/stopped/recipe.yaml", "--resume", "--json")
    out, err = again.communicate(timeout=240)
    assert again.returncode == 0, err
    assert json.loads(out)["loss"] == trained["loss"]
    whole, stopped = (
        load_file(place / f"runs/{name}/adapter/adapter_model.safetensors") for name in ("count", "stopped")
    )
    assert whole.keys() == stopped.keys()
    assert all(torch.equal(whole[name], stopped[name]) for name in whole)


def test_a_killed_run_gives_up_its_best_adapter_which_says_that_it_was_cut_short(place: Path, said, refused) -> None:
    words = ("train", "count.yaml", "--set", "output=runs/short")
    assert refused(*words, "--finish") == (2, ["error: " + NO_CHECKPOINT])
    assert not (place / "runs/short").exists()
    process = lorica(place, *words, "--set", "train.steps=9999")
    checkpoints = place / "runs/short/checkpoints"
    wait_for(process, lambda: any(checkpoints.glob("step-*/best.safetensors")))
    process.kill()
    process.communicate(timeout=240)
    assert process.returncode == -signal.SIGKILL
    found = said("train", "runs/short/recipe.yaml", "--finish")
    kept = load_file(max(checkpoints.glob("step-*")) / "best.safetensors")
    adapter = load_file(place / found["adapter"] / "adapter_model.safetensors")
    assert kept.keys() == adapter.keys()
    assert all(torch.equal(kept[name], adapter[name]) for name in kept)
    assert found["status"] == "cut short"
    cut = {"step": found["best_step"], "after": found["steps"], "of": 9999}
    assert said("inspect", found["adapter"])["cut_short"] == cut
    assert f"cut short after step {found['steps']} of 9999" in (place / found["adapter"] / "README.md").read_text()
    assert said("verify", found["adapter"])["ok"]


def test_a_run_killed_before_its_first_checkpoint_is_started_again_under_another_recipe(place: Path) -> None:
    words = ("train", "count.yaml", "--set", "output=runs/early")
    process = lorica(place, *words, "--set", "train.steps=9999", "--set", "train.checkpoint_every=9999")
    wait_for(process, lambda: size(place / "runs/early/metrics.jsonl") > 1000)
    process.kill()
    process.communicate(timeout=240)
    assert process.returncode == -signal.SIGKILL
    again = lorica(place, *words, "--set", "train.steps=2", "--set", "train.warmup=0")
    _, err = again.communicate(timeout=240)
    assert again.returncode == 0, err
    assert "steps: 2" in (place / "runs/early/recipe.yaml").read_text()
    lines = [json.loads(line) for line in (place / "runs/early/metrics.jsonl").read_text().splitlines()]
    assert [(line["step"], "loss" in line) for line in lines] == [(0, False), (1, True), (2, True), (2, False)]


@pytest.mark.parametrize(
    ("words", "status", "said"),
    [
        (("train", "count.yaml"), 2, "holds a run already"),
        (("train", "cuont.yaml"), 2, "there is no such recipe; did you mean 'count.yaml'?"),
        (("train", "count.yaml", "--set", "method.rank=3"), 2, "method.rank: unknown key; did you mean 'r'?"),
        (("train", "count.yaml", "--set", "data.train=nowhere.jsonl", *ELSEWHERE), 2, "nowhere.jsonl"),
        (
            ("train", "count.yaml", "--set", "data.max_length=4096", *ELSEWHERE),
            2,
            "above the 128 tokens that the base allows",
        ),
        (("plan", "count.yaml", "--set", "method.target_modules=[q_prj]"), 2, "did you mean 'q_proj'"),
        (("plan", "count.yaml", "--set", "model=./bse"), 2, "no such folder"),
        (("eval", "runs/count/adapter", "--data", "evil.jsonl"), 2, "did you mean 'eval.jsonl'?"),
        (("generate", "runs/count/adapter", "--prompt", ""), 2, "the prompt is empty"),
        (("inspect", "./runs/nothing"), 2, "no such folder"),
        (("inspect", "runs/count"), 1, "no adapter_model.safetensors"),
        (("merge", "runs/count/adapter", "--out", "base"), 1, "choose another folder"),
        (("trian",), 2, "no such command 'trian'"),
        (("train", "count.yaml", "--rseume"), 2, "--rseume"),
        (("eval", "runs/count/adapter"), 2, "--data"),
    ],
)
def test_errors_are_one_line_with_the_right_exit_status(
    refused, words: tuple[str, ...], status: int, said: str
) -> None:
    found, lines = refused(*words)
    assert found == status
    (line,) = lines
    assert said in line


def test_a_path_that_came_with_somebody_elses_adapter_is_not_followed(here: Path, refused, said) -> None:
    import shutil

    shutil.copytree("runs/count/adapter", "downloaded")
    status, (line,) = refused("generate", "downloaded", "--prompt", "after two: ")
    assert status == 2
    assert "give --model" in line
    assert said("generate", "downloaded", "--prompt", "after two: ", "--model", "base", "--max-tokens", "3")["tokens"]


def test_python_does_what_the_commands_do(here: Path, trained: dict[str, Any]) -> None:
    import lorica

    model = lorica.load_base("base")
    attached = lorica.attach(model, lorica.LoRA(r=4, alpha=12, dropout=0.1))
    rows = [json.loads(line) for line in Path("train.jsonl").read_text().splitlines()]
    settings = {"steps": 12, "rows_per_step": 10, "learning_rate": 1e-2, "evaluate_every": 4, "warmup": 2}
    fitted = lorica.fit(attached, train=rows, eval=rows[2:5], **settings)
    assert fitted.loss == trained["loss"]
    assert lorica.evaluate(attached, rows[2:5]).metrics["loss"] == trained["eval"]["eval_loss"]
    with pytest.raises(lorica.RecipeError, match="learning_rat: unknown setting; did you mean 'learning_rate'"):
        lorica.fit(attached, train=rows, learning_rat=1)
    resumed = lorica.train(lorica.Recipe.load("count.yaml"), resume=True)
    assert resumed.loss == trained["loss"]
