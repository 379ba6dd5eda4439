"""What a section of the report's page is, and what its HTML may hold."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from html.parser import HTMLParser
from typing import TYPE_CHECKING, Any, ClassVar, Final

from attrs import field, frozen

from hetcache_core import ContractError

if TYPE_CHECKING:
    from hetcache.comparison.page.scenes import Scene
    from hetcache.comparison.results.folder import Results
    from hetcache.comparison.results.summary import Summary

__all__ = ["ReportSection", "Reported", "check_html"]

VOID: Final = frozenset({"area", "br", "col", "hr", "img", "input", "source", "track", "wbr"})
"""Elements without an end."""

REFUSED: Final = frozenset(
    {
        "applet",
        "base",
        "embed",
        "form",
        "frame",
        "iframe",
        "link",
        "meta",
        "object",
        "script",
        "style",
    }
)
"""Elements that run or load something, or change the whole page."""

DATA: Final = ("type", "application/json")
"""What makes a script one that holds values and runs nothing."""


@frozen(eq=False, kw_only=True)
class Reported:
    """A comparison, as the sections of its page are given it.

    Attributes:
        results: Its folder.
        summary: What its rows are summed up to.
        plan: What was asked for, as ``comparison.json`` has it.
        scenes: Clips and seeds, with those of their videos that fit into the page.
    """

    results: Results
    summary: Summary
    plan: Mapping[str, Any] = field(repr=False)
    scenes: tuple[Scene, ...] = field(repr=False)


class ReportSection(ABC):
    """A section of the page that ``hetcache report`` writes. Subclasses are final and hold no state.

    Attributes:
        name: What it is registered as; the anchor of the section.
        title: Its heading.
        rank: Sections of lower ranks come first, those of one rank by name.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    rank: ClassVar[int] = 100

    @abstractmethod
    def render(self, reported: Reported) -> str:
        """Write the section.

        The page loads nothing and runs only its own scripts: pictures are inline SVG or ``data:``
        addresses, and classes are those of the page's style sheet.

        Args:
            reported: What is reported.

        Returns:
            HTML without the heading, in which everything that was read is escaped; "" leaves the
            section out.

        Raises:
            ConfigError: A file of the comparison cannot be read; there is no page then. After any
                other error, the page says in the section's place that it failed.
        """


def check_html(text: str, *, subject: str) -> None:
    """Make sure that HTML stays in its place: it closes what it opens, and runs and loads nothing.

    Args:
        text: The inside of a section.
        subject: What it belongs to, for messages.

    Raises:
        ContractError: It does not.
    """
    checked = _Checked(subject)
    checked.feed(text)
    if "<" in checked.rawdata:
        checked.refuse(f"ends within {checked.rawdata!r}")
    checked.close()
    if checked.open:
        checked.refuse(f"leaves <{checked.open[-1]}> open")


class _Checked(HTMLParser):
    def __init__(self, subject: str) -> None:
        super().__init__()
        self.subject = subject
        self.open: list[str] = []

    def refuse(self, what: str) -> None:
        raise ContractError(
            f"its HTML {what}",
            subject=self.subject,
            remedy="Escape what was read, close every element, and leave out what runs or loads.",
        )

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_startendtag(tag, attrs)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in REFUSED and not (tag == "script" and DATA in attrs):
            self.refuse(f"holds a <{tag}>")
        for name, value in attrs:
            address = name in {"href", "xlink:href", "src", "srcset", "poster", "action"}
            inside = (value or "").startswith(("#", "data:image/"))
            if name == "style" or name.startswith("on") or (address and not inside):
                self.refuse(f"has the attribute {name}={value!r}")

    def handle_endtag(self, tag: str) -> None:
        if not self.open or self.open.pop() != tag:
            self.refuse(f"closes a <{tag}> that is not the last one opened")

    def unknown_decl(self, data: str) -> None:
        self.refuse(f"holds a declaration {data!r}")
