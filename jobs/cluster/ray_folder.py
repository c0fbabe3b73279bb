"""Where a Ray of our own keeps sockets and logs.

Ray takes `ray` below TMPDIR, whatever that is. The path of a socket has at most 107 bytes, which
the TMPDIR of a batch job takes up alone; on a shared machine /tmp/ray is somebody else's; on a full
disk Ray waits for a file that nobody can write.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
from pathlib import Path

from chiasm.pipeline.errors import ChiasmError

ROOM_BYTES = 64 << 20  # of logs, in a run of some hours
FOLDERS = ("/tmp", "/var/tmp", "/dev/shm")  # where the environment names none that will do
_LONGEST = "session_2026-01-01_00-00-00_000000_4194304/sockets/plasma_store"


def ray_folder() -> Path:
    """The first folder that takes sockets and logs, made where it was not there: `ray`, or
    `ray-UID` where that is another user's. Raises ChiasmError."""
    named = map(os.environ.get, ("RAY_TMPDIR", "TMPDIR", "XDG_RUNTIME_DIR"))
    bases = [os.path.abspath(base) for base in (*filter(None, named), *FOLDERS)]
    problems: dict[str, str] = {}
    for base in dict.fromkeys(bases):
        for folder in (Path(base, "ray"), Path(base, f"ray-{os.getuid()}")):
            try:
                _try(folder)
            except OSError as error:
                problems[base] = error.strerror or str(error)
            else:
                return folder
    raise ChiasmError(
        "Ray on this machine",
        expected="a folder for its sockets and logs, ours and with a short path",
        found="; ".join(f"{base}: {why}" for base, why in problems.items()),
        do=f"set RAY_TMPDIR to one with {ROOM_BYTES >> 20} MiB of room and a path of at most "
        f"{107 - len('/ray/' + _LONGEST)} bytes",
    )


def _try(folder: Path) -> None:
    """OSError unless the folder is ours, takes a socket with a name as long as Ray's, and has
    room."""
    folder.mkdir(mode=0o700, exist_ok=True)
    if {folder.stat().st_uid, folder.lstat().st_uid} != {os.geteuid()}:
        raise PermissionError(0, f"{folder} is another user's")
    probe = folder / f"probe-{os.getpid()}-".ljust(len(_LONGEST), "x")
    try:
        with socket.socket(socket.AF_UNIX) as tried:
            tried.bind(os.fsencode(probe))
    except OSError as error:
        # "AF_UNIX path too long" has no errno.
        raise OSError(0, error.strerror or "its path is too long for a socket") from error
    finally:
        with contextlib.suppress(OSError):
            probe.unlink()
    if shutil.disk_usage(folder).free < ROOM_BYTES:
        raise OSError(0, f"less than {ROOM_BYTES >> 20} MiB of room")
