"""An archive is unpacked once, into a folder beside it, and nothing is written outside that folder."""

from __future__ import annotations

import io
import tarfile

import pytest

from whisper_peft.data.archives import unpack
from whisper_peft.data.sources import load_source
from whisper_peft.errors import UserError

TSV = "client_id\tpath\tsentence\tlocale\n" + "".join(f"s{i}\t{i}.mp3\tवाक्य {i}\tte\n" for i in range(3))


def pack(path, members: dict[str, bytes | str], mode: str = "w:gz"):
    """Write an archive; a member whose content is a text becomes a symbolic link to that text."""
    with tarfile.open(path, mode) as archive:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            if isinstance(content, str):
                member.type, member.linkname = tarfile.SYMTYPE, content
                archive.addfile(member)
            else:
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
    return path


def release(path, **more):
    clips = {f"cv-25/te/clips/{i}.mp3": b"mp3" for i in range(3)}
    return pack(path, {"cv-25/te/train.tsv": TSV.encode(), **clips, **more})


@pytest.mark.parametrize("name", ["cv.tar.gz", "cv.tgz", "cv.tar"])
def test_a_downloaded_archive_gives_its_rows_and_is_unpacked_once(tmp_path, name):
    path = release(tmp_path / name)
    rows = load_source(f"{path}:train")
    assert [row.text for row in rows] == [f"वाक्य {i}" for i in range(3)]
    assert [row.audio for row in rows] == [str(tmp_path / f"cv.unpacked/cv-25/te/clips/{i}.mp3") for i in range(3)]
    inside = {file: file.stat().st_mtime_ns for file in (tmp_path / "cv.unpacked").rglob("*")}
    assert load_source(f"{path}:train") == rows
    assert inside == {file: file.stat().st_mtime_ns for file in (tmp_path / "cv.unpacked").rglob("*")}


@pytest.mark.parametrize(
    "name", ["../outside.mp3", "/outside.mp3", "te/../../outside.mp3", "..\\outside.mp3", "C:/x.mp3"]
)
def test_a_member_that_leads_out_of_the_folder_is_refused(tmp_path, name):
    folder = tmp_path / "inside"
    folder.mkdir()
    with pytest.raises(UserError, match="leads out of the folder"):
        unpack(release(folder / "cv.tar.gz", **{name: b"x"}))
    assert [file.name for file in tmp_path.rglob("*") if file.is_file()] == ["cv.tar.gz"]


def test_links_in_an_archive_are_skipped(tmp_path):
    (tmp_path / "secret").write_text("secret")
    folder = unpack(release(tmp_path / "cv.tar.gz", **{"cv-25/te/clips/link.mp3": "../../../../secret"}))
    assert len(list((folder / "cv-25/te/clips").iterdir())) == 3
    # A file whose folder would be a link stays inside, too.
    folder = unpack(pack(tmp_path / "b.tar.gz", {"d": str(tmp_path / "elsewhere"), "d/a.txt": b"a"}))
    assert (folder / "d/a.txt").read_bytes() == b"a" and not (tmp_path / "elsewhere").exists()


def test_a_truncated_archive_and_a_file_that_is_no_archive_are_refused(tmp_path):
    path = release(tmp_path / "cv.tar.gz", more=bytes(range(256)) * 4000)
    whole = path.read_bytes()
    for page in (whole[:-200], whole[:-8] + b"checksum", b"no archive"):
        path.write_bytes(page)
        with pytest.raises(UserError, match="no archive, or broken off") as refused:
            unpack(path)
        assert "\n" not in str(refused.value)
    assert [file.name for file in tmp_path.iterdir()] == ["cv.tar.gz"]


def test_an_archive_that_holds_a_name_twice_is_refused(tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        for _ in range(2):
            archive.addfile(tarfile.TarInfo("same"), io.BytesIO(b""))
    with pytest.raises(UserError, match="holds same twice"):
        unpack(tmp_path / "a.tar")


def test_a_folder_that_was_not_unpacked_from_this_archive_is_kept(tmp_path):
    path = release(tmp_path / "cv.tar.gz")
    (tmp_path / "cv.unpacked").mkdir()
    with pytest.raises(UserError, match="not what was unpacked"):
        unpack(path)
    (tmp_path / "cv.unpacked").rmdir()
    unpack(path)
    release(path, more=b"newer")
    with pytest.raises(UserError, match="not what was unpacked"):
        unpack(path)


def test_an_archive_that_does_not_fit_on_the_disk_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("", (), {"free": 10}))
    with pytest.raises(UserError, match="no room on this disk"):
        unpack(release(tmp_path / "cv.tar.gz"))
    assert [file.name for file in tmp_path.iterdir()] == ["cv.tar.gz"]
