"""What the commands do, from Python: video files in, video files out."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from hetcache.extra import needs_app

if TYPE_CHECKING:
    from hetcache.comparison.compare import Compared
    from hetcache.editing.edit import Edited

__all__ = ["compare", "edit"]

Path = str | os.PathLike[str]


def edit(
    video: Path | None,
    mask: Path,
    *,
    output: Path,
    prompt: str = "",
    policy: str = "auto",
    **options: Any,
) -> Edited:
    """Edit the masked part of a video or picture file, as ``hetcache edit`` does.

    Args:
        video: The video to edit, or None where ``image`` names a picture.
        mask: Where to edit: a video, a folder of pictures or one picture; white is edited.
        output: The video to write (.mp4, .m4v, .mov or .mkv), or the picture (.png).
        prompt: What to put into the mask.
        policy: The caching policy, also as ``NAME@3x`` or ``NAME:setting=value;setting=value``.
        **options: Any other option of the command, with ``_`` for ``-``; ``settings`` and ``options``
            are mappings, and ``config`` names a YAML file.

    Returns:
        The file that was written, the trace of the run, its speed-up and its report.

    Raises:
        HetCacheError: Something is wrong with what was asked for; nothing was written.
    """
    with needs_app():
        from hetcache.editing.config import EditConfig
        from hetcache.editing.edit import edit as run
        from hetcache.running.options import make
        from hetcache_core import discover

        file = options.pop("config", None)
        given = {"video": video, "mask": mask, "output": output, "prompt": prompt, "policy": policy}
        asked = make(EditConfig, {**given, **options}, where="hetcache.edit", file=file)
        return run(asked, discover())


def compare(*, output: Path = "results", **options: Any) -> Compared:
    """Run policies, backbones, clips and seeds against each other, as ``hetcache compare`` does.

    Args:
        output: The folder for rows, videos, tables and plots.
        **options: Any other option of the command, with ``_`` for ``-``, such as
            ``clips="builtin"``, ``policies="teacache,hetcache@fast"`` and ``steps=20``.

    Returns:
        The folder, what was crossed, and how many runs were made.

    Raises:
        HetCacheError: Something is wrong with what was asked for, and nothing was run; or it turned
            out later, or a run failed: finished runs are kept, and the tables are those of them.
    """
    with needs_app():
        from hetcache.comparison.compare import compare as run
        from hetcache.comparison.config import CompareConfig
        from hetcache.comparison.page.tables import write_all
        from hetcache.running.options import make
        from hetcache_core import HetCacheError, discover

        asked = make(CompareConfig, {"output": output, **options}, where="hetcache.compare")
        made = run(asked, discover())
        write_all(made.summary, made.results.folder)
        if made.failed:
            raise HetCacheError(made.failed, where="hetcache.compare")
        return made
