"""What was decided and what it cost: one record a DiT call, written and read as JSON."""

from __future__ import annotations

import html
import json
import os
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from attrs import asdict, define, field, fields, frozen

from hetcache_core.errors import ConfigError
from hetcache_core.files import read_json, write_text
from hetcache_core.records.plan import Plan
from hetcache_core.settings.fitting import structure
from hetcache_core.steps import Mode

SCHEMA_VERSION: Final = 2
"""Raised whenever a reader of older traces would misread a newer one, or miss something in an older one.

2: with a plan."""

_COLORS: Final = {
    Mode.FULL: "#1f4e79",
    Mode.PARTIAL: "#2e8b57",
    Mode.REUSE: "#8a8a8a",
    Mode.PREDICT: "#8b5a9f",
}
"""Backgrounds of the timeline's cells, dark enough for white letters."""

READABLE: Final = (1, SCHEMA_VERSION)


@define(eq=True, kw_only=True)
class CallRecord:
    """One DiT call.

    Attributes:
        step: index of the step.
        timestep: unrounded timestep.
        sigma: noise level.
        branch: guidance branch, or branches of one merged call joined by "+".
        expert: the expert model, "" where there is one model.
        tokens: all tokens ``N`` of one batch row.
        mode: what the call did.
        reason: why, in words.
        signal: the value that was compared, or None.
        active: tokens that went through blocks.
        active_by_role: the active ones by role name; empty for unmasked runs.
        blocks_run: main blocks that ran, whole or in part.
        control_run: control blocks that ran.
        parts_reused: sub-layers whose stored output was used.
        seconds: duration of the call, embedding and head included; on CUDA measured by events.
        flops: FLOPs that ran.
        flops_full: FLOPs of the same call without caching.
        cache_bytes: bytes in the store after the call.
        host_reads: numbers that the decision brought to the host.
    """

    step: int
    timestep: float
    sigma: float
    branch: str
    expert: str
    tokens: int
    mode: Mode = Mode.FULL
    reason: str = ""
    signal: float | None = None
    active: int = 0
    active_by_role: dict[str, int] = field(factory=dict)
    blocks_run: int = 0
    control_run: int = 0
    parts_reused: int = 0
    seconds: float = 0.0
    flops: int = 0
    flops_full: int = 0
    cache_bytes: int = 0
    host_reads: int = 0


@frozen(kw_only=True)
class Change:
    """What the budget, the gate or the cache made of a decision.

    Attributes:
        by: "budget", "mask" (it touches no token), "gate" or "cache".
        mode: what the step was to do from there on.
        reason: why, in words.
    """

    by: str
    mode: Mode
    reason: str


@define(eq=True, kw_only=True)
class StepRecord:
    """How one step came to be what it was.

    Attributes:
        step: index of the step.
        wanted: what the policy wanted.
        reason: why, in words.
        signal: the value that it compared, or None.
        changes: what was made of it, in order; empty where it was done as wanted.
        done: what the deciding call did.
        gain: after reused steps, how far the predictor should have gone (``Measured``), or None.
        innovation: root mean square of what the guided output differs from the expected one by, inside
            the mask and in the numbers of the model's output, or None where nothing was compared.
        error: the same for the latents, which it had taken off their way by then.
    """

    step: int
    wanted: Mode
    reason: str
    signal: float | None = None
    changes: list[Change] = field(factory=list)
    done: Mode = Mode.FULL
    gain: float | None = None
    innovation: float | None = None
    error: float | None = None


@frozen(kw_only=True)
class Totals:
    """Sums over a run.

    Attributes:
        steps: sampler steps.
        steps_full: steps whose deciding call ran in full.
        steps_partial: steps whose deciding call ran in part.
        steps_reused: steps whose deciding call reused.
        calls: DiT calls.
        flops: FLOPs that ran.
        flops_full: FLOPs of all steps asked for, without caching.
        flops_speedup: ``flops_full / flops``.
        call_seconds: seconds inside DiT calls.
        denoise_seconds: seconds from the first call to the end of the last step.
        peak_cache_bytes: most bytes held at once.
        host_reads: numbers that decisions brought to the host.
    """

    steps: int
    steps_full: int
    steps_partial: int
    steps_reused: int
    calls: int
    flops: int
    flops_full: int
    flops_speedup: float
    call_seconds: float
    denoise_seconds: float
    peak_cache_bytes: int
    host_reads: int


