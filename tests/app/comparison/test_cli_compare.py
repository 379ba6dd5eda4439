"""``hetcache compare`` with real runs of the embedded backbone, at a tiny size."""

from __future__ import annotations

import csv
import importlib
import json
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from fractions import Fraction
from importlib.util import find_spec
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("av")
pytest.importorskip("diffsynth")
pytest.importorskip("torchmetrics")

import numpy as np
from attrs import define, field

import hetcache.comparison.compare
from hetcache.cli.main import main
from hetcache.comparison.plan.footage import frames_from_bytes
from hetcache.comparison.results.folder import Results, Row
from hetcache.comparison.work.bench import Bench, BenchSettings
from hetcache.comparison.work.desk import Desk
from hetcache.comparison.work.tasks import Done, Run, Task
from hetcache.comparison.work.workers import Answer, Crew, Died, Worker, answer_to
from hetcache.media.video import read_video, write_video
from hetcache.quality.regions import compare as psnr_of
from hetcache.running.run import PolicyChoice, load
from hetcache_core.backbone.adapter import LoadRequest
from hetcache_core.errors import ConfigError, ContractError
from hetcache_core.plugins.discovery import discover
from hetcache_core.records.trace import Trace

STEPS = 4
TINY = (
    "--frames",
    "5",
    "--height",
    "64",
    "--width",
    "64",
    "--steps",
    str(STEPS),
    "--device",
    "cpu",
)
CLIP = "builtin:small-still-object-0"
CLOCKS = {"denoise_seconds", "total_seconds"}


@define(eq=False)
class Here(Worker):
    """A worker in this process."""

    bench: Bench
    answer: Answer | Died | None = None

    def send(self, task: Task) -> None:
        self.answer = answer_to(task, self.bench)

    def stop(self) -> None:
        self.answer = None


@define(eq=False)
class Hands(Crew):
    """Workers in this process: what a process costs to start is paid by a few tests only."""

    settings: BenchSettings
    count: int = 1
    hired: list[Here] = field(factory=list)

    def hire(self, place: int) -> Worker:
        worker = Here(Bench(self.settings, discover()))
        self.hired.append(worker)
        return worker

    def wait(self, workers: Sequence[Worker]) -> list[tuple[Worker, Answer | Died]]:
        found = [(worker, worker.answer) for worker in workers if isinstance(worker, Here)]
        return [(worker, answer) for worker, answer in found if answer is not None]

    def __exit__(self, *_: object) -> None:
        pass


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let comparisons run in this process."""
    monkeypatch.setattr(
        hetcache.comparison.compare, "_crew", lambda _config, settings: Hands(settings)
    )


@pytest.fixture
def performed(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often every run was really made."""
    count: Counter[str] = Counter()
    perform = Run.perform

    def counted(task: Run, bench: Bench) -> Done:
        count[task.key.id] += 1
        return perform(task, bench)

    monkeypatch.setattr(Run, "perform", counted)
    return count


def compare(output: Path, *options: str) -> int:
    clips = () if {"--clips", "--video"} & {*options} else ("--clips", CLIP)
    repeat = () if "--repeat" in options else ("--repeat", "1")
    return main(["compare", "--output", str(output), *TINY, *clips, *repeat, *options])


def rows_of(folder: Path) -> list[Row]:
    return Results(folder=folder).rows()


def same_but_for_the_clock(one: Path, other: Path) -> None:
    def records(folder: Path) -> dict[str, dict[str, str]]:
        with (folder / "rows.csv").open(newline="") as file:
            return {
                record["id"]: {k: v for k, v in record.items() if k not in CLOCKS}
                for record in csv.DictReader(file)
            }

    assert records(one) == records(other)


