"""The command line and malformed input: one line, exit code 2, and nothing older is lost."""

import io
import os
import re
import signal
import struct
import subprocess
import sys
import time

import numpy as np
import pytest
import torch

import flowkit
from flowkit.cli import main
from flowkit.cli.console import printable
from flowkit.data.tables import read_table, write_table

COLUMNS = ["height", "weight"]
FAST = ["--recipe", "coupling_flow", "--epochs", "1", "--set", "layers=1", "hidden=[4]", "--quiet"]
posix = pytest.mark.skipif(os.name != "posix", reason="files and signals of POSIX")


def rows(n=60):
    rng = np.random.default_rng(0)
    height = rng.normal(1.7, 0.1, n)
    return np.column_stack([height, 20 * height + rng.normal(0, 3, n)])


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A table and a model of it."""
    folder = tmp_path_factory.mktemp("made")
    write_table(folder / "t.csv", rows(), COLUMNS)
    words = ["fit", str(folder / "t.csv"), "-o", str(folder / "m.st"), *FAST]
    assert main(words) == 0
    return folder


@pytest.fixture
def place(tmp_path, made, monkeypatch):
    """A folder of one's own with that table and model."""
    for name in ("t.csv", "m.st"):
        (tmp_path / name).write_bytes((made / name).read_bytes())
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def refused(capsys, place):
    """Run a command that must end in one printable line and exit code 2; return the line."""

    def call(*words):
        before = {p.name: p.read_bytes() for p in place.iterdir() if p.is_file()}
        try:
            code = main([str(word) for word in words])
        except SystemExit as stop:
            code = stop.code
        out, err = capsys.readouterr()
        assert (code, out) == (2, ""), err
        assert err.endswith("\n")
        line = err[:-1]
        assert line.startswith("flowkit")
        assert line.isprintable()
        assert len(line) < 1200
        assert re.search(r"unexpected \w+(Error|Exception)", line) is None
        after = {p.name: p.read_bytes() for p in place.iterdir() if p.is_file()}
        assert after == before
        return line

    return call


# ---- inputs and older files ----


@posix
def test_no_output_takes_the_place_of_an_input(refused, place):
    os.symlink("t.csv", "soft.csv")
    os.link("t.csv", "hard.csv")
    os.symlink("m.st", "soft.npy")
    for other in ("t.csv", "./t.csv", place / "t.csv", "soft.csv", "hard.csv"):
        assert "is also an input" in refused("score", "m.st", "t.csv", "-o", other)
        assert "is also an input" in refused("fit", "t.csv", "-o", other)
        assert "is also an input" in refused("score", "m.st", other, "-o", "t.csv")
    assert "is also an input" in refused("sample", "m.st", "-o", "soft.npy")
    assert "is also an input" in refused("score", "m.st", "t.csv", "-o", "soft.npy")


@pytest.mark.parametrize("suffix", [".csv", ".CSV", ".npy", ".npz", ".parquet", ".txt", ".json"])
def test_a_flow_is_not_written_to_a_table(refused, suffix):
    assert "remedy: -o new.safetensors" in refused("fit", "t.csv", "-o", f"new{suffix}")


@pytest.mark.parametrize("command", [["sample", "m.st"], ["score", "m.st", "t.csv"]])
@pytest.mark.parametrize("name", ["new.safetensors", "new", "new.st", "m.st"])
def test_a_table_is_not_written_to_a_flow(refused, command, name):
    refused(*command, "-o", name)


def test_only_an_older_flow_is_replaced_by_a_flow(refused, place, capsys):
    (place / "thesis.tex").write_text("all of it")
    assert "is no flow file, so it is not replaced" in refused("fit", "t.csv", "-o", "thesis.tex")
    old = (place / "m.st").read_bytes()
    assert main(["fit", "t.csv", "-o", "m.st", "--seed", "1", *FAST]) == 0
    assert (place / "m.st").read_bytes() != old
    (place / "empty").write_text("")
    assert main(["fit", "t.csv", "-o", "empty", *FAST]) == 0
    capsys.readouterr()


