"""`python:` a user's function that makes a teacher."""

from __future__ import annotations

import importlib
import sys
from contextlib import suppress
from importlib.machinery import PathFinder
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from whiten.errors import ConfigError, TeacherError, WhitenError, nearest
from whiten.models.readout import CLASS_COUNTS
from whiten.models.sources.python_source import find_sources, hash_sources
from whiten.models.teacher import Teacher, first_line, probe_dim
from whiten.models.uri import TeacherURI
from whiten.models.weights import hash_state
from whiten.utils.hashing import fingerprint
from whiten.views.rendering import Preprocess


def open_uri(uri: TeacherURI) -> Teacher:
    """Call `factory(**options)` of `python:pkg.module:factory?option=text`.

    The module is searched in the current folder first. Every option is passed to the factory as
    text. The factory returns a Teacher; or a torch module that maps (n, 3, 224, 224)
    ImageNet-normalised images to (n, d) embeddings; or a tuple of such a module and the Preprocess
    of its input.

    Raises:
        ConfigError: the URI names no module and function.
        TeacherError: the module cannot be imported, or the factory fails or returns anything else.
    """
    module_name, _, name = uri.target.partition(":")
    if not module_name or not name.isidentifier():
        raise ConfigError(f"{uri} names no function: write python:pkg.module:factory")
    factory, source = _find(module_name, name)
    made = _call(uri, factory, dict(uri.options))
    details = (f"source={source}", f"options={sorted(uri.options)}", f"factory={name}")
    if isinstance(made, Teacher):
        mine = object.__new__(type(made))  # the factory may keep its own and return it again
        mine.__dict__.update(vars(made), uri=str(uri), details=(*made.details, *details))
        return mine
    match made:
        case nn.Module() as module:
            preprocess = Preprocess()
        case (nn.Module() as module, Preprocess() as preprocess):
            pass
        case _:
            raise TeacherError(
                f"{uri} returned {_describe(made)}: return a Teacher, a torch module, or a tuple "
                "of a module and a Preprocess"
            )
    if any(tensor.is_meta for tensor in module.state_dict().values()):
        raise TeacherError(
            f"{uri} returned a module on the device meta, which has no weights: load them first"
        )
    module.eval().cpu()
    state = module.state_dict()
    dim = probe_dim(module, preprocess, str(uri))
    _refuse_scores(module, dim, uri)
    return Teacher(
        uri=str(uri),
        name=uri.target,
        dim=dim,
        preprocess=preprocess,
        # Without weights, only their origin tells modules apart.
        weights_hash=hash_state(state) if state else fingerprint(str(uri)),
        forward=module,
        module=module,
        details=(*details, *_hash_unsaved(module)),
    )


def _refuse_scores(module: nn.Module, dim: int, uri: TeacherURI) -> None:
    """Refuse a network whose last layer has an output for each class of a data set."""
    layers = [
        (name, layer)
        for name, layer in module.named_modules()
        if isinstance(layer, nn.Linear | nn.Conv2d)
    ]
    if not layers or len(layers[-1][1].weight) != dim:
        return
    name = layers[-1][0]
    if dim in CLASS_COUNTS:
        raise TeacherError(
            f"{uri} returned {dim} class scores (of its layer {name!r}), not an embedding: return "
            f"the features before, as with torch.nn.Identity() for {name!r}; or a Teacher, if "
            "they are embeddings"
        )


_opened: dict[str, str] = {}  # hash of the source of each module when it was imported


def _find(module_name: str, name: str) -> tuple[Any, str]:
    """Return the factory, and the hash of the source that it runs."""
    # Console scripts, unlike `python -m`, do not search the current folder.
    here = str(Path.cwd())
    if sys.path[:1] != [here]:  # another folder may have been the current one before
        sys.path[:] = [here, *(folder for folder in sys.path if folder != here)]
    importlib.invalidate_caches()
    try:
        _forget_elsewhere(module_name)
        module = importlib.import_module(module_name)
        files, root = find_sources(module)
        source = hash_sources(files, root)
        if _opened.setdefault(module_name, source) != source:  # edited since
            _forget(files)
            module = importlib.import_module(module_name)
            _opened[module_name] = source
    except (Exception, SystemExit) as error:  # importing runs the user's code, as a script may
        raise TeacherError(
            f"cannot import {module_name} ({type(error).__name__}: {first_line(error)}): run from "
            "the folder that holds it, or install it"
        ) from error
    factory = getattr(module, name, None)
    if not callable(factory):
        functions = [key for key, value in vars(module).items() if callable(value)]
        hint = nearest(name, functions) or f": define it in {module.__file__ or module_name}"
        raise TeacherError(f"{module_name} has no function {name!r}{hint}")
    return factory, source


def _forget_elsewhere(module_name: str) -> None:
    """Forget an imported module if its name is found in another place by now."""
    top = module_name.partition(".")[0]
    known, found = _file_of(sys.modules.get(top)), PathFinder.find_spec(top)
    if known is None or found is None or not found.has_location or top == "__main__":
        return
    if known != Path(str(found.origin)).resolve():
        files: list[Path] = []
        with suppress(OSError, KeyError):  # the file may be gone, and another module of it imported
            files, _ = find_sources(sys.modules[module_name])
        _forget(files, top)
        _opened.pop(module_name, None)


def _forget(files: list[Path], package: str = "") -> None:
    """Let modules be imported anew: those of files, and a whole package."""
    for name, module in list(sys.modules.items()):
        if _file_of(module) in files or name.partition(".")[0] == package:
            del sys.modules[name]


def _file_of(module: ModuleType | None) -> Path | None:
    file = getattr(module, "__file__", None)
    return Path(file).resolve() if file else None


def _hash_unsaved(module: nn.Module) -> list[str]:
    """Hash tensors and arrays that a module holds but does not save."""
    saved = module.state_dict(keep_vars=True).values()
    kept = {id(tensor) for tensor in saved}
    found: dict[str, Tensor] = {}
    for path, part in module.named_modules():
        for name, value in (*part._buffers.items(), *vars(part).items()):
            if isinstance(value, np.ndarray) and value.dtype.kind in "biuf" and value.itemsize < 9:
                value = torch.from_numpy(np.ascontiguousarray(value))
            if isinstance(value, Tensor) and id(value) not in kept:
                found[f"{path}.{name}"] = value
    return [f"unsaved={hash_state(found)}"] if found else []


def _call(uri: TeacherURI, factory: Any, options: dict[str, str]) -> Any:
    try:
        return factory(**options)
    except WhitenError:
        raise
    except (Exception, SystemExit) as error:
        raise TeacherError(
            f"the factory of {uri} failed ({type(error).__name__}: {first_line(error)}): mend it, "
            "or give it other options"
        ) from error


def _describe(made: Any) -> str:
    if isinstance(made, tuple):
        return f"({', '.join(type(part).__name__ for part in made)})"
    return type(made).__name__
