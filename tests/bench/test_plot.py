import dataclasses
from pathlib import Path
from xml.etree import ElementTree

import pytest

from cdiff_rt.bench.comparison import Comparison, Timing
from cdiff_rt.bench.plot import BARS, check_suffix, write_plot
from cdiff_rt.errors import BadRequest

MACHINE = {"cpu": "A <Processor>", "cores": "2", "python": "3.12.1"}
RESULT = Comparison(
    MACHINE,
    {"model": "tiny", "batch": 1},
    [Timing("torch", 1.0, 1.0, [400.0] * 3, [400.0] * 3), Timing("a & b", 1.0, 1.0, [100.0] * 3, [400.0] * 3)],
)
SVG = "{http://www.w3.org/2000/svg}"


def drawn(comparisons, path):
    write_plot(comparisons, path)
    return ElementTree.parse(path).getroot()


def test_a_bar_is_as_long_as_its_median(tmp_path):
    root = drawn([RESULT], tmp_path / "plot.svg")
    _, *bars = root.iter(f"{SVG}rect")
    assert [float(bar.get("width")) for bar in bars] == [BARS, BARS / 4]
    texts = [text.text for text in root.iter(f"{SVG}text")]
    assert {"torch", "a & b", "400 ms, 1.00x", "100 ms, 4.00x"} <= set(texts)
    assert any("A <Processor>" in text for text in texts)


def test_comparisons_stand_below_each_other_inside_the_picture(tmp_path):
    other = dataclasses.replace(RESULT, settings={"model": "tiny", "batch": 8})
    root = drawn([RESULT, other], tmp_path / "plot.svg")
    _, *bars = root.iter(f"{SVG}rect")
    tops = [float(bar.get("y")) for bar in bars]
    assert tops == sorted(tops) and len(set(tops)) == 4 and tops[-1] + 16 < float(root.get("height"))


def test_it_is_drawn_as_svg_only():
    check_suffix(Path("a.svg"))
    with pytest.raises(BadRequest, match="plot: a.png; it is drawn as .svg"):
        check_suffix(Path("a.png"))
