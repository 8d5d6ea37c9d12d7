"""The package as it is laid out: imports go one way, files and functions are short."""

import statistics
import subprocess
import sys

import structure


def test_no_module_imports_from_a_layer_above_its_own():
    assert structure.upward(structure.imports()) == []


def test_no_modules_import_each_other_in_a_circle():
    assert structure.circles(structure.imports()) == []


def test_every_part_of_the_package_has_a_layer():
    layered = {name for names in structure.LAYERS for name in names} | {"flowkit", "__main__"}
    names = {structure.module_name(path) for path in structure.files()}
    parts = {name.split(".")[1] if "." in name else "flowkit" for name in names}
    assert parts <= layered


def test_no_file_is_longer_than_400_lines():
    sizes = {path: len(path.read_text().splitlines()) for path in structure.files()}
    assert {str(path): n for path, n in sizes.items() if n > 400} == {}
    assert statistics.median(sizes.values()) < 150


def test_no_function_is_longer_than_60_lines():
    long = {
        f"{path.stem}.{name}": size
        for path in structure.files()
        for name, size in structure.functions(path)
        if size > 60
    }
    assert long == {}


def test_public_names_do_not_grow():
    # 170 at 0.2.0, and room for ten parts, each in three files, until they are looked through.
    assert sum(map(len, structure.public_names().values())) <= 180


def test_no_function_has_a_complexity_above_15():
    command = [sys.executable, "-m", "ruff", "check", "--select", "C901", structure.PACKAGE]
    options = ["--config", "lint.mccabe.max-complexity=15"]
    done = subprocess.run(command + options, cwd=structure.ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
