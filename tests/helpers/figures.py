"""Is every word of a figure on the page, and none over another?"""

import itertools

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.text import Text


def words_on_page(figure):
    """(Text, its box in pixels) of the titles, labels, legends, captions and drawn tick labels."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    ticks_off_the_axis = set()
    for axes in figure.axes:
        for axis in (axes.xaxis, axes.yaxis):
            low, high = axis.get_view_interval()
            for tick in axis.get_major_ticks():
                if not (axes.axison and low <= tick.get_loc() <= high):
                    ticks_off_the_axis |= {tick.label1, tick.label2}
    words = [
        text
        for text in figure.findobj(Text)
        if text.get_visible() and text.get_text() and text not in ticks_off_the_axis
    ]
    return [(text, text.get_window_extent(canvas.get_renderer())) for text in words]


def assert_readable(figure):
    """Slanted words' boxes overlap where their letters do not: they only have to be on the page."""
    words = words_on_page(figure)
    for text, box in words:
        assert box.x0 >= -1 and box.y0 >= -1, text
        assert box.x1 <= figure.bbox.x1 + 1 and box.y1 <= figure.bbox.y1 + 1, text
    level = [(text, box) for text, box in words if text.get_rotation() % 90 == 0]
    for (text, box), (other_text, other) in itertools.combinations(level, 2):
        width = min(box.x1, other.x1) - max(box.x0, other.x0)
        height = min(box.y1, other.y1) - max(box.y0, other.y0)
        assert width <= 1 or height <= 1, f"{text!r} overlaps {other_text!r}"
