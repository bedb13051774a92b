"""Imports go down the table of rooms in CONTRIBUTING.md, and rooms that must not know each other do not."""

import ast
import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
STRANGERS = {"models": {"guides"}, "guides": {"models"}, "infer": {"models", "guides"}}
WITHOUT_PYRO = {"ops", "partition", "data"}


def rooms() -> list[str]:
    """Rooms from top to bottom, as CONTRIBUTING.md lists them."""
    return re.findall(r"^\| `(\w+)` \|", (ROOT / "CONTRIBUTING.md").read_text(), flags=re.MULTILINE)


def sources(room: str) -> list[Path]:
    folder = ROOT / room if (ROOT / room).is_dir() else ROOT / "pyro_mixtures" / room
    return sorted(folder.rglob("*.py")) if folder.is_dir() else [folder.with_suffix(".py")]


def imports(path: Path) -> set[str]:
    """Dotted names that the file imports."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import; write the full name"
            found.update(f"{node.module}.{alias.name}" for alias in node.names)
    return found


def imported_rooms(path: Path) -> set[str]:
    parts = [name.split(".") for name in imports(path)]
    return {
        name[1]
        for name in parts
        if name[0] == "pyro_mixtures" and len(name) > 1 and name[1] in rooms()
    }


def test_every_folder_is_a_room_of_the_table():
    inside = {
        path.name
        for path in (ROOT / "pyro_mixtures").iterdir()
        if path.is_dir() and path.name != "__pycache__"
    }
    assert inside <= set(rooms())
    assert {"models", "guides", "tutorials", "errors"} <= set(rooms())


def test_every_package_is_installed():
    """An editable install would not notice what a wheel lacks."""
    inside = {
        ".".join(path.parent.relative_to(ROOT).parts)
        for path in (ROOT / "pyro_mixtures").rglob("__init__.py")
    }
    stated = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    assert inside | {"pyro_mixtures.guides", "pyro_mixtures.models"} == set(stated)


@pytest.mark.parametrize("room", rooms())
def test_imports_go_down_only(room):
    below = set(rooms()[rooms().index(room) :])
    for path in sources(room):
        up = imported_rooms(path) - below
        assert not up, f"{path.relative_to(ROOT)} imports from {up}, which stand above {room}"
        strangers = imported_rooms(path) & STRANGERS.get(room, set())
        assert not strangers, f"{path.relative_to(ROOT)} must not know {strangers}"


@pytest.mark.parametrize("room", sorted(WITHOUT_PYRO))
def test_lower_rooms_know_nothing_of_pyro(room):
    for path in sources(room):
        assert not [name for name in imports(path) if name.split(".")[0] == "pyro"], path