def error_of(capsys: pytest.CaptureFixture[str]) -> str:
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    return lines[0]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A video of 9 frames, masks, and everything that is neither."""
    folder = tmp_path_factory.mktemp("files")
    pixels = np.random.default_rng(0).integers(0, 256, (9, 64, 80, 3), dtype=np.uint8)
    mask = np.zeros_like(pixels)
    mask[:, 16:40, 16:40] = 255
    write_video(folder / "clip.mp4", pixels, Fraction(10))
    write_video(folder / "mask.mp4", mask, Fraction(10))
    write_video(folder / "black.mp4", np.zeros_like(mask), Fraction(10))
    (folder / "noise.mp4").write_bytes(bytes(range(256)) * 9)
    for name in ("one", "two"):
        (folder / "clips" / name).mkdir(parents=True)
        write_video(folder / "clips" / name / "video.mp4", pixels, Fraction(10))
        write_video(folder / "clips" / name / "mask.mkv", mask, Fraction(10))
    (folder / "clips" / "two" / "prompt.txt").write_text("a red circle\n")
    write_video(folder / "clips" / "two" / "truth.mp4", pixels, Fraction(10))
    (folder / "half" / "clip").mkdir(parents=True)
    write_video(folder / "half" / "clip" / "video.mp4", pixels, Fraction(10))
    (folder / "empty").mkdir()
    return folder


def test_rows_come_in_rounds_and_say_what_was_run(
    here: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "results"
    assert compare(output, "--policies", "teacache,hetcache@fast", "--repeat", "2", "--json") == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["runs"] == {"made": 6, "kept": 0}
    assert [line["label"] for line in printed["lines"]] == ["none", "teacache", "hetcache fast"]
    rows = rows_of(output)
    assert [(row.key.repeat, row.key.label) for row in rows] == [
        (repeat, label) for repeat in (0, 1) for label in ("none", "teacache", "hetcache fast")
    ]
    for row in rows:
        trace = Trace.load(output / "runs" / row.key.id / "trace.json")
        totals = trace.totals()
        assert row.status == "ok"
        assert (row.flops, row.flops_full) == (totals.flops, totals.flops_full)
        assert row.modes == "".join(mode.value[0] for mode in trace.modes())
        assert row.settings == trace.settings
        assert 0 < row.denoise_seconds <= row.total_seconds
        video = read_video(output / "runs" / row.key.id / "video.mp4", option="")
        assert video.frames.shape == (5, 64, 64, 3)
        if row.key.policy == "none":
            assert row.metric_notes["psnr_reference"] == "identical"
            assert row.modes == "f" * STEPS
        else:
            assert row.flops < row.flops_full
            assert row.metrics["psnr_reference_mask"] is not None
        assert row.metrics["psnr_truth"] is not None
        assert row.metric_notes["lpips_reference"] == "needs --lpips FILE"


def test_metrics_are_those_of_the_exact_frames(here: None, tmp_path: Path) -> None:
    output = tmp_path / "results"
    assert compare(output, "--policies", "pab", "--seeds", "3") == 0
    uncached, cached = rows_of(output)
    registry = discover()
    kind = registry.backbone("tiny-vace")()
    runner = load(kind, LoadRequest(), registry)
    clip = registry.load("clip set", "builtin")().clip(
        "small-still-object-0", frames=5, height=64, width=64
    )
    from hetcache_core.backbone.adapter import EditRequest

    request = EditRequest(
        video=clip.video,
        mask=clip.mask,
        prompt=clip.prompt,
        steps=STEPS,
        seed=3,
        guidance_scale=kind.guidance_scale,
    )
    frames = {p: runner.run(request, PolicyChoice(name=p)).frames for p in ("none", "pab")}
    found = psnr_of(frames["pab"], frames["none"], clip.mask, kind.geometry.size_multiple)
    assert cached.metrics["psnr_reference_mask"] == found["mask"].db
    assert cached.metrics["psnr_reference"] == found["whole"].db
    results = Results(folder=output)
    data = results.reference_path(uncached.key).read_bytes()
    stored = frames_from_bytes(data, frames["none"].shape)
    assert np.array_equal(stored, frames["none"])


def test_with_composite_nothing_differs_outside_of_the_mask(here: None, tmp_path: Path) -> None:
    assert compare(tmp_path / "a", "--policies", "fewer-steps", "--composite") == 0
    assert compare(tmp_path / "b", "--policies", "fewer-steps") == 0
    composited, plain = rows_of(tmp_path / "a")[1], rows_of(tmp_path / "b")[1]
    assert composited.metric_notes["psnr_reference_margin"] == "identical"
    assert composited.metrics["psnr_reference_mask"] == plain.metrics["psnr_reference_mask"]
    assert plain.metrics["psnr_reference_margin"] is not None


@pytest.mark.timeout(400)  # six models of three libraries
def test_all_backbones_in_one_command_and_what_one_cannot_carry_is_a_row(
    here: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("diffusers")
    pytest.importorskip("transformers")
    names = ("wan-vace", "wan-vace-diffusers", "ltx-video")
    described = ("sd3", "pixart")
    backbones = ",".join(
        (
            "tiny-vace",
            *(f"{n}=random" for n in names),
            *(f"diffusers=random:{n}" for n in described),
        )
    )
    policies = "hetcache,fastercache-cfg,pab@2x,fewer-steps@2x"
    output = tmp_path / "results"
    assert compare(output, "--backbones", backbones, "--policies", policies, "--frames", "9") == 0
    assert capsys.readouterr().err.count("random model: traces and FLOPs mean something") == 4
    every = rows_of(output)
    assert len(every) == 6 * 5
    modes = {(row.key.model, row.key.policy): row.modes for row in every}
    assert modes["random:sd3", "hetcache"] == "ffrf"
    assert not modes["random:pixart", "hetcache"]
    table = (output / "table.md").read_text(encoding="utf-8")
    assert "15 pairs of a policy and a model ran, 9 were refused (6 models and sizes)." in table
    assert "| `hetcache` | 5 | 1 | lacks: attention, mask, rows (1) |" in table
    rows = {(row.key.backbone, row.key.label): row for row in every if not row.key.model[6:]}
    refused = {key: row.note for key, row in rows.items() if row.status == "refused"}
    assert refused.keys() == {
        ("ltx-video", "fastercache-cfg"),
        *((name, "pab 2x") for name in ("tiny-vace", *names)),
    }
    assert "predicts one guidance branch" in refused["ltx-video", "fastercache-cfg"]
    assert "decides no whole steps" in refused["tiny-vace", "pab 2x"]
    fewer = rows["tiny-vace", "fewer-steps 2x"]
    assert (fewer.flops * 2, fewer.target_speedup) == (fewer.flops_full, 2.0)
    assert rows["wan-vace", "none"].key.model == "random"


def test_a_run_without_memory_for_its_cache_is_a_row(here: None, tmp_path: Path) -> None:
    output = tmp_path / "results"
    assert compare(output, "--policies", "teacache", "--max-cache-bytes", "1kB") == 0
    (_, row) = rows_of(output)
    assert row.status == "refused"
    assert "the limit is 1,000" in row.note


def test_without_an_uncached_run_nothing_is_held_against_it(
    here: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from hetcache.running.run import Runner

    run = Runner.run

    def small(runner: Runner, request: Any, policy: PolicyChoice, on_step: Any = None) -> Any:
        if request.steps > 1:
            raise ConfigError("the memory of the device is too small for this edit")
        return run(runner, request, policy, on_step)

    monkeypatch.setattr(Runner, "run", small)
    assert compare(tmp_path / "results", "--policies", "teacache,pab") == 0
    rows = rows_of(tmp_path / "results")
    assert [row.status for row in rows] == ["refused"] * 3
    assert {row.note for row in rows} == {"the memory of the device is too small for this edit"}


def test_clips_come_from_files(here: None, tmp_path: Path, files: Path) -> None:
    output = tmp_path / "results"
    assert compare(output, "--clips", str(files / "clips"), "--policies", "pab") == 0
    rows = rows_of(output)
    assert [row.key.clip for row in rows] == ["one", "one", "two", "two"]
    notes = [row.metric_notes.get("psnr_truth") for row in rows]
    assert notes == ["no ground truth", "no ground truth", None, None]
    written = Results(folder=output).clip_folder("two")
    assert {path.name for path in written.iterdir()} == {
        "clip.json", "mask.png", "source.mp4", "truth.mp4",
    }  # fmt: skip
    about = json.loads((written / "clip.json").read_text())
    assert about == {
        "name": "two",
        "prompt": "a red circle",
        "frames": 5,
        "height": 64,
        "width": 64,
    }
    video = ("--video", str(files / "clip.mp4"), "--mask", str(files / "mask.mp4"))
    one = tmp_path / "one"
    assert main(["compare", "--output", str(one), *video, "--steps", "1", "--repeat", "1",
                 "--policies", "pab"]) == 0  # fmt: skip
    key = rows_of(one)[0].key
    assert (key.clip, key.frames, key.height, key.width) == ("clip", 9, 64, 80)


def test_ready_grids_vary_sizes_and_paint_borders(here: None, tmp_path: Path, files: Path) -> None:
    output = tmp_path / "sizes"
    assert compare(output, "--grid", "length", "--clips", CLIP, "--policies", "pab") == 0
    keys = [row.key for row in rows_of(output)]
    assert [key.frames for key in keys[::2]] == [1, 5, 9, 17]
    assert keys[0].clip == "small-still-object-0 1x64x64"
    output = tmp_path / "border"
    video = ("--video", str(files / "clip.mp4"))
    assert compare(output, "--grid", "outpainting", *video, "--policies", "pab") == 0
    row = rows_of(output)[1]
    assert row.metrics["psnr_truth_mask"] is not None
    from PIL import Image

    mask = np.asarray(Image.open(output / "clips" / "clip" / "mask.png")).reshape(5, 64, 64)
    assert mask[0, 32, 32] == 0
    assert (mask[:, 0] == 255).all()


def test_a_comparison_goes_on_where_it_was_and_grows(
    here: None, tmp_path: Path, performed: Counter[str], capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "results"
    assert compare(output, "--policies", "teacache", "--resume") == 0
    before = (output / "rows.csv").read_bytes()
    assert len(performed) == 2
    assert compare(output, "--policies", "teacache") == 2
    assert "holds a comparison already" in error_of(capsys)
    assert compare(output, "--policies", "teacache", "--resume") == 0
    assert (output / "rows.csv").read_bytes() == before
    reference = next((output / "references").iterdir())
    frames = np.load(reference)["frames"]
    reference.write_bytes(reference.read_bytes()[:-100])  # made again, as one that is lost would be
    more = ("--policies", "pab,teacache", "--seeds", "1,0", "--repeat", "2")
    assert compare(output, *more, "--resume") == 0
    assert (output / "rows.csv").read_bytes().startswith(before)
    rows = rows_of(output)
    assert len({row.key.id for row in rows}) == len(rows) == 2 * 2 * 3
    assert set(performed.values()) == {1}
    assert performed.keys() == {row.key.id for row in rows}
    assert np.array_equal(np.load(reference)["frames"], frames)
    for less, said in (
        (("--policies", "pab"), "--policies: .* teacache, which is left out"),
        (("--policies", "pab,teacache", "--repeat", "1"), "--repeat: .* 2 repetitions"),
        (
            ("--policies", "pab,teacache", "--composite"),
            "--composite: .* with False, not with True",
        ),
        (("--policies", "pab,teacache", "--steps", "5"), "--steps: .* with 4, not with 5"),
    ):
        options = {"--seeds": "0,1", "--repeat": "2"} | dict(
            zip(less[::2], less[1::2], strict=False)
        )
        words = [word for pair in options.items() for word in pair if word != "--composite"]
        flags = [word for word in less if word == "--composite"]
        assert compare(output, *words, *flags, "--resume") == 2
        assert re.search(said, error_of(capsys))


def test_a_folder_of_another_release_is_read_reported_and_gone_on_with(
    here: None, tmp_path: Path, performed: Counter[str]
) -> None:
    output = tmp_path / "results"
    assert compare(output, "--policies", "teacache") == 0
    with (output / "rows.csv").open(newline="", encoding="utf-8") as file:
        records = list(csv.DictReader(file))
    older = [
        {"watts": "250", **{k: v for k, v in record.items() if k not in {"model", "total_seconds"}}}
        for record in records
    ]
    with (output / "rows.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, older[0])
        writer.writeheader()
        writer.writerows(older)
    plan = json.loads((output / "comparison.json").read_text())
    del plan["arguments"]["composite"], plan["arguments"]["cache_dtype"]
    (output / "comparison.json").write_text(json.dumps(plan))

    assert main(["report", str(output)]) == 0
    assert "teacache" in (output / "report.html").read_text(encoding="utf-8")
    assert compare(output, "--policies", "teacache,pab", "--resume") == 0
    assert set(performed.values()) == {1}, "no run was made again"
    rows = {row.key.policy: row for row in rows_of(output)}
    assert rows.keys() == {"none", "teacache", "pab"}
    assert rows["teacache"].total_seconds == 0
    assert rows["pab"].total_seconds > 0


def test_a_clip_that_was_exchanged_is_noticed(
    here: None, tmp_path: Path, files: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mask = tmp_path / "mask.png"
    from PIL import Image

    output, options = (
        tmp_path / "results",
        ("--video", str(files / "clip.mp4"), "--mask", str(mask)),
    )
    for side, status in ((32, 0), (24, 2)):
        picture = np.zeros((64, 80), np.uint8)
        picture[8:side, 8:side] = 255
        Image.fromarray(picture).save(mask)
        assert compare(output, *options, "--policies", "pab", "--resume") == status
    assert "clip, which is another clip now" in error_of(capsys)


def test_a_fault_of_one_run_does_not_end_the_others(
    here: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Bench.run

    def faulty(bench: Bench, key: Any, policy: Any) -> Done:
        if policy.name == "pab":
            raise ContractError(
                "a fault of the plugin"
            )  # ours to raise, and no mistake of the user
        return run(bench, key, policy)

    output = tmp_path / "results"
    with monkeypatch.context() as patch:
        patch.setattr(Bench, "run", faulty)
        assert compare(output, "--policies", "pab,teacache") == 1
    assert "1 runs failed; the first was pab" in error_of(capsys)
    assert "teacache" in (output / "table.md").read_text()
    (trace,) = output.glob("runs/*/error.txt")
    assert "a fault of the plugin" in trace.read_text()
    assert [row.key.policy for row in rows_of(output)] == ["none", "teacache"]
    assert compare(output, "--policies", "pab,teacache", "--resume") == 0
    assert [row.key.policy for row in rows_of(output)] == ["none", "teacache", "pab"]
    assert not trace.exists()


def test_after_ctrl_c_what_is_finished_is_kept(
    here: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    take = Desk.take

    def interrupted(desk: Desk, done: Done) -> None:
        take(desk, done)
        if len(desk.finished) == 2:
            raise KeyboardInterrupt

    output = tmp_path / "results"
    with monkeypatch.context() as patch:
        patch.setattr(Desk, "take", interrupted)
        assert compare(output, "--policies", "pab,teacache") == 130
    assert "2 finished runs are kept; the same with --resume goes on" in capsys.readouterr().err
    assert len(rows_of(output)) == 2
    assert compare(output, "--policies", "pab,teacache", "--resume") == 0
    assert len(rows_of(output)) == 3


FOREVER = ("--policies", "pab", "--steps", "20", "--repeat", "3")


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A comparison that nothing happened to, in this process."""
    output = tmp_path_factory.mktemp("undisturbed") / "results"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            hetcache.comparison.compare, "_crew", lambda _config, settings: Hands(settings)
        )
        assert compare(output, *FOREVER) == 0
    return output


