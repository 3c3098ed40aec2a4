"""A granted time chooses size, views and epochs, and is kept."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image

from command_line import Captured, fails
from small_runs import OPTIONS, TEACHERS, interrupted_at, losses
from whiten.datasets.finding import find_items
from whiten.distillation import deadline, prepare, timing, training
from whiten.distillation.cache import Cache
from whiten.distillation.deadline import RESERVE, Deadline
from whiten.distillation.distill import DistillResult, distill
from whiten.distillation.planning import Speeds, Work, describe, plan
from whiten.distillation.resolution import candidate_sizes, own_side
from whiten.distillation.worth import why_untrained
from whiten.errors import ConfigError
from whiten.models.registry import open_teacher
from whiten.models.student import build_student
from whiten.runs.budget import format_time, parse_time
from whiten.runs.folder import RunFolder
from whiten.runs.recipes import complete
from whiten.runs.spec import DistillSpec

GENEROUS = Speeds([0.0, 0.0], {32: 0.0}, {32: 2.5})  # 3 epochs of 64 views in 10 minutes


@pytest.fixture(scope="module")
def groups() -> dict[str, int]:
    return dict.fromkeys("abcdefgh", 4)


@pytest.mark.parametrize(
    ("text", "seconds"), [("90s", 90), ("10m", 600), ("1h", 3600), ("1h30m", 5400), ("1.5m", 90)]
)
def test_a_time_is_read(text: str, seconds: float) -> None:
    assert parse_time(text) == seconds
    assert parse_time(format_time(seconds)) == seconds


@pytest.mark.parametrize(
    "text", ["", "10", "m", "0s", "-5m", "10 m", "30m1h", "10min", "1d", "nan"]
)
def test_another_time_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="budget is a time such as 90s, 10m, 1h or 1h30m, not "):
        DistillSpec(teachers=TEACHERS, budget=text)


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.2, "1s"), (59.1, "1m"), (61, "1m1s"), (601, "11m"), (3601, "1h1m")]
)
def test_a_time_is_rounded_up(seconds: float, text: str) -> None:
    assert format_time(seconds) == text


def test_a_wrong_budget_is_one_line_of_the_command_line(capsys: Captured) -> None:
    error = fails(capsys, "distill", "x", "--out", "r", "--teachers", *TEACHERS, "--budget", "soon")
    assert "budget is a time such as 90s, 10m, 1h or 1h30m, not 'soon'" in error


# --- the plan -------------------------------------------------------------------------------


SPEEDS = Speeds(
    teachers=[0.1, 0.05],
    features={64: 0.01, 128: 0.04, 224: 0.12},
    step={64: 0.03, 128: 0.12, 224: 0.36},
    start_once=5.0,
)


def work(images: int = 600, *, cached: bool = False, by_groups: bool = False) -> Work:
    return Work(
        images=images,
        sides=images if by_groups else 2 * images,
        checked=64,
        crops=0,
        missing={v: [0, 0] if cached else [images * v] * 2 for v in (1, 2, 4, 6, 8)},
        pair_views=1 if by_groups else 2,
        shows_rounds=not by_groups,
    )


def planned(budget: str, to_do: Work | None = None, **options: Any) -> DistillSpec:
    spec = DistillSpec(teachers=TEACHERS, budget=budget, **options)
    return plan(spec, 0.0, to_do or work(), SPEEDS)


def seconds(spec: DistillSpec, to_do: Work) -> float:
    """What a plan takes by these speeds."""
    size, views, epochs = spec.size or 0, spec.views or 0, spec.epochs or 0
    teachers = sum(s * n for s, n in zip(SPEEDS.teachers, to_do.missing[views], strict=True))
    per_epoch = (spec.rounds or 1) * SPEEDS.step[size] * to_do.sides
    per_epoch += SPEEDS.features[size] * to_do.checked
    features = SPEEDS.features[size] * to_do.images * views
    return teachers + features + SPEEDS.start_once + epochs * per_epoch


@pytest.mark.parametrize("by_groups", [False, True])
@pytest.mark.parametrize("cached", [False, True])
@pytest.mark.parametrize("minutes", [3, 5, 10, 20, 40, 90, 300])
def test_a_plan_fits_into_its_time(minutes: int, cached: bool, by_groups: bool) -> None:
    to_do = work(cached=cached, by_groups=by_groups)
    spec = planned(f"{minutes}m", to_do)
    assert seconds(spec, to_do) <= (1 - RESERVE) * 60 * minutes
    assert None not in (spec.size, spec.views, spec.rounds, spec.epochs)
    assert str(spec.size) in describe(spec)


def test_more_time_gives_a_larger_size_first() -> None:
    specs = [planned(f"{minutes}m") for minutes in (3, 10, 20, 40, 90, 300)]
    sizes = [spec.size or 0 for spec in specs]
    assert sizes == sorted(sizes)
    assert sizes[-1] == 224
    # A much larger size is taken rather than training at the smaller one.
    assert planned("9m").epochs == 0
    assert planned("9m").size == 224
    assert (specs[-1].views, specs[-1].rounds, specs[-1].epochs) == (8, 4, 9)


def test_what_is_cached_costs_nothing() -> None:
    assert planned("3m", work(cached=True)).views == 2
    assert planned("28m").epochs == 0
    assert planned("28m", work(cached=True)).epochs == 3


def test_given_options_win() -> None:
    assert planned("300m", size=64, epochs=2).epochs == 2
    spec = planned("300m", dataclasses.replace(work(), missing={2: [1200, 1200]}), views=2)
    assert (spec.views, spec.rounds) == (2, 1)
    assert planned("3m", epochs=0).epochs == 0
    # The clock ends what does not fit.
    assert planned("5m", epochs=400).epochs == 400
    assert planned("5m", epochs=400).size == 64


def test_too_little_time_says_how_much_it_takes() -> None:
    with pytest.raises(ConfigError, match=r"--budget 30s is too short.* at least 1m47s: use"):
        planned("30s")
    assert planned("1m47s").epochs == 0


# --- what is measured -----------------------------------------------------------------------


def test_sizes_go_up_to_the_networks_and_the_images_own() -> None:
    def sizes(student: str, own: int, **options: Any) -> list[int]:
        spec = DistillSpec(teachers=TEACHERS, student=student, dim=8, **options)
        net, config = build_student(spec.student, dim=8, size=spec.size)
        return candidate_sizes(spec, net, config, own)

    resnet = "timm:test_resnet?pretrained=0"
    assert sizes(resnet, 500) == [64, 96, 128, 160]  # its native size is 160
    assert sizes(resnet, 130) == [64, 96, 128]
    assert sizes(resnet, 40) == [32]
    assert sizes(resnet, 500, size=48) == [48]
    assert sizes(f"{resnet}&size=48", 500) == [48]
    assert sizes("timm:test_vit?pretrained=0", 500)[-2:] == [144, 160]  # patches of 16


def test_work_counts_what_is_not_cached(shared_images: Path, tmp_path: Path) -> None:
    spec = DistillSpec(teachers=TEACHERS, augment="light", held_out=0.1, **OPTIONS)
    items, cache = find_items(shared_images), Cache(tmp_path, spec, show_progress=False)
    teachers = [open_teacher(uri) for uri in TEACHERS]
    before = timing.work_of(spec, items, "views", teachers, cache)
    assert (before.images, before.pair_views, before.sides) == (32, 2, 64)
    assert before.missing[1] == [32, 32]
    assert before.missing[8] == [256, 256]
    cache.embed(teachers[0], items, range(2), "teacher")
    after = timing.work_of(spec, items, "views", teachers, cache)
    assert after.missing[1] == [0, 32]
    assert after.missing[8] == [192, 256]
    assert timing.work_of(spec, items, "groups", teachers, cache).pair_views == 1


def test_speeds_are_measured_with_the_clock(
    shared_images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ticks = iter(range(100_000))
    monkeypatch.setattr(deadline, "clock", lambda: float(next(ticks)))
    spec = DistillSpec(teachers=TEACHERS, augment="light", **OPTIONS)
    items, cache = find_items(shared_images), Cache(tmp_path, spec, show_progress=False)
    teachers = [open_teacher(uri) for uri in TEACHERS]
    cache.embed(teachers[0], items, range(8), "teacher")
    work = timing.work_of(spec, items, "views", teachers, cache)
    speeds = timing.speeds_of(spec, items, teachers, cache, work)
    assert speeds.teachers == [0.0, pytest.approx(1 / 16)]  # a tick for 16 images
    assert speeds.features == {32: pytest.approx(1 / 16)}
    assert speeds.step == {32: pytest.approx(1 / 16 + 1 / 16)}
    assert sorted(path.name for path in tmp_path.iterdir())[1:] == []  # nothing else is kept


# --- the run --------------------------------------------------------------------------------


@pytest.fixture
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine for which everything takes no time."""
    monkeypatch.setattr(timing, "speeds_of", lambda *_: GENEROUS)


