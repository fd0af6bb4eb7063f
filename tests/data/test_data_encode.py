"""Tokens and masks: the completion and its end are learned, and nothing is cut in silence."""

import numpy as np
import pytest
from byte_tokenizer import Batching, Bytes, LeadingBlank, NoBegin, learned, whole
from hypothesis import given
from hypothesis import strategies as st

from lorica.data import DataConfig, from_rows, pack, pad
from lorica.errors import DataError


def rows(*pairs):
    return [{"prompt": prompt, "completion": completion} for prompt, completion in pairs]


def config(**given_):
    return DataConfig(train="rows", **given_)


def test_the_completion_and_the_end_token_are_learned_and_the_prompt_is_not():
    data = from_rows(rows(("2+2=", "4")), Bytes(), limit=32)
    assert whole(Bytes(), data[0]) == "<s>2+2=4</s>"
    assert learned(Bytes(), data[0]) == "4</s>"


def test_loss_on_all_learns_the_prompt_too_but_never_the_first_token():
    data = from_rows(rows(("2+2=", "4")), NoBegin(), config=config(loss_on="all"), limit=32)
    assert learned(NoBegin(), data[0]) == "+2=4</s>"


def test_begin_and_end_tokens_that_a_row_writes_itself_are_not_doubled():
    data = from_rows(rows(("<s>a", "b</s>")), Bytes(), limit=32)
    assert whole(Bytes(), data[0]) == "<s>ab</s>"
    assert learned(Bytes(), data[0]) == "b</s>"


def test_no_begin_token_is_made_up():
    assert whole(NoBegin(), from_rows(rows(("a", "b")), NoBegin(), limit=32)[0]) == "ab</s>"


def test_a_completion_is_not_given_the_blank_that_some_tokenizers_put_before_a_text():
    data = from_rows(rows(("_x", "y"), ("x", "\ny"), ("", "y")), LeadingBlank(), limit=32)
    assert [whole(NoBegin(), example) for example in data.examples] == ["__xy</s>", "_x\ny</s>", "_y</s>"]


def test_the_prompt_s_tokens_are_those_of_the_prompt_alone():
    prompt, completion = "née", "é suite"
    data = from_rows(rows((prompt, completion)), NoBegin(), limit=64)
    assert data[0].input_ids[~data[0].labels].tolist() == NoBegin().encode(prompt)


def test_a_tokenizer_that_takes_many_texts_is_asked_once_for_a_thousand_rows():
    tokenizer = Batching()
    batched = from_rows(rows(*[(f"{i}?", f"{i}!") for i in range(1000)]), tokenizer, limit=32)
    assert tokenizer.calls == 1
    assert (
        batched.fingerprint
        == from_rows(rows(*[(f"{i}?", f"{i}!") for i in range(1000)]), Bytes(), limit=32).fingerprint
    )


@given(st.text(min_size=1, max_size=80), st.integers(2, 20))
def test_windows_of_a_text_cover_each_token_and_make_all_but_the_first_a_label_once(text, limit):
    data = from_rows([{"text": text}], Bytes(), limit=limit)
    tokens = [256, *Bytes().encode(text)]
    tokens += [] if tokens[-1] == 257 else [257]
    assert all(len(example) <= limit and not example.labels[0] for example in data.examples)
    assert [int(i) for example in data.examples for i in example.input_ids[example.labels]] == tokens[1:]
    for before, after in zip(data.examples[:-1], data.examples[1:], strict=True):
        assert before.input_ids[-1] == after.input_ids[0]
    assert (data.read, data.used) == (1, 1)


@given(st.lists(st.tuples(st.text(max_size=12), st.text(max_size=12)), min_size=1), st.integers(2, 16), st.booleans())
def test_every_row_read_is_used_or_dropped_and_none_used_is_without_a_label(pairs, limit, cut):
    over = "truncate" if cut else "drop"
    data = from_rows(rows(*pairs), Bytes(), config=config(over_length=over), limit=limit)
    assert data.read == len(pairs) == len(data) + len(data.dropped)
    assert all(1 < len(example) <= limit and example.labels.any() for example in data.examples)
    assert sorted([example.row for example in data.examples] + [row.row for row in data.dropped]) == list(
        range(data.read)
    )


