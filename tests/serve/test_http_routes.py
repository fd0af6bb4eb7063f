"""The routes on a scripted engine: shapes, choices, streams, adapters that come and go, metrics and the page."""

import asyncio
import itertools
import json
import threading
import time

import pytest
from fake_engine import END
from http_app import ADMIN, KEY, asked, listening, made, raw

from lorica.errors import AdapterError, RequestError
from lorica.serve.http import listening as listening_module
from lorica.serve.http import loading
from lorica.serve.http.choosing import Names, Origin
from lorica.serve.http.limits import HttpLimits
from lorica.serve.http.outside import Classified, Outside

np = pytest.importorskip("numpy")


def said(answer) -> str:
    return answer.json["choices"][0]["message"]["content"]


@pytest.mark.parametrize(
    ("model", "answers", "named"),
    [
        ("base", "base", "tiny"),
        ("tiny", "base", "tiny"),
        ("sql", "sql", "sql"),
        ("tiny:sql", "sql", "sql"),
        ("base:json", "json", "json"),
    ],
)
def test_model_chooses_who_answers(model: str, answers: str, named: str) -> None:
    answer = made().chat(model=model)
    assert said(answer) == f"{answers}: <user>hello<a>"
    assert answer.json["model"] == named


def test_a_blend_is_weighed_as_it_is_asked_for() -> None:
    here = made()
    answer = here.chat(adapters=[{"name": "sql", "weight": 0.7}, {"name": "json", "weight": -0.3}])
    assert answer.status == 200
    assert here.engine.asked[0].choice == {"sql": 0.7, "json": -0.3}


@pytest.mark.parametrize(
    ("fields", "status", "param"),
    [
        ({"model": "sqll"}, 404, "model"),
        ({"model": "other:sql"}, 404, "model"),
        ({"model": "tiny:"}, 404, "model"),
        ({"adapters": [{"name": "nope"}]}, 404, "adapters"),
        ({"adapters": [{"name": "sql"}, {"name": "sql"}]}, 400, "adapters"),
        ({"model": "sql", "adapters": [{"name": "json"}]}, 400, "model"),
    ],
)
def test_a_choice_that_cannot_be_is_an_error_of_its_field(fields: dict, status: int, param: str) -> None:
    here = made()
    answer = here.chat(**fields)
    assert (answer.status, answer.error["param"]) == (status, param)
    assert not here.engine.asked, "and never the base instead"


def test_the_nearest_model_is_named() -> None:
    assert "did you mean 'sql'" in made().chat(model="sqll").error["message"]


def test_a_merged_adapter_answers_alone() -> None:
    here = made(adapters=["sql"], merged="sql")
    assert here.chat(model="sql").status == 200
    assert here.chat(model="tiny:sql").status == 200
    assert here.chat(model="base").status == 404
    assert here.chat(model="base", adapters=[{"name": "sql"}]).status == 400
    assert [card["id"] for card in here.ask("GET", "/v1/models").json["data"]] == ["sql"]


def test_an_adapter_of_plain_prompts_gets_no_template() -> None:
    here = made(plain=["sql"])
    assert said(here.chat(model="sql")) == "sql: hello"
    assert said(here.chat(model="json")) == "json: <user>hello<a>"
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, {"role": "user", "content": "c"}]
    assert here.chat(model="sql", messages=turns).status == 400


def test_streams_say_what_whole_answers_say() -> None:
    here = made()
    for fields in ({}, {"stop": "llo"}, {"max_tokens": 5}, {"n": 3}, {"logprobs": True, "top_logprobs": 2}):
        whole, streamed = here.chat("héllo", **fields).json, here.chat("héllo", stream=True, **fields)
        assert streamed.body.endswith(b"data: [DONE]\n\n")
        assert streamed.headers["content-type"].startswith("text/event-stream")
        for choice in whole["choices"]:
            chunks = [e["choices"][0] for e in streamed.events if e["choices"][0]["index"] == choice["index"]]
            assert chunks[0]["delta"] == {"role": "assistant", "content": ""}
            assert "".join(c["delta"].get("content", "") for c in chunks) == choice["message"]["content"]
            assert [c["finish_reason"] for c in chunks if c["finish_reason"]] == [choice["finish_reason"]]
            if choice["logprobs"]:
                assert [w for c in chunks if c["logprobs"] for w in c["logprobs"]["content"]] == choice["logprobs"][
                    "content"
                ]


