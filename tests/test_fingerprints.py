"""Two models that differ in one weight, one option or one preprocessing number are two models.

Over every scheme: each variant below gives other embeddings than the first, and none shares its
fingerprint with another. A network under another path keeps its own.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from command_line import Captured, fails, prints
from every_scheme import WRITERS, write_python
from helpers import write_groups
from whiten.embedding.opening import load
from whiten.errors import StoreError
from whiten.index.index import Index
from whiten.models.multiscale import see_own_size
from whiten.models.registry import open_network
from whiten.models.uri import SCHEMES
from whiten.store.store import Store
from whiten.views.rendering import Preprocess
from whiten.whitening.whitener import Whitener


@pytest.fixture(autouse=True)
def own_modules() -> Iterator[None]:
    before, path = set(sys.modules), list(sys.path)
    yield
    for name in set(sys.modules) - before:
        if name.startswith("print_"):
            del sys.modules[name]
    sys.path[:] = path


@pytest.mark.slow
@pytest.mark.parametrize("scheme", WRITERS)
def test_no_two_models_share_a_fingerprint(scheme: str, tmp_path: Path) -> None:
    uris = WRITERS[scheme](tmp_path)
    assert len(uris) > 1 and len(set(uris)) == len(uris)
    prints_ = {uri: load(uri, device="cpu").fingerprint() for uri in uris}
    alike = {p: [uri for uri, own in prints_.items() if own == p] for p in prints_.values()}
    assert [uris for uris in alike.values() if len(uris) > 1] == []
    again = {uri: load(uri, device="cpu").fingerprint() for uri in uris}
    assert again == prints_


def test_every_scheme_is_here() -> None:
    """The demo's networks are fixed: an architecture each, with the options of a preprocessing."""
    assert WRITERS.keys() | {"demo"} == SCHEMES.keys()


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["timm", "hf", "whiten", "openclip", "torchscript"])
def test_a_network_keeps_its_fingerprint_elsewhere(scheme: str, tmp_path: Path) -> None:
    (tmp_path / "here").mkdir()
    uri = WRITERS[scheme](tmp_path / "here")[0]
    first = load(uri, device="cpu").fingerprint()
    (tmp_path / "here").rename(tmp_path / "there")
    moved = uri.replace(str(tmp_path / "here"), str(tmp_path / "there"))
    assert load(moved, device="cpu").fingerprint() == first


def test_every_number_of_a_preprocessing_counts() -> None:
    first = Preprocess()
    changes = {
        "size": (224, 225),
        "fit": "squash",
        "crop_fraction": 0.999,
        "interpolation": "bilinear",
        "mean": (0.485, 0.456, 0.4060001),
        "std": (0.229, 0.224, 0.2250001),
        "white": 255.0,
        "channels": "bgr",
        "layout": "nhwc",
    }
    assert changes.keys() == {field.name for field in dataclasses.fields(Preprocess)}
    others = [dataclasses.replace(first, **{name: value}) for name, value in changes.items()]
    assert len({p.fingerprint() for p in (first, *others)}) == 1 + len(others)


def test_scales_and_whitenings_count(tmp_path: Path) -> None:
    write_python(tmp_path)
    teacher = open_network("python:print_a.nets:make")
    rows = np.random.default_rng(0).normal(size=(50, 3))
    whitener = Whitener(2, shrinkage=0.1).fit(rows)
    other = Whitener(2, shrinkage=0.1000001).fit(rows)
    scales = [(1.0,), (1.0, 2**-0.5, 0.5), (1.0, 0.707107, 0.5), (1.0, 0.70710679, 0.5)]
    seen = [see_own_size(teacher, scales=s).fingerprint() for s in scales]
    seen += [see_own_size(teacher, whitener=w).fingerprint() for w in (whitener, other)]
    assert len({*seen, teacher.fingerprint()}) == 7


# --- what stores and indexes make of it -------------------------------------------------


def test_a_factory_edited_in_place(capsys: Captured, tmp_path: Path) -> None:
    """The same URI is another model then: stores and indexes say so, and its new code runs."""
    (tmp_path / "code").mkdir()
    write_python(tmp_path / "code")
    images = write_groups(tmp_path / "images", {"a": 3})
    uri = "python:print_a.nets:make"
    command = ("embed", images, "--model", uri, "--out", tmp_path / "store")
    prints(capsys, *command)
    Index.build(uri, images, tmp_path / "index")
    first = load(uri)
    before = first.embed(images / "a" / "0.png")
    helper = tmp_path / "code" / "print_a" / "scales.py"
    helper.write_text("SCALE = -3.0  # of the helper module\n")
    changed = load(uri)
    assert changed.fingerprint() != first.fingerprint()
    np.testing.assert_allclose(changed.embed(images / "a" / "0.png"), -before, atol=1e-6)
    line = fails(capsys, *command)
    assert "holds embeddings of another model" in line
    assert "its weights, source or preprocessing have changed" in line
    with pytest.raises(StoreError, match="made with another model"):
        Index.open(tmp_path / "index", changed)
    helper.write_text("SCALE = 1\n")
    assert load(uri).fingerprint() == first.fingerprint()
    prints(capsys, *command)


def test_a_store_of_an_earlier_version_is_known_by_its_options(tmp_path: Path) -> None:
    """Its fingerprint does not tell the poolings apart; its URI does."""
    write_python(tmp_path)
    uri = "python:print_a.nets:make?pool=max"
    images = write_groups(tmp_path / "images", {"a": 2})
    from whiten.datasets.finding import find_items
    from whiten.embedding.embed import embed

    earlier = open_network(uri)
    earlier.details = ()
    earlier.weights_hash = "0" * 32  # as if it had weights
    embed(find_items(images), earlier, tmp_path / "store")
    for option, is_known in (("pool=max", True), ("pool=avg", False)):
        teacher = open_network(f"python:print_a.nets:make?{option}")
        teacher.weights_hash = "0" * 32
        assert teacher.earlier_fingerprint() == earlier.fingerprint()
        if is_known:
            embed(find_items(images), teacher, tmp_path / "store")
            assert Store.open(tmp_path / "store").origin.fingerprint == earlier.fingerprint()
        else:
            with pytest.raises(StoreError, match=r"of another model, .*pool=max.*pool=avg"):
                embed(find_items(images), teacher, tmp_path / "store")
