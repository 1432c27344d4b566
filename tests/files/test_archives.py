"Tests of cfvae.files.archives: honest, damaged and malicious ones."

import bz2
import gzip
import io
import lzma
import os
import random
import stat
import tarfile
import tracemalloc
import warnings
import zipfile

import pytest
from trees import fail_writes, grow, picture, quiet

from cfvae.core import CfvaeError
from cfvae.files import archives
from cfvae.files.archives import unpack
from cfvae.files.folders import list_folder
from cfvae.files.open import open_dataset

pytestmark = pytest.mark.filterwarnings("error")


def tar_of(path, *members, mode="w"):
    "An archive of (TarInfo or name, content) pairs."
    with tarfile.open(path, mode) as tar:
        for info, content in members:
            info = tarfile.TarInfo(info) if isinstance(info, str) else info
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def png(seed=0):
    file = io.BytesIO()
    picture(9, 9, seed).save(file, "PNG")
    return file.getvalue()


@pytest.mark.parametrize(
    "name", ["x.tar", "x.tar.gz", "x.tgz", "x.tar.xz", "x.txz", "x.tar.bz2", "X.ZIP", "x.zip"]
)
def test_archives_give_what_their_folder_gives(tmp_path, cache, name):
    root = grow(
        tmp_path / "src",
        ["top/train/b/1.png", "top/train/a/1.png", "top/train/a/2.png", "__MACOSX/top/._1.png"],
    )
    (root / "top" / "train" / "void").mkdir()
    if name.lower().endswith("zip"):
        with zipfile.ZipFile(tmp_path / name, "w") as file:
            for path in sorted(root.rglob("*")):
                file.write(path, path.relative_to(root))
    else:
        kind = {"r": "", "z": "gz", "2": "bz2"}.get(name[-1], "xz") if not name.endswith("xz") else "xz"
        with tarfile.open(tmp_path / name, "w:gz" if name == "x.tgz" else f"w:{kind}") as tar:
            tar.add(root, arcname=".")
    direct, _ = quiet(f"folder:{root}", cache=cache)
    packed, told = quiet(f"folder:{tmp_path / name}", cache=cache)
    assert (
        packed.classes == ("a", "b")
        and packed.labels.tolist() == [0, 0, 1]
        and len(told) == 1
        and "void" in told[0]
    )
    assert packed.fingerprint == direct.fingerprint and packed.name == name
    assert unpack(tmp_path / name, cache) == unpack(tmp_path / name, cache)
    assert len(list((cache / "unpacked").iterdir())) == 1


def special(name, kind, target=""):
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


MALICIOUS = {
    "absolute": ("/{tmp}/escaped.png", "outside its folder"),
    "climbing": ("../escaped.png", "outside its folder"),
    "climbing inside": ("a/../../../escaped.png", "outside its folder"),
    "windows climbing": ("a\\..\\..\\escaped.png", "outside its folder"),
    "windows drive": ("C:\\escaped.png", "outside its folder"),
    "windows share": ("\\\\host\\share\\escaped.png", "outside its folder"),
    "symlink": (special("link", tarfile.SYMTYPE, "{tmp}"), "is a link"),
    "relative symlink": (special("link", tarfile.SYMTYPE, ".."), "is a link"),
    "hard link": (special("link", tarfile.LNKTYPE, "{tmp}/secret"), "is a link"),
    "fifo": (special("pipe", tarfile.FIFOTYPE), "is a device"),
    "device": (special("zero", tarfile.CHRTYPE), "is a device"),
}


@pytest.mark.parametrize("kind", MALICIOUS)
def test_malicious_tars_write_nothing(tmp_path, kind):
    info, message = MALICIOUS[kind]
    box = tmp_path / "box"
    box.mkdir()
    (box / "secret").write_text("secret")
    if isinstance(info, str):
        info = tarfile.TarInfo(info.replace("/{tmp}", str(box)))
    else:
        info = special(info.name, info.type, info.linkname.replace("{tmp}", str(box)))
    archive = tar_of(tmp_path / "evil.tar", ("a/1.png", png()), (info, b""), ("link/escaped.png", png()))
    before = set(tmp_path.rglob("*"))
    with pytest.raises(CfvaeError, match=message) as caught:
        open_dataset(f"folder:{archive}", 8, cache=box / "cache")
    assert "evil.tar: member '" in str(caught.value) and (
        info.name in str(caught.value) or "\\\\" in str(caught.value)
    )
    assert set(tmp_path.rglob("*")) - before == {box / "cache", box / "cache" / "unpacked"}


