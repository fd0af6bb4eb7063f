"""Scores against their definitions, and against values that others published or that can be seen at a glance."""

import numpy as np
import pytest

from lorica.tasks import scores
from lorica.tasks.question_answering import exact_match, word_f1
from lorica.tasks.token_classification import entities, entity_f1, first_tokens, of_entities
from oracles import scores as oracle


@pytest.mark.parametrize("classes", [2, 3, 7])
def test_scores_of_classes_are_their_definitions(classes):
    random = np.random.default_rng(classes)
    targets = random.integers(0, classes, 60)
    answers = np.where(random.random(60) < 0.5, targets, random.integers(0, classes, 60))
    found = scores.of_classes(answers, targets, classes)
    assert found["accuracy"] == pytest.approx(np.mean(answers == targets))
    assert found["f1"] == pytest.approx(oracle.macro_f1(answers.tolist(), targets.tolist()))
    assert found["matthews"] == pytest.approx(oracle.matthews(answers, targets, classes))


def test_matthews_of_two_classes_is_the_correlation_of_their_numbers():
    answers, targets = np.array([0, 1, 1, 0, 1, 0, 0, 1]), np.array([0, 1, 0, 0, 1, 1, 0, 1])
    assert scores.of_classes(answers, targets, 2)["matthews"] == pytest.approx(oracle.pearson(answers, targets))
    # scikit-learn's documentation: y_true = [+1, +1, +1, -1], y_pred = [+1, -1, +1, +1]
    known = scores.of_classes(np.array([1, 0, 1, 1]), np.array([1, 1, 1, 0]), 2)
    assert known["matthews"] == pytest.approx(-1 / 3)


def test_one_answer_for_all_scores_nothing_but_its_share():
    found = scores.of_classes(np.zeros(10, int), np.array([0] * 7 + [1] * 3), 2)
    assert found == {"accuracy": 0.7, "f1": pytest.approx(14 / 17 / 2), "matthews": 0.0}
    assert scores.of_numbers(np.ones(5), np.arange(5.0))["pearson"] == 0.0


def test_scores_of_numbers_are_their_definitions():
    random = np.random.default_rng(1)
    targets = random.integers(0, 6, 40) / 2
    answers = targets + random.normal(size=40).round(1)
    found = scores.of_numbers(answers, targets)
    assert found["pearson"] == pytest.approx(oracle.pearson(answers, targets))
    assert found["spearman"] == pytest.approx(oracle.pearson(oracle.rank(answers), oracle.rank(targets)))
    assert found["mean_absolute_error"] == pytest.approx(sum(abs(answers - targets)) / 40)


def test_scores_of_label_sets_count_labels_together_and_apart():
    answers = np.array([[1, 0, 0], [1, 1, 0], [0, 0, 0]], bool)
    targets = np.array([[1, 0, 0], [1, 0, 1], [0, 0, 0]], bool)
    found = scores.of_label_sets(answers, targets)
    assert found == {"accuracy": pytest.approx(2 / 3), "f1": pytest.approx(4 / 6), "f1_macro": pytest.approx(1 / 3)}


def test_entities_are_read_off_tags_as_seqeval_reads_them():
    """The first two are of seqeval's own documentation and tests."""
    wanted = [["O", "O", "O", "B-MISC", "I-MISC", "I-MISC", "O"], ["B-PER", "I-PER", "O"]]
    said = [["O", "O", "B-MISC", "I-MISC", "I-MISC", "I-MISC", "O"], ["B-PER", "I-PER", "O"]]
    assert entity_f1(said, wanted) == 0.5
    assert list(entities(["B-PER", "I-PER", "O", "B-LOC"])) == [("PER", 0, 1), ("LOC", 3, 3)]
    assert list(entities(["I-PER", "I-LOC", "B-LOC", "I-LOC"])) == [("PER", 0, 0), ("LOC", 1, 1), ("LOC", 2, 3)]
    assert list(entities(["B-A", "E-A", "I-A", "S-B", "I-B"])) == [("A", 0, 1), ("A", 2, 2), ("B", 3, 3), ("B", 4, 4)]
    assert entity_f1([["O"]], [["O"]]) == 0.0
    assert of_entities(["O", "B-X"])
    assert not of_entities(["NOUN", "O"])


def test_each_word_is_told_by_its_first_token_whether_blanks_belong_to_tokens_or_not():
    words = ["Anna", "in", "Leningrad"]  # "Anna in Leningrad"
    bert = [(0, 0), (0, 4), (5, 7), (8, 11), (11, 17), (0, 0)]
    bytewise = [(0, 2), (2, 4), (4, 7), (7, 11), (11, 17)]
    assert first_tokens(words, bert) == [1, 2, 3]
    assert first_tokens(words, bytewise) == [0, 2, 3]
    assert first_tokens(words, bert[:3]) == [1, 2]
    with pytest.raises(ValueError, match="'in' has no token of its own"):
        first_tokens(words, [(0, 7), (8, 17)])


def test_answers_are_compared_as_squad_compares_them():
    assert exact_match("The  Eiffel-Tower!", "eiffeltower") == 1.0
    assert exact_match("Eiffel Tower", "the tower") == 0.0
    assert word_f1("in the big red house", "a red house") == pytest.approx(2 * 2 / (4 + 2))
    assert word_f1("red red", "red") == pytest.approx(2 / 3)
    assert (word_f1("the", ""), word_f1("x", "the")) == (1.0, 0.0)
