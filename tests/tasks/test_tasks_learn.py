"""Tasks learn: a sample of `make tasks`, which runs them all and longer."""

import pytest

import lorica
from benchmarks.tasks import LESSONS, LORA, learned

SAMPLE = {
    "classification": 100,
    "question_answering": 160,
    "vision_language_blip": 100,
    "vision_language_llava": 100,
}
"""Steps of each."""


@pytest.mark.parametrize("name", SAMPLE)
def test_lora_beats_the_majority_answer_and_the_head_alone(name, tmp_path):
    lesson, steps = LESSONS[name], SAMPLE[name]
    head = learned(lesson, lorica.METHODS["head"](), tmp_path / "head", steps=steps)
    lora = learned(lesson, LORA, tmp_path / "lora", steps=steps)
    assert lora[lesson.metric] > head[lesson.metric] + 0.1
    assert lora[lesson.metric] > lora["majority"] + 0.3
