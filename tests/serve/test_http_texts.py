"""Tokens to text: what is told is exactly what was written, up to a stop string, however tokens and strings are cut."""

import random
from collections.abc import Sequence
from dataclasses import replace

import pytest
from fake_engine import END, ByteTokenizer
from http_app import texts
from tokenizers import Tokenizer, decoders, models, normalizers
from transformers import PreTrainedTokenizerFast

from lorica.api.answers import Speaker
from lorica.models import load_base, load_tokenizer, renderer
from lorica.models.chat import plain_tokenizer
from lorica.models.generate import own_stop_ids
from lorica.serve.engine import Wrote
from lorica.serve.http.errors import ApiError
from lorica.serve.http.schemas import Message
from lorica.serve.http.texts import Texts
from lorica.serve.http.unfolding import Folded, Unfolding

WORDS = ("naïve ", "日本語", "🙂🙃", "stop", "\n\n", "  two", "e\u0301", "x", "\t", "ß\n", "### ")


def told(unfolding: Unfolding, tokens: Sequence[int]) -> tuple[str, list[int]]:
    """The text of all pieces, and the tokens that were told with them."""
    pieces = [unfolding.add(Wrote(token)) for token in tokens]
    pieces.append(unfolding.end())
    return "".join(piece.text for piece in pieces), [wrote.token for piece in pieces for wrote in piece.tokens]


def before(text: str, stops: Sequence[str]) -> str:
    places = [text.find(stop) for stop in stops if stop in text]
    return text[: min(places)] if places else text


@pytest.fixture(scope="module")
def embedded():
    return plain_tokenizer(load_tokenizer("embedded"))


def test_all_that_is_told_is_the_text(embedded) -> None:
    drawn = random.Random(0)
    for _ in range(100):
        text = "".join(drawn.choice(WORDS) for _ in range(drawn.randrange(40)))
        for tokenizer in (embedded, ByteTokenizer()):
            tokens = tokenizer.encode(text)
            assert told(Unfolding(tokenizer.decode), tokens) == (tokenizer.decode(tokens), tokens)


def test_nothing_from_a_stop_string_on_is_told(embedded) -> None:
    drawn = random.Random(1)
    stopped = 0
    for _ in range(200):
        text = "".join(drawn.choice(WORDS) for _ in range(drawn.randrange(20)))
        stops = tuple(drawn.choice(("stop", "\n\n", "本", "🙃", "pxx", "### ", " t", "x\t")) for _ in range(2))
        for tokenizer in (embedded, ByteTokenizer()):
            unfolding = Unfolding(tokenizer.decode, stops)
            said, tokens = told(unfolding, tokenizer.encode(text))
            wanted = before(tokenizer.decode(tokenizer.encode(text)), stops)
            assert said == unfolding.text == wanted
            assert wanted.startswith(tokenizer.decode(tokens)), "a token that a stop string cuts is not told of"
            stopped += unfolding.stopped
    assert stopped > 100


def test_text_that_may_begin_a_stop_string_waits_and_no_other() -> None:
    unfolding = Unfolding(ByteTokenizer().decode, ("abab!",))
    pieces = [unfolding.add(Wrote(token)).text for token in b"xaababac"]
    assert pieces == ["x", "", "a", "", "", "", "ab", "abac"[2:]] or "".join(pieces) == "xaababac"
    assert unfolding.end().text == ""


def test_what_is_told_whole_is_what_is_told_in_pieces(embedded) -> None:
    drawn = random.Random(2)
    for _ in range(50):
        text = "".join(drawn.choice(WORDS) for _ in range(drawn.randrange(40)))
        tokens = [*embedded.encode(text)[: drawn.randrange(1, 40)], 0]
        pieces = told(Unfolding(embedded.decode, ends={0}), tokens)
        assert told(Folded(embedded.decode, ends={0}), tokens) == pieces


def test_half_a_character_is_not_told() -> None:
    unfolding = Unfolding(ByteTokenizer().decode)
    first, *others = "é🙂".encode()
    assert not unfolding.add(Wrote(first))
    assert [unfolding.add(Wrote(token)).text for token in others] == ["é", "", "", "", "🙂"]
    assert not unfolding.add(Wrote(first))
    assert unfolding.end().text == "\ufffd", "an answer may end inside one"


def test_the_end_token_has_no_text_and_is_told_of_nowhere() -> None:
    unfolding = Unfolding(ByteTokenizer().decode, ends={END})
    assert told(unfolding, [*b"ab", END]) == ("ab", [*b"ab"])


