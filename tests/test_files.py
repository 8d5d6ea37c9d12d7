"""Files: nothing older is lost, damage is noticed, and reading costs what the file is worth."""

import json
import os
import resource
import signal
import subprocess
import sys
import threading
import time
import tracemalloc

import numpy as np
import pytest
import safetensors.torch
import torch
from safetensors.torch import load_file

import flowkit
from flowkit.config import describe
from flowkit.content import seal
from flowkit.errors import ArgumentError, DataError, FlowFileError
from flowkit.files import check_writable, replacing, same_file
from flowkit.stochastic import UnderdampedLangevin
from flowkit.toys import DoubleWell
from flowkit.transforms import Gaussianize, Standardize, Whiten

posix = pytest.mark.skipif(os.name != "posix", reason="files of POSIX")
unprivileged = pytest.mark.skipif(
    not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write everywhere"
)


def write_sealed(path, tensors, header):
    """A flow file of any content whose digest is right, as somebody hostile would make it."""
    header = json.dumps({"digest": "0" * 64, "format": 2, **header})
    path.write_bytes(seal(safetensors.torch.save(tensors, {"flowkit": header})))


@pytest.fixture
def path(tmp_path):
    flowkit.save(flowkit.coupling_flow(2, layers=1, hidden=(4,)), tmp_path / "f")
    return tmp_path / "f"


# ---- writing ----


def test_an_exception_while_writing_leaves_the_older_file(tmp_path):
    place = tmp_path / "numbers"
    place.write_text("old")

    def write():
        with replacing(place) as file:
            file.write(b"half of the ne")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        write()
    assert place.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["numbers"]


@posix
def test_a_full_disk_leaves_the_older_file_and_names_the_path(path):
    # A limit on the size of files ends a write as a full disk does: with an OSError half way.
    old = path.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with pytest.raises(OSError, match=f"File too large: '{path}'"):
            flowkit.save(flowkit.coupling_flow(2, layers=8), path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, before)
    assert path.read_bytes() == old
    assert len(list(path.parent.iterdir())) == 1


@posix
def test_a_killed_process_leaves_the_older_file_and_the_next_run_tidies_up(tmp_path):
    place = tmp_path / "numbers"
    place.write_text("old")
    code = (
        "import os, signal, sys\nfrom flowkit.files import replacing\n"
        "with replacing(sys.argv[1]) as file:\n"
        "    file.write(b'new')\n    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, place], check=False)
    assert done.returncode == -signal.SIGKILL
    assert place.read_text() == "old"
    assert len(list(tmp_path.iterdir())) == 2
    with replacing(tmp_path / "other") as file:
        file.write(b"1")
    assert {p.name for p in tmp_path.iterdir()} == {"numbers", "other"}


def test_a_file_that_is_being_written_is_no_leftover(tmp_path):
    with replacing(tmp_path / "slow") as slow:
        slow.write(b"one ")
        with replacing(tmp_path / "quick") as quick:
            quick.write(b"two")
        slow.write(b"three")
    assert (tmp_path / "slow").read_bytes() == b"one three"
    assert (tmp_path / "quick").read_bytes() == b"two"


def test_many_writers_of_one_file_leave_one_whole_file(tmp_path):
    place, failures = tmp_path / "f", []

    def write(letter):
        try:
            for _ in range(20):
                with replacing(place) as file:
                    file.write(letter * 5000)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=write, args=(letter,)) for letter in (b"a", b"b", b"c")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    content = place.read_bytes()
    assert content in (b"a" * 5000, b"b" * 5000, b"c" * 5000)
    assert [p.name for p in tmp_path.iterdir()] == ["f"]


@posix
def test_a_link_stays_a_link_and_its_target_is_replaced(tmp_path):
    flow = flowkit.elementwise_flow(1)
    (tmp_path / "models").mkdir()
    link, target = tmp_path / "link", tmp_path / "models" / "target"
    target.write_text("old")
    link.symlink_to(target)
    flowkit.save(flow, link)
    assert link.is_symlink()
    assert not target.is_symlink()
    assert flowkit.load(target).event_shape == (1,)
    (tmp_path / "dangling").symlink_to(tmp_path / "models" / "new")
    flowkit.save(flow, tmp_path / "dangling")
    assert flowkit.load(tmp_path / "models" / "new").event_shape == (1,)


