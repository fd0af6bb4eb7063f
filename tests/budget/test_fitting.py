"""The best recipes for a device: what changes no result is turned before what does, and each is as it says."""

import json
import sys
from pathlib import Path

import pytest

import lorica
from lorica import api
from lorica.api import fitting
from lorica.budget.knobs import KNOBS
from lorica.errors import NoRoomError

LLAMA_2_7B = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "hidden_act": "silu",
    "vocab_size": 32000,
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "max_position_embeddings": 4096,
    "tie_word_embeddings": False,
    "dtype": "bfloat16",
}


@pytest.fixture(scope="module")
def seven(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recipe on Llama-2-7B's shapes, of which there are no weights."""
    place = tmp_path_factory.mktemp("seven")
    (place / "config.json").write_text(json.dumps(LLAMA_2_7B))
    recipe = {
        "model": str(place),
        "method": {"name": "lora", "r": 16},
        "data": {"train": "rows.jsonl", "max_length": 512},
    }
    (place / "recipe.yaml").write_text(json.dumps(recipe))
    return place / "recipe.yaml"


def test_the_table_has_what_changes_no_result_first_and_every_source() -> None:
    exact = [knob.exact for knob in KNOBS]
    assert exact == sorted(exact, reverse=True)
    assert [knob.name for knob in KNOBS if not knob.exact] == ["quantised base", "rank", "length"]
    assert all(knob.source and knob.words for knob in KNOBS)


def test_an_8_gb_card_keeps_16_bits_first_and_then_goes_faster_in_fewer(seven: Path) -> None:
    found = api.best_for(lorica.Recipe.load(seven), device="RTX 3060 Ti")
    assert found.asked.forecast.fits is False
    assert len(found.choices) == 3
    assert all(choice.forecast.fits for choice in found.choices)
    assert found.choices[0].given_up == (), "the same results come first"
    assert "model.quantize" not in found.choices[0].settings
    assert found.choices[-1].settings["model.quantize"] == "nf4"
    assert not any({"method.r", "data.max_length"} & set(choice.settings) for choice in found.choices)
    seconds = [choice.seconds for choice in found.choices]
    assert seconds == sorted(seconds, reverse=True), "what gives up quality is faster"


def test_the_words_make_the_recipe_that_was_planned(seven: Path) -> None:
    (best, *_) = api.best_for(lorica.Recipe.load(seven), device="RTX 3090").choices
    words = best.words.split("--set ")
    again = lorica.Recipe.load(seven, [word.strip() for word in words if word])
    assert api.plan(again, device="RTX 3090").memory == best.forecast.memory


def test_a_recipe_that_fits_is_left_as_it_is(seven: Path) -> None:
    (first, *_) = api.best_for(lorica.Recipe.load(seven), device="H200").choices
    assert first.settings == {}
    assert first.words == ""


def test_nothing_fits_in_one_line_with_what_comes_nearest(seven: Path) -> None:
    with pytest.raises(
        NoRoomError, match=r"nothing fits .*nearest is --set .* too much; take a smaller base"
    ) as caught:
        api.best_for(lorica.Recipe.load(seven), memory=1e9)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_status == 1


LAST = {"method.r", "data.max_length"}
TFLOPS = 0.3
"""Which of two settings is quicker hangs on it."""


def test_rank_and_length_are_turned_where_nothing_else_fits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "rows.jsonl").write_text('{"text": "a"}\n')
    monkeypatch.setattr(sys.modules["lorica.budget.machine"], "_tflops", lambda *of: TFLOPS)
    method = {"name": "lora", "r": 64}
    recipe = lorica.Recipe(model="embedded", method=method, data={"train": str(tmp_path / "rows.jsonl")})
    last, without = least_memory(recipe, 400_000_000, 720_000_000)
    best = api.best_for(recipe, memory=last).choices[0]
    assert "method.r" in best.settings
    assert [knob.name for knob in best.knobs][-1] in ("rank", "length")
    assert {"train.gradient_checkpointing", "train.page_state", "model.host_layers"} < best.settings.keys()
    assert not LAST & api.best_for(recipe, memory=without).choices[0].settings.keys()
    monkeypatch.setattr(fitting, "INEXACT", [knob for knob in fitting.INEXACT if not knob.last])
    with pytest.raises(NoRoomError):
        api.best_for(recipe, memory=last)


def least_memory(recipe: lorica.Recipe, too_little: int, enough: int) -> tuple[int, int]:
    """Within 10 MB, from where on neither rank nor length is turned."""
    while enough - too_little > 10_000_000:
        middle = (too_little + enough) // 2
        try:
            turned = LAST & api.best_for(recipe, memory=middle).choices[0].settings.keys()
        except NoRoomError:
            turned = LAST
        too_little, enough = (middle, enough) if turned else (too_little, middle)
    return too_little, enough


def test_it_is_json_too(seven: Path) -> None:
    found = json.loads(json.dumps(api.best_for(lorica.Recipe.load(seven), device="RTX 4090").to_dict()))
    assert found.keys() == {"device", "asked", "choices"}
    assert all(cost["source"] for choice in found["choices"] for cost in choice["costs"])
