"""The figure, checked on the drawn object: its lines hold the numbers, its labels the units, its bytes no date."""

from __future__ import annotations

import warnings

import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_hex

from luspo_cli.analysis.drawing import SPARE_STYLES, STYLES, log_ticks
from luspo_cli.analysis.history import read_runs
from luspo_cli.analysis.length_curves import (
    build_figure,
    choose_styles,
    fraction_limits,
    mean_and_band,
    plot_length,
    smoothed,
)
from luspo_cli.analysis.variants import split_into_variants
from luspo_cli.config.objective import NAMED_OBJECTIVES
from luspo_cli.errors import RunError, UsageError

LENGTHS = {("gspo", 0): [10.0, 20.0, 60.0], ("gspo", 1): [20.0, 20.0, 30.0], ("luspo", 0): [10.0, 40.0, 40.0]}


@pytest.fixture
def runs(write_run):
    return read_runs(
        [
            write_run(
                f"{objective}-seed{seed}",
                objective,
                seed,
                lengths=lengths,
                reward__accuracy__mean=[0.1, 0.2, 0.3],
                response_length__correct=lengths,
                response_length__incorrect=[2 * length for length in lengths],
            )
            for (objective, seed), lengths in LENGTHS.items()
        ]
    )


def _lines(ax, kind: str) -> list[list[float]]:
    return [list(np.asarray(line.get_ydata(), dtype=float)) for line in ax.get_lines() if line.get_gid() == kind]


def test_without_smoothing_the_lines_are_the_recorded_numbers(runs) -> None:
    figure, _, _ = build_figure(runs, smooth=1)
    length, accuracy = figure.axes
    assert _lines(length, "run") == [LENGTHS["gspo", 0], LENGTHS["gspo", 1]]
    assert _lines(length, "mean") == [[15.0, 20.0, 45.0], LENGTHS["luspo", 0]]
    assert _lines(accuracy, "mean") == [[0.1, 0.2, 0.3], [0.1, 0.2, 0.3]]
    assert [list(line.get_xdata()) for line in length.get_lines()] == [[1, 2, 3]] * 4


def test_smoothing_is_the_centred_mean_with_short_ends(runs) -> None:
    figure, caption, _ = build_figure(runs, smooth=3)
    # (10 + 20) / 2, (10 + 20 + 60) / 3, (20 + 60) / 2.
    assert _lines(figure.axes[0], "run")[0] == [15.0, 30.0, 40.0]
    assert "centred moving mean over 3 steps" in caption


def test_smoothing_leaves_missing_values_out() -> None:
    values = pd.Series([1.0, np.nan, 3.0, np.nan, np.nan, np.nan])
    found = smoothed(values, 3).tolist()
    assert found[:4] == [1.0, 2.0, 3.0, 3.0]
    assert np.isnan(found[4:]).all()


def test_a_gap_breaks_the_line_and_is_noted(write_run) -> None:
    gap = [None, None, None]
    run = write_run(
        "a", lengths=[10.0, 20.0, *gap, 30.0, 40.0], reward__accuracy__mean=[0.5, None, 0.5, 0.5, 0.5, 0.5, 0.5]
    )
    whole = write_run("b", "gspo", lengths=[10.0] * 7, reward__accuracy__mean=[0.5] * 7)
    for smooth in (1, 3, 7):
        figure, _, notes = build_figure(read_runs([run, whole]), smooth=smooth)
        drawn = np.isnan(_lines(figure.axes[0], "mean")[1]).tolist()
        assert drawn == [False, False, True, True, True, False, False]
        assert notes == (
            "a has no response_length/mean in 3 of 7 steps; its line is broken there.",
            "a has no reward/accuracy/mean in 1 of 7 steps; its line is broken there.",
        )


def test_the_mean_over_runs_breaks_where_one_run_has_a_gap(write_run) -> None:
    runs = read_runs([write_run("a", lengths=[1.0, None, 3.0, 5.0]), write_run("b", seed=1, lengths=[3.0] * 4)])
    figure, _, _ = build_figure(runs, smooth=1, with_accuracy=False)
    np.testing.assert_equal(_lines(figure.axes[0], "mean"), [[2.0, np.nan, 3.0, 4.0]])
    # The value of step 1 has a gap on its right and nothing on its left: a point, in the run and in the mean.
    assert [line[0] for line in _lines(figure.axes[0], "lone")] == [1.0, 2.0]


