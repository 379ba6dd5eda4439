"""``hetcache evaluate`` on video files."""

from __future__ import annotations

import csv
import json
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("av")
pytest.importorskip("torchmetrics")
pytest.importorskip("typer")

import av
import numpy as np
import torch
from PIL import Image

from hetcache.cli.main import main
from hetcache.media.video import read_video, write_video
from hetcache.quality.flicker import flicker
from hetcache.quality.regions import compare
from hetcache.quality.ssim import ssim
from hetcache.quality.vfid import frechet_distance

RATE = Fraction(25)
SHAPE = (7, 64, 96, 3)
COMMAND = ["evaluate", "--device", "cpu", "--token-pixels", "4"]
NAMES = ("bear", "cow", "swan")
PER_CLIP = [
    "psnr", "psnr_mask", "psnr_margin", "psnr_background", "ssim", "lpips", "flicker", "clip_score"
]  # fmt: skip


class Moments(torch.nn.Module):
    def forward(self, video: torch.Tensor) -> torch.Tensor:
        return torch.cat([video.mean((2, 3, 4)), video.square().mean((2, 3, 4))], 1)


def painted(seed: int, frames: int = SHAPE[0]) -> np.ndarray:
    random = np.random.default_rng(seed)
    rows, columns = np.mgrid[: SHAPE[1], : SHAPE[2]]
    speed, colour = random.integers(1, 5), random.integers(0, 60, 3)
    return np.stack(
        [
            np.stack([columns + speed * i, rows * 2, 160 - columns], -1) + colour
            for i in range(frames)
        ]
    ).astype(np.uint8)


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three clips with a longer ground truth, what was made of them, and masks."""
    folder = tmp_path_factory.mktemp("clips")
    white = np.zeros(SHAPE, np.uint8)
    white[:, 16:40, 32:64] = 255
    for name in ("gt", "pred", "masks", "other"):
        (folder / name).mkdir()
    for seed, name in enumerate(NAMES):
        truth = painted(seed, SHAPE[0] + 2)
        made = truth[: SHAPE[0]].copy()
        made[:, 10:50, 20:80] //= 2
        write_video(folder / "gt" / f"{name}.mp4", truth, RATE)
        write_video(folder / "pred" / f"{name}.mkv", made, RATE)
        Image.fromarray(white[0]).save(folder / "masks" / f"{name}.png")
    write_video(folder / "other" / "bear.mp4", painted(0), RATE)
    write_video(folder / "small.mp4", painted(0)[:, :48], RATE)
    write_video(folder / "short.mp4", painted(0)[:3], RATE)
    (folder / "pred" / "notes.txt").write_text("not a video")
    (folder / "pred" / ".0123456789abcdef.part.mp4").write_bytes(b"half a video")
    (folder / "empty").mkdir()
    (folder / "noise.mp4").write_bytes(b"noise" * 99)
    (folder / "noise.pt").write_bytes(b"noise" * 99)
    (folder / "twice").mkdir()
    for name in ("bear.mp4", "bear.mkv"):
        write_video(folder / "twice" / name, painted(0), RATE)
    network = torch.jit.trace(Moments().eval(), torch.rand(1, 3, *SHAPE[:3]))
    network.save(str(folder / "features.pt"))
    return folder


@pytest.fixture(autouse=True)
def there(clips: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(clips)


def evaluated(capsys: pytest.CaptureFixture[str], *options: str) -> dict[str, Any]:
    assert main([*COMMAND, "--json", *options]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def frames(path: str) -> np.ndarray:
    return read_video(Path(path), option="--gt").frames


def test_two_videos_are_compared(capsys: pytest.CaptureFixture[str]) -> None:
    found = evaluated(
        capsys, "--gt", "gt/bear.mp4", "--pred", "pred/bear.mkv", "--mask", "masks/bear.png"
    )
    assert found.keys() == {"composite", "clips", "mean", "vfid", "notes"}
    (clip,) = found["clips"]
    assert (clip["name"], clip["frames"]) == ("bear", SHAPE[0])
    assert list(clip["metrics"]) == list(found["mean"]) == PER_CLIP

    result, truth = frames("pred/bear.mkv"), frames("gt/bear.mp4")[: SHAPE[0]]
    mask = np.zeros(SHAPE[:3], bool)
    mask[:, 16:40, 32:64] = True
    for region, quality in compare(result, truth, mask, 4).items():
        name = "psnr" if region == "whole" else f"psnr_{region}"
        assert clip["metrics"][name] == {"value": pytest.approx(quality.db), "note": ""}
    assert clip["metrics"]["ssim"]["value"] == pytest.approx(ssim(result, truth).value)
    assert clip["metrics"]["flicker"]["value"] == flicker(result, truth).value
    assert clip["metrics"]["lpips"] == {"value": None, "note": "needs --lpips FILE"}
    assert clip["metrics"]["clip_score"] == {"value": None, "note": "needs --prompt"}
    assert found["vfid"] == {"value": None, "note": "needs --video-features FILE"}
    (note,) = found["notes"]
    assert "gt/bear.mp4 is cut to the first 7 of its 9 frames" in note


def test_videos_of_two_colour_spaces_are_said_to_be_that(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "hdr.mkv"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=25)
        stream.height, stream.width, stream.pix_fmt = SHAPE[1], SHAPE[2], "yuv444p10le"
        context = stream.codec_context
        context.colorspace, context.color_primaries, context.color_trc = 9, 9, 16
        for picture in painted(0):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    found = evaluated(capsys, "--gt", "gt/bear.mp4", "--pred", str(path))
    tone_mapped, differ, _ = found["notes"]
    assert "hdr.mkv is HDR (PQ): it is tone-mapped" in tone_mapped
    assert "hdr.mkv is HDR (PQ) and gt/bear.mp4 BT.601: they are compared as BT.709 SDR" in differ


def test_without_a_mask_no_region_is_made_up(capsys: pytest.CaptureFixture[str]) -> None:
    found = evaluated(capsys, "--gt", "gt/bear.mp4", "--pred", "pred/bear.mkv")
    metrics = found["clips"][0]["metrics"]
    assert metrics["psnr"]["value"] is not None
    for region in ("mask", "margin", "background"):
        assert metrics[f"psnr_{region}"] == {"value": None, "note": "needs --mask"}


def test_two_folders_are_paired_by_name_and_averaged(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "values.csv"
    found = evaluated(
        capsys, "--gt", "gt", "--pred", "pred", "--mask", "masks",
        "--video-features", "features.pt", "--output", str(output),
    )  # fmt: skip
    assert [clip["name"] for clip in found["clips"]] == list(NAMES)
    for name in PER_CLIP[:5]:
        values = [clip["metrics"][name]["value"] for clip in found["clips"]]
        assert found["mean"][name]["value"] == pytest.approx(sum(values) / len(values))

    def moments(video: np.ndarray) -> np.ndarray:
        scaled = video.astype(float) / 255
        return np.concatenate([scaled.mean((0, 1, 2)), (scaled**2).mean((0, 1, 2))])

    made = np.stack([moments(frames(f"pred/{name}.mkv")) for name in NAMES])
    true = np.stack([moments(frames(f"gt/{name}.mp4")[: SHAPE[0]]) for name in NAMES])
    assert found["vfid"]["value"] == pytest.approx(frechet_distance(made, true).value, rel=1e-4)
    assert found["vfid"]["note"] == "3 clips for 6 features"

    rows = list(csv.DictReader(output.read_text(encoding="utf-8").splitlines()))
    assert [row["clip"] for row in rows] == [*NAMES, "mean"]
    assert list(rows[0]) == ["clip", "frames", *PER_CLIP, "vfid"]
    assert float(rows[1]["psnr"]) == found["clips"][1]["metrics"]["psnr"]["value"]
    assert rows[1]["lpips"] == rows[3]["lpips"] == "needs --lpips FILE"
    assert float(rows[3]["vfid"]) == found["vfid"]["value"]


def test_compositing_leaves_only_the_mask_to_differ(capsys: pytest.CaptureFixture[str]) -> None:
    options = ("--gt", "gt", "--pred", "pred", "--mask", "masks")
    plain = evaluated(capsys, *options)
    found = evaluated(capsys, *options, "--composite", "gt")
    assert found["composite"]
    assert not plain["composite"]
    assert found["mean"]["psnr_mask"] == plain["mean"]["psnr_mask"]
    for region in ("margin", "background"):
        assert found["mean"][f"psnr_{region}"] == {"value": None, "note": "identical"}
    assert found["mean"]["psnr"]["value"] > plain["mean"]["psnr"]["value"]


def test_a_mean_says_which_clips_it_leaves_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in NAMES:
        source = Path("gt" if name == "cow" else "pred") / name
        suffix = ".mp4" if name == "cow" else ".mkv"
        (tmp_path / source.with_suffix(suffix).name).write_bytes(
            source.with_suffix(suffix).read_bytes()
        )
    found = evaluated(capsys, "--gt", "gt", "--pred", str(tmp_path))
    assert found["clips"][1]["metrics"]["psnr"] == {"value": None, "note": "identical"}
    assert found["clips"][1]["metrics"]["ssim"]["value"] == 1
    assert found["mean"]["psnr"]["note"] == "1 of 3 left out: identical"


def test_people_get_a_table_and_what_is_missing(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*COMMAND, "--gt", "gt", "--pred", "pred", "--mask", "masks"]) == 0
    out, err = capsys.readouterr()
    assert "3 clips, 21 frames" in out
    for word in (*NAMES, "mean", "PSNR", "background", "SSIM", "flicker"):
        assert word in out
    lines = out.splitlines()
    assert "LPIPS: needs --lpips FILE" in lines
    assert "CLIP score: needs --prompt" in lines
    assert "VFID: needs --video-features FILE" in lines
    assert err.count("note: ") == 3


def arguments(changed: dict[str, str]) -> list[str]:
    options = {"--gt": "gt", "--pred": "pred", "--device": "cpu", **changed}
    return ["evaluate", *(word for pair in options.items() for word in pair)]


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        pytest.param({"--gt": "nowhere"}, "--gt: nowhere does not exist", id="missing truth"),
        pytest.param({"--pred": "nowhere"}, "--pred: nowhere does not", id="missing prediction"),
        pytest.param({"--gt": "gt/bear.mp4"}, "two videos or two folders", id="file and folder"),
        pytest.param({"--gt": "empty"}, "empty holds no videos", id="empty folder"),
        pytest.param(
            {"--gt": "other"}, "only in pred: cow, swan. Videos are paired", id="unpaired names"
        ),
        pytest.param({"--gt": "twice"}, "have the same name", id="a name twice"),
        pytest.param(
            {"--gt": "small.mp4", "--pred": "pred/bear.mkv"}, "small.mp4 is 48x96", id="sizes"
        ),
        pytest.param(
            {"--gt": "short.mp4", "--pred": "pred/bear.mkv"},
            "short.mp4 has 3 frames, fewer than the 7",
            id="shorter truth",
        ),
        pytest.param(
            {"--gt": "noise.mp4", "--pred": "pred/bear.mkv"}, "is no video", id="unreadable truth"
        ),
        pytest.param({"--mask": "empty"}, "empty holds nothing called bear", id="missing masks"),
        pytest.param({"--mask": "nowhere.png"}, "nowhere.png: not found", id="missing mask"),
        pytest.param({"--composite": "gt"}, "--composite needs a --mask", id="no mask"),
        pytest.param(
            {"--composite": "small.mp4", "--mask": "masks"},
            "--composite: small.mp4 is 48x96",
            id="source of another size",
        ),
        pytest.param({"--lpips": "noise.pt"}, "it is no file of weights", id="no weights"),
        pytest.param({"--lpips": "nowhere"}, "--lpips: there is no nowhere", id="no file"),
        pytest.param({"--video-features": "noise.pt"}, "no network that can be", id="no network"),
        pytest.param({"--clip": "empty"}, "empty is no folder with a CLIP", id="no CLIP"),
        pytest.param({"--token-pixels": "0"}, "token_pixels must be >= 1", id="no token"),
        pytest.param({"--device": "gpu"}, "no device 'gpu'", id="unknown device"),
        pytest.param({"--output": "values.txt"}, "Let its name end in .csv", id="no CSV"),
        pytest.param({"--output": "new/values.csv"}, "does not exist", id="no such folder"),
        pytest.param({"--frobnicate": "1"}, "--frobnicate", id="unknown option"),
    ],
)
def test_bad_input_is_refused_in_one_line(
    clips: Path, capfd: pytest.CaptureFixture[str], changed: dict[str, str], said: str
) -> None:
    before = set(clips.rglob("*"))
    assert main(arguments(changed)) == 2
    out, err = capfd.readouterr()
    assert out == ""
    (line,) = [line for line in err.splitlines() if not line.startswith("note: ")]
    assert line.startswith("error: ")
    assert said in line
    assert set(clips.rglob("*")) == before


def test_a_folder_that_cannot_be_listed_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Permissions do not keep root out, so the refusal is made here."""

    def refuse(folder: Path) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "iterdir", refuse)
    assert main(arguments({})) == 2
    assert capfd.readouterr().err == "error: --gt: gt cannot be read: Permission denied\n"


def test_what_is_missing_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", "--gt", "gt"]) == 2
    assert capsys.readouterr().err == "error: hetcache evaluate: missing --pred\n"


def test_no_metric_starts_before_the_weights_are_known_to_be_good(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import hetcache.media.video

    monkeypatch.setattr(
        hetcache.media.video, "read_video", lambda *_, **__: pytest.fail("a video was read")
    )
    assert main(arguments({"--lpips": "noise.pt"})) == 2
