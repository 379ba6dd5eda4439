"""Settings that all tests share."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import hypothesis
import pytest
import torch

from hetcache_core import PluginLoadError, UnsupportedBackboneError, discover
from hetcache_core.testing import BackboneCase

# Machines under load are slow at times; a time limit per example would make tests flaky.
hypothesis.settings.register_profile("project", deadline=None)
hypothesis.settings.load_profile("project")

# A thread a worker: threads that share cores with other work run many times slower.
torch.set_num_threads(1)


@pytest.fixture(scope="session")
def case_of() -> Callable[[str], BackboneCase]:
    """What makes a backbone's case; skips where its library is missing, or it has no small pipeline."""
    registry = discover()

    @cache
    def make(backbone: str) -> BackboneCase:
        try:
            models = registry.backbone(backbone)().random_models
            case = None if models is None else models.case()
            if case is not None:
                case.make_pipeline(0)
        except (UnsupportedBackboneError, PluginLoadError) as error:
            pytest.skip(str(error))
        if case is None:
            pytest.skip(f"{backbone} has no random models")
        return case

    return make


@pytest.fixture(scope="session")
def graphs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of ONNX graphs of a small Wan-VACE, one for all workers; writing it takes ten seconds."""
    from filelock import FileLock  # comes with torch

    from hetcache_backends.tiny_vace.pipeline import build_pipeline
    from hetcache_backends.wan.case import SMALL
    from hetcache_backends.wan.wan_vace import WanVace

    base = tmp_path_factory.getbasetemp()
    run = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    folder = run / "onnx" / "graphs"
    folder.parent.mkdir(exist_ok=True)
    with FileLock(run / "onnx.lock"):
        if not folder.exists():  # it comes whole or not at all
            WanVace().exporter.export(build_pipeline(seed=0, config=SMALL), folder)
    return folder


@pytest.fixture(scope="session")
def opened(graphs: Path) -> Any:
    """The same, loaded on onnxruntime."""
    from hetcache_backends.onnx.wan import open_folder

    return open_folder(graphs, "cpu")