@posix
@pytest.mark.parametrize(
    "words",
    [
        ["fit", "t.csv", "-o", "m.st", *FAST, "--set", "linear=null"],
        ["sample", "m.st", "-n", "5000", "-o", "old.csv"],
        ["sample", "m.st", "-n", "50000", "-o", "old.npy"],
        ["score", "m.st", "big.csv", "-o", "old.csv"],
        ["sample", "m.st", "-n", "5000", "-o", "old.parquet"],
    ],
    ids=lambda words: " ".join(words[:1] + words[-1:]),
)
def test_a_full_disk_leaves_older_files_and_one_line(refused, place, words):
    import resource

    if words[-1].endswith("parquet"):
        pytest.importorskip("pyarrow")
    write_table("big.csv", rows(500), COLUMNS)
    for name in ("old.csv", "old.npy", "old.parquet"):
        (place / name).write_text("old")
    # A limit on the size of files ends a write as a full disk does.
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        line = refused(*words)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, before)
    output = words[words.index("-o") + 1]
    assert line == f"flowkit {words[0]}: {output}: file too large"
    assert {p.name for p in place.iterdir()} == {
        "t.csv", "m.st", "big.csv", "old.csv", "old.npy", "old.parquet"
    }  # fmt: skip


@posix
def test_devices_pipes_and_folders_are_no_files(refused, place):
    os.mkfifo("pipe.csv")
    os.symlink("/dev/full", "full.csv")
    (place / "folder.csv").mkdir()
    for name in ("pipe.csv", "full.csv", "folder.csv"):
        refused("score", "m.st", name)
        refused("sample", "m.st", "-o", name)
        refused("describe", name)
    refused("fit", "t.csv", "-o", "/dev/null")
    refused("describe", "/dev/zero")
    assert "is a folder" in refused("describe", ".")
    assert "no folder t.csv" in refused("sample", "m.st", "-o", "t.csv/x.csv")


# ---- options ----

BIG = "1" + "0" * 20
OPTIONS = {
    "threads": ["fit", "t.csv", "-o", "n.st", "--threads", BIG],
    "threads 0": ["fit", "t.csv", "-o", "n.st", "--threads", "0"],
    "threads 1e20": ["fit", "t.csv", "-o", "n.st", "--threads", "1e20"],
    "threads 99999": ["describe", "m.st", "--threads", "99999"],
    "threads -1": ["describe", "m.st", "--threads=-1"],
    "long number": ["sample", "m.st", "-o", "n.csv", "-n", "9" * 6000],
    "n": ["sample", "m.st", "-o", "n.csv", "-n", "-5"],
    "n 1.5": ["sample", "m.st", "-o", "n.csv", "-n", "1.5"],
    "n other digits": ["sample", "m.st", "-o", "n.csv", "-n", "٣"],
    "n superscript": ["sample", "m.st", "-o", "n.csv", "-n", "\u00b2"],
    "seed": ["sample", "m.st", "-o", "n.csv", "--seed", "-1"],
    "seed large": ["sample", "m.st", "-o", "n.csv", "--seed", str(2**63)],
    "score has no seed": ["score", "m.st", "t.csv", "--seed", "0"],
    "lr": ["fit", "t.csv", "-o", "n.st", "--lr", "-1"],
    "lr nan": ["fit", "t.csv", "-o", "n.st", "--lr", "nan"],
    "lr 0": ["fit", "t.csv", "-o", "n.st", "--lr", "0"],
    "lr inf": ["fit", "t.csv", "-o", "n.st", "--lr", "1e999"],
    "validation": ["fit", "t.csv", "-o", "n.st", "--validation", "1"],
    "validation nan": ["fit", "t.csv", "-o", "n.st", "--quiet", "--validation", "nan"],
    "validation -": ["fit", "t.csv", "-o", "n.st", "--quiet", "--validation", "-0.1"],
    "epochs": ["fit", "t.csv", "-o", "n.st", "--epochs", "0"],
    "patience": ["fit", "t.csv", "-o", "n.st", "--patience", "x"],
    "batch size": ["fit", "t.csv", "-o", "n.st", "--batch-size", "0"],
    "steps nan": ["demo", "--steps", "nan"],
    "steps -": ["demo", "--steps=-5"],
    "both lengths": ["fit", "t.csv", "-o", "n.st", "--epochs", "5", "--steps", "5"],
    "demo over a file": ["demo", "-o", "t.csv", "--small", "--steps", "1"],
    "no command": [],
    "unknown command": ["f\u202ely"],
    "unknown option": ["describe", "m.st", "--\x1b[31mred"],
    "control characters": ["describe", "no\x1b[2Jwhere\nat all\u202e\x07"],
    "no bytes": ["describe", "nul\0l"],
    "no bytes in output": ["sample", "m.st", "-o", "nul\0l.csv"],
    "long name": ["describe", "x" * 5000],
    "long output": ["sample", "m.st", "-o", "x" * 300 + ".csv"],
    "empty name": ["describe", ""],
    "empty output": ["fit", "t.csv", "-o", ""],
    "surrogates": ["describe", "caf\udce9"],
    "columns": ["fit", "t.csv", "-o", "n.st", "--columns", ""],
    "columns twice": ["fit", "t.csv", "-o", "n.st", "--columns", "height,,weight"],
    "recipe": ["fit", "t.csv", "-o", "n.st", "--recipe", ""],
    "recipe of code": ["fit", "t.csv", "-o", "n.st", "--recipe", "__import__('os')"],
}


