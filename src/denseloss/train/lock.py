"""One process at a time writes to a folder, also where several machines see it."""

import contextlib
import errno
import json
import os
import platform
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from denseloss.data.errors import InputError
from denseloss.data.files import write_whole

_LOCK, _WRITER = ".lock", ".writer"
_BEAT_SECONDS = 5.0
_SILENT_SECONDS = 15.0
_SETTLE_SECONDS = 0.5
# What file systems answer that have no locks: NFS without its lock service, some of clusters.
_NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)


class _BusyError(Exception):
    """Another process has the folder."""


@contextlib.contextmanager
def only_writer(
    path: Path,
    *,
    doing: str,
    way_out: str,
    patience: float = 0.0,
    say: Callable[[str], None] | None = None,
) -> Iterator[None]:
    """Keep other processes from writing to a folder, which is made if it is not there.

    The lock is the operating system's, which ends with the process that has it, however that ends.
    Not every shared file system passes it on to other machines. So the process also writes down who
    it is, and renews the time of that file: a writer of another machine that is silent is dead.

    A folder that was made for this and in which nothing was written is removed at the end.

    Args:
        path: The folder.
        doing: What is done in it, as in "trains here".
        way_out: What whoever comes second can do.
        patience: Seconds to wait for a process that has it.
        say: Told that it has to wait.

    Raises:
        InputError: Another process has it, or the folder cannot be written.
    """
    with contextlib.ExitStack() as cleanup:
        try:
            if path.exists() and not path.is_dir():
                raise InputError(f"{path}: is a file; choose another --out")
            made = [folder for folder in (path, *path.parents) if not folder.exists()]
            cleanup.callback(_remove_empty, made)
            lock = _acquired(path, patience=patience, say=say)
        except _BusyError:
            who = _writer(path)
            raise InputError(
                f"{path}: {_named(who)} {doing} since {who.get('since', 'a moment ago')}; {way_out}"
            ) from None
        except OSError as error:
            raise InputError(
                f"{path}: cannot be written ({error.strerror or error}); choose another --out"
            ) from None
        stop = threading.Event()
        beat = threading.Thread(target=_beat, args=(path / _WRITER, stop), daemon=True)
        beat.start()
        try:
            yield
        finally:
            stop.set()
            beat.join(_BEAT_SECONDS)
            _released(path, lock)


def is_of_a_lock(file: Path) -> bool:
    """Whether a file in a folder belongs to no run, but says who writes."""
    return file.name.startswith((_LOCK, _WRITER))


def _acquired(path: Path, *, patience: float, say: Callable[[str], None] | None) -> FileLock | None:
    """Return the operating system's lock, None where there is no such thing, once it is had."""
    end = time.monotonic() + patience
    vanished = 0
    while True:
        try:
            path.mkdir(parents=True, exist_ok=True)
            return _tried(path, say)
        except _BusyError:
            if time.monotonic() >= end:
                raise
            time.sleep(1)
        except FileNotFoundError:
            # One that was refused has just removed the folder that it had made.
            vanished += 1
            if vanished > 3:
                raise


def _tried(path: Path, say: Callable[[str], None] | None) -> FileLock | None:
    lock: FileLock | None = FileLock(path / _LOCK)
    try:
        assert lock is not None
        lock.acquire(timeout=0)
    except Timeout:
        raise _BusyError from None
    except (OSError, NotImplementedError) as error:
        if isinstance(error, OSError) and error.errno not in _NO_LOCKS:
            raise
        lock = None
    try:
        if _lives(path, _writer(path), locks=lock is not None, say=say):
            raise _BusyError
        me = {
            "pid": os.getpid(),
            "host": platform.node(),
            "since": time.strftime("%Y-%m-%d %H:%M:%S"),
            "id": uuid.uuid4().hex,
        }
        write_whole(path / _WRITER, json.dumps(me) + "\n")
        if lock is None:
            # Two that came at the same time both wrote; the last one has it.
            time.sleep(_SETTLE_SECONDS)
            if _writer(path).get("id") != me["id"]:
                raise _BusyError
    except BaseException:
        if lock is not None:
            lock.release()
        raise
    return lock


def _lives(
    path: Path, who: dict[str, Any], *, locks: bool, say: Callable[[str], None] | None
) -> bool:
    """Whether the writer that a folder names is there, as far as that can be seen from here."""
    if not who:
        return False
    if who.get("host") == platform.node():
        return not locks and _runs(who.get("pid"))
    if say is not None:
        say(f"{path}: was left by {_named(who)}; {_SILENT_SECONDS:g} seconds show whether it lives")
    before = _times(path / _WRITER)
    end = time.monotonic() + _SILENT_SECONDS
    while time.monotonic() < end:
        time.sleep(0.5)
        if _times(path / _WRITER) != before:
            return True
    return False


def _writer(path: Path) -> dict[str, Any]:
    try:
        found = json.loads((path / _WRITER).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _named(who: dict[str, Any]) -> str:
    return f"process {who['pid']} on {who['host']}" if {"pid", "host"} <= {*who} else "a process"


def _runs(pid: Any) -> bool:
    if not isinstance(pid, int) or os.name == "nt":
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


def _times(file: Path) -> tuple[int, int] | None:
    """Return what changes at each beat. NFS asks the server only when a file is opened."""
    try:
        with file.open("rb") as opened:
            status = os.fstat(opened.fileno())
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns


def _beat(file: Path, stop: threading.Event) -> None:
    while not stop.wait(_BEAT_SECONDS):
        with contextlib.suppress(OSError):
            os.utime(file)


def _released(path: Path, lock: FileLock | None) -> None:
    # Before the release: afterwards they are the next process's.
    for name in (_WRITER, _LOCK):
        with contextlib.suppress(OSError):
            (path / name).unlink()
    if lock is not None:
        with contextlib.suppress(OSError):
            lock.release()


def _remove_empty(folders: list[Path]) -> None:
    for folder in folders:
        with contextlib.suppress(OSError):
            folder.rmdir()
