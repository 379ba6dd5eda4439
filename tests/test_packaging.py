"""What the wheel and the sdist contain, and what the wheel does where nothing else is installed."""

from __future__ import annotations

import email.parser
import os
import re
import subprocess
import sys
import tarfile
import zipfile
from importlib.metadata import entry_points
from pathlib import Path

import pytest

import hetcache_core

ROOT = Path(__file__).parents[1]
PACKAGES = {
    "hetcache": ROOT / "app",
    "hetcache_backends": ROOT / "backends",
    "hetcache_core": ROOT,
    "hetcache_policies": ROOT / "policies",
}
EXTRAS = {"all", "app", "diffsynth", "diffusers", "onnx", "ray"}


def run(*command: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run a command away from the checkout, and show its output when it fails."""
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done


def build(source: Path, target: str, directory: Path) -> Path:
    """Build one distribution of a source tree with hatchling."""
    run(sys.executable, "-m", "hatchling", "build", "-t", target, "-d", directory, cwd=source)
    (built,) = directory.iterdir()
    return built


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(ROOT, "wheel", tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="session")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(ROOT, "sdist", tmp_path_factory.mktemp("sdist"))


def wheel_names(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


def sdist_names(sdist: Path) -> set[str]:
    """The files of the sdist, without the folder that all of them are in."""
    with tarfile.open(sdist) as archive:
        return {m.name.split("/", 1)[1] for m in archive.getmembers() if m.isfile()}


def tracked_files() -> set[str]:
    """The files that belong to the checkout: those that git does not ignore."""
    command = ("git", "ls-files", "--cached", "--others", "--exclude-standard")
    names = run(*command, cwd=ROOT).stdout.splitlines()
    return {name for name in names if (ROOT / name).is_file()}


@pytest.mark.packaging
def test_the_wheel_has_only_our_four_packages_at_its_top_level(wheel: Path) -> None:
    top = {name.split("/")[0] for name in wheel_names(wheel)}
    version = wheel.name.split("-")[1]
    assert top == {*PACKAGES, f"hetcache-{version}.dist-info"}


@pytest.mark.packaging
def test_the_wheel_holds_every_file_of_the_packages(wheel: Path) -> None:
    """Weights, fonts and ``py.typed`` are as much part of a package as its modules."""
    roots = {f"{(base / name).relative_to(ROOT)}/": name for name, base in PACKAGES.items()}
    expected = {
        f"{package}/{file.removeprefix(folder)}"
        for file in tracked_files()
        for folder, package in roots.items()
        if file.startswith(folder)
    }
    packaged = {name for name in wheel_names(wheel) if ".dist-info/" not in name}
    assert packaged == expected


@pytest.mark.packaging
def test_every_package_is_marked_as_typed(wheel: Path) -> None:
    assert {f"{package}/py.typed" for package in PACKAGES} <= wheel_names(wheel)


@pytest.mark.packaging
def test_the_metadata_names_license_extras_and_supported_python(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (n for n in archive.namelist() if n.endswith(".dist-info/METADATA"))
        metadata = email.parser.Parser().parsestr(archive.read(name).decode())
    assert metadata["License-Expression"] == "Apache-2.0"
    assert metadata["Requires-Python"] == ">=3.10"
    assert set(metadata.get_all("Provides-Extra", [])) == EXTRAS
    described = metadata.get_payload()
    assert "# hetcache" in described
    assert not re.search(
        r"\]\((?!https?://)", described
    )  # relative links lead nowhere from an index


@pytest.mark.packaging
def test_the_sdist_holds_sources_tests_and_docs_but_no_caches(sdist: Path) -> None:
    names = sdist_names(sdist)
    assert {"LICENSE", "README.md", "pyproject.toml", "tox.ini", "tests/test_packaging.py"} <= names
    assert "docs/index.md" in names
    assert names - {"PKG-INFO"} <= tracked_files()


@pytest.mark.packaging
def test_the_wheel_built_from_the_sdist_is_the_same(
    wheel: Path, sdist: Path, tmp_path: Path
) -> None:
    with tarfile.open(sdist) as archive:
        archive.extractall(tmp_path / "source", filter="data")
    (source,) = (tmp_path / "source").iterdir()
    rebuilt = build(source, "wheel", tmp_path / "rebuilt")
    with zipfile.ZipFile(wheel) as one, zipfile.ZipFile(rebuilt) as other:
        assert {i.filename: i.CRC for i in one.infolist()} == {
            i.filename: i.CRC for i in other.infolist()
        }


@pytest.fixture(scope="session")
def bin_of_empty_environment(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Install the wheel, with what it requires and no extra, where nothing else is installed."""
    pytest.importorskip("uv")
    home = tmp_path_factory.mktemp("empty")
    uv = (sys.executable, "-m", "uv")
    run(*uv, "venv", "--no-project", "--python", sys.executable, home / "env", cwd=home)
    programs = home / "env" / ("Scripts" if os.name == "nt" else "bin")
    run(*uv, "pip", "install", "--python", programs / "python", wheel, cwd=home)
    return programs


@pytest.mark.packaging
def test_the_core_can_be_imported_in_an_empty_environment(
    bin_of_empty_environment: Path, tmp_path: Path
) -> None:
    code = "import hetcache_core, sys; print(hetcache_core.__file__); sys.exit('diffsynth' in sys.modules)"
    done = run(bin_of_empty_environment / "python", "-c", code, cwd=tmp_path)
    assert Path(done.stdout.strip()).is_relative_to(bin_of_empty_environment.parent)


@pytest.mark.packaging
def test_the_command_is_installed_and_names_the_extra_that_it_needs(
    bin_of_empty_environment: Path, tmp_path: Path
) -> None:
    done = subprocess.run(
        (bin_of_empty_environment / "hetcache", "--version"),
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert "hetcache[app]" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_built_ins_are_found_like_everybody_elses_plugins() -> None:
    found = {point.name: point.value for point in entry_points(group="hetcache")}
    assert found["builtin-app"] == "hetcache.plugin"
    assert found["builtin-backbones"] == "hetcache_backends.plugin"
    assert found["builtin-policies"] == "hetcache_policies.plugin"


@pytest.mark.skipif("TOX_ENV_NAME" not in os.environ, reason="outside tox any install will do")
def test_under_tox_the_installed_wheel_is_tested_not_the_checkout() -> None:
    assert "site-packages" in Path(hetcache_core.__file__).parts
