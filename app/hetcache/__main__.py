"""``python -m hetcache`` is the command ``hetcache``."""

from hetcache.cli.main import main

if __name__ == "__main__":
    raise SystemExit(main())
