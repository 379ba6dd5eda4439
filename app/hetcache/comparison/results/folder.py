"""The folder that a comparison fills: what is in it, and how it is written and read.

::

    comparison.json             what was asked for, and where it ran
    rows.lock                   held while a comparison writes into the folder
    rows.csv                    one line for every finished run, appended when it is finished
    clips/CLIP/source.mp4       the frames that were edited
    clips/CLIP/truth.mp4        the right answer, where it is known
    clips/CLIP/mask.png         (F*H, W) 8-bit, the mask of every frame below the one before
    clips/CLIP/clip.json        name, prompt, frames, height, width
    runs/ID/video.mp4           what a run made, before compositing
    runs/ID/trace.json          what it decided and computed
    runs/ID/error.txt           the traceback of a run that failed, which has no row; --resume tries it again
    runs/ID/features.npy        (D,) features of the video for VFID, where an extractor was given; those of
                                other metrics of sets likewise, in files of theirs
    runs/ID/frame_psnr.npy      (F,) dB to the uncached run in the mask, frame by frame
    references/ID.npz           frames of an uncached run, exactly; ``ID`` without its repeat
    table.md, pareto.png, …     what is drawn from the rows, made anew by every comparison

A line that a killed process left half written is dropped when the file is read, so its run counts
as not done. Videos are small copies to look at: all figures come from the exact frames.
"""

from __future__ import annotations

import contextlib
import csv
import hashlib
import io
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, get_args, get_origin, get_type_hints

from attrs import NOTHING, Attribute, asdict, evolve, field, fields, frozen

from hetcache.media.arrays import read_array
from hetcache.running.cells import from_cell, to_cell
from hetcache.running.specs import REFERENCE
from hetcache_core import ConfigError
from hetcache_core.files import PARTS, read_bytes, read_json, write_text
from hetcache_core.settings.fitting import UnfitError, structure

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from hetcache_core import Trace

__all__ = ["COLUMNS", "FRAME_PSNR", "Results", "Row", "RowKey"]

SCHEMA_VERSION: Final = 1
"""Raised whenever a reader of older folders would misread a newer one."""

FRAME_PSNR: Final = "frame_psnr.npy"
"""In the folder of a run: PSNR to the reference in the mask, frame by frame."""

ID_DIGITS: Final = 10

PLAIN: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}")
"""Names of clips that are names of folders as they stand."""

READABLE: Final = 60
"""Characters of a name that are kept beside a digest."""

ESCAPES: Final[Mapping[str, str]] = {"\\": "\\\\", "\n": "\\n", "\r": "\\r", "\0": "\\0"}
"""What a cell has in place of characters that would end its line; read back as they were."""

OF_RUN: Final = (
    "Delete the line of {id} in rows.csv, and `hetcache compare --resume` makes the run again."
)
AGAIN: Final = "Delete it, and `hetcache compare --resume` makes it again."

LONGEST_CELL: Final = 1 << 24
csv.field_size_limit(LONGEST_CELL)


@frozen(kw_only=True)
class RowKey:
    """What distinguishes one run of a comparison from all others.

    Attributes:
        backbone: Name of the backbone.
        model: Checkpoint with what goes with it, or "" for the backbone's own.
        clip: Name of the clip.
        seed: Seed of the noise.
        policy: Name of the policy, or several joined by "+".
        variant: What sets apart two runs of one policy, such as "fast", "3x" or "threshold=0.1".
        steps: Steps of the sampler that were asked for.
        frames: Frames of the clip.
        height: Height that the model worked at.
        width: Width that the model worked at.
        repeat: Number of the repetition, from 0.
    """

    backbone: str
    model: str = ""
    clip: str
    seed: int
    policy: str
    variant: str = ""
    steps: int
    frames: int
    height: int
    width: int
    repeat: int = 0

    @property
    def label(self) -> str:
        """Policy and variant, as tables show them: "teacache 3x"."""
        return f"{self.policy} {self.variant}".strip()

    @property
    def id(self) -> str:
        """A name for files: readable, and different for every key."""
        return f"{self.case_id}-r{self.repeat}"

    @property
    def case_id(self) -> str:
        """The same without the repetition."""
        values = asdict(evolve(self, repeat=0), filter=_tells_apart)
        digest = hashlib.sha256(json.dumps(values).encode()).hexdigest()[:ID_DIGITS]
        words = re.sub(r"[^a-z0-9]+", "-", f"{self.backbone} {self.clip} {self.label}".lower())
        return f"{words.strip('-')[:60]}-{digest}"

    def reference(self) -> RowKey:
        """The run that this one is held against: same clip, seed, steps and repetition."""
        return evolve(self, policy=REFERENCE, variant="")