@pytest.mark.parametrize("words", OPTIONS.values(), ids=OPTIONS.keys())
def test_malformed_options_end_in_one_line(refused, words):
    refused(*words)


SETTINGS = {
    "nested": "layers=" + "[" * 100_000,
    "nested and closed": "layers=" + "[" * 5000 + "]" * 5000,
    "objects": "layers=" + '{"a":' * 500 + "1" + "}" * 500,
    "long number": "layers=" + "9" * 10_000,
    "number beyond floats": "layers=1e999",
    "NaN": "layers=NaN",
    "fraction": "layers=1.5",
    "negative": "layers=-3",
    "boolean": "layers=true",
    "null": "layers=null",
    "string": 'layers="3"',
    "list": "layers=[1]",
    "object": "layers={}",
    "scalar object": 'scalar={"scalar": "Affine"}',
    "unknown scalar": 'scalar={"scalar": "os.system", "options": {}}',
    "scalar option": 'scalar={"scalar": "RationalQuadraticSpline", "options": {"bins": -1}}',
    "energy for scalar": 'scalar={"energy": "DoubleWell", "options": {}}',
    "many layers": "layers=1000000",
    "many weights": "hidden=[300000, 300000]",
    "absurd weights": "hidden=[1000000000000000]",
    "hidden of text": 'hidden=["a"]',
    "hidden of zeros": "hidden=[0]",
    "hidden nested": "hidden=[[4]]",
    "features": "features=5",
    "event shape": "event_shape=[2]",
    "unknown": "colour=red",
    "no name": "=3",
    "no value": "layers",
    "activation": "activation=\x1b[31m",
    "base": "base=cauchy",
    "context": "context=1",
    "seed": "seed=x",
    "start": "start=maybe",
    "empty value": "layers=",
}


@pytest.mark.parametrize("setting", SETTINGS.values(), ids=SETTINGS.keys())
def test_malformed_settings_end_in_one_line(refused, setting):
    refused("fit", "t.csv", "-o", "n.st", "--quiet", "--epochs", "1", "--set", setting)


def test_a_setting_given_twice_is_refused(refused):
    line = refused("fit", "t.csv", "-o", "n.st", "--set", "layers=1", "--set", "layers=2")
    assert "names 'layers' twice" in line


# ---- tables ----


def npy(shape, descr="<f8", data=b"", version=(1, 0), order=False):
    """A .npy file of any header."""
    header = f"{{'descr': {descr!r}, 'fortran_order': {order}, 'shape': {shape}, }}".encode()
    size = struct.pack("<H" if version == (1, 0) else "<I", len(header))
    return b"\x93NUMPY" + bytes(version) + size + header + data


def zipped():
    """An archive of arrays."""
    file = io.BytesIO()
    np.savez(file, a=np.zeros((2, 2)))
    return file.getvalue()


def numbers(n):
    return np.random.default_rng(0).normal(size=n).tobytes()


