"""A variant appears whole or not at all, whoever dies or gets in the way, and nobody else's folder is touched."""

from __future__ import annotations

import errno
import fcntl
import itertools
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from support.children import started_children
from support.models import small_model
from support.refusals import tree

import hf_perturb
from hf_perturb import create_variant, create_variants
from hf_perturb.cli import main
from hf_perturb.storage import folders
from hf_perturb.storage.folders import scratch_folder, whole_folder

KILLS = 50
FILES = {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "README.md"}
PERTURBATIONS = [{"method": "resample", "seed": seed, "axis": "rows"} for seed in (1, 2)]

needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs processes that fork")


children = pytest.fixture(started_children, scope="module")


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    """A base of 200 tensors and 5 MB."""
    folder = tmp_path_factory.mktemp("base") / "base"
    sizes = {"hidden_size": 96, "num_hidden_layers": 12, "intermediate_size": 256}
    small_model("esm1b", **sizes).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def variants(base, tmp_path_factory) -> list[Path]:
    """Both variants of the base."""
    folders = [tmp_path_factory.mktemp("variants") / str(p["seed"]) for p in PERTURBATIONS]
    for folder, perturbation in zip(folders, PERTURBATIONS, strict=True):
        create_variant(base, folder, perturbation)
    assert tree(folders[0]) != tree(folders[1])
    return folders


@pytest.fixture
def old(variants, tmp_path) -> Path:
    """The first variant, in a folder that may be replaced."""
    return Path(shutil.copytree(variants[0], tmp_path / "out"))


def fill(out: Path, text: str) -> None:
    with whole_folder(out) as folder:
        for name in ("config.json", "model.safetensors"):
            (folder / name).write_text(text)


def filled(text: str) -> dict[str, bytes]:
    return dict.fromkeys(("config.json", "model.safetensors"), text.encode())


def sweep(out: Path) -> None:
    """Do what the next run does first."""
    with scratch_folder(out):
        pass


def hidden(folder: Path) -> list[str]:
    return sorted(name for name in os.listdir(folder) if name.startswith("."))


# killed


def seconds_of(children, job) -> float:
    begin = time.monotonic()
    assert children.run("create", **job) == (0, "")
    return time.monotonic() - begin


def skip_without_exchange(folder: Path) -> None:
    for name in ("one", "other"):
        (folder / name).mkdir()
    if not folders._exchange(folder / "one", folder / "other"):
        pytest.skip("no two folders can be swapped here")
    for name in ("one", "other"):
        (folder / name).rmdir()


def kill_after(children, seconds: float, *tricks: str, **job) -> bool:
    """Whether a process could be killed before it was done."""
    pid = children.start("create", *tricks, **job)
    time.sleep(seconds)
    os.kill(pid, signal.SIGKILL)
    code, said = children.wait(pid)
    assert code in (0, -signal.SIGKILL), said
    return code != 0


@needs_fork
@pytest.mark.parametrize("tricks", [(), ("no_exchange",)], ids=["exchange", "renames"])
def test_whoever_is_killed_leaves_the_old_folder_or_the_new_one(children, base, variants, tmp_path, tricks):
    if not tricks:
        skip_without_exchange(tmp_path)
    trees = [tree(folder) for folder in variants]
    out, now, kills, leftovers = tmp_path / "out", 0, 0, 0
    shutil.copytree(variants[now], out)
    jobs = [{"base": base, "out": out, "perturbation": p, "force": True, "jobs": 2} for p in PERTURBATIONS]
    seconds = min(seconds_of(children, jobs[i]) for i in (1, 0))
    rng = random.Random(0)
    for _ in range(10 * KILLS):
        killed = kill_after(children, rng.uniform(0, seconds), *tricks, **jobs[1 - now])
        leftovers += bool(hidden(tmp_path))
        if tricks and not out.exists():
            sweep(out)
        found = tree(out)
        assert found in trees, "a mixture"
        assert killed or found == trees[1 - now], "a process that ended well wrote nothing"
        now, kills = trees.index(found), kills + killed
        if kills == KILLS:
            break
    assert kills == KILLS
    assert leftovers > KILLS // 5, "they died before they began"
    create_variant(base, out, PERTURBATIONS[0], force=True)
    assert tree(out) == trees[0]
    assert os.listdir(tmp_path) == ["out"]


