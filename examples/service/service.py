"""An HTTP service around one loaded pipeline: upload, queue, progress, cancel, result, metrics.

``uvicorn --factory service:loaded`` serves the model that ``HETCACHE_BACKBONE`` names, by default the
embedded one. Everything about edits changes in the event loop alone; one thread runs them, in the order
they came.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import shutil
import tempfile
from collections.abc import AsyncIterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Final
from uuid import uuid4

from attrs import define, field, frozen
from fastapi import FastAPI, Form, HTTPException, Request, UploadFile
from fastapi.responses import FileResponse, JSONResponse, Response, StreamingResponse
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from hetcache.editing.config import EditConfig
from hetcache.editing.job import Job, prepare
from hetcache.media.video import write_video
from hetcache.running.options import make
from hetcache_core import (
    Backbone,
    CallRecord,
    HetCacheError,
    LoadRequest,
    PipelineBusyError,
    RunCancelledError,
    Session,
    StepInfo,
    Trace,
    accelerate,
    discover,
)

_log = logging.getLogger("hetcache.service")

RETRY_AFTER: Final = 1
"""Seconds after which a client that was told 503 may ask again."""

MOST_STEPS: Final = 100
"""Steps of one edit."""

CHUNK: Final = 1 << 20
"""Bytes of an upload that are in memory at once."""


@frozen(kw_only=True)
class Limits:
    """What one service takes.

    Attributes:
        pending: edits that wait or run; one more is answered with 503.
        kept: finished edits whose result can still be fetched; the oldest goes first.
        upload_bytes: bytes of one uploaded file.
    """

    pending: int = 16
    kept: int = 64
    upload_bytes: int = 256 * CHUNK


@define(eq=False, kw_only=True)
class Edit:
    """One edit that was asked for, from its upload until its result is dropped.

    Attributes:
        id: what clients know it by.
        folder: its files.
        session: its session on the pipeline; None when it is over.
        cancelled: whether somebody wants it to end; between two windows no run is under way.
        state: "queued", "running", "done", "cancelled" or "failed".
        events: what was said of it, for those who look on, also later.
        news: set, and replaced, with each event.
    """

    id: str
    folder: Path
    session: Session | None = None
    cancelled: bool = False
    state: str = "queued"
    events: list[dict[str, Any]] = field(factory=list)
    news: asyncio.Event = field(factory=asyncio.Event)

    @property
    def over(self) -> bool:
        """Whether nothing more will happen."""
        return self.state in {"done", "cancelled", "failed"}

    def say(self, state: str, **facts: object) -> None:
        """Add an event and wake all who look on."""
        self.state = state
        self.events.append({"state": state, **facts})
        self.news.set()
        self.news = asyncio.Event()


@frozen(eq=False)
class Metrics:
    """What Prometheus reads at /metrics."""

    registry: CollectorRegistry = field(factory=CollectorRegistry)
    edits: Counter = field(init=False)
    pending: Gauge = field(init=False)
    speedup: Histogram = field(init=False)
    seconds: Histogram = field(init=False)
    cache: Gauge = field(init=False)

    @edits.default
    def _edits(self) -> Counter:
        return Counter("hetcache_edits", "Edits that are over", ["state"], registry=self.registry)

    @pending.default
    def _pending(self) -> Gauge:
        return Gauge("hetcache_edits_pending", "Edits that wait or run", registry=self.registry)

    @speedup.default
    def _speedup(self) -> Histogram:
        name, buckets = "hetcache_run_speedup", (1, 1.25, 1.5, 2, 2.5, 3, 4, 6)
        return Histogram(name, "Times fewer FLOPs", buckets=buckets, registry=self.registry)

    @seconds.default
    def _seconds(self) -> Histogram:
        name, buckets = "hetcache_run_seconds", (0.1, 1, 5, 15, 60, 300, 1800)
        return Histogram(name, "Seconds of denoising", buckets=buckets, registry=self.registry)

    @cache.default
    def _cache(self) -> Gauge:
        name = "hetcache_cache_peak_bytes"
        return Gauge(name, "Most bytes kept at once in the last run", registry=self.registry)

    def ran(self, trace: Trace) -> None:
        """Count a run that ended."""
        totals = trace.totals()
        self.speedup.observe(totals.flops_speedup)
        self.seconds.observe(totals.denoise_seconds)
        self.cache.set(totals.peak_cache_bytes)


@define(eq=False)
class Service:
    """One pipeline, the edits that were asked of it, and the thread that runs them."""

    backbone: Backbone
    pipeline: Any
    limits: Limits
    metrics: Metrics = field(factory=Metrics)
    edits: dict[str, Edit] = field(factory=dict)
    folder: Path = field(factory=lambda: Path(tempfile.mkdtemp(prefix="hetcache-service-")))
    _pending: int = 0
    _thread: ThreadPoolExecutor = field(factory=lambda: ThreadPoolExecutor(1, "edits"))
    _tasks: set[asyncio.Task[None]] = field(factory=set)

    async def submit(self, video: UploadFile, mask: UploadFile, asked: Mapping[str, Any]) -> Edit:
        """Take an edit, checked as far as it can be before it runs.

        Raises:
            PipelineBusyError: enough others wait.
            HetCacheError: something is wrong with the files or with what was asked for.
        """
        if self._pending >= self.limits.pending:
            raise PipelineBusyError(
                f"{self._pending} edits are under way", remedy="Ask again later."
            )
        edit = Edit(id=uuid4().hex, folder=Path(tempfile.mkdtemp(dir=self.folder)))
        self._count(1)
        try:
            files = {
                "video": await self._saved(video, edit.folder, "video"),
                "mask": await self._saved(mask, edit.folder, "mask"),
                "output": edit.folder / "result.mp4",
            }
            loop = asyncio.get_running_loop()
            job, session = await asyncio.to_thread(self._prepare, edit, {**files, **asked}, loop)
        except BaseException:
            self._count(-1)
            shutil.rmtree(edit.folder, ignore_errors=True)
            raise
        self.edits[edit.id] = edit
        edit.session = session
        edit.say("queued")
        task = asyncio.create_task(self._carry_out(edit, job, session))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return edit

    def cancel(self, edit: Edit) -> None:
        """End an edit before its next step, or before it begins."""
        edit.cancelled = True
        if edit.session is not None:
            edit.session.cancel()

    async def close(self) -> None:
        """Cancel what has not ended, wait for it and remove all files."""
        for edit in self.edits.values():
            self.cancel(edit)
        await asyncio.gather(*self._tasks)
        self._thread.shutdown()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _count(self, more: int) -> None:
        self._pending += more
        self.metrics.pending.set(self._pending)

    async def _saved(self, upload: UploadFile, folder: Path, name: str) -> Path:
        """Write an upload to a file of our own naming: of the client's, the suffix counts."""
        suffix = Path(upload.filename or "").suffix.lower()
        path, size = folder / f"{name}{suffix if suffix[1:].isalnum() else ''}", 0
        with path.open("wb") as file:
            while chunk := await upload.read(CHUNK):
                size += len(chunk)
                if size > self.limits.upload_bytes:
                    raise HTTPException(
                        413, f"{name} is larger than {self.limits.upload_bytes} bytes"
                    )
                file.write(chunk)
        return path

    def _prepare(
        self, edit: Edit, asked: Mapping[str, Any], loop: asyncio.AbstractEventLoop
    ) -> tuple[Job, Session]:
        def on_step(step: StepInfo, records: Sequence[CallRecord]) -> None:
            facts = {"step": step.index + 1, "steps": step.total, "mode": records[0].mode.value}
            loop.call_soon_threadsafe(lambda: edit.say("running", **facts))

        config = make(EditConfig, asked, where="edit")
        policy = config.policy.choose(config.limits, config.cache, config.steps)
        job = prepare(config, self.backbone)
        session = accelerate(
            self.pipeline,
            policy.name,
            settings=policy.settings,
            preset=policy.preset,
            target_speedup=policy.target_speedup,
            guards=policy.guards,
            store=policy.store,
            backbone=self.backbone,
            wait=True,
            on_run=self.metrics.ran,
            on_step=on_step,
        )
        return job, session

    async def _carry_out(self, edit: Edit, job: Job, session: Session) -> None:
        """Wait for the thread, run the edit in it and say how it ended."""
        state, facts = "failed", dict[str, object]()
        try:
            run = partial(self._run, edit, job, session)
            trace = await asyncio.get_running_loop().run_in_executor(self._thread, run)
            state, facts = "done", _facts(trace)
        except RunCancelledError as error:
            state, facts = "cancelled", {"steps_done": error.steps_done}
        except HetCacheError as error:
            facts = {"error": str(error)}
        except Exception as error:  # noqa: BLE001 - an edit that fails takes nothing else down
            _log.exception("edit %s failed", edit.id, extra={"session_id": session.id})
            facts = {"error": f"{type(error).__name__} in the pipeline"}
        edit.session = None
        self._count(-1)
        self.metrics.edits.labels(state).inc()
        edit.say(state, **facts)
        over = [e for e in self.edits.values() if e.over]
        for oldest in over[: max(0, len(over) - self.limits.kept)]:
            del self.edits[oldest.id]
            shutil.rmtree(oldest.folder, ignore_errors=True)

    def _run(self, edit: Edit, job: Job, session: Session) -> Trace:
        result = job.clip.frames.copy()
        with session:
            for window in job.windows:
                if edit.cancelled:
                    raise RunCancelledError
                request = job.request(window, result)
                if request is not None:
                    job.put(window, self.backbone.edit(self.pipeline, request), result)
        clip = job.clip
        write_video(
            edit.folder / "result.mp4", result, clip.fps, times=clip.times, aspect=clip.aspect
        )
        return session.trace


