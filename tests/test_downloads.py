"""Downloads from a server that fails in every way: what comes in the end is right, or is refused and never there."""

from __future__ import annotations

import hashlib
import io
import os
import re
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from file_server import FileServer, serve, turned
from huggingface_hub import close_session, constants
from parity.original_files import original_data, write_original
from parity.originals import Pair, small_pair
from transformers import AutoModelForMaskedLM

import hf_perturb
from hf_perturb.checkpoints.catalog import CATALOG, Entry
from hf_perturb.checkpoints.downloads import download
from hf_perturb.cli import main

server = pytest.fixture(serve)
PIECE = 1000  # bytes that the client takes at a time


def saved(seed: int = 0, **options) -> bytes:
    """Return a file of torch with 5,000 random bytes in it."""
    file = io.BytesIO()
    bits = torch.randint(0, 256, (5000,), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))
    torch.save({"model": {"tensor": bits}}, file, **options)
    return file.getvalue()


CONTENT = saved()
LEGACY = saved(_use_new_zipfile_serialization=False)
REGRESSION = saved(1)
BITS = CONTENT.index(torch.load(io.BytesIO(CONTENT), weights_only=True)["model"]["tensor"].numpy().tobytes())


def sum_of(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def online(monkeypatch, cache: Path) -> None:
    """Let the client reach this machine, and keep its files, and torch's, in a folder of the test."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", PIECE)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("TORCH_HOME", str(cache))


@pytest.fixture
def naps(monkeypatch) -> list[float]:
    """Return how long the client would have slept between attempts."""
    seconds: list[float] = []
    monkeypatch.setattr(time, "sleep", seconds.append)
    return seconds


@pytest.fixture
def folder(monkeypatch, tmp_path, naps):
    """Return the folder that downloads come to."""
    close_session()  # it was opened under another environment, perhaps
    online(monkeypatch, tmp_path / "cache")
    yield tmp_path / "cache" / "hub" / "checkpoints"
    close_session()


def published(server: FileServer, content: bytes = CONTENT, checksum: str | None = None) -> Entry:
    """Publish a file, and return an entry with its address and no contact regression."""
    url = server.publish("/files/tiny.pt?download=1", content)
    return replace(CATALOG["carp_600k"], url=url, sha256=checksum)


def files_in(folder: Path) -> list[str]:
    """List a folder; locks may stay."""
    return sorted(file.name for file in folder.glob("*") if file.suffix != ".lock")


def left(folder: Path, content: bytes) -> Path:
    """Leave what an interrupted download leaves."""
    folder.mkdir(parents=True)
    partial = folder / "tiny.pt.incomplete"
    partial.write_bytes(content)
    return partial


def refused(entry: Entry) -> str:
    """Return how a download is refused."""
    with pytest.raises(hf_perturb.CheckpointError) as caught:
        download(entry)
    return str(caught.value)


# ---------------------------------------------------------------------------------------------------- where files go


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


# ------------------------------------------------------------------------------------------------ interrupted, resumed


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


# ---------------------------------------------------------------------------------------------------------- refusals


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


# ---------------------------------------------------------------------------------------------------- what is sent


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


# ------------------------------------------------------------------------------------------------- in another process

PROGRAM = """\
import sys
from dataclasses import replace
from hf_perturb.checkpoints.catalog import CATALOG
from hf_perturb.checkpoints.downloads import download

print("ready", flush=True)
sys.stdin.readline()
url, sha256 = sys.argv[1:]
print(download(replace(CATALOG["carp_600k"], url=url, sha256=sha256)))
"""


def start(entry: Entry, cache: Path, stderr: int = subprocess.PIPE) -> subprocess.Popen:
    """Start a process that downloads, and waits for a line before it does."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("HF_HUB", "TQDM"))}
    environment |= {"TORCH_HOME": str(cache), "NO_PROXY": "127.0.0.1", "OMP_NUM_THREADS": "1"}
    words = [sys.executable, "-c", PROGRAM, entry.url, entry.sha256]
    pipe = subprocess.PIPE
    return subprocess.Popen(words, stdin=pipe, stdout=pipe, stderr=stderr, env=environment, text=True)


def test_two_processes_at_once_end_with_a_right_file(server, tmp_path):
    entry = published(server, checksum=sum_of(CONTENT))
    server.seconds = 1.0
    with start(entry, tmp_path / "cache") as one, start(entry, tmp_path / "cache") as other:
        processes = (one, other)
        for process in processes:
            assert process.stdout.readline() == "ready\n"
        for process in processes:
            process.stdin.write("go\n")
            process.stdin.flush()
        outputs = [process.communicate(timeout=60) for process in processes]
    folder = tmp_path / "cache" / "hub" / "checkpoints"
    assert [process.returncode for process in processes] == [0, 0], outputs
    assert [out.strip() for out, _ in outputs] == [str(folder / "tiny.pt")] * 2
    assert (folder / "tiny.pt").read_bytes() == CONTENT
    assert files_in(folder) == ["tiny.pt"]


def set_width(terminal: int, columns: int) -> None:
    """Give a terminal a width: one without has no room for a progress bar."""
    import fcntl
    import struct
    import termios

    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))


@pytest.mark.skipif(sys.platform == "win32", reason="needs a terminal to write to")
def test_progress_is_shown_on_a_terminal_and_nowhere_else(server, tmp_path):
    entry = published(server, checksum=sum_of(CONTENT))
    screen, terminal = os.openpty()
    set_width(terminal, 100)
    with start(entry, tmp_path / "shown", terminal) as one, start(entry, tmp_path / "quiet") as other:
        os.close(terminal)
        processes = (one, other)
        _, silent = [process.communicate("go\n", timeout=60)[1] for process in processes]
    shown = os.read(screen, 1 << 16).decode()
    os.close(screen)
    assert [process.returncode for process in processes] == [0, 0], silent
    assert silent.count("\n") <= 1
    assert "%" not in silent
    assert re.search(r"tiny\.pt: +100%", shown), shown


