"""Options of the benchmarks: attrs classes that the command line is made from."""

from __future__ import annotations

from argparse import ArgumentParser, ArgumentTypeError
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from attrs import field, fields, frozen

from hetcache_core import ConfigError

Asked = TypeVar("Asked", bound="Options")


def option(default: Any, *, doc: str, parse: Callable[[str], Any] | None = None) -> Any:
    """Declare an option of a benchmark.

    Args:
        default: its value where it is not given; False makes a switch of it.
        doc: one line for ``--help``.
        parse: makes the value from its text; raises ValueError for a bad one. By default the type of
            the default.
    """
    return field(default=default, metadata={"doc": doc, "parse": parse or type(default)})


def names(text: str) -> tuple[str, ...]:
    """Split a list by its commas."""
    found = tuple(part.strip() for part in text.split(",") if part.strip())
    if not found:
        raise ValueError("it names nothing")
    return found


def choices(*known: str) -> Callable[[str], tuple[str, ...]]:
    """Make a reader of lists whose members must be known."""

    def read(text: str) -> tuple[str, ...]:
        found = names(text)
        for name in found:
            if name not in known:
                raise ValueError(f"{name!r} is none of {', '.join(known)}")
        return found

    return read


def numbers(text: str) -> tuple[int, ...]:
    """Split a list of whole numbers above 0."""
    return tuple(count(part) for part in names(text))


def shares(text: str) -> tuple[float, ...]:
    """Split a list of shares above 0 and up to 1."""
    found = tuple(float(part) for part in names(text))
    if any(not 0 < share <= 1 for share in found):
        raise ValueError("a share is above 0 and at most 1")
    return found


def count(text: str) -> int:
    """Read a whole number above 0."""
    number = int(text)
    if number < 1:
        raise ValueError("it must be at least 1")
    return number


def margin(text: str) -> float:
    """Read a share of 0 or more."""
    number = float(text)
    if not 0 <= number < float("inf"):
        raise ValueError("it must be 0 or more")
    return number


@frozen(kw_only=True)
class Options:
    """What every benchmark can be asked."""

    device: str = option("cpu", doc="where to measure: cpu or cuda")
    dtype: str = option("float32", doc="dtype of weights and activations")
    threads: int = option(1, doc="CPU threads; one is timed by processor time", parse=count)
    repeats: int = option(3, doc="samples of everything, in alternation", parse=count)
    output: Path | None = option(None, doc="CSV file to write", parse=Path)  # noqa: RUF009 - declares a field
    compare: Path | None = option(None, doc="earlier CSV file to hold this against", parse=Path)  # noqa: RUF009 - declares a field
    fail_if_regression: bool = option(False, doc="exit with 1 where a ratio got worse")
    margin: float = option(0.1, doc="share by which a ratio may get worse", parse=margin)
    check: bool = option(False, doc="exit with 1 where a bound is broken")

    def prepare(self) -> None:
        """Set torch up, and refuse what cannot be measured here.

        Raises:
            ConfigError: the device is missing, the dtype unknown, or nothing is there to compare with.
        """
        kept = getattr(torch, self.dtype, None)
        if not isinstance(kept, torch.dtype) or not kept.is_floating_point:
            raise ConfigError(
                f"{self.dtype!r} is no floating torch dtype", remedy="Use float32 or bfloat16."
            )
        known = self.device == "cpu" or self.device.startswith("cuda")
        if not known or (self.device != "cpu" and not torch.cuda.is_available()):
            raise ConfigError(
                f"There is no device {self.device!r} here", remedy="Use --device cpu."
            )
        if self.fail_if_regression and self.compare is None:
            raise ConfigError(
                "There is nothing to find a regression against", remedy="Add --compare FILE."
            )
        torch.set_num_threads(self.threads)


def parse_options(kind: type[Asked], description: str, arguments: Sequence[str] | None) -> Asked:
    """Read the command line into an options class; a bad one exits with 2."""
    parser = ArgumentParser(description=description)
    for each in fields(kind):
        flag, doc = "--" + each.name.replace("_", "-"), each.metadata["doc"]
        if each.default is False:
            parser.add_argument(flag, action="store_true", help=doc)
            continue
        said = "none" if each.default is None else _said(each.default)
        parser.add_argument(
            flag,
            type=_checked(each.metadata["parse"]),
            default=each.default,
            help=f"{doc} (default {said})",
            metavar=each.name.upper(),
        )
    return kind(**vars(parser.parse_args(arguments)))


def _said(default: object) -> str:
    whole = ",".join(map(str, default)) if isinstance(default, tuple) else str(default)
    return whole.replace("%", "%%")


def _checked(parse: Callable[[str], Any]) -> Callable[[str], Any]:
    def read(text: str) -> Any:
        try:
            return parse(text)
        except (ValueError, ConfigError) as error:
            raise ArgumentTypeError(f"{text!r} will not do: {error}") from error

    return read