def test_usage_is_streamed_where_it_is_asked_for() -> None:
    here = made()
    *chunks, last = here.complete(stream=True, stream_options={"include_usage": True}).events
    assert all(chunk["usage"] is None for chunk in chunks)
    assert last["choices"] == []
    assert last["usage"] == here.complete().json["usage"]
    assert "usage" not in here.complete(stream=True).events[-1]


def test_usage_counts_a_prompt_once_and_every_answer() -> None:
    usage = made().complete(prompt=["12", "345"], n=2, max_tokens=4).json["usage"]
    assert (usage["prompt_tokens"], usage["completion_tokens"], usage["total_tokens"]) == (5, 16, 21)


def test_a_stop_string_ends_the_work_and_what_is_behind_is_not_told() -> None:
    def script(request):
        yield from b"one\n\ntwo and much more"

    here = made(script=script, delay=0.005, reused=3)
    answer = here.complete(stop=["\n\n"], logprobs=1, max_tokens=40).json
    (choice,) = answer["choices"]
    assert (choice["text"], choice["finish_reason"]) == ("one", "stop")
    assert choice["logprobs"]["tokens"] == ["o", "n", "e"]
    assert answer["usage"]["completion_tokens"] == 5
    assert answer["usage"]["prompt_tokens_details"]["cached_tokens"] == 3, "known before the engine ends it"
    until = time.monotonic() + 2
    while here.engine.running and time.monotonic() < until:
        time.sleep(0.005)
    assert here.engine.cancelled == 1


def test_logprobs_have_openais_shapes() -> None:
    here = made(script=lambda request: iter([*"aé".encode(), END]))
    chat = here.chat(logprobs=True, top_logprobs=2).json["choices"][0]["logprobs"]["content"]
    assert [word["token"] for word in chat] == ["a", "\ufffd", "\ufffd"]
    assert [word["bytes"] for word in chat] == [[97], None, None]
    assert len(chat[0]["top_logprobs"]) == 2
    assert here.chat().json["choices"][0]["logprobs"] is None
    plain = here.complete(logprobs=0).json["choices"][0]["logprobs"]
    assert plain["text_offset"] == [0, 1, 2]
    assert plain["top_logprobs"] == [{}, {}, {}]


def test_a_logprob_of_minus_infinity_is_told_as_a_number() -> None:
    from lorica.serve.http.texts import told

    assert told(-float("inf")) == -9999.0
    assert told(-1.5) == -1.5


def test_seeds_are_the_choices_own_and_repeat() -> None:
    here = made()
    for _ in range(2):
        here.complete(seed=7, n=3)
    here.complete(n=1)
    seeds = [request.seed for request in here.engine.asked]
    assert seeds[:3] == seeds[3:6]
    assert seeds[0] == 7
    assert len(set(seeds[:3])) == 3


def test_what_is_not_said_is_as_openai_has_it() -> None:
    here = made(limits=HttpLimits(max_tokens=100))
    here.complete()
    here.chat()
    completion, chat = here.engine.asked
    assert (completion.max_tokens, completion.temperature, completion.top_p) == (16, 1.0, 1.0)
    assert chat.max_tokens == 100
    here.engine.context = 40
    here.chat()
    assert here.engine.asked[-1].max_tokens == 40 - len(chat.tokens) + 1, "what there is room for"
    here.engine.context = 1
    here.chat()
    assert here.engine.asked[-1].max_tokens == 1, "whose place the engine refuses, and says why"
    assert here.chat(max_tokens=None, stop=None, tools=None, temperature=None).status == 200, "null says nothing"


def test_fields_that_change_nothing_are_accepted_and_others_all_named() -> None:
    here = made()
    assert (
        here.chat(user="x", metadata={"a": "b"}, tools=[], response_format={"type": "text"}, store=False).status == 200
    )
    refused = here.chat(tools=[{}], respons_format=1, response_format={"type": "json_object"}, n="2")
    for name in ("tools", "respons_format", "response_format", "n"):
        assert name in refused.error["message"]
    assert "did you mean 'response_format'" in refused.error["message"]


def test_parts_of_text_are_one_text() -> None:
    parts = [{"type": "text", "text": "he"}, {"type": "text", "text": "llo"}]
    here = made()
    answer = here.chat(messages=[{"role": "user", "content": parts}])
    assert said(answer) == "base: <user>hello<a>"


