"""Archives of images, unpacked without trusting them."""

import bz2
import dataclasses
import errno
import gzip
import hashlib
import io
import lzma
import os
import shutil
import stat
import tarfile
import typing
import zipfile
from pathlib import Path, PureWindowsPath

from ..core import CfvaeError, check
from .folders import COUNT_FILE, state_of
from .names import printable
from .store import new_folder, remove_older, source_tag

ARCHIVES = (".tar", ".tar.xz", ".txz", ".tar.gz", ".tgz", ".tar.bz2", ".zip")
BOMB_RATIO = 50  # unpacked bytes may be so many times the archive's
BOMB_FLOOR = 2**30  # and always so many
MEMBER_COST = 512  # bytes that an empty member counts for
BLOCK = 1 << 16  # bytes copied at a time
HEADER_LIMIT = 1 << 20  # bytes of what stands before one member of a .tar: its name, and notes about it
REFUSALS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EACCES, errno.EROFS)  # of a disk, to be written to
OPENERS: dict[bytes, typing.Callable[[Path], io.BufferedIOBase]] = {  # by a file's first bytes
    b"\x1f\x8b": gzip.GzipFile,
    b"BZh": bz2.BZ2File,
    b"\xfd7zXZ\0": lzma.LZMAFile,
    b"]\0\0": lzma.LZMAFile,
}


@dataclasses.dataclass
class Member:
    "One entry of an archive."

    name: str  # as the archive gives it: not to be trusted
    kind: str  # "file", "folder", or what else it is
    open: typing.Callable[[], typing.IO[bytes]]  # for files


def unpack(
    archive: str | Path,  # .tar, .tar.xz, .tar.gz, .tar.bz2 or .zip
    cache: str | Path = "data/cache",  # unpacked once into a folder below this
) -> Path:
    """The folder with an archive's files.

    Raises `CfvaeError` for other files, damaged archives, and members that are not plain files inside it."""
    archive = Path(archive)
    check(
        archive.is_file() and archive.name.lower().endswith(ARCHIVES),
        f"{printable(archive)} is neither a folder nor one of {', '.join(ARCHIVES)}; a table of files and "
        "labels is table:FILE",
    )
    status = archive.stat()
    version = hashlib.sha256(state_of(status).encode()).hexdigest()[:16]
    target = Path(cache) / "unpacked" / f"{source_tag(archive)}-{version}"
    if _is_whole(target):
        return target
    shutil.rmtree(target, ignore_errors=True)
    with new_folder(target, need=status.st_size) as folder:
        try:
            _unpack_into(archive, folder)
        except CfvaeError:
            raise
        except NotImplementedError as error:  # whole, but packed as Python cannot: Deflate64, for one
            message = f"{printable(archive.name)} is packed in a way that is unknown here ({error})"
            raise CfvaeError(f"{message}: unpack it yourself, and give folder:PATH") from None
        except Exception as error:  # what the readers of damaged archives raise is as varied as with images
            if _is_the_disks(error):
                raise
            reason = f"{type(error).__name__}: {printable(str(error))[:100]}"
            raise CfvaeError(f"{printable(archive.name)} is damaged or not an archive ({reason})") from error
        (folder / COUNT_FILE).write_text(str(_count_files(folder)), encoding="utf-8")
    remove_older(target, source_tag(archive))
    return target