@pytest.mark.parametrize(
    "name, mode, message",
    [
        ("../escaped.png", stat.S_IFREG, "outside its folder"),
        ("/escaped.png", stat.S_IFREG, "outside its folder"),
        ("C:/escaped.png", stat.S_IFREG, "outside its folder"),
        ("..\\escaped.png", stat.S_IFREG, "outside its folder"),
        ("link", stat.S_IFLNK, "is a link"),
        ("pipe", stat.S_IFIFO, "is a device"),
    ],
)
def test_malicious_zips_write_nothing(tmp_path, name, mode, message):
    with zipfile.ZipFile(tmp_path / "evil.zip", "w") as file:
        file.writestr("a/1.png", png())
        info = zipfile.ZipInfo("x")
        info.filename, info.external_attr, info.create_system = name, (mode | 0o644) << 16, 3
        file.writestr(info, str(tmp_path))
    before = set(tmp_path.rglob("*"))
    with pytest.raises(CfvaeError, match=message):
        unpack(tmp_path / "evil.zip", tmp_path / "box" / "cache")
    assert set(tmp_path.rglob("*")) - before == {
        tmp_path / "box",
        tmp_path / "box" / "cache",
        tmp_path / "box" / "cache" / "unpacked",
    }


@pytest.mark.parametrize("kind", ["tar.xz", "tar.gz", "zip"])
def test_archive_bombs_are_stopped(tmp_path, monkeypatch, kind):
    monkeypatch.setattr(archives, "BOMB_FLOOR", 200_000)
    if kind == "zip":
        with zipfile.ZipFile(tmp_path / "bomb.zip", "w", zipfile.ZIP_DEFLATED) as file:
            file.writestr("a/1.bmp", bytes(5_000_000))
    else:
        tar_of(tmp_path / f"bomb.{kind}", ("a/1.bmp", bytes(5_000_000)), mode=f"w:{kind[4:]}")
    with pytest.raises(CfvaeError, match="member 'a/1.bmp'.*looks like a bomb"):
        unpack(tmp_path / f"bomb.{kind}", tmp_path / "cache")
    assert not list((tmp_path / "cache" / "unpacked").iterdir())


def test_a_bomb_of_empty_members(tmp_path, monkeypatch):
    monkeypatch.setattr(archives, "BOMB_FLOOR", 20_000)
    tar_of(tmp_path / "many.tar.xz", *((f"{i}.png", b"") for i in range(1000)), ("x.png", b"x"), mode="w:xz")
    with pytest.raises(CfvaeError, match="bomb"):
        unpack(tmp_path / "many.tar.xz", tmp_path / "cache")


def giant_header(kind, size):
    "A tar whose long name, or whose notes, are said to be so large; what follows is zeros."
    info = tarfile.TarInfo("././@LongLink")
    info.type, info.size = kind, size
    return info.tobuf(tarfile.GNU_FORMAT)


@pytest.mark.parametrize(
    "kind", [tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK]
)
@pytest.mark.parametrize("ending", ["tar", "tar.xz", "tar.gz", "tar.bz2"])
def test_a_giant_header_is_not_read(tmp_path, kind, ending):
    opener = {"tar": open, "tar.xz": lzma.open, "tar.gz": gzip.open, "tar.bz2": bz2.open}[ending]
    with opener(tmp_path / f"x.{ending}", "wb") as file:
        file.write(giant_header(kind, 16 * 2**20))
        for _ in range(16):
            file.write(bytes(2**20))
    tracemalloc.start()
    try:
        with pytest.raises(CfvaeError, match=f"x.{ending}.*before one of its members.*unpack it yourself"):
            unpack(tmp_path / f"x.{ending}", tmp_path / "cache")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 12e6  # of which 8 are the dictionary of xz
    assert not list((tmp_path / "cache" / "unpacked").iterdir())


def test_many_headers_before_one_member_count_together(tmp_path):
    with tarfile.open(tmp_path / "x.tar.xz", "w:xz", format=tarfile.PAX_FORMAT) as tar:
        for i in range(30):
            info = tarfile.TarInfo(f"{i}.txt")
            info.pax_headers = {"comment": "x" * 60_000}
            tar.addfile(info)
    assert len(list(unpack(tmp_path / "x.tar.xz", tmp_path / "cache").glob("*.txt"))) == 30
    notes = giant_header(tarfile.XGLTYPE, 60_000) + b"60000 comment=".ljust(59_999, b"x") + b"\n"
    notes += bytes(-len(notes) % 512)
    with lzma.open(tmp_path / "y.tar.xz", "wb") as file:
        file.write(notes * 30)
    with pytest.raises(CfvaeError, match="before one of its members"):
        unpack(tmp_path / "y.tar.xz", tmp_path / "cache")


