"""Figures: what is drawn is what the tables hold."""

import re
from importlib.resources import files

import numpy as np
import pytest

from asking import entries, rebuilt
from fp4scope.diagnosis import Diagnosis
from fp4scope.errors import StudyError
from fp4scope.report import write_outputs, write_report
from fp4scope.report.figures import figure_names, save
from fp4scope.report.theme import THEMES
from fp4scope.stats import significant

BOTH = "W4A4"
FORMATS = ("mxfp4:floor", "nvfp4")
DIRECTIONS = ("keep", "only")


def _marks(axis):
    """Those of each format, without their whiskers."""
    return [marks for marks in axis.collections if hasattr(marks, "get_sizes")]


def svg_of(figure, tmp_path):
    save(figure, tmp_path / "figure.svg", "svg")
    return (tmp_path / "figure.svg").read_text()


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_layers_that_are_not_significant_have_a_dot_and_no_colour(direction, known, tmp_path):
    diagnosis = known()
    figure = diagnosis.plot("heatmap", direction=direction)
    panels = [axis for axis in figure.axes if axis.get_title(loc="left") in FORMATS]
    dots = 0
    for axis in panels:
        rows = diagnosis.layers.where(format=axis.get_title(loc="left"), direction=direction)
        names = [label.get_text() for label in axis.get_yticklabels()]
        unsure = {(r["block"], r["projection"]) for r in rows if not significant(r)}
        (marks,) = axis.collections
        assert {(int(x), names[int(y)]) for x, y in marks.get_offsets()} == unsure
        (image,) = axis.images
        empty = np.argwhere(np.ma.getmaskarray(image.get_array()))
        assert {(int(x), names[int(y)]) for y, x in empty} == unsure
        dots += len(unsure)
    assert len(panels) == 2
    assert dots == 2 + 7
    # In the file a mark is one `use` of the shape of its collection.
    groups = re.findall(
        r'<g id="PathCollection_\d+">(.*?)</g>\s*</g>', svg_of(figure, tmp_path), re.S
    )
    assert sum(group.count("<use ") for group in groups) == dots


@pytest.fixture
def far(known):
    """A study whose restored layers of odd blocks are 42.4 millinats of KL closer, no others."""
    results = known().results
    found = entries(results)
    for one in found:
        if not one.asked.is_whole:
            kl = 0.25 - 0.0424 * ((one.asked.block or 0) % 2)
            one.kl = [10 * (kl + 0.001 * (-1) ** i) for i in range(len(one.kl))]
    return Diagnosis(rebuilt(results, found))


@pytest.mark.parametrize("metric", ["nll", "kl"])
def test_what_is_drawn_in_a_heatmap_is_the_difference(metric, far):
    figure = far.plot("heatmap", direction="keep", metric=metric)
    (image,) = figure.axes[0].images
    for row in far.layers.where(format="mxfp4:floor", direction="keep"):
        drawn = image.get_array()[["q_proj", "down_proj"].index(row["projection"]), row["block"]]
        if row["p_holm" if metric == "nll" else "p_holm_kl"] <= 0.05:
            assert drawn == pytest.approx(1e3 * row[f"delta_{metric}"])


def test_kl_is_left_plain_by_its_own_test_on_a_scale_with_round_ends(far):
    figure = far.plot("heatmap", direction="keep", metric="kl")
    assert "millinats of KL" in figure.get_suptitle()
    for axis in figure.axes[:2]:
        (marks,) = axis.collections
        assert {int(x) for x, _ in marks.get_offsets()} == {0, 2, 4}
        (image,) = axis.images
        assert (image.norm.vmin, image.norm.vmax) == (-50, 50)
    (bar,) = figure.axes[2:]  # formats share a scale
    ends = sorted(bar.get_yticks())
    assert ends == [-50, *ends[1:-1], 50]
    assert 0 in ends