HASHED_EMPTY: Final = ("model", "variant")
"""Fields that are part of an id at their default too, as they have been from the first on."""


def _tells_apart(attribute: Attribute[Any], value: object) -> bool:
    """Say whether a field is part of an id; at its default none is, so that a new one keeps the ids."""
    return attribute.name in HASHED_EMPTY or value != attribute.default


@frozen(kw_only=True)
class Row:
    """One finished run.

    Attributes:
        key: Which run it is.
        status: "ok", or "refused" where the backbone cannot carry the policy.
        note: Why it was refused, or what a reader should know.
        settings: The policy's settings.
        target_speedup: How many times fewer FLOPs were asked for, or None.
        modes: One letter a step: f full, p partial, r reused.
        flops: FLOPs of the model's calls.
        flops_full: FLOPs of the same run without caching.
        denoise_seconds: From the first call of the model to the end of the last step.
        total_seconds: The whole call, encoding and decoding included.
        peak_cache_bytes: Most bytes stored at once.
        metrics: Values by the names of metrics' columns; None where there is none.
        metric_notes: Why a value is missing, by the same names: "identical", "needs --lpips FILE".
    """

    key: RowKey
    status: Literal["ok", "refused"] = "ok"
    note: str = ""
    settings: Mapping[str, Any] = field(factory=dict)
    target_speedup: float | None = None
    modes: str = ""
    flops: int = 0
    flops_full: int = 0
    denoise_seconds: float = 0.0
    total_seconds: float = 0.0
    peak_cache_bytes: int = 0
    metrics: Mapping[str, float | None] = field(factory=dict)
    metric_notes: Mapping[str, str] = field(factory=dict)

    def to_record(self) -> dict[str, str]:
        """Return the columns of ``rows.csv``."""
        record = {"id": self.key.id}
        for part, skipped in ((self.key, set()), (self, {"key"})):
            for attribute in fields(type(part)):
                if attribute.name not in skipped:
                    record[attribute.name] = _cell(getattr(part, attribute.name))
        return record

    @classmethod
    def from_record(cls, record: Mapping[str, str]) -> Row:
        """Read the columns of ``rows.csv``, by the names of the fields.

        A column that is missing or empty leaves its field at the default, and one of no field is
        left out: so folders of other releases stay readable.

        Raises:
            ValueError: A column without a default is missing, or one holds something else.
        """
        return cls(key=RowKey(**_known(RowKey, record)), **_known(cls, record))


COLUMNS: Final = (
    "id",
    *(a.name for a in fields(RowKey)),
    *(a.name for a in fields(Row) if a.name != "key"),
)
"""Columns of ``rows.csv``."""


UNESCAPED: Final = {escape: character for character, escape in ESCAPES.items()}


def _cell(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, Mapping):
        return json.dumps(dict(value), sort_keys=True, default=str)
    if isinstance(value, float):
        return repr(value)
    return (
        to_cell(str(value).translate(str.maketrans(dict[str, str | int | None](ESCAPES))))
        if isinstance(value, str)
        else str(value)
    )


def _known(kind: type[Any], record: Mapping[str, str]) -> dict[str, Any]:
    """Read the fields of a class for which a record has a text."""
    found, hints = {}, get_type_hints(kind)
    for attribute in fields(kind):
        if text := record.get(attribute.name):
            try:
                found[attribute.name] = structure(
                    _read(text, hints[attribute.name]), hints[attribute.name]
                )
            except ValueError as error:
                raise ValueError(f"{attribute.name}: {error}") from error
        elif attribute.default is NOTHING and attribute.name != "key":
            raise ValueError(f"there is no {attribute.name!r}")
    return found