def test_evaluations_lie_apart_and_are_joined(write_run) -> None:
    run = write_run("a", lengths=[1.0] * 5, evaluation__accuracy=[None, 0.25, None, None, 0.75])
    figure, _, notes = build_figure(read_runs([run]), metric="evaluation/accuracy", smooth=1, with_accuracy=False)
    (line,) = figure.axes[0].get_lines()
    assert (list(line.get_xdata()), list(line.get_ydata())) == ([2, 5], [0.25, 0.75])
    assert notes == ()


def test_the_band_reaches_from_the_lowest_to_the_highest_run(runs) -> None:
    figure, caption, _ = build_figure(runs, smooth=1)
    (band,) = figure.axes[0].collections
    corners = {(float(x), float(y)) for x, y in band.get_paths()[0].vertices}
    assert {(1.0, 10.0), (1.0, 20.0), (3.0, 30.0), (3.0, 60.0)} <= corners
    assert "band: lowest to highest run" in caption


def test_with_many_objectives_the_runs_stand_without_bands(write_run) -> None:
    names = ("grpo", "dapo", "gspo", "luspo")
    runs = read_runs([write_run(f"{name}{seed}", name, seed) for name in names for seed in (0, 1)])
    figure, caption, _ = build_figure(runs)
    assert not figure.axes[0].collections
    assert len(_lines(figure.axes[0], "run")) == 8
    assert "band" not in caption


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ((0.4, 0.5), (0.325, 0.575)),
        ((0.1, 0.8), (0.1, 0.8)),
        ((0.0, 0.05), (-0.01, 0.24)),
        ((0.95, 1.0), (0.76, 1.01)),
    ],
)
def test_the_accuracy_axis_stays_within_what_a_fraction_can_be(given, expected) -> None:
    assert fraction_limits(*given) == pytest.approx(expected)


def test_the_mean_ends_where_the_shortest_run_ends() -> None:
    curves = [pd.Series([1.0, 3.0, 100.0], index=[1, 2, 3]), pd.Series([3.0, 5.0], index=[1, 2])]
    found = mean_and_band(curves)
    assert found["mean"].to_dict() == {1: 2.0, 2: 4.0}
    assert found["high"].to_dict() == {1: 3.0, 2: 5.0}


def test_axes_carry_units_and_the_legend_counts_seeds(runs) -> None:
    figure, _, _ = build_figure(runs)
    assert [ax.get_ylabel() for ax in figure.axes] == ["response length (tokens)", "accuracy, training batch"]
    assert {ax.get_xlabel() for ax in figure.axes} == {"training step"}
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["gspo (2 seeds)", "luspo (1 seed)"]
    assert figure.axes[0].get_yscale() == "log"
    assert figure.axes[1].get_yscale() == "linear"
    assert figure.axes[0].get_shared_x_axes().joined(*figure.axes)


def test_objectives_keep_colour_and_line_style(runs) -> None:
    figure, _, _ = build_figure(runs)
    colours = [to_hex(line.get_color()).upper() for line in figure.axes[0].get_lines() if line.get_gid() == "mean"]
    assert colours == [STYLES["gspo"][0], STYLES["luspo"][0]]
    alone = choose_styles(split_into_variants(runs[2:]))
    assert alone == {"luspo": STYLES["luspo"]}


def test_every_named_objective_has_a_style_of_its_own() -> None:
    assert set(STYLES) == set(NAMED_OBJECTIVES)
    styles = [*STYLES.values(), *SPARE_STYLES]
    assert len({(colour, str(dashes)) for colour, dashes in styles}) == len(styles)
    assert "#F0E442" not in {colour for colour, _ in styles}


def test_variants_of_one_objective_look_different(write_run) -> None:
    both = read_runs([write_run("a"), write_run("b", change={"update": {"learning_rate": 1.0}})])
    styles = choose_styles(split_into_variants(both))
    assert len(styles) == 2
    assert len({str(style) for style in styles.values()}) == 2


def test_correct_and_incorrect_are_solid_and_dashed(runs) -> None:
    figure, _, _ = build_figure(runs, smooth=1, split_correct=True)
    means = [line for line in figure.axes[0].get_lines() if line.get_gid() == "mean"]
    assert [list(line.get_ydata()) for line in means[2:]] == [[10.0, 40.0, 40.0], [20.0, 80.0, 80.0]]
    assert [line.is_dashed() for line in means] == [False, True, False, True]
    assert [text.get_text() for text in figure.legends[0].get_texts()][2:] == ["correct", "incorrect"]
    assert not figure.axes[0].collections


