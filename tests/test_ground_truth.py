"""The ground truth of revisited Oxford and Paris: read as published, and nothing else."""

from __future__ import annotations

import json
import os
import pickle
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from whiten.datasets.ground_truth import read_truth
from whiten.datasets.restricted_pickle import read_numbers
from whiten.errors import ConfigError


def facts(**changes: Any) -> dict[str, Any]:
    gnd = [
        {
            "easy": np.array([2, 0]),
            "hard": np.array([1]),
            "junk": np.zeros(0),
            "bbx": [1, 2.5, 30, 40],
        },
        {
            "easy": [],
            "hard": np.array([3], np.uint16),
            "junk": [0],
            "bbx": np.array([0, 0, 9, 9.5], np.float32),
        },
    ]
    return {"imlist": ["a", "b", "c", "d"], "qimlist": ["q", "r"], "gnd": gnd, **changes}


def write(folder: Path, value: Any, protocol: int = 2) -> Path:
    file = folder / "gnd_roxford5k.pkl"
    file.write_bytes(value if isinstance(value, bytes) else pickle.dumps(value, protocol))
    return file


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_pickles_of_every_protocol(tmp_path: Path, protocol: int) -> None:
    truth = read_truth(write(tmp_path, facts(), protocol))
    assert (truth.images, truth.queries) == (["a", "b", "c", "d"], ["q", "r"])
    assert truth.lists[0] == {"easy": [2, 0], "hard": [1], "junk": []}
    assert truth.lists[1] == {"easy": [], "hard": [3], "junk": [0]}
    assert truth.boxes == [(1.0, 2.5, 30.0, 40.0), (0.0, 0.0, 9.0, 9.5)]


def test_pickles_of_numpy_before_and_after_2(tmp_path: Path) -> None:
    data = pickle.dumps(facts(), 2)
    assert b"numpy._core" in data
    old = data.replace(b"numpy._core.multiarray", b"numpy.core.multiarray")
    assert read_truth(write(tmp_path, old)) == read_truth(write(tmp_path, data))


def test_the_json_form_says_the_same(tmp_path: Path) -> None:
    truth = read_truth(write(tmp_path, facts()))
    gnd = [{**lists, "bbx": list(box)} for lists, box in zip(truth.lists, truth.boxes, strict=True)]
    said = {"imlist": truth.images, "qimlist": truth.queries, "gnd": gnd}
    (tmp_path / "gnd_roxford5k.json").write_text(json.dumps(said))
    assert read_truth(tmp_path / "gnd_roxford5k.json") == truth


def test_arrays_keep_shape_order_type_and_value() -> None:
    arrays = {
        "fortran": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        "big": np.arange(3, dtype=">i2"),
        "bool": np.array([True, False]),
        "text": np.array(["ä", "bcd"]),
        "strided": np.arange(10)[::3],
        "scalar": np.float32(0.5),
        "empty": np.zeros((0, 4), np.uint8),
    }
    for protocol in range(6):
        found = read_numbers(pickle.dumps(arrays, protocol), "x")
        for name, array in arrays.items():
            np.testing.assert_array_equal(found[name], array)
            assert np.shape(found[name]) == np.shape(array)
        assert found["big"].dtype == np.dtype(">i2")


class Runs:
    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.path}",)


class Builds:
    def __reduce__(self) -> Any:
        return eval, ("1+1",)


@pytest.mark.parametrize("protocol", [0, 2, 5])
def test_nothing_runs(tmp_path: Path, protocol: int) -> None:
    trap = tmp_path / "trap"
    runs = Runs(str(trap))
    hidden = np.array([runs, None], dtype=object)
    for value in (runs, facts(gnd=runs), facts(imlist=[runs]), facts(gnd=hidden), [hidden]):
        with pytest.raises(ConfigError, match="is refused, it holds more than containers"):
            read_truth(write(tmp_path, value, protocol))
    assert not trap.exists()


