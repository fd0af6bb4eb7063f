"""The evidence on what is small: parts that share nothing, runs that go on, a page that says what is there."""

import json
from collections import Counter
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import pytest

import lorica
from benchmarks.evidence.__main__ import found_of, ledger_of, write
from benchmarks.evidence.arms import FULL, LORA, WITH_HEAD, WITHOUT_HEAD, Arm
from benchmarks.evidence.docstrings import (
    FEWEST_FILES,
    LEAST,
    MOST_OF_FILE,
    Docstrings,
    Text,
    divided,
    library,
    parted,
)
from benchmarks.evidence.ledger import Ledger
from benchmarks.evidence.page import page
from benchmarks.evidence.protocol import Protocol
from benchmarks.evidence.questions import Questions
from benchmarks.evidence.summary import summary
from benchmarks.evidence.track import Outcome, Part, Track
from benchmarks.machine import machine


class Drawn(Track):
    """Scores that are known: each arm is best at its own rate, more length helps to 2, and a seed adds what it adds."""

    name, metric, unit = "drawn", "accuracy", "epochs"

    def __init__(self) -> None:
        self.arms, self.lengths, self.read = WITH_HEAD, (1, 2, 3), list[tuple[str, str]]()

    def facts(self) -> Mapping[str, Any]:
        return {"base": "none", "digest": "0"}

    def run(self, arm: Arm, *, rate: float, seed: int, length: int, part: Part) -> Outcome:
        self.read.append((part, arm.name))
        best = {"head": 0.3, "bitfit": 0.5, FULL: 0.8}.get(arm.name, 0.79)
        miss = 0.05 * abs(rate / arm.rate - 10**0.5)
        return Outcome(best - miss - 0.1 * (length < 2) + 0.001 * (seed % 7), 10, 1010)


def protocol(track: Track, tmp_path: Any, **changed: Any) -> Protocol:
    return Protocol(track, Ledger.at(tmp_path / "runs.jsonl"), **{"told": lambda line: None, **changed})


def test_the_test_part_is_read_only_when_every_rate_is_chosen(tmp_path):
    track = Drawn()
    found = protocol(track, tmp_path).found()
    parts = [part for part, _ in track.read]
    assert parts.index("test") == len(parts) - 10 * len(track.arms)
    assert set(parts[parts.index("test") :]) == {"test"}
    assert found["length"] == 2
    for arm in track.arms:
        tuning = found["arms"][arm.name]["tuning"]
        assert tuning["best"] == pytest.approx(arm.rate * 10**0.5, rel=0.01)
        assert tuning["inside"]
        assert list(found["arms"][arm.name]["test"]) == list(range(100, 110))


def test_evidence_that_was_stopped_goes_on_and_says_what_it_has(tmp_path):
    class Killed(Drawn):
        def run(self, arm: Arm, **given: Any) -> Outcome:
            if len(self.read) == 90:
                raise KeyboardInterrupt
            return super().run(arm, **given)

    with pytest.raises(KeyboardInterrupt):
        protocol(Killed(), tmp_path).found()
    idle = Drawn()
    partly = protocol(idle, tmp_path, so_far=True).found()
    assert idle.read == []
    assert 0 < len(partly["arms"]) < len(idle.arms)
    going_on = Drawn()
    whole = protocol(going_on, tmp_path).found()
    assert 0 < len(going_on.read) < 90
    (tmp_path / "apart").mkdir()
    at_once = protocol(Drawn(), tmp_path / "apart").found()
    for part in ("test", "tuning"):
        assert {name: arm[part] for name, arm in whole["arms"].items()} == {
            name: arm[part] for name, arm in at_once["arms"].items()
        }
    assert protocol(Drawn(), tmp_path, so_far=True).found() == whole


def test_a_rate_at_which_an_arm_diverges_is_a_rate_that_lost(tmp_path):
    class Brittle(Drawn):
        def run(self, arm: Arm, *, rate: float, **given: Any) -> Outcome:
            if rate > 4 * arm.rate:
                raise lorica.DivergedError("step 3: the loss is not finite")
            return super().run(arm, rate=rate, **given)

    found = protocol(Brittle(), tmp_path).found()
    assert 0.0 in found["arms"]["bitfit"]["tuning"]["validation"].values()
    assert found["arms"]["bitfit"]["tuning"]["inside"]


def test_differences_are_of_the_same_seed_and_an_untrained_base_is_its_own_pair():
    def arm(scores: dict[int, float], trained: int = 1) -> dict[str, Any]:
        return {"test": scores, "trained": trained}

    seeds = range(100, 110)
    full = {seed: 0.8 + 0.01 * (seed % 5) for seed in seeds}
    found = summary(
        {
            "base": arm({100: 0.5}, trained=0),
            LORA: arm({seed: full[seed] - 0.005 for seed in seeds}),
            FULL: arm(full),
        }
    )
    against = found[LORA][f"minus_{FULL}"]
    assert (against["mean"], against["low"], against["high"]) == (-0.005, -0.005, -0.005)
    assert against["equivalent"]
    assert against["p"] == pytest.approx(2 / 1024, abs=1e-5)
    assert against["p_holm"] == pytest.approx(3 * 2 / 1024, abs=1e-5)
    assert found["base"][f"minus_{FULL}"]["mean"] == pytest.approx(0.5 - 0.82)
    assert not found["base"][f"minus_{FULL}"]["equivalent"]
    assert f"minus_{LORA}" not in found[FULL], "the two references are compared once"


