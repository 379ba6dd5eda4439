"""``python -m hetcache`` is the command ``hetcache``."""

from hetcache.cli.main import program

if __name__ == "__main__":
    program()
