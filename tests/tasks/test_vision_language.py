"""Vision and language: what a row becomes on BLIP and LLaVA, the loss, wrong rows, and which part an adapter is in."""

import json
import random

import pytest
import torch

import lorica
from benchmarks import seeing_bases
from benchmarks.tasks import COLOURS, make_base, shown
from lorica.data import DataConfig
from lorica.errors import DataError, ModelError
from lorica.models import sites
from lorica.tasks import require_task
from micro_batches import same_however_cut

CPU = torch.device("cpu")
TASK = require_task("vision_language")
KINDS = seeing_bases.KINDS
PATCHES = 16


@pytest.fixture(scope="session")
def bases(tmp_path_factory):
    return {kind: str(make_base(tmp_path_factory.mktemp(kind), kind)) for kind in KINDS}


@pytest.fixture(scope="session")
def rows(tmp_path_factory):
    draw, folder = random.Random(1), tmp_path_factory.mktemp("images")
    return [shown(draw, folder) for _ in range(5)]


def taught(base, rows, **options):
    from lorica.api.lessons import from_anything

    model = lorica.load_base(base, dtype="float64", task=TASK)
    return model, from_anything(model, rows, DataConfig(train="rows", **options), TASK)


def test_captions_begin_and_end_as_blip_writes_them(bases, rows):
    """[DEC] prompt completion [SEP]; the image is no part of the text and costs its patches."""
    row = {**rows[0], "prompt": "colour", "completion": "red"}
    _, data = taught(bases["blip"], [row, {"image": row["image"], "completion": "red"}])
    assert [each.input_ids.tolist() for each in data.examples] == [[4, 6, 8, 3], [4, 8, 3]]
    assert [each.labels.tolist() for each in data.examples] == [[False, False, True, True], [False, True, True]]
    assert [len(each) for each in data.examples] == [4 + PATCHES + 1, 3 + PATCHES + 1]


def test_a_caption_that_is_cut_is_told(bases, rows):
    image = rows[0]["image"]
    captions = [{"image": image, "completion": text} for text in ("red", "red red red")]
    _, data = taught(bases["blip"], captions, max_length=3, over_length="truncate")
    assert [each.input_ids.tolist() for each in data.examples] == [[4, 8, 3], [4, 8, 8]]
    assert data.truncated == ("rows[1]",)


def test_the_image_s_token_stands_once_for_each_patch_where_the_prompt_says_or_in_front(bases, rows):
    image = rows[0]["image"]
    prompts = ["colour", "colour <image> the", ""]
    _, data = taught(bases["llava"], [{"image": image, "prompt": p, "completion": "red"} for p in prompts])
    places = [5] * PATCHES
    assert [each.input_ids.tolist() for each in data.examples] == [
        [2, *places, 6, 8, 3],
        [2, 6, *places, 11, 8, 3],
        [2, *places, 8, 3],
    ]
    assert all(each.labels.tolist()[-3:] == [False, True, True] for each in data.examples)
    _, all_of = taught(bases["llava"], [{"image": image, "prompt": "colour", "completion": "red"}], loss_on="all")
    assert all_of.examples[0].labels.tolist() == [False] * (PATCHES + 1) + [True] * 3


def test_a_processor_in_the_folder_says_how_many_places_an_image_takes(bases, rows, tmp_path):
    """Half the pixels each way are a quarter of the patches."""
    from transformers import AutoTokenizer, CLIPImageProcessor, LlavaProcessor

    from lorica.models.pixels import images_of
    from lorica.models.seeing import sight_of

    tokenizer = AutoTokenizer.from_pretrained(bases["llava"])
    size = {"height": 8, "width": 8}
    pixels = CLIPImageProcessor(size=size, crop_size=size, do_center_crop=True)
    config = lorica.load_base(bases["llava"]).config
    LlavaProcessor(
        pixels, tokenizer, patch_size=4, vision_feature_select_strategy="default", num_additional_image_tokens=1
    ).save_pretrained(tmp_path)
    config.save_pretrained(tmp_path)
    assert sight_of(config, tokenizer, bases["llava"]).places == 16
    assert sight_of(config, tokenizer, str(tmp_path)).places == 4
    assert images_of(config, str(tmp_path))([rows[0]["image"]]).shape == (1, 3, 8, 8)


