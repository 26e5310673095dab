"""Figures of volumes: what the legend says can be seen."""

import numpy as np
from matplotlib.colors import to_rgb

from utils.plots import volumes


def test_the_legend_of_the_slices_shows_which_line_is_the_label_and_which_the_prediction(
    monkeypatch,
):
    drawn = []
    monkeypatch.setattr(volumes, "save_figure", lambda figure, out_png: drawn.append(figure))
    label = np.zeros((6, 6, 6), int)
    label[2:4, 2:4, 2:4] = 1
    picture = volumes.VolumePicture("a", np.random.rand(6, 6, 6), label, label, (1.0, 1.0, 1.0))
    volumes.draw_slices([picture], ["kidney"], "slices.png")
    (legend,) = drawn[0].legends
    paper = np.array(to_rgb(drawn[0].get_facecolor()))
    shown = {
        text.get_text(): line for text, line in zip(legend.texts, legend.get_lines(), strict=True)
    }
    assert [shown[name].get_linestyle() for name in ("label", "prediction")] == ["-", "--"]
    for name, line in shown.items():
        # On the page the legend has no frame of its own: a line as light as paper is not there.
        assert np.abs(np.array(to_rgb(line.get_color())) - paper).max() > 0.3, name
