"""The figure of two videos, looked at through what it is drawn from."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from matplotlib.axes import Axes
from PIL import Image

from helpers import write_image
from whiten.report import alignment as video_plots


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[object]]:
    """What is drawn: the matrix, the rings, and the texts along the axes."""
    seen: dict[str, list[object]] = {"matrix": [], "rings": [], "labels": []}
    imshow, plot = Axes.imshow, Axes.plot

    def watch_image(axis: Axes, data: np.ndarray, **options: object) -> object:
        if options.get("cmap"):
            seen["matrix"].append(data)
        return imshow(axis, data, **options)

    def watch_plot(axis: Axes, x: object, y: object, *rest: object, **options: object) -> object:
        seen["rings"].append(list(zip(y, x, strict=True)))  # type: ignore[call-overload]
        made = plot(axis, x, y, *rest, **options)
        seen["labels"].append(axis)
        return made

    monkeypatch.setattr(Axes, "imshow", watch_image)
    monkeypatch.setattr(Axes, "plot", watch_plot)
    return seen


@pytest.mark.parametrize("shape", [(1, 1), (3, 5), (60, 2), (1, 60)])
def test_the_matrix_its_best_matches_and_the_times(
    tmp_path: Path, drawn: dict[str, list[object]], shape: tuple[int, int]
) -> None:
    cosines = np.random.default_rng(0).random(shape, np.float32)
    paths = [
        [str(write_image(tmp_path / f"{s}" / f"{i}.png", i)) for i in range(shape[s])]
        for s in (0, 1)
    ]
    paths[0][0] = str(tmp_path / "gone.jpg")
    times = [500 * i for i in range(shape[0])]
    png = video_plots.alignment(cosines, ("a" * 300, "ü\n"), (paths[0], paths[1]), (times, None))
    assert png is not None
    with Image.open(io.BytesIO(png)) as image:
        assert max(image.size) < 1200
    (matrix,) = drawn["matrix"]
    np.testing.assert_array_equal(np.asarray(matrix), cosines)
    assert drawn["rings"] == [[(i, int(cosines[i].argmax())) for i in range(shape[0])]]
    axis = drawn["labels"][0]
    assert isinstance(axis, Axes)
    assert (axis.get_ylabel(), axis.get_xlabel()) == ("seconds", "frame")
    along = [label.get_text() for label in axis.get_yticklabels()]
    places = [int(place) for place in axis.get_yticks()]
    assert along == [f"{place / 2:.3g}" for place in places]
    assert len(along) <= 20
