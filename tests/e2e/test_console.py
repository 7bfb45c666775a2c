"""The console in a real browser, against the real server."""

import re
import shutil
import time
from collections.abc import Iterator

import httpx
import pytest
from playwright.sync_api import Browser, Locator, Page, expect, sync_playwright

from reasoning_net.demo.questions import Question
from tests.conftest import NUM_LATENTS
from tests.e2e.test_modes import metric

pytestmark = pytest.mark.skipif(not shutil.which("chromium"), reason="needs Chromium (apt-get install chromium)")
ANSWER_MS = 120_000
MODES = ["direct", "latent", "latent+explicit", "explicit", "soft", "auto"]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def page(server: str, browser: Browser) -> Iterator[Page]:
    """The console, opened; at the end nothing came from elsewhere and no script failed."""
    page = browser.new_page()
    problems: list[str] = []
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("request", lambda request: None if request.url.startswith(server) else problems.append(request.url))
    page.goto(server)
    yield page
    page.close()
    assert problems == []


def answer(page: Page, mode: str) -> Locator:
    return page.get_by_role("article", name=f"Answer of mode {mode}", exact=True)


def test_one_click_asks_every_mode_and_shows_where_the_time_went(page: Page) -> None:
    page.get_by_role("button", name="easy").first.click()
    expect(page.locator("article[aria-busy=false]")).to_have_count(len(MODES), timeout=ANSWER_MS)
    assert [article.get_attribute("data-mode") for article in page.locator("article").all()] == MODES
    for mode in MODES:
        expect(answer(page, mode).locator(".outcome")).to_have_text("done")
        expect(answer(page, mode).locator(".text")).to_contain_text(" ")
        expect(answer(page, mode).locator(".figures")).to_contain_text("tokens generated")
    timeline = answer(page, "latent").get_by_role("img").get_attribute("aria-label") or ""
    assert "prefill" in timeline
    assert "done" in timeline
    expect(answer(page, "explicit").locator(".thinking p")).not_to_be_empty()
    expect(answer(page, "latent").locator(".thinking")).to_be_hidden()
    said = answer(page, "latent").locator(".said")
    expect(said.get_by_role("listitem")).to_have_count(NUM_LATENTS)
    expect(said.locator("li").first).to_have_attribute("title", re.compile(r"^latent 1: \d+, \d+ %$"))
    expect(said.locator(".note")).to_contain_text("the answer", ignore_case=True)
    expect(answer(page, "explicit").locator(".said")).to_be_hidden()
    why = answer(page, "auto").locator(".why")
    expect(why).to_contain_text("Answered")
    expect(why.get_by_role("meter")).to_have_count(3)
    expect(page.locator("#health")).to_have_text("ready")
    expect(page.locator("#announcements")).to_contain_text("done after")


def test_a_question_is_asked_by_keyboard_and_thinking_streams(page: Page) -> None:
    for mode in ("direct", "latent", "latent+explicit", "soft", "auto"):
        page.get_by_role("checkbox", name=mode, exact=True).uncheck()
    page.get_by_label("Question").fill(page.get_by_role("button", name="hard").first.get_attribute("title") or "")
    page.get_by_label("Question").press("Control+Enter")
    busy = page.locator("article[aria-busy=true]")
    expect(busy.locator(".thinking p")).to_contain_text("At the start", timeout=ANSWER_MS)  # before it is done
    expect(page.locator("article[aria-busy=false]")).to_have_count(1, timeout=ANSWER_MS)
    expect(page.locator("article")).to_have_count(1)


def test_stop_ends_the_request_on_the_server(page: Page, server: str, asked: list[Question]) -> None:
    def left() -> float:
        return metric(server, "latentserve_failures_total", type="client_left")

    before = left()
    page.get_by_role("checkbox", name="auto", exact=True).uncheck()
    page.get_by_label("Question").fill(max(asked, key=lambda question: len(question.chain)).question)  # seconds of thinking
    page.get_by_role("button", name="Ask").click()
    expect(answer(page, "explicit").locator(".outcome")).to_have_text("thinking …", timeout=ANSWER_MS)
    page.get_by_role("button", name="Stop").click()
    expect(answer(page, "explicit").locator(".outcome")).to_have_text("stopped")
    expect(page.get_by_role("button", name="Stop")).to_be_disabled()
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline and (left() == before or metric(server, "vllm:num_requests_running")):
        time.sleep(0.2)
    assert left() > before
    assert metric(server, "vllm:num_requests_running") == 0


def test_what_the_server_refuses_is_shown_beside_the_mode(page: Page) -> None:
    page.get_by_label("Question").fill("word " * 4000)
    page.get_by_role("button", name="Ask").click()
    expect(page.locator("article[aria-busy=false]")).to_have_count(len(MODES), timeout=ANSWER_MS)
    for mode in MODES:
        expect(answer(page, mode).get_by_role("alert")).to_contain_text("2048")


def test_nothing_is_cut_off_in_a_narrow_window(page: Page) -> None:
    page.set_viewport_size({"width": 360, "height": 800})
    page.get_by_role("button", name="easy").first.click()
    expect(page.locator("article[aria-busy=false]")).to_have_count(len(MODES), timeout=ANSWER_MS)
    for element in page.locator("form, article, figure").all():
        box = element.bounding_box()
        assert box is not None
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= 360


def test_the_charts_follow_the_traffic(page: Page, server: str) -> None:
    body = {"model": "demo", "mode": "direct", "messages": [{"role": "user", "content": "How many?"}], "max_tokens": 4}
    lines = page.locator("figure").first.locator("polyline.direct")
    deadline = time.monotonic() + 60
    while not lines.count() and time.monotonic() < deadline:
        assert httpx.post(f"{server}/v1/chat/completions", json=body, timeout=60).status_code == 200
        page.wait_for_timeout(500)
    assert lines.count()
    expect(page.locator("figure").first.locator(".values")).to_contain_text("direct")
