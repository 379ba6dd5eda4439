from __future__ import annotations

import csv
import io
import json
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from attrs import evolve
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

pytest.importorskip("rich")

from hetcache.comparison.plan.footage import frames_from_bytes, frames_to_bytes
from hetcache.comparison.results.folder import Results, Row, RowKey
from hetcache.media.arrays import read_array
from hetcache_core.errors import ConfigError
from hetcache_core.records.trace import Trace

KEY = RowKey(
    backbone="tiny-vace", clip="a, b", seed=3, policy="teacache", variant="3x", steps=20,
    frames=9, height=96, width=112, repeat=1,
)  # fmt: skip
ROW = Row(
    key=KEY,
    settings={"threshold": 0.1, "name": 'a "quoted"\nword'},
    note="two\nlines",
    target_speedup=3.0,
    modes="ffrp",
    flops=12345678901234567,
    flops_full=3,
    denoise_seconds=0.1 + 0.2,
    total_seconds=1.0,
    peak_cache_bytes=7,
    metrics={"psnr_reference": 41.25, "ssim_reference": None},
    metric_notes={"ssim_reference": "identical"},
)


RUN = f"runs/{KEY.id}"
CLIP = Results(folder=Path()).clip_folder(KEY.clip).as_posix()

READERS: dict[str, Callable[[Results], object]] = {
    "comparison.json": Results.read_plan,
    "rows.csv": Results.rows,
    f"{RUN}/frame_psnr.npy": lambda results: results.frame_psnr(KEY),
    f"{RUN}/trace.json": lambda results: results.trace(KEY),
    f"{CLIP}/features.npy": lambda results: results.features("features.npy", clip=KEY.clip),
    f"{CLIP}/clip.json": lambda results: results.prompt(KEY.clip),
}
FILES = list(READERS)
GRID = {
    "backbones": [], "policies": [], "clips": [{"name": "a"}], "seeds": [0], "steps": 2, "repeat": 1,
}  # fmt: skip


def filled(folder: Path) -> Results:
    """A folder with one file of each kind that is read again."""
    results = Results(folder=folder)
    results.append(ROW)
    results.write_plan({"arguments": {}, "grid": GRID})
    for name in ("frame_psnr.npy", "trace.json"):
        (results.run_folder(KEY) / name).parent.mkdir(parents=True, exist_ok=True)
    np.save(results.run_folder(KEY) / "frame_psnr.npy", np.ones(3))
    Trace(
        policy="p", settings={}, backbone="b", variant="", steps=1, requested_steps=1, tokens=1
    ).save(results.run_folder(KEY) / "trace.json")
    results.clip_folder(KEY.clip).mkdir(parents=True)
    np.save(results.clip_folder(KEY.clip) / "features.npy", np.ones(3, np.float32))
    (results.clip_folder(KEY.clip) / "clip.json").write_text('{"prompt": "p"}')
    for read in READERS.values():
        read(results)
    return results


@pytest.fixture
def results(tmp_path: Path) -> Results:
    return Results(folder=tmp_path / "results")


def test_a_row_is_read_as_it_was_written(results: Results) -> None:
    results.append(ROW)
    results.append(evolve(ROW, key=evolve(KEY, repeat=2), target_speedup=None))
    first, second = results.rows()
    assert first == ROW
    assert (second.key.repeat, second.target_speedup) == (2, None)


@pytest.mark.parametrize("kept", [0, 1, 40, 4000])
def test_a_half_written_line_is_dropped_and_overwritten(results: Results, kept: int) -> None:
    results.append(ROW)
    whole = results.rows_path.read_bytes()
    results.append(evolve(ROW, key=evolve(KEY, repeat=2)))
    after = results.rows_path.read_bytes()
    results.rows_path.write_bytes(after[: min(len(whole) + kept, len(after) - 1)])
    assert results.rows() == [ROW]
    results.append(evolve(ROW, key=evolve(KEY, repeat=2)))
    assert results.rows_path.read_bytes() == after


def test_a_half_written_header_is_written_again(results: Results) -> None:
    results.folder.mkdir()
    results.rows_path.write_bytes(b"id,backb")
    assert results.rows() == []
    results.append(ROW)
    assert len(results.rows()) == 1


def rewrite(results: Results, change: Callable[[dict[str, str]], dict[str, str]]) -> None:
    """Write the rows of a folder as another release would have."""
    with results.rows_path.open(newline="", encoding="utf-8") as file:
        records = [change(record) for record in csv.DictReader(file)]
    with results.rows_path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, records[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows(records)


def without(record: dict[str, str], *names: str) -> dict[str, str]:
    return {name: text for name, text in record.items() if name not in names}


def test_a_column_that_an_older_folder_lacks_is_at_its_default(results: Results) -> None:
    results.append(ROW)
    rewrite(results, lambda record: without(record, "peak_cache_bytes", "repeat", "metrics"))
    (row,) = results.rows()
    assert (row.peak_cache_bytes, row.key.repeat, row.metrics) == (0, 0, {})
    assert row.flops == ROW.flops


def test_a_column_of_a_newer_folder_is_passed_over_and_kept(results: Results) -> None:
    results.append(ROW)
    rewrite(results, lambda record: {"watts": "250", **without(record, "note"), "joules": "7"})
    results.append(evolve(ROW, key=evolve(KEY, repeat=2)))
    first, second = results.rows()
    assert (first.note, second.note) == ("", ROW.note)
    with results.rows_path.open(newline="", encoding="utf-8") as file:
        watts = [(record["watts"], record["joules"]) for record in csv.DictReader(file)]
    assert watts == [("250", "7"), ("", "")]


@pytest.mark.parametrize("column", ["seed", "policy", "frames"])
def test_a_column_without_a_default_is_named_where_it_is_missing(
    results: Results, column: str
) -> None:
    results.append(ROW)
    rewrite(results, lambda record: without(record, column))
    with pytest.raises(ConfigError, match=f"rows.csv, line 2: there is no '{column}'"):
        results.rows()


def test_the_folders_of_runs_are_called_as_they_always_were() -> None:
    """A field that is added to the key, and is at its default, must not rename them."""
    assert KEY.id == "tiny-vace-a-b-teacache-3x-ebbe682935-r1"


def test_every_part_of_the_key_gives_another_name() -> None:
    changes = (
        {"backbone": "b"}, {"model": "m"}, {"clip": "c"}, {"seed": 4}, {"policy": "p"},
        {"variant": "v"}, {"steps": 21}, {"frames": 13}, {"height": 1}, {"width": 1}, {"repeat": 0},
    )  # fmt: skip
    keys = [KEY, *(evolve(KEY, **change) for change in changes)]
    assert len({key.id for key in keys}) == len(keys)
    assert len({key.case_id for key in keys}) == len(keys) - 1  # the repetition does not count


def test_a_run_is_held_against_the_uncached_run_of_its_repetition() -> None:
    reference = KEY.reference()
    assert (reference.policy, reference.variant, reference.repeat) == ("none", "", 1)
    assert reference.reference() == reference


def test_a_line_that_is_no_row_is_named(results: Results) -> None:
    results.append(ROW)
    text = results.rows_path.read_text()
    results.rows_path.write_text(text.replace("12345678901234567", "many"))
    with pytest.raises(ConfigError, match="line 2"):
        results.rows()


def test_a_folder_without_a_comparison_is_refused(results: Results) -> None:
    with pytest.raises(ConfigError, match="holds no comparison"):
        results.read_plan()


def test_a_comparison_of_another_version_is_refused(results: Results) -> None:
    results.folder.mkdir()
    results.write_plan({"arguments": {"steps": 20}, "grid": GRID})
    assert results.read_plan()["arguments"]["steps"] == 20
    path = results.folder / "comparison.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "schema_version": 99}))
    with pytest.raises(ConfigError, match="of version 99"):
        results.read_plan()


def test_two_comparisons_do_not_write_into_one_folder(results: Results) -> None:
    other = Results(folder=results.folder)
    with (
        results.alone(),
        pytest.raises(ConfigError, match="another comparison is writing"),
        other.alone(),
    ):
        pass
    with other.alone():
        pass


NAMES = st.text(
    st.characters(exclude_categories=["Cs"]) | st.sampled_from("=+-@'\\ \t\n\r\0nr0"), max_size=12
)


@given(clip=NAMES.filter(bool), variant=NAMES, model=NAMES, note=NAMES)
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_name_is_lost_in_a_row(
    tmp_path_factory: pytest.TempPathFactory, clip: str, variant: str, model: str, note: str
) -> None:
    results = Results(folder=tmp_path_factory.mktemp("results"))
    row = evolve(ROW, key=evolve(KEY, clip=clip, variant=variant, model=model), note=note)
    results.append(row)
    results.append(evolve(ROW, key=evolve(KEY, repeat=2)))
    assert results.rows()[0] == row
    assert results.rows()[0].key.id == row.key.id


@given(
    clips=st.sets(NAMES | st.sampled_from(["a b", "a_b", ".", "..", "a" * 300, "a/b"]), min_size=2)
)
@settings(max_examples=60)
def test_two_clips_never_share_a_folder_nor_leave_it(clips: set[str]) -> None:
    results = Results(folder=Path("results"))
    folders = {results.clip_folder(clip) for clip in clips}
    assert len(folders) == len(clips)
    assert all(folder.parent == Path("results/clips") for folder in folders)
    assert all(len(folder.name) < 255 and folder.name not in {".", "..", ""} for folder in folders)


def test_clips_with_plain_names_keep_the_folders_that_they_always_had() -> None:
    assert Results(folder=Path("r")).clip_folder("small-still_2.b") == Path(
        "r/clips/small-still_2.b"
    )


@pytest.mark.parametrize("start", ["=1+1", "+1", "-1", "@x", "\tx", "'=1"])
def test_no_spreadsheet_runs_a_name(results: Results, start: str) -> None:
    results.append(evolve(ROW, key=evolve(KEY, clip=start)))
    with results.rows_path.open(newline="", encoding="utf-8") as file:
        (record,) = csv.DictReader(file)
    assert record["clip"].startswith("'")
    assert results.rows()[0].key.clip == start


JUNK = st.one_of(
    st.binary(max_size=200),
    st.sampled_from(
        [b"null", b"[]", b"{}", b"[" * 100_000, b"\xff\xfe", b'{"schema_version": 1}', b"1e999"]
    ),
)


@given(junk=JUNK, keep=st.integers(0, 400), file=st.sampled_from(FILES))
@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_damage_to_any_file_is_one_error_that_names_it(
    tmp_path_factory: pytest.TempPathFactory, junk: bytes, keep: int, file: str
) -> None:
    results = filled(tmp_path_factory.mktemp("results"))
    path = results.folder / file
    path.write_bytes(path.read_bytes()[:keep] + junk)
    said = ""
    try:
        READERS[file](results)
    except ConfigError as error:
        said = str(error)
    assert not said or str(path) in said


def test_a_number_of_the_wrong_kind_in_a_row_is_named(results: Results) -> None:
    results.append(ROW)
    for column, cell in {"seed": "x", "metrics": "[1]", "status": "well", "flops": "1.5"}.items():
        rewrite(results, lambda record: {**record, column: cell})  # noqa: B023 - called at once
        with pytest.raises(ConfigError, match=rf"rows.csv, line 2: {column}: "):
            results.rows()
        results.rows_path.unlink()
        results.append(ROW)


def test_what_a_killed_process_left_is_swept_away(results: Results) -> None:
    left = results.run_folder(KEY) / ".0123456789abcdef.part.mp4"
    left.parent.mkdir(parents=True)
    left.touch()
    with results.alone():
        assert not left.exists()


@pytest.mark.parametrize("claimed", [(1 << 40,), (3, 4), (0,), (-1,)])
def test_an_array_is_held_against_the_bytes_that_are_there(
    tmp_path: Path, claimed: tuple[int, ...]
) -> None:
    path = tmp_path / "a.npy"
    with path.open("wb") as file:
        np.lib.format.write_array_header_1_0(
            file, {"descr": "<f8", "fortran_order": False, "shape": claimed}
        )
        file.write(bytes(8 * 4))
    with pytest.raises(ConfigError, match=r"a\.npy is damaged"):
        read_array(path)


def test_an_archive_that_would_unpack_to_all_of_memory_is_not_unpacked() -> None:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("frames.npy", bytes(1 << 26))
    with pytest.raises(ValueError, match="no array"):
        frames_from_bytes(file.getvalue(), (1, 2, 2, 3))


def test_reference_frames_are_read_as_they_were_written() -> None:
    frames = np.random.default_rng(0).integers(0, 256, (2, 4, 6, 3), np.uint8)
    data = frames_to_bytes(frames)
    assert (frames_from_bytes(data, frames.shape) == frames).all()
    for damaged, shape in (
        (data[:-20], frames.shape),
        (b"junk", frames.shape),
        (data, (2, 4, 6, 4)),
    ):
        with pytest.raises(ValueError, match="it"):
            frames_from_bytes(damaged, shape)
