"""What a process does to the machine while a case runs: programs it starts, files it writes.

Python tells an audit hook of every file that is opened and every program that is started. What a C
library does is not heard there, so every name on the PATH is a stub that records its use, and the
places in which libraries like to write (home, temporary files, the current folder) are watched.
"""

import contextlib
import os
import stat
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

PROGRAM, ELSEWHERE = "program", "elsewhere"
RECORD = "RECORD_OF_PROGRAMS"
_CALLED_BY_LIBRARIES = (
    "gs", "convert", "magick", "identify", "cjpeg", "djpeg", "cwebp", "dwebp", "ffmpeg", "ffprobe",
    "xdg-open", "open", "display", "eog", "xv", "gm", "pdftoppm", "inkscape", "rsvg-convert",
    "ppmtogif", "giftopnm", "exiftool", "dcraw", "sh", "bash", "gzip", "gunzip", "bzip2", "xz",
    "zstd", "tar", "unzip", "7z", "git", "curl", "wget", "cc", "gcc", "ld", "ldconfig", "objdump",
    "uname", "file", "lscpu", "nvidia-smi",
)  # fmt: skip
_STUB = f'#!/bin/sh\nprintf "%s %s\\n" "$0" "$*" >> "${RECORD}"\nexit 1\n'
_STARTS = (
    "subprocess.Popen", "os.system", "os.posix_spawn", "os.exec", "os.fork", "os.forkpty",
    "os.spawn", "pty.spawn", "os.startfile",
)  # fmt: skip
_CONNECTS = ("socket.connect", "socket.bind", "socket.sendto", "socket.getaddrinfo")
_CHANGES_AT_FIRST = (
    "os.mkdir", "os.remove", "os.rmdir", "os.truncate", "os.chmod", "os.chown", "os.utime",
    "os.setxattr", "os.removexattr", "shutil.rmtree", "tempfile.mkstemp", "tempfile.mkdtemp",
)  # fmt: skip
_IN_OPEN_FOLDERS = ("os.mkdir", "os.remove", "os.rmdir")  # the last argument is one, or -1
_CHANGES_AT_SECOND = ("os.symlink", "os.link", "shutil.copyfile", "shutil.copytree")
_CHANGES_AT_BOTH = ("os.rename", "shutil.move")
_RUNS_CODE = {"compile": 1, "ctypes.dlopen": 0, "import": 1}  # which argument is a path
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