@pytest.mark.parametrize(
    ("value", "named"),
    [
        (Builds(), "builtins.eval"),
        (np.array([{}], dtype=object), "'O8'"),
        (np.zeros(1, [("a", "i4")]), "'V4'"),
        (np.zeros(1, "M8[s]"), "'M8'"),
        (np.zeros(1, complex), "'c16'"),
        (OrderedDict(a=1), "collections.OrderedDict"),
        (Path("x"), "pathlib"),
        (np.ndarray, "a name or a type in place of a value"),
    ],
)
def test_what_is_refused_is_named(value: Any, named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        read_numbers(pickle.dumps(value), "truth.pkl")


# A pickle by hand: an array whose type says 8 bytes an item and whose bytes are 3; the same type
# with a forged state; a call of what is no function.
FORGED = [
    b"cnumpy._core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I0\ntS'b'\ntR"
    b"(I1\n(I1\nt(cnumpy\ndtype\n(S'f8'\nI0\nI1\ntR)S'abc'\nt(.",
    b"cnumpy\ndtype\n(S'f8'\nI0\nI1\ntR(I3\nS'x'\nNNNI-1\nI-1\nI0\ntb.",
    b"cbuiltins\nlist\n(S'abc'\ntR.",
    b"cnumpy\ndtype\n(S'O8'\ntR.",
    b"ctorch\nload\n.",
    b"cnumpy\nndarray\n(I1\ntR.",
    # Changes of what names stand for.
    b"c_codecs\nencode\n(N(dS'__defaults__'\n(Ntstb.",
    b"cnumpy\nndarray\n(dS'x'\nI1\nsb.",
    b"\x80\x02cnumpy\ndtype\n)\x81.",
]


@pytest.mark.parametrize(
    "data", [*FORGED, b"", b"\x80\x02", b"\x80\x05garbage", b"PK\x03\x04", b"(."]
)
def test_forged_and_damaged_files_are_one_line(tmp_path: Path, data: bytes) -> None:
    with pytest.raises(ConfigError) as caught:
        read_truth(write(tmp_path, data))
    assert "\n" not in str(caught.value) and str(tmp_path) in str(caught.value)


def test_every_cut_off_file_is_refused(tmp_path: Path) -> None:
    data = pickle.dumps(facts(), 4)
    for end in range(0, len(data), 7):
        with pytest.raises(ConfigError):
            read_truth(write(tmp_path, data[:end]))


def test_no_flipped_byte_is_a_crash(tmp_path: Path) -> None:
    data = pickle.dumps(facts(), 2)
    for place in range(0, len(data), 3):
        damaged = bytearray(data)
        damaged[place] ^= 0x15
        try:
            read_truth(write(tmp_path, bytes(damaged)))
        except ConfigError as error:
            assert "\n" not in str(error)


def test_containers_that_grow_without_end_are_refused_at_once() -> None:
    endless: list[Any] = []
    endless.append(endless)
    with pytest.raises(ConfigError, match="containers without end"):
        read_numbers(pickle.dumps(endless), "x")
    doubled: list[Any] = [0]
    for _ in range(80):  # 2 to the 80th zeros, if one looked at each
        doubled = [doubled, doubled]
    read_numbers(pickle.dumps(doubled), "x")


def one_query(**changes: Any) -> dict[str, Any]:
    gnd = {"easy": [0], "hard": [1], "junk": [], "bbx": [0, 0, 5, 5], **changes}
    return {"imlist": ["a", "b"], "qimlist": ["q"], "gnd": [gnd]}


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([], "list indices"),
        ({**one_query(), "imlist": []}, "no images or no queries"),
        ({**one_query(), "imlist": ["a", "a"]}, "listed twice"),
        ({**one_query(), "imlist": ["a", "../b"]}, "'../b' is no image's name"),
        ({**one_query(), "imlist": ["a", 1]}, "a list of names"),
        ({**one_query(), "qimlist": ["q", "r"]}, "not a list of 2 queries"),
        ({"imlist": ["a"], "qimlist": ["q"]}, "gnd"),
        (one_query(easy=[2]), "beyond the 2 of imlist"),
        (one_query(hard=[-1]), "beyond the 2 of imlist"),
        (one_query(hard=[0.5]), "hard is no list of indices"),
        (one_query(junk="ab"), "junk is no list of indices"),
        (one_query(junk=[1, 0]), "query 'q': image 'a' is easy and junk"),
        (one_query(junk=[1]), "query 'q': image 'b' is hard and junk"),
        (one_query(bbx=[0, 0, 5]), "not enough values"),
        (one_query(bbx=[5, 0, 5, 5]), "is no box"),
        (one_query(bbx=[0, 0, float("nan"), 5]), "is no box"),
    ],
)
def test_what_does_not_fit_together_is_refused(tmp_path: Path, value: Any, message: str) -> None:
    for file in (write(tmp_path, value), tmp_path / "gnd_roxford5k.json"):
        if file.suffix == ".json":
            file.write_text(json.dumps(value))
        with pytest.raises(ConfigError, match=message):
            read_truth(file)
