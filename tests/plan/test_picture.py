"""The pictures: well-formed, to scale, and nothing in a name becomes markup."""

from __future__ import annotations

from xml.etree import ElementTree

import pytest

from gpt2_ds.plan.picture import Bar, bars, curve, page

SVG = "{http://www.w3.org/2000/svg}"


def test_bars_are_to_scale() -> None:
    rows = [Bar("a < b", [1.0, 3.0], "4"), Bar("far over", [30.0, 1.0])]
    svg = ElementTree.fromstring(bars("t & u", ["x", "y"], rows, limit=4.0, unit="GiB"))
    widths = [float(rect.get("width", 0)) for rect in svg.iter(f"{SVG}rect")][2:]  # the legend's
    assert widths[1] == pytest.approx(3 * widths[0], abs=0.2)
    assert len(widths) == 3  # of what is far over the limit the chart shows twice the limit
    assert widths[2] == pytest.approx(8 * widths[0], abs=1)
    texts = [text.text for text in svg.iter(f"{SVG}text")]
    assert texts[0] == "t & u"
    assert "a < b" in texts
    assert "4.0 GiB" in texts


def test_a_curve_goes_through_its_points() -> None:
    points = [(0.0, 0.0), (1.0, 2.0), (2.0, 1.0)]
    svg = ElementTree.fromstring(curve("rate", points, across="tokens", up="learning rate"))
    (line,) = svg.iter(f"{SVG}polyline")
    (x0, y0), (x1, y1), (x2, y2) = (
        tuple(map(float, pair.split(","))) for pair in line.get("points", "").split()
    )
    assert x1 - x0 == pytest.approx(x2 - x1)
    assert y0 - y1 == pytest.approx(2 * (y0 - y2))
    assert "tokens; up: learning rate" in [text.text for text in svg.iter(f"{SVG}text")]


def test_a_page_says_its_text_as_it_is() -> None:
    html = page("a <b>", ["<svg/>"], "1 < 2 & 3")
    assert "<title>a &lt;b&gt;</title>" in html
    assert "<pre>1 &lt; 2 &amp; 3</pre>" in html
    assert "<svg/>" in html
