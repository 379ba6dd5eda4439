"""A drawing of lines, shapes and words, made once: as SVG for a page or a file, and as a picture."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from html import escape
from typing import TYPE_CHECKING, Final, Literal

from attrs import evolve, field, frozen

if TYPE_CHECKING:
    from PIL import Image, ImageDraw, ImageFont

__all__ = ["Drawing", "Line", "Point", "Shape", "Words", "stack"]

Point = tuple[float, float]

INK, SOFT, PALE, PAPER = "#1b1b1b", "#666666", "#d5d5d5", "#ffffff"
"""Colours of a file; in a page, its style sheet gives others by the kinds of lines and words."""

LINES: Final = {
    "grid": (PALE, 1.0),
    "same": (SOFT, 1.0),
    "front": (SOFT, 1.5),
    "leader": (SOFT, 0.6),
}
"""Colour and width in pixels of each kind of line."""

TITLE: Final = 22
"""Height of a drawing's title in a file, in pixels."""

FONT_SIZE: Final = 11
EDGE: Final = 1.4
"""Width of the edge of a shape that stands out, in pixels."""

FINENESS: Final = 2
"""Pixels of a picture for each pixel of the drawing; as many more are drawn, and averaged."""


@frozen(kw_only=True)
class Line:
    """A line through points."""

    kind: Literal["grid", "same", "front", "leader"]
    points: tuple[Point, ...]


@frozen(kw_only=True)
class Shape:
    """A filled polygon.

    Attributes:
        kind: Its class in a page.
        points: Its corners.
        color: As "#rrggbb".
        said: What it stands for; shown where a page's reader points at it.
        best: It gets an edge.
        reached: It can be reached by the keyboard.
    """

    kind: str
    points: tuple[Point, ...]
    color: str
    said: str = ""
    best: bool = False
    reached: bool = False


@frozen(kw_only=True)
class Words:
    """A text on one line.

    Attributes:
        text: The text.
        at: Where its baseline begins, has its middle or ends.
        anchor: Which of the three.
        kind: "tick" is softer, "label" names a point.
        turned: It is read from below.
        said: The whole of it, where it was cut.
    """

    text: str
    at: Point
    anchor: Literal["start", "middle", "end"] = "middle"
    kind: Literal["", "tick", "label"] = ""
    turned: bool = False
    said: str = ""


@frozen(kw_only=True)
class Drawing:
    """Lines, shapes and words, in the order in which they are drawn.

    Attributes:
        width: In pixels.
        height: In pixels.
        kind: Its class in a page.
        title: What stands above it in a file.
        name: What it shows, for those who cannot see it.
        parts: What is drawn.
    """

    width: float
    height: float
    kind: str = ""
    title: str = ""
    name: str = ""
    parts: tuple[Line | Shape | Words, ...] = field(repr=False)

    def svg(self, *, file: bool = False) -> str:
        """Write it as SVG.

        Args:
            file: It stands alone, on paper of its own, instead of in a page.
        """
        size = f'viewBox="0 0 {self.width:g} {self.height:g}" width="{self.width:g}"'
        alone = f' xmlns="http://www.w3.org/2000/svg" height="{self.height:g}"' if file else ""
        paper = f'<path d="M0 0H{self.width:g}V{self.height:g}H0z" fill="{PAPER}"/>' if file else ""
        return (
            f'<svg {size}{alone} class="{self.kind}" role="group" aria-label="{escape(self.name)}">'
            f"{paper}{''.join(_svg(part) for part in self.parts)}</svg>"
        )

    def picture(self) -> Image.Image:
        """Draw it as an RGB picture."""
        from PIL import Image, ImageDraw, ImageFont

        scale = FINENESS * FINENESS
        size = round(self.width * scale), round(self.height * scale)
        image = Image.new("RGB", size, PAPER)
        font = ImageFont.load_default(FONT_SIZE * scale)
        pen = ImageDraw.Draw(image)
        for part in self.parts:
            if isinstance(part, Words):
                _write(image, pen, part, font, scale)
            else:
                _draw(pen, part, scale)
        return image.reduce(FINENESS)


def stack(drawings: Sequence[Drawing]) -> Drawing:
    """Put drawings below each other, each below its title, for a file."""
    parts: list[Line | Shape | Words] = []
    top = 0.0
    for drawing in drawings:
        if drawing.title:
            parts.append(Words(text=drawing.title, at=(8, top + 16), anchor="start"))
            top += TITLE
        parts += _moved(drawing, top)
        top += drawing.height
    return Drawing(
        width=max(drawing.width for drawing in drawings),
        height=top,
        name="; ".join(drawing.name for drawing in drawings if drawing.name),
        parts=tuple(parts),
    )


def _moved(drawing: Drawing, down: float) -> Iterator[Line | Shape | Words]:
    for part in drawing.parts:
        if isinstance(part, Words):
            yield evolve(part, at=(part.at[0], part.at[1] + down))
        else:
            yield evolve(part, points=tuple((x, y + down) for x, y in part.points))


def _svg(part: Line | Shape | Words) -> str:
    said = f"<title>{escape(part.said)}</title>" if not isinstance(part, Line) and part.said else ""
    if isinstance(part, Words):
        x, y = part.at
        place = f'transform="translate({x:.1f} {y:.1f}) rotate(-90)"' * part.turned or (
            f'x="{x:.1f}" y="{y:.1f}"'
        )
        color = SOFT if part.kind == "tick" else INK
        look = f'fill="{color}" font-family="sans-serif" font-size="{FONT_SIZE}"'
        kind = f'class="{part.kind}" ' if part.kind else ""
        return f'<text {kind}{place} {look} text-anchor="{part.anchor}">{escape(part.text)}{said}</text>'
    path = "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in part.points)
    if isinstance(part, Line):
        color, width = LINES[part.kind]
        return f'<path class="{part.kind}" d="{path}" stroke="{color}" stroke-width="{width}" fill="none"/>'
    edge = f' stroke="{INK}" stroke-width="{EDGE}"' if part.best else ""
    reached = f' tabindex="0" role="img" aria-label="{escape(part.said)}"' if part.reached else ""
    return (
        f'<path class="{part.kind}{" best" * part.best}" d="{path}z" fill="{part.color}"'
        f"{edge}{reached}>{said}</path>"
    )


def _draw(pen: ImageDraw.ImageDraw, part: Line | Shape, scale: int) -> None:
    points = [(x * scale, y * scale) for x, y in part.points]
    if isinstance(part, Line):
        color, width = LINES[part.kind]
        pen.line(points, fill=color, width=round(width * scale))
    else:
        pen.polygon(points, fill=part.color)
        if part.best:
            pen.line([*points, points[0]], fill=INK, width=round(EDGE * scale))


def _write(
    image: Image.Image,
    pen: ImageDraw.ImageDraw,
    words: Words,
    font: ImageFont.FreeTypeFont | ImageFont.ImageFont,
    scale: int,
) -> None:
    from PIL import Image, ImageDraw

    color = SOFT if words.kind == "tick" else INK
    (x, y), anchor = words.at, {"start": "ls", "middle": "ms", "end": "rs"}[words.anchor]
    if not words.turned:
        pen.text((x * scale, y * scale), words.text, fill=color, font=font, anchor=anchor)
        return
    right, bottom = (round(edge) for edge in font.getbbox(words.text)[2:])
    flat = Image.new("L", (right, bottom))
    ImageDraw.Draw(flat).text((0, 0), words.text, fill=255, font=font)
    upright = flat.rotate(90, expand=True)
    corner = round(x * scale) - upright.width, round(y * scale) - upright.height // 2
    image.paste(color, corner, upright)
