"""What importing flowkit costs and touches."""

import importlib.metadata
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version


def run(code, **environment):
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **environment},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def test_importing_flowkit_adds_less_than_a_third_of_a_second_to_torch(tmp_path):
    # An installed package has its bytecode; a fresh clone may be forbidden to write it.
    code = """
        import time, torch
        begun = time.process_time(); import flowkit; print(time.process_time() - begun)
    """
    bytecode = {"PYTHONDONTWRITEBYTECODE": "", "PYTHONPYCACHEPREFIX": str(tmp_path)}
    run("import flowkit", **bytecode)
    fastest = min(float(run(code, **bytecode)[0]) for _ in range(3))
    print(f"importing flowkit: {fastest:.3f} s of processor time beyond torch")
    assert fastest < 0.3


def test_importing_flowkit_changes_no_global_state():
    run(
        """
        import random, sys, warnings
        import numpy as np, torch

        def state():
            return (
                torch.get_default_dtype(), torch.get_num_threads(), torch.is_grad_enabled(),
                torch.get_rng_state().tolist(), np.random.get_state()[1].tolist(),
                random.getstate(), list(warnings.filters),
                torch.distributions.Distribution._validate_args,
                torch.backends.cuda.matmul.allow_tf32,
                torch.are_deterministic_algorithms_enabled(),
            )

        before = state()
        import flowkit
        assert state() == before
        """
    )


@pytest.mark.parametrize(
    "module",
    ["sklearn", "scipy", "matplotlib", "pyro", "nflows", "lightning_fabric", "pandas"],
)
def test_importing_flowkit_does_not_import(module):
    assert run(f"import flowkit, sys; print({module!r} in sys.modules)") == ["False"]


def test_packages_are_attributes_that_are_imported_when_used():
    code = """
        import pkgutil, sys, flowkit
        lazy = {m.name for m in pkgutil.iter_modules(flowkit.__path__) if m.ispkg} - {"cli"}
        lazy.remove("numerics")
        assert "flowkit.plotting" not in sys.modules
        assert "flowkit.estimators" not in sys.modules
        for name in lazy | {"kernels"}:
            assert name in dir(flowkit), name
            assert getattr(flowkit, name) is sys.modules[f"flowkit.{name}"]
        try:
            flowkit.plottin
        except AttributeError as error:
            print("plottin" in str(error))
    """
    assert run(code) == ["True"]


# ---- what is declared ----

ROOT = Path(__file__).parent.parent
EXTRAS = ("", "tables", "patches", "docs", "bench", "test", "dev")


def declared():
    """Requirements of pyproject.toml: those of the core under the name of no extra."""
    tomllib = pytest.importorskip("tomllib")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return {"": project["dependencies"], **project["optional-dependencies"]}


def pinned(python):
    """Versions of constraints.txt for a version of Python, by canonical name."""
    found = {}
    for line in (ROOT / "constraints.txt").read_text().splitlines():
        if line and not line.startswith("#"):
            pin = Requirement(line)
            assert str(pin.specifier).startswith("=="), line
            if pin.marker is None or pin.marker.evaluate({"python_version": python}):
                name = canonicalize_name(pin.name)
                assert name not in found, f"{name} is pinned twice for Python {python}"
                found[name] = Version(str(pin.specifier)[2:])
    return found


@pytest.mark.parametrize("python", ["3.10", "3.11", "3.12", "3.13"])
def test_the_tested_versions_are_within_the_declared_ranges(python):
    versions = pinned(python)
    assert set(declared()) == set(EXTRAS)
    seen = 0
    for requirements in declared().values():
        for requirement in map(Requirement, requirements):
            if requirement.marker and not requirement.marker.evaluate({"python_version": python}):
                continue
            name = canonicalize_name(requirement.name)
            if name in versions:
                seen += 1
                assert versions[name] in requirement.specifier, f"{requirement} {versions[name]}"
    # All of the core, and most of the extras: the others are not part of what CI installs.
    core = {canonicalize_name(Requirement(r).name) for r in declared()[""]}
    assert core <= set(versions)
    assert seen >= 25


def test_pins_of_packages_that_left_python_310_are_for_newer_ones():
    # The metadata of what is installed here say which of the pins Python 3.10 cannot have.
    versions = pinned("3.10")
    checked = 0
    for distribution in importlib.metadata.distributions():
        name = canonicalize_name(distribution.metadata["Name"])
        needs = distribution.metadata.get("Requires-Python")
        if name in versions and needs and versions[name] == Version(distribution.version):
            checked += 1
            assert "3.10.0" in SpecifierSet(needs), f"{name} {versions[name]} needs {needs}"
    assert checked > 20
