"""One image file, whatever its format, mode or damage, to one square of bytes."""

import numpy as np
import os
from PIL import Image, ImageOps, UnidentifiedImageError
from pathlib import Path

from ..core import check


def to_rgb(
    image: Image.Image,  # any mode, already loaded
) -> Image.Image:
    "The picture in mode RGB: many-bit grey scaled to 8 bits, transparency laid on white, everything else as Pillow converts it."
    if image.mode == "F" or image.mode.startswith("I"):
        values = np.nan_to_num(np.asarray(image, dtype=np.float64))
        top = 65535 if image.mode != "F" else 1 if values.max() <= 1 else 255
        image = Image.fromarray(np.rint(np.clip(values / top, 0, 1) * 255).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


Image.init()  # registers all of Pillow's formats


FORMATS = tuple(
    f for f in ("AVIF", "BMP", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP") if f in Image.OPEN
)


MAX_PIXELS = 89_478_485  # Pillow's limit against decompression bombs


def _upright(image: Image.Image) -> Image.Image:
    "The picture as its EXIF note asks to see it; as it is where the note cannot be read."
    try:
        return ImageOps.exif_transpose(image)
    except Exception:
        return image


def decode_image(
    path: str | Path,  # an image file of any format in FORMATS, whatever its name ends in
    size: int,  # side of the square, in pixels
) -> tuple[np.ndarray, int]:
    "Upright RGB, centre-cropped: uint8 (3, size, size), and the file's own shorter side. A damaged file raises whatever Pillow raises."
    with Image.open(path, formats=FORMATS) as image:
        width, height = image.size
        check(
            width * height <= MAX_PIXELS, f"more than {MAX_PIXELS:,} pixels: scale the image down to use it"
        )
        image.draft(None, (2 * size, 2 * size))
        image.load()
        square = ImageOps.fit(to_rgb(_upright(image)), (size, size), Image.Resampling.BICUBIC)
    return np.ascontiguousarray(np.asarray(square).transpose(2, 0, 1)), min(width, height)


def _reason(error: Exception, path: str | Path) -> str:
    "Why a file could not be read, in a few words."
    if isinstance(error, UnidentifiedImageError):
        return "not an image in a known format" if os.path.getsize(path) else "empty file"
    if isinstance(error, (Image.DecompressionBombError, Image.DecompressionBombWarning)):
        return f"more than {MAX_PIXELS:,} pixels: scale the image down to use it"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    return (str(error) or type(error).__name__).splitlines()[0][:120]


def try_decode(path: str | Path, size: int) -> tuple[np.ndarray | None, int | str]:
    "`decode_image`, but a damaged file gives (None, reason): decoders meet bad data with exceptions of every type."
    try:
        return decode_image(path, size)
    except Exception as error:
        return None, _reason(error, path)
