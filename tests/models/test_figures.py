"""The figures draw what they are given, where it belongs."""

from io import BytesIO

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from PIL import Image

from scp_models.report import figures
from scp_models.report.figures import LossCurve, OutlinedSlice


def pixels(figure: Figure, dpi: int = 100) -> np.ndarray:
    """The figure as ``[rows, columns, 3]`` in 0..255."""
    buffer = BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi, facecolor="white")
    return np.asarray(Image.open(buffer).convert("RGB")).astype(int)


def where(image: np.ndarray, colour: str, tolerance: int = 8) -> np.ndarray:
    """Rows and columns ``[pixels, 2]`` of the pixels of one colour."""
    return np.argwhere(np.abs(image - np.round(255 * np.asarray(to_rgb(colour)))).max(-1) <= tolerance)


def test_mask_edges_are_the_masks_perimeter():
    mask = np.zeros((6, 5), dtype=bool)
    mask[2:4, 1:4] = True
    mask[5, 4] = True
    edges = figures.mask_edges(mask, (2.0, 3.0))
    lengths = np.abs(edges[:, 1] - edges[:, 0]).sum(-1)
    # A block of 2 × 3 pixels of 2 × 3 mm and, in the corner, a single one.
    assert lengths.sum() == pytest.approx(2 * (2 * 2 + 3 * 3) + 2 * (2 + 3))
    block = edges[(edges[..., 0] <= 8).all(-1)]
    assert block[..., 0].min() == 4 and block[..., 0].max() == 8
    assert block[..., 1].min() == 3 and block[..., 1].max() == 12
    assert edges.max(axis=(0, 1)).tolist() == [12, 15]


def test_mask_edges_of_an_empty_mask():
    assert figures.mask_edges(np.zeros((4, 4), dtype=bool)).shape == (0, 2, 2)


def test_outline_slices_puts_each_outline_in_its_panel_and_place():
    image = np.zeros((40, 60))
    reference = np.zeros((40, 60), dtype=np.uint8)
    reference[4:10, 45:55] = 1  # the patient's left, in front
    prediction = np.zeros_like(reference)
    prediction[30:36, 5:15] = 1  # right, behind
    figure = figures.outline_slices(
        [OutlinedSlice("a", image, reference), OutlinedSlice("b", image, None, prediction)],
        columns=2,
        intensity_range=(0.0, 1.0),
    )
    drawn = pixels(figure)
    panels = drawn[: int(drawn.shape[0] * 0.92)]  # without the legend
    middle = drawn.shape[1] / 2
    rows, columns = where(panels, figures.REFERENCE_COLOUR).T
    assert columns.size and columns.max() < 0.4 * middle and rows.max() < drawn.shape[0] / 2
    rows, columns = where(panels, figures.PREDICTION_COLOUR).T
    assert columns.size and columns.min() > 1.6 * middle and rows.min() > drawn.shape[0] / 2