@pytest.mark.timeout(400)
def test_a_killed_comparison_goes_on_without_losing_or_repeating_a_row(
    tmp_path: Path, undisturbed: Path, here: None, performed: Counter[str]
) -> None:
    output = tmp_path / "results"
    program = "import sys; from hetcache.cli.main import main; sys.exit(main(sys.argv[1:]))"
    words = ["compare", "--output", str(output), *TINY, "--clips", CLIP, *FOREVER]
    process = subprocess.Popen(
        [sys.executable, "-c", program, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    rows = output / "rows.csv"
    try:
        until(lambda: rows.exists() and rows.read_bytes().count(b"\n") >= 3)
        workers = children(process.pid)
    finally:
        process.kill()
        process.communicate()
    assert workers
    until(lambda: not any(alive(pid) for pid in workers))
    kept = rows.read_bytes()
    whole = kept[: kept.rfind(b"\n") + 1]
    finished = {row.key.id for row in rows_of(output)}
    assert 2 <= len(finished) < 6
    rows.write_bytes(whole + b"tiny-vace-half-a-")
    assert compare(output, *FOREVER, "--resume") == 0
    assert rows.read_bytes().startswith(whole)
    assert {*performed} == {row.key.id for row in rows_of(output)} - finished
    assert set(performed.values()) == {1}
    same_but_for_the_clock(output, undisturbed)


@pytest.mark.timeout(400)
def test_what_a_dead_worker_had_not_finished_is_run_again(
    tmp_path: Path, undisturbed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    take = Desk.take

    def killing(desk: Desk, done: Done) -> None:
        take(desk, done)
        if len(desk.finished) == 3:
            kill_workers()

    monkeypatch.setattr(Desk, "take", killing)
    output = tmp_path / "results"
    assert compare(output, *FOREVER, "--workers", "1") == 0
    rows = rows_of(output)
    assert len(rows) == len({row.key.id for row in rows}) == 6
    same_but_for_the_clock(output, undisturbed)


def test_a_run_on_which_workers_die_again_and_again_has_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Mortal(Hands):
        def wait(self, workers: Sequence[Worker]) -> list[tuple[Worker, Answer | Died]]:
            found = super().wait(workers)
            late = len(rows_of(tmp_path / "results")) >= 2
            return (
                [(worker, Died(how="was killed by signal 9")) for worker, _ in found]
                if late
                else found
            )

    crews: list[Hands] = []

    def crew(_config: object, settings: BenchSettings) -> Hands:
        crews.append(Mortal(settings))
        return crews[-1]

    monkeypatch.setattr(hetcache.comparison.compare, "_crew", crew)
    assert compare(tmp_path / "results", "--policies", "pab,teacache") == 1
    said = error_of(capsys)
    assert "1 runs failed; the first was teacache" in said
    assert "3 workers died on it; the last one was killed by signal 9" in said
    assert len(rows_of(tmp_path / "results")) == 2
    assert len(crews[0].hired) == 3


def _ray_imports() -> bool:
    """Whether ray can be used: it imports pyarrow where that is installed, which NumPy 1 may forbid."""
    try:
        importlib.import_module("pyarrow")
    except ModuleNotFoundError:
        return True
    except ImportError:
        return False
    return True


def listening_addresses() -> set[str]:
    """Where this process and all that it started listen; mapped addresses as those of IPv4."""
    psutil = pytest.importorskip("psutil")
    me = psutil.Process()
    found = set()
    for process in (me, *me.children(recursive=True)):
        with suppress(psutil.Error):
            found |= {c.laddr.ip for c in process.net_connections("tcp") if c.status == "LISTEN"}
    return {address.removeprefix("::ffff:") for address in found}


@pytest.mark.timeout(400)
@pytest.mark.skipif(not _ray_imports(), reason="pyarrow is installed for another NumPy")
def test_two_workers_on_a_local_ray_cluster_make_the_same_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if find_spec("ray") is None:  # imported first by the command itself
        pytest.skip("Ray is not installed")
    options = ("--clips", f"{CLIP},large-still-object-0", "--policies", "pab,teacache")
    with monkeypatch.context() as patch:
        patch.setattr(
            hetcache.comparison.compare, "_crew", lambda _config, settings: Hands(settings)
        )
        assert compare(tmp_path / "here", *options) == 0
    take, listening = Desk.take, set[str]()

    def looking(desk: Desk, done: Done) -> None:
        take(desk, done)
        listening.update(listening_addresses())

    monkeypatch.setattr(Desk, "take", looking)
    assert compare(tmp_path / "ray", *options, "--workers", "ray:2") == 0
    assert listening
    assert all(ip_address(address).is_loopback for address in listening), listening
    same_but_for_the_clock(tmp_path / "ray", tmp_path / "here")


GOOD = {"--clips": CLIP, "--policies": "pab", "--steps": "1", "--frames": "5"}


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"--policies": "teachache"}, "did you mean 'teacache'"),
        ({"--policies": "pab:treshold=1"}, "unknown setting 'treshold'"),
        ({"--policies": "pab@fats"}, "neither a preset nor a speed-up"),
        ({"--policies": "pab,pab"}, "pab is given twice"),
        ({"--backbones": "tiny"}, "did you mean 'tiny-vace'"),
        ({"--backbones": "tiny-vace=nowhere.safetensors"}, "nowhere.safetensors is not a file"),
        ({"--backbones": "wan-vace"}, "wan-vace needs a checkpoint"),
        ({"--backbones": "tiny-vace,ltx-video=random"}, "5 frames do not fit all backbones"),
        ({"--backbones": "diffusers=random:flax"}, "has no random model 'flax'"),
        ({"--backbones": "wan-vace=random:flux"}, "Write wan-vace=random"),
        ({"--backbones": "all=model.safetensors"}, "Write all=random"),
        ({"--clips": "builtn"}, "did you mean 'builtin'"),
        ({"--clips": "builtin:tiny-*"}, "the clip set builtin has no clip 'tiny-*'"),
        ({"--clips": "{files}/empty"}, "holds no clips"),
        ({"--clips": "{files}/half"}, "has no mask.*"),
        ({"--clips": ""}, "there is no clip set ''"),
        ({"--policies": ""}, "no policy is named"),
        ({"--clips": None}, "no clips are named"),
        ({"--video": "{files}/clip.mp4"}, "name different clips"),
        ({"--clips": None, "--video": "{files}/clip.mp4"}, "--video needs a --mask"),
        ({"--clips": None, "--mask": "{files}/mask.mp4"}, "--mask needs a --video"),
        (
            {"--clips": None, "--video": "{files}/noise.mp4", "--mask": "{files}/mask.mp4"},
            "is no video that can be read",
        ),
        (
            {"--clips": None, "--video": "{files}/clip.mp4", "--mask": "{files}/black.mp4"},
            "is empty",
        ),
        (
            {
                "--clips": None,
                "--video": "{files}/clip.mp4",
                "--mask": "{files}/mask.mp4",
                "--frames": "13",
            },
            "fewer than 13. Take 9",
        ),
        ({"--grid": "lenght"}, "grid must be"),
        ({"--height": "60"}, "60 does not fit all backbones, which take multiples: tiny-vace 16"),
        ({"--frames": "6"}, "6 frames do not fit all backbones: tiny-vace takes 4k+1. Take 5 or 9"),
        ({"--seeds": "a"}, "cannot read 'a'"),
        ({"--target-speedups": "0.5"}, "cannot read '0.5'"),
        ({"--repeat": "0"}, "repeat must be"),
        ({"--workers": "slurm"}, "workers must be"),
        ({"--ray-address": "auto"}, "goes with --workers ray"),
        ({"--device": "gpu"}, "there is no device 'gpu'"),
        ({"--lpips": "nowhere.pth"}, "there is no nowhere.pth"),
        ({"--lpips": "{files}/noise.mp4"}, "--lpips"),
        ({"--max-cache-bytes": "much"}, "cannot read 'much' as a size"),
        ({"--output": "{files}/clip.mp4"}, "is a file, not a folder"),
    ],
)
def test_a_mistake_is_one_line_before_anything_runs(
    here: None,
    tmp_path: Path,
    files: Path,
    capsys: pytest.CaptureFixture[str],
    changed: dict[str, str | None],
    said: str,
) -> None:
    output = tmp_path / "results"
    options = {"--output": str(output), **GOOD, **changed}
    words = [
        word.replace("{files}", str(files))
        for pair in options.items()
        if pair[1] is not None
        for word in pair
        if word is not None
    ]
    assert main(["compare", *words]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert said in err
    assert err.count("\n") == 1
    assert not output.exists()


def until(condition: Any, seconds: float = 300.0) -> None:
    """Wait; on two busy cores a worker took 100 s to start and to finish two short runs."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def kill_workers() -> None:
    for process in multiprocessing.active_children():
        if process.name.startswith("hetcache-") and process.pid:
            os.kill(process.pid, signal.SIGKILL)


def children(pid: int) -> list[int]:
    found = subprocess.run(
        ["ps", "-o", "pid=", "--ppid", str(pid)], capture_output=True, text=True, check=False
    )
    return [int(word) for word in found.stdout.split()]


def alive(pid: int) -> bool:
    """Whether a process runs; one that nobody has buried yet does not."""
    found = subprocess.run(
        ["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True, check=False
    )
    return found.stdout.strip()[:1] not in {"", "Z"}
