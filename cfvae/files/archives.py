"""Archives of images, unpacked without trusting them."""

import dataclasses
import typing
import tarfile
import stat
import zipfile
import contextlib
import errno
import secrets
import shutil
import hashlib
import os
import re
from pathlib import Path, PureWindowsPath

from ..core import CfvaeError, check
from .names import printable


ARCHIVES = (".tar", ".tar.xz", ".txz", ".tar.gz", ".tgz", ".tar.bz2", ".zip")


BOMB_RATIO, BOMB_FLOOR = 50, 2**30  # unpacked bytes may be so many times the archive's, and always so many


@dataclasses.dataclass
class Member:
    "One entry of an archive."

    name: str  # as the archive gives it: not to be trusted
    kind: str  # "file", "folder", or what else it is
    open: typing.Callable[[], typing.IO[bytes]]  # for files


def _tar_members(archive: Path, folder: Path) -> typing.Iterator[Member]:
    with tarfile.open(archive) as tar:
        for info in tar:
            kind = (
                "file"
                if info.isreg()
                else "folder"
                if info.isdir()
                else "link"
                if info.issym() or info.islnk()
                else "device"
            )
            if kind in ("file", "folder") and _contained(info.name):
                tarfile.data_filter(info, str(folder))
            yield Member(info.name, kind, lambda info=info: tar.extractfile(info))
        if archive.name.lower().endswith(".tar"):
            tar.fileobj.seek(tar.offset)
        for _ in range(
            64
        ):  # a damaged header looks to tarfile like the end, but the end is zeros; behind them lies the checksum of .gz
            rest = tar.fileobj.read(1 << 16)
            check(
                not rest.strip(b"\0"),
                f"{archive.name} is damaged, or several archives were joined: pack it again",
            )


def _zip_members(archive: Path, folder: Path) -> typing.Iterator[Member]:
    with zipfile.ZipFile(archive) as file:
        for info in file.infolist():
            mode = info.external_attr >> 16
            kind = (
                "folder"
                if info.is_dir()
                else "link"
                if stat.S_ISLNK(mode)
                else "file"
                if stat.S_IFMT(mode) in (0, stat.S_IFREG)
                else "device"
            )
            check(
                not info.flag_bits & 1,
                f"{archive.name}: '{printable(info.filename)}' is encrypted; unpack it yourself and give folder:PATH",
            )
            yield Member(info.filename, kind, lambda info=info: file.open(info))


def _contained(name: str) -> bool:
    "Whether a member's name stays inside its folder, by the rules of Unix and of Windows."
    path = PureWindowsPath(name)  # takes both kinds of slash
    return not path.anchor and ".." not in path.parts and "\0" not in name


def _unpack_into(archive: Path, folder: Path) -> None:
    "Write an archive's files into a folder. Raises `CfvaeError` naming the first member that is not an honest file."
    written, limit = 0, max(BOMB_FLOOR, BOMB_RATIO * archive.stat().st_size)
    for member in (_zip_members if archive.suffix.lower() == ".zip" else _tar_members)(archive, folder):
        shown = f"{archive.name}: member '{printable(member.name)}'"
        check(
            _contained(member.name),
            f"{shown} would be written outside its folder: nothing was unpacked, do not trust this archive",
        )
        check(
            member.kind in ("file", "folder"),
            f"{shown} is a {member.kind}, and only files and folders are unpacked: pack it again without",
        )
        target = folder / member.name
        (target if member.kind == "folder" else target.parent).mkdir(parents=True, exist_ok=True)
        written += 512  # an empty member costs something too
        if member.kind == "folder":
            continue
        with member.open() as source, open(target, "wb") as out:
            while block := source.read(1 << 20):
                written += len(block)
                check(
                    written <= limit,
                    f"{shown}: more than {limit / 2**30:.0f} GiB unpacked, which looks like a bomb; unpack it yourself if you trust it",
                )
                out.write(block)


@contextlib.contextmanager
def new_folder(target: Path, need: int = 0) -> typing.Iterator[Path]:
    "A temporary folder that becomes `target` if all goes well and vanishes if not. Raises `CfvaeError` where the disk refuses or has not `need` bytes."
    partial = target.parent / f".partial-{target.name[:40]}-{secrets.token_hex(4)}"
    try:
        partial.mkdir(parents=True)
        free = shutil.disk_usage(partial).free
        check(
            need <= free,
            f"no space for {target.name}: it needs {need / 1e9:.1f} GB and the disk has {free / 1e9:.1f} GB: choose another cache folder",
        )
        yield partial
        try:
            partial.rename(target)
        except OSError:
            if not target.is_dir():  # otherwise another process was faster
                raise
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        why = "no space left on the disk" if full else f"{type(error).__name__}: {error.strerror or error}"
        raise CfvaeError(
            f"cannot write {target.name} in {printable(target.parent)} ({why}): free some space or choose another cache folder"
        ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def source_tag(source: Path) -> str:
    "A name for a source's entries in the cache: readable, safe for any disk, different for different places."
    return (
        re.sub(r"[^\w-]+", "_", source.name, flags=re.ASCII)[:40]
        + "-"
        + hashlib.sha256(os.fsencode(source.resolve())).hexdigest()[:8]
    )


def remove_older(target: Path, prefix: str) -> None:
    "Remove what the cache holds of earlier versions of the same source."
    for old in target.parent.glob(f"{prefix}-*"):
        if old != target and re.fullmatch(r"[0-9a-f]{16}", old.name.removeprefix(f"{prefix}-")):
            shutil.rmtree(old, ignore_errors=True)


def unpack(
    archive: str | Path,  # .tar, .tar.xz, .tar.gz, .tar.bz2 or .zip
    cache: str | Path = "data/cache",  # unpacked once into a folder below this
) -> Path:
    "The folder with an archive's files. Raises `CfvaeError` for other files, damaged archives, and members that are not plain files inside it."
    archive = Path(archive)
    check(
        archive.is_file() and archive.name.lower().endswith(ARCHIVES),
        f"{printable(archive)} is neither a folder nor one of {', '.join(ARCHIVES)}",
    )
    status = archive.stat()
    version = hashlib.sha256(f"{status.st_size} {status.st_mtime_ns}".encode()).hexdigest()[:16]
    target = Path(cache) / "unpacked" / f"{source_tag(archive)}-{version}"
    if target.is_dir():
        return target
    with new_folder(target, need=status.st_size) as folder:
        try:
            _unpack_into(archive, folder)
        except Exception as error:  # what the readers of damaged archives raise is as varied as with images
            if (
                isinstance(error, CfvaeError)
                or isinstance(error, OSError)
                and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS)
            ):
                raise
            raise CfvaeError(
                f"{printable(archive.name)} is damaged or not an archive ({type(error).__name__}: {printable(str(error))[:100]})"
            ) from error
    remove_older(target, source_tag(archive))
    return target
