import hashlib
import logging
import re

import pytest

from amc_lightning.data.files import RemoteFile, fetch, is_official, locate
from amc_lightning.errors import UserError

CONTENT = b"the official content" * 1000
MD5 = hashlib.md5(CONTENT).hexdigest()


def remote(*urls, name="a.bin"):
    return RemoteFile(name, urls, MD5)


def get(root, *files):
    return fetch(root, files, dataset="Toy", folders=("Toy/raw",), licence="Toy is for play only.")


def test_download_is_checked_saved_and_announced(server, tmp_path, caplog):
    (server.root / "a.bin").write_bytes(CONTENT)
    root = tmp_path / "new" / "folder"
    with caplog.at_level(logging.WARNING):
        (found,) = get(root, remote(server.url + "a.bin"))
    assert found.path == root / "a.bin"
    assert found.path.read_bytes() == CONTENT
    assert found.just_verified
    assert [path.name for path in root.iterdir()] == ["a.bin"]  # nothing half-written beside it
    assert [record.getMessage() for record in caplog.records] == [f"downloading Toy into {root}. Toy is for play only."]


def test_a_second_time_nothing_is_asked_for(server, tmp_path, caplog):
    (server.root / "a.bin").write_bytes(CONTENT)
    get(tmp_path / "root", remote(server.url + "a.bin"))
    caplog.clear()
    (found,) = get(tmp_path / "root", remote(server.url + "a.bin"))
    assert server.paths == ["/a.bin"]
    assert not found.just_verified
    assert is_official(found, CONTENT, remote())
    assert not is_official(found, CONTENT + b"x", remote())
    assert not caplog.records


def test_mirrors_are_tried_in_order_once_each(server, nowhere, tmp_path):
    (server.root / "wrong").write_bytes(CONTENT[:-1])
    (server.root / "good").write_bytes(CONTENT)
    urls = (nowhere + "a", server.url + "absent", server.url + "wrong", server.url + "good", server.url + "never")
    (found,) = get(tmp_path / "root", remote(*urls))
    assert found.path.read_bytes() == CONTENT
    assert server.paths == ["/absent", "/wrong", "/good"]


def test_a_wrong_checksum_leaves_nothing_behind(server, tmp_path):
    (server.root / "a.bin").write_bytes(b"not it")
    with pytest.raises(UserError, match=r"downloading failed \(http://127\.0\.0\.1:\d+/a\.bin: wrong checksum\)"):
        get(tmp_path / "root", remote(server.url + "a.bin"))
    assert list((tmp_path / "root").iterdir()) == []


def test_offline_names_every_missing_file_and_where_it_goes(nowhere, server, tmp_path):
    (tmp_path / "b.bin").write_bytes(b"here already")
    files = (remote(nowhere + "a", server.url + "a"), remote(nowhere + "b", name="b.bin"), remote("u", name="c.bin"))
    root = re.escape(str(tmp_path))
    with pytest.raises(
        UserError,
        match=rf"^dataset\.root: '{root}' lacks a\.bin, c\.bin, and downloading failed \({nowhere}a: ConnectionError; "
        rf"{server.url}a: 404 Client Error: File not found\); get {nowhere}a or {server.url}a, u\. Put the files into "
        rf"{root}, or set dataset\.root to the folder that holds them\.$",
    ):
        get(tmp_path, *files)


def test_a_root_that_cannot_be_written_says_so(server, tmp_path):
    (server.root / "a.bin").write_bytes(CONTENT)
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(UserError, match=r"lacks a\.bin, and downloading failed \(.*(Not a directory|File exists)\)"):
        get(tmp_path / "file", remote(server.url + "a.bin"))


@pytest.mark.parametrize("place", ["a.bin", "Toy/raw/a.bin", "other.bin", "Toy/raw/other.bin"])
def test_locate_looks_into_usual_folders_and_names(place, tmp_path):
    (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / place).write_bytes(b"")
    file = RemoteFile("a.bin", (), MD5, aliases=("other.bin",))
    assert locate(tmp_path, file, ("Toy/raw",)).path == tmp_path / place
    assert locate(tmp_path / "elsewhere", file, ("Toy/raw",)) is None
