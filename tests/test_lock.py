"""One process at a time writes to a folder, also where the file system has no locks."""

import contextlib
import errno
import json
import os
import platform
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from denseloss.data.errors import InputError
from denseloss.train import lock
from denseloss.train.folder import RunFolder
from denseloss.train.lock import only_writer

HOLD = """
import os, sys, time
from pathlib import Path
from denseloss.train.lock import only_writer
with only_writer(Path(sys.argv[1]), doing="trains here", way_out="wait"):
    if sys.argv[2] == "forks" and os.fork() == 0:
        time.sleep(60)
    print("held", flush=True)
    time.sleep(60)
"""


def held(path: Path) -> Any:
    return only_writer(path, doing="trains here", way_out="wait for it")


def held_by_another(path: Path, how: str = "alone") -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(path), how],
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


@pytest.mark.parametrize("how", ["alone", "forks"])
def test_the_second_is_told_who_has_it_and_a_killed_process_leaves_nothing(
    tmp_path: Path, how: str
) -> None:
    path = tmp_path / "run"
    other = held_by_another(path, how)
    try:
        with pytest.raises(InputError) as refused, held(path):
            pass
        said = f"{path}: process {other.pid} on {platform.node()} trains here since 20"
        assert str(refused.value).startswith(said)
        assert str(refused.value).endswith("; wait for it")
        # What loads images for it lives on for a while, and must not keep the lock.
        other.kill()
        other.wait()
        with held(path):
            assert json.loads((path / ".writer").read_text())["pid"] == os.getpid()
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(other.pid, signal.SIGKILL)
        other.communicate()
    assert list(path.iterdir()) == []


def test_threads_of_one_process_are_kept_apart_and_blocks_of_one_run_may_be_nested(
    tmp_path: Path,
) -> None:
    run, other = RunFolder(tmp_path / "run"), RunFolder(tmp_path / "run")
    with run.locked(), run.locked():
        with pytest.raises(InputError, match=f"process {os.getpid()} on"), other.locked():
            pass
        with run.locked():
            pass
        with pytest.raises(InputError, match="trains here"), other.locked():
            pass
    with other.locked():
        pass


def test_what_was_not_begun_leaves_no_folder(tmp_path: Path) -> None:
    new, old = tmp_path / "a" / "b" / "c", tmp_path / "old"
    old.mkdir()
    with held(new):
        assert new.is_dir()
    assert [p.name for p in tmp_path.iterdir()] == ["old"]
    with held(new):
        (new.parent / "of another").write_text("")
    assert [p.name for p in new.parent.iterdir()] == ["of another"]
    with held(old):
        pass
    assert list(old.iterdir()) == []
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(InputError, match=r"file: is a file; choose another --out"), held(file):
        pass
    with pytest.raises(InputError, match=r"cannot be written \(.*irectory"), held(file / "below"):
        pass


def test_waits_for_one_that_ends(tmp_path: Path) -> None:
    path = tmp_path / "run"
    other = held_by_another(path)
    threading.Timer(0.5, other.kill).start()
    started = time.monotonic()
    with only_writer(path, doing="trains here", way_out="wait", patience=60):
        assert 0.3 < time.monotonic() - started < 30
    other.communicate()


# ---------------------------------------------------------------- without the system's locks


@pytest.fixture
def no_locks(monkeypatch: pytest.MonkeyPatch) -> None:
    def none(*_: object, **__: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(lock.FileLock, "acquire", none)
    monkeypatch.setattr(lock, "_SILENT_SECONDS", 1.2)
    monkeypatch.setattr(lock, "_BEAT_SECONDS", 0.2)
    monkeypatch.setattr(lock, "_SETTLE_SECONDS", 0.2)


def written(path: Path, **changed: object) -> Path:
    path.mkdir(exist_ok=True)
    who = {"pid": os.getpid(), "host": platform.node(), "since": "2026-11-25 10:00:00", **changed}
    (path / ".writer").write_text(json.dumps(who))
    return path / ".writer"


@pytest.mark.usefixtures("no_locks")
def test_a_process_of_this_machine_is_looked_up(tmp_path: Path) -> None:
    written(tmp_path / "run")
    with pytest.raises(InputError, match="since 2026-11-25 10:00:00"), held(tmp_path / "run"):
        pass
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    written(tmp_path / "run", pid=gone.pid)
    with held(tmp_path / "run"):
        pass


@pytest.mark.parametrize("system", [True, False], ids=["local locks", "no locks"])
def test_a_process_of_another_machine_is_alive_while_it_gives_signs(
    tmp_path: Path, system: bool, no_locks: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    if system:  # the system's locks, which other machines do not see
        monkeypatch.setattr(lock.FileLock, "acquire", lambda *_, **__: None)
    file = written(tmp_path / "run", host="node7", pid=5)
    stop = threading.Event()
    beat = threading.Thread(target=lock._beat, args=(file, stop))
    beat.start()
    with pytest.raises(InputError, match="process 5 on node7 trains here"), held(file.parent):
        pass
    stop.set()
    beat.join()
    told: list[str] = []
    with only_writer(file.parent, doing="trains here", way_out="wait", say=told.append):
        assert json.loads(file.read_text())["host"] == platform.node()
    (line,) = told
    assert "was left by process 5 on node7" in line


@pytest.mark.usefixtures("no_locks")
def test_of_two_that_come_at_the_same_moment_one_has_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    both = threading.Barrier(2)
    write: Callable[[Path, str], None] = lock.write_whole
    turn = threading.Lock()

    def at_once(path: Path, text: str) -> None:
        both.wait(20)  # both have seen that nobody is there
        with turn:
            write(path, text)

    monkeypatch.setattr(lock, "write_whole", at_once)
    ends: list[str] = []

    def work() -> None:
        try:
            with held(tmp_path / "run"):
                ends.append("had it")
                time.sleep(1)
        except InputError:
            ends.append("refused")

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(ends) == ["had it", "refused"]
