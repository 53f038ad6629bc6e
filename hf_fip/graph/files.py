"""Files written so that they survive a crash, and shared where they are equal."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterable
from pathlib import Path

from transformers.utils import logging


logger = logging.get_logger(__name__)

_BLOCK = 1 << 20
_STORAGE_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO}


def write_text(path: Path, text: str) -> None:
    """Writes a file and waits until the disk has it."""
    with open(path, "w", encoding="utf-8", newline="\n") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def replace_text(path: Path, text: str) -> None:
    """
    Writes a file in one step: a reader never sees half of it, and a crash leaves the last one. Folders are made.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".tmp-{path.name}.{os.getpid()}")
    try:
        write_text(unfinished, text)
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)
    sync_folder(path.parent)


def sync(path: Path) -> None:
    """Waits until the disk has what was written to a file."""
    # Windows flushes through writable descriptors only.
    descriptor = os.open(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_folder(folder: Path) -> None:
    """Waits until the disk has a folder's entries."""
    # Windows has no descriptors of folders; its renames are journalled.
    if os.name != "nt":
        sync(folder)


def link_equal(folder: Path, files: Iterable[Path], parent_folder: Path) -> set[Path]:
    """
    Replaces files that are equal to another folder's by hard links to those.

    Args:
        folder (`Path`): where the files lie.
        files (`Iterable[Path]`): the files to consider.
        parent_folder (`Path`): has files of the same relative paths.

    Returns:
        `set[Path]`: the files that are links now. Where links do not work, the copies stay.
    """
    shared = set()
    link = folder / ".tmp-link"
    for path in files:
        twin = parent_folder / path.relative_to(folder)
        try:
            if not twin.is_file() or not _same_bytes(path, twin):
                continue
            os.link(twin, link)
            os.replace(link, path)
            shared.add(path)
        except OSError as error:
            logger.debug(f"{path}: not shared with the parent node: {error}")
        finally:
            link.unlink(missing_ok=True)
    return shared


def storage_error(error: BaseException) -> int | None:
    """
    Args:
        error (`BaseException`): raised while files were written.

    Returns:
        `int`, *optional*: the error number if the disk is full, read-only or failing. Libraries written in Rust
        (safetensors, tokenizers) give it in the message only.
    """
    number = getattr(error, "errno", None)
    if number is None and (match := re.search(r"\(os error (\d+)\)", str(error))):
        number = int(match[1])
    return number if number in _STORAGE_ERRORS else None


def _same_bytes(path: Path, twin: Path) -> bool:
    size = path.stat().st_size
    if size != twin.stat().st_size:
        return False
    with open(path, "rb", buffering=0) as left, open(twin, "rb", buffering=0) as right:
        # Weights have the parent's size too. A few samples settle nearly all of them without reading the file; what
        # they leave open is most likely equal, and then reading it costs less than writing it to the disk.
        for offset in range(0, size, max(_BLOCK, size // 64)):
            left.seek(offset)
            right.seek(offset)
            if left.read(4096) != right.read(4096):
                return False
        left.seek(0)
        right.seek(0)
        while block := left.read(_BLOCK):
            if block != right.read(_BLOCK):
                return False
    return True