@define(eq=True, kw_only=True, repr=False)
class Trace:
    """Everything that one run decided.

    Attributes:
        policy: name of the policy.
        settings: the policy's settings by name.
        backbone: name of the backbone.
        variant: published model that the dimensions belong to, or "".
        steps: steps ``S`` of the sampler: evaluations of the model, one or both branches of guidance
            each. Heun's method has two for a step that was asked for, but for the last one.
        requested_steps: evaluations for what was asked for; a policy may take fewer.
        tokens: tokens ``N`` of one batch row.
        tokens_by_role: all tokens by role name; empty for unmasked runs.
        records: one a DiT call, in order.
        decisions: one a step that was decided, in order; empty in older traces.
        guards: the guards of the run by name, each as it was given, who gave it ("user" or "policy")
            and the steps that it came to.
        denoise_seconds: seconds from the first call to the end of the last step.
        peak_cache_bytes: most bytes held at once.
        notes: sentences about the run as a whole.
        complete: whether the last step was reached.
        target_speedup: how many times fewer FLOPs were asked for, or None.
        run_id: identifies the run in log records: the session's identity and the run's number in it.
        session_id: identifies the session; neither counts when traces are compared.
        plan: what has to be done to repeat the run without deciding anything, or None where the trace
            is older than plans are.
        schema_version: version of this layout.
    """

    policy: str
    settings: dict[str, Any]
    backbone: str
    variant: str
    steps: int
    requested_steps: int
    tokens: int
    tokens_by_role: dict[str, int] = field(factory=dict)
    records: list[CallRecord] = field(factory=list)
    decisions: list[StepRecord] = field(factory=list)
    guards: dict[str, Any] = field(factory=dict)
    denoise_seconds: float = 0.0
    peak_cache_bytes: int = 0
    notes: list[str] = field(factory=list)
    complete: bool = False
    target_speedup: float | None = None
    run_id: str = field(default="", eq=False)
    session_id: str = field(default="", eq=False)
    plan: Plan | None = None
    schema_version: int = SCHEMA_VERSION

    def modes(self) -> list[Mode]:
        """Return the mode of every step: that of its first call."""
        first: dict[int, Mode] = {}
        for record in self.records:
            first.setdefault(record.step, record.mode)
        return [first[step] for step in sorted(first)]

    def letters(self) -> str:
        """Return the modes of the steps as a letter each, such as ``"FFssFs"``."""
        return "".join(mode.letter for mode in self.modes())

    def totals(self) -> Totals:
        """Return the sums over the run."""
        modes = Counter(self.modes())
        flops = sum(r.flops for r in self.records)
        # Steps that the sampler never took count as work left out.
        taken = sum(r.flops_full for r in self.records)
        flops_full = taken * self.requested_steps // self.steps if self.steps else taken
        return Totals(
            steps=self.steps,
            steps_full=modes[Mode.FULL],
            steps_partial=modes[Mode.PARTIAL],
            steps_reused=modes[Mode.REUSE],
            calls=len(self.records),
            flops=flops,
            flops_full=flops_full,
            flops_speedup=flops_full / flops if flops else 1.0,
            call_seconds=sum(r.seconds for r in self.records),
            denoise_seconds=self.denoise_seconds,
            peak_cache_bytes=self.peak_cache_bytes,
            host_reads=sum(r.host_reads for r in self.records),
        )

    def summary(self) -> str:
        """Return one line: policy, steps by mode, FLOPs saved, cache size."""
        t = self.totals()
        return (
            f"{self.policy} on {self.backbone}: {t.steps_full} full, {t.steps_partial} partial, "
            f"{t.steps_reused} reused of {t.steps} steps; {t.flops_speedup:.2f}x fewer FLOPs; "
            f"cache peak {t.peak_cache_bytes / 2**20:.1f} MiB"
        )

    def __repr__(self) -> str:
        end = "" if self.complete else ", ended early"
        return f"<Trace {self.run_id}: {self.summary()}{end}>"

    def _repr_html_(self) -> str:
        """Draw the steps as a timeline of modes above a table of the totals, for notebooks."""
        modes, totals = self.modes(), self.totals()
        cells = "".join(
            f'<td title="step {step}: {mode.value}" style="background:{_COLORS[mode]};color:#fff;'
            f'text-align:center;padding:2px 5px">{mode.letter}</td>'
            for step, mode in enumerate(modes)
        )
        rows = {
            "policy": self.policy,
            "backbone": self.backbone,
            "steps": f"{len(modes)} of {self.steps}" + ("" if self.complete else ", ended early"),
            **{mode.value: count for mode in Mode if (count := modes.count(mode))},
            "fewer FLOPs": f"{totals.flops_speedup:.2f}x",
            "denoising": f"{totals.denoise_seconds:.2f} s",
            "cache peak": f"{totals.peak_cache_bytes / 2**20:.1f} MiB",
            "notes": " ".join(self.notes),
        }
        table = "".join(
            f"<tr><th>{name}</th><td>{html.escape(str(value))}</td></tr>"
            for name, value in rows.items()
        )
        return f"<table><tr>{cells}</tr></table><table>{table}</table>"

    def to_frame(self) -> Any:
        """Return the calls as a ``pandas.DataFrame``, a row each, its columns those of ``CallRecord``.

        The active tokens by role are in columns ``active_<role>``.

        Raises:
            ConfigError: pandas is not installed.
        """
        try:
            import pandas  # modules go by their own names
        except ImportError as error:
            raise ConfigError(
                "pandas is not installed", where="Trace.to_frame", remedy="pip install pandas"
            ) from error
        names = [f.name for f in fields(CallRecord) if f.name != "active_by_role"]
        roles = [f"active_{role}" for role in self.tokens_by_role]
        rows = [
            {
                **asdict(record, value_serializer=_plain),
                **{f"active_{role}": count for role, count in record.active_by_role.items()},
            }
            for record in self.records
        ]
        return pandas.DataFrame(rows, columns=[*names, *roles])

    def ids(self) -> dict[str, str]:
        """Return run and session id, as log records of the run carry them."""
        return {"run_id": self.run_id, "session_id": self.session_id}

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values, totals included."""
        plain = asdict(
            self, value_serializer=_plain, filter=lambda attribute, _: attribute.name != "plan"
        )
        plan = None if self.plan is None else self.plan.to_dict()
        return {**plain, "plan": plan, "totals": asdict(self.totals())}

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write JSON; the file appears whole or not at all."""
        write_text(Path(path), json.dumps(self.to_dict(), indent=1) + "\n")

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Trace:
        """Read a trace written by ``save``.

        Raises:
            ConfigError: the file is no trace, or was written by a newer version.
        """
        plain = read_json(Path(path), where="trace", remedy="Record the run again with --trace.")
        return cls.from_dict(plain, where=str(path))

    @classmethod
    def from_dict(cls, plain: object, *, where: str = "trace") -> Trace:
        """Build a trace from the values of ``to_dict``; errors as in ``load``."""
        version = plain.get("schema_version") if isinstance(plain, Mapping) else None
        if not isinstance(plain, Mapping) or version not in READABLE:
            raise ConfigError(
                f"it has trace schema {version!r}; this version reads {SCHEMA_VERSION} and older",
                where=where,
                remedy="Write it again with this version of hetcache.",
            )
        try:
            made: Trace = structure(plain, cls)
            if made.plan is not None:
                made.plan.check()
        except ValueError as error:
            raise ConfigError(
                f"it is not whole: {error}",
                where=where,
                remedy="Record the run again with --trace.",
            ) from error
        return made


def _plain(_instance: object, _attribute: object, value: Any) -> Any:
    return value.value if isinstance(value, Mode) else value
