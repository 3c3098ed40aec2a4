"""A folder of odd and damaged images: each is embedded as a plain decode shows it, or skipped."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import transforms
from torchvision.transforms import InterpolationMode

from helpers import TEACHER
from odd_images import (
    bad_images,
    good_images,
    odd_names,
    plain_decode,
    write_all,
)
from pictures import encode, picture
from whiten import cli
from whiten.datasets.collection import Item
from whiten.datasets.finding import find_items
from whiten.media.decoding import decode
from whiten.models.registry import open_teacher
from whiten.store.store import Store

pytestmark = pytest.mark.skipif(os.name != "posix", reason="names and files of POSIX systems")

Embed = Callable[..., dict[str, Any]]


@pytest.fixture
def folder(colour_teachers: None, tmp_path: Path) -> Path:
    return tmp_path / "images"


@pytest.fixture
def run(folder: Path, capsys: pytest.CaptureFixture[str]) -> Embed:
    """Embed `folder` by the command line into `store`; its summary. Any exit is a failure."""

    def embed(*options: str) -> dict[str, Any]:
        command = ["embed", str(folder), "--teacher", TEACHER, "--out", "store", "--json"]
        cli.main([*command, *options])
        summary: dict[str, Any] = json.loads(capsys.readouterr().out)
        summary["reasons"] = {skip["id"]: skip["reason"] for skip in summary["skipped"]}
        return summary

    return embed


def plain_embedding(image: Image.Image) -> np.ndarray:
    """As torchvision prepares it, through the network, without the library's views and batches."""
    teacher = open_teacher(TEACHER)
    small = transforms.Compose(
        [transforms.Resize(32, InterpolationMode.BICUBIC), transforms.CenterCrop(32)]
    )(image)
    mean, std = (np.array(v) for v in (teacher.preprocess.mean, teacher.preprocess.std))
    inputs = torch.from_numpy((np.asarray(small) / 255 - mean) / std).float()
    with torch.inference_mode():
        out = teacher.forward(inputs.permute(2, 0, 1)[None])[0]
    return (out / out.norm()).numpy()


GOOD = good_images()


@pytest.mark.parametrize("name", GOOD)
def test_an_odd_image_is_decoded_as_plain_pillow_does(name: str) -> None:
    decoded, plain = decode(GOOD[name]), plain_decode(GOOD[name])
    assert (decoded.mode, decoded.size) == ("RGB", plain.size)
    assert np.array_equal(np.asarray(decoded), np.asarray(plain))


def test_each_image_is_embedded_or_skipped_with_its_reason(folder: Path, run: Embed) -> None:
    bad = bad_images()
    write_all(folder, GOOD | {name: data for name, (data, _) in bad.items()})
    summary = run()
    assert summary["embeddings"] == len(GOOD)
    assert summary["reasons"].keys() == bad.keys()
    for name, (_, pattern) in bad.items():
        assert re.match(pattern, summary["reasons"][name]), (name, summary["reasons"][name])
        assert "\n" not in summary["reasons"][name]
    vectors = Store.open("store").gather(list(GOOD))
    for name, vector in zip(GOOD, vectors, strict=True):
        expected = plain_embedding(plain_decode(GOOD[name]))
        assert np.abs(vector - expected).max() < 0.02, name
    before = {path.name: path.read_bytes() for path in Path("store").iterdir()}
    assert run() == summary
    assert {path.name: path.read_bytes() for path in Path("store").iterdir()} == before


