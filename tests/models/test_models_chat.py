"""A tokenizer's chat template: rendered as transformers renders it, in a sandbox, with marks of the assistant."""

from typing import Any

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from lorica.data import MarksGeneration, from_rows
from lorica.errors import DataError, ModelError
from lorica.models import renderer
from lorica.models.chat import plain_tokenizer, turn_end

MARKED = (
    "{{ bos_token }}{% for m in messages %}[{{ m.role }}] "
    "{% if m.role == 'assistant' %}{% generation %}{{ m.content }}{{ eos_token }}{% endgeneration %}"
    "{% else %}{{ m.content }}{% endif %}\n{% endfor %}{% if add_generation_prompt %}[assistant] {% endif %}"
)
UNMARKED = MARKED.replace("{% generation %}", "").replace("{% endgeneration %}", "")
CHAT = [
    {"role": "user", "content": "one {{ 1 + 1 }}"},
    {"role": "assistant", "content": "two"},
    {"role": "user", "content": "three"},
    {"role": "assistant", "content": "four"},
]


def tokenizer(template: str | None = None) -> Any:
    """Characters as tokens, with a begin and an end token that the tokenizer adds when it is called."""
    words = ["<s>", "</s>", "<unk>", *map(chr, range(32, 127)), "\n"]
    inner = Tokenizer(models.WordLevel({word: at for at, word in enumerate(words)}, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    inner.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 1)])
    made = PreTrainedTokenizerFast(tokenizer_object=inner, bos_token="<s>", eos_token="</s>", unk_token="<unk>")
    made.chat_template = template
    return made


@pytest.mark.parametrize("template", [MARKED, UNMARKED])
@pytest.mark.parametrize("prompt", [True, False])
def test_a_chat_is_rendered_as_transformers_renders_it(template: str, prompt: bool) -> None:
    render = renderer(tokenizer(template))
    assert render is not None
    wanted = tokenizer(template).apply_chat_template(CHAT, tokenize=False, add_generation_prompt=prompt)
    assert render(CHAT, add_generation_prompt=prompt) == wanted
    assert "{{ 1 + 1 }}" in wanted


def chatml(*added: str) -> Any:
    """As Qwen2.5 comes: turns end with a token that is not the end token of the base."""
    made = tokenizer("{% for m in messages %}[{{ m.role }}] {{ m.content }}<|im_end|>\n{% endfor %}")
    made.add_special_tokens({"additional_special_tokens": list(added)})
    return made


def test_what_a_template_ends_a_turn_with_ends_an_answer() -> None:
    inner = chatml("<|im_start|>", "<|im_end|>")
    assert turn_end(inner, renderer(inner)) == inner.convert_tokens_to_ids("<|im_end|>") != inner.eos_token_id
    assert turn_end(tokenizer(MARKED), renderer(tokenizer(MARKED))) == 1
    assert turn_end(chatml(), renderer(chatml())) is None, "letters, which answers have as well"
    assert turn_end(tokenizer(), None) is None
    refusing = tokenizer("{{ raise_exception('no') }}")
    assert turn_end(refusing, renderer(refusing)) is None
    silent = tokenizer("{{ messages[0].content }}")
    assert turn_end(silent, renderer(silent)) is None


def test_marks_say_which_characters_the_assistant_says() -> None:
    render = renderer(tokenizer(MARKED))
    assert isinstance(render, MarksGeneration)
    marked = render.spans(CHAT)
    assert marked is not None
    text, spans = marked
    assert text == render(CHAT)
    assert [text[start:end] for start, end in spans] == ["two</s>", "four</s>"]
    without = renderer(tokenizer(UNMARKED))
    assert without is not None
    assert without.spans(CHAT) is None


def test_without_a_template_there_is_no_renderer() -> None:
    assert renderer(tokenizer()) is None
    assert renderer(None) is None


@pytest.mark.parametrize(
    "escape",
    [
        "{{ messages.__class__.__mro__[1].__subclasses__() }}",
        "{{ ''.__class__.__base__.__subclasses__() }}",
        "{{ cycler.__init__.__globals__.os.popen('true').read() }}",
        "{% set _ = messages.append({'role': 'user', 'content': 'x'}) %}",
        "{{ raise_exception('no') }}",
        "{{ messages[9].role.x }}",
        "{% for %}",
    ],
)
def test_a_template_that_reaches_out_or_fails_is_one_line(escape: str) -> None:
    render = renderer(tokenizer(escape))
    assert render is not None
    with pytest.raises(ModelError) as caught:
        render(CHAT)
    assert "\n" not in str(caught.value)
    assert len(CHAT) == 4


def test_the_data_room_reads_the_tokenizer_as_it_asks() -> None:
    plain = plain_tokenizer(tokenizer())
    assert plain.encode("ab") == [68, 69]
    assert plain.encode("a</s>") == [68, 1]
    assert plain.encode("") == []
    assert plain.encode_batch(["ab", "a"]) == [[68, 69], [68]]
    assert plain.encode_batch([]) == []
    assert plain.decode([0, 68, 1]).replace(" ", "") == "<s>a</s>"
    assert (plain.bos_token_id, plain.eos_token_id, plain.bos_token, plain.eos_token) == (0, 1, "<s>", "</s>")


@pytest.mark.parametrize("template", [MARKED, UNMARKED])
def test_the_data_room_learns_what_the_assistant_says(template: str) -> None:
    made = tokenizer(template)
    plain = plain_tokenizer(made)
    rows = from_rows([{"messages": CHAT}], plain, renderer(made), limit=200)
    learned = plain.decode(rows[0].input_ids[rows[0].labels].tolist())
    assert learned.replace(" ", "") == "two</s>four</s>"
    with pytest.raises(DataError, match="the chat template refuses"):
        from_rows([{"messages": CHAT}], plain, renderer(tokenizer("{% for %}")), limit=200)
