"Pictures, trees of them, and a disk that is full: what the tests of files share."

import errno
import io
import warnings

import numpy as np
from PIL import Image

from cfvae.files import archives, arrays
from cfvae.files.decode import decode_image
from cfvae.files.open import open_dataset


def picture(width=60, height=40, seed=0):
    "A smooth picture that no flip or rotation maps onto itself."
    y, x = np.mgrid[0:height, 0:width] / height
    shift = (seed * 37 % 100) / 200
    return Image.fromarray(
        (np.stack([x / 1.5, y, 0.9 - 0.6 * y + shift * x / 1.5], -1).clip(0, 1) * 255).astype(np.uint8)
    )


def rgb(image, size=20):
    "What decoding an upright RGB picture should give, by the shortest way."
    side = min(image.size)
    left, top = (image.width - side) / 2, (image.height - side) / 2
    square = image.resize((size, size), Image.Resampling.BICUBIC, box=(left, top, left + side, top + side))
    return np.asarray(square).transpose(2, 0, 1).astype(int)


def distance(path, expected, size=20):
    array, _ = decode_image(path, size)
    assert array.shape == (3, size, size) and array.dtype == np.uint8
    return np.abs(array.astype(int) - expected).mean()


def grow(root, names, size=(24, 18)):
    "Write a small, distinct image for every name."
    for seed, name in enumerate(names):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        picture(*size, seed=seed).save(path)
    return root


def quiet(spec, size=8, **options):
    "open_dataset, and the messages of its warnings."
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        dataset = open_dataset(spec, size, **options)
    return dataset, [str(w.message) for w in told]


class Full(io.BytesIO):
    "A file on a disk that is full after some bytes."

    def write(self, data):
        if self.tell() + len(data) > 300:
            raise OSError(errno.ENOSPC, "No space left on device")
        return super().write(data)


def fail_writes(monkeypatch):
    "From now on, what the package writes meets a full disk."

    def open_full(path, mode="r"):
        return Full() if mode[0] in "wx" else open(path, mode)

    for module in (archives, arrays):
        monkeypatch.setattr(module, "open", open_full, raising=False)