def run(images: Path, out: Path, cache: Path, **options: Any) -> DistillResult:
    # Nothing is held out: else so few images would not be trained on.
    chosen = {**OPTIONS, "epochs": None, "pairs": "views", "start": "ridge", "held_out": 0.0}
    chosen |= options
    return distill(images, TEACHERS, out=out, cache=cache, show_progress=False, **chosen)


def config_of(out: Path) -> dict[str, Any]:
    config: dict[str, Any] = yaml.safe_load((out / "config.yaml").read_text())
    return config


@pytest.mark.slow
def test_the_plan_is_recorded_resumed_and_repeated(
    shared_images: Path, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, fast: None
) -> None:
    options = {"budget": "10m", "views": 2}
    run(shared_images, tmp_path / "whole", cache, **options)
    config = config_of(tmp_path / "whole")
    steps = len(losses(tmp_path / "whole"))
    assert (config["budget"], config["views"], config["size"]) == ("10m", 2, 32)
    assert (config["rounds"], config["epochs"], config["stop_step"]) == (1, 3, steps)
    assert steps > 0

    with interrupted_at(5):
        run(shared_images, tmp_path / "parts", cache, **options)

    def refuse(*_: Any) -> Speeds:
        raise AssertionError("planned again")

    monkeypatch.setattr(timing, "speeds_of", refuse)
    run(shared_images, tmp_path / "parts", cache, **options, resume=True)
    assert losses(tmp_path / "parts") == losses(tmp_path / "whole")
    # The same command on the finished run, and its configuration in another place.
    run(shared_images, tmp_path / "parts", cache, **options, resume=True)
    images, spec = RunFolder(tmp_path / "whole").read_config()
    distill(images, spec, tmp_path / "again", cache=cache, show_progress=False)
    assert losses(tmp_path / "again") == losses(tmp_path / "whole")


