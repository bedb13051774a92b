"""Examples run: those of every public docstring, of the README and of the pages in docs/."""

import doctest
import importlib
import pkgutil
from pathlib import Path

import pyro
import pytest

import pyro_mixtures
import pyro_mixtures.guides
import pyro_mixtures.models

ROOT = Path(__file__).parent.parent
PAGES = sorted(path for path in (ROOT / "docs").glob("*.md") if ">>>" in path.read_text())
FLAGS = doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS


def module_names() -> list[str]:
    packages = (pyro_mixtures, pyro_mixtures.models, pyro_mixtures.guides)
    return sorted(
        {m.name for p in packages for m in pkgutil.walk_packages(p.__path__, p.__name__ + ".")}
    )


@pytest.mark.parametrize("name", module_names())
def test_docstrings(name):
    runner = doctest.DocTestRunner(optionflags=FLAGS)
    for example in doctest.DocTestFinder(exclude_empty=True).find(importlib.import_module(name)):
        pyro.clear_param_store()  # each example stands alone
        assert not runner.run(example).failed


@pytest.mark.parametrize("page", [ROOT / "README.md", *PAGES], ids=lambda path: path.name)
def test_pages(page):
    failed, tried = doctest.testfile(str(page), module_relative=False, optionflags=FLAGS)
    assert tried
    assert not failed
