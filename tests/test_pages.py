"""Pages in a real browser: nothing is fetched, nothing overflows, curves can be hidden and read."""

import json
import math
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from scalarfl import InputError
from scalarfl.cli import commands as cli
from scalarfl.experiment import recipe as recipes, run
from scalarfl.experiment.compare import page
from scalarfl.experiment.pages.chart import Axis, Curve, chart, standing_alone
from scalarfl.experiment.pages.live import Follower
from scalarfl.experiment.pages.run import interval, look, write
from support import RECIPE

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome", "microsoft-edge")
PLAIN = Axis("rounds", lambda value: f"{value:g}")


def method(name: str, top: float, moved: float, **more: Any) -> dict[str, Any]:
    curves = [
        [[r, top * (1 - math.exp(-r / 40)) + 0.01 * seed, 2 - r / 100] for r in range(0, 101, 5)] for seed in (0, 1, 2)
    ]
    tests = [curve[-1][1] for curve in curves]
    own = {
        "dimension": 10, "rounds": 100, "clients": 4, "sampled": 2, "perturbations": 5, "local_steps": 1,
        "method": name, "lr": 0.1, "edge": None, "lrs": [{"lr": 0.03, "score": 0.4, "diverged": 0},
        {"lr": 0.1, "score": top, "diverged": 0}, {"lr": 0.3, "score": None, "diverged": 2}],
        "test": {"mean": sum(tests) / 3, "deviation": 0.01, "values": tests}, "test_loss": None,
        "best": {"mean": top, "deviation": 0.01, "values": tests}, "forward_passes": 1200.0, "bytes_up": moved,
        "bytes_down": moved, "seconds": 3.0, "peak_rss_bytes": 5, "diverged": 0, "diverged_in_sweep": 2,
        "curves": curves, "inside": None,
    }  # fmt: skip
    return own | more


SUMMARY: dict[str, Any] = {
    "format": 2, "version": "0.2.0", "task": "digits", "model": "<b>mlp</b>", "metric": "accuracy", "seeds": [0, 1, 2],
    "tune_seeds": [9], "same_lr": False, "reference": "decomfl", "differences": [], "reach": [],
    "made": {"command": "scalarfl compare r.toml", "date": "2030-01-02 03:04 UTC", "recipe": "[model]\nname = 'mlp'\n"},
    "methods": [
        method("decomfl", 0.6, 900.0, inside={
            "traffic": [{"direction": "up", "purpose": "round", "messages": 9, "payload": 90, "serialized": 100}],
            "participation": {"a": 30, "b": 28}, "hessian": None,
        }),
        method("hiso", 0.7, 950.0, edge="highest", inside={
            "traffic": [], "participation": {"a": 30, "b": 28},
            "hessian": {"moments": [{"round": 50, "counts": [0] * 80 + [7, 3] + [0] * 78}], "with_squared_gradient": 0},
        }),
        method("fedavg", 0.9, 9e6),
    ],
}  # fmt: skip
SUMMARY["reach"] = [{"method": "decomfl", "of": "decomfl", "reached": 0}]


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("comparison")
    (folder / "compare.json").write_text(json.dumps(SUMMARY))
    return page.write(folder)


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "one"
    path = folder.parent / "recipe.toml"
    path.write_text(RECIPE)
    run.run(recipes.load(path, []), folder)
    return write(look(folder))


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    program = next(filter(None, map(shutil.which, BROWSERS)), None)
    if program is None:
        pytest.skip("no browser here: install Chromium")
    with sync_api.sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=program, args=["--no-sandbox", "--disable-gpu"])
        yield started
        started.close()


Open = Callable[..., Any]


@pytest.fixture
def opened(browser: Any) -> Iterator[Open]:
    """Opens a page; afterwards nothing may have been fetched or gone wrong in it."""
    contexts, wrong = [], []

    def open_(path: Path, width: int = 800, **options: Any) -> Any:
        contexts.append(browser.new_context(viewport={"width": width, "height": 800}, **options))
        tab = contexts[-1].new_page()
        tab.on("console", lambda message: wrong.append(message.text))
        tab.on("pageerror", lambda error: wrong.append(str(error)))
        tab.on("request", lambda asked: wrong.append(asked.url) if asked.url != path.as_uri() else None)
        tab.goto(path.as_uri())
        return tab

    yield open_
    for context in contexts:
        context.close()
    assert wrong == []


