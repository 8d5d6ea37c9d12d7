"""Every example runs, as a user would run it, only shorter."""

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

EXAMPLES = sorted((Path(__file__).parent.parent / "examples").glob("*.py"))


@pytest.mark.slow
@pytest.mark.parametrize("path", EXAMPLES, ids=lambda p: p.stem)
def test_example_runs(path, tmp_path):
    if "stocks" in path.stem and find_spec("skfolio") is None:
        pytest.skip("needs the table in skfolio")
    env = {**os.environ, "FLOWKIT_EXAMPLES": "small", "MPLBACKEND": "Agg"}
    done = subprocess.run(
        [sys.executable, "-W", "error", path],
        cwd=tmp_path,
        env=env,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr
