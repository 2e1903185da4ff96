"""The directory of one run: filled, read back without following anything that the run may have laid there, and emptied."""

from __future__ import annotations

import os
import stat


def fill(directory: str, files: dict[str, bytes]) -> None:
    """Write ``files`` (relative paths, checked by the sender) into a directory that nobody else has touched."""
    for name, content in files.items():
        path = os.path.join(directory, name)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "xb") as f:
            f.write(content)


def collect(directory: str, names: list[str], most: int) -> dict[str, bytes] | None:
    """Contents of the regular files ``names`` that are there; None where they are larger than ``most`` bytes together.

    No part of a path is followed through a symbolic link, and a pipe or device is not opened.
    """
    found: dict[str, bytes] = {}
    for name in names:
        fd = _open(directory, name.split("/"))
        if fd is None:
            continue
        with open(fd, "rb") as f:
            size = os.fstat(fd).st_size
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                continue
            most -= size
            if most < 0:
                return None
            found[name] = f.read(size)
    return found


def _open(directory: str, parts: list[str]) -> int | None:
    here = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        for part in parts[:-1]:
            below = os.open(part, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=here)
            os.close(here)
            here = below
        if not stat.S_ISREG(os.stat(parts[-1], dir_fd=here, follow_symlinks=False).st_mode):
            return None
        return os.open(parts[-1], os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=here)
    except OSError:
        return None
    finally:
        os.close(here)


def clear(directory: str) -> None:
    """Remove all that is below ``directory``, however deep (no recursion, no long paths) and whatever its mode. Raises OSError.

    Directories within a directory are moved to the top before it is removed.
    """
    top = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    moved = 0
    try:
        while names := os.listdir(top):
            for name in names:
                if not _is_directory(name, top):
                    os.unlink(name, dir_fd=top)
                    continue
                os.chmod(name, 0o700, dir_fd=top)
                below = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=top)
                try:
                    for inner in os.listdir(below):
                        if not _is_directory(inner, below):
                            os.unlink(inner, dir_fd=below)
                            continue
                        os.chmod(inner, 0o700, dir_fd=below)  # to be moved, a directory's own entry for .. has to be written
                        moved += 1
                        while _exists(f".{moved}", top):
                            moved += 1
                        os.rename(inner, f".{moved}", src_dir_fd=below, dst_dir_fd=top)
                finally:
                    os.close(below)
                os.rmdir(name, dir_fd=top)
    finally:
        os.close(top)


def _is_directory(name: str, parent: int) -> bool:
    return stat.S_ISDIR(os.stat(name, dir_fd=parent, follow_symlinks=False).st_mode)


def _exists(name: str, parent: int) -> bool:
    try:
        os.stat(name, dir_fd=parent, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return True