LUMINANCE = """() => {
  const [r, g, b] = getComputedStyle(document.body).backgroundColor.match(/[0-9.]+/g).map(Number);
  return (r + g + b) / 3;
}"""


@pytest.mark.parametrize("kind", ["compared", "ran"])
def test_a_page_fits_every_width_in_light_and_in_dark(kind: str, opened: Open, request: pytest.FixtureRequest) -> None:
    tab = opened(request.getfixturevalue(kind))
    for theme, other in (("light", "dark"), ("dark", "light")):
        tab.emulate_media(color_scheme=theme)
        tab.get_by_label("auto", exact=True).check()
        for width in (360, 800, 1600):
            tab.set_viewport_size({"width": width, "height": 800})
            assert tab.evaluate("document.documentElement.scrollWidth") == width
        assert (tab.evaluate(LUMINANCE) > 128) == (theme == "light")
        tab.get_by_label(other, exact=True).check()
        assert (tab.evaluate(LUMINANCE) > 128) == (other == "light")
    names = tab.evaluate("[...document.querySelectorAll('svg.chart[role=img]')].map(s => s.getAttribute('aria-label'))")
    assert len(names) >= 6
    assert all(len(name) > 20 for name in names)


def test_no_text_lies_over_a_curve_and_no_two_labels_meet(compared: Path, opened: Open) -> None:
    tab = opened(compared, 360)
    found = tab.evaluate(
        """[...document.querySelectorAll('svg[data-plot]')].map(s => [s.dataset.plot.split(' ').map(Number),
        [...s.querySelectorAll(':scope > text')].map(t => t.getBBox()).map(b => [b.x, b.y, b.width, b.height])])"""
    )
    assert len(found) == 6
    for (left, right, top, bottom), boxes in found:
        for x, y, width, height in boxes:
            assert x + width <= left + 1 or x >= right or y + height <= top + 6 or y >= bottom - 6
            assert x >= -1
            assert x + width <= 421
        for index, (x, y, width, height) in enumerate(boxes):
            for u, v, wide, high in boxes[index + 1 :]:
                assert x + width <= u or u + wide <= x or y + height <= v + 4 or v + high <= y + 4


@pytest.mark.parametrize("script", [True, False])
def test_a_method_can_be_hidden(compared: Path, opened: Open, script: bool) -> None:
    tab = opened(compared, java_script_enabled=script)
    curves = tab.locator(".curve[data-name=hiso]")
    assert curves.first.is_visible()
    assert curves.count() == 5  # bytes, rounds, forward passes, time, learning rates
    tab.get_by_label("hiso", exact=True).uncheck()
    assert not curves.first.is_visible()
    assert not curves.last.is_visible()
    assert tab.locator(".curve[data-name=fedavg]").first.is_visible()
    assert tab.locator(".curve.o0").first.is_visible()  # not a method's


def test_the_pointer_and_the_keys_show_values(compared: Path, opened: Open) -> None:
    tab = opened(compared)
    picture = tab.locator("svg.chart").nth(1)
    tip = tab.locator("figure").nth(1).locator(".tip")
    assert not tip.is_visible()
    picture.hover()
    assert re.search(r"hiso: \d\d\.\d % at \d+", tip.inner_text())
    assert tip.locator(".swatch").count() == 3
    tab.get_by_label("hiso", exact=True).uncheck()
    picture.hover()
    assert "hiso" not in tip.inner_text()
    tab.mouse.move(0, 0)
    assert not tip.is_visible()
    picture.focus()
    picture.press("ArrowRight")
    before = tip.inner_text()
    picture.press("ArrowRight")
    assert tip.inner_text() != before
    picture.press("Escape")
    assert not tip.is_visible()


