"""Images of digits for the two-layer network of RoLoRA's toy experiment; the pattern for a new task in one file.

The network is ``W_out ReLU((W0 + s B A) x)``: 784 pixels, one hidden layer whose weight has LoRA factors, ten outputs.
In the paper (Chen et al., arXiv 2502.01755) the hidden weight is the product of its two factors alone:
``model.frozen_weight=false``, where both are drawn, because ReLU passes no gradient at zero. By default, as in every
other model of this project, a frozen random W0 stands beside them.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from tasks.data.examples import Batch, Examples, IntArray, TaskError
from tasks.settings import told_as

PIXELS = 28 * 28
DIGITS = tuple(str(digit) for digit in range(10))
_MEAN, _STD = 0.1307, 0.3081  # of MNIST's training pixels, scaled to [0, 1]
_ARRAYS = "x_train, y_train and, for the test set, x_test, y_test"


@dataclass(frozen=True)
class ImageExamples(Examples):
    """Labelled images, ``pixels`` (examples, 784); ``groups`` are the digits, as the toy divides them."""

    pixels: npt.NDArray[np.uint8]
    labels: npt.NDArray[np.generic]
    groups: IntArray

    @property
    def lengths(self) -> npt.NDArray[np.int64]:
        """One "token" per image, shape (examples,)."""
        return np.ones(len(self), dtype=np.int64)

    def batch(self, indices: npt.ArrayLike) -> Batch:
        """Return the images at ``indices`` as standardised float32 pixels."""
        chosen = np.asarray(indices, dtype=np.int64)
        pixels = (self.pixels[chosen].astype(np.float32) / 255 - _MEAN) / _STD  # (batch, 784)
        return Batch({"pixels": torch.from_numpy(pixels.astype(np.float32))}, torch.from_numpy(self.labels[chosen]))

    def keys(self) -> list[bytes]:
        """The pixels: two images are the same when all of them are equal."""
        return [row.tobytes() for row in self.pixels]


def load_images(train_file: str | None, validation_file: str | None) -> tuple[ImageExamples, ImageExamples | None]:
    """Read digits from NumPy archives: ``x_train`` (examples, 28, 28) uint8 and ``y_train``.

    Test examples are ``x_test``, ``y_test``, of ``validation_file`` if given; None where there are none.
    """
    if train_file is None:
        raise TaskError(f"task.train_file: expected a .npz archive with {_ARRAYS} for task mnist, found null")
    with _open(train_file) as archive:
        train = _examples(archive, "train", train_file)
        if validation_file is None:
            return train, _examples(archive, "test", train_file) if "x_test" in archive else None
    with _open(validation_file) as archive:
        return train, _examples(archive, "test", validation_file)


def _open(path: str) -> Any:
    file = Path(path).expanduser()
    if not file.is_file():
        raise TaskError(f"task file: expected a file at {path!r}, found none")
    with told_as(TaskError, f"task file {path!r}: expected a .npz archive with {_ARRAYS}, found something else"):
        archive = np.load(file, allow_pickle=False)
        if not isinstance(archive, np.lib.npyio.NpzFile):
            raise ValueError("a single array")
    return archive


def _examples(archive: Any, side: str, path: str) -> ImageExamples:
    if missing := [name for name in (f"x_{side}", f"y_{side}") if name not in archive]:
        found = ", ".join(archive.files) or "none"
        raise TaskError(f"task file {path!r}: expected the array {missing[0]}, found {found}")
    with told_as(TaskError, f"task file {path!r} cannot be read"):  # an array of objects, or a broken file
        images, labels = archive[f"x_{side}"], archive[f"y_{side}"]
    if images.dtype != np.uint8 or images.shape[1:] not in ((28, 28), (PIXELS,)):
        found = f"found {images.dtype} {images.shape}"
        raise TaskError(f"task file {path!r}, x_{side}: expected uint8 of shape (examples, 28, 28), {found}")
    whole = labels.shape == images.shape[:1] and labels.dtype.kind in "iu" and labels.size > 0
    if not whole or labels.min() < 0 or labels.max() > 9:
        found = f"found {labels.dtype} {labels.shape}"
        raise TaskError(f"task file {path!r}, y_{side}: expected one digit 0 to 9 per image, {found}")
    digits = labels.astype(np.int64)
    return ImageExamples(images.reshape(len(images), PIXELS), digits, digits)