TEN = "\n".join(f"{a:.3f},{b:.3f}" for a, b in rows(12))
TABLES = {
    "empty.csv": (b"", "is empty"),
    "blank.csv": (b"\n\n  \n", "is empty"),
    "bom.csv": (b"\xef\xbb\xbf", "is empty"),
    "header.csv": (b"height,weight\n", "has no rows"),
    "nul.csv": (b"height,weight\n1,2\0\n", "NUL bytes"),
    "utf16.csv": ("height,weight\n1,2\n".encode("utf-16"), "UTF-16"),
    "latin1.csv": ("höhe,weight\n1,2\n".encode("latin-1"), "not a .csv file in UTF-8: byte 0xf6"),
    "duplicate.csv": (b"height,height,weight\n1,2,3\n", "more than one column named 'height'"),
    "spaces.csv": (b"height, height ,weight\n1,2,3\n", "more than one column named 'height'"),
    "nameless.csv": (f"height,\n{TEN}\n".encode(), "no column 'weight'"),
    "ragged.csv": (b"height,weight\n1,2\n3,4,5\n", "line 3: expected 2 cells"),
    "short.csv": (b"height,weight\n1,2\n3\n", "line 3: expected 2 cells"),
    "quote.csv": (b'height,weight\n"1,2\n3,4\n', "is not a .csv file"),
    "huge_field.csv": (b"height,weight\n" + b"1" * 200_000 + b",2\n", "field larger than"),
    "thousands.csv": (b'height,weight\n"1,234.5",2\n', "thousands separator"),
    "comma.csv": (b"height;weight\n1,5;2,5\n", "a decimal comma"),
    "underscore.csv": (b"height,weight\n1_000,2\n", "holds text ('1_000')"),
    "carriage_returns.csv": (b"\r\rheight,weight\n1_000,2\n", "holds text ('1_000')"),
    "digits.csv": ("height,weight\n١,2\n".encode(), "holds text"),
    "hex.csv": (b"height,weight\n0x10,2\n", "holds text ('0x10')"),
    "inf.csv": (b"height,weight\n1,2\ninf,3\n", "missing (NaN) or infinite values in 1 of 2 rows"),
    "nan.csv": (b"height,weight\n1,2\nnan,3\n", "missing (NaN) or infinite values in 1 of 2 rows"),
    "overflow.csv": (b"height,weight\n1e999,2\n", "missing (NaN) or infinite"),
    "long_integer.csv": (b"height,weight\n9007199254740993,2\n", "integers beyond 2**53"),
    "missing_first.csv": (b"1.5,NA\n2.5,3\n", "missing (NaN) or infinite values in 1 of 2 rows"),
    "escape.csv": (b"height,weight\n\x1b[31m,2\n", "holds text"),
    "many.csv": (b"a," * 100_000 + b"a\n", "no column"),
    "empty.npy": (b"", "not a .npy file"),
    "claim.npy": (npy((10**11, 2)), "is damaged: mmap length"),
    "overflow.npy": (npy((2**40, 2**40)), "is damaged: overflow"),
    "negative.npy": (npy((-1, 2), data=numbers(2)), "is damaged"),
    "no_columns.npy": (npy((10**11, 0)), "has no columns"),
    "no_rows.npy": (npy((0, 2)), "has no rows"),
    "scalar.npy": (npy((), data=numbers(1)), "got shape ()"),
    "cut.npy": (npy((20, 2), data=numbers(30)), "is damaged: mmap length"),
    "more.npy": (npy((20, 2), data=numbers(50)), "80 bytes follow its array"),
    "objects.npy": (npy((1, 2), "|O", b"\x80\x04]."), "not a .npy file of numbers"),
    "complex.npy": (npy((1, 2), "<c16", numbers(4)), "got complex128"),
    "text.npy": (npy((1, 2), "<U1", b"a\0\0\0b\0\0\0"), "got <U1"),
    "times.npy": (npy((1, 2), "<M8[s]", numbers(2)), "got datetime64[s]"),
    "records.npy": (npy((1,), [("a", "<f8"), ("b", "<f8")], numbers(2)), "array of numbers, got"),
    "code.npy": (npy((1, 2), "__import__('os')", numbers(2)), "not a .npy file"),
    "nested.npy": (b"\x93NUMPY\x01\x00\xff\x7f" + b"(" * 32767, "not a .npy file"),
    "long_header.npy": (b"\x93NUMPY\x02\x00\xff\xff\xff\xff" + b"{" * 100, "not a .npy file"),
    "version.npy": (npy((1, 2), data=numbers(2), version=(9, 9)), "not a .npy file"),
    "magic.npy": (b"\x93NUMPY", "not a .npy file"),
    "integers.npy": (npy((1, 2), "<i8", struct.pack("<qq", 2**53 + 1, 1)), "beyond 2**53"),
    "archive.npy": (b"PK\x03\x04" + b"\0" * 100, "not a .npy file of numbers"),
    "archive_of_arrays.npy": (zipped(), "not a .npy file of numbers"),
    "infinite.npy": (npy((1, 2), data=struct.pack("<dd", np.inf, 1)), "infinite values"),
    "noise.parquet": (b"PAR1" + bytes(range(200)) + b"PAR1", "not a .parquet file"),
    "empty.parquet": (b"", "not a .parquet file"),
    "short.parquet": (b"PAR1PAR1", "not a .parquet file"),
    "table.xlsx": (b"PK\x03\x04", "expected a file with the extension"),
    "noextension": (b"1,2\n", "expected a file with the extension"),
}


