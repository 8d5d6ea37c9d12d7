"""No bad number escapes into torch, numpy or the standard library."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("resource", reason="needs limits of POSIX")


@pytest.mark.slow
def test_every_bad_value_works_or_is_refused_by_name():
    program = Path(__file__).parent / "bad_values.py"
    done = subprocess.run([sys.executable, program], capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-2000:]
    result = json.loads(done.stdout.splitlines()[-1])
    print(f"{result['tried']} values tried")
    assert result["tried"] >= 3000, f"only {result['tried']} values were tried"
    assert not result["missed"], "numeric arguments without a base call in tests/bad_values.py"
    lines = [
        f"{name}({argument}={value}): {why}" for name, argument, value, why in result["escaped"]
    ]
    assert not lines, f"{len(lines)} bad values escape:\n" + "\n".join(lines)
