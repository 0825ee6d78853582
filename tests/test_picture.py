"""Curves as SVG: well-formed, nothing left out, and no label over a curve or over another label."""

import base64
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence

import pytest

import scalarfl
from scalarfl import picture
from scalarfl.experiment import demo
from scalarfl.experiment.compare.cells import Cell, Contender
from scalarfl.experiment.compare.sweep import Comparison
from support import cross_entropy, network, score, shards

SVG = "{http://www.w3.org/2000/svg}"


def result(rounds: int, a_round: float, end: float, start: float = 0.1) -> dict[str, object]:
    curve = [[n, start + (end - start) * (n / rounds) ** 0.4, 1.0] for n in range(0, rounds + 1, 10)]
    moved = {"serialized_bytes_up": rounds * a_round / 4, "serialized_bytes_down": rounds * a_round * 3 / 4}
    return {"curve": curve, "rounds": rounds, "accuracy": end, "dimension": 85002, "clients": 6, **moved}


RUNS = {
    "as measured": [result(30, 226672, 0.904), result(50, 722, 0.902), result(1140, 70, 0.901), result(1200, 70, 0.7)],
    "all alike": [result(100, 100, 0.9)] * 4,
    "two meet": [result(30, 1e5, 0.9), result(50, 700, 0.9), result(1200, 70, 0.9), result(1200, 70, 0.89)],
}


def boxes(group: ElementTree.Element) -> list[picture.Box]:
    found = []
    for text in group.iter(f"{SVG}text"):
        if text.get("class", "").startswith("n "):
            x, y = float(text.get("x", "")), float(text.get("y", ""))
            found.append((x, y - 11, x + 6.5 * len(text.text or ""), y + 2))
    return found


def lines(group: ElementTree.Element) -> list[list[picture.Point]]:
    paths = [path for path in group.iter(f"{SVG}path") if path.get("class", "").startswith("c")]
    numbers = [re.findall(r"[-0-9.]+", path.get("d", "")) for path in paths]
    return [[(float(x), float(y)) for x, y in zip(one[::2], one[1::2], strict=True)] for one in numbers]


@pytest.mark.parametrize("name", RUNS)
def test_labels_are_free_of_curves_and_of_each_other(name: str) -> None:
    root = ElementTree.fromstring(demo.drawing(RUNS[name]))
    panels = list(root.findall(f"{SVG}g"))
    assert len(panels) == 2
    for panel in panels:
        labels, curves = boxes(panel), lines(panel)
        assert len(labels) == len(curves) == 4
        for number, label in enumerate(labels):
            assert label[0] >= 0
            assert label[2] <= 440
            assert not [other for other in labels[number + 1 :] if picture._meet(label, other)]
            assert not [curve for curve in curves for piece in picture._boxes(curve) if picture._meet(label, piece)]


def points(values: Sequence[float]) -> list[picture.Point]:
    return [(float(n), value) for n, value in enumerate(values)]


def test_what_cannot_be_drawn_is_left_out() -> None:
    curve = picture.Curve("a < b", points([0.5, float("nan"), 0.7]), 7)
    for log in (False, True):
        text = picture.svg("", [picture.Panel("p", "x", [curve], str, log)])
        ElementTree.fromstring(text)
        assert "nan" not in text
        assert "a &lt; b" in text
    empty = picture.svg("", [picture.Panel("p", "x", [picture.Curve("none", [], 0)], str)])
    assert ">none<" not in empty
    flat = picture.svg(
        "", [picture.Panel("p", "x", [picture.Curve("flat", points([2.0, 2.0]), 0)], str, percent=False)]
    )
    assert ">2<" in flat


def test_a_run_and_a_comparison_show_their_picture() -> None:
    run = scalarfl.simulate(network(), shards(), cross_entropy, rounds=4, evaluate=score, evaluate_every=2)
    assert repr(run).startswith("Run(method=hiso, rounds=4")
    assert "\n" not in repr(run)
    (drawn,) = re.findall(r'src="data:image/svg\+xml;base64,([^"]+)"', run._repr_html_())
    assert "Accuracy" in base64.b64decode(drawn).decode()
    one, other = Contender("hiso"), Contender("decomfl")
    found = Comparison([one, other], [0], [], True, best={one: 0.1, other: 0.2})
    curve = [[0, 0.1, 1.0], [5, 0.5, 0.5]]
    found.results = {Cell(c, lr, 0): {"curve": curve, "test_accuracy": 0.5} for c, lr in found.best.items()}
    assert repr(found) == "Comparison(hiso=50.0 % (lr 0.1, 1 seeds), decomfl=50.0 % (lr 0.2, 1 seeds))"
    assert "<table>" in found._repr_html_()
    assert "image/svg" in found._repr_html_()
    unrated = scalarfl.simulate(network(), shards(), cross_entropy, rounds=1)
    assert "img" not in unrated._repr_html_()