def _read(text: str, hint: Any) -> Any:
    """Read a cell; what it holds is held against the type of its field later."""
    kinds = {get_origin(hint) or hint, *get_args(hint)}
    if Mapping in kinds:
        return json.loads(text)
    if kinds & {float, int}:
        return (float if float in kinds else int)(text)
    return re.sub(r"\\[\\nr0]", lambda found: UNESCAPED[found[0]], from_cell(text))


@frozen(kw_only=True)
class _AskedClip:
    name: str


@frozen(kw_only=True)
class _AskedGrid:
    backbones: list[str]
    policies: list[str]
    clips: list[_AskedClip]
    seeds: list[int]
    steps: int
    repeat: int


@frozen(kw_only=True)
class _Asked:
    """What is read of ``comparison.json``."""

    arguments: Mapping[str, Any]
    grid: _AskedGrid
    started: str = ""
    resumed: list[str] = field(factory=list)


@frozen(kw_only=True)
class Results:
    """A comparison's folder.

    Attributes:
        folder: Where it is.
    """

    folder: Path = field(converter=Path)

    @property
    def rows_path(self) -> Path:
        """The file with a line for every finished run."""
        return self.folder / "rows.csv"

    def run_folder(self, key: RowKey) -> Path:
        """Where the video and the trace of a run are."""
        return self.folder / "runs" / key.id

    def error_path(self, key: RowKey) -> Path:
        """Where the traceback of a run is that failed."""
        return self.run_folder(key) / "error.txt"

    def clip_folder(self, clip: str) -> Path:
        """Where the frames of a clip are; a name that is no good name for a folder gets a digest."""
        name = clip
        if not PLAIN.fullmatch(clip):
            readable = re.sub(r"[^A-Za-z0-9_-]+", "_", clip)[:READABLE]
            name = f"{readable}-{hashlib.sha256(clip.encode()).hexdigest()[:ID_DIGITS]}"
        return self.folder / "clips" / name

    def reference_path(self, key: RowKey) -> Path:
        """Where the exact frames of the uncached run are that belongs to a run."""
        return self.folder / "references" / f"{key.reference().case_id}.npz"

    def write_plan(self, plan: Mapping[str, Any]) -> None:
        """Write what was asked for.

        Args:
            plan: Values for JSON; the key "schema_version" is added.
        """
        text = json.dumps({"schema_version": SCHEMA_VERSION, **plan}, indent=2)
        write_text(self.folder / "comparison.json", text + "\n")

    def read_plan(self) -> dict[str, Any]:
        """Read what was asked for.

        Raises:
            ConfigError: The folder holds no comparison, or one of another version.
        """
        path = self.folder / "comparison.json"
        plan = read_json(
            path,
            where=f"{self.folder} holds no comparison",
            remedy="Name the --output of a `hetcache compare`.",
        )
        version = plan.get("schema_version") if isinstance(plan, dict) else None
        if not isinstance(plan, dict) or version != SCHEMA_VERSION:
            raise ConfigError(
                f"{path} is of version {version}, this release reads {SCHEMA_VERSION}",
                remedy="Run the comparison again with this release.",
            )
        try:
            structure(plan, _Asked)
        except UnfitError as error:
            raise ConfigError(
                f"{path} is not whole: {error}",
                remedy="Run the comparison again, into another folder.",
            ) from error
        return plan

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """Make the folder, and keep other processes from writing into it while the context lasts.

        Raises:
            ConfigError: Another comparison is writing into it.
        """
        import fcntl

        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / "rows.lock").open("ab") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # freed when the process ends
            except BlockingIOError as error:
                raise ConfigError(
                    f"another comparison is writing into {self.folder}",
                    where="--output",
                    remedy="Wait for it, or name another folder.",
                ) from error
            for part in self.folder.rglob(PARTS):  # a process that was killed leaves them
                part.unlink(missing_ok=True)
            yield

    def rows(self) -> list[Row]:
        """Read the finished runs, in the order in which they finished.

        Raises:
            ConfigError: A whole line cannot be understood.
        """
        rows = []
        for number, record in enumerate(self._table()[1], start=2):
            try:
                rows.append(Row.from_record(record))
            except (ValueError, RecursionError) as error:
                raise ConfigError(
                    f"{self.rows_path}, line {number}: {error}",
                    remedy="Delete this line, and `hetcache compare --resume` makes its run again.",
                ) from error
        return rows

    def append(self, row: Row) -> None:
        """Add a finished run, on disk when this returns.

        One process writes; a half-written last line of a killed one is cut off first. A file of
        another release keeps its columns and gets those that it lacks.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        columns, before = self._table()
        if lacking := [name for name in COLUMNS if name not in columns]:
            columns += lacking
            write_text(self.rows_path, _as_csv(columns, before, header=True))
        try:
            with self.rows_path.open("r+b") as file:
                whole = _whole_lines(file.read())
                file.truncate(whole)
                file.seek(whole)
                file.write(_as_csv(columns, [row.to_record()]).encode())
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise ConfigError(
                f"{self.rows_path} cannot be written: {error.strerror or error}",
                remedy="What is finished is kept, and --resume goes on.",
            ) from error

    def trace(self, key: RowKey) -> Trace:
        """Read the trace of a run."""
        from hetcache_core import Trace

        try:
            return Trace.load(self.run_folder(key) / "trace.json")
        except ConfigError as error:
            error.remedy = OF_RUN.format(id=key.id)
            raise

    def frame_psnr(self, key: RowKey) -> NDArray[Any] | None:
        """Read how close each frame (F,) of a run is to the reference; None where nobody measured it.

        Raises:
            ConfigError: The file is damaged; says how it is made again.
        """
        path = self.run_folder(key) / FRAME_PSNR
        if not path.exists():
            return None
        return _vector(path, OF_RUN.format(id=key.id))

    def features(self, file: str, *, key: RowKey | None = None, clip: str = "") -> NDArray[Any]:
        """Read the features (D,) of a run's video, or of a clip's right answer.

        Raises:
            ConfigError: The file is damaged; says how it is made again.
        """
        if key is None:
            return _vector(self.clip_folder(clip) / file, AGAIN)
        return _vector(self.run_folder(key) / file, OF_RUN.format(id=key.id))

    def prompt(self, clip: str) -> str:
        """Read the prompt of a clip; "" where there is none.

        Raises:
            ConfigError: Its file is damaged.
        """
        path = self.clip_folder(clip) / "clip.json"
        if not path.exists():
            return ""
        about = read_json(path, remedy=AGAIN)
        found = about.get("prompt") if isinstance(about, dict) else None
        if not isinstance(found, str):
            raise ConfigError(f"{path} names no prompt", remedy=AGAIN)
        return found

    def _table(self) -> tuple[list[str], list[dict[str, str]]]:
        """Read the columns of ``rows.csv`` and its whole lines; both are empty without a file."""
        data = read_bytes(self.rows_path) if self.rows_path.exists() else b""
        try:
            text = data[: _whole_lines(data)].decode()
            reader = csv.DictReader(io.StringIO(text, newline=""))
            return list(reader.fieldnames or ()), list(reader)
        except (UnicodeDecodeError, csv.Error) as error:
            raise ConfigError(
                f"{self.rows_path} is damaged: {error}",
                remedy="Delete the lines that are no text, and `hetcache compare --resume` makes their "
                "runs again.",
            ) from error


def _vector(path: Path, remedy: str) -> NDArray[Any]:
    made = read_array(path, remedy=remedy)
    if made.ndim != 1 or made.dtype.kind != "f":
        raise ConfigError(f"{path} is damaged: it holds {made.shape} {made.dtype}", remedy=remedy)
    return made


def _as_csv(
    columns: Sequence[str], records: Iterable[Mapping[str, str]], *, header: bool = False
) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, extrasaction="ignore", lineterminator="\n")
    if header:
        writer.writeheader()
    writer.writerows(records)
    return text.getvalue()


def _whole_lines(data: bytes) -> int:
    """Length of everything up to the last line that is whole.

    No cell holds a line break: JSON and `_cell` escape it.
    """
    return data.rfind(b"\n") + 1