@pytest.mark.parametrize("name", TABLES)
def test_malformed_tables_end_in_one_line(refused, place, name):
    if name.endswith("parquet"):
        pytest.importorskip("pyarrow")
    content, message = TABLES[name]
    (place / name).write_bytes(content)
    begun = time.process_time()
    line = refused("score", "m.st", name, "-o", "new.csv")
    assert message in line
    assert name in line
    refused("fit", name, "-o", "new.st", *FAST)
    assert time.process_time() - begun < 5


def test_names_of_a_table_without_some_are_asked_for(refused, place, capsys):
    index = "\n".join(f"{i},{line}" for i, line in enumerate(TEN.split("\n")))
    (place / "pandas.csv").write_text(f",height,weight\n{index}\n")
    assert "column 1 has no name; remedy" in refused("fit", "pandas.csv", "-o", "n.st")
    assert main(["score", "m.st", "pandas.csv"]) == 0
    capsys.readouterr()


def test_parquet_files_of_another_kind_end_in_one_line(refused, place):
    arrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    kinds = {
        "no columns": arrow.table({}),
        "no rows": arrow.table({"height": arrow.array([], "float64"), "weight": []}),
        "nulls": arrow.table({"height": arrow.nulls(3), "weight": [1.0, 2.0, 3.0]}),
        "missing": arrow.table({"height": [1, None, 2], "weight": [1.0, 2.0, 3.0]}),
        "lists": arrow.table({"height": [[1.0], [2.0]], "weight": [1.0, 2.0]}),
        "text": arrow.table({"height": ["1", "2"], "weight": [1.0, 2.0]}),
        "twice": arrow.table([[1.0], [2.0], [3.0]], names=["height", "height", "weight"]),
        "integers": arrow.table({"height": [2**53 + 1, 1], "weight": [1.0, 2.0]}),
        "decimals": arrow.table({"height": arrow.array([1, 2]).cast(arrow.decimal128(21, 1))}),
        "times": arrow.table({"height": arrow.array([1, 2], "timestamp[s]"), "weight": [1, 2]}),
    }
    for table in kinds.values():
        parquet.write_table(table, "odd.parquet")
        refused("score", "m.st", "odd.parquet")
    # Half a gigabyte in a quarter of a megabyte.
    many = arrow.chunked_array([arrow.array(np.zeros(1_000_000))] * 30)
    table, whole = arrow.table({"height": many, "weight": many}), 30_000_000
    parquet.write_table(table, "bomb.parquet", row_group_size=whole, data_page_size=2**30)
    assert (place / "bomb.parquet").stat().st_size < 300_000
    assert "announce 30000000 rows" in refused("score", "m.st", "bomb.parquet")
    (place / "bomb.parquet").unlink()


