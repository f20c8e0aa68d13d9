"""Prints the package index with torch's CPU build, for pip's --extra-index-url; an empty line if pip's settings decide.

It is PyTorch's public index, unless STT_TORCH_INDEX names another; an empty STT_TORCH_INDEX turns it off. It is read
once here before pip uses it: pip would retry an index that does not answer for each package. This runs before there is
an environment, so it needs only Python's standard library.
"""

import os
import queue
import ssl
import sys
import threading
from http.client import HTTPException
from urllib.error import URLError
from urllib.request import Request, urlopen

PYTORCH = "https://download.pytorch.org/whl/cpu"
"""From the install page, https://pytorch.org/get-started/locally/."""

PROBE_S = 4.0


def ask(index: str) -> str:
    """Return why pip cannot read torch's page in an index; an empty text if it can."""
    try:
        with urlopen(Request(f"{index.rstrip('/')}/torch/", headers={"User-Agent": "stt-async"}), timeout=PROBE_S):
            return ""
    except URLError as error:
        # Something answers, and pip has certificates of its own.
        return "" if isinstance(error.reason, ssl.SSLCertVerificationError) else str(error.reason)
    except (OSError, HTTPException, ValueError) as error:
        return str(error) or type(error).__name__


def probe(index: str) -> str:
    """Ask an index once, for at most PROBE_S in all: no timeout of urllib's bounds the look-up of a name."""
    if not index.startswith("http") or "@" in index:
        return ""  # only pip reads folders, and gives passwords
    answers: queue.SimpleQueue[str] = queue.SimpleQueue()
    threading.Thread(target=lambda: answers.put(ask(index)), daemon=True).start()
    try:
        return answers.get(timeout=PROBE_S)
    except queue.Empty:
        return f"nothing within {PROBE_S:g} s"


def main() -> None:
    """Print the index, and on stderr why it is left out."""
    index = os.environ.get("STT_TORCH_INDEX", PYTORCH)
    if index and (problem := probe(index)):
        print(
            f"stt-async: cannot read torch's CPU index {index} ({problem}): pip's own settings decide which torch is "
            "installed, and PyPI's brings 3 GB of CUDA; STT_TORCH_INDEX names another index",
            file=sys.stderr,
        )
        index = ""
    print(index)


if __name__ == "__main__":
    main()
