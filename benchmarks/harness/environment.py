"""What a measurement was made with."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from datetime import datetime, timezone
from pathlib import Path
from typing import Final

import torch

from harness.timing import is_cuda

ROOT: Final = Path(__file__).parents[2]
COMMIT_VARIABLE: Final = "HETCACHE_COMMIT"
"""Names the commit where the checkout is a copy without its history."""


def environment(device: str) -> dict[str, str]:
    """Describe device, driver, libraries, threads, commit and time of day (UTC)."""
    return {
        "device": torch.cuda.get_device_name(device) if is_cuda(device) else processor(),
        "driver": driver() if is_cuda(device) else "",
        "torch": torch.__version__,
        "python": platform.python_version(),
        "threads": str(torch.get_num_threads()),
        "commit": commit(),
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M"),
    }


def processor() -> str:
    """Name the processor, as Linux does where it can be asked."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return next(iter(names), platform.processor() or platform.machine())


def driver() -> str:
    """Return the version of the NVIDIA driver, "" where nvidia-smi is missing."""
    return _said("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader").split("\n")[0]


def commit() -> str:
    """Return the checkout's commit, with a "+" where tracked files differ from it."""
    given = os.environ.get(COMMIT_VARIABLE)
    if given:
        return given
    head = _said("git", "-C", str(ROOT), "rev-parse", "--short", "HEAD")
    changed = _said("git", "-C", str(ROOT), "status", "--porcelain", "--untracked-files=no")
    return head + ("+" if head and changed else "")


def _said(program: str, *arguments: str) -> str:
    path = shutil.which(program)
    if path is None:
        return ""
    answer = subprocess.run(  # noqa: S603 - a program of the system, with fixed arguments
        [path, *arguments], capture_output=True, text=True, check=False
    )
    return answer.stdout.strip() if answer.returncode == 0 else ""
