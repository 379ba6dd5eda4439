"""Print where a Chromium is; with ``--install``, first install it, as root on Debian and its kin."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
INSTALL = (
    ("apt-get", "update"),
    ("apt-get", "install", "--yes", "--no-install-recommends", "chromium"),
)
REMEDY = "no Chromium on the PATH; install it, on Debian with: apt-get install chromium"


def find() -> str | None:
    return next((path for name in NAMES if (path := shutil.which(name))), None)


def main() -> None:
    if find() is None and "--install" in sys.argv and os.geteuid() == 0 and shutil.which("apt-get"):
        for command in INSTALL:
            subprocess.run(
                (*command, "-o", "Acquire::Retries=3"),
                check=True,
                env={**os.environ, "DEBIAN_FRONTEND": "noninteractive"},
                stdout=sys.stderr,
            )
    found = find()
    sys.stdout.write(f"{found or REMEDY}\n")
    # When it was to be installed and could not be, the tests that need it say so themselves.
    sys.exit(0 if found or "--install" in sys.argv else 1)


if __name__ == "__main__":
    main()
