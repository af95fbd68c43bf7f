"""Files of torch.save made to do harm, and damaged ones: nothing runs, and the answer is the right one or a WeightsError."""

from __future__ import annotations

import argparse
import os
import pathlib
import pickle
import subprocess
import sys
import zipfile
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deltalm_jax.weights.pickle_data import Foreign, Global, read_pickle
from deltalm_jax.weights.tensors import WeightsError
from deltalm_jax.weights.torch_file import read_torch_file, write_torch_file
from tests.weights.torch_archives import GOLDEN, instructions, plain, write_archive


class Call:
    """Pickles as a call of a function."""

    def __init__(self, function, *arguments):
        self.reduced = function, arguments

    def __reduce__(self):
        return self.reduced

    def __call__(self):
        """Lets a call be the function of another."""


class Setter:
    """An object whose unpickling calls its own method."""

    def __init__(self, path):
        self.path = path

    def __setstate__(self, state):
        pathlib.Path(state["path"]).touch()


def touch(path) -> Call:
    return Call(eval, f"open({str(path)!r}, 'w').close()")


# Each makes, of the path of a canary, an object whose pickle makes the canary when Python loads it. Under the function's
# name as it stands in the file (in protocol 2, that of Python 2), a pattern.
REFUSED = {
    "posix.system": lambda path: Call(os.system, f"touch '{path}'"),
    "commands.call": lambda path: Call(subprocess.call, ["touch", str(path)]),
    "__builtin__.eval": touch,
    "__builtin__.exec": lambda path: Call(exec, f"open({str(path)!r}, 'w').close()"),
    "_?io.open": lambda path: Call(open, str(path), "w"),
    "__builtin__.getattr": lambda path: Call(Call(getattr, pathlib.Path(path), "touch")),
    "pickle.loads": lambda path: Call(pickle.loads, pickle.dumps(touch(path))),
}
PLACES = {
    "value": lambda call: {"a": call},
    "key": lambda call: {call: 1},
    "in lists and tuples": lambda call: ([(1, [call])],),
    "state": lambda call: argparse.Namespace(arch="x", lr=call),
    "argument of a recorded call": lambda call: {"a": Call(set, [call])},
    "the object itself": lambda call: call,
}


@pytest.fixture
def canary(tmp_path):
    return tmp_path / "canary"


def assert_alive(pickled: bytes, canary: pathlib.Path) -> None:
    """Without this, a payload that does nothing would pass every test."""
    pickle.loads(pickled)
    assert canary.exists()
    canary.unlink()


@pytest.mark.parametrize("function", REFUSED)
def test_calls_are_refused_by_name(tmp_path, canary, function):
    pickled = pickle.dumps({"layer": REFUSED[function](canary)}, protocol=2)
    assert_alive(pickled, canary)
    path = write_archive(tmp_path, pickled, {})
    with pytest.raises(WeightsError, match=f"calls {function}, which is refused; nothing was executed") as error:
        read_torch_file(path)
    assert str(error.value).startswith(str(path))
    assert not canary.exists()


@pytest.mark.parametrize("protocol", [2, 4, 5])
@pytest.mark.parametrize("place", PLACES)
def test_calls_are_refused_wherever_they_stand(tmp_path, canary, place, protocol):
    pickled = pickle.dumps(PLACES[place](touch(canary)), protocol)
    assert_alive(pickled, canary)
    with pytest.raises(WeightsError, match="eval, which is refused"):
        read_torch_file(write_archive(tmp_path, pickled, {}))
    assert not canary.exists()


def test_objects_are_recorded_without_their_methods(tmp_path, canary):
    pickled = pickle.dumps({"a": Setter(str(canary)), "b": argparse.Namespace(x=1)}, protocol=2)
    assert_alive(pickled, canary)
    read = read_torch_file(write_archive(tmp_path, pickled, {}))
    assert isinstance(read["a"], Foreign)
    assert (read["a"].class_name, read["a"].state) == (f"{__name__}.Setter", {"path": str(canary)})
    assert (read["b"].class_name, read["b"].state) == ("argparse.Namespace", {"x": 1})
    assert not canary.exists()


def test_modules_are_not_imported(tmp_path, canary, monkeypatch):
    (tmp_path / "canary_module.py").write_text(f"open({str(canary)!r}, 'w').close()\nName = 1\n")
    monkeypatch.syspath_prepend(tmp_path)
    pickled = b"\x80\x02ccanary_module\nName\n."
    assert_alive(pickled, canary)
    del sys.modules["canary_module"]
    assert read_torch_file(write_archive(tmp_path, pickled, {})) == Global("canary_module.Name")
    assert "canary_module" not in sys.modules
    assert not canary.exists()