@pytest.mark.slow
def test_what_cannot_be_measured_is_not_trained(
    shared_images: Path, tmp_path: Path, cache: Path, fast: None
) -> None:
    for name, budget in (("open", None), ("planned", "10m")):
        found = run(shared_images, tmp_path / name, cache, budget=budget, held_out=None)
        assert found.steps == 0
        assert found.recipe.startswith("closed form: too few images to hold some out: ")
    assert config_of(tmp_path / "planned")["epochs"] == 0
    assert run(shared_images, tmp_path / "asked", cache, held_out=None, epochs=1).steps > 0


def test_a_plan_outlives_a_kill_before_the_first_checkpoint(
    shared_images: Path, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, fast: None
) -> None:
    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(prepare, "write_start", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run(shared_images, tmp_path / "run", cache, budget="10m")
    before = config_of(tmp_path / "run")
    assert (before["rounds"], before["epochs"], before["stop_step"]) == (1, 3, None)
    monkeypatch.setattr(timing, "speeds_of", interrupted)
    run(shared_images, tmp_path / "run", cache, budget="10m", resume=True)
    assert {**config_of(tmp_path / "run"), "stop_step": None} == before


@pytest.mark.slow
def test_training_stops_in_time(
    shared_images: Path, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, fast: None
) -> None:
    monkeypatch.setattr(timing, "speeds_of", lambda *_: Speeds([0.0, 0.0], {32: 0}, {32: 0.5}))
    now = 0.0
    monkeypatch.setattr(deadline, "clock", lambda: now)
    original = training._loss

    def slow(*args: Any) -> Any:
        nonlocal now
        now += 10.0
        return original(*args)

    monkeypatch.setattr(training, "_loss", slow)
    run(shared_images, tmp_path / "slow", cache, budget="2m", views=2)
    assert len(losses(tmp_path / "slow")) == 12  # after 114 s of 120
    assert config_of(tmp_path / "slow")["stop_step"] == 12
    # Its configuration repeats it on a machine of any speed.
    monkeypatch.setattr(training, "_loss", original)
    images, spec = RunFolder(tmp_path / "slow").read_config()
    distill(images, spec, tmp_path / "fast", cache=cache, show_progress=False)
    assert losses(tmp_path / "fast") == losses(tmp_path / "slow")
    weights = [tmp_path / name / "student" / "model.safetensors" for name in ("slow", "fast")]
    assert weights[0].read_bytes() == weights[1].read_bytes()


def test_the_clock_of_an_interrupted_run_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deadline, "clock", lambda: 100.0)
    spec = DistillSpec(teachers=TEACHERS, budget="100s")
    until = Deadline.of(spec, began=90.0 - 50.0)  # 50 s before, 10 s since
    assert until.spent == 60
    assert until.leaves(35)
    assert not until.leaves(36)
    assert Deadline.of(dataclasses.replace(spec, stop_step=3), 0.0).leaves(1e9)


