"""Each warning fires on the setting that is known to fail, and on no sane one."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from campaign.tiny_run import base, dataset
from lorica import adapter, api
from lorica.budget import Training, cautions
from lorica.errors import ModelError
from lorica.methods import Full, LoRA, VeRA
from lorica.quickstart.run import write_run
from lorica.recipe import Recipe
from lorica.site import Site
from lorica.train import Quiet, TrainConfig

ROOT = Path(__file__).parents[2]
MLP = {"gate": (3, 1), "up": (3, 1), "down": (1, 3)}


def llama(width: int = 4096) -> tuple[Site, ...]:
    """A block of a Llama, and its embedding as a parameter."""
    shapes = dict.fromkeys("qkvo", (width, width))
    shapes |= {role: (out * width, into * width) for role, (out, into) in MLP.items()}
    found: list[Site] = [Site(name="embed.weight", kind="parameter", roles=("embed",), shape=(500, width))]
    for role, shape in shapes.items():
        found.append(Site(name=f"layers.0.{role}_proj", kind="linear", roles=(role,), shape=shape, layer=0))
        name = f"layers.0.{role}_proj.weight"
        found.append(Site(name=name, kind="parameter", roles=(role,), shape=shape, layer=0))
    return tuple(found)


LION = {"optimizer": "lion", "pace": 0.2}


def warned(method, width=4096, **training) -> list[str]:
    plan = adapter.plan(llama(width), method)
    return [caution.text for caution in cautions(plan, Training(**{"learning_rate": 2e-4, **training}))]


FAILS = {
    "full fine-tuning's rate with LoRA": (LoRA(r=8), {"learning_rate": 2e-5}, "learning_rate 2e-5 is one of full"),
    "the same under Lion": (LoRA(r=8), {"learning_rate": 4e-6, **LION}, "learning_rate 4e-6 under lion is one of full"),
    "LoRA's rate with full fine-tuning": (Full(), {}, "learning_rate 2e-4 is one of LoRA"),
    "LoRA's rate on a narrow base": (Full(), {"learning_rate": 1e-3, "width": 320}, "go down to 2.1e-4 or less"),
    "rank 256 at 2e-4": (LoRA(r=256), {}, "r=256 at learning_rate 2e-4; start at 2.5e-5"),
    "rank 256 in one layer": (LoRA(r=8, rank_pattern={"q_proj": 256}), {}, "r=256 at"),
    "a ratio on the rate of B": (LoRA(r=8), {"lora_plus_ratio": 16.0}, "B learns at 3.2e-3; learning_rate is A's"),
    "the same on a narrow base": (LoRA(r=8), {"lora_plus_ratio": 16.0, "width": 320}, "B learns at 3.2e-3"),
    "a ratio on a B's own rate": (LoRA(r=8), {"learning_rate": 3e-3, "lora_plus_ratio": 4.0}, "B learns at 1.2e-2"),
    "AdamW's rate under Lion": (LoRA(r=8), LION, "learning_rate 2e-4 under lion is one of AdamW; start at 4e-5"),
    "attention alone on many rows": (LoRA(r=8, target_modules="attention"), {"rows": 50_000}, "the MLP is not adapted"),
    "a large step": (LoRA(r=8), {"rows_per_step": 512}, "512 rows an optimiser step; take 32 or fewer"),
}
WORKS = {
    "the defaults": (LoRA(r=8), {"rows": 1_000_000, "rows_per_step": 32}),
    "LoRA on a narrow base": (LoRA(r=16), {"learning_rate": 2.5e-3, "width": 320, "rows_per_step": 32}),
    "GPT-3's rates": (LoRA(r=8, target_modules="minimal"), {"rows_per_step": 128, "rows": 9_000}),
    "full fine-tuning at its rate": (Full(), {"learning_rate": 2e-5, "rows_per_step": 512, "rows": 1_000_000}),
    "full fine-tuning of a narrow base": (Full(), {"width": 320}),
    "rank 256 at a low rate": (LoRA(r=256), {"learning_rate": 2.5e-5}),
    "rank 128": (LoRA(r=128), {}),
    "VeRA at its own rate, whose B of rank 256 is frozen": (VeRA(), {"learning_rate": 4e-3}),
    "a ratio on A's rate": (LoRA(r=8), {"learning_rate": 1e-4, "lora_plus_ratio": 4.0}),
    "RoBERTa's script of LoRA+": (LoRA(r=8), {"learning_rate": 5e-5, "lora_plus_ratio": 80.0, "width": 768}),
    "GPT-2's script of LoRA+": (LoRA(r=8), {"lora_plus_ratio": 10.0, "width": 768}),
    "LoRA+ on a narrow base": (LoRA(r=8), {"learning_rate": 1e-3, "lora_plus_ratio": 4.0, "width": 320}),
    "Lion at its own rate": (LoRA(r=8), {"learning_rate": 4e-5, **LION}),
    "SGD, which compares with nothing": (LoRA(r=256), {"learning_rate": 0.5, "optimizer": "sgd", "pace": None}),
    "attention alone on few rows": (LoRA(r=8, target_modules="attention"), {"rows": 9_999}),
    "attention alone on unknown rows": (LoRA(r=8, target_modules="attention"), {}),
    "the MLP alone on many rows": (LoRA(r=8, target_modules=["up_proj", "down_proj"]), {"rows": 50_000}),
}


@pytest.mark.parametrize("case", FAILS)
def test_it_fires_where_it_must(case):
    method, training, told = FAILS[case]
    (text,) = warned(method, **training)
    assert told in text


@pytest.mark.parametrize("case", WORKS)
def test_it_is_silent_where_settings_are_sane(case):
    method, training = WORKS[case]
    assert warned(method, **training) == []


@pytest.mark.parametrize(
    "site",
    [
        Site(name="layers.0.experts.w", kind="experts", shape=(32, 64, 64), part_of="layers.0.experts", bare=True),
        Site(name="layers.0.conv", kind="conv", shape=(600, 600, 3)),
    ],
    ids=lambda site: site.kind,
)
def test_the_rank_is_that_of_one_product(site):
    warnings = {}
    for r in (8, 256):
        plan = adapter.plan((site,), LoRA(r=r, target_modules=[site.name]), trained=True)
        found = cautions(plan, Training(learning_rate=2e-4))
        warnings[r] = [caution.text.partition(" ")[0] for caution in found]
    assert warnings == {8: [], 256: ["r=256"]}


def test_starts_near_the_weight_learn_at_low_rates():
    """PiSSA's paper has 2e-5."""
    assert warned(LoRA.model_validate({"r": 8, "init": "pissa"}), learning_rate=2e-5) == []