def test_tables_of_odd_but_clear_form_are_read(place):
    expected = [[1.5, -2.0], [300.0, 0.25]]
    forms = {
        "bom": b"\xef\xbb\xbfa,b\n1.5,-2\n3e2,.25\n",
        "windows": b"a,b\r\n1.5,-2\r\n300,0.25\r\n",
        "old mac": b"a,b\r1.5,-2\r300,0.25\r",
        "semicolons": b"a;b\n1.5;-2\n300;0.25\n",
        "tabs": b"a\tb\n1.5\t-2\n300\t0.25",
        "quotes": b'"a","b"\n"1.5","-2"\n"300","0.25"\n',
        "spaces": b" a , b \n 1.5 , -2 \n 300 , 0.25 \n",
        "blank lines": b"\na,b\n\n1.5,-2\n\n\n300,0.25\n\n",
        "plus": b"a,b\n+1.5,-2.0\n+3E+2,+.25\n",
    }
    for content in forms.values():
        (place / "x.csv").write_bytes(content)
        table = read_table("x.csv")
        assert table.columns == ("a", "b")
        assert table.values.tolist() == expected
    (place / "x.csv").write_bytes(b'"a\nb","c, d"\n1.5,-2\n300,0.25\n')
    assert read_table("x.csv").columns == ("a\nb", "c, d")
    (place / "x.csv").write_bytes(b"1.5\n\n2.5\n\n")
    with pytest.raises(
        flowkit.errors.DataError, match=r"missing \(NaN\) or infinite values in 1 of 3"
    ):
        read_table("x.csv")


