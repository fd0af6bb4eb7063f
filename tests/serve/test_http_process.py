"""The real process on loopback, asked by OpenAI's own client: `lorica serve` on the embedded base with two adapters."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import openai
import psutil
import pytest
import torch
from http_app import ADMIN as FAKE_ADMIN
from http_app import Made, made
from safetensors.torch import save_file

import lorica
from adapter_folders import forged
from lorica.api.answers import Speaker
from lorica.cli.entry import run
from tiny_bases import stir

KEY, ADMIN = "process-key-012345", "process-admin-012345"
Change = Callable[[str, str, Any], Any]
PROMPT = "import os\n\ndef read(path):\n"
GREEDY: dict[str, Any] = {"temperature": 0, "max_tokens": 10}


@dataclass(frozen=True)
class Server:
    url: str
    process: subprocess.Popen[str]
    root: Path
    log: Path
    client: openai.OpenAI
    admin: openai.OpenAI

    def text(self, model: str, **fields: Any) -> str:
        return self.client.completions.create(model=model, prompt=PROMPT, **GREEDY | fields).choices[0].text

    def change(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        """By the admin; the status and what was said."""
        try:
            return 200, getattr(self.admin, method)(path, body=body, cast_to=object)
        except openai.APIStatusError as error:
            return error.status_code, error.body


def client(url: str, key: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{url}/v1", api_key=key, max_retries=0, timeout=60)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Adapters that move the outputs well, each in its own direction; `zero` moves nothing."""
    folder = tmp_path_factory.mktemp("adapters")
    model = lorica.load_base("embedded", dtype="float32")
    for name in ("sql", "json", "later"):
        attached = lorica.attach(model, lorica.LoRA(r=4, alpha=6, target_modules="attention"))
        stir((f"{name}.{key}", parameter) for key, parameter in attached.named_parameters())
        attached.save(folder / name)
        attached.detach()
    attached = lorica.attach(model, lorica.LoRA(r=4, target_modules="attention"))
    attached.save(folder / "zero")
    attached.detach()
    return folder


@pytest.fixture(scope="module")
def server(root: Path, tmp_path_factory: pytest.TempPathFactory):
    log = tmp_path_factory.mktemp("log") / "log"
    words = ["--model", "embedded", "--dtype", "float32", "--port", "0", "--json", "--adapters-root", str(root)]
    words += ["--adapter", f"sql={root}/sql", "--adapter", f"json={root}/json"]
    env = {**os.environ, "LORICA_API_KEY": KEY, "LORICA_ADMIN_KEY": ADMIN}
    with log.open("w") as written:
        command = [sys.executable, "-m", "lorica", "serve", *words]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=written, text=True, env=env) as process:
            told = listened(process, log)
            yield Server(told["url"], process, root, log, client(told["url"], KEY), client(told["url"], ADMIN))
            process.send_signal(signal.SIGINT)
    assert process.returncode == 130, log.read_text()[-2000:]


def listened(process: subprocess.Popen[str], log: Path) -> dict[str, Any]:
    """What it prints when it answers."""
    assert process.stdout is not None
    said = ""
    while not said.endswith("}\n"):
        line = process.stdout.readline()
        assert line, log.read_text()[-2000:]
        said += line
    return json.loads(said)


def test_models_are_listed_with_their_parent(server: Server) -> None:
    cards = {card.id: card.model_extra["parent"] for card in server.client.models.list()}
    assert cards == {"embedded": None, "sql": "embedded", "json": "embedded"}
    assert server.client.models.retrieve("sql").id == "sql"


def test_each_adapter_answers_as_it_does_offline(server: Server) -> None:
    texts = {name: server.text(name) for name in ("sql", "json", "embedded")}
    assert len(set(texts.values())) == 3
    assert server.text("embedded:sql") == texts["sql"]
    for name in ("sql", "json"):
        speaker = Speaker.of(server.root / name, model="embedded", dtype="float32")
        speaker.renderer = None
        assert texts[name] == speaker.answer(PROMPT, max_tokens=GREEDY["max_tokens"]).text


