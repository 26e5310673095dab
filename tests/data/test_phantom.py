"""The embedded data set in memory: its arrays, its anatomy, its difficulty."""

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from dataloaders.phantom.bleeds import blood_of, draw_bleed, strain_of
from dataloaders.phantom.brain import find_spaces, no_strain
from dataloaders.phantom.head import band, draw_head, edge, place
from dataloaders.phantom.patients import CLASS_NAMES, RSNA_PROPORTIONS, generate
from dataloaders.windows import window_picture

EQUAL = [1] * 5


@pytest.fixture(scope="module")
def phantom():
    """20 patients, every class, healthy ones too."""
    return generate(20, size=48, seed=3, class_proportions=EQUAL, healthy_fraction=0.2)


def test_shapes_types_and_identifiers(phantom):
    count = 20 * 6
    assert phantom.hounsfield.shape == (count, 48, 48)
    assert phantom.hounsfield.dtype == np.int16
    assert phantom.labels.shape == (count, 5)
    assert phantom.labels.dtype == np.uint8
    assert phantom.labels.sum(axis=1).max() == 1
    assert phantom.class_names == list(CLASS_NAMES)
    assert len(set(phantom.image_ids)) == count
    for image_id in phantom.image_ids:
        assert image_id.startswith("ID_") and len(image_id) == 12
        int(image_id[3:], 16)
    assert len(set(phantom.patient_ids)) == len(set(phantom.study_ids)) == 20
    assert all(len(set(phantom.patient_ids[i : i + 6])) == 1 for i in range(0, count, 6))


def test_same_seed_same_bytes_and_patients_do_not_depend_on_their_number(phantom):
    again = generate(7, size=48, seed=3, class_proportions=EQUAL, healthy_fraction=0.2)
    assert again.hounsfield.tobytes() == phantom.hounsfield[:42].tobytes()
    assert again.labels.tobytes() == phantom.labels[:42].tobytes()
    assert again.image_ids == phantom.image_ids[:42]
    assert again.study_ids == phantom.study_ids[:42]
    other = generate(7, size=64, seed=4, class_proportions=EQUAL, healthy_fraction=0.2)
    assert not np.array_equal(other.hounsfield, again.hounsfield)
    assert not set(other.image_ids) & set(again.image_ids)
    assert not set(other.patient_ids) & set(again.patient_ids)


def test_identifiers_never_repeat_in_a_large_data_set():
    from dataloaders.phantom.patients import _identifier

    images = {_identifier("images", 1, p * 1024 + i, 9) for p in range(20_000) for i in range(10)}
    assert len(images) == 200_000
    assert len({_identifier("patients", 1, p, 8) for p in range(100_000)}) == 100_000


@pytest.mark.parametrize("proportions", [None, EQUAL, [0, 3, 1, 0, 0]])
@pytest.mark.parametrize("count", [40, 500])
def test_patients_keep_the_proportions_at_every_number(proportions, count):
    from dataloaders.phantom.patients import _kind_of, _shares

    shares = _shares(proportions, healthy_fraction=0.25)
    weights = np.array(proportions or RSNA_PROPORTIONS, dtype=float)
    np.testing.assert_allclose(shares[:5], 0.75 * weights / weights.sum())
    kinds = [_kind_of(patient, 11, shares) for patient in range(count)]
    found = np.bincount(kinds, minlength=6)
    # Multiples of the golden ratio stray from the proportions by a few at most; draws would stray
    # by the square root of the number.
    np.testing.assert_allclose(found, shares * count, atol=3)
    assert (found[shares == 0] == 0).all()


def test_healthy_patients_and_rows_without_a_bleed():
    healthy = generate(3, size=32, seed=1, healthy_fraction=1.0)
    assert healthy.labels.sum() == 0 and len(healthy.labels) == 18
    bleeding = generate(
        6, 32, seed=1, healthy_fraction=0, class_proportions=[0, 1, 0, 0, 0], slices_per_patient=9
    )
    shown = generate(
        6, 32, seed=1, healthy_fraction=0, class_proportions=[0, 1, 0, 0, 0], slices_per_patient=9,
        with_bleed_rows_only=True,
    )  # fmt: skip
    kept = bleeding.labels.any(axis=1)
    assert 0 < kept.sum() < len(kept)
    assert shown.hounsfield.tobytes() == bleeding.hounsfield[kept].tobytes()
    assert shown.image_ids == [i for i, keep in zip(bleeding.image_ids, kept, strict=True) if keep]