@pytest.mark.parametrize(
    "pickled",
    [
        pytest.param(b"\x80\x02(X\x01\x00\x00\x00xios\nsystem\n.", id="INST"),
        pytest.param(b"\x80\x02(cos\nsystem\nX\x01\x00\x00\x00xo.", id="OBJ"),
        pytest.param(b"\x80\x02\x82\x01.", id="EXT1"),
        pytest.param(b"Pany\n.", id="PERSID"),
        pytest.param(b"\x80\x02Nb.", id="state of nothing"),
        pytest.param(b"\x80\x02}]b.", id="state of a dict that is none"),
        pytest.param(b"\x80\x02ccollections\nOrderedDict\n}b.", id="state of a class"),
        pytest.param(b"\x80\x02ccollections\nOrderedDict\nK\x01K\x02s.", id="item of a class"),
        pytest.param(b"\x80\x02ccollections\nOrderedDict\n]R.", id="arguments that are no tuple"),
        pytest.param(b"\x80\x02ccollections\nOrderedDict\n)R)R.", id="call of a value"),
        pytest.param(b"\x80\x02K\x01)\x81.", id="object of no class"),
        pytest.param(b"\x80\x02ccollections\nOrderedDict\nN\x85R.", id="filled OrderedDict"),
        pytest.param(b"\x80\x02c_codecs\nencode\nX\x01\x00\x00\x00aX\x05\x00\x00\x00rot13\x86R.", id="other codec"),
        pytest.param(b"\x80\x02]]K\x01s.", id="item of a list"),
        pytest.param(b"\x80\x02}K\x01K\x02(s.", id="below a mark"),
        pytest.param(b"\x80\x02}]K\x01s.", id="list for a key"),
        pytest.param(b"\x80\x02K\x01K\x02\x93.", id="numbers for a name"),
        pytest.param(b"\x80\x02h\x07.", id="unknown memo"),
        pytest.param(b"\x80\x02t.", id="no mark"),
        pytest.param(b"\x80\x02(.", id="no value"),
        pytest.param(b"\x80\x02}(K\x01u.", id="key without value"),
        pytest.param(b"\x80\x02X\xff\xff\xff\x7fabc.", id="huge text"),
        pytest.param(b"\x80\x02\x8b\xff\xff\xff\x7f\x01.", id="huge number"),
        pytest.param(b"", id="nothing"),
        *(
            pytest.param(b"\x80\x02" + instructions(identity) + b"Q.", id=f"persistent {identity!r}")
            for identity in (7, ("storage",), ("module", 1, "0", "cpu", 3), ("storage", "x", "0", "cpu", 3))
        ),
        pytest.param(
            b"\x80\x02(X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x0d\x00\x00\x00../../secretsX\x00\x00\x00\x00K\x01tQ.",
            id="storage elsewhere",
        ),
        pytest.param(b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n)R.", id="tensor of nothing"),
        pytest.param(b"\x80\x02ctorch._utils\n_rebuild_parameter\n(K\x01K\x02K\x03tR.", id="parameter of a number"),
    ],
)
def test_what_torch_does_not_write_is_refused(tmp_path, pickled):
    with pytest.raises(WeightsError, match=r"model.pt: the pickle in it"):
        read_torch_file(write_archive(tmp_path, pickled, {}))


def test_a_call_inside_a_persistent_id(tmp_path, canary):
    pickled = pickle.dumps(touch(canary), protocol=2)
    assert_alive(pickled, canary)
    with pytest.raises(WeightsError, match="eval, which is refused"):
        read_torch_file(write_archive(tmp_path, pickled[:-1] + b"Q.", {}))
    assert not canary.exists()


def test_keys_whose_hash_takes_for_ever(tmp_path):
    doubling = b"".join(b"q%ch%c\x86" % (i, i) for i in range(100))
    with pytest.raises(WeightsError, match="a tuple for the key"):
        read_torch_file(write_archive(tmp_path, b"\x80\x02})" + doubling + b"Ns.", {}))


def test_deep_nesting_and_doubling(tmp_path):
    """A hundred thousand lists in one another, and 2^100 leaves in 100 lists: what holds little takes little."""
    depth = 100_000
    value = read_torch_file(write_archive(tmp_path, b"\x80\x02" + b"]" * depth + b"a" * (depth - 1) + b".", {}))
    found = 1
    while value:
        (value,) = value
        found += 1
    assert found == depth
    doubling = b"".join(b"q%c]h%cah%ca" % (i, i, i) for i in range(100))
    assert len(read_torch_file(write_archive(tmp_path, b"\x80\x02]" + doubling + b".", {}))) == 2


def test_a_large_pickle(tmp_path, monkeypatch):
    path = write_archive(tmp_path, pickle.dumps([1, 2], protocol=2), {})
    assert read_torch_file(path) == [1, 2]
    monkeypatch.setattr("deltalm_jax.weights.torch_file._MAX_PICKLE_BYTES", 10)
    with pytest.raises(WeightsError, match=r"its data.pkl has \d+ bytes"):
        read_torch_file(path)