def test_a_tiny_budget_gives_the_start_in_closed_form(
    shared_images: Path, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    speeds = Speeds([0.0, 0.0], {32: 0.1}, {32: 100.0})  # 3.2 s for whole images
    monkeypatch.setattr(timing, "speeds_of", lambda *_: speeds)
    monkeypatch.setattr(deadline, "clock", lambda: 0.0)
    result = run(shared_images, tmp_path / "run", cache, budget="5s")
    assert result.steps == 0
    config = config_of(tmp_path / "run")
    assert (config["views"], config["epochs"]) == (1, 0)
    facts = json.loads((result.student / "config.json").read_text())["training"]
    assert facts["steps"] == 0
    with pytest.raises(ConfigError, match=r"too short.* at least"):
        run(shared_images, tmp_path / "tiny", cache, budget="1s")
    assert not (tmp_path / "tiny" / "checkpoints").exists()


def test_the_images_own_size_is_the_median_of_their_shorter_sides(tmp_path: Path) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    Image.new("RGB", (80, 40)).save(folder / "a.png")
    Image.new("RGB", (90, 300)).save(folder / "b.png")
    Image.new("RGB", (70, 60)).save(folder / "c.png")
    assert own_side(find_items(folder)) == 60


@pytest.mark.parametrize(
    ("source", "images", "held", "told"),
    [
        ("views", 90, 0, "too few images to hold some out"),
        ("groups", 90, 0, "too few images to hold some out"),
        ("views", 600, 64, "600 images of your own without groups are too few to train on"),
        ("groups", 600, 64, ""),
        ("mixed", 600, 64, ""),
        ("views", 2000, 200, ""),
    ],
)
def test_few_images_keep_the_start_in_closed_form(
    source: str, images: int, held: int, told: str
) -> None:
    spec, _ = complete(DistillSpec(teachers=TEACHERS, student="demo:efficientnet-lite0"), source)
    assert why_untrained(spec, source, images, held).startswith(told)
    assert bool(why_untrained(spec, source, images, held)) == bool(told)
    for other in ({"held_out": 0.0}, {"start": "principal"}):
        assert not why_untrained(dataclasses.replace(spec, **other), source, images, held)
