"""Arrays on disk that grow row by row."""

import os
import tokenize
import types
from pathlib import Path

import numpy as np

# no file, none of numpy's, or one with a damaged header, which numpy reads as Python source
NO_ARRAY = (
    OSError,
    EOFError,
    ValueError,
    TypeError,
    OverflowError,
    MemoryError,
    SyntaxError,
    tokenize.TokenError,
)


class RowWriter:
    """Writes an .npy file without knowing beforehand how many rows there will be.

    Plain writes: on a full disk they raise `OSError`, where a memory map would end the process."""

    def __init__(
        self,
        path: Path,  # the file, written anew
        dtype: str,  # as numpy names it, with the byte order: "|u1", "<f2"
        row_shape: tuple[int, ...],  # of one row
    ) -> None:
        self.dtype = dtype
        self.row_shape = row_shape
        self.count = 0  # rows written
        self.file = open(path, "wb")
        self._write_header()

    def _write_header(self) -> None:
        "numpy pads the header, so that its length does not depend on the count."
        shape = (self.count, *self.row_shape)
        header = {"descr": self.dtype, "fortran_order": False, "shape": shape}
        self.file.seek(0)
        np.lib.format.write_array_header_1_0(self.file, header)

    def write(
        self,
        rows: np.ndarray,  # (n, ...) of the shape and type given before
    ) -> None:
        "Add rows at the end."
        self.file.write(np.ascontiguousarray(rows, self.dtype).tobytes())
        self.count += len(rows)

    def __enter__(self) -> "RowWriter":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: types.TracebackType | None,
    ) -> None:
        with self.file:
            if error is None:
                self._write_header()
                self.file.flush()
                os.fsync(self.file.fileno())