@dataclass
class Guard:
    """A `Guard` collects what a process does to the machine while `watch` is entered.

    Attributes:
        own: the folders of the cases, in which everything may be written.
        allowed: other places in which everything may be written.
        record: where the stubs write down how they were called.
        empty: folders that are empty after each case.
        deeds: what must not be, as (`PROGRAM` or `ELSEWHERE`, a description).
    """

    own: tuple[Path, ...]
    allowed: tuple[Path, ...]
    record: Path
    empty: tuple[Path, ...]
    deeds: list[tuple[str, str]] = field(default_factory=list)
    is_on: bool = False

    @contextlib.contextmanager
    def watch(self) -> Iterator[None]:
        """Collect what happens meanwhile."""
        self._look_around()  # what was there before is not the case's
        self.deeds.clear()
        self.is_on = True
        try:
            yield
        finally:
            self.is_on = False
            self._look_around()

    def _look_around(self) -> None:
        """Find what no audit event has told, and put it away for the next case."""
        if self.record.exists():
            self.deeds.append((PROGRAM, self.record.read_text(errors="replace").splitlines()[0]))
            self.record.unlink()
        for folder in self.empty:
            for path in sorted(folder.rglob("*"), reverse=True):
                self.deeds.append((ELSEWHERE, f"{path} is there afterwards"))
                path.rmdir() if path.is_dir() and not path.is_symlink() else path.unlink()

    def hear(self, event: str, arguments: tuple[Any, ...]) -> None:
        """Take one audit event."""
        if not self.is_on:
            return
        self.is_on = False  # what is done here is not the case's
        try:
            self._judge(event, arguments)
        finally:
            self.is_on = True

    def _judge(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event in _STARTS:
            self.deeds.append((PROGRAM, f"{event}{arguments!r}"[:200]))
        elif event in _CONNECTS:
            self.deeds.append((ELSEWHERE, f"{event}{arguments[1:]!r}"[:200]))
        elif event in _RUNS_CODE:
            path = arguments[_RUNS_CODE[event]]
            if isinstance(path, str) and self._is_in(path, self.own):
                self.deeds.append((PROGRAM, f"{event} of {path}"))
        elif event == "open":
            path, _, flags = arguments
            # a folder is opened for a file without a name, which is gone with its process
            if isinstance(flags, int) and flags & _WRITES and not os.path.isdir(path):
                self._check_place(event, os.path.realpath, path)
        else:
            for path in _list_changed(event, arguments):
                self._check_place(event, _resolve_parent, path)

    def _check_place(self, event: str, resolve: Any, path: Any) -> None:
        if not isinstance(path, str | bytes | os.PathLike):
            return
        place = Path(resolve(os.fsdecode(path)))
        if not self._is_in(place, (*self.own, *self.allowed)):
            self.deeds.append((ELSEWHERE, f"{event} of {place}"))

    def _is_in(self, path: str | Path, folders: tuple[Path, ...]) -> bool:
        return any(Path(path).is_relative_to(folder) for folder in folders)


def _list_changed(event: str, arguments: tuple[Any, ...]) -> list[Any]:
    """List the paths that an event changes."""
    at_first = event in _CHANGES_AT_FIRST or event in _CHANGES_AT_BOTH
    at_second = event in _CHANGES_AT_SECOND or event in _CHANGES_AT_BOTH
    paths = [*arguments[: int(at_first)], *(arguments[1:2] if at_second else [])]
    if event in _IN_OPEN_FOLDERS and arguments[-1] >= 0:
        folder = os.readlink(f"/proc/self/fd/{arguments[-1]}")
        return [os.path.join(folder, os.fsdecode(path)) for path in paths]
    return paths


def _resolve_parent(path: str) -> str:
    """Resolve all links but the last: a link is removed itself, not what it names."""
    folder, name = os.path.split(os.path.abspath(path))
    return os.path.join(os.path.realpath(folder), name)


def stand_guard(folder: Path, own: tuple[Path, ...], *, stubs: Path) -> Guard:
    """Change the environment of this process so that it is watched, for good.

    Args:
        folder: in which folders in the place of home, of temporary files, of the compiler's cache
            and of the current one are made.
        own: the folders of the cases, in which everything may be written.
        stubs: what `write_stubs` wrote.
    """
    record, cache = folder / "programs.txt", folder / "cache"
    empty = tuple(folder / name for name in ("home", "temporary", "current"))
    for path in (*empty, cache):
        path.mkdir(exist_ok=True)
    home, temporary, current = map(str, empty)
    os.environ |= {
        "PATH": f"{stubs}:{os.environ.get('PATH', os.defpath)}",
        RECORD: str(record),
        "HOME": home,
        "TMPDIR": temporary,
        "XDG_CACHE_HOME": str(cache),  # of the compiler
    }
    os.chdir(current)
    tempfile.tempdir = None
    tempfile.gettempdir()  # it tries the folder out now, and not in a case
    sys.dont_write_bytecode = True
    guard = Guard(
        tuple(path.resolve() for path in own), (cache.resolve(), Path(os.devnull)), record, empty
    )
    sys.addaudithook(guard.hear)
    return guard


def write_stubs(folder: Path) -> None:
    """Write a program that records its use, under each name on the PATH and some more."""
    folder.mkdir(parents=True)
    stub = folder.parent / "stub.sh"
    stub.write_text(_STUB)
    stub.chmod(stub.stat().st_mode | stat.S_IXUSR | stat.S_IXGRP | stat.S_IXOTH)
    names = {*_CALLED_BY_LIBRARIES}
    for place in os.environ.get("PATH", os.defpath).split(":"):
        with contextlib.suppress(OSError):  # not every folder of a PATH exists
            names |= set(os.listdir(place or "."))
    for name in names:
        (folder / name).symlink_to(stub)