def _facts(trace: Trace) -> dict[str, object]:
    totals = trace.totals()
    return {
        "run_id": trace.run_id,
        "modes": trace.letters(),
        "speedup": totals.flops_speedup,
        "seconds": totals.denoise_seconds,
        "cache_peak_bytes": totals.peak_cache_bytes,
        "notes": trace.notes,
    }


def create_app(backbone: Backbone, pipeline: Any, limits: Limits | None = None) -> FastAPI:
    """Make the service of a loaded pipeline; ``app.state.service`` is what holds the edits."""
    service = Service(backbone, pipeline, limits or Limits())

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        yield
        await service.close()

    app = FastAPI(title="hetcache", lifespan=lifespan)
    app.state.service = service

    def found(edit_id: str) -> Edit:
        if edit_id not in service.edits:
            raise HTTPException(404, "There is no such edit, or its result was dropped.")
        return service.edits[edit_id]

    @app.exception_handler(PipelineBusyError)
    async def busy(_request: Request, error: PipelineBusyError) -> JSONResponse:
        return JSONResponse({"detail": str(error)}, 503, {"Retry-After": str(RETRY_AFTER)})

    @app.exception_handler(HetCacheError)
    async def refused(_request: Request, error: HetCacheError) -> JSONResponse:
        return JSONResponse({"detail": str(error)}, 422)

    @app.post("/edits", status_code=202)
    async def submit(
        video: UploadFile,
        mask: UploadFile,
        prompt: Annotated[str, Form(max_length=2000)] = "",
        # A name, perhaps with a preset: settings may name files of this machine.
        policy: Annotated[str, Form(pattern=r"^[a-z0-9+-]+(@[a-z0-9.]+)?$")] = "auto",
        steps: Annotated[int, Form(ge=1, le=MOST_STEPS)] = 20,
        seed: Annotated[int, Form(ge=0, lt=2**63)] = 0,
        target_speedup: Annotated[float | None, Form(ge=1, le=100)] = None,
        max_cache_bytes: Annotated[int | None, Form(ge=1)] = None,
    ) -> dict[str, str]:
        asked = {"prompt": prompt, "policy": policy, "steps": steps, "seed": seed}
        asked |= {"target_speedup": target_speedup, "max_cache_bytes": max_cache_bytes}
        given = {name: value for name, value in asked.items() if value is not None}
        return {"id": (await service.submit(video, mask, given)).id}

    @app.get("/edits/{edit_id}")
    async def state(edit_id: str) -> dict[str, Any]:
        return found(edit_id).events[-1]

    @app.get("/edits/{edit_id}/events")
    async def events(edit_id: str) -> StreamingResponse:
        return StreamingResponse(_stream(found(edit_id)), media_type="text/event-stream")

    @app.delete("/edits/{edit_id}", status_code=202)
    async def cancel(edit_id: str) -> dict[str, Any]:
        edit = found(edit_id)
        service.cancel(edit)
        return edit.events[-1]

    @app.get("/edits/{edit_id}/result")
    async def result(edit_id: str) -> FileResponse:
        edit = found(edit_id)
        if edit.state != "done":
            raise HTTPException(409, f"The edit is {edit.state}.")
        return FileResponse(edit.folder / "result.mp4", media_type="video/mp4")

    @app.get("/metrics")
    async def metrics() -> Response:
        return Response(generate_latest(service.metrics.registry), media_type="text/plain")

    @app.get("/healthz")
    async def healthy() -> dict[str, int]:
        return {"pending": service._pending}  # noqa: SLF001

    return app


async def _stream(edit: Edit) -> AsyncIterator[str]:
    """Yield what was said of an edit and what will be, until it is over, as server-sent events."""
    told = 0
    while True:
        news = edit.news
        for event in edit.events[told:]:
            yield f"event: {event['state']}\ndata: {json.dumps(event)}\n\n"
        told = len(edit.events)
        if edit.over:
            return
        await news.wait()


def loaded() -> FastAPI:
    """Load what the environment names and serve it.

    ``HETCACHE_BACKBONE`` and ``HETCACHE_MODEL`` are the command's ``--backbone`` and ``--model``,
    ``HETCACHE_DEVICE`` and ``HETCACHE_DTYPE`` say where and in what it computes.
    """
    backbone = discover().backbone(os.environ.get("HETCACHE_BACKBONE", "tiny-vace"))()
    request = LoadRequest(
        model=os.environ.get("HETCACHE_MODEL"),
        device=os.environ.get("HETCACHE_DEVICE", "cpu"),
        dtype=os.environ.get("HETCACHE_DTYPE", "float32"),
    )
    return create_app(backbone, backbone.load(request))
