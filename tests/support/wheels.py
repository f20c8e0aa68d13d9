"""A package index on loopback, and empty wheels. A build backend imports it: only the standard library is allowed."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from zipfile import ZipFile


def tiny_wheel(folder: Path, name: str, version: str) -> Path:
    """Write a wheel that holds only its metadata."""
    file = folder / f"{name}-{version}-py3-none-any.whl"
    metadata = {
        "METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n",
        "WHEEL": "Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        "RECORD": "",
    }
    with ZipFile(file, "w") as wheel:
        for member, text in metadata.items():
            wheel.writestr(f"{name}-{version}.dist-info/{member}", text)
    return file


@dataclass(frozen=True)
class PackageIndex:
    """A server of package indexes. Each folder below `folder` is one, because pip reads listings of files."""

    url: str
    folder: Path

    def add(self, index: str, name: str, version: str) -> None:
        """Add a package to an index."""
        package = self.folder / index / name
        package.mkdir(parents=True, exist_ok=True)
        tiny_wheel(package, name, version)


@contextmanager
def package_index(folder: Path) -> Iterator[PackageIndex]:
    """Serve the indexes below a folder on loopback."""
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(SimpleHTTPRequestHandler, directory=folder)) as server:
        Thread(target=server.serve_forever).start()
        try:
            yield PackageIndex(f"http://127.0.0.1:{server.server_port}", folder)
        finally:
            server.shutdown()
