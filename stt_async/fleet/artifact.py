"""What an instance boots from: one tarball with wheels, units and boot script, named by its own sha256.

The wheels are those of `requirements/fleet.txt`, for the machines of the fleet, whatever this one is; and the project's
own. Nothing of this machine goes in: the same checkout gives the same bytes.
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
"""What its C library takes: glibc 2.34 (https://docs.aws.amazon.com/linux/al2023/ug/compare-with-al2.html)."""

EPOCH = 315_532_800
"""1980-01-01, the earliest time that a zip (a wheel is one) can hold."""

_PIP = (sys.executable, "-m", "pip", "--no-input", "--disable-pip-version-check", "--quiet")


@dataclass(frozen=True, slots=True)
class Artifact:
    """A built tarball."""

    file: Path
    sha256: str
    size_bytes: int
    members_bytes: dict[str, int]
    """Size of each member, by its name."""


def build(out_dir: Path) -> Artifact:
    """Build `<sha256>.tar.gz` in `out_dir`, which keeps the wheels of the lock for the next time.

    Args:
        out_dir: Made if it is not there.

    Raises:
        SettingsError: this is no checkout of the project.
        DependencyError: a wheel cannot be had; it says which.
    """
    lock = ROOT / "requirements" / "fleet.txt"
    if not lock.is_file():
        raise SettingsError(f"{lock} is not there: build the artifact in a checkout of the project")
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
    """Return what a booting instance runs and installs beside the wheels, by its name in the tarball."""
    infra = ROOT / "infra"
    names = ("boot.sh", "fetch-secrets.sh", "end-instance.sh", "cloudwatch-agent.json", "logrotate.conf")
    units = sorted((infra / "units").iterdir())
    return {name: infra / name for name in names} | {f"units/{unit.name}": unit for unit in units}


def pack(members: Mapping[str, Path], file: Path) -> None:
    """Write files as a tarball that depends on their names and contents alone; scripts can be executed."""
    # Wheels are compressed already. Not compressed again, the bytes are the same with every zlib.
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
    """Return the hash of a file, in hex."""
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def _locked_wheels(lock: Path, out_dir: Path) -> list[Path]:
    """Return the wheels of a lock; downloaded, if not by an earlier build."""
    kept = out_dir / f"wheels-{sha256(lock)[:12]}"
    if not kept.is_dir():
        with tempfile.TemporaryDirectory(dir=out_dir, prefix="download-") as scratch:
            downloaded = Path(scratch) / "all"
            _download(lock, downloaded)
            for of_another_lock in out_dir.glob("wheels-*"):
                shutil.rmtree(of_another_lock)
            downloaded.rename(kept)
    wheels = sorted(kept.iterdir())
    known = lock.read_text()
    for wheel in wheels:
        if sha256(wheel) not in known:
            raise DependencyError("wheel_damaged", f"{wheel} is not what {lock} locks: remove {kept} and build again")
    return wheels


def _download(lock: Path, into: Path) -> None:
    target = ["--python-version", PYTHON, "--implementation", "cp", *(f"--platform={name}" for name in PLATFORMS)]
    locked = ["--no-deps", "--require-hashes", "--requirement", str(lock)]
    problem = _pip("download", "--only-binary=:all:", *target, *_cpu_index(), *locked, "--dest", str(into))
    if problem is None:
        return
    if "DO NOT MATCH THE HASHES" in problem:
        raise DependencyError(
            "wheel_differs",
            f"an index serves another file than {lock.name} locks. The lock's hash of torch is that of PyTorch's own "
            "index: unset STT_TORCH_INDEX. If a file was replaced on purpose, renew the lock: requirements/compile\n"
            f"{problem}",
        )
    raise DependencyError(
        "wheels_missing",
        f"pip could not get all wheels of {lock.name} for {PLATFORMS[0]}, Python {PYTHON}; torch's CPU build is in an "
        f"index of its own, PyTorch's unless STT_TORCH_INDEX names another\n{problem}",
    )


def _cpu_index() -> Sequence[str]:
    """Return pip's option for the index with torch's CPU build. If there is none, a line on stderr says why."""
    script = ROOT / "requirements" / "torch_index.py"
    done = subprocess.run([sys.executable, script], stdout=subprocess.PIPE, text=True, check=True)  # noqa: S603 - ours
    index = done.stdout.strip()
    return ["--extra-index-url", index] if index else []


def _own_wheel(scratch: Path) -> Path:
    """Build this project's wheel, from a copy: what an earlier build left, and modes of files, stay out of it."""
    copy, made = scratch / "project", scratch / "made"
    shutil.copytree(ROOT / "stt_async", copy / "stt_async", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copyfile(ROOT / name, copy / name)
    for path in copy.rglob("*"):
        path.chmod(0o755 if path.is_dir() else 0o644)
    problem = _pip("wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(made), str(copy))
    if problem is not None:
        raise DependencyError("own_wheel_failed", f"pip could not build the wheel of {ROOT}\n{problem}")
    (wheel,) = made.iterdir()
    return wheel


def _pip(*arguments: str) -> str | None:
    """Run pip; return the end of what it said if it failed."""
    command: Sequence[str] = (*_PIP, *arguments)
    environment = os.environ | {"SOURCE_DATE_EPOCH": str(EPOCH)}
    # umask: a wheel holds the modes of what pip writes on the way.
    done = subprocess.run(  # noqa: S603 - no shell
        command, env=environment, umask=0o022, capture_output=True, text=True, check=False
    )
    if done.returncode == 0:
        return None
    return "\n".join((done.stderr or done.stdout).strip().splitlines()[-10:])


def _pin(wheel: Path) -> str:
    name, version = wheel.name.split("-")[:2]
    return f"{name.replace('_', '-')}=={version} --hash=sha256:{sha256(wheel)}"
