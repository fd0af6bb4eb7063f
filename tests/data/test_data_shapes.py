"""The five shapes are recognised or stated, and mean what the tools that named them mean."""

import pytest
from byte_tokenizer import Bytes, learned, whole

from lorica.data import DataConfig, from_rows
from lorica.data.shapes import understand
from lorica.errors import DataError

CHAT = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yo"}]
SHOWN = "<s><|user|>\nHi\n<|assistant|>\nYo</s>"


def called(arguments):
    call = {"id": "1", "type": "function", "function": {"name": "weather", "arguments": arguments}}
    return [CHAT[0], {"role": "assistant", "content": None, "tool_calls": [call]}]


def load(*rows, shape=None):
    return from_rows(rows, Bytes(), config=DataConfig(train="rows", shape=shape), limit=1000)


@pytest.mark.parametrize(
    ("row", "shape", "shown", "said"),
    [
        ({"prompt": "Hi ", "completion": "Yo"}, "prompt_completion", "<s>Hi Yo</s>", "Yo</s>"),
        ({"messages": CHAT}, "messages", SHOWN, "Yo</s>"),
        ({"instruction": "Hi", "output": "Yo"}, "alpaca", SHOWN, "Yo</s>"),
        ({"instruction": "Hi", "input": "", "output": "Yo"}, "alpaca", SHOWN, "Yo</s>"),
        ({"instruction": "Add", "input": "1 2", "output": "3"}, "alpaca", None, "3</s>"),
        (
            {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Yo"}]},
            "sharegpt",
            SHOWN,
            "Yo</s>",
        ),
        ({"text": "Hi"}, "text", "<s>Hi</s>", "Hi</s>"),
        ({"text": "Hi", "id": 7, "source": None}, "text", "<s>Hi</s>", "Hi</s>"),
    ],
)
def test_a_shape_is_recognised_by_its_fields(row, shape, shown, said):
    data = load(row)
    assert data.shape == shape
    assert shown in (None, whole(Bytes(), data[0]))
    assert learned(Bytes(), data[0]) == said


def test_alpaca_s_input_follows_the_instruction_and_its_system_comes_first():
    data = load({"system": "S", "instruction": "Add", "input": "1 2", "output": "3"})
    assert whole(Bytes(), data[0]) == "<s><|system|>\nS\n<|user|>\nAdd\n\n1 2\n<|assistant|>\n3</s>"


def test_openai_s_text_parts_are_joined():
    parts = [{"type": "text", "text": "H"}, {"type": "text", "text": "i"}]
    assert whole(Bytes(), load({"messages": [{"role": "user", "content": parts}, CHAT[1]]})[0]) == SHOWN


def test_rows_that_fit_two_shapes_are_read_when_one_is_stated():
    row = {"text": "Hi", "messages": CHAT}
    with pytest.raises(DataError, match=r"fit messages and text; say which with data\.shape"):
        load(row)
    assert load(row, shape="text").shape == "text"


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"promt": "a", "completion": "b"}, "fit no shape.*did you mean 'prompt'"),
        ({}, r"the fields \(none\) fit no shape"),
        ({"prompt": "a", "completion": 3}, "field 'completion': text, not a number"),
        ({"prompt": "a", "completion": None}, "field 'completion': text, not null"),
        ({"prompt": ["a"], "completion": "b"}, "field 'prompt': text, not an array"),
        ({"text": True}, "field 'text': text, not true or false"),
        ({"text": {"a": 1}}, "field 'text': text, not an object"),
        ({"instruction": "a", "input": 1, "output": "b"}, "field 'input': text, not a number"),
        ({"instruction": "a", "output": "b", "history": [["c", "d"]]}, "field 'history'"),
        ({"messages": "[]"}, "field 'messages': a list of turns, not text"),
        ({"messages": ["a"]}, r"field 'messages\[0\]': an object with a role"),
        ({"messages": [{"role": "asistant", "content": "a"}]}, r"messages\[0\].role.*did you mean 'assistant'"),
        ({"messages": [{"role": "user"}]}, r"'messages\[0\].content' is missing"),
        ({"messages": [{"content": "a"}]}, r"'messages\[0\].role' is missing"),
        ({"messages": [{"role": "user", "content": None}]}, r"'messages\[0\].content': text, not null"),
        ({"messages": [{"role": "user", "content": [{"type": "image"}]}]}, r"content\[0\]': only parts of type 'text'"),
        ({"messages": [{"role": "assistant", "content": "a", "weight": 0.5}]}, r"messages\[0\].weight': 0 or 1"),
        ({"messages": CHAT, "tools": "f"}, "field 'tools': a list"),
        ({"messages": called("{")}, r"field 'messages\[1\].tool_calls\[0\].function.arguments': an object"),
        ({"messages": called("[1]")}, r"arguments': an object, or one as JSON, not '\[1\]'"),
        ({"conversations": [{"from": "humann", "value": "a"}]}, r"conversations\[0\].from.*did you mean 'human'"),
        ({"conversations": [{"role": "user", "content": "a"}]}, r"'conversations\[0\].from' is missing"),
    ],
)
def test_a_field_that_does_not_fit_is_named_with_its_row(row, said):
    with pytest.raises(DataError, match=rf"^rows\[0\]: .*{said}") as caught:
        load(row)
    assert str(caught.value).count("\n") == 0


@pytest.mark.parametrize("arguments", ['{"city": "Paris"}', {"city": "Paris"}])
def test_arguments_that_openai_keeps_as_text_are_the_object_that_templates_write(arguments):
    turns = understand({"messages": called(arguments)}, "messages")
    assert turns.messages[1]["tool_calls"][0]["function"] == {"name": "weather", "arguments": {"city": "Paris"}}


def test_mixed_shapes_name_the_first_row_that_differs():
    with pytest.raises(DataError, match=r"^rows\[1\]: a text row among prompt_completion rows"):
        load({"prompt": "a", "completion": "b"}, {"text": "c"})


def test_a_stated_shape_asks_for_its_fields():
    with pytest.raises(DataError, match="field 'messages' is missing for the shape messages"):
        load({"mesages": []}, shape="messages")


def test_all_bad_rows_are_reported_at_once_up_to_twenty():
    with pytest.raises(DataError) as caught:
        load({"text": "a"}, {"text": 1}, {"text": None})
    assert [line.split(":")[0] for line in str(caught.value).splitlines()] == ["rows[1]", "rows[2]"]
    with pytest.raises(DataError, match="stopped after 20 problems") as caught:
        load(*[{"text": "a"}] + [{"text": 1}] * 50)
    assert str(caught.value).count("\n") == 20
