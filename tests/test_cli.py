"""The command line: every command on real files, every error in one line with exit code 2."""

import itertools
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import flowkit
from flowkit.cli import main
from flowkit.cli.demo import train_flow, verdict
from flowkit.data.tables import read_table, write_table
from flowkit.datasets.photos import PhotographColors
from flowkit.estimators import FlowDensity
from flowkit.io import read_extra

COLUMNS = ["height", "weight"]
FAST = ["--recipe", "coupling_flow", "--epochs", "2", "--set", "layers=2", "hidden=[8]", "--quiet"]


def rows(n=200):
    rng = np.random.default_rng(0)
    height = rng.normal(1.7, 0.1, n)
    return np.column_stack([height, 20 * height + rng.normal(0, 3, n)])


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    write_table(folder / "people.csv", rows(), COLUMNS)
    path = folder / "flow.safetensors"
    assert main(["fit", str(folder / "people.csv"), "-o", str(path), *FAST]) == 0
    return path


@pytest.fixture
def run(capsys, tmp_path, monkeypatch):
    """Run a command in tmp_path and return exit code, stdout and stderr."""
    monkeypatch.chdir(tmp_path)

    def call(*words):
        code = main([str(word) for word in words])
        out, err = capsys.readouterr()
        return code, out, err

    return call


@pytest.fixture
def fails(run):
    """Run a command that must end in one line on stderr and exit code 2."""

    def call(*words):
        code, out, err = run(*words)
        assert code == 2
        assert out == ""
        assert err.startswith(f"flowkit {words[0]}: ")
        assert err.count("\n") == 1
        return err

    return call


@pytest.mark.parametrize("suffix", ["csv", "npy", "parquet"])
def test_fit_sample_and_score_keep_column_names_through_every_format(run, suffix):
    if suffix == "parquet":
        pytest.importorskip("pyarrow")
    write_table(f"data.{suffix}", rows(), COLUMNS)
    names = ["x1", "x2"] if suffix == "npy" else COLUMNS
    code, out, err = run("fit", f"data.{suffix}", "-o", "m.safetensors", *FAST)
    assert (code, err) == (0, "")
    assert out.startswith("m.safetensors: coupling_flow of 200 rows and 2 columns")
    extra = read_extra("m.safetensors")
    assert (extra["columns"], extra["dequantized"]) == (names, [])
    model = FlowDensity.load("m.safetensors")
    assert (model.recipe, model.options) == ("coupling_flow", {"layers": 2, "hidden": [8]})
    assert model.feature_names_in_.tolist() == names

    code, out, err = run("sample", "m.safetensors", "-n", "30", "-o", f"new.{suffix}")
    assert (code, out, err) == (0, f"new.{suffix}: 30 samples of {', '.join(names)}\n", "")
    drawn = read_table(f"new.{suffix}")
    assert drawn.values.shape == (30, 2)
    assert list(drawn.columns) == names

    code, out, err = run("score", "m.safetensors", f"data.{suffix}", "-o", f"lp.{suffix}")
    assert (code, err) == (0, "")
    flow = flowkit.load("m.safetensors")
    exact = flow.log_prob(torch.tensor(rows(), dtype=torch.float32)).detach().numpy()
    assert np.allclose(read_table(f"lp.{suffix}").values[:, 0], exact, atol=1e-4)
    error = exact.std(ddof=1) / 200**0.5
    mean = f"mean log-likelihood {exact.mean():.4f} +- {error:.4f}"
    assert out == f"{mean} nats per sample, 200 samples\n"


def test_the_library_reads_samples_that_the_seed_decides(run, model):
    for name, seed in [("a.npy", 1), ("b.npy", 1), ("c.npy", 2)]:
        assert run("sample", model, "-n", 9000, "-o", name, "--seed", seed)[0] == 0
    a, b, c = (np.load(name) for name in ("a.npy", "b.npy", "c.npy"))
    assert len(a) == 9000
    assert (a == b).all()
    assert not (a == c).any(1).all()


