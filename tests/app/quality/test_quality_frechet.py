"""VFID: features of videos, and the distance between sets of them."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

pytest.importorskip("torchmetrics")

import numpy as np
import torch

from hetcache.quality.metric import QualityTools, Value
from hetcache.quality.vfid import Vfid, frechet_distance, video_features
from hetcache_core.errors import ConfigError

SHAPE = (4, 16, 24, 3)


class Moments(torch.nn.Module):
    """A video's mean and mean square, by colour."""

    def forward(self, video: torch.Tensor) -> torch.Tensor:
        return torch.cat([video.mean((2, 3, 4)), video.square().mean((2, 3, 4))], 1)


class Frames(torch.nn.Module):
    """A network that takes 4 frames and no other number."""

    def forward(self, video: torch.Tensor) -> torch.Tensor:
        return video.mean((3, 4)).reshape(-1, 12) * 1.0


class Nothing(torch.nn.Module):
    def forward(self, video: torch.Tensor) -> torch.Tensor:
        return video.mean((2, 3, 4)) / 0.0


def clip(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, SHAPE, dtype=np.uint8)


def script(folder: Path, network: torch.nn.Module) -> QualityTools:
    path = folder / "features.pt"
    torch.jit.trace(network.eval(), torch.rand(1, 3, *SHAPE[:3])).save(str(path))
    return QualityTools(video_features=path)


def moments(frames: np.ndarray) -> np.ndarray:
    scaled = frames.astype(float) / 255
    return np.concatenate([scaled.mean((0, 1, 2)), (scaled**2).mean((0, 1, 2))])


def test_without_a_network_a_video_has_no_features() -> None:
    assert video_features(clip(), QualityTools()) is None


def test_torchscript_gets_the_video_as_documented(tmp_path: Path) -> None:
    features = video_features(clip(), script(tmp_path, Moments()))
    assert features is not None
    assert features.shape == (6,)
    assert features == pytest.approx(moments(clip()), rel=1e-5)


def test_an_exported_program_serves_as_well(tmp_path: Path) -> None:
    path = tmp_path / "features.pt2"
    program = torch.export.export(Moments().eval(), (torch.rand(1, 3, *SHAPE[:3]),))
    torch.export.save(program, path)
    features = video_features(clip(), QualityTools(video_features=path))
    assert features == pytest.approx(moments(clip()), rel=1e-5)


def test_onnx_serves_as_well(tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    helper, number = onnx.helper, onnx.TensorProto.FLOAT
    reduce = helper.make_node("ReduceMean", ["video", "axes"], ["features"], keepdims=0)
    graph = helper.make_graph(
        [reduce],
        "means",
        [helper.make_tensor_value_info("video", number, ["B", 3, "F", "H", "W"])],
        [helper.make_tensor_value_info("features", number, ["B", 3])],
        [helper.make_tensor("axes", onnx.TensorProto.INT64, [3], [2, 3, 4])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.save(model, tmp_path / "features.onnx")
    features = video_features(clip(), QualityTools(video_features=tmp_path / "features.onnx"))
    assert features == pytest.approx(moments(clip())[:3], rel=1e-5)


@pytest.mark.parametrize("suffix", [".pt", ".pt2", ".onnx"])
def test_a_file_that_is_no_network_is_refused(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"noise{suffix}"
    path.write_bytes(b"noise")
    if suffix == ".onnx":
        pytest.importorskip("onnxruntime")
    with pytest.raises(ConfigError, match=r"--video-features: .* is no network that can be read"):
        Vfid().check(QualityTools(video_features=path))


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="there is no file"):
        Vfid().check(QualityTools(video_features=tmp_path / "nowhere.pt"))


def test_a_network_that_does_not_take_the_video_is_refused(tmp_path: Path) -> None:
    tools = script(tmp_path, Frames())
    with pytest.raises(ConfigError, match=r"does not take a video of \(1, 3, 3, 16, 24\)"):
        video_features(clip()[:3], tools)


def test_features_that_are_no_numbers_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"not \(1, D\) finite numbers"):
        video_features(clip(), script(tmp_path, Nothing()))


def test_the_distance_of_a_set_to_itself_is_nothing() -> None:
    features = np.random.default_rng(0).normal(50, 3, (40, 8))
    found = frechet_distance(features, features.copy())
    assert found.note == ""
    assert found.value == pytest.approx(0, abs=1e-9)


def test_the_distance_of_a_shifted_set_is_the_square_of_the_shift() -> None:
    features = np.random.default_rng(0).normal(size=(40, 8))
    shift = np.arange(8) / 4
    found = frechet_distance(features + shift, features)
    assert found.value == pytest.approx((shift**2).sum())


def test_the_distance_between_diagonal_gaussians_has_its_closed_form() -> None:
    """With these four points, a covariance is diagonal: 4 a^2 / 3 and 4 b^2 / 3."""

    def points(a: float, b: float) -> np.ndarray:
        return np.array([[a, b], [a, -b], [-a, b], [-a, -b]])

    found = frechet_distance(points(3, 1) + np.array([5, 0]), points(2, 4))
    expected = 25 + 4 / 3 * ((3 - 2) ** 2 + (1 - 4) ** 2)
    assert found.value == pytest.approx(expected)


def test_the_distance_is_that_of_symmetric_square_roots() -> None:
    """tr (C1 C2)^(1/2) = tr (S C2 S)^(1/2) with S^2 = C1, in which all matrices are symmetric."""
    random = np.random.default_rng(1)
    one, other = (random.normal(size=(60, 5)) @ random.normal(size=(5, 5)) + i for i in (2, 3))
    first, second = np.cov(one.T), np.cov(other.T)
    values, vectors = np.linalg.eigh(first)
    root = (vectors * np.sqrt(values)) @ vectors.T
    mixed = np.sqrt(np.linalg.eigvalsh(root @ second @ root)).sum()
    gap = one.mean(0) - other.mean(0)
    expected = gap @ gap + np.trace(first) + np.trace(second) - 2 * mixed
    assert frechet_distance(one, other).value == pytest.approx(expected)
    assert frechet_distance(other, one).value == pytest.approx(expected)


def test_too_few_clips_are_said_to_be_too_few() -> None:
    features = np.random.default_rng(0).normal(size=(6, 8))
    assert frechet_distance(features[:1], features) == Value(value=None, note="needs 2 clips")
    assert frechet_distance(features, features).note == "6 clips for 8 features"


def test_features_of_different_networks_are_refused() -> None:
    with pytest.raises(ConfigError, match="one set of videos has 3 features, the other 4"):
        frechet_distance(np.zeros((3, 3)), np.zeros((3, 4)))


def test_features_are_finite_however_large_the_set() -> None:
    """Sums of squares around a far centre would lose every digit that matters."""
    features = np.random.default_rng(0).normal(1e6, 1e-2, (50, 3))
    found = frechet_distance(features + 1, features)
    assert found.value is not None
    assert math.isclose(found.value, 3, rel_tol=1e-6)
