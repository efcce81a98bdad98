"""Downloads from a server that fails: what is wrong is refused, and never gets the file's name."""

from __future__ import annotations

from dataclasses import replace

import pytest
from huggingface_hub import constants
from support.downloading import (
    BITS,
    CONTENT,
    REGRESSION,
    cache_folder,
    count_naps,
    files_in,
    left,
    published,
    refused,
    sum_of,
)
from support.file_server import serve, turned

from hf_perturb.checkpoints.downloads import download

server = pytest.fixture(serve)
naps = pytest.fixture(count_naps)
folder = pytest.fixture(cache_folder)


@pytest.mark.parametrize("status", [401, 403, 404, 500, 503])
def test_an_error_names_the_address_and_leaves_no_file(server, folder, status):
    entry = published(server)
    server.fail(status=status, times=50)
    message = refused(entry)
    assert entry.url in message
    assert str(status) in message
    assert "\n" not in message
    assert not (folder / "tiny.pt").exists()
    server.faults.clear()
    assert download(entry).read_bytes() == CONTENT


def test_a_missing_regression_is_an_error_that_names_it(server, folder):
    entry = replace(published(server), regression_url=server.url("/regression/tiny-contact-regression.pt"))
    message = refused(entry)
    assert entry.regression_url in message
    assert "404" in message
    assert not [name for name in files_in(folder) if name.endswith(".pt")]


def test_what_came_before_an_error_is_kept(server, folder):
    left(folder, CONTENT[:3000])
    server.fail(status=503, times=50)
    assert "503" in refused(published(server))
    assert (folder / "tiny.pt.incomplete").read_bytes() == CONTENT[:3000]
    server.faults.clear()
    assert download(published(server)).read_bytes() == CONTENT
    assert server.ranges_asked()[-1] == "bytes=3000-"


def test_a_server_that_asks_to_wait_is_waited_for(server, folder, naps):
    server.fail(status=429, headers={"Retry-After": "7"}, times=2)
    assert download(published(server)).read_bytes() == CONTENT
    assert len(server.requests) == 3
    assert sum(naps) >= 14


def test_no_server_at_all(server, folder):
    entry = published(server)
    server.shutdown()
    server.server_close()
    assert entry.url in refused(entry)
    assert not (folder / "tiny.pt").exists()


def test_offline_nothing_is_asked(server, folder, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    message = refused(published(server))
    assert "offline" in message
    assert server.requests == []
    assert not (folder / "tiny.pt").exists()


def test_an_answer_that_is_too_short_is_refused(server, folder):
    left(folder, CONTENT[:1000])
    server.fail(short=500, times=50)
    entry = published(server, checksum=sum_of(CONTENT))
    assert entry.url in refused(entry)
    assert files_in(folder) == ["tiny.pt.incomplete"]
    server.faults.clear()
    assert download(entry).read_bytes() == CONTENT


def test_another_checksum_is_refused_and_both_are_named(server, folder):
    entry = published(server, checksum=sum_of(REGRESSION))
    message = refused(entry)
    assert sum_of(CONTENT) in message
    assert sum_of(REGRESSION) in message
    assert entry.url in message
    assert files_in(folder) == ["tiny.pt.incomplete"]
    refused(entry)  # again: the file is still the wrong one
    assert files_in(folder) == ["tiny.pt.incomplete"]


@pytest.mark.parametrize(
    ("checksum", "said"), [(sum_of(CONTENT), "its sha256 is"), (None, "the sum of")], ids=["checksum", "none"]
)
def test_a_damaged_file_that_is_here_is_refused_and_kept(server, folder, checksum, said):
    entry = published(server, checksum=checksum)
    damaged = turned(CONTENT, BITS + 100)
    download(entry).write_bytes(damaged)
    message = refused(entry)
    assert said in message
    assert str(folder / "tiny.pt") in message
    assert (folder / "tiny.pt").read_bytes() == damaged
    assert len(server.requests) == 1


@pytest.mark.parametrize("place", [BITS, BITS + 2500, BITS + 4999])
def test_a_bit_turned_on_the_way_is_found_without_a_checksum(server, folder, place):
    server.fail(flip=place)
    message = refused(published(server))
    assert "the sum of" in message
    assert files_in(folder) == ["tiny.pt.incomplete"]


def zip_places(content: bytes) -> dict[str, int]:
    """Return a byte of every part of a zip around its content."""
    directory, end = content.index(b"PK\1\2"), content.rindex(b"PK\5\6")
    return {
        "name in a local header": content.index(b"PK\3\4") + 30,
        "length of that name": content.index(b"PK\3\4") + 27,
        "flags in the directory": directory + 8,
        "method in the directory": directory + 10,
        "name in the directory": directory + 46,
        "signature of the directory": directory,
        "signature of the end": end,
    }


@pytest.mark.parametrize("part", zip_places(CONTENT))
def test_a_bit_turned_in_the_frame_of_a_zip_is_found(server, folder, part):
    server.fail(flip=zip_places(CONTENT)[part])
    assert "delete it and run the same command again" in refused(published(server))
    assert files_in(folder) == ["tiny.pt.incomplete"]


@pytest.mark.parametrize(
    "content", [b"<!DOCTYPE html><title>Log in</title>", CONTENT[:4000], b""], ids=["page", "part", "nothing"]
)
def test_what_torch_has_not_saved_is_refused_without_a_checksum(server, folder, content):
    entry = published(server, content)
    assert entry.url in refused(entry)
    assert not (folder / "tiny.pt").exists()


def test_a_cache_that_cannot_be_made_is_an_error_of_ours(server, folder, tmp_path):
    (tmp_path / "cache").write_text("a file, where the folder should be")
    assert str(tmp_path / "cache") in refused(published(server))
    assert server.requests == []


def test_a_rest_that_cannot_be_opened_is_an_error_of_ours(server, folder, tmp_path):
    left(folder, b"").unlink()
    (folder / "tiny.pt.incomplete").symlink_to(tmp_path / "gone" / "file")
    assert "tiny.pt" in refused(published(server))
