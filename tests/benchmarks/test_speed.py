"""Speed with pytest-benchmark, for a look at one cell: ``pytest tests/benchmarks``.

``make bench`` measures against the limit in interleaved rounds and writes the tables; here each
cell is timed by itself, in CPU time.
"""

import time

import pytest
import torch

from .kinds import KINDS
from .libraries import LIBRARIES, Absent, why_absent
from .limit import Limit

pytest.importorskip("pytest_benchmark")

FEATURES = 21
CELLS = [
    ("spline-coupling", "log_prob"),
    ("spline-coupling", "training"),
    ("affine-coupling", "training"),
    ("spline-autoregressive", "log_prob"),
    ("affine-autoregressive", "sampling"),
]
NAMES = ("limit", "flowkit", "nflows", "zuko", "normflows")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("kind", "workload"), CELLS)
def test_speed(benchmark, kind, workload, name):
    torch.set_num_threads(1)
    reason = why_absent(name)
    if reason:
        pytest.skip(reason)
    try:
        model = (Limit if name == "limit" else LIBRARIES[name])(KINDS[kind], FEATURES)
    except Absent as absent:
        pytest.skip(str(absent))
    benchmark.group = f"{kind} {workload}, D = {FEATURES}, B = 256"
    benchmark._timer = time.process_time
    call = model.call(workload, torch.randn(256, FEATURES))
    benchmark.pedantic(call, rounds=10, iterations=2, warmup_rounds=1)
