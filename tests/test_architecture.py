"""The layers of CONTRIBUTING.md: imports go down only, without cycles; packages are installed."""

import ast
import re
import tomllib
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FOLDERS = {  # installed name: folder in the repository
    "pyro_mixtures": ROOT / "pyro_mixtures",
    "pyro_mixtures.models": ROOT / "models",
    "pyro_mixtures.guides": ROOT / "guides",
}


@cache
def modules() -> dict[str, Path]:
    """Every module of the library by its installed name."""
    paths = {}
    for package, folder in FOLDERS.items():
        for path in sorted(folder.rglob("*.py")):
            names = [package, *path.relative_to(folder).with_suffix("").parts]
            paths[".".join(names).removesuffix(".__init__")] = path
    return paths


@cache
def imports(path: Path) -> frozenset[str]:
    """Dotted names that a file imports, also inside functions and under ``TYPE_CHECKING``."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import; write the full name"
            names.update(f"{node.module}.{alias.name}" for alias in node.names)
    return frozenset(names)


def imported_modules(path: Path) -> set[str]:
    """Modules of the library that a file imports: ``from a import b`` is module a.b, or else a."""
    names = {name if name in modules() else name.rpartition(".")[0] for name in imports(path)}
    return names & modules().keys()


def layers(heading: str) -> list[list[str]]:
    """Layers from top to bottom in the table below a heading; packages of one row are one layer."""
    text = (ROOT / "CONTRIBUTING.md").read_text().partition(f"## {heading}\n")[2]
    table = text.partition("\n## ")[0]
    rows = re.findall(r"^\| (`\w+`(?:, `\w+`)*) \|", table, flags=re.MULTILINE)
    return [re.findall(r"\w+", row) for row in rows]


LAYERS = layers("Layers")
INFER_LAYERS = layers("Layers of infer")
PACKAGES = [package for layer in LAYERS for package in layer]


def forbidden(package: str, table: list[list[str]]) -> set[str]:
    """Packages that a package must not import: those above, and the others of its own layer."""
    level = next(level for level, layer in enumerate(table) if package in layer)
    return {name for layer in table[: level + 1] for name in layer} - {package}


def check_layers(prefix: str, package: str, table: list[list[str]]) -> None:
    level = prefix.count(".")
    for module, path in modules().items():
        if not f"{module}.".startswith(f"{prefix}{package}."):
            continue
        names = [name.split(".") for name in imports(path) if name.startswith(prefix)]
        upward = {name[level] for name in names} & forbidden(package, table)
        assert not upward, f"{module} imports {upward}, which are not below {package}"


def test_the_tables_list_every_package():
    folders = {path.parent.name for path in (ROOT / "pyro_mixtures").glob("*/__init__.py")}
    assert folders | {"models", "guides", "options", "errors"} <= set(PACKAGES)
    assert len(PACKAGES) == len(set(PACKAGES))
    infer = {path.parent.name for path in (ROOT / "pyro_mixtures/infer").glob("*/__init__.py")}
    assert infer <= {package for layer in INFER_LAYERS for package in layer}


def test_the_picture_shows_every_package():
    picture = (ROOT / "docs" / "layers.svg").read_text()
    words = set(re.findall(r"\w+", re.sub(r"<[^>]*>", " ", picture)))
    assert set(PACKAGES) <= words
    assert {package for layer in INFER_LAYERS for package in layer} <= words


@pytest.mark.parametrize("package", PACKAGES)
def test_imports_go_down_only(package):
    check_layers("pyro_mixtures.", package, LAYERS)


@pytest.mark.parametrize("package", [package for layer in INFER_LAYERS for package in layer])
def test_imports_go_down_only_inside_infer(package):
    check_layers("pyro_mixtures.infer.", package, INFER_LAYERS)


def test_no_module_imports_the_tutorials():
    for module, path in modules().items():
        assert not [name for name in imports(path) if name.split(".")[0] == "tutorials"], module


def test_modules_form_no_import_cycle():
    """Imports for annotations count: a cycle under ``TYPE_CHECKING`` is a cycle for the reader."""
    graph = {module: imported_modules(path) - {module} for module, path in modules().items()}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(f"import cycle: {' -> '.join(error.args[1])}")


@pytest.mark.parametrize("package", PACKAGES[PACKAGES.index("information") :])
def test_lower_packages_do_not_import_pyro(package):
    prefix = f"pyro_mixtures.{package}."
    for module, path in modules().items():
        if f"{module}.".startswith(prefix):
            assert not [name for name in imports(path) if name.split(".")[0] == "pyro"], module


def test_every_package_is_installed():
    """An editable install does not notice what a wheel lacks."""
    packages = {module for module, path in modules().items() if path.name == "__init__.py"}
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    assert packages == set(settings["packages"])