def test_a_message_stays_one_short_line(tmp_path):
    name = "\x1b[2J" + "x" * 10_000
    pickled = b"\x80\x02" + instructions("builtins")[:-2] + instructions(name) + b"\x93)R."
    with pytest.raises(WeightsError, match="refused") as error:
        read_torch_file(write_archive(tmp_path, pickled, {}))
    assert len(str(error.value)) < 500
    assert str(error.value).isprintable()


plain_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary(),
    lambda inner: (
        st.lists(inner) | st.lists(inner).map(tuple) | st.dictionaries(st.text() | st.integers(), inner, max_size=4)
    ),
    max_leaves=20,
)


@settings(max_examples=100, deadline=None)
@given(value=plain_values, protocol=st.integers(2, 5))
def test_plain_values_are_what_python_reads(value, protocol):
    def refuse(identity: Any) -> None:
        raise AssertionError(identity)

    pickled = pickle.dumps(value, protocol)
    calls = {"_codecs.encode": lambda arguments: arguments[0].encode("latin-1"), "__builtin__.bytes": lambda _: b""}
    read = read_pickle(
        pickled, calls=calls, is_recorded=lambda _: False, persistent=refuse, name_item=lambda _, item: item
    )
    assert plain(read) == plain(pickle.loads(pickled))


def outcome(path: pathlib.Path) -> Any:
    """All that a file holds, numbers included; None for a WeightsError. Any other exception is a failure of the test."""
    try:
        return plain(read_torch_file(path))
    except WeightsError:
        return None


def table_of_contents(content: bytes) -> int:
    """Where the entries of an archive are listed."""
    return content.index(b"PK\x01\x02")


def test_storages_that_the_table_of_contents_exchanges(tmp_path):
    """Sizes and checksums go along with the names, so that only the names before the storages tell."""
    path = tmp_path / "exchanged.pt"
    write_torch_file(path, {"a": np.ones(3), "b": np.zeros(3)})
    content = path.read_bytes()
    start = table_of_contents(content)
    table = content[start:].replace(b"data/0", b"data/x").replace(b"data/1", b"data/0").replace(b"data/x", b"data/1")
    path.write_bytes(content[:start] + table)
    with pytest.raises(WeightsError, match="another name"):
        read_torch_file(path)


def test_an_entry_larger_than_the_file(tmp_path):
    path = write_archive(tmp_path, b"\x80\x02}.", {})
    content = bytearray(path.read_bytes())
    start = table_of_contents(content)
    content[start + 20 : start + 28] = b"\xf0\xff\xff\xff" * 2
    path.write_bytes(content)
    with pytest.raises(WeightsError, match="data.pkl is damaged: it reaches beyond the end of the file"):
        read_torch_file(path)


@pytest.fixture(params=["torch", "ours"])
def whole(request, tmp_path):
    if request.param == "torch":
        return GOLDEN
    write_torch_file(tmp_path / "whole.pt", {"w": np.arange(6.0), "n": {"b": np.ones(3, np.float32).T, "s": "text"}})
    return tmp_path / "whole.pt"


def test_files_cut_anywhere(tmp_path, whole):
    content, path = whole.read_bytes(), tmp_path / "cut.pt"
    for size in range(0, len(content), 13):
        path.write_bytes(content[:size])
        assert outcome(path) is None, size


def test_flipped_bits_give_the_right_result_or_an_error(tmp_path, whole):
    content, path = whole.read_bytes(), tmp_path / "flipped.pt"
    right, rng, refused = outcome(whole), np.random.default_rng(3), 0
    assert right is not None
    for position in rng.permutation(len(content))[:500]:
        flipped = bytearray(content)
        flipped[position] ^= 1 << int(rng.integers(8))
        path.write_bytes(flipped)
        found = outcome(path)
        assert found in (None, right), position
        refused += found is None
    assert refused > 100


def test_pickles_with_any_bytes_changed(tmp_path):
    """With a right checksum, as an author of ill will would give it."""
    with zipfile.ZipFile(GOLDEN) as archive:
        pickled = archive.read("torch_saved/data.pkl")
        names = [name for name in archive.namelist() if "/data/" in name]
        storages = {name.rpartition("/")[2]: archive.read(name) for name in names}
    rng, refused = np.random.default_rng(4), 0
    for _ in range(500):
        changed = bytearray(pickled)
        for position in rng.integers(len(pickled), size=rng.integers(1, 4)):
            changed[position] = rng.integers(256)
        refused += outcome(write_archive(tmp_path, bytes(changed), storages)) is None
    assert refused > 100
