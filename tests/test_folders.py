"""Folders of results: whole or not at all, and nothing of others is lost."""

from __future__ import annotations

import fcntl
import json
import os

import pytest

from optin.errors import CheckpointError, InputError
from optin.support import folders
from optin.support.files import write_text
from optin.support.folders import MARKER, check_apart, check_new, new_folder


def put(target, kind="network", overwrite=False, **files):
    with new_folder(target, kind, overwrite) as work:
        for name, text in files.items():
            (work / name).write_text(text)


@pytest.fixture
def result(tmp_path):
    put(tmp_path / "r", a="1", b="2")
    return tmp_path / "r"


def content(folder):
    return {file.relative_to(folder).as_posix(): file.read_text() for file in folder.rglob("*") if file.is_file()}


def test_the_marker_lists_what_was_written(result):
    assert json.loads((result / MARKER).read_text()) == {"kind": "network", "files": ["a", "b"]}


@pytest.mark.parametrize("exchange", [True, False])
def test_only_what_is_listed_is_replaced(result, monkeypatch, exchange):
    if not exchange:
        monkeypatch.setattr(folders, "_exchange", lambda one, other: False)
    (result / "notes.txt").write_text("mine")
    (result / "deep" / "er").mkdir(parents=True)
    (result / "deep" / "er" / "file").write_text("mine too")
    (result / "empty").mkdir()
    (result / "link").symlink_to("nowhere")
    with pytest.raises(InputError, match="not empty.*--overwrite"):
        put(result, a="3")
    put(result, overwrite=True, a="3", c="4")
    assert (result / "link").is_symlink() and (result / "empty").is_dir()
    found = content(result)
    assert json.loads(found.pop(MARKER))["files"] == ["a", "c"]
    assert found == {"a": "3", "c": "4", "notes.txt": "mine", "deep/er/file": "mine too"}
    assert [path.name for path in result.parent.iterdir()] == ["r"]


def test_where_names_meet_both_stay(result):
    (result / "c").write_text("mine")
    put(result, overwrite=True, c="theirs")
    put(result, overwrite=True, c="theirs again")
    assert (result / "c").read_text() == "theirs again" and (result / "c.old-1").read_text() == "mine"
    assert {path.name for path in result.iterdir()} == {"c", "c.old-1", MARKER}


def test_files_that_cannot_be_linked_are_copied(result, monkeypatch):
    (result / "notes.txt").write_text("mine")
    monkeypatch.setattr(os, "link", lambda *_, **__: (_ for _ in ()).throw(OSError("no links here")))
    put(result, overwrite=True, a="3")
    assert (result / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize("kind", ["scores", "sweep", "export", "pictures", "finetuned"])
def test_another_kind_of_result_is_refused(result, kind):
    with pytest.raises(InputError, match="another kind"):
        put(result, kind, overwrite=True)


@pytest.mark.parametrize("marker", ["", "{", "[]", '{"kind": 3}', '{"files": ["a"]}'])
def test_a_marker_that_says_nothing_is_refused(result, marker):
    (result / MARKER).write_text(marker)
    with pytest.raises(InputError, match="another kind" if marker else r"0\.1\.0"):
        put(result, overwrite=True)
    assert (result / "a").read_text() == "1"


def test_a_marker_reaches_nothing_outside(result):
    (result.parent / "precious").write_text("mine")
    (result / MARKER).write_text(json.dumps({"kind": "network", "files": ["../precious", "/etc/passwd", "a"]}))
    put(result, overwrite=True)
    assert (result.parent / "precious").read_text() == "mine"


@pytest.mark.parametrize("relation", ["is", "holds", "lies in", "link", "through a link", "file", "dots"])
def test_what_is_read_is_not_written(relation, tmp_path):
    (tmp_path / "in" / "deeper").mkdir(parents=True)
    (tmp_path / "in" / "file.csv").write_text("")
    (tmp_path / "link").symlink_to(tmp_path / "in")
    target = {
        "is": tmp_path / "in",
        "holds": tmp_path,
        "lies in": tmp_path / "in" / "new",
        "link": tmp_path / "link",
        "through a link": tmp_path / "link" / "new",
        "file": tmp_path / "in" / "file.csv",
        "dots": tmp_path / "in" / "deeper" / "..",
    }[relation]
    with pytest.raises(InputError, match="is read"):
        check_apart(target, [None, "someone/on-the-hub", tmp_path / "in"])
    with pytest.raises(InputError, match="is read"):
        check_new(target, "network", True, [tmp_path / "in"])


def test_a_link_is_followed(tmp_path):
    (tmp_path / "there").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "there")
    put(tmp_path / "link", a="1")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "there" / "a").read_text() == "1"


