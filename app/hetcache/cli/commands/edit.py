"""``hetcache edit``."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar, final

from hetcache.cli.command import Command
from hetcache.editing.config import EditConfig
from hetcache.running.console import answer, loading, note, print_json
from hetcache_core import ConfigError

if TYPE_CHECKING:
    from hetcache.editing.report import Report
    from hetcache_core import Registry

__all__ = ["EditCommand"]


@final
class EditCommand(Command):
    """Edit the masked part of a video."""

    name: ClassVar[str] = "edit"
    config: ClassVar[type[EditConfig]] = EditConfig
    reads_file: ClassVar[bool] = True
    takes_jobs: ClassVar[bool] = True

    def run(self, config: EditConfig, registry: Registry) -> int:
        """Edit, and report what it cost."""
        if config.work.workers is not None:
            raise ConfigError("one edit has one worker", where="--workers", remedy="Give --jobs.")
        loading(config.model.backbone)
        from hetcache.editing.edit import edit
        from hetcache.editing.report import print_report

        if config.gpus is None and "WORLD_SIZE" not in os.environ:
            report: Report | None = edit(config, registry).report
        else:
            from hetcache.editing.ranks import edit_shared

            report = edit_shared(config, registry)
        if report is not None:
            answer(report, lambda: print_report(report), as_json=config.answer.json)
        return 0

    def run_jobs(self, configs: Sequence[EditConfig], registry: Registry) -> int:
        """Edit many, and list those that failed."""
        loading(f"for {len(configs)} jobs")
        from hetcache.editing.jobs import run_jobs
        from hetcache.editing.report import print_report

        finished, failed = [], []
        for ended in run_jobs(configs, registry):
            known = {"job": ended.job, "output": ended.output}
            if ended.report is None:
                note(f"job {ended.job}, {ended.output}: {ended.error}", kind="error")
                failed.append({**known, "error": ended.error})
                continue
            finished.append({**known, **ended.report.to_dict()})
            if not configs[ended.job - 1].answer.json:
                print_report(ended.report)
        if any(config.answer.json for config in configs):
            print_json({"finished": finished, "failed": failed})
        if failed:
            numbers = ", ".join(str(each["job"]) for each in failed)
            note(
                f"{len(finished)} of {len(configs)} jobs are finished; failed: {numbers}",
                kind="error",
            )
        return int(bool(failed))