def test_several_are_told_at_once_each_with_reason_and_source():
    plan = adapter.plan(llama(), LoRA(r=256, target_modules="attention"))
    found = cautions(plan, Training(learning_rate=2e-4, rows_per_step=512, rows=20_000))
    assert [caution.text.split(" ")[0] for caution in found] == ["r=256", "the", "512"]
    for caution in found:
        assert caution.reason in str(caution)
        assert f"({caution.source})" in str(caution)
        assert set(caution.to_dict()) == {"text", "reason", "source"}


RECIPE = {"model": "embedded", "method": {"name": "lora", "r": 8}, "data": "rows.jsonl"}


def planned(train, method=None, data="rows.jsonl"):
    return api.plan(Recipe(**{**RECIPE, "data": data, "method": method or RECIPE["method"], "train": train}))


def test_a_plan_of_a_recipe_carries_its_warnings_as_text_and_as_json():
    found = planned({"learning_rate": 2e-5, "rows_per_step": 512})
    assert [entry["text"][:13] for entry in found.to_dict()["warnings"]] == ["learning_rate", "512 rows an o"]
    assert str(found).count("warning: ") == 2
    assert planned({}).warnings == ()


def test_a_ceiling_on_tokens_is_a_step_of_many_rows_when_rows_are_short():
    data = {"train": "rows.jsonl", "max_length": 64}
    assert [w.text for w in planned({"tokens_per_step": 64 * 300}, data=data).warnings] != []
    assert planned({"tokens_per_step": 64 * 30}, data=data).warnings == ()


def test_the_rate_of_another_optimiser_is_understood():
    assert planned({"optimizer": "lion"}).warnings == ()
    assert planned({"optimizer": "lion", "learning_rate": 2e-6}).warnings
    assert planned({"optimizer": "sgd", "learning_rate": 1e-6}).warnings == ()


def test_the_size_of_the_data_is_seen(tmp_path):
    rows = tmp_path / "rows.jsonl"
    rows.write_text(12_000 * (json.dumps({"text": "a b c"}) + "\n"))
    attention = {"name": "lora", "r": 8, "target_modules": "attention"}
    (found,) = planned({}, attention, str(rows)).warnings
    assert "about 12,000 rows" in found.text


def test_a_method_beside_a_model_is_warned_of_what_is_known():
    from lorica.models import shapes_only

    shapes = shapes_only("embedded", None)
    assert api.plan(shapes, LoRA(r=8)).warnings == ()
    assert api.plan(shapes, LoRA(r=8), train=TrainConfig(learning_rate=1e-5)).warnings


def test_fit_says_it_before_it_starts_and_knows_its_rows():
    class Listening(Quiet):
        def on_note(self, note):
            notes.append(note)

    notes = []
    attached = adapter.attach(base(), LoRA(r=2, alpha=6, target_modules="attention"))
    api.fit(attached, dataset(12), steps=1, learning_rate=2e-5, measure=False, reporter=Listening())
    assert [note.split(";")[0] for note in notes] == ["warning: learning_rate 2e-5 is one of full fine-tuning"]


def test_recipes_and_the_quickstart_give_no_warning(tmp_path, monkeypatch):
    monkeypatch.setattr("lorica.quickstart.run.STEPS", 1)  # its questions take longer to write than all plans to make
    recipes = {path.name: Recipe.load(path) for path in sorted((ROOT / "recipes").glob("*.yaml"))}
    recipes["quickstart"] = write_run(tmp_path, (), 0)
    seen = 0
    for name, recipe in recipes.items():
        try:
            found = api.plan(recipe).warnings
        except ModelError as error:
            print(f"{name}: not planned, its base is not here: {error}")
            continue
        seen += 1
        assert found == (), f"{name}: {'; '.join(caution.text for caution in found)}"
    assert seen >= 3


def test_a_quantised_base_is_warned_of_what_it_does_not_bear():
    def told(dtype: str, stored: str, targets: str) -> list[str]:
        sites = tuple(replace(site, stored=stored, dtype=dtype) if site.layer == 0 else site for site in llama())
        plan = adapter.plan(sites, LoRA(r=8, target_modules=targets))
        return [caution.text for caution in cautions(plan, Training(learning_rate=2e-4))]

    assert told("bfloat16", "nf4", "all-linear") == []
    assert told("float16", "", "attention") == []
    (wide,) = told("float16", "nf4", "all-linear")
    assert "set model.dtype: bfloat16" in wide
    (few,) = told("bfloat16", "nf4", "attention")
    assert few.startswith("3 quantised linears are not adapted")
