"""Chats: every turn of the assistant is learned with its end, whatever the template, or the row is refused."""

import pytest
from byte_tokenizer import Bytes, NoBegin, learned, whole

from lorica.data import DEFAULT_TEMPLATE, DataConfig, JinjaRenderer, from_rows
from lorica.errors import DataError

TURNS = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "Yo"},
    {"role": "user", "content": "Bye"},
    {"role": "assistant", "content": "Ciao"},
]
IM = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
PROMPT = "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
MARKED = (
    "{% for m in messages %}[{{ m.role }}] {% if m.role == 'assistant' %}"
    "{% generation %}{{ m.content }}<|end|>{% endgeneration %}{% else %}{{ m.content }}<|end|>{% endif %}\n{% endfor %}"
)
MARKED_SHORT = MARKED.replace("<|end|>{% endgeneration %}", "{% endgeneration %}<|end|>")
SAYS = "{{ m.role }}: {{ m.content }}\n"
BARE = "{% for m in messages %}" + SAYS + "{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}"
THINKS = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.role == 'assistant' and loop.last %}<think>\n\n</think>\n\n{% endif %}"
    "{{ m.content }}<|im_end|>\n{% endfor %}" + PROMPT
)
COUNTS = "{{ messages | length }} turns\n" + IM + PROMPT


class Plain:
    """A renderer that marks nothing, as a tokenizer's own template mostly does."""

    def __init__(self, template: str) -> None:
        self.inner = JinjaRenderer(template)

    def __call__(self, messages, *, add_generation_prompt=False, tools=None):
        return self.inner(messages, add_generation_prompt=add_generation_prompt, tools=tools)


def chat(turns=TURNS, renderer=None, tokenizer=None, **config):
    rows = [{"messages": turns}]
    config = DataConfig(train="rows", **config)
    return from_rows(rows, tokenizer or Bytes(), renderer, config=config, limit=1000)


def test_the_default_template_ends_each_of_the_assistant_s_turns_with_the_end_token():
    data = chat()
    assert whole(Bytes(), data[0]) == (
        "<s><|system|>\nBe brief.\n<|user|>\nHi\n<|assistant|>\nYo</s>\n<|user|>\nBye\n<|assistant|>\nCiao</s>"
    )
    assert learned(Bytes(), data[0]) == "Yo</s>Ciao</s>"


def test_the_default_template_prompts_with_what_training_shows_before_an_answer():
    prompt = JinjaRenderer(DEFAULT_TEMPLATE, eos_token="</s>")(TURNS[:4], add_generation_prompt=True)
    assert whole(Bytes(), chat()[0]).removeprefix("<s>").startswith(prompt)
    assert prompt.endswith("Bye\n<|assistant|>\n")


class Mute(Bytes):
    """Its special tokens have no text."""

    def encode(self, text):
        return list(text.encode())


def test_an_end_token_without_a_text_is_learned_all_the_same():
    data = chat(tokenizer=Mute())
    assert learned(Mute(), data[0]) == "Yo</s>Ciao</s>"


@pytest.mark.parametrize(
    ("template", "said"),
    [
        (IM + PROMPT, "Yo<|im_end|>Ciao<|im_end|>"),
        (MARKED, "Yo<|end|>Ciao<|end|>"),
        (MARKED_SHORT, "Yo<|end|>Ciao<|end|>"),
        (BARE, "Yo</s>Ciao</s>"),
        (THINKS, "Yo<|im_end|><think>\n\n</think>\n\nCiao<|im_end|>"),
        ("{{ bos_token }}" + IM + PROMPT, "Yo<|im_end|>Ciao<|im_end|>"),
    ],
    ids=["end mark", "marked", "marked without its end", "no end mark", "thinks before the last turn", "begins"],
)
def test_what_the_assistant_says_and_its_end_are_learned(template, said):
    for renderer in (JinjaRenderer(template), Plain(template)):
        if "generation %}" in template and isinstance(renderer, Plain):
            continue
        data = chat(renderer=renderer)
        assert learned(Bytes(), data[0]) == said
        assert whole(Bytes(), data[0]).count("<s>") == 0


def test_the_tokens_of_the_first_prompt_are_those_that_generation_gives():
    renderer = Plain(IM + PROMPT)
    data = chat(TURNS[:3], renderer, NoBegin())
    prompt = renderer(TURNS[:2], add_generation_prompt=True)
    assert data[0].input_ids[~data[0].labels].tolist() == NoBegin().encode(prompt)


def test_a_template_that_rewrites_what_came_before_is_refused_with_a_remedy():
    with pytest.raises(
        DataError, match=r"rows\[0\]: messages\[2\]: the chat template changes earlier turns; .*generation"
    ):
        chat(renderer=Plain(COUNTS))


def test_a_template_that_hides_what_was_said_in_earlier_turns_is_refused():
    turns = [*TURNS[:2], {"role": "assistant", "content": "<think>hm</think>Yo"}, *TURNS[3:]]
    hides = THINKS.replace("{{ m.content }}", "{{ m.content if loop.last else m.content.split('</think>')[-1] }}")
    with pytest.raises(DataError, match=r"messages\[2\]: the chat template writes this turn differently later"):
        chat(turns, Plain(hides))


