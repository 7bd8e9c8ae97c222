"""Pictures: the same each time, of the format of the ending; what they say is text in an SVG."""

import dataclasses

import pytest
from commands import MODEL, SYMBOLIC, module

from relax_inplace.analysis import explain_lift, plan_memory
from relax_inplace.plot import plot_plan, plot_report
from relax_inplace.runtime import Report
from relax_inplace.runtime.memory_sampler import Sample

MB = 10**6


def measured(samples):
    """A report of a conversion of 496 MB, with these samples."""
    highest = max(samples, key=lambda one: one.host)
    weights = 496 * MB
    return Report("inplace_transform_params", 0.7, *[weights] * 4, None, samples, highest)


SAMPLES = [Sample(i / 10, (744 + 4 * (i % 9)) * MB, None) for i in range(9)]


@pytest.fixture
def words(monkeypatch):
    """What is written in a picture."""
    from matplotlib.text import Text

    found = []
    draw = Text.draw

    def noted(self, *args, **kwargs):
        if self.get_text() and self.get_visible():
            found.append(self.get_text())
        return draw(self, *args, **kwargs)

    monkeypatch.setattr(Text, "draw", noted)
    return found


def plan():
    return explain_lift(module(MODEL), max_resident=1.0).plan


def test_plan(tmp_path, words):
    plot_plan(plan(), tmp_path / "plan.svg")
    assert {
        "out of place 12.3 kB, computed",
        "weights 6.14 kB",
        "in place 10.2 kB, computed",
        "step (of 2), by the plan",
    } <= set(words)
    assert {"1", "2"} <= set(words)


def test_what_is_flat_is_drawn_once_more_enlarged(tmp_path, words):
    """24 equal weights, moved where they are: a few MB above the weights at each step."""
    size, step = 100 * MB, plan().steps[0]
    steps = [dataclasses.replace(step, before=size, worst=size + MB, after=size)] * 24
    weights = [dataclasses.replace(plan().weights[0], size=size // 20) for _ in range(20)]
    flat = dataclasses.replace(
        plan(), steps=steps, weights=weights, before=size, after=size, peak=size + MB
    )
    plot_plan(flat, tmp_path / "plan.svg")
    assert "MB above\nthe weights, enlarged" in words
    words.clear()
    steps = [dataclasses.replace(step, before=size, worst=size, after=size)] * 24
    plot_plan(dataclasses.replace(flat, steps=steps, peak=size), tmp_path / "plan.svg")
    assert "no step takes more memory than the weights" in words
    assert not any("enlarged" in one for one in words)


def test_computed_lines_are_dashed(tmp_path, monkeypatch):
    from matplotlib.axes import Axes

    drawn = []
    draw = Axes.axhline

    def noted(self, y, **how):
        drawn.append((y, how["linestyle"] != "solid"))
        return draw(self, y, **how)

    monkeypatch.setattr(Axes, "axhline", noted)
    report = dataclasses.replace(measured(SAMPLES), predicted_peak=(496 + 40) * MB)
    plot_report(report, tmp_path / "report.svg")
    assert drawn == [(1240, True), (744, False), (0, False), (40, True)]


def test_report(tmp_path, words):
    plot_report(measured(SAMPLES), tmp_path / "report.svg")
    assert {
        "out of place 1,240 MB, computed",
        "before 744 MB",
        "peak 776 MB",
        "seconds, inplace_transform_params",
        "MB above\nbefore, enlarged",
    } <= set(words)


def test_a_device_has_a_line(tmp_path, words):
    samples = [Sample(i / 10, 300 * MB, (4000 + i) * MB) for i in range(3)]
    plot_report(measured(samples), tmp_path / "report.png")
    assert "on the device, at most 4,002 MB" in words


@pytest.mark.parametrize("ending", [".svg", ".png", ".pdf"])
def test_same_picture_each_time(tmp_path, ending):
    for draw, what in ((plot_plan, plan()), (plot_report, measured(SAMPLES))):
        files = [tmp_path / f"{i}{ending}" for i in range(2)]
        for file in files:
            draw(what, file)
        assert files[0].read_bytes() == files[1].read_bytes()


def test_letters_of_an_svg_are_outlines(tmp_path):
    plot_plan(plan(), tmp_path / "plan.svg")
    text = (tmp_path / "plan.svg").read_text()
    assert "<text" not in text and "<dc:date>" not in text


def test_settings_of_the_user_stay(tmp_path):
    import matplotlib

    before = dict(matplotlib.rcParams)
    plot_plan(plan(), tmp_path / "plan.svg")
    assert dict(matplotlib.rcParams) == before


def test_one_sample_and_no_steps(tmp_path):
    plot_report(measured(SAMPLES[:1]), tmp_path / "report.svg")
    empty = dataclasses.replace(plan(), steps=[])
    plot_plan(empty, tmp_path / "plan.svg")


def test_refused(tmp_path):
    function = module(SYMBOLIC)["transform_params"]
    with pytest.raises(ValueError, match=r"the bytes of `transform_params` are symbolic, 16\*n"):
        plot_plan(plan_memory(function), tmp_path / "plan.svg")
    plot_plan(plan_memory(function, tir_var_upper_bound={"n": 4}), tmp_path / "plan.svg")
    with pytest.raises(ValueError, match=r"plan\.gif: expected a file that ends in \.svg"):
        plot_plan(plan(), "plan.gif")
