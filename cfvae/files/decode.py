"""One image file, whatever its format, mode or damage, to one square of bytes."""

import dataclasses
import os
import typing
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from ..core import check

Image.init()  # registers all of Pillow's formats
KNOWN_FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")
FORMATS = tuple(name for name in KNOWN_FORMATS if name in Image.OPEN)  # those that this Pillow was built with
MAX_PIXELS = 89_478_485  # Pillow's limit against decompression bombs
PHOTOMETRIC = 262  # the field of a TIFF file that says what is white
BLOCK_PIXELS = 1 << 18  # of a many-bit picture that are converted at a time


def to_rgb(
    image: Image.Image,  # any mode, already loaded
) -> Image.Image:
    """The picture in mode RGB.

    Many-bit grey is scaled to 8 bits, transparency laid on white, everything else as Pillow converts it."""
    if _has_many_bits(image):
        image = _many_bits_to_eight(image)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    return image.convert("RGB")


def _has_many_bits(image: Image.Image) -> bool:
    return image.mode == "F" or image.mode.startswith("I")


def _many_bits_to_eight(image: Image.Image) -> Image.Image:
    "Grey of 16 or 32 bits, or of floating-point numbers from 0 to 1 or to 255."
    top = _full_scale(image, _value_range(image)[1])
    transparent = image.info.get("transparency", np.nan)  # one grey, in PNG; nothing equals NaN
    grey = np.empty((image.height, image.width), np.uint8)
    for rows, values in _row_blocks(image):
        shares = np.clip(values / top, 0, 1)
        shares[values == transparent] = 1
        grey[rows] = np.rint(shares * 255)
    return Image.fromarray(grey)


def _row_blocks(image: Image.Image) -> typing.Iterator[tuple[slice, np.ndarray]]:
    "The numbers of a picture in float64, some rows at a time: all at once take many times its memory."
    step = max(1, BLOCK_PIXELS // image.width)
    for start in range(0, image.height, step):
        stop = min(start + step, image.height)
        rows = image.crop((0, start, image.width, stop))
        values = np.asarray(rows, dtype=np.float64)
        yield slice(start, stop), np.where(np.isfinite(values), values, 0)  # one infinity would be the range


def _value_range(image: Image.Image) -> tuple[float, float]:
    "The smallest and the largest number; of colours, of which the upper 8 bits are read, the bounds of both."
    if not _has_many_bits(image):
        colours = np.asarray(image.convert("RGB"))
        return 256.0 * colours.min(), 256.0 * colours.max() + 255
    ends = [(values.min(), values.max()) for _, values in _row_blocks(image)]
    return float(min(low for low, _ in ends)), float(max(high for _, high in ends))


def _full_scale(image: Image.Image, high: float) -> int:
    "What is taken as white."
    if image.mode != "F":
        return 65535
    return 1 if high <= 1 else 255


def _is_negative(image: Image.Image) -> bool:
    "Whether 0 is white, as a TIFF file may say. With 8 bits Pillow turns it over, with more it does not."
    return _has_many_bits(image) and getattr(image, "tag_v2", {}).get(PHOTOMETRIC) == 0


def _upright(image: Image.Image) -> Image.Image:
    "The picture as its EXIF note asks to see it; as it is where the note cannot be read."
    try:
        return ImageOps.exif_transpose(image)
    except Exception:
        return image


def _open(path: str | Path) -> Image.Image:
    "A picture, not loaded yet. Who opens a pipe may wait for ever, so nothing but files is opened."
    check(os.path.isfile(path) or not os.path.exists(path), "not a file")
    return Image.open(path, formats=FORMATS)


def decode_image(
    path: str | Path,  # an image file of any format in FORMATS, whatever its name ends in
    size: int,  # side of the square, in pixels
) -> tuple[np.ndarray, int]:
    """Upright RGB, centre-cropped: uint8 (3, size, size), and the file's own shorter side.

    A damaged file raises whatever Pillow raises."""
    with _open(path) as image:
        width, height = image.size
        check(width * height <= MAX_PIXELS, _too_large())
        image.draft(None, (2 * size, 2 * size))  # JPEG: decode no more pixels than are needed
        image.load()
        upright = to_rgb(_upright(image))
        if _is_negative(image):
            upright = ImageOps.invert(upright)
    square = ImageOps.fit(upright, (size, size), Image.Resampling.BICUBIC)
    pixels = np.asarray(square).transpose(2, 0, 1)
    return np.ascontiguousarray(pixels), min(width, height)


@dataclasses.dataclass(frozen=True)
class Range:
    "What numbers a file of 16 or more bits holds, and what is made of them."

    low: float
    high: float
    scale: int  # the other end from 0: white, or black in a negative
    negative: bool  # 0 is white

    @property
    def clips(self) -> bool:
        "Whether numbers lie outside, by more than one of 256 steps."
        step = self.scale / 255
        return self.low < -step or self.high > self.scale + step

    def __str__(self) -> str:
        taken = "black" if self.negative else "white"
        return f"its numbers run from {self.low:g} to {self.high:g}, and {self.scale} is taken as {taken}"


def many_bit_range(
    path: str | Path,  # an image file
) -> Range | None:
    "The range of a file of 16 or more bits; None for all other files."
    try:
        with _open(path) as image:
            colours_of_16_bits = ";16" in str(getattr(image, "tile", ""))  # known until it is loaded
            if not _has_many_bits(image) and not colours_of_16_bits:
                return None
            low, high = _value_range(image)
            return Range(low, high, _full_scale(image, high), _is_negative(image))
    except Exception:
        return None


def why_blank(
    path: str | Path,  # an image file that came out nearly black or white
) -> str | None:
    "What of the file may have made it so, and what to do; None where nothing is known."
    found = many_bit_range(path)
    if found is not None:
        return f"{found}; scale the numbers of such files to the full range first"
    try:
        with _open(path) as image:
            alpha = np.asarray(image.convert("RGBA").getchannel("A"))
    except Exception:
        return None
    way_out = "it is transparent, and laid on white; lay such files on another ground first"
    return way_out if alpha.min() < 255 else None


def _too_large() -> str:
    return f"more than {MAX_PIXELS:,} pixels: scale the image down to use it"


def try_decode(
    path: str | Path,  # as for `decode_image`
    size: int,  # as for `decode_image`
) -> tuple[np.ndarray | None, int | str]:
    """`decode_image`, but a damaged file gives (None, reason).

    Decoders meet bad data with exceptions of every type."""
    try:
        return decode_image(path, size)
    except Exception as error:
        return None, _reason(error, path)


def _reason(error: Exception, path: str | Path) -> str:
    "Why a file could not be read, in a few words."
    if isinstance(error, UnidentifiedImageError):
        return "not an image in a known format" if os.path.getsize(path) else "empty file"
    if isinstance(error, (Image.DecompressionBombError, Image.DecompressionBombWarning)):
        return _too_large()
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    text = str(error) or type(error).__name__
    return text.splitlines()[0][:120]