@pytest.mark.parametrize("engine_says", ["error", "cancelled"])
def test_an_engine_that_fails_is_an_error_and_not_half_an_answer(engine_says: str) -> None:
    def script(request):
        yield from b"ab"
        raise RuntimeError("lost")

    here = made(script=script)
    assert here.chat().status == 500
    streamed = here.chat(stream=True)
    assert streamed.status == 200
    assert streamed.events[-1]["error"]["type"] == "server_error"
    assert b"[DONE]" not in streamed.body


def test_adapters_come_and_go_by_their_folder_s_name(tmp_path) -> None:
    here = made(root=tmp_path)
    (tmp_path / "v1").mkdir()
    (tmp_path / "v1/lorica.json").write_text(json.dumps({"data": {"shape": "prompt_completion"}}))
    (tmp_path / "v2").mkdir()
    card = here.ask("POST", "/v1/adapters", {"name": "new", "folder": "v1"}, key=ADMIN)
    assert (card.status, card.json["root"], card.json["parent"]) == (201, "v1", "tiny")
    assert said(here.chat(model="new")) == "new: hello", "as it was taught"
    assert here.ask("POST", "/v1/adapters", {"name": "new", "folder": "v1"}, key=ADMIN).status == 409
    again = here.ask("PUT", "/v1/adapters/new", {"folder": "v2"}, key=ADMIN)
    assert (again.status, again.json["generation"], again.json["root"]) == (200, 2, "v2")
    assert said(here.chat(model="new")) == "new: <user>hello<a>"
    assert here.ask("GET", "/v1/adapters/new").json["rank"] == 8
    assert here.ask("DELETE", "/v1/adapters/new", key=ADMIN).json["deleted"]
    assert here.chat(model="new").status == 404
    for method, path, body in (
        ("GET", "/v1/adapters/new", None),
        ("DELETE", "/v1/adapters/new", None),
        ("PUT", "/v1/adapters/new", {"folder": "v1"}),
    ):
        assert here.ask(method, path, body, key=ADMIN).status == 404


def test_vllm_s_routes_load_replace_and_unload(tmp_path) -> None:
    here = made(root=tmp_path)
    (tmp_path / "x").mkdir()
    load = {"lora_name": "x", "lora_path": "x"}
    first = here.ask("POST", "/v1/load_lora_adapter", load, key=ADMIN)
    assert (first.status, first.body) == (200, b"Success: LoRA adapter 'x' added successfully.")
    assert here.ask("POST", "/v1/load_lora_adapter", load, key=ADMIN).status == 409
    assert here.ask("POST", "/v1/load_lora_adapter", {**load, "load_inplace": True}, key=ADMIN).status == 200
    assert here.shelf.names["x"] == 2
    assert here.ask("POST", "/v1/unload_lora_adapter", {"lora_name": "x"}, key=ADMIN).status == 200
    assert here.ask("POST", "/v1/unload_lora_adapter", {"lora_name": "x"}, key=ADMIN).status == 404


def test_an_adapter_that_does_not_check_out_is_refused_without_the_path(tmp_path) -> None:
    here = made(root=tmp_path)
    (tmp_path / "bad").mkdir()

    def refuse(name: str) -> None:
        raise AdapterError(f"{tmp_path}/bad: not as it was saved")

    here.shelf.hook = refuse
    answer = here.ask("POST", "/v1/adapters", {"name": "bad"}, key=ADMIN)
    assert (answer.status, answer.error["message"]) == (400, "bad: not as it was saved")
    assert here.chat(model="bad").status == 404


def test_changes_of_one_name_wait_for_each_other_and_no_answer_waits_for_them(tmp_path) -> None:
    here = made(root=tmp_path)
    (tmp_path / "x").mkdir()
    loading, goes_on = threading.Event(), threading.Event()
    here.shelf.hook = lambda name: loading.set() or goes_on.wait(20)

    async def both() -> list[int]:
        body = {"name": "x"}
        loads = [asyncio.create_task(asked(here.app, "POST", "/v1/adapters", body, key=ADMIN)) for _ in range(2)]
        while not loading.is_set():
            await asyncio.sleep(0.005)
        answer = await asked(here.app, "POST", "/v1/completions", {"model": "sql", "prompt": "x"})
        assert (answer.status, [load.done() for load in loads]) == (200, [False, False])
        goes_on.set()
        return sorted(answer.status for answer in await asyncio.gather(*loads))

    assert asyncio.run(both()) == [201, 409]
    assert not here.served.loads._locks


