"""Measure teachers on a sample of a collection: embed it, whiten it, compare fusions."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from whiten.datasets.collection import Items
from whiten.datasets.finding import find_items
from whiten.datasets.patterns import Patterns
from whiten.diagnosis.copies import exact_copies, near_copies
from whiten.diagnosis.result import Diagnosis, Difference, StudentFacts, TeacherFacts
from whiten.diagnosis.verdict import verdict
from whiten.distillation.cache import Cache
from whiten.distillation.discriminants import choose_discriminants
from whiten.distillation.held_out import CROP_VIEWS
from whiten.distillation.mix import choose_mix, criterion_of
from whiten.distillation.mix import sample as mix_sample
from whiten.embedding.encoder import Encoder, Part
from whiten.embedding.fitting import require_varied
from whiten.errors import ConfigError, NoImagesError
from whiten.evaluation.cost import measure_cost
from whiten.media.reading import Skipped
from whiten.models.registry import open_teacher
from whiten.models.stored_model import Model, StoredModel
from whiten.models.student import backbone_as_teacher, build_student
from whiten.runs.spec import DistillSpec
from whiten.store.store import embedded_by_all
from whiten.utils.arrays import Array, Indices, Vectors, normalize_rows
from whiten.utils.devices import random_state_kept
from whiten.utils.files import temporary_folder
from whiten.utils.names import distinct, name_codes
from whiten.utils.progress import announce
from whiten.utils.validation import as_whole
from whiten.whitening.choosing import Choice, choose, sample_rows
from whiten.whitening.profile import CHOICE, agreement, effective_rank, spectrum
from whiten.whitening.weighting import Judge, fit_within, fused, has_groups, judge_of

SAMPLE = 2048


@random_state_kept()
def diagnose(
    images: str | os.PathLike[str],
    teachers: Sequence[str],
    student: str | None = None,
    *,
    size: int | None = None,
    sample: int = SAMPLE,
    cache: str | os.PathLike[str] | None = None,
    exclude: Patterns = (),
    include: Patterns = (),
    seed: int = 0,
    show_progress: bool = False,
) -> Diagnosis:
    """Tell what teachers are worth on a collection of images, in minutes and without training.

    Whitenings are fitted on three quarters of the sample and scored on the fourth, in turn. Images
    of a group should find each other. Without groups, a random crop of an image should find the
    image among all others: easy, so that small differences stay within the error.

    Args:
        images: a folder, or a CSV or Parquet with columns `path,group`.
        teachers: URIs, see `whiten teachers`.
        student: URI of a student's backbone, to predict its start in closed form.
        size: with `student`, its input side in pixels; by default the backbone's own.
        sample: most images that are embedded, drawn at random in whole groups; 0 is all.
        cache: folder for the embeddings, which `distill` with the same cache uses again; none by
            default.
        exclude, include: patterns that choose among the images, see `whiten.datasets.patterns`.
        seed: seed of the sample and the folds.
        show_progress: show progress on stderr.

    Raises:
        ConfigError, TeacherError: a teacher or an option is unknown.
        NoImagesError: fewer than two images could be embedded by all teachers.
    """
    if isinstance(teachers, str):
        raise ConfigError(f"teachers is a list of URIs: write [{teachers!r}]")
    if size is not None and student is None:
        raise ConfigError("size is the input side of a student: name the student, or no size")
    spec = DistillSpec.from_mapping(
        {"teachers": list(teachers), "seed": seed, "size": size}
        | ({} if student is None else {"student": student})
    )
    if as_whole("sample", sample) < 0 or sample == 1:
        raise ConfigError(f"sample must be 0, for all images, or at least 2, not {sample}")
    found = find_items(images, announce if show_progress else None, exclude, include)
    items = found.take(sample_rows(len(found), found.groups, seed, sample or len(found)))
    by_groups = has_groups(items.groups)
    opened: list[Model] = [open_teacher(uri) for uri in spec.teachers]
    has_views = not by_groups and not any(isinstance(model, StoredModel) for model in opened)
    views = range(2 if has_views else 1)
    backbone = None
    if student is not None:
        torch.manual_seed(seed)
        net, config = build_student(spec.student, dim=spec.dim, pool=spec.pooling, size=spec.size)
        backbone = backbone_as_teacher(net, config)
    with temporary_folder() as temporary:
        embedding = Cache(Path(cache or temporary), spec, show_progress=show_progress)
        models = [*opened, *([] if backbone is None else [backbone])]
        embedded = _embed(embedding, models, items, views)
        items, vectors = embedded.items, embedded.vectors
        crops = None
        if backbone is not None and not by_groups:
            judged = items.take(mix_sample(len(items), seed))
            cut = embedding.crops(backbone, judged)
            crops = np.stack([cut.gather(judged.ids.to_pylist(), k) for k in CROP_VIEWS], axis=1)
    features = None if backbone is None else np.stack(vectors.pop(), axis=1)
    raw = [normalize_rows(per_view[0]) for per_view in vectors]
    second = [normalize_rows(per_view[1]) for per_view in vectors] if has_views else None
    groups = items.groups.to_pylist() if by_groups else None
    if show_progress:
        announce(f"choose the whitenings on {len(items):,} images")
    require_varied(spec.teachers, raw)
    choices = _choices(raw, groups, second, seed)
    judge = judge_of(raw, choices, groups=groups, second_views=second, seed=seed)
    facts = _teachers(opened, raw, choices, judge, len(found))
    fusion = [1.0] * len(raw)
    before = None if judge is None else judge.scores(fusion, is_raw=True)
    after = None if judge is None else judge.scores(fusion)
    adds = None if before is None or after is None else _difference(after, before)
    told = None
    if features is not None:
        whitened = [
            np.stack([_whitened(choice, own[0], each) for each in own], axis=1)
            for choice, own in zip(choices, vectors, strict=True)
        ]
        told = _student(spec, features, whitened, groups, crops)
    first = np.unique(embedded.contents, return_index=True)[1]  # of each content
    near = near_copies(items.take(first), fused([each[first] for each in raw], fusion))
    exact = exact_copies(found)
    return Diagnosis(
        images=len(found),
        sampled=len(items),
        exact_copies=exact,
        near_copies=near,
        criterion=None if judge is None else judge.criterion,
        teachers=facts,
        raw=None if before is None else float(before.mean()),
        whitened=None if after is None else float(after.mean()),
        whitening_adds=adds,
        student=told,
        verdict=verdict(
            copied=exact / len(found) + near / len(items),
            teachers=facts,
            whitening_adds=adds,
            student=told,
        ),
        skipped=embedded.skipped,
    )


@dataclass(frozen=True)
class _Embedded:
    """The sampled images that all models could embed.

    Attributes:
        vectors: per model and view, (n, dim) embeddings.
        contents: (n,) number of each image's content.
    """

    items: Items
    vectors: list[list[Vectors]]
    contents: Indices
    skipped: list[Skipped]


def _embed(cache: Cache, models: Sequence[Model], items: Items, views: range) -> _Embedded:
    stores = [cache.embed(model, items, views, model.name) for model in models]
    items, skipped = embedded_by_all(items, stores, views)
    if len(items) < 2:
        raise NoImagesError(
            f"{len(items)} of the images could be embedded by all teachers: name at least two"
        )
    names = items.ids.to_pylist()
    vectors = [[store.gather(names, view) for view in views] for store in stores]
    contents = name_codes(stores[0].content_hashes(items.by_id))
    return _Embedded(items, vectors, contents, skipped)


def _choices(
    raw: Sequence[Vectors],
    groups: Sequence[str | None] | None,
    second: Sequence[Vectors] | None,
    seed: int,
) -> list[Choice]:
    return [
        choose(
            own,
            groups=groups,
            others=[other for k, other in enumerate(raw) if k != number],
            second_views=None if second is None else second[number],
            seed=seed,
        )
        for number, own in enumerate(raw)
    ]


def _teachers(
    models: Sequence[Model],
    raw: Sequence[Vectors],
    choices: Sequence[Choice],
    judge: Judge | None,
    images: int,
) -> list[TeacherFacts]:
    whole = [_whitened(choice, own, own) for choice, own in zip(choices, raw, strict=True)]
    shared = agreement(whole)
    count = len(models)
    together = None if judge is None else judge.scores([1.0] * count)
    names = distinct([model.name for model in models])
    others = range(count) if len(whole[0]) > CHOICE else range(0)
    facts = []
    for k, model in enumerate(models):
        alone, adds = None, None
        if judge is not None and together is not None:
            only = [float(j == k) for j in range(count)]
            alone = float(judge.scores(only).mean())
            if count > 1:
                adds = _difference(together, judge.scores([1.0 - share for share in only]))
        cost = measure_cost(Encoder(model.name, [Part(model)]))
        values = spectrum(raw[k])
        facts.append(
            TeacherFacts(
                name=names[k],
                uri=model.uri,
                dim=model.dim,
                spectrum=values.tolist(),
                effective_rank=effective_rank(values),
                samples_per_dim=images / model.dim,
                agreement={names[j]: float(shared[k, j]) for j in others if j != k},
                whitening=f"shrinkage {choices[k].shrinkage:g}, {choices[k].dim} axes",
                score=alone,
                adds=adds,
                params=cost.params,
                macs=cost.macs,
                ms_per_image=cost.ms_per_image,
            )
        )
    return facts


def _whitened(choice: Choice, fitted_on: Vectors, vectors: Vectors) -> Vectors:
    whitened = fit_within(choice, fitted_on).transform(vectors)
    unit: Vectors = normalize_rows(whitened).astype(np.float32)
    return unit


def _difference(one: Array, other: Array) -> Difference:
    each = one - other
    return Difference(float(each.mean()), float(each.std() / np.sqrt(len(each))))


def _student(
    spec: DistillSpec,
    features: Vectors,
    targets: list[Vectors],
    groups: Sequence[str | None] | None,
    crops: Vectors | None,
) -> StudentFacts | None:
    mix, scores = choose_mix(features, targets, groups, spec, crops)
    if not scores:
        return None
    closed, name = scores[mix.name], mix.name
    if better := choose_discriminants(features, groups, spec, scores):
        closed, name = better.score, better.name
    of_features = {name: score for name, score in scores.items() if name.startswith("1 features")}
    return StudentFacts(
        uri=spec.student,
        criterion=criterion_of(len(features), groups, spec.seed),
        start=of_features["1 features"],
        whitened=max(score for name, score in of_features.items() if name != "1 features"),
        closed=closed,
        mix=name,
    )
