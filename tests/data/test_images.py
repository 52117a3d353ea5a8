import numpy as np
import pytest

from amc_lightning.data.images import Images, as_uint8, checked
from amc_lightning.errors import UserError


def test_as_uint8_keeps_bytes_and_scales_floats():
    x = np.arange(256, dtype=np.uint8)
    assert as_uint8(x, "k") is not None
    assert np.array_equal(as_uint8(x, "k"), x)
    for dtype in (np.float32, np.float64):
        assert np.array_equal(as_uint8((x / 255).astype(dtype), "k"), x)
    assert as_uint8(np.empty((0, 1, 2, 2), np.float32), "k").shape == (0, 1, 2, 2)


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (np.array([0.0, 1.5]), r"^images: \(0\.0, 1\.5\) is the range of the pixels; images are uint8 in 0\.\.255, or"),
        (
            np.array([-0.1, 1.0]),
            r"^images: \(-0\.1, 1\.0\) is the range of the pixels; .* Scale the images to \[0, 1\]",
        ),
        (np.array([0.0, np.inf]), r"^images: \(0\.0, inf\) is the range of the pixels"),
        (
            np.array([0.0, np.nan, np.nan]),
            r"^images: 2 pixels are NaN; images are uint8 in 0\.\.255, or floats in \[0, 1\]",
        ),
        (np.array([0, 255]), r"^images: 'int64' is not a type of image this reads; "),
        (np.array([True]), r"^images: 'bool' is not a type of image this reads; "),
    ],
)
def test_as_uint8_refuses(x, message):
    with pytest.raises(UserError, match=message):
        as_uint8(x, "images")


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        (
            np.zeros((2, 1, 4, 4), np.uint8),
            [0, 3],
            r"^k: \[3\] are labels out of range; 3 classes are numbered 0\.\.2\. Nu",
        ),
        (
            np.zeros((2, 1, 4, 4), np.uint8),
            [-1, 0],
            r"^k: \[-1\] are labels out of range; 3 classes are numbered 0\.\.2\.",
        ),
        (
            np.zeros((2, 1, 4, 4), np.uint8),
            [0.0, 1.0],
            r"^k: 'float64' is the type of the labels; they must be integers",
        ),
        (np.zeros((2, 1, 4, 4), np.uint8), [0], r"^k: \(1,\) is the shape of the labels of 2 images; one each"),
        (
            np.zeros((2, 4, 4), np.uint8),
            [0, 1],
            r"^k: \(2, 4, 4\) is the shape of the images; it must be \(N, C, H, W\)",
        ),
        (np.zeros((0, 1, 4, 4), np.uint8), [], r"^k: \(0, 1, 4, 4\) is the shape of the images; .* none of them 0"),
    ],
)
def test_checked_refuses(x, y, message):
    with pytest.raises(UserError, match=message):
        checked(Images(x, np.array(y)), 3, "k")


def test_checked_converts():
    images = checked(Images(np.ones((2, 1, 4, 4), np.float32), np.array([0, 2], np.uint8)), 3, "k")
    assert images.x.dtype == np.uint8
    assert images.x.min() == 255
    assert images.y.dtype == np.int64
    assert images.take(np.array([1, 0])).y.tolist() == [2, 0]
