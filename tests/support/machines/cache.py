"""What is expensive to make and kept between runs, outside of the project: made once, by one process."""

import fcntl
import os
import shutil
from collections.abc import Callable
from pathlib import Path

CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "stt-async"


def cached(name: str, make: Callable[[Path], None]) -> Path:
    """Return the folder of this name in the cache; if it is not there, `make` fills it. Others wait meanwhile."""
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