def test_the_summary_for_people_names_each_skipped_image(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_all(folder, {"a.png": GOOD["plain.png"], "b.png": b"", "c.jpg": b"text"})
    command = ["embed", str(folder), "--teacher", TEACHER, "--out", "store"]
    cli.main(command)
    out, err = capsys.readouterr()
    assert out.splitlines()[0] == "store: 1 embedding of 12 dimensions"
    assert "2 images skipped:\n  b.png: empty file\n  c.jpg: not an image" in err
    (folder / "a.png").unlink()
    shutil.rmtree("store")
    with pytest.raises(SystemExit) as stopped:
        cli.main(command)
    assert stopped.value.code == 2
    assert "none of 2 images could be embedded" in capsys.readouterr().err


def test_copies_are_reported(folder: Path, run: Embed, capsys: pytest.CaptureFixture[str]) -> None:
    write_all(folder, dict.fromkeys(("a.png", "b\nc.png"), GOOD["plain.png"]))
    write_all(folder / "more", {"d.png": GOOD["plain.png"], "e.png": GOOD["grey.png"]})
    assert run()["duplicates"] == [["a.png", "b\nc.png", "more/d.png"]]
    cli.main(["embed", str(folder), "--teacher", TEACHER, "--out", "store"])
    err = capsys.readouterr().err
    assert "2 images with the content of another:\n  a.png = b\\nc.png = more/d.png\n" in err


def test_names_of_all_kinds(folder: Path, run: Embed) -> None:
    folder.mkdir()
    for seed, name in enumerate(odd_names()):
        with open(os.fsencode(folder) + b"/" + name, "wb") as file:
            file.write(encode(picture(seed), "PNG"))
    summary = run()
    assert (summary["embeddings"], summary["skipped"]) == (len(odd_names()), [])
    names = [
        name.replace(b"\\", rb"\x5c").decode("utf-8", "backslashreplace") for name in odd_names()
    ]
    assert len(set(names)) == len(names)
    for seed, vector in enumerate(Store.open("store").gather(names)):
        assert np.abs(vector - plain_embedding(picture(seed))).max() < 0.01
    assert run()["embeddings"] == len(names)


def test_what_is_no_plain_file(folder: Path, tmp_path: Path, run: Embed) -> None:
    write_all(folder / "x.jpg", {"inside.png": GOOD["plain.png"]})
    write_all(folder / "real", {"a.png": GOOD["grey.png"]})
    (folder / "to-file.png").symlink_to("real/a.png")
    (folder / "to-nothing.png").symlink_to("nowhere.png")
    (folder / "to-itself.png").symlink_to("to-itself.png")
    (folder / "to-folder.png").symlink_to("real")
    (folder / "real" / "to-parent").symlink_to("..")
    (folder / "to-zero.png").symlink_to("/dev/zero")
    os.mkfifo(folder / "pipe.png")
    with (folder / "endless.png").open("wb") as file:
        os.truncate(file.fileno(), 1 << 34)  # takes no room
    here = Path.cwd()
    os.chdir(folder)  # a socket's path must be short
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind("socket.png")
    os.chdir(here)
    summary = run()
    assert summary["reasons"] == {
        "to-nothing.png": "no such file or directory",
        "to-itself.png": "too many levels of symbolic links",
        "to-zero.png": "not a file but a pipe or a device",
        "pipe.png": "not a file but a pipe or a device",
        "socket.png": "no such device or address",
        "endless.png": "17,179,869,184 bytes, above the limit of 1,073,741,824",
    }
    store = Store.open("store")
    assert sorted(store.shards[0].ids) == ["real/a.png", "to-file.png", "x.jpg/inside.png"]
    assert np.array_equal(*store.gather(["real/a.png", "to-file.png"])[:, None])


def test_files_and_folders_that_may_not_be_read(
    folder: Path, run: Embed, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_all(folder, {"open.png": GOOD["plain.png"], "denied.png": GOOD["grey.png"]})
    write_all(folder / "locked", {"inside.png": GOOD["alpha.png"]})
    real_open, real_scandir = os.open, os.scandir

    def denied(path: Any, *rest: Any, **more: Any) -> int:  # root may read everything
        if str(path).endswith("denied.png"):
            raise PermissionError(errno.EACCES, "Permission denied", path)
        return real_open(path, *rest, **more)

    def locked(path: Any = ".") -> Any:
        if str(path).endswith("locked"):
            raise PermissionError(errno.EACCES, "Permission denied", path)
        return real_scandir(path)

    with monkeypatch.context() as forbidden:
        forbidden.setattr(os, "open", denied)
        forbidden.setattr(os, "scandir", locked)
        for _ in range(2):
            summary = run()
            assert summary["embeddings"] == 1
            assert summary["reasons"] == {
                "denied.png": "permission denied",
                "locked/": "permission denied",
            }
    (folder / "denied.png").chmod(0o640)
    assert run()["embeddings"] == 3


def test_a_folder_too_deep_for_the_system_is_reported(folder: Path, run: Embed) -> None:
    write_all(folder, {"a.png": GOOD["plain.png"]})
    here = Path.cwd()
    os.chdir(folder)
    for _ in range(20):
        Path("d" * 250).mkdir()
        os.chdir("d" * 250)
    os.chdir(here)
    summary = run()
    assert summary["embeddings"] == 1
    ((name, reason),) = summary["reasons"].items()
    assert name.endswith("d/")
    assert reason == "file name too long"
    shutil.rmtree(folder)


def test_files_that_vanish_during_the_run(
    folder: Path, run: Embed, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [f"{number:02d}.png" for number in range(40)]
    write_all(folder, {name: encode(picture(n), "PNG") for n, name in enumerate(names)})
    find = find_items

    def find_then_lose(source: Path, *_: object) -> list[Item]:
        items = find(source)
        (folder / "05.png").unlink()
        (folder / "39.png").write_bytes(b"")
        return items

    monkeypatch.setattr("whiten.datasets.frames.find_items", find_then_lose)
    summary = run()
    assert summary["embeddings"] == 38
    assert summary["reasons"] == {"05.png": "no such file or directory", "39.png": "empty file"}