def test_too_many_changes_at_once_are_refused(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(loading, "PENDING", 0)
    here = made(root=tmp_path)
    (tmp_path / "x").mkdir()
    assert here.ask("POST", "/v1/adapters", {"name": "x"}, key=ADMIN).status == 429


def test_without_a_root_nothing_is_loaded() -> None:
    answer = made().ask("POST", "/v1/adapters", {"name": "x"}, key=ADMIN)
    assert answer.status == 400
    assert "--adapters-root" in answer.error["message"]


def test_an_adapter_cannot_be_named_as_the_base() -> None:
    with pytest.raises(RequestError, match="names the base"):
        Names(base="tiny", created=1, adapters=None, origins={"tiny": Origin(folder="x")})


def test_models_are_the_base_and_its_adapters() -> None:
    here = made()
    cards = {card["id"]: card for card in here.ask("GET", "/v1/models").json["data"]}
    assert {name: card["parent"] for name, card in cards.items()} == {"tiny": None, "sql": "tiny", "json": "tiny"}
    assert here.ask("GET", "/v1/models/sql").json == cards["sql"]
    assert here.ask("GET", "/v1/models/tiny:sql").json == cards["sql"]
    assert here.ask("GET", "/v1/models/none").error["code"] == "model_not_found"


def test_metrics_count_requests_tokens_and_times_by_adapter(tmp_path) -> None:
    here = made(root=tmp_path)
    here.complete(model="sql", max_tokens=3)
    here.complete(model="nonsense" * 30)
    (tmp_path / "x").mkdir()
    here.ask("POST", "/v1/adapters", {"name": "x"}, key=ADMIN)
    told = here.ask("GET", "/metrics").body.decode()
    for line in (
        'lorica_requests_total{adapter="sql",route="/v1/completions",status="200"} 1.0',
        'lorica_requests_total{adapter="-",route="/v1/completions",status="404"} 1.0',
        'lorica_prompt_tokens_total{adapter="sql"} 5.0',
        'lorica_written_tokens_total{adapter="sql"} 3.0',
        'lorica_time_to_first_token_seconds_count{adapter="sql"} 1.0',
        'lorica_inter_token_seconds_count{adapter="sql"} 2.0',
        'lorica_adapter_loads_total{result="done",what="load"} 1.0',
        "lorica_engine_waiting 0.0",
        "lorica_engine_reused 3.0",
        'lorica_adapter_running{adapter="base"} 1.0',
        'lorica_adapter_requests{adapter="blend"} 3.0',
    ):
        assert line in told
    assert "nonsense" not in told, "labels are names that are served"


def test_stats_are_the_engine_s_numbers() -> None:
    told = made().ask("GET", "/v1/stats").json
    assert told["base"] == "tiny"
    assert told["engine"]["blocks_free"] == 7
    assert told["engine"]["by_adapter"]["sql"]["requests"] == 2


def test_what_is_asked_every_second_is_logged_where_it_fails() -> None:
    here = made()
    for path in ("/healthz", "/metrics", "/v1/stats", "/v1/adapters"):
        here.ask("GET", path)
    assert here.log.getvalue() == ""
    here.ask("GET", "/metrics", key="wrong")
    here.ask("GET", "/v1/models")
    assert [json.loads(line)["status"] for line in here.log.getvalue().splitlines()] == [401, 200]


def test_servers_share_no_counts() -> None:
    first, second = made(), made()
    first.complete(model="sql")
    assert b'adapter="sql",route' not in second.ask("GET", "/metrics").body


def test_the_state_is_unwell_when_the_engine_is_not_there() -> None:
    here = made()
    assert here.ask("GET", "/healthz", key=None).status == 200
    here.engine.alive = False
    assert here.ask("GET", "/healthz", key=None).status == 503


def test_the_shell_is_open_and_nothing_beside_it() -> None:
    here = made()
    shell = here.ask("GET", "/", key=None)
    assert shell.status == 200
    assert shell.headers["content-type"].startswith("text/html")
    for path in ("/static/nothing.js", "/static/..%2fapp.py", "/static/../app.py", "/static/app.py"):
        assert here.ask("GET", path, key=None).status in (401, 404)


def test_wrong_methods_and_paths_have_openais_shape() -> None:
    here = made()
    assert here.ask("GET", "/v1/chat/completions").error["code"] == "method_not_allowed"
    assert here.ask("GET", "/nowhere").error["code"] == "not_found"
    assert here.ask("GET", "/v1/models/").status == 404


class Vectors:
    def __call__(self, texts, choice):
        return np.array([[len(text), 0.5] for text in texts], np.float32), sum(map(len, texts))


def test_embeddings_are_numbers_or_base64_of_them() -> None:
    here = made(writes=False, outside=Outside(Vectors()))
    body = {"model": "sql", "input": ["ab", "abc"]}
    told = here.ask("POST", "/v1/embeddings", body).json
    assert [each["embedding"] for each in told["data"]] == [[2.0, 0.5], [3.0, 0.5]]
    assert told["usage"] == {"prompt_tokens": 5, "total_tokens": 5}
    packed = here.ask("POST", "/v1/embeddings", {**body, "encoding_format": "base64", "input": "ab"}).json
    assert packed["data"][0]["embedding"] == "AAAAQAAAAD8="
    assert here.ask("POST", "/v1/embeddings", {**body, "dimensions": 3}).status == 400
    assert len(here.ask("POST", "/v1/embeddings", {**body, "input": ["a"] * 2048}).json["data"]) == 2048
    for ids in ([1, 2], [[1, 2], [3]]):
        refused = here.ask("POST", "/v1/embeddings", {**body, "input": ids})
        assert refused.status == 400
        assert "check_embedding_ctx_length" in refused.error["message"]
    assert here.ask("POST", "/v1/embeddings", {**body, "model": "none"}).status == 404
    assert here.chat().status == 400, "it writes nothing"
    assert made().ask("POST", "/v1/embeddings", body).status == 400, "and a base that writes makes none"


class Length:
    labels = ("long", "short")

    def __call__(self, fields):
        if not isinstance(fields, str):
            raise RequestError("input: one text")
        return Classified("short" if len(fields) < 5 else "long", (0.25, 0.75), len(fields))


def test_classes_are_told_with_their_odds() -> None:
    here = made(outside=Outside(classifiers={"length": Length()}))
    told = here.ask("POST", "/v1/classify", {"model": "length", "input": ["abc", "abcdef"]}).json
    assert [each["label"] for each in told["data"]] == ["short", "long"]
    assert told["data"][0]["num_classes"] == 2
    assert told["usage"]["prompt_tokens"] == 9
    assert here.ask("POST", "/v1/classify", {"model": "length", "input": {"text": "x"}}).status == 400
    assert here.ask("POST", "/v1/classify", {"model": "sql", "input": "x"}).status == 404


def test_who_is_still_answered_when_the_server_stops_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listening_module, "STOPPING", 1.5)
    here, told = made(script=lambda request: itertools.repeat(97), delay=0.01), []
    body = b'{"model": "sql", "prompt": "x", "max_tokens": 4000%s}'
    head = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer %s\r\n" % KEY.encode()
    head += b"Content-Type: application/json\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%s"
    bodies = [body % b"", body % b', "stream": true']
    asking = [
        threading.Thread(target=lambda each=each: told.append(raw(port, head % (len(each), each), 10.0)))
        for each in bodies
    ]
    with listening(here) as port:
        for each in asking:
            each.start()
        until = time.monotonic() + 10
        while here.engine.running < 2 and time.monotonic() < until:
            time.sleep(0.01)
    for each in asking:
        each.join(10)
    whole, streamed = sorted(told, key=lambda answer: b"text/event-stream" in answer)
    assert whole.startswith(b"HTTP/1.1 503")
    assert b"retry-after" in whole.lower()
    assert b"the server is stopping" in whole
    assert b"the server is stopping" in streamed


def test_a_chat_with_what_was_taught_another_template_is_refused(tmp_path) -> None:
    """It would be asked in words that it never read."""
    here = made(root=tmp_path)
    for name, shape in {"own": "messages", "pairs": "prompt_completion"}.items():
        (tmp_path / name).mkdir()
        recorded = {"data": {"shape": shape}, "recipe": {"data": {"train": "x", "template": "chatml.jinja"}}}
        (tmp_path / name / "lorica.json").write_text(json.dumps(recorded))
        assert here.ask("POST", "/v1/adapters", {"name": name}, key=ADMIN).status == 201
    refused = here.chat(model="own")
    assert refused.status == 400
    assert "ask /v1/completions" in refused.error["message"]
    assert here.complete(model="own").status == 200
    assert here.chat(model="pairs").status == 200, "whose rows were written without one"