# ---------------------------------------------------------------------------------------------------------- conversion


def in_catalogue(server: FileServer, monkeypatch, tmp_path: Path, name: str, pair: Pair, **changes) -> Entry:
    """Publish a small network under a name of the catalogue."""
    path = write_original(tmp_path / "published", name, original_data(pair))
    entry = CATALOG[name]
    urls = {"url": server.publish(f"/models/{path.name}", path.read_bytes())}
    if entry.regression_url is not None:
        beside = path.with_name(f"{path.stem}-contact-regression.pt")
        urls["regression_url"] = server.publish(f"/regression/{beside.name}", beside.read_bytes())
    if entry.sha256 is not None:
        urls["sha256"] = sum_of(path.read_bytes())
    entry = replace(entry, **urls, **changes)
    monkeypatch.setitem(CATALOG, name, entry)
    monkeypatch.chdir(tmp_path)
    return entry


def sizes_of(pair: Pair, entry: Entry) -> dict:
    return {key: getattr(pair.config, key) for key in entry.sizes}


def assert_loads_as(folder: Path, pair: Pair) -> None:
    model = AutoModelForMaskedLM.from_pretrained(folder, local_files_only=True)
    expected = dict(pair.original.state_dict())
    if pair.config.model_type == "fair_esm" and pair.config.model_version == "ESM-1b":
        expected["embed_tokens.weight"][pair.config.mask_token_id] = 0
    assert model.state_dict().keys() == expected.keys()
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, expected[name]), name


@pytest.mark.parametrize(
    ("network", "name"),
    [
        ("esm1", "esm1_t6_43M_UR50S"),
        ("esm1b", "esm1b_t33_650M_UR50S"),
        ("esm2", "esm2_t6_8M_UR50D"),
        ("carp", "carp_600k"),
    ],
)
def test_a_name_of_the_catalogue_becomes_a_base(server, folder, monkeypatch, tmp_path, network, name):
    pair = small_pair(network)
    (tmp_path / "published").mkdir()
    sizes = sizes_of(pair, CATALOG[name])
    entry = in_catalogue(server, monkeypatch, tmp_path, name, pair, sizes=sizes)
    done = hf_perturb.convert_checkpoint(name, tmp_path / "base")
    assert_loads_as(tmp_path / "base", pair)
    assert done.notes == ()
    assert done.parameters == sum(parameter.numel() for parameter in pair.original.parameters())
    card = (tmp_path / "base" / "README.md").read_text(encoding="utf-8")
    for fact in (name, entry.licence, entry.citation, entry.url):
        assert fact in card
    assert ("\nlicense: mit\n" in card) == (entry.licence == "MIT")
    hf_perturb.convert_checkpoint(name, tmp_path / "again")
    assert (tmp_path / "again" / "README.md").read_text(encoding="utf-8") == card
    assert len(server.requests) == (1 if network == "carp" else 2)


def test_a_file_of_other_sizes_gets_no_licence_from_its_name(server, folder, monkeypatch, tmp_path):
    pair = small_pair("carp")
    (tmp_path / "published").mkdir()
    entry = in_catalogue(server, monkeypatch, tmp_path, "carp_600k", pair)
    hf_perturb.convert_checkpoint("carp_600k", tmp_path / "base")
    assert_loads_as(tmp_path / "base", pair)
    card = (tmp_path / "base" / "README.md").read_text(encoding="utf-8")
    for fact in (entry.licence, entry.citation, entry.url):
        assert fact not in card


def test_the_command_downloads_and_converts(server, folder, monkeypatch, tmp_path, capsys):
    pair = small_pair("carp")
    (tmp_path / "published").mkdir()
    in_catalogue(server, monkeypatch, tmp_path, "carp_600k", pair)
    assert main(["convert", "carp_600k", "base"]) == 0
    streams = capsys.readouterr()
    assert "CarpForMaskedLM" in streams.out
    assert streams.err.count("\n") <= 1
    assert_loads_as(tmp_path / "base", pair)


@pytest.mark.parametrize("fault", [{"status": 404}, {"status": 503}, {"cut": 0}, {"flip": 3000}])
def test_the_command_fails_without_a_trace_when_the_download_does(server, folder, monkeypatch, tmp_path, capsys, fault):
    (tmp_path / "published").mkdir()
    entry = in_catalogue(server, monkeypatch, tmp_path, "carp_600k", small_pair("carp"))
    server.fail(times=50, **fault)
    assert main(["convert", "carp_600k", "base"]) == 1
    streams = capsys.readouterr()
    assert streams.out == ""
    assert "hf-perturb convert: " in streams.err
    assert entry.url in streams.err
    assert "Traceback" not in streams.err
    assert sorted(file.name for file in tmp_path.iterdir()) == ["cache", "published"]
    assert not (folder / "carp_600k.pt").exists()


def test_nothing_is_fetched_for_a_folder_that_may_not_be_written(server, folder, monkeypatch, tmp_path):
    (tmp_path / "published").mkdir()
    in_catalogue(server, monkeypatch, tmp_path, "carp_600k", small_pair("carp"))
    (tmp_path / "base").mkdir()
    with pytest.raises(hf_perturb.FolderExistsError):
        hf_perturb.convert_checkpoint("carp_600k", tmp_path / "base")
    with pytest.raises(hf_perturb.CheckpointError, match="dtype"):
        hf_perturb.convert_checkpoint("carp_600k", tmp_path / "other", dtype="int8")
    assert server.requests == []