def test_a_blind_control_stands_dashed_below_the_held_out_accuracy(write_run) -> None:
    """Of runs with the control the second panel is the held-out one, as measured: no smoothing, steps between are joined."""
    columns = {"reward__accuracy__mean": [0.1] * 4, "evaluation__accuracy": [None, 0.5, None, 0.75]}
    columns["evaluation__blind_accuracy"] = [None, 0.25, None, 0.25]
    runs = [write_run(name, name, lengths=[1.0] * 4, **columns) for name in ("gspo", "luspo")]
    figure, _, notes = build_figure(read_runs(runs), smooth=3)
    panel = figure.axes[1]
    assert panel.get_ylabel() == "accuracy, held out"
    means = [line for line in panel.get_lines() if line.get_gid() == "mean"]
    assert [list(line.get_ydata()) for line in means] == [[0.5, 0.75], [0.25, 0.25]] * 2
    assert [list(line.get_xdata()) for line in means] == [[2, 4]] * 4
    assert [line.is_dashed() for line in means] == [False, True] * 2
    assert [text.get_text() for text in figure.legends[0].get_texts()][-2:] == ["held out", "blind"]
    assert notes == ()


def test_accuracy_can_be_left_out_and_its_absence_is_noted(runs, write_run) -> None:
    assert len(build_figure(runs, with_accuracy=False)[0].axes) == 1
    figure, _, notes = build_figure(read_runs([write_run("bare", lengths=[1.0, 2.0])]))
    assert len(figure.axes) == 1
    assert notes == ("No accuracy is recorded in bare.",)


def test_a_value_of_zero_makes_the_axis_linear_and_is_noted(write_run) -> None:
    figure, _, notes = build_figure(read_runs([write_run("a", lengths=[0.0, 2.0, 3.0])]), smooth=1, with_accuracy=False)
    assert figure.axes[0].get_yscale() == "linear"
    assert notes == ("A value is not positive, so the axis is linear.",)


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (3.5, 90.0, [5, 10, 20, 50]),
        (1.0, 4000.0, [1, 10, 100, 1000]),
        (500.0, 9000.0, [500, 1000, 2000, 5000]),
        (14.0, 35.0, [15, 20, 25, 30]),
    ],
)
def test_ticks_of_a_logarithmic_axis_are_round(low: float, high: float, expected: list[float]) -> None:
    assert log_ticks(low, high) == expected


@pytest.mark.parametrize("low", [1.3, 9.7, 77.0, 1234.0])
@pytest.mark.parametrize("ratio", [2.5, 3.0, 7.0, 40.0, 3e4])
def test_there_are_always_ticks_enough_and_never_a_crowd(low: float, ratio: float) -> None:
    assert 4 <= len(log_ticks(low, low * ratio)) <= 10


def test_tick_labels_are_plain_numbers(write_run) -> None:
    figure, _, _ = build_figure(read_runs([write_run("a", lengths=[600.0, 3000.0, 7000.0])]), smooth=1)
    figure.canvas.draw()
    labels = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert labels == ["700", "1,000", "1,500", "2,000", "3,000", "5,000", "7,000"]


def test_a_quiet_curve_does_not_fill_the_axes(write_run) -> None:
    run = write_run("a", lengths=[20.0, 20.1, 20.0], reward__accuracy__mean=[0.5, 0.501, 0.5])
    figure, _, _ = build_figure(read_runs([run]), smooth=1)
    low, high = figure.axes[0].get_ylim()
    assert high / low == pytest.approx(2.5)
    low, high = figure.axes[1].get_ylim()
    assert high - low == pytest.approx(0.25)


@pytest.mark.parametrize(("suffix", "start"), [(".png", b"\x89PNG"), (".svg", b"<?xml"), (".pdf", b"%PDF")])
def test_each_suffix_gives_its_format_and_equal_bytes_each_time(runs, tmp_path, monkeypatch, suffix, start) -> None:
    written = []
    for name, epoch in (("one", "1000000000"), ("two", "2000000000")):
        monkeypatch.setenv("SOURCE_DATE_EPOCH", epoch)
        written.append(plot_length(runs, tmp_path / "figures" / f"{name}{suffix}").path.read_bytes())
    assert written[0].startswith(start)
    assert written[0] == written[1]
    assert b"Software" not in written[0]
    assert sorted(path.name for path in (tmp_path / "figures").iterdir()) == [f"one{suffix}", f"two{suffix}"]


def test_the_settings_of_the_user_do_not_enter(runs, tmp_path) -> None:
    import matplotlib as mpl

    before = plot_length(runs, tmp_path / "before.png").path.read_bytes()
    with mpl.rc_context({"lines.linewidth": 9, "axes.facecolor": "red"}):
        after = plot_length(runs, tmp_path / "after.png").path.read_bytes()
        assert mpl.rcParams["axes.facecolor"] == "red"
    assert before == after


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"metric": "response_length/men"}, r"not a metric \(did you mean 'response_length/mean'\?\)"),
        ({"metric": "step"}, "not a metric"),
        ({"metric": "policy/entropy"}, "no metric 'policy/entropy'"),
        ({"smooth": 0}, "at least 1 step"),
        ({"split_correct": True, "metric": "reward/accuracy/mean"}, "leave out one of the two"),
    ],
)
def test_a_wish_that_does_not_fit_is_refused(runs, options, message) -> None:
    with pytest.raises(UsageError, match=message):
        build_figure(runs, **options)