@pytest.mark.parametrize("kind", KINDS)
def test_the_loss_is_the_one_that_transformers_makes_of_labels(bases, rows, kind):
    model, data = taught(bases[kind], rows)
    batch = TASK.batch(data.examples, device=CPU)
    total = torch.zeros((), dtype=torch.float64)
    for example in data.examples:
        inputs = TASK.batch([example], device=CPU).inputs
        ids = torch.from_numpy(example.input_ids).long()
        labels = ids.where(torch.from_numpy(example.labels), -100)[None]
        inputs["pixel_values"] = inputs["pixel_values"].double()
        model.config.text_config.label_smoothing = 0.0
        with torch.no_grad():
            total += model(**inputs, labels=labels).loss * example.units
    torch.testing.assert_close(TASK.loss(model, batch), total, rtol=1e-6, atol=0)
    assert TASK.units(batch) == sum(example.units for example in data.examples)
    found = TASK.evaluate(model, data, micro_batch_tokens=50)
    assert found["loss"] == pytest.approx(total.item() / TASK.units(batch), rel=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_a_step_is_the_same_however_it_is_cut_into_micro_batches(bases, rows, kind):
    model, data = taught(bases[kind], rows)
    attached = lorica.attach(model, lorica.LoRA(r=3, alpha=8, dropout=0.3), seed=1)
    with torch.no_grad():
        for parameter in attached.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(2)))
    same_however_cut(attached, TASK, data.examples, rtol=1e-11)


WRONG = {
    "no image": ("blip", {"image": None}, "field 'image': text, not null"),
    "a missing file": ("blip", {"image": "nowhere.png"}, r"nowhere\.png: there is no such image"),
    "an unreadable image": ("blip", {"image": __file__}, "not readable as an image"),
    "no text": ("blip", {"completion": ""}, "field 'completion': empty"),
    "two mistakes": ("llava", {"image": "nowhere.png", "completion": " "}, "no such image; field 'completion': empty"),
    "an image in the answer": ("llava", {"completion": "<image> red"}, "holds <image>, which stands for the image"),
    "two images": ("llava", {"prompt": "<image> <image>"}, "2 times <image>; a row has one image"),
    "no question": ("blip_questions", {"prompt": ""}, "field 'prompt': empty"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_rows_are_errors_that_name_row_and_field(bases, rows, case):
    kind, wrong, told = WRONG[case]
    with pytest.raises(DataError, match=told) as error:
        taught(bases[kind], [rows[0], {**rows[1], **wrong}])
    assert str(error.value).startswith("rows[1]: ")


def test_a_base_without_images_is_an_error_that_names_those_that_see():
    with pytest.raises(ModelError, match=r"LlamaForCausalLM is not read; it reads BlipForConditionalGeneration, "):
        taught("embedded", [{"image": "a.png", "completion": "red"}])


PARTS = {
    "*vision*": ("llava", "vision", 7),
    "*projector*": ("llava", "connector", 2),
    "*language_model*": ("llava", "language", 14),
    "*crossattention*": ("blip", "cross-attention", 8),
    "*vision_model*": ("blip", "vision", 5),
}


@pytest.mark.parametrize("glob", PARTS)
def test_a_glob_adapts_one_part_and_the_plan_says_which(bases, glob):
    kind, part, count = PARTS[glob]
    forecast = lorica.plan(lorica.load_base(bases[kind]), lorica.LoRA(r=2, alpha=3, target_modules=glob))
    plan = forecast.plan
    assert [site.tower for site in plan.sites] == [part] * count
    assert all(site.roles for site in plan.sites)
    assert str(forecast).count(f"  {part}: ") == len(plan.rows)
    assert {each["tower"] for each in forecast.to_dict()["sites"]} == {part}


def test_a_tower_of_images_keeps_its_own_number_of_heads(bases):
    """LLaVA's language model shares two heads of keys; its vision tower has four of its own."""
    found = {site.name: site.shape for site in sites(lorica.load_base(bases["llava"])) if site.kind == "attention"}
    assert {shape for name, shape in found.items() if "vision" in name} == {(4, 12)}
    assert {shape for name, shape in found.items() if "language" in name} == {(2, 12)}


@pytest.mark.parametrize("kind", KINDS)
def test_an_adapter_is_saved_scored_proved_merged_and_asked(bases, rows, kind, tmp_path):
    attached = lorica.attach(lorica.load_base(bases[kind]), lorica.LoRA(r=2, alpha=3), seed=1)
    run = lorica.fit(attached, rows, rows, task="vision_language", output=tmp_path / "run", steps=2, learning_rate=1e-2)
    assert json.loads((tmp_path / "run/adapter/lorica.json").read_text())["task"] == "vision_language"
    found = lorica.evaluate(run.adapter, rows, model=bases[kind]).metrics
    assert found["loss"] == pytest.approx(run.eval["eval_loss"], rel=1e-5)
    assert lorica.verify(run.adapter, model=bases[kind]).ok
    asked = json.dumps({"image": rows[0]["image"], "prompt": "colour"})
    said = lorica.generate(run.adapter, asked, model=bases[kind]).text
    assert set(said.split()) <= {"colour", "place", *COLOURS, "the", "upper", "lower", "half", "[UNK]"}
    assert lorica.evaluate(None, rows, model=attached.merge(), task="vision_language").metrics["loss"] == pytest.approx(
        found["loss"], rel=1e-4
    )
