"""An import of the package loads no heavy library and compiles no kernel."""

import subprocess
import sys

PACKAGES = [
    "pyro_mixtures",
    *(
        f"pyro_mixtures.{name}"
        for name in (
            "data",
            "distributions",
            "guides",
            "infer",
            "init",
            "models",
            "ops",
            "partition",
            "poutine",
        )
    ),
]
HEAVY = ("sklearn", "skimage", "matplotlib", "arviz")
SCRIPT = """
import importlib, sys
import pyro
given = set(sys.modules)
for name in {packages!r}:
    importlib.import_module(name)
{report}
"""
NEW_MODULES = "print(*sorted({name.partition('.')[0] for name in sys.modules.keys() - given}))"
KERNELS = """
from numba.core.dispatcher import Dispatcher
for name, module in sorted(sys.modules.items()):
    if name.startswith("pyro_mixtures."):
        for key, value in vars(module).items():
            if isinstance(value, Dispatcher):
                print(f"{name}.{key}", len(value.signatures))
"""


def in_a_new_process(packages, report):
    """Return what ``report`` prints after the imports, split at whitespace."""
    script = SCRIPT.format(packages=packages, report=report)
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def test_imports_bring_no_heavy_library():
    new = in_a_new_process(PACKAGES, NEW_MODULES)
    assert "pyro_mixtures" in new
    assert not set(HEAVY) & set(new)


def test_imports_compile_no_kernel():
    found = in_a_new_process([*PACKAGES, "pyro_mixtures.diagnostics"], KERNELS)
    kernels = dict(zip(found[::2], found[1::2], strict=True))
    assert "pyro_mixtures.ops.kernels.numba_pairs.pair_log_density" in kernels
    assert {name: number for name, number in kernels.items() if number != "0"} == {}