def test_fit_reaches_the_entropy_of_a_normal(run):
    x = np.random.default_rng(1).normal(size=(2000, 1)) * 3 + 10
    np.save("x.npy", x)
    words = ["--recipe", "elementwise_flow", "--steps", 300, "--lr", 0.01, "--batch-size", 200]
    assert run("fit", "x.npy", "-o", "m.st", "--quiet", *words)[0] == 0
    assert run("score", "m.st", "x.npy", "-o", "lp.npy")[0] == 0
    exact = -0.5 * ((x - 10) / 3) ** 2 - np.log(3 * (2 * np.pi) ** 0.5)
    assert abs(np.load("lp.npy").mean() - exact.mean()) < 0.03


def test_the_same_seed_fits_the_same_weights(run):
    np.save("x.npy", rows())
    for name in ("a.st", "b.st"):
        assert run("fit", "x.npy", "-o", name, "--seed", 3, *FAST)[0] == 0
    a, b = (flowkit.load(name).state_dict() for name in ("a.st", "b.st"))
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_columns_choose_and_order_and_leave_text_alone(run, tmp_path):
    lines = ["name;weight;height", *(f"bob;{w};{h}" for h, w in rows())]
    (tmp_path / "t.csv").write_text("\n".join(lines))
    code = run("fit", "t.csv", "-o", "m.st", "--columns", "height, weight", *FAST)[0]
    assert code == 0
    assert read_extra("m.st")["columns"] == COLUMNS
    # Scored by name, whatever else the file holds and in whatever order.
    assert run("score", "m.st", "t.csv")[0] == 0


def test_dequantized_columns_take_integers_and_give_them_back(run):
    counts = np.random.default_rng(2).poisson(5, size=(300, 1))
    write_table("t.csv", np.column_stack([counts, rows(300)[:, :1]]), ["count", "height"])
    assert run("fit", "t.csv", "-o", "m.st", "--dequantize", *FAST)[0] == 0
    assert read_extra("m.st")["dequantized"] == ["count"]
    assert run("sample", "m.st", "-o", "new.npy")[0] == 0
    drawn = np.load("new.npy")
    assert (drawn[:, 0] == drawn[:, 0].round()).all()
    assert not (drawn[:, 1] == drawn[:, 1].round()).all()
    assert run("score", "m.st", "new.npy")[0] == 0
    assert "integers  count" in run("describe", "m.st")[1]
    write_table("half.csv", [[0.5, 1.0]], ["count", "height"])
    code, _, err = run("score", "m.st", "half.csv")
    assert code == 2
    assert "half.csv expected values rounded to multiples of 1 in column 'count'" in err


def test_integers_without_noise_get_a_note(run):
    np.save("x.npy", np.random.default_rng(2).poisson(5, size=(100, 2)))
    code, _, err = run("fit", "x.npy", "-o", "m.st", *FAST)
    assert code == 0
    assert err.startswith("note: columns of integers: x1, x2, at")


@pytest.mark.parametrize("words", [(), ("--dequantize",)])
def test_rounded_columns_beside_integers_get_a_note(run, words):
    rng = np.random.default_rng(2)
    values = [rng.poisson(5, 800), rng.normal(size=800).round(1) + 0.25, rng.normal(size=800)]
    write_table("t.csv", np.column_stack(values), ["count", "tenths", "exact"])
    code, _, err = run("fit", "t.csv", "-o", "m.st", *words, *FAST)
    assert code == 0
    assert "note: columns with values that repeat: tenths, as rounded" in err
    assert ("columns of integers: count" in err) != bool(words)


def test_rows_of_dequantized_columns_outside_are_said_to_hold_noise(run):
    counts = np.random.default_rng(2).poisson(2, size=(300, 1))
    write_table("t.csv", counts, ["count"])
    fit = ("fit", "t.csv", "-o", "m.st", "--dequantize", *FAST, "--set")
    code, _, err = run(*fit, "lower=0")
    assert code == 2
    assert "half a cell on each side" in err
    assert run(*fit, "lower=-0.5")[0] == 0


def test_rows_outside_the_support_are_counted(run):
    np.save("x.npy", np.random.default_rng(0).random((100, 1)))
    flow = flowkit.box_flow(features=1, lower=0, upper=1)
    flowkit.save(flow, "m.st")
    np.save("y.npy", np.array([[0.5], [1.5]]))
    assert run("score", "m.st", "y.npy")[1].endswith("2 samples, 1 of them outside the support\n")