@pytest.mark.parametrize("dtype", ["?", "i1", "u1", ">i4", "<u8", "<f2", ">f8", "<f4"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_arrays_of_every_real_dtype_are_read(place, dtype, order):
    x = np.asarray(np.arange(12).reshape(6, 2) % 2, dtype=dtype, order=order)
    np.save("x.npy", x)
    assert (read_table("x.npy").values == x.astype(float)).all()


# ---- models ----


def store(place, extra):
    """The model with something else in its header."""
    flowkit.save(flowkit.load(place / "m.st"), place / "odd.st", extra=extra)


EXTRAS = {
    "null": {"columns": None},
    "number": {"columns": 2},
    "text": {"columns": "ab"},
    "numbers": {"columns": [1, 2]},
    "nulls": {"columns": [None, None]},
    "twice": {"columns": ["a", "a"]},
    "few": {"columns": ["a"]},
    "many": {"columns": ["a", "b", "c"]},
    "nested": {"columns": [["a"], ["b"]]},
    "dequantized null": {"columns": ["a", "b"], "dequantized": None},
    "dequantized other": {"columns": ["a", "b"], "dequantized": ["c"]},
    "dequantized twice": {"columns": ["a", "b"], "dequantized": ["a", "a"]},
    "dequantized text": {"columns": ["a", "b"], "dequantized": "a"},
    "object": {"columns": {"a": 1, "b": 2}},
}


@pytest.mark.parametrize("extra", EXTRAS.values(), ids=EXTRAS.keys())
def test_models_that_name_no_columns_end_in_one_line(refused, place, extra):
    store(place, extra)
    for words in (["describe"], ["sample", "-o", "n.csv"], ["score", "t.csv"]):
        assert "odd.st names" in refused(words[0], "odd.st", *words[1:])


def test_damaged_models_end_in_one_line(refused, place):
    content = (place / "m.st").read_bytes()
    for damaged in (b"", content[:50], content[:-1], content + b"1", content[::-1], b"\0" * 100):
        (place / "odd.st").write_bytes(damaged)
        for words in (["describe"], ["sample", "-o", "n.csv"], ["score", "t.csv"]):
            refused(words[0], "odd.st", *words[1:])


def test_samples_that_are_not_finite_are_not_written(refused, monkeypatch):
    def sample(flow, shape, generator):
        return torch.full((shape, 2), torch.nan)

    monkeypatch.setattr(flowkit.Flow, "sample", sample)
    assert "1000 of 1000 samples that are not finite" in refused("sample", "m.st", "-o", "n.csv")


def test_many_rows_are_written_in_the_memory_of_few(place, capsys):
    import tracemalloc

    tracemalloc.start()
    for name in ("n.csv", "n.npy"):
        assert main(["sample", "m.st", "-n", "30000", "-o", name]) == 0
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 0.6e6 < (place / "n.csv").stat().st_size
    assert np.load("n.npy").shape == (30_000, 2)
    assert np.allclose(np.load("n.npy")[:1000], read_table("n.csv").values[:1000], rtol=1e-7)
    capsys.readouterr()


# ---- what is printed ----

EVIL = "a\x1b[31m\u202eb\x07\u2066\x9b\u200e"


def test_names_are_printed_without_terminal_escapes_and_kept_in_files(place, capsys):
    write_table("evil.csv", np.column_stack([rows(), np.arange(60) % 7]), [EVIL, "\x08b", "c\x7f"])
    assert main(["fit", "evil.csv", "-o", "evil.st", *FAST]) == 0
    assert main(["describe", "evil.st"]) == 0
    assert main(["sample", "evil.st", "-o", "new.csv"]) == 0
    assert main(["score", "m.st", "evil.csv"]) == 2
    assert main(["fit", "evil.csv", "-o", "n.st", "--columns", EVIL + "x"]) == 2
    out, err = capsys.readouterr()
    for line in (out + err).split("\n"):
        assert line.isprintable()
    assert r"a\x1b[31m\u202eb\x07\u2066\x9b\u200e" in out
    assert read_table("new.csv").columns == (EVIL, "\x08b", "c\x7f")


@pytest.mark.parametrize("text", ["a\x1b", "\u202e", "\u2028", "\ud800", "\x00", "\x9b", "\ufeff"])
def test_what_a_terminal_obeys_is_escaped(text):
    assert printable(text).isascii()
    assert printable(text).isprintable()


def test_text_that_a_terminal_shows_is_left_alone():
    for text in ("Größe [µm]", "身長", "рост", "a b", "naïve 😀"):
        assert printable(text) == text


def run(*words, **options):
    command = [sys.executable, "-m", "flowkit", *map(str, words)]
    return subprocess.run(command, capture_output=True, check=False, **options)


@posix
def test_a_reader_who_leaves_ends_the_command_in_silence(place):
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        [sys.executable, "-m", "flowkit", "describe", "m.st"],
        stdout=write, stderr=subprocess.PIPE, check=False,
    )  # fmt: skip
    os.close(write)
    assert (done.returncode, done.stderr) == (141, b"")


@posix
def test_a_full_stdout_is_one_line(place):
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "flowkit", "describe", "m.st"],
            stdout=full, stderr=subprocess.PIPE, check=False,
        )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr == b"flowkit describe: no space left on device\n"


def test_a_terminal_of_few_letters_gets_escapes(place):
    write_table("t.csv", rows(), ["größe", "身長"])
    environment = {**os.environ, "PYTHONIOENCODING": "ascii:strict", "PYTHONUTF8": "0"}
    done = run("fit", "t.csv", "-o", "n.st", *FAST, "--columns", "größe,x", env=environment)
    assert done.returncode == 2
    assert rb"gr\xf6\xdfe" in done.stderr
    assert done.stderr.count(b"\n") == 1


def test_a_fault_nobody_thought_of_is_one_line_too(refused, place, monkeypatch, capsys):
    def fault(*_):
        raise ZeroDivisionError("all\nof it")

    monkeypatch.setattr("flowkit.io.load", fault)
    assert main(["describe", "m.st"]) == 2
    error = capsys.readouterr().err
    assert error == "flowkit describe: unexpected ZeroDivisionError: all of it\n"
    monkeypatch.setenv("FLOWKIT_TRACEBACK", "1")
    with pytest.raises(ZeroDivisionError):
        main(["describe", "m.st"])


@pytest.mark.parametrize(("error", "code"), [(KeyboardInterrupt, 130), (MemoryError, 2)])
def test_an_interruption_is_one_line(place, monkeypatch, capsys, error, code):
    def interrupt(*_):
        raise error

    monkeypatch.setattr("flowkit.io.load", interrupt)
    assert main(["describe", "m.st"]) == code
    assert capsys.readouterr().err.count("\n") == 1
