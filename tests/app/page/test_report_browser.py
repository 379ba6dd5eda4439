"""The page of ``hetcache report`` in headless Chromium: run by ``tox -e browser``."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from attrs import define, field

pytest.importorskip("rich")
pytest.importorskip("av")
pytest.importorskip("playwright", reason="tox -e browser installs playwright")

from playwright import sync_api

from hetcache.comparison.page.html import write_page
from hetcache.comparison.results.folder import Results
from hetcache_core import discover

FPS, FRAMES, WORST = 16, 33, 20
"""Those of the videos in ``conftest.py``."""

# Where the bright square of a video begins, on the row of pixels through its middle.
SQUARE = """video => {
    const canvas = document.createElement("canvas");
    [canvas.width, canvas.height] = [video.videoWidth, video.videoHeight];
    const context = canvas.getContext("2d");
    context.drawImage(video, 0, 0);
    const row = context.getImageData(0, 20, canvas.width, 1).data;
    for (let x = 0; x < canvas.width; x++) if (row[4 * x] > 170 && row[4 * x + 1] < 110) return x;
    return -1;
}"""
TIMES = "() => [...document.querySelectorAll('video')].map(video => video.currentTime)"
# How far apart the videos are, each time that the browser paints: what a person sees, however slow
# the machine is.
SPREADS = """async () => {
    const found = [];
    while (found.length < 20) {
        await new Promise(requestAnimationFrame);
        const times = [...document.querySelectorAll("video")].map(video => video.currentTime);
        found.push(Math.max(...times) - Math.min(...times));
    }
    return found;
}"""
SETTLED = """() => [...document.querySelectorAll('video')].every(
    video => video.readyState >= 2 && !video.seeking)"""
# A copy is read, since reading a canvas changes how the browser keeps it, and it says so.
CELL = """([canvas, x, y]) => {
    const copy = document.createElement("canvas").getContext("2d");
    copy.drawImage(canvas, x, y, 1, 1, 0, 0, 1, 1);
    return [...copy.getImageData(0, 0, 1, 1).data];
}"""


@define
class Visit:
    """An open page, and everything that it said or asked for."""

    page: Any
    said: list[str] = field(factory=list)
    asked: list[str] = field(factory=list)

    def times(self) -> list[float]:
        return self.page.evaluate(TIMES)

    def settle(self) -> None:
        self.page.wait_for_function(SETTLED)

    def frame(self) -> str:
        return self.page.locator("#frame").text_content()


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    script = Path(__file__).parent / "ensure_chromium.py"
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(done.stdout.strip())
    with sync_api.sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=done.stdout.strip())
        yield opened
        opened.close()


@pytest.fixture(scope="session")
def address(filled: Results, tmp_path_factory: pytest.TempPathFactory) -> str:
    output = tmp_path_factory.mktemp("page") / "page.html"
    write_page(filled.folder, discover(), output=output, max_bytes=10**8)
    return output.as_uri()


@pytest.fixture
def visit(browser: Any, address: str) -> Iterator[Visit]:
    context = browser.new_context(offline=True, viewport={"width": 1400, "height": 900})
    found = Visit(context.new_page())
    found.page.on("console", lambda message: found.said.append(message.text))
    found.page.on("pageerror", lambda error: found.said.append(str(error)))
    found.page.on("dialog", lambda dialog: found.said.append(dialog.message))
    found.page.on("request", lambda request: found.asked.append(request.url))
    found.page.goto(address)
    found.settle()
    yield found
    context.close()
    assert not found.said, "the page complained"


def test_the_page_loads_without_errors_and_asks_for_nothing(visit: Visit, address: str) -> None:
    assert visit.asked[0] == address
    assert all(asked.startswith("blob:") for asked in visit.asked[1:]), visit.asked
    assert visit.page.locator("video").count() == 4  # source, uncached, and both policies
    assert all(
        visit.page.evaluate(
            "() => [...document.querySelectorAll('video')].map(v => v.duration > 2)"
        )
    )


def test_names_are_shown_as_they_are_and_do_nothing(visit: Visit, evil: str) -> None:
    assert visit.page.title().startswith("Comparison of caching policies")
    assert visit.page.locator("#prompt").text_content() == f"Prompt: {evil}"
    assert visit.page.locator("#clip option").all_text_contents() == [evil, "plain"]
    assert visit.page.locator("script").count() == 2


def test_videos_play_together_within_a_frame(visit: Visit) -> None:
    visit.page.keyboard.press("Home")
    visit.settle()
    before = visit.times()
    visit.page.click("#play")
    visit.page.wait_for_function("() => document.querySelector('video').currentTime > 0.5")
    after = visit.times()
    assert len(after) == len(before) == 4
    assert all(late > early + 0.3 for early, late in zip(before, after, strict=True))
    assert max(visit.page.evaluate(SPREADS)) < 1 / FPS
    visit.page.click("#play")
    visit.settle()
    assert len(set(visit.times())) == 1, "pausing puts all on one frame"
    assert not visit.page.evaluate(
        "() => [...document.querySelectorAll('video')].some(v => !v.paused)"
    )


def test_videos_begin_again_at_their_end(visit: Visit) -> None:
    visit.page.keyboard.press("End")
    visit.page.keyboard.press("ArrowLeft")
    visit.settle()
    visit.page.click("#play")
    visit.page.wait_for_function("() => document.querySelector('video').currentTime < 0.5")
    assert max(visit.page.evaluate(SPREADS)) < 1 / FPS


@pytest.mark.parametrize("frame", [0, 7, 12, FRAMES - 1])
def test_the_slider_moves_all_videos_to_the_very_frame(visit: Visit, frame: int) -> None:
    visit.page.locator("#slider").fill(str(frame))
    visit.settle()
    assert visit.frame() == f"frame {frame + 1} of {FRAMES}"
    assert visit.times() == pytest.approx([(frame + 0.5) / FPS] * 4, abs=1e-4)
    for video in visit.page.locator("video").all():
        # The square moves by a pixel a frame; compression blurs its edge by about one.
        assert video.evaluate(SQUARE) == pytest.approx(frame + 8, abs=1)


def test_a_column_sorts_both_ways_and_says_so(visit: Visit) -> None:
    page = visit.page
    title = page.locator("th[data-name=flops_speedup]")

    def methods() -> list[str]:
        return [text.removesuffix(" ◆") for text in page.locator("tbody th").all_text_contents()]

    assert methods() == ["uncached", "hetcache", "teacache fast"]
    title.locator("button").click()
    assert methods() == ["teacache fast", "hetcache", "uncached"]
    assert title.get_attribute("aria-sort") == "descending"
    title.locator("button").press("Enter")
    assert methods() == ["uncached", "hetcache", "teacache fast"]
    assert title.get_attribute("aria-sort") == "ascending"
    page.locator("thead th").first.locator("button").click()
    assert methods() == ["hetcache", "teacache fast", "uncached"]
    assert title.get_attribute("aria-sort") is None
    page.locator("th[data-name=lpips_reference] button").click()
    assert methods()[0] == "uncached", "what has no value is last"


def test_what_people_compare_is_in_sight_and_the_header_stays(visit: Visit) -> None:
    page = visit.page
    try:
        for width, height in ((1280, 900), (390, 800)):
            page.set_viewport_size({"width": width, "height": height})
            for name in ("flops_speedup", "psnr_reference_mask"):
                box = page.locator(f"th[data-name={name}]").first.bounding_box()
                assert box is not None
                assert box["x"] + box["width"] <= width, (name, width, box)
        page.set_viewport_size({"width": 1280, "height": 130})  # as if there were 200 rows
        table = page.locator(".scroll").first
        table.evaluate("box => box.scrollTop = box.scrollHeight")
        header, frame = page.locator("thead th").first.bounding_box(), table.bounding_box()
        assert header is not None
        assert frame is not None
        assert 0 <= header["y"] - frame["y"] <= 2
    finally:
        page.set_viewport_size({"width": 1280, "height": 720})


def test_the_filter_leaves_the_methods_that_were_meant(visit: Visit) -> None:
    words, rows = visit.page.locator(".filter input"), visit.page.locator("tbody tr:visible th")
    words.fill("FAST tea")
    assert rows.all_text_contents() == ["teacache fast ◆"]
    words.fill("")
    assert rows.count() == 3


def test_the_worst_frame_comes_first(visit: Visit) -> None:
    first = visit.page.locator("#worst button").first
    assert "teacache fast" in first.text_content()
    assert visit.frame() == f"frame {WORST + 1} of {FRAMES}"
    visit.page.keyboard.press("w")
    assert visit.frame() != f"frame {WORST + 1} of {FRAMES}"
    first.click()
    visit.settle()
    assert visit.frame() == f"frame {WORST + 1} of {FRAMES}"
    assert visit.times() == pytest.approx([(WORST + 0.5) / FPS] * 4, abs=1e-4)


def test_token_roles_are_drawn_over_the_frames(visit: Visit) -> None:
    page = visit.page
    canvas = page.locator(".stage canvas").first
    assert not canvas.is_visible()
    page.locator("#slider").fill("0")
    page.keyboard.press("o")
    assert canvas.is_visible()
    assert page.locator("#legend").is_visible()
    assert "as a run recorded" in page.locator("#basis").text_content()
    handle = canvas.element_handle()
    # In frame 0 the square covers the columns 8 to 24 of row 1 of tokens: columns 0 and 1 of them.
    generative, margin, context = (
        page.evaluate(CELL, [handle, x, y]) for x, y in ((0, 1), (2, 1), (4, 3))
    )
    assert len({tuple(color) for color in (generative, margin, context)}) == 3
    assert generative[0] > generative[2], "orange"
    assert margin[2] > margin[0], "blue"
    page.locator("#slider").fill(str(FRAMES - 1))
    assert page.evaluate(CELL, [handle, 0, 1]) != generative, "the mask has moved on"


def test_keys_step_through_frames_and_play(visit: Visit) -> None:
    page = visit.page
    page.keyboard.press("Home")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowLeft")
    assert visit.frame() == f"frame 2 of {FRAMES}"
    page.keyboard.press("End")
    assert visit.frame() == f"frame {FRAMES} of {FRAMES}"
    page.keyboard.press(" ")
    assert page.locator("#play").text_content() == "Pause"
    page.keyboard.press(" ")
    assert page.locator("#play").text_content() == "Play"


def test_another_clip_and_fewer_policies_can_be_chosen(visit: Visit) -> None:
    page = visit.page
    page.locator("#clip").select_option("plain")
    page.get_by_role("checkbox", name="hetcache", exact=True).uncheck()
    visit.settle()
    assert page.locator("figcaption span:first-child").all_text_contents() == [
        "source", "uncached", "teacache fast",
    ]  # fmt: skip
    page.locator("#slider").fill("5")
    visit.settle()
    assert visit.times() == pytest.approx([5.5 / FPS] * 3, abs=1e-4)
