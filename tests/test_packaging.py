"""The sdist is complete, and the wheel built from it imports away from the repository."""

import os
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest

import pyro_mixtures

ROOT = Path(__file__).parent.parent
SETTINGS = tomllib.loads((ROOT / "pyproject.toml").read_text())
SOURCES = ("pyproject.toml", "README.md", "LICENSE", "pyro_mixtures", "models", "guides")


def run(code: str, folder: Path, **environment: str) -> str:
    """Output of a Python program that runs in ``folder`` and does not see the repository."""
    variables = {name: os.environ[name] for name in os.environ if name != "PYTHONPATH"}
    outcome = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        cwd=folder,
        env={**variables, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert outcome.returncode == 0, outcome.stderr
    return outcome.stdout.strip()


@pytest.fixture(scope="module")
def sdist(tmp_path_factory) -> Path:
    """Built by the declared build backend from a copy of the sources, without network."""
    folder = tmp_path_factory.mktemp("sources")
    for name in SOURCES:
        if (ROOT / name).is_dir():
            ignored = shutil.ignore_patterns("__pycache__")
            shutil.copytree(ROOT / name, folder / name, ignore=ignored)
        else:
            shutil.copy(ROOT / name, folder / name)
    run("from setuptools.build_meta import build_sdist; build_sdist('dist')", folder)
    (archive,) = (folder / "dist").glob("*.tar.gz")
    return archive


@pytest.fixture(scope="module")
def wheel(sdist, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("unpacked")
    with tarfile.open(sdist) as archive:
        archive.extractall(folder, filter="data")
    (sources,) = folder.iterdir()
    run("from setuptools.build_meta import build_wheel; build_wheel('dist')", sources)
    (archive,) = (sources / "dist").glob("*.whl")
    return archive


def test_versions_agree():
    version = SETTINGS["project"]["version"]
    assert pyro_mixtures.__version__ == version
    assert f"\nversion: {version}\n" in (ROOT / "CITATION.cff").read_text()
    assert f"\n## [{version}]" in (ROOT / "CHANGELOG.md").read_text()


def test_lowest_versions_are_the_lower_bounds():
    """``make test-lowest`` runs exactly what pyproject.toml promises."""
    lines = (ROOT / "constraints-lowest.txt").read_text().splitlines()
    tried = dict(line.split("==") for line in lines if "==" in line)
    project = SETTINGS["project"]
    requirements = [*project["dependencies"], *project["optional-dependencies"]["demo"]]
    for requirement in requirements:
        name, _, bound = requirement.partition(">=")
        version = tried[name.partition("[")[0]]
        assert version.removesuffix(".0").startswith(bound.removesuffix(".0")), requirement


def test_the_wheel_holds_every_module_and_the_marker_of_types(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    for folder, prefix in (
        ("pyro_mixtures", "pyro_mixtures"),
        ("models", "pyro_mixtures/models"),
        ("guides", "pyro_mixtures/guides"),
    ):
        for path in (ROOT / folder).rglob("*.py"):
            assert f"{prefix}/{path.relative_to(ROOT / folder).as_posix()}" in names
    assert "pyro_mixtures/py.typed" in names
    assert any(name.endswith("licenses/LICENSE") for name in names)


def test_the_wheel_imports_from_elsewhere(wheel, tmp_path):
    zipfile.ZipFile(wheel).extractall(tmp_path / "site")
    code = (
        "import pyro_mixtures.models, pyro_mixtures.guides, pyro_mixtures.diagnostics;"
        "print(pyro_mixtures.guides.__file__)"
    )
    path = run(code, tmp_path, PYTHONPATH=str(tmp_path / "site"))
    assert Path(path).is_relative_to(tmp_path / "site")
