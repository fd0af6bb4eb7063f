"""A template that asks for the date: one moment for all rows of a run, and for the run that goes on with it."""

import shutil
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

import lorica
from campaign import tiny_base
from lorica.api.lessons import from_anything
from lorica.data import JinjaRenderer, dated

# Microseconds: without one moment for all, no two rows of a run have the same date.
CLOCK = (
    "{{ strftime_now('%f') }}\n{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)
LLAMA = """{%- if not date_string is defined %}{%- if strftime_now is defined %}
{%- set date_string = strftime_now("%d %b %Y") %}{%- endif %}{%- endif %}{{- "Today Date: " + date_string }}"""
MAY = datetime(2024, 5, 7, 8, 9, 10, 123456)


def chats(count: int = 6) -> list[dict[str, Any]]:
    said = [("user", "one?"), ("assistant", "two")]
    return [{"messages": [{"role": role, "content": text * (n + 1)} for role, text in said]} for n in range(count)]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dated") / "base"
    tiny_base.write(folder)
    (folder / "chat_template.jinja").write_text(CLOCK)
    return folder


def test_a_template_is_told_the_moment_in_the_form_that_it_asks_for() -> None:
    assert JinjaRenderer(dated(LLAMA, MAY))([]) == "Today Date: 07 May 2024"
    assert JinjaRenderer(dated("{{ strftime_now( '%Y' ) ~ strftime_now('/%m') }}", MAY))([]) == "2024/05"
    computed = "{{ strftime_now('%' ~ 'd') }}"
    assert dated(computed, MAY) == computed, "the clock's"
    plain = "{{ messages[0].content }} {{ 'strftime_now' }}"
    assert dated(plain, MAY) == plain


@pytest.mark.parametrize("stated", [None, CLOCK, "file"])
def test_all_rows_have_one_date_and_without_a_run_today_s(place: Path, tmp_path: Path, stated: str | None) -> None:
    model = lorica.load_base(str(place))
    (tmp_path / "clock.jinja").write_text(CLOCK)
    template = str(tmp_path / "clock.jinja") if stated == "file" else stated
    config = lorica.DataConfig(train="rows", template=template)

    def dates(**options: Any) -> set[str]:
        rows = from_anything(model, chats(), config, **options)
        return {model.tokenizer.decode(row.input_ids).partition("\n")[0] for row in rows.examples}

    assert dates(began=MAY) == {"123456"}
    (today,) = dates()
    assert today != "123456"


@pytest.mark.parametrize("stated", [None, CLOCK])
def test_a_run_is_resumed_on_another_day(place: Path, tmp_path: Path, stated: str | None) -> None:
    settings = {"steps": 4, "rows_per_step": 3, "learning_rate": 1e-2, "checkpoint_every": 2, "template": stated}

    def fit(folder: str, **options: Any) -> lorica.Run:
        attached = lorica.attach(lorica.load_base(str(place)), lorica.LoRA(r=2, alpha=6))
        return lorica.fit(attached, chats(), chats(2), output=tmp_path / folder, **settings, **options)

    fit("whole")
    shutil.copytree(tmp_path / "whole", tmp_path / "cut")
    shutil.rmtree(tmp_path / "cut/checkpoints/step-00000004")
    assert fit("cut", finish=True).status == "cut short"
    assert fit("cut", resume=True).steps == 4
    whole, cut = (load_file(tmp_path / name / "adapter/adapter_model.safetensors") for name in ("whole", "cut"))
    assert all(whole[name].equal(cut[name]) for name in whole)


def test_a_recipe_s_run_is_too(place: Path, tmp_path: Path) -> None:
    import json

    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in chats()))
    recipe = lorica.Recipe(
        model=str(place),
        method={"name": "lora", "r": 2, "alpha": 6},
        data=str(tmp_path / "train.jsonl"),
        train={"steps": 4, "rows_per_step": 3, "checkpoint_every": 2},
        output=str(tmp_path / "run"),
    )
    lorica.train(recipe)
    shutil.rmtree(tmp_path / "run/checkpoints/step-00000004")
    assert lorica.train(recipe, resume=True).steps == 4