def test_mixed_patients_show_two_kinds():
    mixed = generate(8, 32, seed=2, healthy_fraction=0, mixed_fraction=1.0)
    assert mixed.labels.sum(axis=1).max() == 2
    for patient in set(mixed.patient_ids):
        rows = mixed.labels[np.array(mixed.patient_ids) == patient]
        assert rows.any(axis=0).sum() <= 2


@pytest.mark.parametrize(
    "wrong",
    [
        {"num_patients": 0},
        {"size": 8},
        {"slices_per_patient": 0},
        {"healthy_fraction": 1.5},
        {"class_proportions": [1, 2]},
        {"class_proportions": [0] * 5},
        {"class_proportions": [-1, 1, 1, 1, 1]},
        {"difficulty": -0.1},
        {"mixed_fraction": 2},
    ],
)
def test_arguments_out_of_range_are_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        generate(**({"num_patients": 1, "size": 32} | wrong))


# What the pictures show


def test_partial_volume_conserves_area():
    distance = (np.arange(-50, 51) * 2.0 + 0.3).astype(np.float32)
    assert edge(np.array([-1.0, -0.5, 0.0, 1.0]), 2.0).tolist() == [0, 0.25, 0.5, 1]
    assert band(np.zeros(1), 0.25, 1.0)[0] == pytest.approx(0.5)
    for half_width in (0.3, 1.0, 4.7):
        total = band(distance, half_width, 2.0).sum() * 2.0
        assert total == pytest.approx(2 * half_width, rel=1e-4)


def test_tissues_have_the_densities_of_a_head():
    heads = generate(12, size=128, seed=8, slices_per_patient=2, healthy_fraction=1.0)
    hounsfield = heads.hounsfield.astype(float)
    assert hounsfield.min() >= -1024 and hounsfield.max() <= 3071
    corners = hounsfield[:, :8, :8]
    assert abs(corners.mean() + 1000) < 5
    for picture in hounsfield:
        bone = (picture > 400).mean()
        brain = picture[(picture > 0) & (picture < 60)]
        assert 0.05 < bone < 0.25
        assert 25 < np.median(brain) < 42
    spread = [np.median(picture[54:74, 54:74]) for picture in hounsfield[::2]]
    assert np.std(spread) > 0.5, "patients must differ"


def test_heads_differ_in_place_size_and_shape():
    heads = generate(16, size=64, seed=5, slices_per_patient=1, healthy_fraction=1.0)
    skull = heads.hounsfield > 300
    rows, columns = np.mgrid[:64, :64]
    places = [(rows[mask].mean(), columns[mask].mean()) for mask in skull]
    widths = [np.ptp(np.flatnonzero(mask.any(axis=0))) for mask in skull]
    lengths = [np.ptp(np.flatnonzero(mask.any(axis=1))) for mask in skull]
    assert np.std(places, axis=0).min() > 0.4
    assert len(set(widths)) >= 4 and len(set(lengths)) >= 4
    assert np.std(np.array(widths) / np.array(lengths)) > 0.02


def bleeding_head(name, seed, size=96):
    """Frame, spaces, strain and blood of a random head with one bleed, at its middle's level."""
    rng = np.random.default_rng(seed)
    head = draw_head(rng)._replace(tilt=np.zeros(2))
    bleed = draw_bleed(rng, CLASS_NAMES.index(name), head, difficulty=0.3)
    frame = place(head, np.array([bleed.center[2]], dtype=np.float32), size)
    strain = strain_of(bleed, head, frame)
    spaces, _ = find_spaces(head, frame, strain)
    return bleed, head, frame, spaces, blood_of(bleed, frame, spaces, strain)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("name", CLASS_NAMES)
def test_blood_lies_inside_the_skull_at_40_to_85_hounsfield(name, seed):
    _, _, frame, _, blood = bleeding_head(name, seed)
    solid = blood.coverage > 0.5
    assert blood.coverage.min() >= 0 and blood.coverage.max() <= 1
    assert frame.depth[blood.coverage > 0].min() > -frame.pixel
    assert solid.sum() * frame.pixel**2 > 60
    assert 45 < blood.density[solid].mean() < 82


