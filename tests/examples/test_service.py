"""The example service, asked by a real HTTP client over loopback, under load."""

from __future__ import annotations

import asyncio
import gc
import json
import re
import sys
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from fractions import Fraction
from importlib import util
from importlib.metadata import metadata
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("av")
pytest.importorskip("fastapi")
pytest.importorskip("httpx")
pytest.importorskip("multipart")
pytest.importorskip("prometheus_client")
pytest.importorskip("uvicorn")
pytest.importorskip("yaml")

import httpx
import uvicorn

from hetcache.media.video import read_video, write_video
from hetcache_core import Session
from hetcache_core.testing import TinyBackbone, TinyPipeline

EXAMPLE = Path(__file__).parents[2] / "examples" / "service"
REQUESTS, AT_ONCE = 200, 8
KEPT = 16


@pytest.fixture(scope="module")
def service() -> ModuleType:
    spec = util.spec_from_file_location("service_example", EXAMPLE / "service.py")
    assert spec is not None
    assert spec.loader is not None
    module = util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where annotations are looked up
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("clip")
    frames = np.random.default_rng(0).integers(0, 256, (5, 32, 32, 3), dtype=np.uint8)
    mask = np.zeros_like(frames)
    mask[:, 8:24, 8:24] = 255
    files = {}
    for name, pixels in (("video", frames), ("mask", mask)):
        write_video(folder / f"{name}.mp4", pixels, Fraction(8))
        files[name] = (folder / f"{name}.mp4").read_bytes()
    return files


@contextmanager
def served(app: Any) -> Iterator[str]:
    """Serve an app in a thread, and yield its address."""
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="warning"))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        assert thread.is_alive()
        time.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(60)
        assert not thread.is_alive()


def upload(clip: dict[str, bytes]) -> dict[str, tuple[str, bytes]]:
    return {name: (f"{name}.mp4", content) for name, content in clip.items()}


async def told(client: Any, edit: str) -> AsyncIterator[dict[str, Any]]:
    async with client.stream("GET", f"/edits/{edit}/events") as stream:
        assert stream.headers["content-type"].startswith("text/event-stream")
        async for line in stream.aiter_lines():
            if line.startswith("data: "):
                yield json.loads(line[6:])


async def end_of(client: Any, edit: str) -> dict[str, Any]:
    return [event async for event in told(client, edit)][-1]


def test_an_edit_is_uploaded_watched_fetched_and_counted(
    service: ModuleType, clip: dict[str, bytes], tmp_path: Path
) -> None:
    async def use(address: str) -> None:
        async with httpx.AsyncClient(base_url=address, timeout=60) as client:
            asked = {"policy": "every-nth", "steps": 4, "target_speedup": 1.5}
            answer = await client.post("/edits", files=upload(clip), data=asked)
            assert answer.status_code == 202, answer.text
            edit = answer.json()["id"]
            events = [event async for event in told(client, edit)]
            assert events[0] == {"state": "queued"}
            assert [e["step"] for e in events[1:-1]] == [1, 2, 3, 4]
            assert events[-1]["state"] == "done"
            assert events[-1]["speedup"] > 1.3
            assert [e["mode"] for e in events[1:-1]].count("reuse") == events[-1]["modes"].count(
                "s"
            )
            assert (await client.get(f"/edits/{edit}")).json() == events[-1]
            (tmp_path / "result.mp4").write_bytes(
                (await client.get(f"/edits/{edit}/result")).content
            )
            assert (await client.get("/edits/other")).status_code == 404

            wrong = {"policy": "no-such", "steps": 4}
            answer = await client.post("/edits", files=upload(clip), data=wrong)
            assert answer.status_code == 422
            assert "no-such" in answer.json()["detail"]
            path = {"policy": "replay:schedule=/etc/passwd"}
            answer = await client.post("/edits", files=upload(clip), data=path)
            assert answer.status_code == 422
            large = {**upload(clip), "mask": ("mask.mp4", b"\0" * (1 << 20))}
            assert (await client.post("/edits", files=large)).status_code == 413

            metrics = (await client.get("/metrics")).text
            assert 'hetcache_edits_total{state="done"} 1.0' in metrics
            assert "hetcache_run_speedup_count 1.0" in metrics
            assert "hetcache_edits_pending 0.0" in metrics

    limits = service.Limits(upload_bytes=1 << 19)
    app = service.create_app(TinyBackbone(), TinyPipeline(), limits)
    with served(app) as address:
        asyncio.run(use(address))
        folder = app.state.service.folder
        assert folder.exists()
    assert not folder.exists()
    made = read_video(tmp_path / "result.mp4", option="--video", start=0, max_frames=None)
    assert made.frames.shape == (5, 32, 32, 3)


