"""Dice, Jaccard and distances of volumes made by hand."""

import numpy as np
import pytest

from utils.metrics.volumes import VolumeScores, bootstrap_means, volume_scores
from utils.report.volumes import read_scores, write_scores


def box(start: int, stop: int, value: int = 1, side: int = 12) -> np.ndarray:
    volume = np.zeros((side, side, side), np.uint8)
    volume[start:stop, 3:7, 3:7] = value
    return volume


def test_a_perfect_prediction():
    scores = volume_scores(box(2, 6), box(2, 6), 2, (1, 1, 1))
    assert {name: value.tolist() for name, value in scores.items()} == {
        "dice": [1.0],
        "jaccard": [1.0],
        "hd95": [0.0],
        "asd": [0.0],
    }


def test_a_box_moved_by_two_voxels_of_three_mm():
    scores = volume_scores(box(4, 8), box(2, 6), 2, (3.0, 1.0, 1.0))
    assert scores["dice"][0] == pytest.approx(0.5)  # 2 x 32 / (64 + 64)
    assert scores["jaccard"][0] == pytest.approx(32 / 96)
    assert scores["hd95"][0] == pytest.approx(6.0)  # the far face, 16 of 56 surface voxels


def brute_distances(ours: np.ndarray, theirs: np.ndarray, spacing) -> tuple[float, float]:
    """HD95 and mean surface distance from every pair of surface voxels."""

    def surface(mask):
        padded = np.pad(mask, 1)
        inner = padded.copy()
        for axis in range(3):
            for step in (-1, 1):
                inner &= np.roll(padded, step, axis)
        return np.argwhere(padded & ~inner) * np.array(spacing)

    first, second = surface(ours > 0), surface(theirs > 0)
    distances = np.linalg.norm(first[:, None] - second[None], axis=2)
    forth, back = distances.min(axis=1), distances.min(axis=0)
    hd95 = max(np.percentile(forth, 95), np.percentile(back, 95))
    return hd95, np.concatenate([forth, back]).mean()


def test_distances_are_those_between_all_surface_voxels():
    generator = np.random.default_rng(0)
    ours, theirs = box(2, 8), box(3, 6)
    ours[generator.random(ours.shape) < 0.01] = 1
    spacing = (1.0, 0.7, 2.0)
    scores = volume_scores(ours, theirs, 2, spacing)
    hd95, asd = brute_distances(ours, theirs, spacing)
    assert scores["hd95"][0] == pytest.approx(hd95, rel=1e-5)
    assert scores["asd"][0] == pytest.approx(asd, rel=1e-5)


def test_empty_structures_are_counted_as_the_words_say():
    label = box(2, 6, 1) + box(8, 11, 2)
    scores = volume_scores(box(2, 6, 1) + box(8, 11, 3), label, 5, (1, 1, 2))
    diagonal = np.linalg.norm([12, 12, 24])
    assert scores["dice"][:3].tolist() == [1.0, 0.0, 0.0]  # 2 is missed, 3 is made up
    assert np.isnan(scores["dice"][3]) and np.isnan(scores["hd95"][3])  # 4 is nowhere
    assert scores["hd95"][:3].tolist() == pytest.approx([0.0, diagonal, diagonal])


def test_a_prediction_of_another_shape_is_refused():
    with pytest.raises(ValueError, match="for a label of"):
        volume_scores(box(2, 6), box(2, 6, side=13), 2, (1, 1, 1))


def example_scores(groups=None) -> VolumeScores:
    generator = np.random.default_rng(0)
    values = {name: generator.random((6, 2)) for name in ("dice", "jaccard", "hd95", "asd")}
    values["dice"][2, 1] = np.nan
    names = [f"v{row}" for row in range(6)]
    return VolumeScores(names, ("front", "back"), values, groups, ["a", "b"] * 3)


def test_scores_come_back_from_their_file_bit_for_bit(tmp_path):
    scores = example_scores(["P1", "P1", "P2", "P2", "P3", "P3"])
    write_scores(tmp_path / "scores_test.csv", scores)
    again = read_scores(tmp_path / "scores_test.csv")
    assert again._replace(values=None) == scores._replace(values=None)
    for name, values in scores.values.items():
        np.testing.assert_array_equal(again.values[name], values)


def test_intervals_draw_patients_with_all_their_volumes():
    values = np.array([[0.0], [0.0], [1.0], [1.0]])
    low, high = bootstrap_means(values, ["P1", "P1", "P2", "P2"], 1.0)
    assert (low[0], high[0]) == (0.0, 1.0)  # a draw of P1 alone, and of P2 alone
    narrow_low, narrow_high = bootstrap_means(np.tile(values, (50, 1)), None)
    assert 0.4 < narrow_low[0] < 0.5 < narrow_high[0] < 0.6
    assert np.isnan(bootstrap_means(values, ["P1"] * 4)).all()


def test_intervals_of_few_volumes_are_as_uncertain_as_these(tmp_path):
    """A structure that one volume alone has gets none, and neither does the mean over structures;
    of three volumes' means 95% are to hold the truth, of which plain percentiles hold 75%."""
    values = np.array([[0.5, np.nan], [0.6, np.nan], [0.7, 0.2]])
    low, high = bootstrap_means(values, None, 1.0)
    assert low[0] < 0.5 and high[0] > 0.7 and np.isnan([*low[1:], *high[1:]]).all()
    draws = np.random.default_rng(0)
    held = 0
    for seed in range(100):
        low, high = bootstrap_means(draws.beta(8, 2, (3, 1)), None, 1.0, 300, seed)
        held += low[0] <= 0.8 <= high[0]
    assert held >= 85


def test_a_draw_without_a_structure_counts_in_no_mean_over_structures():
    values = np.full((12, 2), np.nan)
    values[:, 0], values[:3, 1] = 0.9, (0.10, 0.11, 0.12)
    low, high = bootstrap_means(values, None, 1.0)
    assert high[-1] < 0.6  # (0.9 + 0.11) / 2, and never 0.9 alone


def test_a_structure_without_a_number_counts_in_no_mean():
    scores = example_scores()
    known = np.delete(scores.values["dice"][:, 1], 2)
    assert scores.of_class("dice")[1] == pytest.approx(known.mean())
    assert scores.macro("dice") == pytest.approx(
        (scores.values["dice"][:, 0].mean() + known.mean()) / 2
    )
