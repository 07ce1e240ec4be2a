"""Pictures for those who would rather look: one HTML file that needs nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

_COLOURS = (
    "#4c78a8",
    "#9ecae9",
    "#f58518",
    "#54a24b",
    "#eeca3b",
    "#e45756",
    "#b279a2",
    "#9d755d",
)
_LEFT, _WIDTH, _ROW = 280, 620, 26
_STYLE = """body{font:14px system-ui,sans-serif;margin:2em;color:#222}
svg{display:block;margin:1em 0}text{font:13px system-ui,sans-serif}"""


@dataclass(frozen=True)
class Bar:
    """One row of a bar chart.

    Args:
        label: what it is, in a few words.
        parts: of its length, in the order of the legend.
        note: the text behind it.
    """

    label: str
    parts: Sequence[float]
    note: str = ""


def bars(title: str, legend: Sequence[str], rows: Sequence[Bar], *, limit: float, unit: str) -> str:
    """A chart of stacked bars with a line at `limit`; an SVG element.

    Args:
        title: above it.
        legend: names of the parts.
        rows: from top to bottom.
        limit: where the line stands.
        unit: of the numbers.
    """
    longest = max([limit, *(min(sum(row.parts), 2 * limit) for row in rows)])
    scale = _WIDTH / longest
    lines = [f'<text x="0" y="16" font-weight="bold">{escape(title)}</text>']
    x = 0
    for name, colour in zip(legend, _COLOURS, strict=False):
        lines.append(f'<rect x="{x}" y="28" width="12" height="12" fill="{colour}"/>')
        lines.append(f'<text x="{x + 16}" y="39">{escape(name)}</text>')
        x += 24 + 8 * len(name)
    top = 52
    for number, row in enumerate(rows):
        lines += _bar(row, top + number * _ROW, scale, longest)
    end = top + len(rows) * _ROW
    at = _LEFT + limit * scale
    lines.append(f'<path d="M{at:.1f} {top - 4}V{end}" stroke="#222" stroke-dasharray="4 3"/>')
    lines.append(
        f'<text x="{at:.1f}" y="{end + 14}" text-anchor="middle">{limit:.1f} {escape(unit)}</text>'
    )
    return _svg(_LEFT + _WIDTH + 260, end + 20, lines)


def _bar(row: Bar, y: float, scale: float, longest: float) -> list[str]:
    lines = [f'<text x="{_LEFT - 8}" y="{y + 16}" text-anchor="end">{escape(row.label)}</text>']
    done = 0.0
    for part, colour in zip(row.parts, _COLOURS, strict=False):
        shown = min(part, longest - done)
        if shown > 0:
            lines.append(
                f'<rect x="{_LEFT + done * scale:.1f}" y="{y + 3}" width="{shown * scale:.1f}" '
                f'height="{_ROW - 8}" fill="{colour}"/>'
            )
        done += part
    end = _LEFT + min(done, longest) * scale
    lines.append(f'<text x="{end + 6:.1f}" y="{y + 16}">{escape(row.note)}</text>')
    return lines


def curve(title: str, points: Sequence[tuple[float, float]], *, across: str, up: str) -> str:
    """A line through points; an SVG element.

    Args:
        title: above it.
        points: ascending in their first number; two at least.
        across: what the first numbers are.
        up: what the second numbers are.
    """
    left, right = points[0][0], points[-1][0]
    highest = max(y for _, y in points) or 1.0
    height, x0, y0 = 180, 70, 30
    across_scale, up_scale = _WIDTH / (right - left or 1), height / highest
    path = " ".join(
        f"{x0 + (x - left) * across_scale:.1f},{y0 + height - y * up_scale:.1f}" for x, y in points
    )
    base = y0 + height
    return _svg(
        x0 + _WIDTH + 60,
        base + 40,
        [
            f'<text x="0" y="16" font-weight="bold">{escape(title)}</text>',
            f'<path d="M{x0} {y0}V{base}H{x0 + _WIDTH}" stroke="#222" fill="none"/>',
            f'<polyline points="{path}" fill="none" stroke="{_COLOURS[0]}" stroke-width="2"/>',
            f'<text x="{x0 - 6}" y="{y0 + 5}" text-anchor="end">{highest:.3g}</text>',
            f'<text x="{x0 - 6}" y="{base}" text-anchor="end">0</text>',
            f'<text x="{x0}" y="{base + 16}">{left:.3g}</text>',
            f'<text x="{x0 + _WIDTH}" y="{base + 16}" text-anchor="end">{right:.3g}</text>',
            f'<text x="{x0 + _WIDTH / 2}" y="{base + 32}" text-anchor="middle">'
            f"{escape(across)}; up: {escape(up)}</text>",
        ],
    )


def _svg(width: float, height: float, lines: Sequence[str]) -> str:
    inside = "\n".join(lines)
    form = f'width="{width:.0f}" height="{height:.0f}" viewBox="0 0 {width:.0f} {height:.0f}"'
    return f'<svg xmlns="http://www.w3.org/2000/svg" {form}>\n{inside}\n</svg>'


def page(title: str, pictures: Sequence[str], text: str = "") -> str:
    """An HTML document with pictures, and text below them as it would be printed."""
    body = "\n".join(pictures)
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head>\n"
        f"<body><h1>{escape(title)}</h1>\n{body}\n<pre>{escape(text)}</pre></body></html>\n"
    )
