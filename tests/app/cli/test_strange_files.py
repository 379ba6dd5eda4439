"""Whatever a file of ours, a configuration or a mask holds, it is read, or refused in one line."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from attrs import asdict
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hetcache_core import ConfigError, ModelInfo, Trace, accelerate
from hetcache_core.records.calibration import CALIBRATION_VERSION, Calibration
from hetcache_core.records.schedule import Schedule
from hetcache_core.testing import TinyBackbone, tiny_case

FEW = settings(
    max_examples=80,
    derandomize=True,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)

SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats()
    | st.sampled_from(["", "full", "eNpjYAAAAAIAAQ==", "NaN", "\0", "é" * 300])
)
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner)
)


@pytest.fixture(scope="module")
def trace() -> Trace:
    """A finished run with partial steps on the toy."""
    case = tiny_case()
    pipeline = case.make_pipeline(0)
    with accelerate(pipeline, "hetcache", backbone=TinyBackbone()) as session:
        case.run(pipeline, 6, case.layouts[0], 0)
    return session.trace


@pytest.fixture(scope="module")
def documents(trace: Trace, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """One file of each kind, as plain values."""
    folder = tmp_path_factory.mktemp("documents")
    trace.save(folder / "trace.json")
    Schedule.of(trace).save(folder / "schedule.json")
    calibration = Calibration(
        policy="magcache", model=model_of(trace), sigmas=(1.0, 0.5), clips=2, data={"ratios": [1.0, 0.9]}
    )  # fmt: skip
    calibration.save(folder / "calibration.json")
    return {name: json.loads((folder / f"{name}.json").read_text()) for name in READERS}


def model_of(trace: Trace) -> ModelInfo:
    assert trace.plan is not None
    return trace.plan.model


READERS: dict[str, Callable[[Path, ModelInfo], object]] = {
    "trace": lambda path, _: Trace.load(path),
    "schedule": lambda path, model: Schedule.load(path, model=model),
    "calibration": lambda path, model: Calibration.load(path, policy="magcache", model=model),
}


def places(plain: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Every place in a document, but those deep in long lists."""
    if at:
        yield at
    found: Iterable[tuple[Any, Any]] = ()
    if isinstance(plain, dict):
        found = plain.items()
    elif isinstance(plain, list):
        found = enumerate(plain)
    for key, value in found:
        if not isinstance(key, int) or key < 2:
            yield from places(value, (*at, key))


@pytest.mark.parametrize("kind", READERS)
@given(data=st.data())
@FEW
def test_a_document_with_a_strange_value_is_read_or_refused(
    kind: str,
    data: st.DataObject,
    documents: dict[str, Any],
    trace: Trace,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    plain = copy.deepcopy(documents[kind])
    *way, last = data.draw(st.sampled_from(list(places(plain))))
    inside = plain
    for key in way:
        inside = inside[key]
    if data.draw(st.booleans()):
        inside[last] = data.draw(VALUES)
    else:
        del inside[last]
    path = tmp_path_factory.getbasetemp() / f"{kind}.json"
    path.write_text(json.dumps(plain))
    try:
        READERS[kind](path, model_of(trace))
    except ConfigError as error:
        assert kind in str(error) or str(path) in str(error)  # noqa: PT017 - either is right


def test_a_document_is_read_as_it_was_written(documents: dict[str, Any], trace: Trace) -> None:
    assert documents["calibration"]["version"] == CALIBRATION_VERSION
    assert documents["calibration"]["model"]["width"] == asdict(model_of(trace))["width"]
    again = Trace.from_dict(documents["trace"])
    assert json.loads(json.dumps(again.to_dict())) == documents["trace"]


KEYS = st.sampled_from(
    ["video", "mask", "output", "steps", "seed", "policy", "quality", "loading", "?"]
)


@given(st.dictionaries(KEYS, VALUES, max_size=4) | VALUES, st.text(max_size=8))
@FEW
def test_a_configuration_with_strange_values_is_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, plain: Any, after: str
) -> None:
    yaml = pytest.importorskip("yaml")
    from hetcache.editing.config import EditConfig
    from hetcache.running.options import make

    path = tmp_path_factory.getbasetemp() / "run.yaml"
    path.write_text(yaml.safe_dump(plain) + after, encoding="utf-8")
    given_ = {"video": "clip.mp4", "mask": "mask.png", "output": "out.mp4"}
    with suppress(ConfigError):
        assert isinstance(make(EditConfig, given_, where="hetcache edit", file=path), EditConfig)


PICTURES = st.sampled_from(["1", "L", "LA", "P", "RGB", "RGBA", "I;16", "I", "F", "CMYK"])


@given(PICTURES, st.integers(0, 2**32 - 1), st.sampled_from([(16, 24), (8, 12), (24, 16), (1, 1)]))
@FEW
def test_a_mask_of_any_kind_of_picture_is_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, mode: str, seed: int, size: tuple[int, int]
) -> None:
    image_module = pytest.importorskip("PIL.Image")
    from hetcache.media.masks import read_mask

    numbers = np.random.default_rng(seed)
    height, width = size
    bands = {"LA": 2, "RGB": 3, "RGBA": 4, "CMYK": 4}.get(mode, 1)
    most = int(numbers.choice([1, 2, 5, 255]))
    levels = (
        numbers.integers(0, most + 1, (height, width, bands))
        .astype(np.uint8)
        .squeeze(-1 if bands == 1 else ())
    )
    image = image_module.fromarray(levels, None if bands == 1 else mode)
    if bands == 1 and mode != "L":
        image = image.convert("L").convert(mode.partition(";")[0] if mode == "I;16" else mode)
    path = tmp_path_factory.getbasetemp() / "mask.tiff"
    image.save(path)
    with suppress(ConfigError):
        mask = read_mask(path, frames=3, height=16, width=24)
        assert mask.pixels.shape == (3, 16, 24)
        assert mask.pixels.dtype == bool
        assert mask.pixels.any()