def test_describe_says_what_is_in_the_file(run, model):
    code, out, err = run("describe", model)
    assert (code, err) == (0, "")
    assert "recipe    coupling_flow(layers=2, hidden=[8])" in out
    assert "columns   height, weight" in out
    assert "total parameters" in out


def test_a_flow_saved_without_names_gets_numbered_ones(run):
    flowkit.save(flowkit.coupling_flow(2, layers=1), "m.st")
    described = run("describe", "m.st")[1]
    assert "columns   x1, x2" in described
    assert "recipe" not in described
    damaged = {"estimator": {"parameters": 3}}
    flowkit.save(flowkit.coupling_flow(2, layers=1), "m.st", extra=damaged)
    assert run("describe", "m.st")[::2] == (0, "")


def write(name, text):
    def make(folder):
        (folder / name).write_text(text)

    return make


MANY = "\n".join(f"{h},{w}" for h, w in rows(20))
BAD_TABLES = {
    "missing file": ("t.csv", lambda folder: None, "no file at t.csv"),
    "extension": ("t.xlsx", lambda folder: None, "extension .csv, .npy, .parquet, got 't.xlsx'"),
    "empty": ("t.csv", write("t.csv", ""), "t.csv is empty"),
    "no rows": ("t.csv", write("t.csv", "a,b\n"), "t.csv has no rows"),
    "text": (
        "t.csv",
        write("t.csv", "a,b\n1,2\n3,tall\n"),
        "line 3: column 'b' holds text ('tall')",
    ),
    "missing value": (
        "t.csv",
        write("t.csv", "a,b\n1,2\n3,\n"),
        "missing (NaN) or infinite values in 1 of 2 rows (first rows: [2]; columns: ['b'])",
    ),
    "infinite": (
        "t.npy",
        lambda folder: np.save(folder / "t.npy", [[1.0, np.inf]]),
        "missing (NaN) or infinite values in 1 of 1 rows",
    ),
    "constant": (
        "t.csv",
        write("t.csv", "a,b\n" + "".join(f"{i / 7},5\n" for i in range(20))),
        "column(s) 'b' are constant",
    ),
    "few rows": ("t.csv", write("t.csv", "a,b\n1,2\n3,4\n"), "at least 10 rows, t.csv has 2"),
    "ragged": (
        "t.csv",
        write("t.csv", "a,b\n1,2\n3\n"),
        "line 3: expected 2 cells as in the first line, got 1",
    ),
    "same names": ("t.csv", write("t.csv", "a,a\n1,2\n"), "more than one column named 'a'"),
    "not utf-8": (
        "t.csv",
        lambda folder: (folder / "t.csv").write_bytes(b"a,b\n\xff\xfe,1\n"),
        "is not a .csv file in UTF-8",
    ),
    "damaged npy": ("t.npy", write("t.npy", "nonsense"), "not a .npy file of numbers"),
    "objects": (
        "t.npy",
        lambda folder: np.save(folder / "t.npy", np.array([["a"], [None]]), allow_pickle=True),
        "t.npy is not a .npy file of numbers",
    ),
    "words": (
        "t.npy",
        lambda folder: np.save(folder / "t.npy", np.array([["a"], ["b"]])),
        "expected an array of numbers, got <U1",
    ),
    "cube": (
        "t.npy",
        lambda folder: np.save(folder / "t.npy", np.zeros((2, 2, 2))),
        "expected an array (rows, columns), got shape (2, 2, 2)",
    ),
    "damaged parquet": ("t.parquet", write("t.parquet", "nonsense"), "not a .parquet file"),
}


@pytest.mark.parametrize("case", BAD_TABLES.values(), ids=BAD_TABLES.keys())
def test_unusable_tables_are_refused_in_words(fails, tmp_path, case):
    name, make, message = case
    if name.endswith("parquet"):
        pytest.importorskip("pyarrow")
    make(tmp_path)
    assert message in fails("fit", name, "-o", "m.st", *FAST)
    assert not (tmp_path / "m.st").exists()