def test_a_blend_is_a_choice_of_its_own(server: Server) -> None:
    def blend(sql: float, json: float) -> str:
        parts = [{"name": "sql", "weight": sql}, {"name": "json", "weight": json}]
        return server.text("embedded", extra_body={"adapters": parts})

    assert blend(1.0, 0.0) == server.text("sql")
    assert blend(0.0, 1.0) == server.text("json")


def test_chat_answers_whole_and_streamed_alike(server: Server) -> None:
    asked: dict[str, Any] = {"model": "sql", "messages": [{"role": "user", "content": "hello"}], **GREEDY}
    whole = server.client.chat.completions.create(**asked)
    stream = server.client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True})
    chunks = list(stream)
    assert (
        "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
        == whole.choices[0].message.content
    )
    first, second = whole.usage, chunks[-1].usage
    assert first is not None
    assert second is not None
    assert (first.completion_tokens, first.total_tokens) == (second.completion_tokens, second.total_tokens)
    assert second.prompt_tokens_details is not None
    assert second.prompt_tokens_details.cached_tokens == 16, "a block of the prompt was held"
    assert whole.choices[0].finish_reason == "length"


def test_the_base_alone_reads_one_message_as_it_is(server: Server) -> None:
    """The embedded base has no template: one that it never saw would be noise to it."""
    said = server.client.chat.completions.create(
        model="embedded", messages=[{"role": "user", "content": PROMPT}], **GREEDY
    )
    assert said.choices[0].message.content == server.text("embedded")


def test_completions_with_choices_logprobs_and_stops(server: Server) -> None:
    answer = server.client.completions.create(
        model="embedded", prompt=[PROMPT, "x = 1\n"], n=2, logprobs=3, temperature=0.9, seed=5, max_tokens=8
    )
    assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]
    for choice in answer.choices:
        assert choice.logprobs is not None
        assert "".join(choice.logprobs.tokens or ()) == choice.text
        assert all(len(top) == 3 for top in choice.logprobs.top_logprobs or ())
    text = server.text("sql", max_tokens=24)
    stop = text[8:10]
    stopped = server.client.completions.create(model="sql", prompt=PROMPT, temperature=0, max_tokens=24, stop=stop)
    assert stopped.choices[0].text == text[: text.index(stop)]
    assert stopped.choices[0].finish_reason == "stop"


def test_a_seed_repeats_a_drawn_answer(server: Server) -> None:
    drawn = [server.text("json", temperature=1.0, seed=seed, max_tokens=16) for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2]


def test_errors_are_the_client_s_own(server: Server) -> None:
    with pytest.raises(openai.NotFoundError) as unknown:
        server.text("nope")
    assert (unknown.value.code, unknown.value.param) == ("model_not_found", "model")
    with pytest.raises(openai.AuthenticationError):
        client(server.url, "wrong").models.list()
    with pytest.raises(openai.BadRequestError) as refused:
        server.client.chat.completions.create(
            model="sql",
            messages=[{"role": "user", "content": "x"}],
            tools=[{"type": "function", "function": {"name": "f"}}],
        )
    assert refused.value.param == "tools"
    with pytest.raises(openai.BadRequestError) as long:
        server.client.completions.create(model="sql", prompt="word " * 2000)
    assert long.value.code == "context_length_exceeded"
    with pytest.raises(openai.PermissionDeniedError):
        server.client.post("/adapters", body={"name": "later"}, cast_to=object)


def test_answers_in_company_are_those_alone(server: Server) -> None:
    models = ["embedded", "sql", "json"] * 4
    alone = {model: server.text(model) for model in set(models)}
    with ThreadPoolExecutor(len(models)) as many:
        assert list(many.map(server.text, models)) == [alone[model] for model in models]