def _is_whole(folder: Path) -> bool:
    "Whether all is there that was unpacked: what clears away old files takes them one by one."
    try:
        noted = int((folder / COUNT_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return _count_files(folder) == noted


def _count_files(folder: Path) -> int:
    return sum(name != COUNT_FILE for _, _, names in os.walk(folder) for name in names)


def _is_the_disks(error: Exception) -> bool:
    "Whether the disk is to blame, and not the archive."
    return isinstance(error, OSError) and error.errno in REFUSALS


def _unpack_into(archive: Path, folder: Path) -> None:
    """Write an archive's files into a folder.

    Raises `CfvaeError` naming the first member that is not an honest file."""
    limit = _limit(archive)
    written = 0
    members = _zip_members if archive.suffix.lower() == ".zip" else _tar_members
    for member in members(archive, folder):
        shown = f"{archive.name}: member '{printable(member.name)}'"
        _check_honest(member, shown)
        target = folder / member.name
        written += MEMBER_COST
        if member.kind == "folder":
            target.mkdir(parents=True, exist_ok=True)
            continue
        with member.open() as source, _create(target, shown) as out:
            while block := source.read(BLOCK):
                written += len(block)
                check(written <= limit, _looks_like_a_bomb(shown, limit))
                out.write(block)


def _create(target: Path, shown: str) -> typing.IO[bytes]:
    "A new file. Raises `CfvaeError` where there is one, or where the disk takes no such name."
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        return open(target, "xb")
    except OSError as error:
        if _is_the_disks(error):
            raise
        way_out = "unpack it yourself, and give folder:PATH"
        raise CfvaeError(f"{shown} cannot be written ({error.strerror}): {way_out}") from None


def _limit(archive: Path) -> int:
    "How many bytes an honest archive may hold."
    return max(BOMB_FLOOR, BOMB_RATIO * archive.stat().st_size)


def _looks_like_a_bomb(shown: str, limit: int) -> str:
    return (
        f"{shown}: more than {limit / 2**30:.0f} GiB unpacked, which looks like a bomb; "
        "unpack it yourself if you trust it"
    )


def _check_honest(member: Member, shown: str) -> None:
    check(
        _is_inside(member.name),
        f"{shown} would be written outside its folder: nothing was unpacked, do not trust this archive",
    )
    check(
        member.kind in ("file", "folder"),
        f"{shown} is a {member.kind}, and only files and folders are unpacked: pack it again without",
    )


def _is_inside(name: str) -> bool:
    "Whether a member's name stays inside its folder, by the rules of Unix and of Windows."
    path = PureWindowsPath(name)  # takes both kinds of slash
    return not path.anchor and ".." not in path.parts and "\0" not in name


class _TarStream(io.RawIOBase):
    """The bytes of a .tar, counted as they leave the decompressor.

    tarfile takes a header of any length into memory, whatever its size: here the reading stops."""

    def __init__(self, archive: Path) -> None:
        self.name = archive.name
        with open(archive, "rb") as file:
            start = file.read(6)
        opener = next((OPENERS[magic] for magic in OPENERS if start.startswith(magic)), None)
        self.source: io.BufferedIOBase = opener(archive) if opener else open(archive, "rb")
        self.limit = 2 * _limit(archive)  # members are counted one by one: this is for what is between them
        self.passed = 0  # bytes read or skipped
        self.header_left: int | None = HEADER_LIMIT  # may be read before the next member; None inside one

    def read(self, size: int = -1, /) -> bytes:
        if self.header_left is not None:
            self.header_left -= size
            check(
                0 <= size and self.header_left >= 0,
                f"{self.name} is damaged or a bomb: what stands before one of its members is larger than "
                f"{HEADER_LIMIT:,} bytes; unpack it yourself if you trust it",
            )
        block = self.source.read(size)
        self._count(len(block))
        return block

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        self._count(max(0, offset - self.source.tell()))
        return self.source.seek(offset, whence)

    def tell(self) -> int:
        return self.source.tell()

    def close(self) -> None:
        self.source.close()
        super().close()

    def _count(self, size: int) -> None:
        self.passed += size
        check(self.passed <= self.limit, _looks_like_a_bomb(self.name, self.limit))


def _tar_members(archive: Path, folder: Path) -> typing.Iterator[Member]:
    with _TarStream(archive) as stream, tarfile.open(fileobj=stream, mode="r:") as tar:
        while info := _next_header(tar, stream):
            kind = _tar_kind(info)
            if kind in ("file", "folder") and _is_inside(info.name):
                tarfile.data_filter(info, str(folder))  # raises for what the checks here do not know

            def open_member(info: tarfile.TarInfo = info) -> typing.IO[bytes]:
                return typing.cast(typing.IO[bytes], tar.extractfile(info))  # a file has content

            yield Member(info.name, kind, open_member)
        _check_end(tar, archive)


def _next_header(tar: tarfile.TarFile, stream: _TarStream) -> tarfile.TarInfo | None:
    "What the archive says of its next member. tarfile would keep what it said of all."
    typing.cast(typing.Any, tar).members.clear()
    stream.header_left = HEADER_LIMIT
    info = tar.next()
    stream.header_left = None
    return info


def _tar_kind(info: tarfile.TarInfo) -> str:
    if info.isreg():
        return "file"
    if info.isdir():
        return "folder"
    return "link" if info.issym() or info.islnk() else "device"


def _check_end(tar: tarfile.TarFile, archive: Path) -> None:
    """A damaged header looks to tarfile like the end, but the end is zeros.

    Behind them lies the checksum of .gz, which reading to the end verifies."""
    stream = typing.cast(typing.IO[bytes], tar.fileobj)
    check(stream.tell() > tar.offset, f"{archive.name} is cut off: it has no end mark; copy or load it again")
    if archive.name.lower().endswith(".tar"):
        stream.seek(tar.offset)
    for _ in range(64):
        rest = stream.read(1 << 16)
        check(
            not rest.strip(b"\0"),
            f"{archive.name} is damaged, or several archives were joined: pack it again",
        )


def _zip_members(archive: Path, folder: Path) -> typing.Iterator[Member]:
    with zipfile.ZipFile(archive) as file:
        for info in file.infolist():
            check(
                not info.flag_bits & 1,
                f"{archive.name}: '{printable(info.filename)}' is encrypted; "
                "unpack it yourself and give folder:PATH",
            )

            if "/" not in info.filename:  # some programs part folders as Windows does
                info.filename = info.filename.replace("\\", "/")

            def open_member(info: zipfile.ZipInfo = info) -> typing.IO[bytes]:
                return file.open(info)

            yield Member(info.filename, _zip_kind(info), open_member)


def _zip_kind(info: zipfile.ZipInfo) -> str:
    mode = info.external_attr >> 16  # as Unix notes it; 0 where another system packed
    if info.is_dir():
        return "folder"
    if stat.S_ISLNK(mode):
        return "link"
    return "file" if stat.S_IFMT(mode) in (0, stat.S_IFREG) else "device"