def test_rows_that_are_too_long_are_dropped_and_named():
    data = from_rows(rows(("a", "b"), ("a", "b" * 20)), Bytes(), limit=8)
    assert [(row.row, row.origin, row.reason) for row in data.dropped] == [(1, "rows[1]", "longer than 8 tokens")]


def test_rows_that_are_cut_are_counted_and_dropped_when_nothing_to_learn_is_left():
    data = from_rows(rows(("a", "b" * 20), ("a" * 20, "b")), Bytes(), config=config(over_length="truncate"), limit=8)
    assert data.truncated == ("rows[0]",)
    assert len(data[0]) == 8
    assert [row.reason for row in data.dropped] == ["no token to learn once cut to the limit"]


def test_rows_that_are_too_long_can_be_an_error_that_names_each():
    with pytest.raises(DataError, match=r"rows\[0\]: 12 tokens, more than 8.*\nrows\[2\]: 13 tokens"):
        from_rows(
            rows(("a", "b" * 9), ("a", "b"), ("a", "b" * 10)), Bytes(), config=config(over_length="error"), limit=8
        )


def test_max_length_bounds_rows_and_may_not_exceed_the_base():
    assert from_rows(rows(("a", "bcd")), Bytes(), config=config(max_length=5), limit=64).used == 0
    with pytest.raises(DataError, match=r"data\.max_length: 65 is above the 64 tokens"):
        from_rows(rows(("a", "b")), Bytes(), config=config(max_length=65), limit=64)


def test_rows_with_nothing_to_learn_are_dropped_with_the_reason():
    assert [d.reason for d in from_rows(rows(("a", ""), ("a", "b")), Bytes(), limit=8).dropped] == ["empty completion"]
    assert [d.reason for d in from_rows([{"text": ""}], Bytes(), limit=8).dropped] == ["empty text"]


def test_windows_have_row_ids_of_their_own_and_later_rows_follow():
    data = from_rows([{"text": "abcdefgh"}, {"text": ""}, {"text": "x"}], Bytes(), limit=4)
    assert [(example.row, example.origin) for example in data.examples] == [
        (0, "rows[0]#1"),
        (1, "rows[0]#2"),
        (2, "rows[0]#3"),
        (4, "rows[2]"),
    ]
    assert [(row.row, row.origin) for row in data.dropped] == [(3, "rows[1]")]


def test_the_fingerprint_sees_ids_masks_and_order():
    pairs = [("a", "bc"), ("d", "e")]
    prints = {
        from_rows(rows(*pairs), Bytes(), limit=8).fingerprint,
        from_rows(rows(*pairs[::-1]), Bytes(), limit=8).fingerprint,
        from_rows(rows(("ab", "c"), ("d", "e")), Bytes(), limit=8).fingerprint,
        from_rows(rows(*pairs), NoBegin(), limit=8).fingerprint,
    }
    assert len(prints) == 4
    assert from_rows(rows(*pairs), Bytes(), limit=8).fingerprint in prints


def test_packing_keeps_documents_apart_and_loses_nothing():
    data = from_rows(rows(("a", "bc"), ("d", "e"), ("fgh", "i")), Bytes(), limit=16)
    packed = pack(data.examples)
    for number, example in enumerate(data.examples):
        own = packed.documents == number
        assert packed.tokens[own].tolist() == example.input_ids.tolist()
        assert packed.labels[own].tolist() == example.labels.tolist()
        assert packed.positions[own].tolist() == list(range(len(example)))
        assert set(packed.rows[own].tolist()) == {example.row}
        assert not packed.labels[np.flatnonzero(own)[0]]


def test_padding_is_masked_by_position_so_an_end_token_that_pads_is_still_learned():
    data = from_rows(rows(("a", "b"), ("a", "bcd")), Bytes(), limit=16)
    padded = pad(data.examples, pad_id=257)
    assert padded.attention_mask.tolist() == [[1, 1, 1, 1, 0, 0], [1] * 6]
    assert padded.labels[0].tolist() == [-100, -100, ord("b"), 257, -100, -100]
    assert padded.input_ids[0, 4:].tolist() == [257, 257]


def test_a_row_in_memory_that_is_no_mapping_is_named():
    with pytest.raises(DataError, match=r"rows\[1\]: a row is a mapping of fields, not str"):
        from_rows([{"text": "a"}, "b"], Bytes(), limit=8)


def test_no_rows_at_all_is_an_error():
    with pytest.raises(DataError, match="there are no rows"):
        from_rows([], Bytes(), limit=8)
