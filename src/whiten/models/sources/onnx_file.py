"""`onnx:` a graph on disk, run by ONNX Runtime."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from whiten.errors import ConfigError, TeacherError, WhitenError, one_line, refuse_later
from whiten.models.readout import describe, is_scores, pool_array, pools_of
from whiten.models.runtimes import (
    Arrays,
    fixed_batch,
    providers,
    run_session,
    session_options,
)
from whiten.models.sources.onnx_ends import (
    ImageInput,
    choose_output,
    other_outputs,
    read_input,
)
from whiten.models.sources.onnx_graph import (
    Graph,
    count_macs,
    count_params,
    cut,
    fold_subtractions,
    libraries,
    open_session,
    read_graph,
)
from whiten.models.teacher import (
    UNKNOWN_LICENCE,
    ArrayTeacher,
    Teacher,
    positive_int,
    positive_number,
)
from whiten.models.uri import TeacherURI
from whiten.utils.validation import check_types
from whiten.views.rendering import IMAGENET_MEAN, IMAGENET_STD, RESAMPLING, Preprocess

_AS_PIXELS = {"mean": (0.0,) * 3, "std": (1.0,) * 3, "white": 255.0}


def open_uri(uri: TeacherURI) -> Teacher:
    """Open a graph. Options: `output` (a tensor in it), `pool` (cls, mean, gem or max, of an output
    of tokens or feature maps), `size`, `channels`, `layout`, `fit`, `interpolation`, `crop`, `mean`
    and `std` (three numbers with commas), `white` (1 or 255).

    The input is cast to the type that the graph takes. Graphs of whole numbers get pixels of 0 to
    255 and normalise them, so that `mean`, `std` and `white` are refused.

    Raises:
        ConfigError: an option is unknown, or does not fit the graph.
        TeacherError: see `open_graph`.
    """
    options = uri.take(
        output=(str, ""),
        pool=(str, ""),
        size=(positive_int, 0),
        fit=(str, "crop"),
        crop=(_fraction, 1.0),
        interpolation=(str, "bicubic"),
        mean=(_triple, IMAGENET_MEAN),
        std=(_divisors, IMAGENET_STD),
        white=(positive_number, 1.0),
        channels=(str, "rgb"),
        layout=(str, ""),
        licence=(str, UNKNOWN_LICENCE),
    )
    for name, allowed in (
        ("fit", ("crop", "squash")),
        ("channels", ("rgb", "bgr")),
        ("layout", ("", "nchw", "nhwc")),
        ("interpolation", tuple(RESAMPLING)),
        ("pool", ("", "cls", "mean", "gem", "max")),
    ):
        if options[name] not in allowed:
            raise ConfigError(f"{name}={options[name]!r} must be one of {', '.join(allowed)}")
    path = Path(uri.target)
    graph = read_graph(path)
    if (recorded := _recorded(graph)) is not None:
        return _open_recorded(uri, graph, recorded)
    output = choose_output(graph.model.graph, options["output"], path)
    takes = read_input(graph.model.graph, output, path)
    if takes.is_pixels:
        if told := [name for name, _ in uri.options if name in _AS_PIXELS]:
            raise ConfigError(
                f"{path} takes {takes.dtype} pixels of 0 to 255 and normalises them itself: leave "
                f"out {', '.join(told)}"
            )
        options |= _AS_PIXELS
    layouts = takes.layouts(options["layout"], path)
    sizes = {layout: takes.size(layout, options["size"], path) for layout in layouts}
    names = ("fit", "interpolation", "mean", "std", "white", "channels")
    shown = {"crop_fraction": options["crop"], **{name: options[name] for name in names}}
    given = [Preprocess(size=sizes[layout], layout=layout, **shown) for layout in layouts]
    return _open(
        graph,
        uri=str(uri),
        name=path.stem,
        output=output,
        is_chosen=bool(options["output"]),
        pool=options["pool"],
        preprocess=given,
        licence=options["licence"],
    )


def _recorded(graph: Graph) -> dict[str, str] | None:
    """Return the metadata of a graph that `whiten export` wrote; None for others.

    Raises:
        TeacherError: the graph is of a later version.
    """
    facts = {entry.key: entry.value for entry in graph.model.metadata_props}
    if "whiten.preprocess" not in facts:
        return None
    stated = facts.get("whiten.format", "none")
    refuse_later(graph.path, "export", stated, 1, error=TeacherError)
    if stated != "1":
        raise TeacherError(
            f"{graph.path} has export format {stated}, this version reads 1: export it again"
        )
    return facts


def _open_recorded(uri: TeacherURI, graph: Graph, facts: dict[str, str]) -> Teacher:
    """Open an exported student that is separated from its folder."""
    path = graph.path
    told = [name for name, _ in uri.options if name not in ("output", "licence")]
    if told:
        raise ConfigError(
            f"{path} says itself how images are shown to it: leave out {', '.join(told)}"
        )
    if facts.get("whiten.input") != "normalised":
        raise TeacherError(
            f"{path} normalises pixels itself: name the folder that it was exported to"
        )
    try:
        preprocess = Preprocess.from_mapping(json.loads(facts["whiten.preprocess"]))
        check_types(preprocess)
    except (ValueError, TypeError, AttributeError, ConfigError) as error:
        raise TeacherError(
            f"{path} is damaged, what it says of its input cannot be read: export it again"
        ) from error
    options = dict(uri.options)
    return _open(
        graph,
        uri=str(uri),
        name=path.stem,
        output=choose_output(graph.model.graph, options.get("output", ""), path),
        is_chosen=True,  # whatever its dimension
        pool="",
        preprocess=[preprocess],
        licence=options.get("licence", facts.get("whiten.licence", UNKNOWN_LICENCE)),
    )


def _triple(text: str) -> tuple[float, float, float]:
    values = tuple(float(part) for part in text.split(","))
    if len(values) != 3 or not all(map(math.isfinite, values)):
        raise ValueError(text)
    return values


def _divisors(text: str) -> tuple[float, float, float]:
    if min(values := _triple(text)) <= 0:
        raise ValueError(text)
    return values


def _fraction(text: str) -> float:
    if (value := positive_number(text)) > 1:
        raise ValueError(text)
    return value


# Errors show these names.
_triple.__name__ = "three numbers with commas"
_divisors.__name__ = "three numbers above 0 with commas"
_fraction.__name__ = "number above 0 and up to 1"


# --- the network ------------------------------------------------------------------------


def open_graph(
    path: Path,
    *,
    uri: str,
    name: str,
    output: str,
    preprocess: Preprocess,
    licence: str,
) -> Teacher:
    """Run a graph up to a named tensor.

    Raises:
        TeacherError: the file is no ONNX graph, lacks the tensor, needs other inputs than images,
            or the tensor is not one embedding per image.
    """
    graph = read_graph(path)
    return _open(
        graph,
        uri=uri,
        name=name,
        output=choose_output(graph.model.graph, output, path),
        is_chosen=True,
        pool="",
        preprocess=[preprocess],
        licence=licence,
    )


def _open(
    graph: Graph,
    *,
    uri: str,
    name: str,
    output: str,
    is_chosen: bool,
    pool: str,
    preprocess: list[Preprocess],
    licence: str,
) -> Teacher:
    """Open a read graph; of several preprocessings, the first that it runs with.

    Args:
        is_chosen: whether the user named the output, which then is an embedding.
    """
    _, ort = libraries()
    path, network = graph.path, graph.model.graph
    takes = read_input(network, output, path)
    params = count_params(network)
    others = other_outputs(network, output)
    cut(network, output)
    fold_subtractions(network)
    try:
        session = open_session(graph, session_options(ort), providers(ort, uri))
    except Exception as error:  # its errors have no common base
        raise TeacherError(
            f"{path} cannot be opened ({one_line(error)}): upgrade onnxruntime, or export it again"
        ) from error
    seen, probe = _probe(session, output, takes, preprocess, uri)
    if not pool and (pools := pools_of(probe.shape)):
        raise TeacherError(
            f"{uri} returned {describe(probe.shape)}, not one embedding: add "
            f"?pool={'|'.join(pools)}{others}"
        )
    dim = pool_array(probe, pool, seen.layout, uri).shape[1]
    if not is_chosen and is_scores(output, dim):
        raise TeacherError(
            f"{path} ends in {dim} class scores ({output!r}), not an embedding: name the features "
            f"with ?output=TENSOR, or ?output={output} if it is one{others}"
        )
    cast = takes.feed(seen)

    def forward(images: Arrays) -> Arrays:
        return pool_array(run_session(session, output, cast(images)), pool, seen.layout, uri)

    count = fixed_batch(session) or 1
    return ArrayTeacher(
        uri=uri,
        name=name,
        dim=dim,
        preprocess=seen,
        weights_hash=graph.weights_hash,
        forward=forward,
        licence=licence,
        macs_counter=lambda: count_macs(graph, output, cast(takes.blank(seen, count))),
        params=params,
        readout=f"{output};pool={pool}" if pool else output,
        takes_pixels=takes.is_pixels,
        runtime="onnx",
    )


def _probe(
    session: Any, output: str, takes: ImageInput, given: list[Preprocess], uri: str
) -> tuple[Preprocess, Arrays]:
    """Run two blank images; return the first preprocessing that works, and its output."""
    problem: Exception | None = None
    for preprocess in given:
        try:
            images = takes.feed(preprocess)(takes.blank(preprocess, 2))
            out = run_session(session, output, images)
        except WhitenError:
            raise
        except Exception as error:  # the runtime raises almost anything
            problem = problem or error
            continue
        if out.shape[:1] != (2,):
            raise TeacherError(
                f"{uri} returned the shape {out.shape} for 2 images, not one embedding per image"
            )
        return preprocess, out
    assert problem is not None
    height, width = given[0].size
    way = ": try another ?size=" if 0 in takes.shape[1:] else ": export it again"
    raise TeacherError(
        f"{uri} cannot embed a {height}x{width} image ({one_line(problem)}){way}"
    ) from problem