@needs_fork
def test_whoever_is_killed_leaves_a_whole_folder_or_none(children, base, variants, tmp_path):
    whole, out = tree(variants[1]), tmp_path / "above" / "out"
    job = {"base": base, "out": out, "perturbation": PERTURBATIONS[1], "jobs": 2}
    seconds, rng, kills, leftovers = seconds_of(children, job), random.Random(1), 0, 0
    for _ in range(10 * KILLS):
        if out.exists():
            shutil.rmtree(out)
        kills += kill_after(children, rng.uniform(0, seconds), **job)
        if out.parent.exists():
            assert not out.exists() or tree(out) == whole
            leftovers += bool(hidden(out.parent))
        if kills == KILLS:
            break
    assert kills == KILLS
    assert leftovers > KILLS // 5, "they died before they began"
    create_variant(base, out, PERTURBATIONS[1], force=True)
    assert tree(out) == whole
    assert os.listdir(out.parent) == ["out"]


@needs_fork
@pytest.mark.parametrize("tricks", [(), ("no_exchange",)], ids=["exchange", "renames"])
@pytest.mark.parametrize("replaced", [True, False])
def test_every_moment_at_which_one_can_die(children, tmp_path, tricks, replaced):
    """Before every call that reads or changes the disk."""
    if not tricks:
        skip_without_exchange(tmp_path)
    out, before = tmp_path / "out", {}
    if replaced:
        fill(out, "before")
        before = filled("before")
    moments, seen = itertools.count(), set()
    for moment in moments:
        code, said = children.run("fill", *tricks, out=out, text=f"text {moment}", die_at=moment)
        after = filled(f"text {moment}")
        if code == 0:
            break
        assert code == -signal.SIGKILL, said
        gone = not out.exists()
        sweep(out)
        found = tree(out) if out.exists() else {}
        assert found in (before, after), moment
        assert os.listdir(tmp_path) == (["out"] if found else [])
        seen.add("away" if gone and replaced else "old" if found == before else "new")
        if replaced:
            before = found
        else:
            shutil.rmtree(out, ignore_errors=True)
    assert moment > 15
    assert tree(out) == after
    assert os.listdir(tmp_path) == ["out"]
    assert seen == ({"old", "away", "new"} if tricks and replaced else {"old", "new"})


@needs_fork
def test_a_folder_that_was_moved_away_is_there_again_on_the_next_run(children, base, old, tmp_path):
    """On a file system that cannot swap two folders in one step, there is a moment without either."""
    before = tree(old)
    job = {"base": base, "out": old, "perturbation": PERTURBATIONS[1]}
    code, said = children.run("create", "die_between_renames", force=True, **job)
    assert code == -signal.SIGKILL, said
    assert not old.exists()
    with pytest.raises(hf_perturb.FolderExistsError, match=r"out exists already.*--force"):
        create_variant(**job)
    assert tree(old) == before
    assert os.listdir(tmp_path) == ["out"]


# a full disk


@needs_fork
@pytest.mark.parametrize(("trick", "code"), [("small_files", 1), ("die_of_big_files", -getattr(signal, "SIGXFSZ", 0))])
def test_a_limit_on_files_keeps_the_old_folder(children, base, old, tmp_path, trick, code):
    before = tree(old)
    ended, said = children.run("create", trick, base=base, out=old, perturbation=PERTURBATIONS[1], force=True)
    assert ended == code, said
    if code == 1:
        assert said.startswith(f"CheckpointError: {old}: nothing was written, because"), said
        assert "File too large" in said
        assert os.listdir(tmp_path) == ["out"]
    assert tree(old) == before
    sweep(old)
    assert os.listdir(tmp_path) == ["out"]
    assert tree(old) == before


@pytest.fixture
def small_disk(tmp_path):
    """A disk of 8 MB, where one can be mounted."""
    folder = tmp_path / "disk"
    folder.mkdir()
    try:
        done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", folder], check=False)
    except FileNotFoundError:
        pytest.skip("no command to mount with")
    if done.returncode:
        pytest.skip("nothing may be mounted here")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


