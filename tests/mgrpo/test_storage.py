"""Locks and replaced files: what one process holds and what others see."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from mgrpo import storage
from mgrpo.errors import InputError
from mgrpo.storage import FileLock, atomic_create, atomic_write, remove_leftovers, replacing, replacing_together


def test_a_replaced_file_is_old_until_it_is_new(tmp_path: Path) -> None:
    path = tmp_path / "a.gif"
    path.write_text("old")
    with replacing(path) as temporary:
        temporary.write_text("new")
        assert path.read_text() == "old" and temporary.parent == tmp_path and temporary.suffix != ".gif"
        assert temporary.name.startswith(storage.TEMPORARY_PREFIX)
    assert path.read_text() == "new" and [entry.name for entry in tmp_path.iterdir()] == ["a.gif"]


def test_a_block_that_fails_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_text("old")
    with pytest.raises(KeyboardInterrupt), replacing(path) as temporary:
        temporary.write_text("half")
        raise KeyboardInterrupt
    with pytest.raises(FileNotFoundError), replacing(path):
        pass  # nothing was written
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_files_that_belong_together_get_their_names_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in "ab":
        (tmp_path / name).write_text("old")
    named = []
    real = os.replace
    monkeypatch.setattr(os, "replace", lambda old, new: (named.append(Path(new).name), real(old, new)))
    with pytest.raises(OSError, match="full"), replacing_together() as place:
        place(tmp_path / "a").write_text("new")
        place(tmp_path / "b").write_text("half")
        raise OSError("full")
    assert not named and {path.name: path.read_text() for path in tmp_path.iterdir()} == {"a": "old", "b": "old"}
    with replacing_together() as place:
        for name in "ab":
            place(tmp_path / name).write_text("new")
        assert place(tmp_path / "a") == place(tmp_path / "a")
    assert named == ["b", "a"], "who sees the first sees the others"
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"a": "new", "b": "new"}


def test_a_file_may_grow_in_another_folder(tmp_path: Path) -> None:
    (tmp_path / "parts").mkdir()
    with replacing(tmp_path / "a.hdf5", grow_in=tmp_path / "parts") as temporary:
        temporary.write_text("x")
        assert temporary.parent == tmp_path / "parts"
    assert (tmp_path / "a.hdf5").read_text() == "x" and not list((tmp_path / "parts").iterdir())


def test_leftovers_of_a_killed_writer_are_found(tmp_path: Path) -> None:
    with replacing(tmp_path / "a") as temporary:
        temporary.write_text("x")
        os.link(temporary, temporary.with_name(f"{temporary.name}-of-a-killed-one"))
    remove_leftovers(tmp_path)
    assert [entry.name for entry in tmp_path.iterdir()] == ["a"]


@pytest.mark.parametrize("links", [True, False])
def test_the_first_to_create_a_file_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, links: bool) -> None:
    if not links:

        def refuse(*args: object) -> None:
            raise OSError(errno.EPERM, "no links here")

        monkeypatch.setattr(storage.os, "link", refuse)
    assert atomic_create(tmp_path / "a", "first") and not atomic_create(tmp_path / "a", "second")
    assert (tmp_path / "a").read_text() == "first" and len(list(tmp_path.iterdir())) == 1


def test_creating_does_not_replace_what_came_in_between(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, write = tmp_path / "a", storage.write_and_sync

    def overtaken(temporary: Path, data: bytes) -> None:
        write(temporary, data)
        path.write_text("theirs")

    monkeypatch.setattr(storage, "write_and_sync", overtaken)
    assert not atomic_create(path, "ours")
    assert path.read_text() == "theirs" and list(tmp_path.iterdir()) == [path]


def test_a_lock_names_its_holder_and_can_be_taken_again(tmp_path: Path) -> None:
    path = tmp_path / ".lock"
    with FileLock(path, "folder x") as held:
        assert held.missing is None
        with pytest.raises(InputError, match=rf"^folder x is in use by another process \(pid {os.getpid()}\)\. Go\.$"):
            FileLock(path, "folder x", "Go.")
        held.release()
        held.release()
        FileLock(path, "folder x").release()


def test_a_file_system_without_locks_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(storage.fcntl, "flock", refuse)
    with FileLock(tmp_path / ".lock", "folder x") as held:
        assert "No locks available" in str(held.missing)
    monkeypatch.setattr(storage, "fcntl", None)
    with FileLock(tmp_path / ".lock", "folder x") as held:
        assert "no file locks" in str(held.missing)


def test_a_lock_that_cannot_be_made_is_an_error_of_the_disk(tmp_path: Path) -> None:
    with pytest.raises(storage.StorageError, match="could not lock"):
        FileLock(tmp_path / "none" / ".lock", "folder x")
    with pytest.raises(storage.StorageError, match="could not write"):
        atomic_write(tmp_path / "none" / "a", "x")


def test_names_that_look_alike_get_files_of_their_own() -> None:
    assert storage.file_stem("dance_b.2-1") == "dance_b.2-1"
    names = ["日本", "中国", "a b", "a_b", "a/b", "a\tb", "é", "e"]
    stems = [storage.file_stem(name) for name in names]
    assert len(set(stems)) == len(names) and stems[0] == "日本"
    for stem in stems:
        assert not set(stem) & set('/\\:*?"<>| \t')