def test_adapters_are_loaded_replaced_and_unloaded_while_it_runs(server: Server) -> None:
    later = {"name": "new", "folder": "later"}
    status, card = server.change("post", "/adapters", later)
    assert (status, card["state"], card["rank"], card["generation"]) == (200, "ready", 4, 1)
    first = server.text("new")
    assert server.change("post", "/adapters", later)[0] == 409
    status, card = server.change("put", "/adapters/new", {"folder": "json"})
    assert (status, card["generation"], card["root"]) == (200, 2, "json")
    assert server.text("new") == server.text("json") != first
    assert server.change("delete", "/adapters/new")[0] == 200
    with pytest.raises(openai.NotFoundError):
        server.text("new")
    vllm = {"lora_name": "new", "lora_path": "later"}
    assert server.change("post", "/load_lora_adapter", vllm)[0] == 200
    assert server.text("new") == first
    assert server.change("post", "/unload_lora_adapter", {"lora_name": "new"})[0] == 200


class Canary:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return (Path.touch, (self.path,))


def hostile(root: Path, canary: Path) -> dict[str, Path]:
    """Folders that must not be served, nor anything in them run or followed; `canary` appears if something is."""
    import pickle

    found = {}
    for name in ("pickled", "forged_config", "other_keys", "linked", "not_finite", "no_rank", "damaged", "empty"):
        found[name] = shutil.copytree(root / "sql", root / f"bad-{name}")
    (found["pickled"] / "adapter_model.safetensors").unlink()
    (found["pickled"] / "adapter_model.bin").write_bytes(pickle.dumps(Canary(canary)))
    evil = f"from pathlib import Path\nPath({str(canary)!r}).touch()\n"
    for folder in found.values():
        (folder / "evil.py").write_text(evil)
    configured(found["forged_config"], lora_alpha=99)
    for name, changes in {
        "other_keys": {"corda_config": {"cache_file": str(canary)}, "eva_config": {"x": "evil.py"}},
        "no_rank": {"r": -1},
    }.items():
        forged(found[name], lambda tensors, config, changes=changes: config.update(changes))
    weights = found["linked"] / "adapter_model.safetensors"
    weights.unlink()
    weights.symlink_to(root / "sql/adapter_model.safetensors")
    forged(found["not_finite"], lambda tensors, config: next(iter(tensors.values())).fill_(float("nan")))
    content = bytearray((found["damaged"] / "adapter_model.safetensors").read_bytes())
    content[-5] ^= 1
    (found["damaged"] / "adapter_model.safetensors").write_bytes(content)
    for file in found["empty"].iterdir():
        file.unlink()
    save_file({"x": torch.zeros(1)}, found["empty"] / "adapter_model.safetensors")
    return found | {"zero": root / "zero"}


def configured(folder: Path, **changes: Any) -> None:
    file = folder / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def require_refused(change: Change, folder: Path, canary: Path) -> None:
    status, said = change("post", "/adapters", {"name": "bad", "folder": folder.name})
    assert status in (400, 404), folder.name
    assert str(folder.parent) not in json.dumps(said), folder.name
    assert not canary.exists(), folder.name