@pytest.mark.parametrize("name", ["x" * 300, "x" * 240, "a\0b", "", "~nobody-of-this-name/x"])
def test_names_that_no_folder_has(name):
    with pytest.raises(InputError):
        check_new(name, "network")


def test_around_and_around(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "link")
    with pytest.raises(InputError):
        check_new(tmp_path / "link", "network")


def test_what_a_killed_process_left_is_removed_and_all_else_stays(tmp_path):
    stale, busy, alien = (tmp_path / f".r.new-{name}" for name in ("abcdefgh", "12345678", "xxxxxxxx"))
    for folder in (stale, busy, alien, tmp_path / ".r.new-short", tmp_path / ".other.new-abcdefgh"):
        folder.mkdir()
        (folder / "part").write_text("")
        if folder is not alien:
            (folder / MARKER).write_text("")
    lock = os.open(busy, os.O_RDONLY)
    fcntl.flock(lock, fcntl.LOCK_EX)
    (tmp_path / ".r.txt.optin-01234567").write_text("half")
    (tmp_path / ".r.txt.mine").write_text("")
    put(tmp_path / "r", a="1")
    write_text(tmp_path / "r.txt", "whole")
    os.close(lock)
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {"r", "r.txt", busy.name, alien.name, ".r.new-short", ".other.new-abcdefgh", ".r.txt.mine"}


def test_what_was_moved_away_by_a_killed_process_is_put_back(tmp_path):
    """Where folders cannot be exchanged there is a moment in which the place is empty."""
    put(tmp_path / "r", a="1")
    (tmp_path / "r").rename(tmp_path / ".r.new-abcdefgh.old")
    with pytest.raises(InputError, match="not empty"):
        put(tmp_path / "r", a="2")
    assert (tmp_path / "r" / "a").read_text() == "1"


def test_an_error_leaves_nothing(tmp_path):
    with pytest.raises(CheckpointError, match="cannot write"), new_folder(tmp_path / "r", "network") as work:
        (work / "a").write_text("")
        raise OSError("a disk on fire")
    assert list(tmp_path.iterdir()) == []


def test_somebody_who_came_first_is_not_run_over(tmp_path):
    with pytest.raises(InputError, match="not empty"), new_folder(tmp_path / "r", "network") as work:
        (work / "a").write_text("late")
        (tmp_path / "r").mkdir()
        (tmp_path / "r" / "a").write_text("first")
    assert content(tmp_path) == {"r/a": "first"}


@pytest.mark.parametrize("place", [".", "..", "", "deeper/.."])
def test_the_folder_that_one_is_in_is_not_exchanged(place, tmp_path, monkeypatch):
    (tmp_path / "here" / "deeper").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "here")
    with pytest.raises(InputError, match="that you are in|no path"):
        check_new(place, "network")


def test_a_disk_of_its_own_is_not_exchanged():
    with pytest.raises(InputError, match=r"disk of its own|not empty"):
        check_new("/proc", "network")


def test_scratch_of_a_killed_process_goes_with_the_next(tmp_path):
    work, lock = folders._work_folder(tmp_path / "out", "export")
    (work / "model.onnx").write_text("half of it")
    os.close(lock)
    with folders.scratch_beside(tmp_path / "out", "export") as scratch:
        assert list(tmp_path.iterdir()) == [scratch]
        with folders.scratch_beside(tmp_path / "out", "export") as other:
            assert scratch.is_dir() and other != scratch
    assert not list(tmp_path.iterdir())