@pytest.mark.parametrize("name", ["figure", "figure.jpg", "figure.png.txt"])
def test_another_suffix_is_refused_before_anything_is_written(runs, tmp_path, name) -> None:
    with pytest.raises(UsageError, match=r"end it in \.png, \.svg, \.pdf"):
        plot_length(runs, tmp_path / "new" / name)
    assert not (tmp_path / "new").exists()


def test_a_metric_without_any_value_is_refused(write_run) -> None:
    runs = read_runs([write_run("a", response_length__correct=[None] * 3, response_length__incorrect=[1.0] * 3)])
    with pytest.raises(UsageError, match="no value of 'response_length/correct' in any step"):
        build_figure(runs, split_correct=True)


@pytest.mark.parametrize("suffix", [".png", ".svg", ".pdf"])
@pytest.mark.parametrize(
    ("call", "failure"),
    [("fsync", OSError(28, "No space left on device")), ("replace", OSError(30, "Read-only file system"))],
)
def test_a_failed_write_is_one_sentence_and_leaves_the_old_figure(
    runs, tmp_path, monkeypatch, suffix, call, failure
) -> None:
    out = tmp_path / f"a{suffix}"
    out.write_bytes(b"old")
    before = sorted(tmp_path.iterdir())

    def failing(*_: object, **__: object) -> None:
        raise failure

    with monkeypatch.context() as patch:
        patch.setattr(f"luspo_cli.files.os.{call}", failing)
        with pytest.raises(RunError) as caught:
            plot_length(runs, out)
    advice = "free some space" if failure.errno == 28 else "mend that"
    assert str(caught.value) == f"cannot write {out}: {failure.strerror}; {advice}, or name another file"
    assert out.read_bytes() == b"old"
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize("suffix", [".png", ".svg", ".pdf"])
def test_a_folder_that_is_a_file_is_one_sentence(runs, tmp_path, suffix) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(UsageError, match=r"^\S+ cannot be written: \S+/file is no folder; name another file\.$"):
        plot_length(runs, tmp_path / "file" / "sub" / f"a{suffix}")
    assert (tmp_path / "file").is_file()


def test_the_small_print_names_the_clip_range_of_each_objective(runs) -> None:
    figure, caption, _ = build_figure(runs)
    clip = "clip range: gspo 0.002 / 0.0025, luspo 0.002 / 0.0025"
    assert caption.endswith(f"; {clip}")
    assert figure.get_supxlabel().splitlines()[-1] == clip


@pytest.mark.parametrize(("number", "split"), [(1, False), (9, False), (20, False), (20, True)])
def test_a_figure_of_many_variants_grows_and_keeps_its_panels(write_run, tmp_path, number: int, split: bool) -> None:
    """Legend and small print take what they need above and below; no line of either leaves the figure or meets a panel."""
    runs = read_runs(
        [
            write_run(
                f"run{i}",
                change={"update": {"learning_rate": float(i)}, "data": {"train": f"data/some/rather/long/path/{i}"}},
                response_length__correct=[10.0, 20.0, 30.0],
                response_length__incorrect=[10.0, 20.0, 30.0],
            )
            for i in range(number)
        ]
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        plot_length(runs, tmp_path / "many.png", split_correct=split)
        figure, caption, notes = build_figure(runs, split_correct=split)
        figure.draw_without_rendering()
    box = figure.legends[0].get_window_extent()
    print_box = figure._supxlabel.get_window_extent()
    width, height = figure.bbox.size
    for panel in figure.axes:
        assert panel.bbox.height > 1.5 * figure.dpi
        assert print_box.y1 < panel.bbox.y0
        assert panel.bbox.y1 < box.y0
    for found in (box, print_box):
        assert found.x0 >= 0
        assert found.x1 <= width
        assert found.y1 <= height + 1
    styles = choose_styles(split_into_variants(runs))
    assert len(set(styles.values())) == number
    # Where colour alone tells the variants apart there are seven.
    assert any("more than there are looks to tell them apart" in note for note in notes) is (split and number > 7)
    assert caption.endswith("0.002 / 0.0025 in all" if number > 4 else "luspo 0.002 / 0.0025")
