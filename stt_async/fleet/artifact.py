"""The release that instances boot from: one tarball with wheels, units and boot scripts, named by its sha256.

The wheels are the project's own and those of `requirements/fleet.txt`, for the fleet's machines. Nothing depends on the
machine that builds: the same checkout gives the same bytes.
"""

import gzip
import hashlib
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from stt_async.errors import DependencyError, SettingsError

ROOT = Path(__file__).parents[2]

PYTHON = "3.11"
"""Amazon Linux 2023 has it as `python3.11`."""

PLATFORMS = (*(f"manylinux_2_{minor}_x86_64" for minor in range(34, 16, -1)), "manylinux2014_x86_64")
"""Wheels that Amazon Linux 2023 can run: its glibc is 2.34 (https://docs.aws.amazon.com/linux/al2023/ug/compare-with-al2.html)."""

EPOCH_S = 315_532_800
"""1980-01-01, the earliest time in a zip file; wheels are zip files."""

_PIP = (sys.executable, "-m", "pip", "--no-input", "--disable-pip-version-check", "--quiet")


@dataclass(frozen=True, slots=True)
class Artifact:
    """A built tarball."""

    file: Path
    sha256: str
    size_bytes: int
    members_bytes: dict[str, int]
    """Size of each member by name."""


def build(out_dir: Path) -> Artifact:
    """Build `<sha256>.tar.gz` in `out_dir`, and keep the lock's wheels there for the next build.

    Args:
        out_dir: Output folder; created if it does not exist.

    Raises:
        SettingsError: this is not a checkout of the project.
        DependencyError: a wheel cannot be downloaded or built, or is damaged; the message names it.
    """
    lock = ROOT / "requirements" / "fleet.txt"
    if not lock.is_file():
        raise SettingsError(f"{lock} does not exist: build the artifact in a checkout of the project")
    out_dir.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out_dir, prefix="build-") as scratch:
        wheels = [*_locked_wheels(lock, out_dir), _own_wheel(Path(scratch))]
        requirements = Path(scratch) / "requirements.txt"
        requirements.write_text(f"{lock.read_text()}{_pin(wheels[-1])}\n")
        members = boot_files() | {f"wheels/{wheel.name}": wheel for wheel in wheels} | {requirements.name: requirements}
        tarball = Path(scratch) / "release.tar.gz"
        pack(members, tarball)
        digest = sha256(tarball)
        file = out_dir / f"{digest}.tar.gz"
        sizes = {name: path.stat().st_size for name, path in members.items()}
        tarball.replace(file)
    return Artifact(file, digest, file.stat().st_size, sizes)


def boot_files() -> dict[str, Path]:
    """Return scripts, units and configuration of an instance, by their names in the tarball."""
    infra = ROOT / "infra"
    names = ("boot.sh", "fetch-secrets.sh", "end-instance.sh", "cloudwatch-agent.json", "logrotate.conf")
    units = sorted((infra / "units").iterdir())
    return {name: infra / name for name in names} | {f"units/{unit.name}": unit for unit in units}


def pack(members: Mapping[str, Path], file: Path) -> None:
    """Write a tarball whose bytes depend only on the names and contents of its members; scripts are executable."""
    # Without compression, every zlib gives the same bytes. Wheels are compressed already.
    with (
        gzip.GzipFile(file, "wb", compresslevel=0, mtime=0) as zipped,
        tarfile.open(fileobj=zipped, mode="w", format=tarfile.PAX_FORMAT) as tar,
    ):
        for name, path in sorted(members.items()):
            member = tarfile.TarInfo(name)
            member.size = path.stat().st_size
            member.mode = 0o755 if name.endswith(".sh") else 0o644
            with path.open("rb") as content:
                tar.addfile(member, content)


def sha256(file: Path) -> str:
    """Return the SHA-256 of a file, in hex."""
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def _locked_wheels(lock: Path, out_dir: Path) -> list[Path]:
    """Return the wheels of a lock; download them unless an earlier build did."""
    cache = out_dir / f"wheels-{sha256(lock)[:12]}"
    if not cache.is_dir():
        with tempfile.TemporaryDirectory(dir=out_dir, prefix="download-") as scratch:
            downloaded = Path(scratch) / "all"
            _download(lock, downloaded)
            for outdated in out_dir.glob("wheels-*"):
                shutil.rmtree(outdated)
            downloaded.rename(cache)
    wheels = sorted(cache.iterdir())
    locked = lock.read_text()
    for wheel in wheels:
        if sha256(wheel) not in locked:
            raise DependencyError("wheel_damaged", f"{wheel} has no hash in {lock}: remove {cache} and build again")
    return wheels


def _download(lock: Path, into: Path) -> None:
    target = ["--python-version", PYTHON, "--implementation", "cp", *(f"--platform={name}" for name in PLATFORMS)]
    locked = ["--no-deps", "--require-hashes", "--requirement", str(lock)]
    output = _pip("download", "--only-binary=:all:", *target, *_cpu_index(), *locked, "--dest", str(into))
    if output is None:
        return
    if "DO NOT MATCH THE HASHES" in output:
        raise DependencyError(
            "wheel_differs",
            f"a package index serves another file than {lock.name} locks. If the file is torch, unset STT_TORCH_INDEX: "
            "the lock has the hash of PyTorch's own index. If the file was replaced on purpose, renew the lock with "
            f"requirements/compile\n{output}",
        )
    raise DependencyError(
        "wheels_missing",
        f"pip cannot download all wheels of {lock.name} for {PLATFORMS[0]}, Python {PYTHON}: check pip's index, and "
        f"torch's CPU index, which is PyTorch's unless STT_TORCH_INDEX names another\n{output}",
    )


def _cpu_index() -> Sequence[str]:
    """Return pip's option for the index with torch's CPU build. If it cannot be read, a line on stderr says why."""
    script = ROOT / "requirements" / "torch_index.py"
    done = subprocess.run([sys.executable, script], stdout=subprocess.PIPE, text=True, check=True)  # noqa: S603 - no shell
    index = done.stdout.strip()
    return ["--extra-index-url", index] if index else []


def _own_wheel(scratch: Path) -> Path:
    """Build this project's wheel from a copy without the remains of earlier builds and with fixed file modes."""
    copy, out_dir = scratch / "project", scratch / "wheel"
    shutil.copytree(ROOT / "stt_async", copy / "stt_async", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copyfile(ROOT / name, copy / name)
    for path in copy.rglob("*"):
        path.chmod(0o755 if path.is_dir() else 0o644)
    output = _pip("wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(out_dir), str(copy))
    if output is not None:
        raise DependencyError("own_wheel_failed", f"pip cannot build the wheel of {ROOT}\n{output}")
    (wheel,) = out_dir.iterdir()
    return wheel


def _pip(*arguments: str) -> str | None:
    """Run pip; return the end of its output if it fails."""
    command: Sequence[str] = (*_PIP, *arguments)
    environment = os.environ | {"SOURCE_DATE_EPOCH": str(EPOCH_S)}
    # A wheel contains the modes of files that pip writes, so the umask is fixed.
    done = subprocess.run(  # noqa: S603 - no shell
        command, env=environment, umask=0o022, capture_output=True, text=True, check=False
    )
    if done.returncode == 0:
        return None
    return "\n".join((done.stderr or done.stdout).strip().splitlines()[-10:])


def _pin(wheel: Path) -> str:
    name, version = wheel.name.split("-")[:2]
    return f"{name.replace('_', '-')}=={version} --hash=sha256:{sha256(wheel)}"