@posix
def test_devices_and_pipes_are_never_replaced(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "null").symlink_to("/dev/null")
    for place in (tmp_path / "pipe", tmp_path / "null", "/dev/null", "/dev/full"):
        with pytest.raises(DataError, match="is a device or a pipe"):
            flowkit.save(flowkit.elementwise_flow(1), place)
    assert not os.path.isfile("/dev/null")


def test_a_path_that_cannot_be_written_is_named_before_the_work(tmp_path):
    with pytest.raises(IsADirectoryError, match="is a folder"):
        check_writable(tmp_path)
    with pytest.raises(FileNotFoundError, match="no folder .* to write f to"):
        check_writable(tmp_path / "nowhere" / "f")
    (tmp_path / "file").write_text("")
    with pytest.raises(FileNotFoundError, match="no folder"):
        check_writable(tmp_path / "file" / "f")


@unprivileged
def test_protected_files_and_folders_are_left_alone(tmp_path):
    place = tmp_path / "f"
    place.write_text("old")
    place.chmod(0o444)
    with pytest.raises(PermissionError, match="write-protected"):
        flowkit.save(flowkit.elementwise_flow(1), place)
    tmp_path.chmod(0o555)
    with pytest.raises(PermissionError, match="no permission to write new in"):
        check_writable(tmp_path / "new")
    tmp_path.chmod(0o755)


@posix
@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_a_new_file_has_the_permissions_of_the_umask_and_an_older_one_its_own(
    tmp_path, umask, mode
):
    flow, before = flowkit.elementwise_flow(1), os.umask(umask)
    try:
        flowkit.save(flow, tmp_path / "new")
        (tmp_path / "old").touch()
        (tmp_path / "old").chmod(0o640)
        flowkit.save(flow, tmp_path / "old")
    finally:
        os.umask(before)
    assert (tmp_path / "new").stat().st_mode & 0o777 == mode
    assert (tmp_path / "old").stat().st_mode & 0o777 == 0o640


@posix
def test_one_file_is_recognised_behind_links_and_spellings(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("a", "b"):
        (tmp_path / name).write_text("")
    (tmp_path / "soft").symlink_to("a")
    os.link("a", "hard")
    for other in ("a", "./a", tmp_path / "a", "soft", "hard", f"../{tmp_path.name}/a"):
        assert same_file("a", other)
    assert not same_file("a", "b")
    assert not same_file("a", "none")


# ---- damage ----


def test_every_flipped_bit_is_noticed(path):
    content, rng = path.read_bytes(), np.random.default_rng(0)
    flow = flowkit.load(path)
    # All bits of the first bytes, of the start of the header and of the end, and 400 others.
    edges = [*range(16), *range(50, 90), *range(len(content) - 8, len(content))]
    bits = [8 * at + bit for at in edges for bit in range(8)]
    bits += rng.choice(8 * len(content), 400, replace=False).tolist()
    for bit in bits:
        damaged = bytearray(content)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        with pytest.raises(FlowFileError):
            flowkit.load(path)
    path.write_bytes(content)
    x = torch.randn(5, 2)
    assert torch.equal(flowkit.load(path).log_prob(x), flow.log_prob(x))


@pytest.mark.parametrize("read", [flowkit.load, flowkit.io.read_extra])
def test_every_truncation_and_every_addition_is_noticed(path, read):
    content = path.read_bytes()
    for size in (0, 1, 7, 8, 9, 100, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:size])
        with pytest.raises(FlowFileError, match="truncated"):
            read(path)
    for more in (b"\0", b" ", content):
        path.write_bytes(content + more)
        with pytest.raises(FlowFileError, match="appended|incomplete"):
            read(path)


def with_header(change):
    """A file whose JSON header was rewritten as text."""

    def make(content):
        size = int.from_bytes(content[:8], "little")
        header = change(content[8 : 8 + size])
        return len(header).to_bytes(8, "little") + header + content[8 + size :]

    return make