def test_outline_slices_marks_pixels_that_are_not_scored_apart():
    reference = np.zeros((20, 20), dtype=np.uint8)
    reference[5:10, 5:10] = 2
    drawn = pixels(figures.outline_slices([OutlinedSlice("a", np.zeros((20, 20)), reference)], intensity_range=(0, 1)))
    assert len(where(drawn, figures.IGNORED_COLOUR)) and not len(
        where(drawn[: drawn.shape[0] // 2], figures.REFERENCE_COLOUR)
    )


def test_outline_slices_keeps_the_voxels_aspect():
    figure = figures.outline_slices(
        [OutlinedSlice("a", np.zeros((20, 20)))], spacing=(1.0, 3.0), intensity_range=(0, 1)
    )
    figure.draw_without_rendering()
    box = figure.axes[0].get_window_extent()
    assert box.height / box.width == pytest.approx(3.0, rel=0.01)


def test_outline_slices_refuses_nothing():
    with pytest.raises(ValueError, match="panels"):
        figures.outline_slices([])


def test_slices_are_drawn_with_the_front_up_and_left_on_the_left():
    image = np.zeros((10, 14))
    image[1, 12] = 1.0  # left, front
    drawn = pixels(figures.outline_slices([OutlinedSlice("", image)], intensity_range=(0.0, 1.0)))
    axis_box = drawn[40:-40]
    bright = np.argwhere((axis_box.min(-1) > 250) & (np.arange(axis_box.shape[1]) < axis_box.shape[1] / 2))
    bright = bright[(bright[:, 1] > 20) & (bright[:, 0] > 10)]
    assert bright.size and np.median(bright[:, 0]) < axis_box.shape[0] / 2


def test_channel_statistics_by_hand():
    field = np.array([[[3.0]], [[-4.0]]])
    expected = {"maximum": 3.0, "mean": -0.5, "minimum": -4.0, "L2 norm": 5.0, "standard deviation": 3.5}
    assert {name: float(v[0, 0]) for name, v in figures.channel_statistics(field).items()} == expected


def test_weight_field_statistics_normalises_each_panel_and_survives_a_constant_field():
    field = np.random.default_rng(0).normal(size=(2, 4, 8, 12))
    field[1] = 0.25
    drawn = [axis.images[0].get_array() for axis in figures.weight_field_statistics(field).axes]
    assert len(drawn) == 2 * len(figures.STATISTICS)
    for values in drawn[: len(figures.STATISTICS)]:
        assert values.min() == 0.0 and values.max() == 1.0
    for values in drawn[len(figures.STATISTICS) :]:
        assert np.isfinite(values).all() and values.max() == 0.0


def test_weight_field_statistics_names_a_wrong_shape():
    with pytest.raises(ValueError, match=r"\[N, C, X, Y\]"):
        figures.weight_field_statistics(np.zeros((4, 8, 12)))


def test_lesion_frequency_is_in_per_cent():
    frequency = np.zeros((8, 12))
    frequency[4, 6] = 0.25
    figure = figures.lesion_frequency(frequency)
    assert figure.axes[0].images[0].get_array().max() == 25.0
    assert figure.axes[0].images[0].get_clim() == (0.0, 25.0)


def test_loss_curves_draw_every_run_and_name_every_model_once():
    curves = [
        LossCurve("Base", [1.0, 0.5], [1.1, 0.6]),
        LossCurve("Base", [0.9, 0.4], [1.0, 0.5]),
        LossCurve("SCP", [0.8, 0.3]),
    ]
    figure = figures.loss_curves(curves)
    training, validation = figure.axes
    assert [line.get_ydata().tolist() for line in training.lines] == [[1.0, 0.5], [0.9, 0.4], [0.8, 0.3]]
    assert [line.get_ydata().tolist() for line in validation.lines] == [[1.1, 0.6], [1.0, 0.5]]
    assert training.lines[0].get_color() == training.lines[1].get_color() != training.lines[2].get_color()
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["Base", "SCP"]


def test_score_comparison_joins_subjects_and_writes_the_marks():
    scores = {"Base": np.array([0.2, 0.4, np.nan]), "SCP": np.array([0.6, 0.8, 0.7])}
    figure = figures.score_comparison(scores, metric="Dice", marks={"Base": "**"}, compared_with="SCP")
    axis = figure.axes[0]
    joins = [line.get_ydata().tolist() for line in axis.lines[:3]]
    assert joins[0] == [0.2, 0.6] and joins[1] == [0.4, 0.8]
    mark = next(text for text in axis.texts if text.get_text() == "**")
    assert mark.xy[0] == 0
    assert [round(float(c.get_segments()[0][0][1]), 6) for c in axis.collections] == [0.3, 0.7]


def test_figures_leave_pyplot_alone():
    import matplotlib.pyplot as plt

    before = plt.get_fignums()
    figures.loss_curves([LossCurve("Base", [1.0])])
    figures.lesion_frequency(np.zeros((4, 4)))
    assert plt.get_fignums() == before
