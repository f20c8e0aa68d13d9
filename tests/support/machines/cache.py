"""Folders that are expensive to make, kept outside of the project between runs."""

import fcntl
import os
import shutil
from collections.abc import Callable
from pathlib import Path

CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "stt-async"


def cached(name: str, make: Callable[[Path], None]) -> Path:
    """Return the folder of this name in the cache. If it does not exist, `make` fills it while other processes wait."""
    CACHE.mkdir(parents=True, exist_ok=True)
    folder, unfinished = CACHE / name, CACHE / f"{name}.unfinished"
    with (CACHE / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not folder.is_dir():
            shutil.rmtree(unfinished, ignore_errors=True)
            unfinished.mkdir()
            make(unfinished)
            unfinished.rename(folder)
    return folder
