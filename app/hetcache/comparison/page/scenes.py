"""What the report's viewer shows: the videos of one clip and seed, as many as fit into the page."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Final

from attrs import field, frozen

from hetcache.comparison.results.folder import Results, Row
from hetcache.comparison.results.summary import Setting, Summary, front
from hetcache.running.specs import REFERENCE

__all__ = ["Scene", "choose", "embedded_size", "find_scenes", "only", "video_of"]

BASE64: Final = 4 / 3
"""Characters in a page for each byte of a file."""


@frozen(kw_only=True)
class Scene:
    """All runs of one clip and seed, the first repetition of each.

    Attributes:
        setting: Model and size.
        steps: Steps of the sampler that were asked for.
        clip: Name of the clip.
        seed: Seed of the noise.
        rows: Runs that have a video: the uncached one first, then those on the Pareto front, then
            the others.
        left_out: Policies and variants whose videos are not in the page.
    """

    setting: Setting
    steps: int
    clip: str
    seed: int
    rows: tuple[Row, ...] = field(repr=False)
    left_out: tuple[str, ...] = ()


def video_of(results: Results, row: Row) -> Path:
    """Return the video of a run."""
    return results.run_folder(row.key) / "video.mp4"


def embedded_size(path: Path) -> int:
    """Return how many bytes a file takes inside a page; 0 where it does not exist."""
    return round(path.stat().st_size * BASE64) if path.exists() else 0


def find_scenes(summary: Summary, results: Results) -> list[Scene]:
    """Collect what there is to be seen.

    Args:
        summary: What was summed up.
        results: The comparison's folder.

    Returns:
        The scenes: the first of each model, size and number of steps, then the second of each.
    """
    groups: dict[tuple[Setting, int], dict[tuple[str, int], list[Row]]] = {}
    for setting in summary.settings:
        lines = summary.at(setting)
        best = [id(line) for line in front(lines, summary.fidelity)]
        for line in sorted(lines, key=lambda line: (not line.is_reference, id(line) not in best)):
            cases = groups.setdefault((setting, line.steps), {})
            for row in _first_repetitions(line.rows):
                if video_of(results, row).exists():
                    cases.setdefault((row.key.clip, row.key.seed), []).append(row)
    ranked = [
        (rank, Scene(setting=setting, steps=steps, clip=clip, seed=seed, rows=tuple(rows)))
        for (setting, steps), cases in groups.items()
        for rank, ((clip, seed), rows) in enumerate(cases.items())
    ]
    return [scene for _, scene in sorted(ranked, key=lambda pair: pair[0])]


def choose(scenes: list[Scene], results: Results, max_bytes: int) -> list[Scene]:
    """Keep as many videos as fit into a page.

    Args:
        scenes: What there is, the most wanted first.
        results: The comparison's folder.
        max_bytes: Most bytes that the videos may take.

    Returns:
        The scenes with the runs that fit; those without any run still say what they leave out.
    """
    left = max_bytes
    seen: set[str] = set()
    chosen = []
    for scene in scenes:
        source = results.clip_folder(scene.clip)
        basis = 0 if scene.clip in seen else embedded_size(source / "source.mp4")
        basis += 0 if scene.clip in seen else embedded_size(source / "truth.mp4")
        kept: list[Row] = []
        dropped: list[str] = []
        for row in scene.rows:
            size = embedded_size(video_of(results, row)) + (0 if kept else basis)
            # Without what it is held against, a video says little.
            stranded = not kept and row.key.policy != REFERENCE and bool(dropped)
            if size > left or stranded:
                dropped.append(row.key.label)
            else:
                kept.append(row)
                left -= size
        if kept:
            seen.add(scene.clip)
        chosen.append(
            Scene(
                setting=scene.setting,
                steps=scene.steps,
                clip=scene.clip,
                seed=scene.seed,
                rows=tuple(kept),
                left_out=tuple(dropped),
            )
        )
    return chosen


def only(scenes: list[Scene], clips: Collection[str]) -> list[Scene]:
    """Keep the scenes of some clips; all where none is named."""
    return [scene for scene in scenes if not clips or scene.clip in clips]


def _first_repetitions(rows: tuple[Row, ...]) -> Iterator[Row]:
    cases: dict[str, Row] = {}
    for row in rows:
        known = cases.setdefault(row.key.case_id, row)
        if row.key.repeat < known.key.repeat:
            cases[row.key.case_id] = row
    yield from cases.values()
