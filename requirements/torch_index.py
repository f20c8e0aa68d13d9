"""Prints the index with torch's CPU build, for pip's --extra-index-url; an empty line leaves torch to pip's settings.

The index is PyTorch's, unless STT_TORCH_INDEX names another; an empty STT_TORCH_INDEX turns it off. This script probes
the index first, because pip retries an index that does not answer for each package. It runs before an environment
exists, so it needs only the standard library.
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


def read_torch_page(index: str) -> str:
    """Return why pip cannot read torch's page in an index; an empty string if it can."""
    try:
        with urlopen(Request(f"{index.rstrip('/')}/torch/", headers={"User-Agent": "stt-async"}), timeout=PROBE_S):
            return ""
    except URLError as error:
        # The index answers, and pip has its own certificates.
        return "" if isinstance(error.reason, ssl.SSLCertVerificationError) else str(error.reason)
    except (OSError, HTTPException, ValueError) as error:
        return str(error) or type(error).__name__


def probe(index: str) -> str:
    """Read torch's page once, in at most PROBE_S in total: urllib's timeout does not cover DNS lookups."""
    if not index.startswith("http") or "@" in index:
        return ""  # only pip reads folders and uses passwords
    answers: queue.SimpleQueue[str] = queue.SimpleQueue()
    threading.Thread(target=lambda: answers.put(read_torch_page(index)), daemon=True).start()
    try:
        return answers.get(timeout=PROBE_S)
    except queue.Empty:
        return f"no answer within {PROBE_S:g} s"


def main() -> None:
    """Print the index; if it cannot be read, print the reason on stderr."""
    index = os.environ.get("STT_TORCH_INDEX", PYTORCH)
    if index and (problem := probe(index)):
        print(
            f"stt-async: cannot read torch's CPU index {index} ({problem}): pip's own settings choose torch's build, "
            "and PyPI's has 3 GB of CUDA; set STT_TORCH_INDEX to another CPU index",
            file=sys.stderr,
        )
        index = ""
    print(index)


if __name__ == "__main__":
    main()