def test_marks_and_curves_of_kl(far):
    (axis,) = far.plot("projections", direction="only", metric="kl").axes
    drawn = {round(x, 6) for marks in _marks(axis) for x, _ in marks.get_offsets()}
    assert drawn == {round(1e3 * v, 6) for v in far.projections.where(direction="only")["delta_kl"]}
    assert axis.get_xlabel().startswith("millinats of KL per token, cost of")
    axis, *_ = far.plot("layers", direction="keep", metric="kl", format="nvfp4").axes
    rows = far.layers.where(direction="keep", format="nvfp4", projection="q_proj")
    (curve,) = [line for line in axis.lines if line.get_label() == "nvfp4"]
    assert list(curve.get_ydata()) == pytest.approx([1e3 * v for v in rows["delta_kl"]])


def test_figures_name_the_options_that_they_have(known):
    with pytest.raises(StudyError, match=r"'ppl'.*nll, kl"):
        known().plot("heatmap", metric="ppl")
    with pytest.raises(StudyError, match=r"'percent' has no option 'metric'"):
        known().plot("percent", metric="kl")


def test_curves_are_the_differences_with_their_intervals(known):
    diagnosis = known()
    for axis in diagnosis.plot("layers", direction="keep").axes:
        projection = axis.get_title(loc="left")
        lines = {line.get_label(): line for line in axis.lines}
        assert len(axis.collections) == len(FORMATS)
        for fmt, band in zip(FORMATS, axis.collections, strict=True):
            rows = diagnosis.layers.where(format=fmt, direction="keep", projection=projection)
            assert list(lines[fmt].get_xdata()) == rows["block"]
            assert list(lines[fmt].get_ydata()) == pytest.approx(
                [1e3 * value for value in rows["delta_nll"]]
            )
            edges = np.concatenate([path.vertices for path in band.get_paths()])[:, 1]
            assert edges.min() == pytest.approx(1e3 * min(rows["delta_nll_low"]))
            assert edges.max() == pytest.approx(1e3 * max(rows["delta_nll_high"]))


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_marks_are_the_differences_and_hollow_where_not_significant(direction, known):
    diagnosis = known()
    (axis,) = diagnosis.plot("projections", direction=direction).axes
    names = [label.get_text() for label in axis.get_yticklabels()]
    assert names == ["down_proj", "q_proj"]
    for fmt, marks in zip(FORMATS, _marks(axis), strict=True):
        rows = {
            r["projection"]: r for r in diagnosis.projections.where(format=fmt, direction=direction)
        }
        for (x, y), fill in zip(marks.get_offsets(), marks.get_facecolors(), strict=True):
            row = rows.pop(names[round(y)])
            assert x == pytest.approx(1e3 * row["delta_nll"])
            assert (fill[3] > 0) == significant(row)
        assert not rows


def test_percent_of_perplexity_is_positive_where_keeping_helps(known):
    diagnosis = known()
    base = {row["format"]: row["ppl"] for row in diagnosis.all_quantized}
    for axis in diagnosis.plot("percent").axes:
        projection = axis.get_title(loc="left")
        for fmt, bars in zip(FORMATS, axis.containers, strict=True):
            rows = diagnosis.layers.where(format=fmt, direction="keep", projection=projection)
            drawn = bars[0].get_ydata()
            assert drawn == pytest.approx([100 * (1 - r["ppl"] / base[fmt]) for r in rows])
            if projection == "down_proj":
                assert drawn[-1] > 0.4
                ends = [segment[:, 1] for segment in bars[2][0].get_segments()]
                widths = [
                    100 * (np.exp(-r["delta_nll_low"]) - np.exp(-r["delta_nll_high"])) for r in rows
                ]
                assert [high - low for low, high in ends] == pytest.approx(widths)


