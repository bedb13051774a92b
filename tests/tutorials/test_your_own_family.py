"""The worked example of a user's own family is short, and passes the conformance suite."""

import ast
import importlib.util
import inspect
import sys
from pathlib import Path

import pytest
import torch
from pyro import distributions as dist

from pyro_mixtures.testing import FamilyConformance

PATH = Path(__file__).parents[2] / "tutorials" / "06_your_own_family.py"


def load_tutorial():
    spec = importlib.util.spec_from_file_location("your_own_family", PATH)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


tutorial = load_tutorial()


class TestGeometrics(FamilyConformance):
    family = tutorial.Geometrics

    def arguments(self, components, lead=()):
        return {"probs": 0.1 + 0.8 * torch.rand(*lead, components, dtype=torch.float64)}

    def oracle(self, probs):
        return dist.Geometric(probs)

    def maximizer(self, x, q, probs):
        return (q.sum() / (q.sum() + q @ x),)


def code_lines(one_class) -> int:
    """Lines of the class that are neither blank nor comments nor docstrings."""
    source = inspect.getsource(one_class)
    lines = {
        number
        for number, line in enumerate(source.splitlines(), start=1)
        if line.strip() and not line.strip().startswith("#")
    }
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node):
            lines -= set(range(node.body[0].lineno, node.body[0].end_lineno + 1))
    return len(lines)


def test_the_family_has_at_most_25_lines():
    assert code_lines(tutorial.Attempts) + code_lines(tutorial.Geometrics) <= 25


def test_the_family_uses_public_names_only():
    source = inspect.getsource(tutorial.Attempts) + inspect.getsource(tutorial.Geometrics)
    names = set()
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Name(id=name) | ast.Attribute(attr=name) | ast.arg(arg=name):
                names.add(name)
            case ast.FunctionDef(name=name):
                names.add(name)
    private = {name for name in names if name.startswith("_") and not name.endswith("__")}
    assert not private
    assert "log_density" in names


def test_the_tutorial_recovers_its_parameters(tmp_path, capsys):
    report = tutorial.main(tmp_path, rows=4000)
    for name in ("EM", "SVI"):
        assert report["results"][name]["probs"] == pytest.approx(tutorial.PROBS, rel=0.25)
    em, hard = (report["results"][name]["log_evidence"] for name in ("EM", "hard EM"))
    assert em > hard
    assert (tmp_path / "your_own_family.png").stat().st_size > 10_000
    assert "4000 rows" in capsys.readouterr().out
