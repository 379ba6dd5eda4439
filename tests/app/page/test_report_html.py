"""``hetcache report`` without a browser: what is in the page, and what must never be."""

from __future__ import annotations

import json
import re
import shutil
import webbrowser
from base64 import b64decode, b64encode
from hashlib import sha256
from html import escape
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from attrs import evolve, frozen

pytest.importorskip("rich")
pytest.importorskip("av")

from hetcache.cli.main import main
from hetcache.comparison.page.html import Page
from hetcache.comparison.page.html import write_page as write
from hetcache.comparison.page.roles import token_roles
from hetcache.comparison.page.section import Reported, ReportSection, check_html
from hetcache.comparison.page.viewer import EXACT
from hetcache.comparison.results.folder import FRAME_PSNR, Results, Row
from hetcache.quality.psnr import frame_psnr
from hetcache_core import Registration, discover
from hetcache_core.errors import ConfigError
from hetcache_core.records.trace import Trace
from hetcache_core.tokens import Role

PLENTY = 10**8
REGISTRY = discover()


def write_page(folder: Path, **given: Any) -> Page:
    return write(folder, REGISTRY, **given)


class Tags(HTMLParser):
    """Collects the start tags of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def count(self, tag: str) -> int:
        return sum(found == tag for found, _ in self.found)


def data_of(text: str) -> dict[str, list[dict[str, object]]]:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)
    assert found is not None
    return json.loads(found[1])


@pytest.fixture(scope="module")
def page(filled: Results, tmp_path_factory: pytest.TempPathFactory) -> tuple[Page, str]:
    output = tmp_path_factory.mktemp("page") / "page.html"
    written = write_page(filled.folder, output=output, max_bytes=PLENTY)
    return written, output.read_text(encoding="utf-8")


def test_the_page_holds_the_videos_as_they_are(page: tuple[Page, str], filled: Results) -> None:
    written, text = page
    data = data_of(text)
    assert (written.videos, written.left_out) == (6, 0)
    stored = {path.read_bytes() for path in filled.folder.rglob("*.mp4")}
    assert {b64decode(str(video)) for video in data["videos"]} == stored
    assert written.size_bytes == written.output.stat().st_size


def test_the_page_names_no_address_to_load_anything_from(page: tuple[Page, str]) -> None:
    _, text = page
    assert not re.search(r"https?:|//\w+\.|@import|url\(", text)
    tags = Tags(text)
    assert tags.count("link") == 1, "the icon, which is empty"
    assert not [attrs for _, attrs in tags.found if "src" in attrs]
    assert not [attrs for _, attrs in tags.found if "style" in attrs], "the policy refuses them"


def test_names_and_prompts_cannot_break_out(page: tuple[Page, str], evil: str) -> None:
    _, text = page
    assert evil not in text
    assert Tags(text).count("script") == 2
    assert Tags(text).count("b") == 0, "the reason of the refusal is text as well"
    scenes = data_of(text)["scenes"]
    assert {scene["clip"] for scene in scenes} == {evil, "plain"}
    assert all(scene["prompt"] == evil for scene in scenes)


def test_only_the_scripts_and_styles_of_the_page_itself_may_run(page: tuple[Page, str]) -> None:
    _, text = page
    for tag, kind in (("script", "script-src"), ("style", "style-src")):
        (code,) = re.findall(rf"<{tag}>(.*?)</{tag}>", text, re.DOTALL)
        digest = b64encode(sha256(code.encode()).digest()).decode()
        assert f"{kind} 'sha256-{digest}'" in text
    assert "default-src 'none'" in text


def test_every_cell_can_be_sorted_by_and_missing_values_say_what_they_need(
    page: tuple[Page, str],
) -> None:
    _, text = page
    cells = [attrs for tag, attrs in Tags(text).found if tag == "td"]
    assert all("data-value" in cell for cell in cells)
    assert '<td data-value="" class="none">needs --lpips FILE</td>' in text
    assert '<td data-value="Infinity">reference</td>' in text


def test_videos_that_do_not_fit_are_left_out_and_named(filled: Results, tmp_path: Path) -> None:
    output = tmp_path / "small.html"
    sizes = sorted(path.stat().st_size for path in filled.folder.rglob("*.mp4"))
    written = write_page(filled.folder, output=output, max_bytes=sizes[-1] * 4)
    assert written.videos + written.left_out == 6
    assert 0 < written.left_out < 6
    text = output.read_text()
    assert f"{written.left_out} of 6 videos are not in this page" in text
    first = data_of(text)["scenes"][0]
    assert [track["kind"] for track in first["tracks"]][:2] == ["source", "uncached"]


def test_nothing_is_shown_without_what_it_is_held_against(filled: Results, tmp_path: Path) -> None:
    output = tmp_path / "none.html"
    written = write_page(filled.folder, output=output, max_bytes=1)
    assert (written.videos, written.left_out) == (0, 6)
    assert data_of(output.read_text())["scenes"] == []


def test_only_the_clips_that_were_named_are_shown(filled: Results, tmp_path: Path) -> None:
    output = tmp_path / "one.html"
    written = write_page(filled.folder, output=output, clips=["plain"], max_bytes=PLENTY)
    assert written.videos == 3
    assert {scene["clip"] for scene in data_of(output.read_text())["scenes"]} == {"plain"}
    with pytest.raises(ConfigError, match="called 'plan'") as caught:
        write_page(filled.folder, output=output, clips=["plan"], max_bytes=PLENTY)
    assert caught.value.nearest == "plain"


def test_folders_without_a_comparison_or_a_run_are_refused(
    tmp_path: Path, plan: dict[str, object]
) -> None:
    with pytest.raises(ConfigError, match="holds no comparison"):
        write_page(tmp_path, max_bytes=1)
    Results(folder=tmp_path).write_plan(plan)
    with pytest.raises(ConfigError, match="holds no finished run"):
        write_page(tmp_path, max_bytes=1)


def test_a_comparison_without_videos_still_has_its_tables(filled: Results, tmp_path: Path) -> None:
    for name in ("comparison.json", "rows.csv"):
        shutil.copy(filled.folder / name, tmp_path / name)
    written = write_page(tmp_path, max_bytes=PLENTY)
    text = written.output.read_text()
    assert written.output == tmp_path / "report.html"
    assert "This folder holds no videos." in text
    assert "teacache fast" in text


def test_a_page_of_refused_policies_alone_says_why(
    tmp_path: Path, filled: Results, plan: dict[str, object]
) -> None:
    results = Results(folder=tmp_path)
    results.write_plan(plan)
    results.append(next(row for row in filled.rows() if row.status == "refused"))
    text = write_page(tmp_path, max_bytes=1).output.read_text()
    assert "&lt;b&gt;no&lt;/b&gt; blocks" in text
    assert "There is nothing but the uncached run yet." in text


def test_the_command_prints_where_the_page_is_or_json(
    filled: Results, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "page.html"
    arguments = ["report", str(filled.folder), "--output", str(output)]
    assert main(arguments) == 0
    assert capsys.readouterr().out.startswith(f"page: {output}")
    assert main([*arguments, "--json", "--max-bytes", "1"]) == 0
    out, err = capsys.readouterr()
    found = json.loads(out)
    assert (found["output"], found["videos"], found["left_out"]) == (str(output), 0, 6)
    assert [line["label"] for line in found["lines"]] == ["none", "hetcache", "teacache fast"]
    assert "6 of 6 videos are not in the page" in err


@pytest.mark.parametrize("found", [True, False])
def test_the_page_is_opened_where_there_is_a_browser(
    filled: Results,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    found: bool,
) -> None:
    opened: list[str] = []
    monkeypatch.setattr(webbrowser, "open", lambda address: opened.append(address) or found)
    output = tmp_path / "page.html"
    assert main(["report", str(filled.folder), "--output", str(output), "--open"]) == 0
    assert opened == [output.as_uri()]
    assert ("no browser was found" in capsys.readouterr().err) is not found


def test_a_size_that_cannot_be_read_is_refused(
    filled: Results, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["report", str(filled.folder), "--max-bytes", "many"]) == 2
    assert "--max-bytes" in capsys.readouterr().err


def test_the_errors_of_exact_frames_are_taken_where_they_were_kept(
    filled: Results, tmp_path: Path
) -> None:
    shutil.copytree(filled.folder, tmp_path / "kept")
    results = Results(folder=tmp_path / "kept")
    for row in results.rows():
        if row.status == "ok":
            np.save(results.run_folder(row.key) / FRAME_PSNR, np.full(33, 12.5))
    text = write_page(results.folder, max_bytes=PLENTY).output.read_text()
    scene = data_of(text)["scenes"][0]
    assert scene["measured"] == EXACT
    assert [track["psnr"] for track in scene["tracks"] if track["kind"] == "policy"] == [
        [12.5] * 33
    ] * 2


def test_the_error_of_a_frame_is_that_of_its_mask_alone() -> None:
    reference = np.zeros((3, 4, 4, 3), dtype=np.uint8)
    result = reference.copy()
    result[:, 0] = 200  # outside of the mask
    result[1, 2, 2] = 255
    mask = np.zeros((3, 4, 4), dtype=bool)
    mask[:2, 2, 2:] = True
    same, worse, unmasked = frame_psnr(result, reference, mask)
    assert same == np.inf
    assert worse == pytest.approx(10 * np.log10(2))  # one of two pixels is as wrong as can be
    assert np.isnan(unmasked)


def trace(tokens: int, **roles: int) -> Trace:
    return Trace(
        policy="p", settings={}, backbone="b", variant="", steps=1, requested_steps=1,
        tokens=tokens, tokens_by_role=roles,
    )  # fmt: skip


def a_mask() -> torch.Tensor:
    mask = torch.zeros(9, 64, 96, dtype=torch.bool)
    mask[:, 20:30, 20:44] = True  # rows 1, columns 1 and 2 of tokens of 16 pixels
    return mask


@pytest.mark.parametrize(("margin", "counted"), [(0, 0), (1, 3 * 10), (2, 3 * 18)])
def test_roles_are_found_again_from_what_was_counted(margin: int, counted: int) -> None:
    tokens = 3 * 4 * 6
    found = token_roles(
        a_mask(), trace(tokens + 5, generative=6, margin=counted, context=0, pinned=5)
    )
    assert found is not None
    assert found.recorded
    assert found.roles.shape == (3, 4, 6)
    assert found.roles[0, 1].tolist()[1:3] == [Role.GENERATIVE] * 2
    assert int((found.roles == Role.MARGIN).sum()) == counted
    assert found.latent_frames() == [0, 1, 1, 1, 1, 2, 2, 2, 2]


def test_roles_that_were_not_recorded_are_said_to_be_assumed() -> None:
    found = token_roles(a_mask(), trace(3 * 4 * 6))
    assert found is not None
    assert not found.recorded


def test_roles_of_no_grid_are_not_made_up() -> None:
    assert token_roles(a_mask(), trace(71)) is None
    assert token_roles(a_mask(), trace(72, generative=1, margin=1, context=70)) is None


def test_a_policy_without_an_uncached_video_is_shown_without_errors(
    filled: Results, tmp_path: Path, plan: dict[str, object]
) -> None:
    results = Results(folder=tmp_path)
    results.write_plan(plan)
    row: Row = next(row for row in filled.rows() if row.key.policy == "hetcache")
    results.append(evolve(row, key=evolve(row.key, clip="gone")))
    run = results.run_folder(evolve(row.key, clip="gone"))
    shutil.copytree(filled.run_folder(row.key), run)
    text = write_page(results.folder, max_bytes=PLENTY).output.read_text()
    (scene,) = data_of(text)["scenes"]
    (track,) = scene["tracks"]
    assert (track["label"], track["psnr"], track["roles"]) == ("hetcache", None, None)
    assert scene["fps"] == 16.0


@frozen
class Stranger(ReportSection):
    """A section of a plugin that writes what it is told to."""

    name = "stranger"
    title = "A <stranger>"
    written: ClassVar[str] = ""

    def render(self, reported: Reported) -> str:
        if self.written == "raise":
            raise KeyError("<b>")
        return self.written.format(policy=escape(reported.summary.lines[0].policy))


def page_with(monkeypatch: pytest.MonkeyPatch, written: str, folder: Path, output: Path) -> str:
    monkeypatch.setattr(Stranger, "written", written)
    registry = REGISTRY.with_registrations(
        "report section",
        Registration(name="stranger", target=Stranger, summary="a section of a plugin"),
    )
    return write(folder, registry, output=output, max_bytes=1).output.read_text(encoding="utf-8")


def test_a_section_of_a_plugin_stands_after_the_built_in_ones(
    filled: Results, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = page_with(monkeypatch, "<p>of {policy}</p>", filled.folder, tmp_path / "page.html")
    sections = [attrs["id"] for tag, attrs in Tags(text).found if tag == "section"]
    assert sections == ["tables", "plots", "timelines", "videos", "stranger"]
    assert "<h2>A &lt;stranger&gt;</h2>\n<p>of none</p>" in text
    assert '<a href="#stranger">A &lt;stranger&gt;</a>' in text


def test_a_section_that_has_nothing_to_show_is_left_out(
    filled: Results, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = page_with(monkeypatch, "", filled.folder, tmp_path / "page.html")
    assert "stranger" not in text


@pytest.mark.parametrize(
    "written",
    [
        "raise",
        "<script>alert(1)</script>",
        "<p onclick='alert(1)'>x</p>",
        "<p style='position: fixed'>x</p>",
        "<img src='https://example.org/x.png'>",
        "<a href='javascript:alert(1)'>x</a>",
        "<iframe></iframe>",
        "</section></main><h1>x</h1>",
        "<div><p>x</div>",
        "<textarea>",
        "<!-- <p>x</p>",
        "<p>x</p><div",
    ],
)
def test_a_section_that_fails_or_would_break_out_says_so_and_the_others_are_there(
    filled: Results,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    written: str,
) -> None:
    text = page_with(monkeypatch, written, filled.folder, tmp_path / "page.html")
    assert "This section could not be written: " in text
    assert "the report section stranger failed" in capsys.readouterr().err
    tags = Tags(text)
    assert (tags.count("section"), tags.count("script"), tags.count("main")) == (5, 2, 1)
    assert "teacache fast" in text
    assert written not in text.split('id="stranger"')[1]


def test_what_a_section_may_hold_is_let_through() -> None:
    check_html(
        '<h3>x</h3><p class="notes">a<br>b &lt;c></p><img src="data:image/png;base64,AA">'
        '<svg viewBox="0 0 1 1"><path d="M0 0"/><text>x<title>y</title></text></svg>'
        '<a href="#tables">t</a><script type="application/json" id="mine">{"a": 1}</script>',
        subject="test",
    )
