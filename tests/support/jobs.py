"""What tests let a pool child do instead of splitting."""

import numpy as np

GIB = 1024**3


def eat_memory() -> None:
    """Want 3 GiB."""
    np.ones(3 * GIB, np.uint8)


def fail() -> None:
    """Fail as torch does."""
    raise RuntimeError("could not create a primitive")


def answer() -> int:
    return 42