def test_long_names_are_no_bombs(tmp_path, cache):
    for kind in (tarfile.PAX_FORMAT, tarfile.GNU_FORMAT):
        with tarfile.open(tmp_path / "x.tar.gz", "w:gz", format=kind) as tar:
            for letter in "ab":
                info = tarfile.TarInfo(f"{letter}/" + "long" * 30 + "/" + "é" * 60 + ".png")
                info.size = len(png())
                tar.addfile(info, io.BytesIO(png()))
        os.utime(tmp_path / "x.tar.gz", ns=(kind, 1))
        listing = list_folder(unpack(tmp_path / "x.tar.gz", cache))
        assert listing.classes == ("a", "b") and listing.names[0].endswith("é.png")


def test_the_stream_is_counted_where_members_claim_to_hold_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(archives, "BOMB_FLOOR", 200_000)
    info = tarfile.TarInfo("a.png")
    info.type = tarfile.GNUTYPE_SPARSE
    info.size = 5_000_000
    with lzma.open(tmp_path / "x.tar.xz", "wb") as file:
        file.write(info.tobuf(tarfile.GNU_FORMAT) + bytes(5_000_000) + bytes(10240))
    with pytest.raises(CfvaeError, match="bomb"):
        unpack(tmp_path / "x.tar.xz", tmp_path / "cache")


@pytest.mark.parametrize("names", [["a/0.png", "a/0.png"], ["a/0.png", 300 * "a" + ".png"], ["a", "a/0.png"]])
@pytest.mark.parametrize("ending", ["zip", "tar"])
def test_members_that_have_no_place_of_their_own(tmp_path, cache, names, ending):
    archive = tmp_path / f"x.{ending}"
    if ending == "zip":
        with zipfile.ZipFile(archive, "w") as file, warnings.catch_warnings(action="ignore"):
            for seed, name in enumerate(names):
                file.writestr(name, png(seed))
    else:
        tar_of(archive, *[(name, png(seed)) for seed, name in enumerate(names)])
    with pytest.raises(CfvaeError, match=f"member '{names[1]}' cannot be written") as caught:
        unpack(archive, cache)
    assert str(cache) not in str(caught.value)
    assert not any(cache.rglob("*.png"))


def test_a_zip_with_the_slashes_of_windows_has_folders(tmp_path, cache):
    names = ["cats\\", "cats\\a.png", "cats\\b.png", "dogs\\young\\a.png"]
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as file:
        for seed, name in enumerate(names):
            file.writestr(zipfile.ZipInfo(name), b"" if name.endswith("\\") else png(seed))
    listing = list_folder(unpack(tmp_path / "x.zip", cache))
    assert listing.names == ("cats/a.png", "cats/b.png", "dogs/young/a.png")
    assert listing.classes == ("cats", "dogs")


def test_an_encrypted_zip(tmp_path):
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as file:
        file.writestr("a.png", png())
    data = bytearray((tmp_path / "x.zip").read_bytes())
    data[6] |= 1
    data[data.index(b"PK\x01\x02") + 8] |= 1
    (tmp_path / "x.zip").write_bytes(data)
    with pytest.raises(CfvaeError, match="'a.png' is encrypted"):
        unpack(tmp_path / "x.zip", tmp_path / "cache")


def test_a_zip_that_is_packed_in_an_unknown_way(tmp_path, cache):
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as file:
        file.writestr("a.png", png())
    data = bytearray((tmp_path / "x.zip").read_bytes())
    data[8] = data[data.index(b"PK\x01\x02") + 10] = 9  # Deflate64
    (tmp_path / "x.zip").write_bytes(data)
    with pytest.raises(CfvaeError, match=r"x\.zip is packed in a way .*unpack it yourself"):
        unpack(tmp_path / "x.zip", cache)