def test_a_long_answer_is_decoded_in_windows() -> None:
    lengths = []

    def decode(tokens: Sequence[int]) -> str:
        lengths.append(len(tokens))
        return ByteTokenizer().decode(tokens)

    text = "naïve 日本語 " * 100
    assert told(Unfolding(decode), list(text.encode()))[0] == text
    assert max(lengths) < 50


def test_prompts_are_checked_before_anything_is_asked() -> None:
    small = texts(context=8)
    assert small.prompt("12345678") == tuple(b"12345678")
    assert small.prompt((1, 256)) == (1, 256)
    for prompt, code in (
        ("", "invalid_request"),
        ("123456789", "context_length_exceeded"),
        (tuple(range(9)), "context_length_exceeded"),
        ((257,), "invalid_request"),
        ((-1,), "invalid_request"),
    ):
        with pytest.raises(ApiError) as refused:
            small.prompt(prompt)
        assert (refused.value.status, refused.value.code) == (400, code)


def test_a_text_that_cannot_fit_is_not_even_tokenised() -> None:
    small = texts(context=8)
    small.tokenizer.encode = lambda text: pytest.fail("it was read")  # type: ignore[method-assign]
    with pytest.raises(ApiError, match="9 characters"):
        small.prompt("x" * 9)


def test_a_chat_goes_through_the_template_or_is_one_prompt() -> None:
    here = texts()
    turn, other = Message(role="user", content="hi"), Message(role="developer", content="be brief")
    assert bytes(here.conversation([other, turn], plain=False)) == b"<system>be brief<user>hi<a>"
    assert bytes(here.conversation([turn], plain=True)) == b"hi"
    with pytest.raises(ApiError, match="taught prompts and completions"):
        here.conversation([other, turn], plain=True)


def test_a_base_without_a_template_reads_one_message_as_it_is() -> None:
    turn, other = Message(role="user", content="hi"), Message(role="developer", content="be brief")
    bare = replace(texts(), begins=True)
    assert bare.reads_as_it_is([turn])
    assert not bare.reads_as_it_is([other, turn])
    assert not texts().reads_as_it_is([turn])


def test_an_answer_ends_where_the_template_ends_a_turn() -> None:
    """With a token that is not the base's own end, as Qwen2.5's <|im_end|>; served and in `lorica chat` alike."""
    model = load_base("embedded")
    own, inner = frozenset(own_stop_ids(model)), model.tokenizer
    inner.chat_template = "{% for m in messages %}{{ m.role }}: {{ m.content }}<|im_end|>\n{% endfor %}"
    inner.add_special_tokens({"additional_special_tokens": ["<|im_end|>"]})
    ends = own | {inner.convert_tokens_to_ids("<|im_end|>")}
    assert len(ends) == len(own) + 1
    assert Texts.of(model).stop_ids == ends
    assert Speaker(model, plain_tokenizer(inner), renderer(inner), begins=False).ends == ends
    assert Speaker(model, plain_tokenizer(inner), None, begins=True).ends == own, "rows that were no chats"


def sentencepiece() -> PreTrainedTokenizerFast:
    """As Llama 2's: a blank is put before every text, and taken off what is decoded."""
    words = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", *"dehlorwx", "▁w", "▁wo"]
    inner = Tokenizer(
        models.BPE(
            vocab={word: at for at, word in enumerate(words)},
            merges=[("▁", "w"), ("▁w", "o")],
            byte_fallback=True,
            unk_token="<unk>",
        )
    )
    inner.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    blank = decoders.Replace("▁", " ")
    inner.decoder = decoders.Sequence([blank, decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    return PreTrainedTokenizerFast(tokenizer_object=inner, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def test_what_continues_a_text_keeps_its_first_blank() -> None:
    tokenizer = plain_tokenizer(sentencepiece())
    base = replace(texts(), tokenizer=tokenizer, stop_ids=frozenset())
    whole = tokenizer.encode("hello world\n  x")
    for cut in range(1, len(whole)):
        prompt, answer = whole[:cut], whole[cut:]
        rest = tokenizer.decode(whole)[len(tokenizer.decode(prompt)) :]
        for unfolding in (base.unfolding((), continues=True), base.folded(continues=True)):
            assert told(unfolding, answer) == (rest, answer)
        assert "".join(map(base.word, answer)) == rest
    assert told(base.unfolding(()), tokenizer.encode("hello"))[0] == "hello", "the turn of a chat begins anew"
