"""Downloads: where files go, how they are resumed, and what is sent."""

from __future__ import annotations

import os
import re
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from support.downloading import (
    BITS,
    CONTENT,
    LEGACY,
    PIECE,
    REGRESSION,
    cache_folder,
    count_naps,
    files_in,
    left,
    published,
    refused,
    saved,
    sum_of,
)
from support.file_server import serve, turned

import hf_perturb
from hf_perturb.checkpoints import downloads
from hf_perturb.checkpoints.catalog import CATALOG
from hf_perturb.checkpoints.downloads import download

server = pytest.fixture(serve)
naps = pytest.fixture(count_naps)
folder = pytest.fixture(cache_folder)


def test_weights_and_regression_go_where_torch_keeps_them(server, folder):
    entry = replace(
        CATALOG["esm2_t6_8M_UR50D"],
        url=server.publish("/models/tiny.pt", CONTENT),
        regression_url=server.publish("/regression/tiny-contact-regression.pt", REGRESSION),
    )
    assert download(entry) == folder / "tiny.pt" == Path(torch.hub.get_dir()) / "checkpoints" / "tiny.pt"
    assert files_in(folder) == ["tiny-contact-regression.pt", "tiny.pt"]
    assert (folder / "tiny.pt").read_bytes() == CONTENT
    assert (folder / "tiny-contact-regression.pt").read_bytes() == REGRESSION
    assert sorted(asked.path for asked in server.requests) == [
        "/models/tiny.pt",
        "/regression/tiny-contact-regression.pt",
    ]
    assert server.ranges_asked() == [None, None]


def test_the_name_of_a_file_is_without_the_query(server, folder):
    assert download(published(server, checksum=sum_of(CONTENT))) == folder / "tiny.pt"
    assert files_in(folder) == ["tiny.pt"]
    assert server.requests[0].path == "/files/tiny.pt?download=1"


@pytest.mark.parametrize("content", [CONTENT, LEGACY], ids=["zip", "legacy"])
def test_a_file_without_a_checksum_comes_as_it_is(server, folder, content):
    assert download(published(server, content)).read_bytes() == content


@pytest.mark.parametrize("checksum", [sum_of(CONTENT), None], ids=["checksum", "none"])
def test_a_file_that_is_here_is_not_fetched_again(server, folder, checksum):
    entry = published(server, checksum=checksum)
    path = download(entry)
    before = path.stat()
    assert download(entry) == path
    assert (path.stat().st_mtime_ns, path.stat().st_ino) == (before.st_mtime_ns, before.st_ino)
    assert len(server.requests) == 1


def test_torch_finds_what_was_downloaded_here(server, folder):
    entry = published(server)
    download(entry)
    data = torch.hub.load_state_dict_from_url(entry.url, progress=False, weights_only=True)
    assert len(data["model"]["tensor"]) == 5000
    assert len(server.requests) == 1


def test_what_torch_downloaded_is_found(server, folder):
    entry = published(server, checksum=sum_of(CONTENT))
    torch.hub.load_state_dict_from_url(entry.url, progress=False, weights_only=True)
    assert download(entry).read_bytes() == CONTENT
    assert len(server.requests) == 1


def test_nothing_is_written_beside_a_file_that_is_here(server, folder):
    """A folder that many read may be one that they cannot write."""
    entry = published(server)
    left(folder, b"").rename(folder / "tiny.pt")
    (folder / "tiny.pt").write_bytes(CONTENT)
    os.utime(folder, ns=(0, 0))
    assert download(entry) == folder / "tiny.pt"
    assert folder.stat().st_mtime_ns == 0
    assert [file.name for file in folder.iterdir()] == ["tiny.pt"]


def test_a_cut_connection_is_resumed_within_one_call(server, folder, naps):
    server.fail(cut=2500)
    assert download(published(server)).read_bytes() == CONTENT
    assert server.ranges_asked() == [None, "bytes=2000-"]
    assert any(naps)  # it waits before it asks again
    assert files_in(folder) == ["tiny.pt"]


def test_a_connection_may_be_cut_any_number_of_times_while_something_comes(server, folder):
    content = saved() + b"\0" * 9000
    server.fail(cut=PIECE, times=12)
    assert download(published(server, content, sum_of(content))).read_bytes() == content
    assert server.ranges_asked() == [None, *(f"bytes={PIECE * n}-" for n in range(1, 13))]


def test_a_server_that_sends_nothing_more_is_given_up_and_what_came_is_kept(server, folder):
    entry = published(server, checksum=sum_of(CONTENT))
    server.fail(cut=3000)
    server.fail(cut=0, times=50)
    message = refused(entry)
    assert entry.url in message
    assert "3,000 bytes are kept" in message
    assert files_in(folder) == ["tiny.pt.incomplete"]
    assert (folder / "tiny.pt.incomplete").read_bytes() == CONTENT[:3000]
    assert 2 < len(server.requests) < 10
    server.faults.clear()
    server.requests.clear()
    assert download(entry).read_bytes() == CONTENT
    assert server.ranges_asked() == ["bytes=3000-"]
    assert files_in(folder) == ["tiny.pt"]