def test_a_template_that_refuses_a_row_is_quoted_with_the_row():
    refuses = "{% if messages[0].role == 'system' %}{{ raise_exception('no system turn') }}{% endif %}" + IM
    with pytest.raises(DataError, match=r"rows\[0\]: the chat template refuses the row: no system turn"):
        chat(renderer=JinjaRenderer(refuses))


def test_marks_that_miss_a_turn_are_refused():
    misses = MARKED.replace("m.role == 'assistant'", "m.role == 'assistant' and loop.last")
    with pytest.raises(DataError, match="marks 1 of the assistant's 2 turns"):
        chat(renderer=JinjaRenderer(misses))


def test_a_stated_template_takes_the_place_of_the_tokenizer_s(tmp_path):
    stated = tmp_path / "mine.jinja"
    stated.write_text(MARKED)
    for template in (MARKED, str(stated)):
        assert learned(Bytes(), chat(renderer=Plain(BARE), template=template)[0]) == "Yo<|end|>Ciao<|end|>"


@pytest.mark.parametrize(
    ("template", "said"),
    [
        ("chatml", "neither Jinja text nor a path"),
        ("missing.jinja", "missing.jinja cannot be read"),
        ("{% for %}", "chat template"),
        ("{{ " + "a" * 70_000 + " }}", "largest allowed"),
        ("{% for i in range(10**9) %}{{ i }}{% endfor %}", "refuses the row"),
        ("{{ messages.__class__.__mro__[1].__subclasses__() }}", "refuses the row"),
        ("{{ messages.append(1) }}", "refuses the row"),
    ],
)
def test_templates_that_are_broken_or_break_out_are_refused_in_one_line(template, said):
    with pytest.raises(DataError, match=said) as caught:
        chat(template=template)
    assert str(caught.value).count("\n") == 0


def test_turns_of_weight_zero_and_empty_turns_are_shown_and_not_learned():
    turns = [dict(turn) for turn in TURNS]
    turns[2]["weight"] = 0
    assert learned(Bytes(), chat(turns)[0]) == "Ciao</s>"
    turns[4]["content"] = ""
    assert [row.reason for row in chat(turns).dropped] == ["no turn of the assistant to learn"]


def test_what_follows_the_last_answer_is_left_out_and_a_chat_without_one_is_dropped():
    assert whole(Bytes(), chat(TURNS[:4])[0]).endswith("Yo</s>")
    assert chat(TURNS[:2]).dropped[0].reason == "no turn of the assistant to learn"


def test_loss_on_all_learns_every_turn():
    said = learned(Bytes(), chat(renderer=Plain(IM), loss_on="all")[0])
    assert said.startswith("|im_start|>system\nBe brief.")
    assert said.endswith("Ciao<|im_end|>")


def test_tool_calls_without_content_are_learned_as_the_template_writes_them():
    calls = IM.replace("{{ m.content }}", "{{ m.content }}{{ m.tool_calls | tojson if m.tool_calls else '' }}") + PROMPT
    turns = [TURNS[1], {"role": "assistant", "content": None, "tool_calls": [{"name": "f"}]}]
    assert learned(Bytes(), chat(turns, Plain(calls))[0]) == '[{"name": "f"}]<|im_end|>'


@pytest.mark.parametrize("loss_on", ["completion", "all"])
def test_a_template_that_leaves_tools_out_teaches_nothing_in_their_place(loss_on):
    """The call would be an empty turn, learned as an answer."""
    called = {"role": "assistant", "content": None, "tool_calls": [{"type": "function", "function": {"name": "sky"}}]}
    for asked in (TURNS[1], {"role": "user", "content": "Is the sky blue?"}):  # its name is a word of the chat
        with pytest.raises(DataError, match=r"messages\[1\]: the chat template does not write 'sky'"):
            chat([asked, called], loss_on=loss_on)
    listed = {"messages": TURNS, "tools": [{"type": "function", "function": {"name": "sky", "parameters": {}}}]}
    with pytest.raises(DataError, match="tools: the chat template does not write 'sky'"):
        from_rows([listed], Bytes(), None, config=DataConfig(train="rows", loss_on=loss_on), limit=1000)


@pytest.mark.parametrize("template", [MARKED, DEFAULT_TEMPLATE], ids=["marked", "default"])
def test_marked_spans_are_those_transformers_finds(template):
    from transformers.utils.chat_template_utils import render_jinja_template

    texts, spans = render_jinja_template(
        [TURNS], chat_template=template, return_assistant_tokens_mask=True, eos_token="$"
    )
    ours = JinjaRenderer(template, eos_token="$").spans(TURNS)
    assert ours == (texts[0], tuple(map(tuple, spans[0])))


def test_a_row_cannot_forge_the_marks():
    with pytest.raises(DataError, match=r"U\+E0F0"):
        chat([{"role": "user", "content": "\ue0f0\ue0f1learn me"}, TURNS[2]])
