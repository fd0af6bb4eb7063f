"""The report stands alone: valid, self-contained, escaped, and drawn from the numbers it is given."""

import math
import re
from html.parser import HTMLParser

import pytest

from lorica.study import Measure, Report, Sample, html
from lorica.study.curve import curve, running_mean, ticks

HISTORY = [{"step": step, "loss": 5 - step / 10} for step in range(1, 31)] + [{"step": 30, "eval_loss": 2.5}]
NASTY = "<script>alert('x')</script> & \"quotes\""
VOID = {"meta", "br"}


class Nesting(HTMLParser):
    """Fails where a tag is closed that is not the one open."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.add(tag)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.add(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


@pytest.fixture
def page() -> str:
    return html(
        Report(
            title=f"runs/{NASTY}",
            summary=NASTY,
            facts={NASTY: NASTY},
            history=HISTORY,
            table=[Measure(NASTY, 5.0, 2.5)],
            samples=[Sample(NASTY, NASTY, NASTY, NASTY)],
            plan=NASTY,
            settings=NASTY,
            next_steps=[NASTY],
        )
    )


def test_the_page_is_well_formed_and_runs_nothing(page: str) -> None:
    parser = Nesting()
    parser.feed(page)
    assert parser.open == []
    assert {"svg", "table", "pre", "style"} <= parser.seen
    assert not {"script", "link", "img", "iframe"} & parser.seen


def test_the_page_fetches_nothing(page: str) -> None:
    assert not re.search(r"https?:|//|url\(|@import|src=", page)


def test_every_text_is_escaped(page: str) -> None:
    assert "<script" not in page
    assert page.count("&lt;script&gt;") == 13


def test_light_and_dark_have_the_same_colours_by_name(page: str) -> None:
    light, dark = (set(re.findall(r"--(\w+):", part)) for part in page.split("prefers-color-scheme: dark"))
    assert set(re.findall(r"var\(--(\w+)\)", page)) <= light
    assert light == dark


def test_before_and_after_are_shown_with_their_difference(page: str) -> None:
    assert "<td>5.000</td><td>2.500</td><td>\u22122.500</td>" in page


def test_sections_without_content_are_left_out() -> None:
    page = html(Report(title="empty"))
    assert "No step was recorded." in page
    assert "Samples" not in page
    assert "Before and after" not in page


def test_the_curve_has_a_point_a_step_and_a_dot_an_evaluation() -> None:
    drawn = curve(HISTORY)
    points = re.search(r'class="step" points="([^"]*)"', drawn)
    assert points
    places = [tuple(map(float, pair.split(","))) for pair in points[1].split()]
    assert len(places) == 30
    assert [x for x, _ in places] == sorted(x for x, _ in places)
    assert [y for _, y in places] == sorted(y for _, y in places), "a falling loss goes down the page"
    assert drawn.count("<circle") == 1
    assert 'aria-label="training loss from 4.900 to 2.000; held-out loss from 2.500 to 2.500"' in drawn


@pytest.mark.parametrize(
    "history",
    [
        [{"step": 1, "loss": 2.0}],
        [{"step": 1, "eval_loss": 2.0}],
        [{"step": 1, "loss": 2.0}, {"step": 2, "loss": 2.0}],
        [{"step": 1, "loss": math.nan}, {"step": 2, "loss": math.inf}, {"step": 3, "loss": 1.0}],
        [{"loss": 3.0}],
    ],
)
def test_short_flat_and_broken_histories_are_drawn_without_a_number_that_is_none(history: list[dict]) -> None:
    assert not re.search(r"nan|inf\b|None", curve(history))


def test_the_running_mean_of_a_constant_is_that_constant() -> None:
    assert [value for _, value in running_mean([(float(n), 3.0) for n in range(100)])] == pytest.approx([3.0] * 100)


@pytest.mark.parametrize(("low", "high"), [(0, 1), (0.013, 0.017), (1, 300), (2.31, 5.72), (1, 2)])
def test_ticks_are_few_round_and_inside(low: float, high: float) -> None:
    found = ticks(low, high)
    assert 2 <= len(found) <= 7
    assert all(low - 1e-9 <= tick <= high + 1e-9 for tick in found)
