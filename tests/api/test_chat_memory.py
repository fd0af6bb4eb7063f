"""A chat keeps its earlier turns as far as the context has room, however long an answer may become."""

import pytest

import lorica
from lorica.api.answers import Speaker
from lorica.api.lessons import longest, tokenizer_of
from lorica.data import own_renderer


@pytest.fixture(scope="module")
def speaker() -> Speaker:
    model = lorica.load_base("embedded")
    tokenizer, _ = tokenizer_of(model)
    return Speaker(model, tokenizer, own_renderer(tokenizer), begins=True)


def test_an_answer_as_long_as_the_context_leaves_the_chat_its_memory(speaker: Speaker) -> None:
    speaker.history.clear()
    for said in ("one", "two", "three"):
        speaker.history += [{"role": "user", "content": said}, {"role": "assistant", "content": said}]
    speaker.answer("four", max_tokens=longest(speaker.model))
    assert speaker.forgotten == 0
    assert [turn["content"] for turn in speaker.history if turn["role"] == "user"] == ["one", "two", "three", "four"]


def test_what_has_no_room_is_forgotten_from_the_start_and_told(speaker: Speaker) -> None:
    speaker.history.clear()
    for said in ("first " * 150, "second " * 150, "third"):
        speaker.history += [{"role": "user", "content": said}, {"role": "assistant", "content": "x"}]
    speaker.answer("fourth", max_tokens=longest(speaker.model))
    assert speaker.forgotten > 0
    assert speaker.history[0]["content"] != "first " * 150
    assert speaker.history[-2]["content"] == "fourth"
    assert "third" in [turn["content"] for turn in speaker.history]


def test_an_answer_that_is_interrupted_is_remembered_as_far_as_it_was_told(speaker: Speaker) -> None:
    speaker.history.clear()
    told: list[str] = []

    def until_the_third(text: str) -> None:
        told.append(text)
        if len(told) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        speaker.answer("SELECT", max_tokens=40, on_text=until_the_third)
    assert speaker.history == [
        {"role": "user", "content": "SELECT"},
        {"role": "assistant", "content": "".join(told)},
    ]