@pytest.mark.parametrize("name", ["x.tar", "x.tar.gz", "x.tar.xz", "x.zip"])
def test_damaged_archives(tmp_path, cache, name):
    content = [(f"{c}/{i}.png", random.Random(i).randbytes(3000)) for c in "ab" for i in range(4)]
    if name == "x.zip":
        with zipfile.ZipFile(tmp_path / name, "w") as file:
            for member, data in content:
                file.writestr(member, data)
    else:
        tar_of(tmp_path / name, *content, mode={"x.tar": "w", "x.tar.gz": "w:gz", "x.tar.xz": "w:xz"}[name])
    whole = (tmp_path / name).read_bytes()
    flipped = bytearray(whole)
    at = whole.index(b"a/3.png") if name == "x.tar" else len(whole) // 2
    flipped[at + 3] ^= 0x55
    for data in (b"", b"rubbish" * 100, whole[: len(whole) // 2], bytes(flipped)):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(CfvaeError, match=f"{name}.*damaged"):
            unpack(tmp_path / name, cache)
    assert not list((cache / "unpacked").iterdir())


@pytest.mark.parametrize("mode", ["w", "w:gz"])
def test_a_tar_that_ends_between_two_members(tmp_path, cache, mode):
    whole = tar_of(tmp_path / "whole.tar", *[(f"{name}/1.png", png()) for name in "abc"])
    with tarfile.open(whole) as tar:
        end = tar.getmembers()[-1].offset
    archive = tmp_path / f"x.tar{mode[1:].replace(':', '.')}"
    archive.write_bytes(whole.read_bytes()[:end])
    if mode == "w:gz":
        archive.write_bytes(gzip.compress(archive.read_bytes()))
    with pytest.raises(CfvaeError, match=f"{archive.name} is cut off: it has no end mark"):
        unpack(archive, cache)
    assert not list((cache / "unpacked").iterdir())


def test_another_archive_of_the_same_size_and_time_is_unpacked(tmp_path, cache):
    for name in ("x.tar", "y.tar"):
        os.utime(tar_of(tmp_path / name, (f"{name}/1.png", png())), (1, 1))
    unpack(tmp_path / "x.tar", cache)
    os.replace(tmp_path / "y.tar", tmp_path / "x.tar")
    assert (unpack(tmp_path / "x.tar", cache) / "y.tar" / "1.png").is_file()


def test_files_that_are_no_archives(tmp_path, cache):
    for name in ("x.rar", "x.7z", "x.png", "noending"):
        (tmp_path / name).write_bytes(b"x")
        with pytest.raises(CfvaeError, match="neither a folder nor one of .tar, .tar.xz"):
            open_dataset(f"folder:{tmp_path / name}", 8, cache=cache)


def test_a_new_version_of_an_archive_replaces_the_old(tmp_path, cache):
    archive = tar_of(tmp_path / "x.tar", ("a/1.png", png()), ("b/1.png", png(1)))
    tar_of(tmp_path / "y.tar", ("a/1.png", png()))
    first, other = unpack(archive, cache), unpack(tmp_path / "y.tar", cache)
    tar_of(archive, ("a/1.png", png()), ("c/1.png", png(2)))
    os.utime(archive, ns=(1, 1))
    second = unpack(archive, cache)
    assert second != first and sorted((cache / "unpacked").iterdir()) == sorted([second, other])
    assert list_folder(second).classes == ("a", "c")


@pytest.mark.parametrize("gone", [["a/1.png"], ["a/1.png", "a/2.png", "b/1.png"], [archives.COUNT_FILE]])
def test_what_a_clean_up_has_taken_is_unpacked_again(tmp_path, cache, gone):
    names = ["a/1.png", "a/2.png", "b/1.png"]
    archive = tar_of(tmp_path / "x.tar", *[(name, png(seed)) for seed, name in enumerate(names)])
    for _ in range(2):
        folder = unpack(archive, cache)
        assert list_folder(folder).names == tuple(names)
        for name in gone:
            (folder / name).unlink()


def test_a_full_disk_while_unpacking(tmp_path, cache, monkeypatch):
    archive = tar_of(tmp_path / "x.tar", ("a/1.bmp", bytes(5000)))
    fail_writes(monkeypatch)
    with pytest.raises(CfvaeError, match="No space left on device"):
        unpack(archive, cache)
    assert not list((cache / "unpacked").iterdir())


def test_every_byte_that_leaves_a_tar_is_counted_once(tmp_path):
    with tarfile.open(tmp_path / "images.tar", "w") as tar:
        tar.addfile(tarfile.TarInfo("empty"))
    with archives._TarStream(tmp_path / "images.tar") as stream:
        stream.header_left = None
        stream.read(100)
        stream.seek(50)  # back: nothing more has left it
        assert stream.passed == 100
        stream.seek(300)
        assert stream.passed == 350 and stream.tell() == 300