def test_without_scripts_all_of_it_can_be_read(compared: Path, ran: Path, opened: Open) -> None:
    tab = opened(compared, java_script_enabled=False)
    words = tab.locator("main").inner_text()
    assert "fedavg has the highest test accuracy, 83.6 %" in words
    assert "decomfl moved the fewest bytes, 1.8 kB per client and run" in words
    assert "hiso: 0.1 is the highest learning rate tried" in words
    assert "scalarfl compare r.toml" in words
    assert tab.locator("h1").inner_text() == "3 methods on digits, <b>mlp</b>"
    assert tab.locator("svg.chart").count() == 7
    assert tab.locator(".marker title").first.text_content().startswith("decomfl: ")
    words = opened(ran, java_script_enabled=False).locator("main").inner_text()
    result = json.loads((ran.parent / "result.json").read_text())
    assert f"{100 * result['test_accuracy']:.1f} % test accuracy (95 % interval" in words
    assert result["digest"] in words
    assert "FedAvg would have moved" in words


def test_a_page_follows_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another process's run, looked at after every fourth round and at its end."""
    path, out = tmp_path / "recipe.toml", tmp_path / "run"
    path.write_text(RECIPE)
    follower = Follower(out, 5.0)
    assert not follower.step()
    assert follower.page is None
    pages, ends = [], []

    def watch(progress: Any) -> None:
        if progress.round % 4 == 0:
            ends.append(follower.step())
            assert follower.page is not None
            pages.append(follower.page.read_text())

    run.run(recipes.load(path, []), out, callbacks=watch)
    assert ends == [False] * 3
    assert all('http-equiv="refresh" content="5"' in text for text in pages)
    assert "Round 4 of 12" in pages[0]
    assert "rounds per second, about" in pages[1]
    assert follower.step()
    assert follower.page is not None
    text = follower.page.read_text()
    assert "refresh" not in text
    assert json.loads((out / "result.json").read_text())["digest"] in text


def test_the_command_follows_until_the_end(ran: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ran.unlink()
    assert cli._exit_code(["report", str(ran.parent), "--live"]) == 0
    assert capsys.readouterr().out.strip() == str(ran)
    assert ran.exists()


@pytest.mark.parametrize(("options", "says"), [(["--live"], "is a comparison. Leave --live out"), ([], None)])
def test_live_is_for_runs(
    compared: Path, options: list[str], says: str | None, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli._exit_code(["report", str(compared.parent), *options]) == (2 if says else 0)
    told = capsys.readouterr()
    assert (says or str(compared)) in (told.err if says else told.out)


def test_a_folder_without_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"recipe\.toml: cannot be read"):
        look(tmp_path)


def test_wilsons_interval() -> None:
    """Values of Newcombe (1998), table I: 81 of 263, 15 of 148, 0 of 20."""
    assert interval(81 / 263, 263) == pytest.approx((0.2553, 0.3662), abs=1e-4)
    assert interval(15 / 148, 148) == pytest.approx((0.0624, 0.1605), abs=1e-4)
    assert interval(0.0, 20) == pytest.approx((0.0, 0.1611), abs=1e-4)


def test_a_log_axis_leaves_out_what_it_cannot_show() -> None:
    curve = Curve("one", 0, [(0, 0.1), (10, 0.2), (1000, math.nan), (10000, 0.4)])
    picture = chart("t", [curve], Axis("bytes", lambda value: f"{value:g} B", log=True), PLAIN)
    assert [row[2] for row in json.loads(re.findall('data-points="([^"]*)"', picture)[0].replace("&quot;", '"'))] == [
        "10 B",
        "10000 B",
    ]
    assert ">100 B</text>" in picture
    assert chart("t", [Curve("none", 0, [])], PLAIN, PLAIN) == ""


def test_a_picture_is_a_file_of_its_own() -> None:
    names = [f"method-{number}" for number in range(9)]
    picture = chart("t", [Curve(name, at, [(0, at), (9, 1)]) for at, name in enumerate(names)], PLAIN, PLAIN)
    alone = standing_alone(picture, names)
    from xml.etree import ElementTree

    root = ElementTree.fromstring(alone)
    texts = [element.text for element in root.iter("{http://www.w3.org/2000/svg}text")]
    assert set(names) <= set(texts)
    assert root.get("viewBox") != "0 0 420 270"