def said_of_creating(out: Path, force: bool) -> str | None:
    try:
        create_variant("demo", out, {"method": "reinit", "seed": 2}, force=force, jobs=1)
    except hf_perturb.CheckpointError as error:
        return str(error)
    return None


@pytest.mark.skipif(sys.platform != "linux" or not hasattr(os, "getuid") or os.getuid(), reason="mounts a disk")
@pytest.mark.parametrize("replaced", [True, False])
def test_a_full_disk_keeps_the_old_folder_or_none(small_disk, replaced):
    """However much there is room for: some of the weights, or all, or the configuration too, and so on."""
    out, filler, before, failures = small_disk / "out", small_disk / "filler", {}, set()
    if replaced:
        create_variant("demo", out, {"method": "reinit", "seed": 1})
        before = tree(out)
    page = os.sysconf("SC_PAGE_SIZE")
    pages = -(-(hf_perturb.demo.folder() / "model.safetensors").stat().st_size // page)
    for room in [0, 1, pages // 2, *range(pages - 1, pages + 40)]:
        with filler.open("wb") as file:
            free = os.statvfs(small_disk).f_bavail
            os.posix_fallocate(file.fileno(), 0, (free - room) * page)
        said = said_of_creating(out, replaced)
        if said is None:
            break
        failures.add(room - pages)
        assert str(out) in said
        assert "No space left" in said
        assert (tree(out) if out.exists() else {}) == before
        assert sorted(os.listdir(small_disk)) == (["filler", "out"] if replaced else ["filler"])
        filler.unlink()
    assert len(failures & set(range(pages))) >= 3, "beside the weights are a configuration, a tokenizer and a card"
    assert {file.name for file in out.iterdir()} == FILES
    assert tree(out) != before
    assert hidden(small_disk) == []


def no_space(*arguments, **keywords):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def no_space_in_rust(*arguments, **keywords):
    raise Exception("No space left on device (os error 28)")  # as the library raises it


def fail_writing(name):
    """Refuse to write a file of this name."""

    def write_text(path, *arguments, **keywords):
        if path.name == name:
            no_space()
        return real(path, *arguments, **keywords)

    real = Path.write_text
    return write_text


@pytest.mark.parametrize(
    ("place", "fail"),
    [
        ("os.posix_fallocate", no_space),
        ("os.pwrite", no_space),
        ("os.fsync", no_space),
        ("os.mkdir", no_space),
        ("os.chmod", no_space),
        ("pathlib.Path.rename", no_space),
        ("pathlib.Path.write_text", fail_writing("config.json")),
        ("pathlib.Path.write_text", fail_writing("tokenizer_config.json")),
        ("hf_perturb.checkpoints.tokenizers._build", lambda alphabet: SimpleNamespace(save=no_space_in_rust)),
        ("pathlib.Path.write_text", fail_writing("README.md")),
    ],
)
def test_whatever_cannot_be_written_leaves_nothing(base, old, tmp_path, monkeypatch, place, fail):
    before = tree(old)
    job = {"base": base, "out": old, "perturbation": PERTURBATIONS[1], "force": True, "jobs": 1}
    monkeypatch.setattr(folders, "_exchange", lambda one, other: False)
    monkeypatch.setattr(place, fail)
    with pytest.raises(hf_perturb.CheckpointError, match="No space left") as caught:
        create_variant(**job)
    monkeypatch.undo()
    assert str(old) in str(caught.value)
    assert tree(old) == before
    assert os.listdir(tmp_path) == ["out"]


def test_what_the_kernel_does_not_copy_is_written(base, old, variants, tmp_path, monkeypatch):
    monkeypatch.setattr("os.copy_file_range", no_space)
    create_variant(base, old, PERTURBATIONS[1], force=True)
    assert tree(old) == tree(variants[1])


@pytest.mark.parametrize("way", ["new", "exchange", "renames"])
def test_everything_is_on_the_disk_before_it_has_its_name(base, variants, tmp_path, monkeypatch, way):
    synced, moved = {}, []
    fsync, rename, exchange = os.fsync, Path.rename, folders._exchange

    def recorded_fsync(descriptor):
        status = os.fstat(descriptor)
        synced[status.st_ino] = status.st_size, status.st_mtime_ns, status.st_mode
        fsync(descriptor)

    def record(fresh):
        moved.append({path.name for path in [fresh, *fresh.iterdir()] if is_synced(path)})
        synced.pop(tmp_path.stat().st_ino, None)

    def is_synced(path):
        status = path.stat()
        return synced.get(status.st_ino) == (status.st_size, status.st_mtime_ns, status.st_mode)

    def recorded_rename(fresh, out):
        if out.name == "out":
            record(fresh)
        return rename(fresh, out)

    def recorded_exchange(fresh, out):
        record(fresh)
        return exchange(fresh, out) if way == "exchange" else False

    if way != "new":
        shutil.copytree(variants[1], tmp_path / "out")
    monkeypatch.setattr(os, "fsync", recorded_fsync)
    monkeypatch.setattr(Path, "rename", recorded_rename)
    monkeypatch.setattr(folders, "_exchange", recorded_exchange)
    create_variant(base, tmp_path / "out", PERTURBATIONS[0], force=True)
    assert moved
    assert all(before == {"new"} | FILES for before in moved)
    assert tmp_path.stat().st_ino in synced, "the name itself"


# two writers


@needs_fork
def test_a_second_writer_is_told_that_the_folder_is_locked(children, base, old, variants, tmp_path):
    job = {"base": base, "out": old, "force": True}
    first = children.start("create", "stop_at_card", perturbation=PERTURBATIONS[1], **job)
    assert children.wait(first)[0] == "stopped"
    code, said = children.run("create", perturbation=PERTURBATIONS[0], **job)
    assert code == 1
    assert said.startswith(f"FolderLockedError: {old} is locked: another process is writing it"), said
    with pytest.raises(hf_perturb.FolderLockedError, match="is locked"):
        create_variant(perturbation=PERTURBATIONS[0], **job)
    assert main(["create", str(base), str(old), "--method", "reinit", "--force"]) == 1
    assert len([name for name in hidden(tmp_path) if not name.endswith("lock")]) == 1, "the winner's was swept"
    create_variant(base, tmp_path / "other", PERTURBATIONS[0])
    os.kill(first, signal.SIGCONT)
    assert children.wait(first) == (0, "")
    assert tree(old) == tree(variants[1])
    assert sorted(os.listdir(tmp_path)) == ["other", "out"]


@needs_fork
def test_of_many_writers_one_wins(children, base, variants, tmp_path):
    out = tmp_path / "out"
    started = [children.start("create", base=base, out=out, perturbation=p) for p in PERTURBATIONS * 2]
    ended = [children.wait(pid) for pid in started]
    assert sorted(code for code, _ in ended) == [0, 1, 1, 1]
    losers = [said for code, said in ended if code]
    assert all(said.startswith(("FolderLockedError", "FolderExistsError")) for said in losers), losers
    winner = [code for code, _ in ended].index(0)
    assert tree(out) == tree(variants[winner % 2])
    assert os.listdir(tmp_path) == ["out"]


def test_one_at_a_time_holds_the_lock(tmp_path):
    """The file of a lock is removed and made anew all the time, which must let nobody in."""
    inside, most, turns, deadline = [], [], [], time.monotonic() + 20

    def hold(name):
        done = 0
        while done < 100 and time.monotonic() < deadline:
            try:
                with scratch_folder(tmp_path / "out") as folder:
                    inside.append(name)
                    (folder / "mine").touch()
                    most.append(len(inside))
                    time.sleep(1e-4)
                    assert (folder / "mine").exists()
                    inside.remove(name)
                done += 1
            except hf_perturb.FolderLockedError:
                time.sleep(1e-5)
        turns.append(done)

    threads = [threading.Thread(target=hold, args=[name]) for name in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert turns == [100] * 4
    assert set(most) == {1}
    assert os.listdir(tmp_path) == []


def test_different_folders_in_one_place_do_not_disturb_each_other(base, variants, tmp_path):
    names = ["x", "x.hf_perturb-y", ".x", "x.y", "x-y", "lock"]
    errors = []

    def write(number, name):
        try:
            for _ in range(2):
                create_variant(base, tmp_path / name, PERTURBATIONS[number % 2], force=True)
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=write, args=item) for item in enumerate(names)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert sorted(os.listdir(tmp_path)) == sorted(names)
    assert all(tree(tmp_path / name) == tree(variants[i % 2]) for i, name in enumerate(names))


def test_the_lock_of_a_killed_process_does_not_lock(tmp_path):
    (tmp_path / ".out.hf_perturb-lock").touch()
    fill(tmp_path / "out", "new")
    assert os.listdir(tmp_path) == ["out"]


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_without_locks_everything_works_and_nothing_is_swept(tmp_path, monkeypatch, number):
    def flock(descriptor, operation):
        raise OSError(number, os.strerror(number))

    (tmp_path / ".out.hf_perturb-abcdefgh").mkdir()
    monkeypatch.setattr(fcntl, "flock", flock)
    fill(tmp_path / "out", "old")
    with pytest.raises(RuntimeError, match="half way"), whole_folder(tmp_path / "out"):
        raise RuntimeError("half way")
    fill(tmp_path / "out", "new")
    assert tree(tmp_path / "out") == filled("new")
    assert sorted(os.listdir(tmp_path)) == [".out.hf_perturb-abcdefgh", "out"], "it may be another's, who is at it"


# sweeping


def leftover(out: Path) -> Path:
    """What a killed process leaves."""
    context = scratch_folder(out)
    folder = context.__enter__()
    (folder / "new").mkdir()
    (folder / "new" / "config.json").write_text("half")
    kept = shutil.copytree(folder, folder.with_name("kept"))
    context.__exit__(None, None, None)
    return Path(kept).rename(folder)


@pytest.mark.parametrize("out", ["a", "[a]*", "a.hf_perturb-b"])
def test_only_leftovers_of_the_same_folder_are_swept(tmp_path, out):
    others = ["a.b", "a-b", ".a", "b", "aa", "a.hf_perturb-", "a.hf_perturb-lock", "[a]*.hf_perturb-x"]
    others += ["a.hf_perturb-b.hf_perturb-c", "a", "[a]*", "a.hf_perturb-b"]
    left = {name: leftover(tmp_path / name) for name in others}
    users = [".a.hf_perturb-my notes", ".a.hf_perturb-notes.old", f".{out}.hf_perturb-", ".a", f".{out}.old"]
    for name in users:
        (tmp_path / name).mkdir()
        (tmp_path / name / "precious").touch()
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "file").touch()
    (tmp_path / f".{out}.hf_perturb-abcdefgh").symlink_to("precious")
    (tmp_path / f".{out}.hf_perturb-hgfedcba").write_text("a file is none of ours")
    before = tree(tmp_path)
    sweep(tmp_path / out)
    mine = {name for name in before if name.startswith(left[out].name)}
    assert mine
    assert tree(tmp_path) == {name: content for name, content in before.items() if name not in mine}


def test_what_was_moved_away_is_removed_when_the_new_one_is_there(tmp_path):
    fill(tmp_path / "out", "new")
    (tmp_path / ".out.hf_perturb-abcdefgh.old").mkdir()
    (tmp_path / ".out.hf_perturb-abcdefgh.old" / "config.json").touch()
    sweep(tmp_path / "out")
    assert os.listdir(tmp_path) == ["out"]
    assert tree(tmp_path / "out") == filled("new")


# interrupted


@needs_fork
@pytest.mark.parametrize("moment", ["stop_in_stream", "stop_at_card"])
@pytest.mark.parametrize(
    ("number", "code", "message"),
    [(signal.SIGINT, 130, "interrupted; nothing is half written"), (signal.SIGTERM, 143, "")],
)
@pytest.mark.parametrize("replaced", [True, False])
def test_a_signal_ends_the_command_with_nothing_left(
    children, base, variants, tmp_path, moment, number, code, message, replaced
):
    out = tmp_path / "out"
    if replaced:
        shutil.copytree(variants[0], out)
    words = ["create", str(base), str(out), "--method", "resample", "--force", "--jobs", "2"]
    pid = children.start("command", moment, words=words)
    assert children.wait(pid)[0] == "stopped"
    assert hidden(tmp_path), "it has not begun"
    os.kill(pid, number)
    os.kill(pid, signal.SIGCONT)
    ended, said = children.wait(pid)
    assert (ended, message in said, "Traceback" in said) == (code, True, False), said
    assert os.listdir(tmp_path) == (["out"] if replaced else [])
    assert not replaced or tree(out) == tree(variants[0])


@pytest.mark.skipif(not hasattr(os, "fork"), reason="signals of Unix")
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_the_real_command(base, tmp_path, number, code):
    """One that nobody stops at a chosen moment: it has a million entries to sort."""
    out = tmp_path / "above" / "out"
    run = "import runpy, signal; signal.signal(signal.SIGINT, signal.default_int_handler);"
    words = ["-c", run + "runpy.run_module('hf_perturb', run_name='__main__', alter_sys=True)"]
    words += ["create", str(base), str(out), "--method", "resample", "--axis", "rows", "--jobs", "1"]
    kwargs = {"stderr": subprocess.PIPE, "text": True, "start_new_session": True}
    with subprocess.Popen([sys.executable, *words], **kwargs) as process:
        while process.poll() is None and not list(tmp_path.glob("above/.*/new/model.safetensors")):
            time.sleep(1e-3)
        process.send_signal(number)
        _, said = process.communicate()
    assert process.returncode == code, said
    assert "Traceback" not in said
    assert os.listdir(tmp_path) == []


def test_an_interrupt_while_it_streams_leaves_nothing(base, tmp_path):
    def interrupt(done, total):
        assert hidden(tmp_path / "above")
        if done > total // 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        create_variant(base, tmp_path / "above" / "deep" / ".." / "out", "reinit", progress=interrupt)
    assert os.listdir(tmp_path) == []


# odd places


def test_a_folder_can_be_named_in_many_ways(base, variants, tmp_path, monkeypatch):
    (tmp_path / "below").mkdir()
    monkeypatch.chdir(tmp_path / "below")
    os.symlink(tmp_path, tmp_path / "below" / "link")
    for number, out in enumerate(["one", "two/", "./three", "../four", "link/five", "new/six//", "link/../seven"]):
        create_variant(base, out, PERTURBATIONS[number % 2])
        assert tree(Path(out)) == tree(variants[number % 2])
        create_variant(base, out, PERTURBATIONS[1 - number % 2], force=True)
        assert tree(Path(out)) == tree(variants[1 - number % 2])
    assert sorted(os.listdir(".")) == ["link", "new", "one", "three", "two"]
    assert os.listdir("new") == ["six"]
    assert {"four", "five"} <= set(os.listdir(tmp_path))
    assert hidden(tmp_path) == []


@pytest.mark.parametrize("force", [True, False])
def test_a_link_is_not_replaced_nor_followed(base, variants, tmp_path, force):
    shutil.copytree(variants[0], tmp_path / "variant")
    (tmp_path / "link").symlink_to("variant")
    (tmp_path / "broken").symlink_to("nowhere")
    for name in ("link", "broken"):
        with pytest.raises(hf_perturb.FolderExistsError, match=rf"{name} (exists already|is no folder)"):
            create_variant(base, tmp_path / name, PERTURBATIONS[1], force=force)
        assert (tmp_path / name).is_symlink()
    assert tree(tmp_path / "variant") == tree(variants[0])
    assert sorted(os.listdir(tmp_path)) == ["broken", "link", "variant"]


def test_a_place_where_no_folder_can_be_is_named(base, tmp_path):
    (tmp_path / "file").touch()
    for out in (tmp_path / "file" / "out", tmp_path / "file" / "deeper" / "out", tmp_path / ("n" * 250)):
        with pytest.raises(hf_perturb.CheckpointError, match=r"cannot be (made|written)") as caught:
            create_variant(base, out, PERTURBATIONS[0])
        assert str(tmp_path) in str(caught.value)
    assert os.listdir(tmp_path) == ["file"]


@pytest.mark.skipif(not hasattr(os, "getuid") or os.getuid() == 0, reason="the administrator may write anywhere")
def test_a_place_that_may_not_be_written_is_named(base, tmp_path):
    (tmp_path / "sealed").mkdir(mode=0o555)
    with pytest.raises(hf_perturb.CheckpointError, match="sealed cannot be written"):
        create_variant(base, tmp_path / "sealed" / "out", PERTURBATIONS[0])
    with pytest.raises(hf_perturb.CheckpointError, match="cannot be made"):
        create_variant(base, tmp_path / "sealed" / "above" / "out", PERTURBATIONS[0])


@pytest.mark.parametrize("out", [".", "../out"])
def test_the_folder_that_one_is_in_is_replaced(base, old, variants, tmp_path, monkeypatch, out):
    monkeypatch.chdir(old)
    with pytest.raises(hf_perturb.FolderExistsError):
        create_variant(base, out, PERTURBATIONS[1])
    assert tree(old) == tree(variants[0])
    create_variant(base, out, PERTURBATIONS[1], force=True)
    assert tree(old) == tree(variants[1])
    assert os.listdir(tmp_path) == ["out"]


def test_the_folder_above_is_not_replaced(base, old, variants, tmp_path, monkeypatch):
    monkeypatch.chdir(old)
    with pytest.raises(hf_perturb.FolderExistsError, match="holds out, which is not ours to replace"):
        create_variant(base, "..", PERTURBATIONS[1], force=True)
    assert tree(old) == tree(variants[0])
    assert os.listdir(tmp_path) == ["out"]


# many at once


@pytest.mark.parametrize("taken", [0, 1, 2])
def test_of_many_all_are_written_or_none(base, variants, tmp_path, taken):
    """One of their names is taken while they are built."""
    outs = [tmp_path / "above" / f"out{number}" for number in range(3)]
    wanted = {out: PERTURBATIONS[number % 2] for number, out in enumerate(outs)}

    def take(done, total):
        if done > total // 2:
            outs[taken].mkdir(exist_ok=True)

    with pytest.raises(hf_perturb.FolderExistsError, match=f"out{taken} exists already"):
        create_variants(base, wanted, progress=take, jobs=1)
    assert os.listdir(tmp_path / "above") == [outs[taken].name]
    assert os.listdir(outs[taken]) == []
    outs[taken].rmdir()
    create_variants(base, wanted)
    assert [tree(out) for out in outs] == [tree(variants[number % 2]) for number in range(3)]
    assert sorted(os.listdir(tmp_path / "above")) == ["out0", "out1", "out2"]


@needs_fork
def test_one_that_is_locked_keeps_all_from_being_written(children, base, tmp_path):
    outs = [tmp_path / name for name in ("one", "two", "three")]
    first = children.start("create", "stop_at_card", base=base, out=outs[1], perturbation=PERTURBATIONS[0])
    assert children.wait(first)[0] == "stopped"
    with pytest.raises(hf_perturb.FolderLockedError, match="two is locked"):
        create_variants(base, dict.fromkeys(outs, PERTURBATIONS[1]))
    assert [name for name in os.listdir(tmp_path) if not name.startswith(".two.")] == []
    os.kill(first, signal.SIGKILL)
    assert children.wait(first)[0] == -signal.SIGKILL
    create_variants(base, dict.fromkeys(outs, PERTURBATIONS[1]))
    assert sorted(os.listdir(tmp_path)) == ["one", "three", "two"]


# the working directory


def test_a_working_directory_that_was_removed_is_named(base, tmp_path, monkeypatch, capsys):
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    for words in (["create", str(base), "out", "--method=reinit"], ["verify", str(base)], ["list"]):
        assert main(words) == 1
        assert "the working directory has been removed" in capsys.readouterr().err
    with pytest.raises(hf_perturb.CheckpointError, match="out is nowhere: the working directory has been removed"):
        create_variant(base, "out", "reinit")
    create_variant(base, tmp_path / "out", "reinit")


@needs_fork
def test_a_full_disk_is_named_for_a_file_of_torch_too(children, base, tmp_path):
    words = ["convert", str(base), str(tmp_path / "out.pt"), "--to", "fair-esm"]
    code, said = children.run("command", "small_files", words=words)
    assert (code, os.listdir(tmp_path)) == (1, [])
    assert re.search(r"out\.pt: nothing was written, because .*File too large", said), said