def test_a_full_queue_is_told_503_what_waits_can_be_cancelled_and_a_failure_is_told(
    service: ModuleType, clip: dict[str, bytes]
) -> None:
    pipeline, go = TinyPipeline(), threading.Event()
    hook = pipeline.model.blocks[0].register_forward_hook(lambda *_: go.wait(60) and None)

    async def use(address: str) -> None:
        async with httpx.AsyncClient(base_url=address, timeout=60) as client:
            edits = []
            for _ in range(2):
                answer = await client.post("/edits", files=upload(clip), data={"policy": "none"})
                edits.append(answer.json()["id"])
            answer = await client.post("/edits", files=upload(clip))
            assert answer.status_code == 503
            assert int(answer.headers["retry-after"]) >= 1
            assert (await client.get(f"/edits/{edits[0]}/result")).status_code == 409
            for edit in edits:  # the one that runs, and the one that waits
                assert (await client.delete(f"/edits/{edit}")).status_code == 202
            go.set()
            ends = [await end_of(client, edit) for edit in edits]
            assert [end["state"] for end in ends] == ["cancelled"] * 2
            assert ends[0]["steps_done"] <= 1
            assert ends[1]["steps_done"] == 0
            hook.remove()
            broken = pipeline.model.blocks[0].register_forward_hook(lambda *_: 1 / 0)
            answer = await client.post("/edits", files=upload(clip), data={"steps": 2})
            last = await end_of(client, answer.json()["id"])
            assert last == {"state": "failed", "error": "ZeroDivisionError in the pipeline"}
            broken.remove()
            answer = await client.post("/edits", files=upload(clip), data={"steps": 2})
            assert (await end_of(client, answer.json()["id"]))["state"] == "done"

    app = service.create_app(TinyBackbone(), pipeline, service.Limits(pending=2))
    with served(app) as address:
        asyncio.run(use(address))


def resident() -> int:
    """Bytes of this process in memory; 0 where the system doesn't say."""
    statm = Path("/proc/self/statm")
    return int(statm.read_text().split()[1]) * 4096 if statm.exists() else 0


def held() -> dict[str, int]:
    gc.collect()
    objects = [type(o) for o in gc.get_objects()]
    return {
        "tensors": sum(issubclass(o, torch.Tensor) for o in objects),
        "sessions": objects.count(Session),
    }


def test_200_requests_8_at_once_lose_none_and_leave_memory_flat(
    service: ModuleType, clip: dict[str, bytes]
) -> None:
    """Every fifth is cancelled and every fifth is broken; each policy gives one and the same result."""
    ended, results, marks = Counter[str](), dict[str, set[bytes]](), list[int]()
    policies = ("none", "every-nth", "teacache", "hetcache")

    async def one(client: Any, number: int) -> None:
        policy = policies[number // 5 % len(policies)]
        kind = ("plain", "cancel", "plain", "broken", "plain")[number % 5]
        files = upload(clip)
        if kind == "broken":
            files["video"] = ("video.mp4", clip["video"][: 40 * (number % 4)])
        asked = {"policy": policy, "steps": 2 if kind == "plain" else 20}
        answer = await client.post("/edits", files=files, data=asked)
        while answer.status_code == 503:
            ended["told 503"] += 1
            await asyncio.sleep(0.02)
            answer = await client.post("/edits", files=files, data=asked)
        if kind == "broken":
            assert answer.status_code == 422, answer.text
            ended["broken"] += 1
            return
        assert answer.status_code == 202, answer.text
        edit = answer.json()["id"]
        if kind == "cancel":
            assert (await client.delete(f"/edits/{edit}")).status_code == 202
        last = await end_of(client, edit)
        ended[last["state"]] += 1
        if last["state"] == "done" and kind == "plain":
            made = await client.get(f"/edits/{edit}/result")
            results.setdefault(policy, set()).add(made.content)

    async def use(address: str) -> None:
        numbers = iter(range(REQUESTS))

        async def work() -> None:
            for number in numbers:
                await one(client, number)
                if number in {REQUESTS // 2, REQUESTS - 1}:
                    marks.append(resident())

        async with httpx.AsyncClient(base_url=address, timeout=60) as client:
            await asyncio.gather(*(work() for _ in range(AT_ONCE)))
            assert (await client.get("/healthz")).json() == {"pending": 0}

    app = service.create_app(
        TinyBackbone(), TinyPipeline(), service.Limits(pending=AT_ONCE - 2, kept=KEPT)
    )
    before = held()
    with served(app) as address:
        asyncio.run(use(address))
        kept = app.state.service.edits
        assert len(kept) == KEPT
        assert len(list(app.state.service.folder.iterdir())) == KEPT
        after = held()
    told_503 = ended.pop("told 503")
    assert told_503 > 0
    assert ended.total() == REQUESTS
    assert ended["broken"] == REQUESTS // 5
    assert ended["cancelled"] > REQUESTS // 10
    assert ended["failed"] == 0
    assert {policy: len(files) for policy, files in results.items()} == dict.fromkeys(policies, 1)
    assert after == before
    assert marks[-1] - marks[0] < 64 << 20


def test_what_the_dockerfile_copies_and_installs_is_there() -> None:
    """It is not built here: its files, extras, requirements and environment are what is held."""
    text, root = (EXAMPLE / "Dockerfile").read_text(), EXAMPLE.parents[1]
    lines = [line.split() for line in text.splitlines()]
    assert [line[-1] for line in lines if line[:1] == ["FROM"]] == ["cpu", "cuda"]
    copied = {source for line in lines if line[:1] == ["COPY"] for source in line[1:-1]}
    assert copied == {
        "dist/*.whl",
        "examples/service/requirements.txt",
        "examples/service/service.py",
    }
    assert all((root / source).is_file() for source in copied - {"dist/*.whl"})
    extras = set(re.findall(r"whl\)\[([a-z,]+)\]", text))
    assert len(extras) == 1
    assert set(extras.pop().split(",")) <= set(metadata("hetcache").get_all("Provides-Extra") or ())
    tested = (root / "pyproject.toml").read_text()
    for requirement in (EXAMPLE / "requirements.txt").read_text().split():
        assert f'"{requirement}"' in tested
    named = set(re.findall(r"(HETCACHE_\w+)=", text))
    assert named
    assert named <= set(re.findall(r"HETCACHE_\w+", (EXAMPLE / "service.py").read_text()))