def test_an_adapter_that_does_not_check_out_is_never_served(server: Server, tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    for folder in hostile(server.root, canary).values():
        require_refused(server.change, folder, canary)
        with pytest.raises(openai.NotFoundError):
            server.text("bad")
    assert server.text("sql")


def test_a_shelf_that_checks_nothing_is_seen(root: Path, tmp_path: Path) -> None:
    """The control: each of the folders, where it is taken as it is."""
    copies = shutil.copytree(root, tmp_path / "copies", ignore=shutil.ignore_patterns("bad-*"))
    for name, folder in hostile(copies, tmp_path / "canary").items():
        loose = made(root=copies)

        def change(method: str, path: str, body: Any, loose: Made = loose) -> Any:
            answer = loose.ask(method.upper(), f"/v1{path}", body, key=FAKE_ADMIN)
            return answer.status, answer.body.decode()

        if name == "linked":
            require_refused(change, folder, tmp_path / "canary")  # no shelf is needed to see a link
            continue
        with pytest.raises(AssertionError, match=name.replace("_", ".")):
            require_refused(change, folder, tmp_path / "canary")


def test_code_and_templates_beside_an_adapter_are_not_read(server: Server, tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    folder = shutil.copytree(server.root / "sql", server.root / "with-code")
    (folder / "evil.py").write_text(f"from pathlib import Path\nPath({str(canary)!r}).touch()\n")
    (folder / "config.json").write_text(json.dumps({"auto_map": {"AutoModel": "evil.Model"}}))
    (folder / "tokenizer_config.json").write_text(json.dumps({"auto_map": {"AutoTokenizer": ["evil.T", None]}}))
    (folder / "chat_template.jinja").write_text("{{ cycler.__init__.__globals__.os.system('touch ' ~ 'x') }}")
    assert server.change("post", "/adapters", {"name": "coded", "folder": folder.name})[0] == 200
    asked: dict[str, Any] = {"messages": [{"role": "user", "content": "hello"}], **GREEDY}
    answers = [
        server.client.chat.completions.create(model=m, **asked).choices[0].message.content for m in ("coded", "sql")
    ]
    assert answers[0] == answers[1], "the template is the base's"
    assert not canary.exists()
    assert server.change("delete", "/adapters/coded")[0] == 200


def test_who_leaves_in_mid_stream_frees_what_was_held(server: Server) -> None:
    for _ in range(3):
        stream = server.client.completions.create(
            model="sql", prompt=PROMPT, max_tokens=400, temperature=0, stream=True
        )
        next(iter(stream))
        stream.close()
    until = time.monotonic() + 10
    while time.monotonic() < until:
        told = server.client.get("/stats", cast_to=object)["engine"]  # type: ignore[index]
        if told["running"] == told["waiting"] == told["blocks_used"] == 0:
            return
        time.sleep(0.05)
    pytest.fail(f"still held: {told}")


def test_nothing_listens_but_the_server(server: Server) -> None:
    process = psutil.Process(server.process.pid)
    assert not process.children(recursive=True)
    listening = [each.laddr for each in process.net_connections() if each.status == psutil.CONN_LISTEN]
    assert [(address.ip, address.port) for address in listening] == [("127.0.0.1", int(server.url.rpartition(":")[2]))]


def test_the_log_is_json_without_prompts_and_keys(server: Server) -> None:
    server.client.completions.create(model="sql", prompt="somebody's secret", **GREEDY)
    lines = server.log.read_text().splitlines()
    assert {json.loads(line)["event"] for line in lines} <= {"request", "adapter"}
    assert not [line for line in lines if "secret" in line or KEY in line or ADMIN in line or str(server.root) in line]


def test_metrics_name_what_is_served(server: Server) -> None:
    server.text("sql")
    told = server.client.get("/../metrics", cast_to=str)
    assert 'lorica_written_tokens_total{adapter="sql"}' in told
    assert 'lorica_time_to_first_token_seconds_count{adapter="sql"}' in told


def test_a_port_that_is_taken_is_one_line(server: Server, capsys) -> None:
    port = server.url.rpartition(":")[2]
    assert run(["serve", "--model", "embedded", "--port", port]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert f"127.0.0.1:{port}" in line
    assert "--port" in line


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--host", "0.0.0.0"], "choose a key with --api-key or LORICA_API_KEY"),
        (["--adapter", "sql"], "give NAME=DIR"),
        (["--adapter", "a=x", "--adapter", "a=y"], "the name a is given twice"),
        (["--adapter", "../x=y"], "a name is letters"),
        (["--adapter", "sql=nowhere"], "no such folder"),
        (["--adapters-root", "nowhere"], "no such folder"),
        (["--api-key", "same", "--admin-key", "same"], "give it a value of its own"),
        (["--host", "no host", "--api-key", "a"], "is no address of this machine"),
    ],
)
def test_what_cannot_be_served_is_one_line(words: list[str], said: str, capsys, monkeypatch) -> None:
    monkeypatch.delenv("LORICA_API_KEY", raising=False)
    assert run(["serve", "--model", "embedded", "--port", "0", *words]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    (line,) = err.splitlines()
    assert said in line
