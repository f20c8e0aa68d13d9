"""The release that instances boot from: its members, and the same bytes from each build."""

import os
import tarfile
from pathlib import Path

import pytest

from stt_async.fleet.artifact import ROOT, Artifact, build, pack, sha256
from tests.support.commands import run_command
from tests.support.wheels import PackageIndex

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

NO_INDEX = {"PIP_NO_INDEX": "1", "PIP_CONFIG_FILE": os.devnull, "STT_TORCH_INDEX": ""}


def test_bytes_depend_only_on_names_and_contents(tmp_path: Path) -> None:
    for number, (order, mode, time_s) in enumerate([(("a", "b.sh"), 0o600, 1.0), (("b.sh", "a"), 0o664, 1e9)]):
        folder = tmp_path / str(number)
        folder.mkdir()
        for name in order:
            (folder / name).write_text(f"content of {name}")
            (folder / name).chmod(mode)
            os.utime(folder / name, (time_s, time_s))
        pack({name: folder / name for name in order}, folder / "packed")
    assert (tmp_path / "0/packed").read_bytes() == (tmp_path / "1/packed").read_bytes()
    with tarfile.open(tmp_path / "0/packed") as tar:
        assert {member.name: member.mode for member in tar} == {"a": 0o644, "b.sh": 0o755}


def test_release_holds_only_wheels_units_scripts_and_configuration(artifact: Artifact) -> None:
    assert artifact.file.name == f"{sha256(artifact.file)}.tar.gz" == f"{artifact.sha256}.tar.gz"
    with tarfile.open(artifact.file) as tar:
        members = {member.name: member.size for member in tar}
        owners = {(member.uid, member.gid, member.uname, member.mtime) for member in tar}
    assert members == artifact.members_bytes
    assert owners == {(0, 0, "", 0)}
    wheels = {name for name in members if name.startswith("wheels/") and name.endswith(".whl")}
    units = {f"units/{unit.name}" for unit in (ROOT / "infra/units").iterdir()}
    scripts = {"boot.sh", "fetch-secrets.sh", "end-instance.sh"}
    assert members.keys() - wheels - units - scripts == {"requirements.txt", "cloudwatch-agent.json", "logrotate.conf"}
    assert not any("nvidia" in wheel or "cuda" in wheel or "moto" in wheel for wheel in wheels)
    assert any("torch" in wheel and "+cpu" in wheel for wheel in wheels)


def test_same_checkout_gives_same_bytes(artifact: Artifact) -> None:
    umask = os.umask(0o077)
    try:
        again = build(artifact.file.parent)
    finally:
        os.umask(umask)
    assert again.sha256 == artifact.sha256


async def test_build_without_an_index_names_the_missing_wheel(tmp_path: Path) -> None:
    done = await run_command("deploy", "build", "--out", str(tmp_path), environment=NO_INDEX)
    assert done.returncode == 3
    assert "aioboto3==15.5.0" in done.stderr
    assert "STT_TORCH_INDEX" in done.stderr
    assert not list(tmp_path.iterdir())


async def test_wheel_with_another_hash_than_the_lock_is_rejected(tmp_path: Path, index: PackageIndex) -> None:
    index.add("pypi", "aioboto3", "15.5.0")
    other = {"PIP_CONFIG_FILE": os.devnull, "PIP_INDEX_URL": f"{index.url}/pypi", "STT_TORCH_INDEX": ""}

    done = await run_command("deploy", "build", "--out", str(tmp_path / "dist"), environment=other)

    assert done.returncode == 3
    assert "another file than fleet.txt locks" in done.stderr
    assert "requirements/compile" in done.stderr
    assert "aioboto3==15.5.0" in done.stderr


@pytest.mark.usefixtures("artifact")  # skips if the wheels cannot be downloaded
async def test_wheels_of_an_older_lock_are_deleted_after_the_download(tmp_path: Path) -> None:
    index = {name: value for name, value in os.environ.items() if name.startswith(("PIP_", "STT_TORCH_INDEX"))}
    older = tmp_path / "wheels-of-an-older-lock"
    older.mkdir()
    await run_command("deploy", "build", "--out", str(tmp_path), environment=NO_INDEX)
    assert older.is_dir(), "no wheels replace them yet"
    done = await run_command("deploy", "build", "--out", str(tmp_path), environment=index, timeout_s=300.0)
    assert done.returncode == 0, done.stderr
    assert not older.exists()


def test_damaged_wheel_in_the_cache_is_rejected(tmp_path: Path, artifact: Artifact) -> None:
    (cache,) = artifact.file.parent.glob("wheels-*")
    copy = tmp_path / cache.name
    copy.mkdir()
    for wheel in cache.iterdir():
        os.link(wheel, copy / wheel.name)
    (damaged,) = copy.glob("rich-*.whl")
    damaged.unlink()
    damaged.write_bytes(b"")
    with pytest.raises(Exception, match=damaged.name):
        build(tmp_path)
