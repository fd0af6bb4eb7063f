"""The page in front of the server itself: routes, headers and shapes are the real ones, the engine is scripted."""

from collections.abc import Iterator
from typing import Any

import pytest
from http_app import KEY, Made, listening, made
from page_browser import ask, card, enter, expect, needs_chromium, opened, text_of, visited

pytestmark = needs_chromium


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with opened() as browser:
        yield browser


@pytest.fixture
def behind() -> Made:
    return made(adapters=("sql", "json"), plain=("sql", "json"), delay=0.005)


@pytest.fixture
def page(browser: Any, behind: Made) -> Iterator[Any]:
    with listening(behind) as port, visited(browser, f"http://127.0.0.1:{port}") as (page, seen):
        yield page
    assert seen.outside == []
    assert seen.complaints == [], "the policy of the server lets the page do what it does"
    assert seen.failed == []


def test_two_adapters_and_their_blend_answer_a_message_as_they_were_taught(page: Any) -> None:
    enter(page, KEY)
    page.get_by_label("First answer").select_option("sql")
    page.get_by_label("Second answer").select_option("json")
    page.get_by_label("Blend the two").check()
    ask(page, "how deep?\n")
    expect(text_of(page, "first")).to_have_text("sql: how deep?\n")
    expect(text_of(page, "second")).to_have_text("json: how deep?\n")
    expect(text_of(page, "blend")).to_have_text("0.5*sql+0.5*json: how deep?\n")
    expect(card(page, "first").locator(".pace")).to_contain_text("16 tokens")


def test_a_moved_slider_reaches_the_engine(page: Any, behind: Made) -> None:
    enter(page, KEY)
    page.get_by_label("Blend the two").check()
    ask(page)
    expect(text_of(page, "blend")).to_contain_text("how deep")
    page.get_by_role("slider").press("End")
    page.get_by_role("slider").press("PageDown")
    page.get_by_role("slider").press("ArrowLeft")
    expect(page.get_by_role("slider")).not_to_have_attribute("aria-valuetext", "50 % json, 50 % sql")
    expect(card(page, "blend")).to_have_attribute("data-state", "done")
    share = float(page.get_by_role("slider").input_value()) / 100
    weights = sorted([share, round(1 - share, 2)])
    expect(text_of(page, "blend")).to_contain_text(f"{share:g}*")
    assert sorted(dict(behind.engine.asked[-1].choice).values()) == weights


def test_plain_text_goes_to_the_base_as_it_is(page: Any, behind: Made) -> None:
    enter(page, KEY)
    page.get_by_label("Second answer").select_option("tiny")
    page.get_by_text("Settings").click()
    page.get_by_label("plain text").check()
    ask(page, "as it is")
    expect(text_of(page, "second")).to_have_text("base: as it is")
    assert {request.choice for request in behind.engine.asked} == {
        None,
        page.get_by_label("First answer").input_value(),
    }


def test_a_wrong_key_is_said_to_be_wrong(page: Any) -> None:
    enter(page, "no-key-of-this-server")
    expect(page.get_by_role("alert").filter(has_text="does not accept this key")).to_be_visible()


def test_adapters_and_memory_are_those_of_the_server(page: Any) -> None:
    enter(page, KEY)
    shelf = page.get_by_role("complementary")
    expect(shelf.get_by_role("listitem")).to_have_count(2)
    expect(shelf.get_by_role("listitem").first).to_contain_text("gen 1 · rank 8 · 1.0 kB · device")
    expect(shelf).to_contain_text("1 of 8 blocks")
    expect(page.locator("#base-name")).to_have_text("tiny")


def test_what_is_refused_is_said_where_it_was_asked(page: Any, behind: Made) -> None:
    behind.engine.room = 0
    enter(page, KEY)
    ask(page)
    expect(card(page, "first").get_by_role("alert")).to_contain_text("queue is full")
