"""The benchmark program runs at tiny sizes, and measures the same flows in every library."""

import json

import pytest
import torch

pytest.importorskip("zuko")
pytest.importorskip("nflows")

from benchmarks.kinds import BARS, KINDS  # noqa: E402
from benchmarks.libraries import LIBRARIES, Absent, why_absent  # noqa: E402
from benchmarks.limit import Limit  # noqa: E402
from benchmarks.measure import Effort, measure, peak_bytes  # noqa: E402
from benchmarks.report import bars, judge  # noqa: E402
from benchmarks.run import main  # noqa: E402

# The peers warn of their own accord.
pytestmark = pytest.mark.filterwarnings("ignore")


def test_program_writes_a_ratio_for_every_cell(tmp_path):
    kinds = ["affine-autoregressive", "mixture-coupling"]
    call = [
        "--only",
        *kinds,
        "--features",
        "3",
        "--batches",
        "8",
        "--rounds",
        "1",
        "--compiled-features",
    ]
    call += ["--libraries", "flowkit", "nflows", "zuko", "--output", str(tmp_path)]
    result = main(call)
    assert json.loads((tmp_path / "benchmarks.json").read_text()) == result
    assert len(result["cells"]) == 3 * len(kinds)
    for cell in result["cells"]:
        absent = {"nflows"} if cell["kind"] == "mixture-coupling" else set()
        assert set(cell["libraries"]) == {"flowkit", "nflows", "zuko"} - absent
        for found in cell["libraries"].values():
            assert found["ratio"] > 0
            assert found["peak_bytes"] > 0
    page = (tmp_path / "benchmarks.md").read_text()
    for kind in map(KINDS.get, kinds):
        assert f"### {kind.title}, {kind.layers} layers" in page


@pytest.mark.parametrize("features", [2, 5])
@pytest.mark.parametrize("name", list(KINDS))
def test_every_library_builds_flows_of_the_size_of_the_limit(name, features):
    size = sum(p.numel() for p in Limit(KINDS[name], features).parameters())
    for library, build in LIBRARIES.items():
        if library in ("compiled", "flowjax") or why_absent(library):
            continue
        try:
            model = build(KINDS[name], features)
        except Absent:
            continue
        if library == "zuko" and name.startswith("mixture"):
            continue  # two numbers a component instead of three
        if library == "normflows" and name == "affine-coupling" and features % 2:
            continue  # its halves of an odd number are those of the other turn
        assert model.size() == size, library


def test_every_adapter_gives_a_density_and_samples():
    x = torch.randn(7, 4)
    for name, kind in KINDS.items():
        for library in ("flowkit", "nflows", "zuko", "normflows"):
            if why_absent(library):
                continue
            try:
                model = LIBRARIES[library](kind, 4)
            except Absent:
                continue
            with torch.no_grad():
                assert model.log_prob(x).shape == (7,), (name, library)
            before = [p.clone() for p in model.parameters()]
            model.call("training", x)()
            moved = [bool((p != b).any()) for p, b in zip(model.parameters(), before, strict=True)]
            assert sum(moved) > len(moved) / 2, (name, library)


def test_without_a_compiler_the_reason_is_given(monkeypatch):
    def fails(*_, **__):
        raise RuntimeError("no compiler\nand more")

    monkeypatch.setattr(torch, "compile", fails)
    assert why_absent("compiled") == "torch.compile fails here: no compiler"


def test_a_ratio_is_time_over_the_time_of_the_limit():
    def busy(n):
        return lambda: sum(range(n))

    calls = {"limit": busy(100_000), "triple": busy(300_000)}
    timings = measure(calls, Effort(rounds=9, block=0.02))
    assert timings["triple"].ratio == pytest.approx(3, rel=0.3)
    assert timings["limit"].ratio == 1


def test_an_endless_call_is_broken_off_and_gives_a_lower_bound():
    def endless():
        while True:
            pass

    calls = {"limit": lambda: sum(range(100_000)), "endless": endless}
    timing = measure(calls, Effort(rounds=1, patience=0.2))["endless"]
    assert timing.ratio is None
    assert timing.at_least > 1


def test_peak_memory_counts_what_lives_at_once():
    def work():
        for _ in range(3):
            torch.ones(1000) + torch.ones(1000)

    assert peak_bytes(work) == 3 * 4000


def test_bars_are_judged_by_the_measured_ratios():
    bar = next(b for b in BARS if b.peer == "nflows" and b.workload == "sampling")
    entry = {
        "kind": bar.kind,
        "workload": bar.workload,
        "batch": bar.batch,
        "features": 63,
        "limit_milliseconds": 1.0,
        "libraries": {"flowkit": {"ratio": 2.0}, "nflows": {"ratio_at_least": 100.0}},
    }
    assert judge(bar, [entry]) == (50.0, True, True)
    entry["libraries"]["nflows"] = {"ratio": 4.0}
    assert judge(bar, [entry]) == (2.0, False, False)
    assert "1 of 2 reached" in bars([entry])
    assert judge(bar, []) is None


def test_two_kinds_are_compared_within_one_cell():
    bar = next(b for b in BARS if b.against)
    entry = {
        "kind": bar.kind,
        "workload": bar.workload,
        "batch": bar.batch,
        "features": 63,
        "limit_milliseconds": 1.0,
        "libraries": {"flowkit": {"ratio": 8.0}, "against": {"ratio": 2.0}},
    }
    assert judge(bar, [entry]) == (4.0, False, False)
    del entry["libraries"]["against"]
    assert judge(bar, [entry]) is None