def test_text_in_a_parquet_file_is_refused_unless_left_out(fails, run):
    arrow = pytest.importorskip("pyarrow")
    x = rows()
    table = arrow.table({"name": ["bob"] * 200, "height": x[:, 0], "weight": x[:, 1]})
    import pyarrow.parquet

    pyarrow.parquet.write_table(table, "t.parquet")
    assert "column 'name' holds string, not numbers" in fails("fit", "t.parquet", "-o", "m.st")
    assert run("fit", "t.parquet", "-o", "m.st", "--columns", "height,weight", *FAST)[0] == 0
    holes = arrow.table({"height": [1.0, None], "weight": [1, 2]})
    pyarrow.parquet.write_table(holes, "holes.parquet")
    assert "missing (NaN) or infinite values in 1 of 2 rows" in fails(
        "score", "m.st", "holes.parquet"
    )


def test_parquet_without_pyarrow_names_the_remedy(fails, model, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    for words in (
        ["fit", "t.parquet", "-o", "m.st"],
        ["sample", model, "-o", "t.parquet"],
        ["score", model, "t.parquet"],
    ):
        assert 'pip install "flowkit-density[tables]"' in fails(*words)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--recipe", "cupling_flow"], "remedy: did you mean 'coupling_flow'?"),
        (["--set", "hiden=[8]"], "remedy: did you mean 'hidden'?"),
        (["--set", "layers=0"], ">= 1, got 0"),
        (["--set", "layers"], "--set expected NAME=VALUE, got 'layers'"),
        (["--set", "hidden=8"], "got 8"),
        (["--set", "hidden=[1000000000000000]"], "1000000000000000"),
        (["--recipe", "box_flow"], "lower, upper"),
        (
            ["--recipe", "box_flow", "--set", "lower=[0]", "upper=[9]"],
            "2 feature(s)",
        ),
        (["--set", "scalar=quadratic"], "'quadratic'"),
        (["--set", "context=2"], "an exact density of columns alone, got one that is conditional"),
        (["--columns", "height,age"], "t.csv has no column 'age'; it has 'height', 'weight'"),
        (["--columns", "height,height"], "columns were named twice"),
        (["--dequantize"], "--dequantize expected columns of integers, t.csv has none"),
        (["-o", "nowhere/m.st"], "no folder nowhere to write m.st to"),
        (["-o", "."], "is a folder, expected the name of a file"),
    ],
)
def test_wrong_options_of_fit_are_refused_in_words(fails, words, message):
    write_table("t.csv", rows(), COLUMNS)
    assert message in fails(
        "fit", "t.csv", "-o", "m.st", "--quiet", "--recipe", "coupling_flow", *words
    )


@pytest.mark.parametrize(
    ("table", "columns", "message"),
    [
        ("t.csv", ["height", "age"], "t.csv has no column 'weight'; it has 'height', 'age'"),
        ("t.npy", ["a", "b", "c"], "expected the 2 columns 'height', 'weight', got t.npy"),
    ],
)
def test_score_refuses_other_columns(fails, model, table, columns, message):
    write_table(table, np.random.default_rng(0).random((20, len(columns))), columns)
    assert message in fails("score", model, table)


def test_a_model_of_unnamed_columns_refuses_more_of_them(fails, run):
    np.save("two.npy", rows())
    np.save("three.npy", np.random.default_rng(0).random((20, 3)))
    assert run("fit", "two.npy", "-o", "m.st", *FAST)[0] == 0
    assert "m.st expected 2 columns, got 3 in three.npy" in fails("score", "m.st", "three.npy")