@pytest.mark.parametrize("size", [1, 1234, len(CONTENT) - 1])
def test_an_interrupted_download_is_resumed_by_the_next_call(server, folder, size):
    left(folder, CONTENT[:size])
    assert download(published(server)).read_bytes() == CONTENT
    assert server.ranges_asked() == [f"bytes={size}-"]
    assert files_in(folder) == ["tiny.pt"]


def test_an_empty_rest_is_begun_anew(server, folder):
    left(folder, b"")
    assert download(published(server)).read_bytes() == CONTENT
    assert server.ranges_asked() == [None]


@pytest.mark.parametrize("checksum", [sum_of(CONTENT), None], ids=["checksum", "none"])
def test_a_complete_rest_is_checked_and_taken(server, folder, checksum):
    left(folder, CONTENT)
    assert download(published(server, checksum=checksum)).read_bytes() == CONTENT
    assert server.ranges_asked() == [f"bytes={len(CONTENT)}-"]
    assert files_in(folder) == ["tiny.pt"]


@pytest.mark.parametrize("checksum", [sum_of(CONTENT), None], ids=["checksum", "none"])
@pytest.mark.parametrize("size", [2345, len(CONTENT)], ids=["part", "whole"])
def test_a_damaged_rest_is_found_out(server, folder, checksum, size):
    partial = left(folder, turned(CONTENT, BITS + 7)[:size])
    message = refused(published(server, checksum=checksum))
    assert "delete it and run the same command again" in message
    assert str(partial) in message
    assert files_in(folder) == ["tiny.pt.incomplete"]
    partial.unlink()  # as the message says
    assert download(published(server, checksum=checksum)).read_bytes() == CONTENT


@pytest.mark.parametrize("content", [CONTENT, LEGACY], ids=["zip", "legacy"])
@pytest.mark.parametrize("summed", [True, False], ids=["checksum", "none"])
def test_a_rest_that_is_longer_than_the_file_is_not_taken(server, folder, content, summed):
    left(folder, content + b"more")
    entry = published(server, content, sum_of(content) if summed else None)
    try:
        assert download(entry).read_bytes() == content
    except hf_perturb.CheckpointError:
        assert files_in(folder) == ["tiny.pt.incomplete"]


def test_a_server_that_knows_no_ranges_is_asked_for_everything(server, folder):
    server.ranges = False
    left(folder, b"something else" * 50)
    assert download(published(server, checksum=sum_of(CONTENT))).read_bytes() == CONTENT
    assert server.ranges_asked() == ["bytes=700-"]


def test_a_server_that_knows_no_ranges_begins_anew_when_it_is_cut(server, folder):
    server.ranges = False
    server.fail(cut=2500, times=2)
    assert download(published(server)).read_bytes() == CONTENT
    assert server.ranges_asked() == [None, "bytes=2000-", "bytes=2000-"]


def test_nothing_secret_is_sent(server, folder, monkeypatch, tmp_path):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    (tmp_path / ".netrc").write_text("machine 127.0.0.1 login someone password secret\n")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / ".netrc"))
    server.fail(cut=1500)
    download(published(server))
    assert len(server.requests) == 2
    for asked in server.requests:
        assert not asked.headers.keys() & {"authorization", "cookie", "proxy-authorization"}
        assert "secret" not in str(asked)


def test_a_packed_answer_is_not_asked_for(server, folder):
    """Unpacked on the way, it would not have the size that the server announces."""
    download(published(server))
    accepted = server.requests[0].headers.get("accept-encoding", "identity")
    assert not re.search(r"gzip|deflate|br|zstd|\*", accepted)


def test_a_redirect_is_followed(server, folder):
    """Zenodo has moved the addresses that sequence-models has."""
    left(folder, CONTENT[:1000])
    server.publish("/moved/elsewhere.pt", CONTENT)
    server.redirects["/record/tiny.pt"] = "/moved/elsewhere.pt"
    entry = replace(published(server), url=server.url("/record/tiny.pt"))
    assert download(entry) == folder / "tiny.pt"
    assert (folder / "tiny.pt").read_bytes() == CONTENT
    assert [(asked.path, asked.range) for asked in server.requests] == [
        ("/record/tiny.pt", "bytes=1000-"),
        ("/moved/elsewhere.pt", "bytes=1000-"),
    ]


@pytest.mark.parametrize("given", [{}, {"XDG_CACHE_HOME": "~/x"}, {"TORCH_HOME": "/t"}, {"TORCH_HOME": ""}], ids=str)
def test_the_folder_is_that_of_torch_without_importing_it(given, monkeypatch):
    for name in ("TORCH_HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    theirs = Path(torch.hub.get_dir(), "checkpoints")
    with monkeypatch.context() as patch:
        patch.delitem(sys.modules, "torch")
        assert downloads._folder() == theirs