@pytest.mark.parametrize("kind", ["projections", "layers", "heatmap", "ppl", "percent"])
def test_one_format_alone(kind, known, tmp_path):
    figure = known().plot(kind, format="nvfp4")
    text = svg_of(figure, tmp_path)
    assert "nvfp4" in text
    assert "mxfp4" not in text
    with pytest.raises(StudyError, match=r"no format 'nvfp5'.*nvfp4"):
        known().plot(kind, format="nvfp5")


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_raw_perplexity_stands_beside_what_it_starts_from(direction, known):
    diagnosis = known()
    figure = diagnosis.plot("ppl", direction=direction, format="nvfp4")
    name = "nvfp4" if direction == "keep" else "full precision"
    (control,) = diagnosis.all_quantized.where(format=name)
    for axis in figure.axes:
        rows = diagnosis.layers.where(
            format="nvfp4", direction=direction, projection=axis.get_title(loc="left")
        )
        (dashed,) = [line for line in axis.lines if line.get_linestyle() == "--"]
        assert dashed.get_ydata()[0] == control["ppl"]
        (bars,) = axis.containers
        assert list(bars[0].get_ydata()) == rows["ppl"]
        ends = [segment[:, 1] for segment in bars[2][0].get_segments()]
        widths = [r["delta_ppl_high"] - r["delta_ppl_low"] for r in rows]
        assert [high - low for low, high in ends] == pytest.approx(widths)


def test_the_papers_figures_are_written_as_pdf_and_svg(known, tmp_path):
    paths = write_report(known(), tmp_path, with_figures=True)
    names = {path.name for path in paths}
    for name in (
        "projections-keep", "layers-keep", "heatmap-keep", "percent-keep", "ppl-keep-mxfp4-floor",
        "ppl-keep-nvfp4", "kl-projections-keep", "kl-heatmap-only",
    ):  # fmt: skip
        assert {f"{name}.pdf", f"{name}.svg"} <= names
    assert (tmp_path / "figures/projections-keep.pdf").read_bytes().startswith(b"%PDF")


def test_panels_share_their_axis(known):
    axes = known().plot("layers", direction="keep").axes
    assert len({axis.get_ylim() for axis in axes}) == 1


def test_whole_models_stand_by_cost_with_a_mark_for_each_precision(known):
    diagnosis = known()
    axis, *_ = diagnosis.plot("costs").axes
    names = [label.get_text() for label in axis.get_yticklabels()]
    assert names == [w.name for w in diagnosis.wholes if not w.is_full_precision]
    drawn = {names[round(y)]: x for marks in _marks(axis) for x, y in marks.get_offsets()}
    for row in diagnosis.all_quantized.where(precision=BOTH):
        assert drawn[row["format"]] == pytest.approx(1e3 * row["delta_nll"])
    with pytest.raises(StudyError, match=r"'costs' has no option 'format'.*none but theme"):
        diagnosis.plot("costs", format="nvfp4")


def test_a_figure_that_the_study_has_nothing_for_says_so(known):
    with pytest.raises(StudyError, match="nothing to draw in the figure 'pareto'"):
        known().plot("pareto")


def test_vector_figures_are_transparent_and_have_text_as_text_in_the_colours_of_the_page(
    known, tmp_path
):
    css = (files("fp4scope.report") / "templates/report.css").read_text().split("@media", 2)
    for theme, style in zip(THEMES.values(), css[:2], strict=True):
        own = [theme.paper, theme.ink, theme.soft, theme.line, theme.zero, theme.hot, theme.cold]
        names = ("paper", "ink", "soft", "line", "zero", "hot", "cold")
        for name, colour in (
            *zip(names, own, strict=True),
            *((f"f{i}", c) for i, c in enumerate(theme.series)),
        ):
            assert f"--{name}: {colour};" in style
        text = svg_of(known().plot("projections", theme=theme.name), tmp_path)
        assert ">down_proj</text>" in text
        assert f"fill: {theme.ink}" in text
        assert theme.series[0] in text
        assert theme.paper not in text
    with pytest.raises(StudyError, match=r"no theme 'blue'.*light"):
        known().plot("projections", theme="blue")


def test_a_run_leaves_raw_perplexity_out(known, tmp_path):
    diagnosis = known()
    names = {path.stem for path in write_outputs(diagnosis, tmp_path) if path.suffix == ".svg"}
    shown = figure_names(diagnosis)
    assert names == {*shown, *(f"{name}-dark" for name in shown)}
    assert {"costs", "projections-keep", "percent-keep"} <= names
    assert not any(name.startswith(("ppl", "kl")) for name in names)
