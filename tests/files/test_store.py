"Tests of cfvae.files.store: what killed processes left in the cache goes, and nothing else."

import os
import time

from cfvae.files.store import new_folder

LONG_AGO = time.time() - 25 * 3600


def make(path, age=LONG_AGO, file="images.npy", file_age=LONG_AGO):
    path.mkdir(parents=True)
    (path / file).parent.mkdir(parents=True, exist_ok=True)
    (path / file).write_text("half")
    os.utime(path / file, (file_age, file_age))
    os.utime(path, (age, age))
    return path


def test_abandoned_folders_are_removed(tmp_path):
    abandoned = make(tmp_path / ".partial-photos-64-0123456789abcdef-0123abcd")
    begun_lately = make(tmp_path / ".partial-photos-64-0123abce", age=time.time())
    still_growing = make(tmp_path / ".partial-photos-64-0123abcf", file_age=time.time())
    extracting = make(tmp_path / ".partial-tar-0123abcf", file="a/b.png", file_age=time.time())
    others = make(tmp_path / ".partial-mine"), make(tmp_path / "photos-64-0123abcd")
    with new_folder(tmp_path / "new") as folder:
        (folder / "file").write_text("whole")
    assert not abandoned.exists()
    for kept in (begun_lately, still_growing, extracting, *others):
        assert kept.exists()
    assert (tmp_path / "new" / "file").read_text() == "whole"