@pytest.mark.parametrize("seed", range(8))
def test_epidural_blood_bulges_and_subdural_blood_spreads(seed):
    shapes = {}
    for name in ("epidural", "subdural"):
        bleed, _, frame, _, blood = bleeding_head(name, seed)
        solid = blood.coverage > 0.5
        assert frame.depth[solid].min() < 1.5 * frame.pixel, "it touches the skull"
        thickest = frame.depth[solid].max()
        along = np.ptp(np.unwrap(np.sort(turned(frame.angle[solid], bleed)))) * 70
        shapes[name] = along / thickest
        if name == "subdural":
            assert (frame.x[solid] * np.sign(bleed.center[0]) > 0).all(), "it keeps to its side"
    assert shapes["subdural"] > 6 > shapes["epidural"]


def turned(angle, bleed):
    """`angle` relative to the bleed's centre, in -pi..pi."""
    relative = angle - np.arctan2(bleed.center[1], bleed.center[0])
    return (relative + np.pi) % (2 * np.pi) - np.pi


@pytest.mark.parametrize("seed", range(8))
def test_intraparenchymal_blood_is_a_mass_within_the_brain(seed):
    bleed, _, frame, _, blood = bleeding_head("intraparenchymal", seed)
    solid = blood.coverage > 0.5
    assert frame.depth[solid].min() > 3
    middle = np.array([frame.x[solid].mean(), frame.y[solid].mean()])
    assert np.hypot(*(middle - bleed.center[:2])) < bleed.extent
    assert blood.oedema.sum() > blood.coverage.sum(), "a dark rim surrounds it"


@pytest.mark.parametrize("seed", range(8))
def test_intraventricular_blood_stays_in_the_ventricles_and_settles(seed):
    bleed, _, frame, spaces, blood = bleeding_head("intraventricular", seed)
    assert (blood.coverage <= spaces.ventricles + 1e-6).all()
    if not bleed.cast.any():
        assert frame.down[blood.coverage > 0.5].min() >= bleed.level


@pytest.mark.parametrize("seed", range(8))
def test_subarachnoid_blood_fills_sulci_and_cisterns_only(seed):
    _, head, frame, spaces, blood = bleeding_head("subarachnoid", seed)
    assert (blood.coverage <= spaces.sulci + 1e-6).all()
    tight, _ = find_spaces(head, frame, no_strain(frame))
    assert spaces.sulci.sum() > tight.sulci.sum(), "blood widens the sulci"


def test_difficulty_shrinks_bleeds_and_adds_noise():
    by_difficulty = {}
    for difficulty in (0.0, 0.5, 1.0):
        easy = generate(
            20, 32, seed=6, slices_per_patient=4, healthy_fraction=0, class_proportions=EQUAL,
            difficulty=difficulty,
        )  # fmt: skip
        blood = (easy.hounsfield > 55) & (easy.hounsfield < 85)
        noise = easy.hounsfield[:, :3, :3].astype(float).std()
        by_difficulty[difficulty] = (easy.labels.sum(), blood.sum(), noise)
    shown, blood, noise = zip(*by_difficulty.values(), strict=True)
    assert shown[0] >= shown[1] >= shown[2] and shown[0] > shown[2]
    assert blood[0] > blood[1] > blood[2]
    assert noise[0] < noise[1] < noise[2]


def test_no_single_brightness_statistic_separates_the_classes():
    many = generate(
        240, 32, seed=7, slices_per_patient=2, healthy_fraction=0, class_proportions=EQUAL,
        with_bleed_rows_only=True,
    )  # fmt: skip
    hounsfield = many.hounsfield
    brain = window_picture(hounsfield, "brain").astype(float)
    statistics = {"mean HU": hounsfield.mean(axis=(1, 2)), "mean of window": brain.mean((1, 2))}
    statistics["deviation of window"] = brain.std(axis=(1, 2))
    for low, high in ((0, 15), (15, 40), (40, 50), (50, 90), (60, 80), (80, 300), (300, 3000)):
        share = ((hounsfield >= low) & (hounsfield < high)).mean(axis=(1, 2))
        statistics[f"share of {low}..{high} HU"] = share
    for name, values in statistics.items():
        areas = [roc_auc_score(many.labels[:, c], values) for c in range(5)]
        macro = np.mean([max(area, 1 - area) for area in areas])
        limit = 0.65 if name.startswith("mean") else 0.72
        assert macro < limit, f"{name} separates the classes: {macro:.3f} {areas}"
