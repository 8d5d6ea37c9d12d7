"""What importing flowkit costs and touches."""

import os
import subprocess
import sys
import textwrap

import pytest


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
