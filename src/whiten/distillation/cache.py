"""A run's cached embeddings: only what is missing is embedded."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from whiten.datasets.collection import Items
from whiten.distillation.held_out import CROP_VIEWS, CROPS
from whiten.embedding.embed import embed, store_folder
from whiten.models.choice import chosen_device
from whiten.models.opening import takes_bf16
from whiten.models.stored_model import Model
from whiten.models.teacher import Teacher
from whiten.runs.spec import DistillSpec
from whiten.store.store import Store, stored_origin
from whiten.utils.devices import computes_faster_in_bf16, resolve_precision
from whiten.utils.progress import progress
from whiten.views.plan import ViewPlan

if TYPE_CHECKING:
    from whiten.embedding.cluster import Cluster


class Cache:
    """Embeds images, in the views of a run and in crops, and keeps the stores in a folder."""

    def __init__(
        self,
        folder: Path,
        spec: DistillSpec,
        *,
        show_progress: bool,
        cluster: Cluster | None = None,
    ) -> None:
        self._folder = folder
        self._spec = spec
        self._show_progress = show_progress
        self._cluster = cluster
        self._device = chosen_device()
        wanted = "32" if spec.precision == "16" else spec.precision
        self._precision = resolve_precision(wanted, self._device.type)

    def embed(self, model: Model, items: Items, views: Sequence[int], label: str) -> Store:
        """Return the store of a model, with these views of the items."""
        spec = self._spec
        return self._embed(
            model, items, views, label, spec.view_plan, seed=spec.view_seed, augment=spec.augment
        )

    def missing(self, model: Model, items: Items, views: Sequence[int]) -> int:
        """Return the number of views of the items that are not stored yet."""
        spec = self._spec
        folder, _ = self._place_of(model, seed=spec.view_seed, augment=spec.augment)
        if stored_origin(folder) is None:
            return len(items) * len(views)
        store = Store.open(folder)
        missing = ~store.has(items.by_id, views)
        missing[items.by_id.rows([skip.id for skip in store.skipped_of(items.by_id)])] = False
        return int(missing.sum())

    def try_out(self, model: Model, items: Items, folder: Path) -> None:
        """Embed a random view of each item as a run does, into a folder of no further use."""
        spec = self._spec
        _, precision = self._place_of(model, seed=spec.view_seed, augment=spec.augment)
        embed(
            items,
            model.to(self._device),
            folder,
            views=(1,),
            plan=spec.view_plan,
            precision=precision,
            workers=spec.workers,
        )
        model.to("cpu")

    def crops(self, backbone: Model, items: Items) -> Store:
        """Return the store of the crops, `CROP_VIEWS`, that students are measured by."""
        label = "crops of the images that measure the student"
        return self._embed(backbone, items, CROP_VIEWS, label, CROPS, seed=0, augment="crops")

    def _embed(
        self,
        model: Model,
        items: Items,
        views: Sequence[int],
        label: str,
        plan: ViewPlan,
        *,
        seed: int,
        augment: str | None,
    ) -> Store:
        folder, precision = self._place_of(model, seed=seed, augment=augment)
        with progress(f"embed {label}", enabled=self._show_progress, unit="images") as update:
            store = embed(
                items,
                model.to(self._device),
                folder,
                views=views,
                plan=plan,
                precision=precision,
                workers=self._spec.workers,
                progress=update,
                cluster=self._cluster,
            )
        model.to("cpu")  # frees device memory for the next one
        return store

    def _place_of(self, model: Model, *, seed: int, augment: str | None) -> tuple[Path, str]:
        """Return the folder of a model's store, and the precision to embed in."""
        folders = {
            precision: store_folder(
                self._folder, model, precision=precision, seed=seed, augment=augment
            )
            for precision in dict.fromkeys(("32", self._precision))
        }
        precision = self._precision
        if self._stays_in_32(model) and not folders[precision].exists():
            precision = "32"
        return folders[precision], precision

    def _stays_in_32(self, model: Model) -> bool:
        """Return whether bf16 does nothing for the model.

        A graph or a store has its own precision. Others compute in float32 if the user leaves the
        precision open and they gain nothing: the graph that embeds on a CPU computes in float32.
        """
        return not takes_bf16(model) or (
            self._spec.precision == "auto"
            and isinstance(model, Teacher)
            and model.module is not None
            and not computes_faster_in_bf16(model.module, self._device.type)
        )
