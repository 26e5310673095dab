"""The pictures: what they show, that nothing in them overlaps, that they rebuild byte for byte."""

import matplotlib
import numpy as np
import pytest
from matplotlib.image import imread
from sklearn.metrics import roc_curve

from tests.helpers.examples import example_predictions, without_class
from tests.helpers.figures import assert_readable
from utils.metrics.evaluation import confident_mistakes, evaluate
from utils.metrics.intervals import bootstrap_curves
from utils.plots.style import STYLE
from utils.report.figures import (
    confusion_figure,
    draw_all,
    mistakes_figure,
    precision_recall_figure,
    reliability_figure,
    roc_figure,
)

LONG_NAMES = (
    "intraparenchymal",
    "actinic keratoses and intraepithelial carcinoma",
    "intraventricular",
    "subarachnoid",
    "a_name_with_under_scores_and_$dollars$",
    "NV",
    "epidural",
)


def picture(index):
    return np.full((16, 16), index % 256, np.uint8)


def curves(predictions, draws=20):
    return [
        bootstrap_curves(predictions.labels == c, predictions.probabilities[:, c], None, draws)
        for c in range(len(predictions.class_names))
    ]


@pytest.mark.parametrize("class_names", [LONG_NAMES[:2], LONG_NAMES[:5], LONG_NAMES])
def test_no_words_overlap_or_leave_the_page(class_names):
    predictions = example_predictions(class_names=class_names)
    evaluation = evaluate(predictions)
    bands = curves(predictions)
    with matplotlib.rc_context(STYLE):
        figures = [
            roc_figure(evaluation, bands),
            precision_recall_figure(evaluation, bands),
            reliability_figure(predictions),
            mistakes_figure(predictions, picture),
        ]
        for figure in figures:
            assert_readable(figure)


def test_roc_figure_draws_the_curve_its_band_and_the_operating_point():
    predictions = example_predictions()
    evaluation = evaluate(predictions)
    figure = roc_figure(evaluation, curves(predictions))
    for c, axes in enumerate(figure.axes[:3]):
        drawn = {line.get_label(): line.get_xydata() for line in axes.lines}
        false_rate, true_rate, _ = roc_curve(
            predictions.labels == c, predictions.probabilities[:, c], drop_intermediate=False
        )
        assert drawn["ROC curve"] == pytest.approx(np.stack([false_rate, true_rate], axis=1))
        point = [1 - evaluation.metrics.specificity[c], evaluation.metrics.sensitivity[c]]
        assert drawn["at the threshold"][0] == pytest.approx(point)
        assert len(axes.collections) == 1
        assert f"{evaluation.metrics.auroc[c]:.3f}" in axes.get_title()


def test_precision_recall_curve_has_the_average_precision_as_its_area():
    predictions = example_predictions()
    evaluation = evaluate(predictions)
    figure = precision_recall_figure(evaluation, curves(predictions))
    for c, axes in enumerate(figure.axes[:3]):
        (line,) = [line for line in axes.lines if line.get_label() == "precision-recall curve"]
        recall, precision = line.get_xydata().T
        assert line.get_drawstyle() == "steps-pre"
        area = (np.diff(recall) * precision[1:]).sum()
        assert area == pytest.approx(evaluation.metrics.average_precision[c])


def test_an_absent_class_says_so():
    predictions = without_class(example_predictions(), 1)
    figure = roc_figure(evaluate(predictions), curves(predictions))
    assert "NA" in figure.axes[1].get_title()
    assert [text.get_text() for text in figure.axes[1].texts][0].startswith("undefined")
    assert not figure.axes[1].lines


def test_confusion_figure_shows_counts_and_shares():
    figure = confusion_figure(np.array([[3, 1], [0, 0]]), ("left", "right"))
    cells = [text.get_text() for text in figure.axes[0].texts]
    assert cells == ["3\n75%", "1\n25%", "0\n0%", "0\n0%"]


def test_mistakes_show_their_own_image_and_id():
    predictions = example_predictions()
    figure = mistakes_figure(predictions, picture, with_ids=True)
    unnamed = mistakes_figure(predictions, picture)
    assert not any("P0" in axes.get_title() for axes in unnamed.axes)
    mistakes = confident_mistakes(predictions)
    for axes, index in zip(figure.axes, mistakes, strict=True):
        assert axes.images[0].get_array()[0, 0] == index % 256
        title = axes.get_title()
        assert predictions.names[index] in title
        assert predictions.groups[index] in title
        assert f"true: {predictions.class_names[predictions.labels[index]]}" in title


def test_all_figures_are_files_and_rebuild_byte_for_byte(tmp_path):
    evaluation = evaluate(example_predictions())
    paths = draw_all(evaluation, tmp_path / "one", picture)
    assert [path.stem for path in paths] == [
        "roc",
        "precision_recall",
        "confusion",
        "reliability",
        "mistakes",
    ]
    for path in paths:
        assert min(imread(path).shape[:2]) > 300
        assert imread(path)[..., :3].std() > 0.02  # something is drawn
    again = draw_all(evaluation, tmp_path / "two")
    assert [path.stem for path in again] == [path.stem for path in paths[:4]]
    for path, other in zip(paths[:4], again, strict=True):
        assert path.read_bytes() == other.read_bytes()


def test_without_mistakes_there_is_no_sheet_of_them(tmp_path):
    predictions = example_predictions()
    right = np.eye(3)[predictions.labels] * 0.7 + 0.1
    paths = draw_all(evaluate(predictions._replace(probabilities=right)), tmp_path, picture)
    assert "mistakes" not in [path.stem for path in paths]


def test_drawing_leaves_the_style_of_others_alone(tmp_path):
    before = dict(matplotlib.rcParams)
    draw_all(evaluate(example_predictions(num_patients=20)), tmp_path)
    assert dict(matplotlib.rcParams) == before