def test_unusable_models_are_refused_in_words(fails, model, tmp_path):
    assert "no flow file at none.st" in fails("describe", "none.st")
    (tmp_path / "noise.st").write_bytes(b"noise")
    assert "is not a safetensors file" in fails("sample", "noise.st", "-o", "x.npy")
    (tmp_path / "cut.st").write_bytes(model.read_bytes()[:-100])
    assert "is truncated" in fails("score", "cut.st", "x.npy")
    save_file({"a": torch.zeros(2)}, tmp_path / "other.st")
    assert "without a flow in its header" in fails("describe", "other.st")
    flowkit.save(flowkit.coupling_flow(2, context=1, layers=1), tmp_path / "conditional.st")
    assert "an exact density of columns alone" in fails("sample", "conditional.st", "-o", "x.npy")
    flow = flowkit.coupling_flow(2, layers=1)
    flowkit.save(flow, tmp_path / "names.st", extra={"columns": ["a"]})
    assert "names the columns ['a'], its flow has 2" in fails("describe", "names.st")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "flowkit: the following arguments are required: COMMAND; see flowkit --help"),
        (["fly"], "flowkit: argument COMMAND: invalid choice: 'fly'"),
        (["fit", "t.csv"], "flowkit fit: the following arguments are required: -o/--output"),
        (
            ["sample", "m.st", "-o", "x.csv", "-n", "0"],
            "flowkit sample: argument -n: expected value as an integer >= 1, got 0; see",
        ),
        (
            ["fit", "t.csv", "-o", "m.st", "--seed", "-1"],
            "flowkit fit: argument --seed: expected value as an integer >= 0, got -1; see "
            "flowkit fit --help",
        ),
        (
            ["fit", "t.csv", "-o", "m.st", "--validation", "1.5"],
            "flowkit fit: argument --validation: expected value as a finite number >= 0 and < 1",
        ),
        (
            ["sample", "m.st", "-o", "t.csv", "--seed", str(2**63)],
            "flowkit sample: argument --seed: expected value as an integer >= 0 and <= 9",
        ),
    ],
)
def test_wrong_words_end_in_one_line(words, message, capsys):
    with pytest.raises(SystemExit) as stop:
        main(words)
    assert stop.value.code == 2
    err = capsys.readouterr().err
    assert err.startswith(message)
    assert err.count("\n") == 1


def test_small_variation_of_large_numbers_keeps_its_digits(run):
    offset = np.random.default_rng(0).normal(size=1000)
    table = np.column_stack([1e7 + offset, offset + np.random.default_rng(1).normal(size=1000)])
    write_table("t.csv", table, ["time", "height"])
    assert (read_table("t.csv").values == table).all()
    code, _, err = run("fit", "t.csv", "-o", "m.st", *FAST)
    assert code == 0
    assert err == "note: float32 would lose digits of time; the flow is fitted in float64\n"
    assert flowkit.load("m.st").dtype == torch.float64
    assert run("score", "m.st", "t.csv", "-o", "lp.npy")[0] == 0
    exact = flowkit.load("m.st").log_prob(torch.from_numpy(table)).detach().numpy()
    assert np.allclose(np.load("lp.npy")[:, 0], exact, rtol=0, atol=1e-10)
    assert run("sample", "m.st", "-n", 500, "-o", "new.csv")[0] == 0
    # float32 has a spacing of 1 here.
    assert len(np.unique(read_table("new.csv").values[:, 0])) == 500


@pytest.mark.parametrize(("noise", "dtype"), [((), "float64"), (("--dequantize",), "float32")])
def test_noise_of_dequantize_counts_as_spread(run, noise, dtype):
    counts = 500 + (np.arange(300) % 50 == 0)
    np.save("t.npy", counts[:, None])
    assert run("fit", "t.npy", "-o", "m.st", *noise, *FAST)[0] == 0
    assert str(flowkit.load("m.st").dtype) == f"torch.{dtype}"


def test_dequantized_large_whole_numbers_get_noise_of_one_unit(run):
    counts = 10**8 + np.random.default_rng(2).poisson(5, size=(300, 1))
    np.save("t.npy", counts)
    code, _, err = run("fit", "t.npy", "-o", "m.st", "--dequantize", *FAST)
    assert code == 0
    assert "note: float32 would lose digits of x1" in err
    assert run("sample", "m.st", "-o", "new.npy")[0] == 0
    drawn = np.load("new.npy")
    assert (drawn == drawn.round()).all()
    assert np.unique(drawn).size > 4


@pytest.mark.parametrize("ends", [["lower=0", "upper=1"], ["lower=[0,0]", "upper=[1,2]"]])
def test_a_box_flow_takes_its_ends_from_set(run, ends):
    np.save("x.npy", np.random.default_rng(0).random((200, 2)))
    words = ["--recipe", "box_flow", "--epochs", 1, "--quiet", "--set", "hidden=[8]", *ends]
    assert run("fit", "x.npy", "-o", "m.st", *words)[::2] == (0, "")
    assert run("sample", "m.st", "-o", "new.npy")[0] == 0
    assert ((np.load("new.npy") >= 0) & (np.load("new.npy") <= [1, 2])).all()