HEADERS = {
    "not UTF-8": with_header(lambda h: h.replace(b"Coupling", b"Coupl\xff\xfeg")),
    "nested": with_header(lambda h: b'{"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"),
    "a list": with_header(lambda h: b"[]"),
    "a number": with_header(lambda h: b"1"),
    "NaN": with_header(lambda h: b"NaN"),
    "empty": with_header(lambda h: b""),
    "repeated tensor": with_header(
        lambda h: b'{"initialized":{"dtype":"BOOL","shape":[],"data_offsets":[0,1]},' + h[1:]
    ),
    "repeated metadata": with_header(lambda h: b'{"__metadata__":{},' + h[1:]),
    "metadata of numbers": with_header(lambda h: b'{"__metadata__":{"flowkit":1}}'),
    "metadata of a list": with_header(lambda h: b'{"__metadata__":[]}'),
    "header beyond the file": lambda c: (2**40).to_bytes(8, "little") + c[8:],
    "header of all ones": lambda c: b"\xff" * 8 + c[8:],
}


@pytest.mark.parametrize("make", HEADERS.values(), ids=HEADERS.keys())
def test_damaged_headers_are_refused_in_words(path, make):
    path.write_bytes(make(path.read_bytes()))
    for read in (flowkit.load, flowkit.io.read_extra):
        with pytest.raises(FlowFileError, match=str(path)):
            read(path)


@pytest.mark.parametrize(
    "header",
    [
        {"flow": None},
        {},
        {"flow": {}, "format": "1"},
        {"flow": {}, "format": True},
        {"flow": {}, "extra": []},
    ],
)
def test_headers_of_another_kind_are_refused(path, header):
    write_sealed(path, load_file(path), header)
    with pytest.raises(FlowFileError, match="header of .* is damaged"):
        flowkit.load(path)


def test_a_file_without_a_digest_is_refused(path):
    header = {"format": 2, "flow": describe(flowkit.load(path))}
    metadata = {"flowkit": json.dumps(header)}
    path.write_bytes(safetensors.torch.save(load_file(path), metadata))
    with pytest.raises(FlowFileError, match="digest"):
        flowkit.load(path)


def test_a_folder_is_no_flow_file(tmp_path):
    for read in (flowkit.load, flowkit.io.read_extra):
        with pytest.raises(IsADirectoryError, match="is a folder, expected a flow file"):
            read(tmp_path)


# ---- contents ----


def rewritten(path, change):
    """The file with other tensors and a right digest."""
    tensors = load_file(path)
    change(tensors)
    write_sealed(path, tensors, {"flow": describe(flowkit.load(path))})


def fill(name, value):
    return lambda tensors: tensors[name].flatten()[:1].fill_(value)


def convert(name, dtype):
    return lambda tensors: tensors.update({name: tensors[name].to(dtype)})


WEIGHT = "transform.transforms.6.conditioner.layers.0.weight"
CONTENTS = {
    "int weights": (convert(WEIGHT, torch.int32), "floating point of .*the file has int32"),
    "bool weights": (convert(WEIGHT, torch.bool), "the file has bool"),
    "complex weights": (convert(WEIGHT, torch.complex64), "the file has complex64"),
    "bytes for the flag": (convert("initialized", torch.uint8), "the file has uint8"),
    "float flag": (convert("initialized", torch.float32), "the file has floating point"),
    "mixed dtypes": (convert(WEIGHT, torch.float64), "dtypes torch.float32 and torch.float64"),
    "quarter precision": (convert(WEIGHT, torch.float8_e4m3fn), "the file has float8"),
    "NaN weights": (fill(WEIGHT, float("nan")), f"{WEIGHT} holds NaN or infinity"),
    "infinite weights": (fill(WEIGHT, float("inf")), f"{WEIGHT} holds NaN or infinity"),
    "NaN mean": (fill("transform.transforms.0.mean", float("nan")), "mean holds NaN"),
    "scale 0": (
        fill("transform.transforms.0.scale", 0.0),
        "transforms.0.scale holds 0, expected numbers abo",
    ),
    "scale -1": (fill("transform.transforms.0.scale", -1.0), "scale holds -1"),
    "missing": (lambda t: t.pop(WEIGHT), "the file has none"),
    "more": (lambda t: t.update(other=torch.zeros(2)), "other should be absent"),
    "shape": (lambda t: t.update({WEIGHT: torch.zeros(4, 4)}), r"shape \(4, 4\)"),
    "none": (lambda t: t.clear(), "the file has none"),
}


@pytest.mark.parametrize(("change", "message"), CONTENTS.values(), ids=CONTENTS.keys())
def test_weights_that_no_flow_has_are_refused_with_the_reason(path, change, message):
    assert WEIGHT in load_file(path)
    rewritten(path, change)
    with pytest.raises(FlowFileError, match=message):
        flowkit.load(path)


def test_an_order_that_is_no_permutation_is_refused(path):
    flowkit.save(flowkit.coupling_flow(3, linear="permutation", layers=2), path)
    name = next(name for name in load_file(path) if name.endswith("order"))
    rewritten(path, lambda tensors: tensors[name].__setitem__(0, tensors[name][1]))
    with pytest.raises(FlowFileError, match="order is another set of integers"):
        flowkit.load(path)


def test_what_cannot_be_loaded_is_not_saved(tmp_path):
    with pytest.raises(ArgumentError, match=r"flow as a Flow or .*remedy: save\(flow, path\)"):
        flowkit.save(tmp_path / "f", flowkit.coupling_flow(2, layers=1))
    flow = flowkit.coupling_flow(2, layers=1)
    with torch.no_grad():
        flow.transform[0].scale[1] = -1
    with pytest.raises(FlowFileError, match="scale holds -1"):
        flowkit.save(flow, tmp_path / "f")
    flow = flowkit.coupling_flow(2, layers=1)
    with torch.no_grad():
        next(flow.parameters()).fill_(torch.nan)
    with pytest.raises(FlowFileError, match="holds NaN or infinity; remedy"):
        flowkit.save(flow, tmp_path / "f")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_files_keep_the_dtype_of_the_flow(tmp_path, dtype):
    flow = flowkit.coupling_flow(2, layers=1, hidden=(4,)).to(dtype)
    flowkit.save(flow, tmp_path / "f")
    assert flowkit.load(tmp_path / "f").dtype == dtype


def test_weights_that_share_memory_are_stored_and_stay_as_they_were(tmp_path):
    flow = flowkit.coupling_flow(2, layers=2, hidden=(4,)).requires_grad_(False)
    parts = dict(flow.named_parameters())
    names = [name for name, value in parts.items() if value.shape == parts[WEIGHT].shape]
    assert len(names) > 1
    memory = torch.randn(len(names), *parts[WEIGHT].shape)
    for name, view in zip(names, memory, strict=True):
        parts[name].data = view
    other = next(p for p in parts.values() if p.ndim == 2 and p.shape != parts[WEIGHT].shape)
    other.data = other.data.T.contiguous().T
    before = {name: (p.data_ptr(), p.clone()) for name, p in parts.items()}
    flowkit.save(flow, tmp_path / "f")
    assert all(p.data_ptr() == before[name][0] for name, p in parts.items())
    again = dict(flowkit.load(tmp_path / "f").named_parameters())
    assert all(torch.equal(again[name], value) for name, (_, value) in before.items())


def test_writing_and_reading_leave_random_states_alone(tmp_path):
    flow = flowkit.autoregressive_flow(3, layers=1)
    states = torch.get_rng_state(), np.random.get_state()[1].copy()
    flowkit.save(flow, tmp_path / "f")
    flowkit.io.read_extra(tmp_path / "f")
    flowkit.load(tmp_path / "f")
    assert torch.equal(torch.get_rng_state(), states[0])
    assert (np.random.get_state()[1] == states[1]).all()


def test_a_flow_comes_to_the_device_that_is_named(path):
    assert {p.device.type for p in flowkit.load(path, device="meta").parameters()} == {"meta"}
    assert {p.device.type for p in flowkit.load(path).parameters()} == {"cpu"}
    for device in ("nowhere", "cuda:99"):
        with pytest.raises(DataError, match=rf"on device '{device}' .*; remedy: device='cpu'"):
            flowkit.load(path, device=device)


def test_layers_say_what_their_stored_numbers_may_be():
    layers = [
        (Standardize(2), "scale"),
        (Whiten(2), "whitener"),
        (Gaussianize(2), "slopes"),
        (Gaussianize(2), "tails"),
        (Gaussianize(2), "count"),
        (Gaussianize(2), "knots_x"),
        (UnderdampedLangevin(DoubleWell()), "mass"),
        (flowkit.smooth_flow(2).transform[0], "scale"),
        (flowkit.coupling_flow(2, context=1).embedding, "scale"),
    ]
    for layer, name in layers:
        assert layer.stored_fault() is None
        getattr(layer, name).fill_(-1)
        assert name in layer.stored_fault()


# ---- what reading costs ----


def part(name, **arguments):
    return {"class": f"flowkit.{name}", "arguments": arguments}


def flow_of(*layers, features=2):
    transform = part("transforms.Compose", transforms=list(layers))
    base = part("bases.StandardNormal", event_shape=[features])
    return part("flow.Flow", transform=transform, base=base)


def network(name, **arguments):
    return {"partial": f"flowkit.conditioners.{name}", "arguments": arguments}


def masked(features, **arguments):
    return part("transforms.MaskedAutoregressive", features=features, **arguments)


def coupled(features, **arguments):
    mask = [i % 2 == 0 for i in range(features)]
    return part("transforms.Coupling", mask=mask, **arguments)


WIDE = [1000] * 50
MANY_BINS = part("scalar.RationalQuadraticSpline", bins=1000)
# Descriptions that ask for much, in a file that holds two numbers.
GREEDY = {
    "dense": flow_of(part("transforms.DenseLinear", features=1000), features=1000),
    "many": flow_of(*[part("transforms.LULinear", features=100)] * 2000, features=100),
    "wide": flow_of(coupled(1000, conditioner=network("MLP", hidden=WIDE)), features=1000),
    "masked": flow_of(masked(1000, conditioner=network("MaskedMLP", hidden=WIDE)), features=1000),
    "bins": flow_of(masked(1000, scalar=MANY_BINS), features=1000),
    "elementwise": flow_of(part("transforms.Elementwise", features=1000, scalar=MANY_BINS)),
    "kernels": flow_of(coupled(1000, conditioner=network("KernelConditioner", points=1000))),
    "mixture": part(
        "flow.Flow",
        transform=part("transforms.Permutation", order=list(range(1000))),
        base=part("bases.NormalMixture", features=1000, components=1000),
    ),
    "permutations": flow_of(
        *[part("transforms.Permutation", order=list(range(1000)))] * 300, features=1000
    ),
}


@pytest.mark.parametrize("name", GREEDY)
def test_a_small_file_cannot_ask_for_a_large_flow(tmp_path, name):
    write_sealed(tmp_path / "f", {"a": torch.zeros(2)}, {"flow": GREEDY[name]})
    # What torch imports at the first use is no cost of the file.
    flowkit.save(flowkit.elementwise_flow(1), tmp_path / "first")
    flowkit.load(tmp_path / "first")
    tracemalloc.start()
    begun = time.process_time()
    try:
        with pytest.raises(FlowFileError):
            flowkit.load(tmp_path / "f")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 50e6
    assert time.process_time() - begun < 10


def test_a_flow_of_many_small_layers_can_still_be_stored(tmp_path):
    from flowkit import Flow
    from flowkit.bases import StandardNormal
    from flowkit.transforms import Compose, Permutation

    orders = [Permutation.random(4, seed=i) for i in range(300)]
    flowkit.save(Flow(Compose(*orders), StandardNormal(4)), tmp_path / "f")
    assert len(flowkit.load(tmp_path / "f").transform) == 300
