"A large JPEG may be decoded coarsely, but never so coarsely that detail is lost."

import numpy as np
import pytest
from PIL import Image

from cfvae.files.decode import decode_image


@pytest.mark.parametrize("size", [32, 64])
def test_a_large_jpeg_is_as_sharp_as_a_png(tmp_path, size):
    rows, columns = np.indices((4 * size, 4 * size)) // 16
    board = Image.fromarray(np.where((rows + columns) % 2, 230, 20).astype(np.uint8)).convert("RGB")
    board.save(tmp_path / "a.jpg", quality=95)
    board.save(tmp_path / "a.png")
    coarse, whole = (
        np.asarray(decode_image(tmp_path / name, size)[0]).astype(int) for name in ("a.jpg", "a.png")
    )
    assert np.abs(coarse - whole).mean() < 3
