"""In every place of an index: what could not be read is tried again; old colours are mended."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import numpy as np
import pytest

from colour_profiles import PROPHOTO
from helpers import write_image
from pictures import encode, picture
from whiten.embedding.encoder import Encoder
from whiten.index import Index
from whiten.media import reading


def busy(path: str, flags: int) -> int:
    if os.path.basename(path) == "1.png":
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE), path)
    return os.open(path, flags)


def test_an_index_tries_again(encoder: Encoder, images: Path, place: str) -> None:
    (images / "a" / "0.png").write_bytes(b"no image")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reading, "_open_at_once", busy)
        index = Index.build(encoder, images, place)
    assert {skip.id: skip.reason for skip in index.skipped} == {
        "a/0.png": "not an image, or of an unknown format",
        "a/1.png": "too many open files",
        "b/1.png": "too many open files",
    }
    index = Index.build(encoder, images, place)
    assert (index.changes.added, len(index)) == (2, 5)
    assert [skip.id for skip in index.skipped] == ["a/0.png"]
    assert Index.build(encoder, images, place).changes.embedded == 0


def test_an_index_that_ignored_profiles_is_mended(
    encoder: Encoder, tmp_path: Path, place: str, caplog: pytest.LogCaptureFixture
) -> None:
    photos = tmp_path / "photos"
    for number in range(3):
        write_image(photos / f"{number}.png", number)
    (photos / "wide.png").write_bytes(encode(picture(1), "PNG", icc_profile=PROPHOTO))
    with pytest.MonkeyPatch.context() as patch:  # an earlier version
        patch.setattr("whiten.media.decoding.to_srgb", lambda image: image)
        patch.setattr("whiten.index.collections.converted", lambda *_: [])
        index = Index.build(encoder, photos, place)
    [wrong] = index.search(photos / "wide.png", 1)
    assert wrong[0].score < 0.999
    del index
    index = Index.build(encoder, photos, place)
    assert (index.changes.embedded, index.changes.unchanged) == (1, 3)
    assert "1 image" in caplog.text
    [right] = index.search(photos / "wide.png", 1)
    assert right[0].id == "wide.png" and right[0].score == pytest.approx(1, abs=1e-5)
    index = Index.build(encoder, photos, place)
    assert index.changes.unchanged == 4
    assert json.dumps(index.facts.converted) == json.dumps([str(photos)])
    assert np.isfinite(index.vectors(["wide.png"])).all()
