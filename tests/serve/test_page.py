"""The page at /, in a real browser: what is typed once is answered by two adapters side by side, and by their blend."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import page_browser
import pytest
from page_browser import ask, card, expect, needs_chromium, opened, text_of, visited
from scripted_server import BASE, KEY, STATIC, Script, ScriptedServer, adapter, scripted

pytestmark = needs_chromium


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with opened() as browser:
        yield browser


@pytest.fixture
def script() -> Script:
    return Script()


@pytest.fixture
def server(script: Script) -> Iterator[ScriptedServer]:
    with scripted(script) as running:
        yield running
        script.gate.set()


@pytest.fixture
def page(browser: Any, server: ScriptedServer, script: Script) -> Iterator[Any]:
    """A page before the key is typed.  Whatever a test does: nothing leaves the origin, nothing is complained of, and
    nothing fails but what was stopped."""
    with visited(browser, server.url) as (page, seen):
        yield page
    assert seen.outside == []
    assert seen.complaints == []
    assert seen.failed == [] or script.gone or script.key != KEY


def enter(page: Any, key: str = KEY) -> None:
    page_browser.enter(page, key)


def test_two_answers_stream_side_by_side(page: Any, script: Script) -> None:
    script.gate.clear()
    enter(page)
    page.get_by_label("First answer").select_option("sql")
    page.get_by_label("Second answer").select_option("json")
    ask(page)
    for tone, name in (("first", "sql"), ("second", "json")):
        expect(text_of(page, tone)).to_have_text(f"[{name}] 0 1")
        expect(text_of(page, tone)).to_have_attribute("aria-busy", "true")
    boxes = [card(page, tone).bounding_box() for tone in ("first", "second")]
    assert boxes[0]["y"] == boxes[1]["y"]
    assert boxes[0]["x"] + boxes[0]["width"] <= boxes[1]["x"]
    script.gate.set()
    for tone, name in (("first", "sql"), ("second", "json")):
        expect(text_of(page, tone)).to_have_text(f"[{name}] 0 1 2 3 4 5 6 7")
        expect(text_of(page, tone)).to_have_attribute("aria-busy", "false")
        expect(card(page, tone).locator(".pace")).to_contain_text("9 tokens")
    expect(page.get_by_role("status")).to_contain_text("sql: 9 tokens")
    expect(page.get_by_role("status")).to_contain_text("json: 9 tokens")


def test_both_are_asked_the_same_and_each_by_its_own_name(page: Any, script: Script) -> None:
    enter(page)
    page.get_by_label("Second answer").select_option(BASE)
    page.get_by_text("Settings").click()
    page.get_by_label("Tokens at most").fill("17")
    page.get_by_label("Temperature").fill("0.5")
    page.get_by_label("Seed").fill("3")
    ask(page, "two\nlines\n")
    expect(text_of(page, "second")).to_contain_text(f"[{BASE}] 0 1 2 3 4 5 6 7")
    paths, bodies = zip(*script.asked, strict=True)
    assert set(paths) == {"/v1/chat/completions"}
    assert {body.pop("model") for body in bodies} == {"sql", BASE}
    same = {"messages": [{"role": "user", "content": "two\nlines\n"}], "max_tokens": 17, "temperature": 0.5, "seed": 3}
    assert all(body == {**same, "stream": True, "stream_options": {"include_usage": True}} for body in bodies)


def test_plain_text_is_put_as_it_is(page: Any, script: Script) -> None:
    enter(page)
    page.get_by_text("Settings").click()
    page.get_by_label("plain text").check()
    ask(page, "hello ")
    expect(text_of(page, "first")).to_contain_text("[sql] 0 1 2 3 4 5 6 7")
    path, body = script.asked[0]
    assert path == "/v1/completions"
    assert body["prompt"] == "hello "
    assert "messages" not in body


def test_the_slider_changes_the_request_and_asks_the_blend_alone(page: Any, script: Script) -> None:
    enter(page)
    page.get_by_label("Blend the two").check()
    slider = page.get_by_role("slider")
    ask(page)
    expect(text_of(page, "blend")).to_have_text("[0.5 sql + 0.5 json] 0 1 2 3 4 5 6 7")
    before = len(script.asked)
    for _ in range(4):
        slider.press("ArrowRight")
    expect(slider).to_have_attribute("aria-valuetext", "70 % sql, 30 % json")
    expect(text_of(page, "blend")).to_have_text("[0.7 sql + 0.3 json] 0 1 2 3 4 5 6 7")
    assert [body["adapters"] for _, body in script.asked[before:]] == [
        [{"name": "sql", "weight": 0.7}, {"name": "json", "weight": 0.3}]
    ]
    assert script.asked[-1][1]["model"] == BASE
    expect(card(page, "blend").get_by_role("heading")).to_have_text("70 % sql + 30 % json")


def test_a_blend_with_the_base_is_less_of_the_adapter(page: Any, script: Script) -> None:
    enter(page)
    page.get_by_label("Second answer").select_option(BASE)
    page.get_by_label("Blend the two").check()
    ask(page)
    expect(text_of(page, "blend")).to_contain_text("[0.5 sql]")


def test_one_answer_alone_has_nothing_to_blend(page: Any, script: Script) -> None:
    enter(page)
    page.get_by_label("Blend the two").check()
    for other in ("none", "sql"):
        page.get_by_label("Second answer").select_option(label=other)
        expect(page.get_by_label("Blend the two")).to_be_disabled()
        expect(page.get_by_role("slider")).to_be_disabled()
        expect(card(page, "blend")).to_have_count(0)
    page.get_by_label("Second answer").select_option(label="none")
    ask(page)
    expect(text_of(page, "first")).to_contain_text("7")
    assert len(script.asked) == 1


def test_a_wrong_key_is_said_to_be_wrong_and_is_not_kept(page: Any) -> None:
    enter(page, "not-the-key")
    expect(page.get_by_role("alert").filter(has_text="does not accept this key")).to_be_visible()
    expect(page.get_by_label("API key")).to_be_focused()
    expect(page.get_by_label("API key")).to_have_attribute("aria-invalid", "true")
    assert page.evaluate("JSON.stringify(sessionStorage)").count("not-the-key") == 0
    enter(page)
    expect(page.get_by_label("Prompt", exact=True)).to_be_focused()


def test_the_key_is_typed_once_and_stays_in_the_tab(page: Any, server: ScriptedServer) -> None:
    enter(page)
    expect(page.get_by_label("Prompt", exact=True)).to_be_visible()
    page.reload()
    expect(page.get_by_label("Prompt", exact=True)).to_be_visible()
    assert KEY not in page.content()
    assert page.evaluate("[localStorage.length, document.cookie]") == [0, ""]
    other = page.context.new_page()
    other.goto(server.url)
    expect(other.get_by_label("API key")).to_be_visible()
    page.get_by_role("button", name="Forget key").click()
    page.reload()
    expect(page.get_by_label("API key")).to_be_visible()


@pytest.mark.parametrize("told", ["by a figure", "by an answer"])
def test_a_key_that_stops_being_right_leads_back_to_the_door(page: Any, script: Script, told: str) -> None:
    enter(page)
    expect(page.get_by_label("Prompt", exact=True)).to_be_visible()
    if told == "by a figure":
        script.key = "another"
    else:
        script.refusal = (401, "the API key is not right")
        ask(page)
    expect(page.get_by_label("API key")).to_be_visible()
    expect(page.locator("#door-error")).to_contain_text("key")


def test_what_the_server_refuses_is_said_in_the_answer_it_refused(page: Any, script: Script) -> None:
    enter(page)
    script.refusal = (429, "the queue is full")
    ask(page)
    for tone in ("first", "second"):
        expect(card(page, tone).get_by_role("alert")).to_have_text("the queue is full")
    script.refusal = None
    ask(page)
    expect(text_of(page, "first")).to_contain_text("7")
    expect(card(page, "first").locator(".error")).to_be_hidden()


def test_an_answer_that_breaks_off_is_not_shown_as_whole(page: Any, script: Script) -> None:
    enter(page)
    script.broken_after = 3
    ask(page)
    expect(card(page, "first").get_by_role("alert")).to_contain_text("broke before the answer was whole")
    expect(text_of(page, "first")).to_have_text("[sql] 0 1")
    expect(text_of(page, "first")).to_have_attribute("aria-busy", "false")


@pytest.mark.parametrize("way", ["Stop", "Escape"])
def test_what_is_stopped_is_stopped_at_the_server_too(page: Any, script: Script, way: str) -> None:
    script.gate.clear()
    enter(page)
    ask(page)
    expect(text_of(page, "first")).to_have_text("[sql] 0 1")
    expect(text_of(page, "second")).to_have_text("[json] 0 1")
    if way == "Stop":
        page.get_by_role("button", name="Stop").click()
    else:
        page.keyboard.press("Escape")
    expect(card(page, "first").locator(".pace")).to_contain_text("3 tokens")
    expect(text_of(page, "first")).to_have_attribute("aria-busy", "false")
    expect(page.get_by_role("button", name="Stop")).to_be_disabled()
    for _ in range(100):
        if len(script.gone) == 2:
            break
        page.wait_for_timeout(20)
    assert sorted(script.gone) == ["json", "sql"]
    expect(text_of(page, "first")).to_have_text("[sql] 0 1")


def test_the_keyboard_alone_does_it_all(page: Any, script: Script) -> None:
    """In the order that the eye goes: key, prompt, first, second, blend, slider, settings, ask, answers."""
    keys = page.keyboard
    expect(page.get_by_label("API key")).to_be_focused()
    keys.type(KEY)
    keys.press("Enter")
    expect(page.get_by_label("Prompt", exact=True)).to_be_focused()
    keys.type("anything")
    keys.press("Tab")
    expect(page.get_by_label("First answer")).to_be_focused()
    keys.type("dates")
    keys.press("Tab")
    expect(page.get_by_label("Second answer")).to_be_focused()
    keys.type("sql")
    keys.press("Tab")
    expect(page.get_by_label("Blend the two")).to_be_focused()
    keys.press("Space")
    keys.press("Tab")
    expect(page.get_by_role("slider")).to_be_focused()
    keys.press("End")
    keys.press("ArrowLeft")
    keys.press("Tab")
    keys.press("Enter")
    expect(page.get_by_label("Tokens at most")).to_be_visible()
    keys.press("Tab")
    expect(page.get_by_label("a message")).to_be_focused()
    for label in ("Tokens at most", "Temperature", "Seed"):
        keys.press("Tab")
        expect(page.get_by_label(label)).to_be_focused()
    keys.press("Tab")
    expect(page.get_by_role("button", name="Ask")).to_be_focused()
    keys.press("Enter")
    expect(text_of(page, "first")).to_contain_text("[dates] 0 1 2 3 4 5 6 7")
    expect(text_of(page, "second")).to_contain_text("[sql] 0 1 2 3 4 5 6 7")
    expect(text_of(page, "blend")).to_contain_text("[0.95 dates + 0.05 sql] 0 1 2 3 4 5 6 7")
    for tone in ("first", "second", "blend"):
        keys.press("Tab")
        expect(card(page, tone)).to_be_focused()
    page.get_by_label("Prompt", exact=True).focus()
    before = len(script.asked)
    keys.press("Control+Enter")
    expect(text_of(page, "second")).to_contain_text("7")
    assert len(script.asked) == before + 3


def test_what_is_focused_is_seen(page: Any) -> None:
    enter(page)
    expect(page.get_by_label("Prompt", exact=True)).to_be_focused()
    for _ in range(7):
        page.keyboard.press("Tab")
        widths = page.evaluate(
            "(() => { let at = document.activeElement, widths = [];"
            " for (; at; at = at.parentElement) widths.push(parseFloat(getComputedStyle(at).outlineWidth)"
            " * (getComputedStyle(at).outlineStyle !== 'none')); return widths; })()"
        )
        assert max(widths) >= 2


def test_the_loaded_adapters_and_memory_are_shown_as_they_change(page: Any, script: Script) -> None:
    enter(page)
    shelf = page.get_by_role("complementary")
    expect(shelf.get_by_role("listitem")).to_have_count(3)
    expect(shelf.get_by_role("listitem").first).to_contain_text("gen 1 · rank 16 · 2.1 MB · device")
    expect(shelf).to_contain_text("12 of 256 blocks")
    expect(shelf).to_contain_text("6.3 MB")
    script.adapters = [adapter("sql", generation=2, in_flight=4), adapter("verse", tier="host")]
    expect(shelf.get_by_role("listitem")).to_have_count(2)
    expect(shelf.get_by_role("listitem").first).to_contain_text("gen 2")
    expect(shelf.get_by_role("listitem").first).to_contain_text("4 in flight")
    expect(page.get_by_label("First answer").locator("option")).to_have_text([f"{BASE} (base)", "sql", "verse"])
    assert page.get_by_label("First answer").input_value() == "sql"


def test_tokens_a_second_follow_what_the_server_writes(page: Any, script: Script) -> None:
    enter(page)
    expect(page.locator("#rate")).to_have_text("0")
    page.wait_for_timeout(100)
    script.written += 5_000
    expect(page.locator("#rate")).to_have_text(re.compile(r"^[12],\d{3}$"))
    expect(page.locator("#spark .line")).to_have_attribute("d", re.compile("^M"))
    expect(page.get_by_role("img", name=re.compile("Tokens a second.*now"))).to_be_visible()


def test_names_and_answers_are_shown_and_never_run(page: Any, script: Script) -> None:
    evil = "<img src=x onerror=alert(1)><script>alert(2)</script>"
    script.adapters = [adapter(evil)]
    script.tokens = lambda body: ["a", evil, "z"]
    enter(page)
    ask(page)
    expect(text_of(page, "first")).to_have_text(f"a{evil}z")
    assert page.locator("main img[src=x]").count() == 0


ROOM = "the room"


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("where", ["the door", ROOM])
def test_every_text_has_a_contrast_of_4_5_to_1(page: Any, scheme: str, where: str) -> None:
    page.emulate_media(color_scheme=scheme)
    if where == ROOM:
        enter(page)
        page.get_by_label("Blend the two").check()
        ask(page)
        expect(text_of(page, "blend")).to_contain_text("7")
    found = page.evaluate(CONTRASTS)
    assert len(found) > (3 if where != ROOM else 20)
    assert [each for each in found if each["contrast"] < 4.5] == []


CONTRASTS = """() => {
  const parts = (colour) => colour.match(/[\\d.]+/g).map(Number);
  const light = ([r, g, b]) => [r, g, b].map((c) => c / 255)
    .map((c) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4))
    .reduce((sum, c, k) => sum + c * [0.2126, 0.7152, 0.0722][k], 0);
  const behind = (element) => {
    for (let at = element; at; at = at.parentElement) {
      const colour = parts(getComputedStyle(at).backgroundColor);
      if (colour.length < 4 || colour[3] === 1) return colour;
    }
    return [255, 255, 255];
  };
  const own = (element) => [...element.childNodes].some((node) => node.nodeType === 3 && node.data.trim());
  return [...document.querySelectorAll("body *")]
    .filter((element) => own(element) && element.checkVisibility() && !element.closest(".unseen, .skip, :disabled"))
    .map((element) => {
      const [a, b] = [parts(getComputedStyle(element).color), behind(element)].map(light).sort((x, y) => y - x);
      return { text: element.textContent.trim().slice(0, 40), contrast: (a + 0.05) / (b + 0.05) };
    });
}"""


@pytest.mark.parametrize(("wanted", "animation"), [("no-preference", "blink"), ("reduce", "none")])
def test_nothing_blinks_where_motion_is_not_wanted(page: Any, script: Script, wanted: str, animation: str) -> None:
    page.emulate_media(reduced_motion=wanted)
    script.gate.clear()
    enter(page)
    ask(page)
    expect(text_of(page, "first")).to_have_text("[sql] 0 1")
    cursor = "element => getComputedStyle(element, '::after').animationName"
    assert text_of(page, "first").evaluate(cursor) == animation


@pytest.mark.parametrize("width", [360, 390, 768, 1280])
def test_nothing_is_cut_off_at_any_width(page: Any, width: int) -> None:
    page.set_viewport_size({"width": width, "height": 800})
    enter(page)
    page.get_by_label("Blend the two").check()
    page.get_by_text("Settings").click()
    ask(page, "a_word_that_is_longer_than_any_line_" * 6)
    expect(text_of(page, "blend")).to_contain_text("7")
    assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_every_control_has_a_name(page: Any) -> None:
    enter(page)
    page.get_by_text("Settings").click()
    for role in ("textbox", "combobox", "checkbox", "slider", "radio", "spinbutton", "button", "meter"):
        controls = page.get_by_role(role)
        named = page.get_by_role(role, name=re.compile(r"\S"))
        assert controls.count() == named.count() > 0, role


def test_the_page_holds_no_script_or_style_of_its_own_and_names_no_other_server() -> None:
    files = [path for path in STATIC.iterdir() if path.is_file()]
    html = (STATIC / "index.html").read_text()
    assert re.findall(r"<script(?![^>]*src=)|<style|\son\w+=|\sstyle=", html) == []
    for path in files:
        urls = re.findall(r"https?://[^\s\"')]+", Path(path).read_text())
        assert set(urls) <= {"http://www.w3.org/2000/svg"}, path.name
        assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\b", path.read_text())