def test_a_command_leaves_threads_and_random_state_alone(run, model):
    torch.manual_seed(5)
    expected, threads = torch.rand(1), torch.get_num_threads()
    torch.manual_seed(5)
    np.save("x.npy", rows())
    assert run("fit", "x.npy", "-o", "m.st", "--threads", "2", *FAST)[0] == 0
    assert torch.equal(torch.rand(1), expected)
    assert torch.get_num_threads() == threads


def test_extra_must_be_json(tmp_path):
    with pytest.raises(flowkit.errors.FlowFileError, match="extra expected JSON values"):
        flowkit.save(flowkit.coupling_flow(2, layers=1), tmp_path / "m.st", extra={"a": object()})


def test_the_module_is_the_command():
    done = subprocess.run(
        [sys.executable, "-m", "flowkit", "--help"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0
    for command in ("fit", "sample", "score", "describe", "demo"):
        assert command in done.stdout
    done = subprocess.run(
        [sys.executable, "-m", "flowkit", "describe", "none.st"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "flowkit describe: no flow file at none.st\n"


def test_a_busy_machine_trains_the_flow_of_the_demo_to_the_same_bits(monkeypatch, capsys):
    points = torch.stack(torch.meshgrid(*[torch.arange(3) * 80] * 5, indexing="ij"), -1)
    photo = PhotographColors(points.reshape(-1, 5), 161, 161)
    train, validation = photo.dequantized(seed=0).split([200, 43])
    flow, history = train_flow(photo, train, validation, 3, 0)
    clock = itertools.count(0, 1000)
    for name in ("perf_counter", "monotonic", "time", "process_time"):
        monkeypatch.setattr(time, name, lambda: float(next(clock)))
    other, slow = train_flow(photo, train, validation, 3, 0)
    assert sum(slow.seconds) >= 1000 > sum(history.seconds)
    assert history.steps[-1] == slow.steps[-1] == 3
    assert torch.equal(flow.log_prob(train), other.log_prob(train))


def test_the_demo_says_which_of_its_leads_are_negative():
    assert "ahead of all" in verdict({"Gaussian mixture": 0.4, "Gaussian": 5.0})
    one = verdict({"Gaussian mixture": -0.352, "Gaussian": 5.0})
    assert "loses" in one
    assert "the Gaussian mixture (lead -0.352)" in one
    assert "the Gaussian (" not in one
    both = verdict({"Gaussian mixture": -0.1, "kernel estimate": float("nan")})
    assert "the Gaussian mixture (lead -0.100) and the kernel estimate (lead nan)" in both


@pytest.mark.slow
def test_the_demo_writes_all_it_promises(run, tmp_path):
    code, out, _ = run("demo", "--small", "--steps", 60, "--output", "demo")
    assert code == 0
    leads = {}
    for name in ("Gaussian mixture", "kernel estimate", "Gaussian"):
        (line,) = [line for line in out.splitlines() if line.startswith(f"  {name}  ")]
        leads[name] = float(line.split()[-3])
    # Two steps are too few.
    assert "spline flow (flowkit)" in out
    assert "   2 steps" in out
    assert leads["Gaussian mixture"] < 0
    assert "The flow loses on this run" in out
    for name, lead in leads.items():
        assert (f"the {name} (lead {lead:.3f})" in out) == (lead < 0)
    files = {path.name for path in (tmp_path / "demo").iterdir()}
    assert files == {
        "corner.png", "history.png", "model.safetensors", "pointillist.png", "samples.csv"
    }  # fmt: skip
    samples = read_table("demo/samples.csv")
    assert samples.columns == ("red", "green", "blue", "x", "y")
    assert len(samples.values) == 100_000
    assert (samples.values >= 0).all()
    assert (samples.values < [256, 256, 256, 640, 427]).all()
    assert run("describe", "demo/model.safetensors")[0] == 0