def test_no_file_and_no_text_lies_in_two_parts():
    parts = parted(library())
    for of in (lambda text: text.file, lambda text: text.text.casefold()):
        kept = [{of(text) for text in texts} for texts in parts.values()]
        assert sum(map(len, kept)) == len(set.union(*kept))
    labels = [{text.label for text in texts} for texts in parts.values()]
    assert labels[0] == labels[1] == labels[2]
    assert len(labels[0]) >= 5
    assert max(Counter(text.file for texts in parts.values() for text in texts).values()) <= MOST_OF_FILE


def test_labels_with_few_files_or_texts_are_left_out_and_repeated_texts_dropped():
    def package(label: str, files: int, each: int) -> list[Text]:
        return [Text(f"{label} {f} {n}", label, f"{label}/{f}.py") for f in range(files) for n in range(each)]

    repeated = [Text("Close it.", "good", "good/0.py"), Text("close it.", "good", "good/1.py")]
    few = package("fewfiles", FEWEST_FILES - 1, LEAST) + package("fewtexts", 5, LEAST // 5 - 1)
    parts = parted(package("good", 6, 20) + repeated + few)
    assert {text.label for texts in parts.values() for text in texts} == {"good"}
    assert sum(map(len, parts.values())) == 120
    assert all("lose it" not in text.text for texts in parts.values() for text in texts)
    assert {part: len(texts) for part, texts in divided({"a": few[:9], "b": few[:3], "c": few[:3]}).items()} == {
        "train": 9,
        "validation": 3,
        "test": 3,
    }


def test_validation_and_test_questions_are_different_ones():
    track = Questions(validation=20, test=40)
    asked = {part: {question.prompt for question in questions} for part, questions in track.parts.items()}
    assert {part: len(prompts) for part, prompts in asked.items()} == {"validation": 20, "test": 40}
    assert not asked["validation"] & asked["test"]


def test_the_page_has_every_arm_and_says_when_runs_are_missing(tmp_path):
    track = Drawn()
    found = found_of(track, Protocol(track, ledger_of(track, tmp_path), lambda line: None))
    write(tmp_path, track.name, found)
    text = (tmp_path / "docs" / "evidence.md").read_text()
    result = json.loads((tmp_path / "benchmarks" / "results" / "evidence.json").read_text())
    assert page(result) == text
    for arm in track.arms:
        assert f"| {arm.told} | 1.00 % |" in text
    assert "is within 2 points of full fine-tuning (10 pairs)" in text
    assert "Not all runs" not in text
    assert result["tracks"]["drawn"]["machine"]["versions"].keys() == machine()["versions"].keys()
    half = Protocol(track, Ledger.at(tmp_path / "none.jsonl"), so_far=True)
    write(tmp_path, track.name, found_of(track, half))
    assert "No run is done yet" in (tmp_path / "docs" / "evidence.md").read_text()


@pytest.fixture(scope="module")
def questions() -> Questions:
    return Questions(lengths=(1,), validation=2, test=2)


@pytest.mark.parametrize("name", [LORA, FULL])
def test_a_run_leaves_the_base_as_it_was(questions, name: str):
    before = {key: tensor.clone() for key, tensor in questions.model.state_dict().items()}
    outcome = questions.run(questions.arm(name), rate=1e-3, seed=1, length=1, part="validation")
    assert 0 <= outcome.score <= 1
    assert 0 < outcome.trained <= outcome.total
    after = questions.model.state_dict()
    assert after.keys() == before.keys()
    assert all(after[key].equal(before[key]) for key in before)


def test_a_run_that_is_interrupted_has_no_score(questions, monkeypatch):
    def stopped(*given: Any) -> Any:
        return SimpleNamespace(status="interrupted")

    monkeypatch.setattr("benchmarks.evidence.questions.fit", stopped)
    with pytest.raises(KeyboardInterrupt):
        questions.run(questions.arm(LORA), rate=1e-3, seed=1, length=1, part="validation")


@pytest.fixture(scope="module")
def docstrings() -> Docstrings:
    return Docstrings(lengths=(1,), most=24)


@pytest.mark.parametrize("name", ["head", LORA])
def test_minilm_runs_from_a_seed_alone(docstrings, name: str):
    arm = docstrings.arm(name)
    given: dict[str, Any] = {"rate": arm.rate, "length": 1, "part": "validation"}
    first = docstrings.run(arm, seed=3, **given)
    base = docstrings.model.classifier.weight.clone()
    docstrings.run(arm, seed=4, **given)
    assert not docstrings.model.classifier.weight.equal(base), "a seed draws a head of its own"
    assert docstrings.run(arm, seed=3, **given) == first
    assert docstrings.model.classifier.weight.equal(base)
    assert first.total > 22_000_000
    assert first.trained < 0.02 * first.total


def test_the_arms_are_those_that_are_promised():
    assert [arm.name for arm in WITH_HEAD[:5]] == ["head", "bitfit", "lora-r1", "lora-r4", "lora-r8"]
    assert WITHOUT_HEAD[0].method is None
    for arm in (*WITH_HEAD, *WITHOUT_HEAD):
        method: Any = arm.method
        if arm.name.startswith(("lora", "dora")):
            assert method.alpha / method.r == 2
        if arm.name.startswith("adalora"):
            assert method.alpha / method.init_r == 2
