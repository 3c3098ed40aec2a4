"""Recipes fill what is left open, change nothing that is given, and say what they chose."""

from __future__ import annotations

import pytest

from small_runs import spec
from whiten.errors import ConfigError
from whiten.runs.recipes import DECIDED, KNOWN, RECIPES, complete
from whiten.runs.spec import TERMS
from whiten.views.plan import ViewPlan

TEACHERS = ["demo:mobilenetv2"]
UNTRAINED = "timm:resnet18?pretrained=0"


@pytest.mark.parametrize("source", ["groups", "views", "mixed"])
@pytest.mark.parametrize("recipe", ["auto", *RECIPES])
def test_nothing_is_left_open(recipe: str, source: str) -> None:
    full, why = complete(spec(recipe=recipe), source)
    assert all(getattr(full, name) is not None for name in DECIDED)
    assert recipe == "auto" or why.startswith(f"recipe {recipe} (")
    assert any(getattr(full, term) > 0 for term in TERMS)


@pytest.mark.parametrize(
    ("source", "options", "name"),
    [
        ("views", {}, "queue"),
        ("views", {"backbone_lr": 0.0}, "similarity"),
        ("groups", {"backbone_lr": 0.0}, "labels"),
        ("views", {"teachers_online": True}, "similarity-relational"),
        ("groups", {}, "labels-light-queue"),
        ("groups", {"teachers_online": True}, "labels-relational"),
        ("mixed", {}, "labels-light-queue"),
        ("mixed", {"teachers_online": True}, "similarity-relational"),
        ("views", {"student": UNTRAINED}, "similarity-relational"),
        ("groups", {"student": UNTRAINED}, "labels-relational"),
        ("mixed", {"student": UNTRAINED}, "similarity-relational"),
        ("views", {"student": UNTRAINED + "&weights=net.pth"}, "queue"),
        ("views", {"student": UNTRAINED, "backbone_lr": 0.0}, "similarity"),
    ],
)
def test_auto_looks_at_the_pairs_and_at_what_can_be_trained(
    source: str, options: dict[str, object], name: str
) -> None:
    _, why = complete(spec(**options), source)
    assert why.startswith(f"recipe {name} (")


@pytest.mark.parametrize(
    ("source", "options", "name"),
    [
        ("groups", {}, "labels-queue"),
        ("mixed", {}, "labels-queue"),
        ("views", {}, "queue"),
        ("groups", {"student": UNTRAINED}, "labels-similarity-relational"),
        ("groups", {"teachers_online": True}, "labels-relational"),
    ],
)
def test_auto_leans_on_teachers_that_know_the_groups(
    source: str, options: dict[str, object], name: str
) -> None:
    _, why = complete(spec(**options), source, KNOWN)
    assert why.startswith(f"recipe {name} (")
    assert complete(spec(**options), source, KNOWN - 0.1) == complete(spec(**options), source)


def test_options_that_are_given_stay() -> None:
    full, why = complete(spec(temperature=0.2, queue=0.5, start="random"), "views")
    assert (full.temperature, full.queue, full.start) == (0.2, 0.5, "random")
    assert "0.5·queue" in why


@pytest.mark.parametrize("recipe", ["auto", *RECIPES])
def test_an_untrained_student_has_no_principal_axes(recipe: str) -> None:
    full, _ = complete(spec(recipe=recipe, student=UNTRAINED), "views")
    assert full.start == "random"
    full, _ = complete(spec(recipe=recipe, student=UNTRAINED, start="principal"), "views")
    assert full.start == "principal"


def test_the_papers_recipe_is_the_papers() -> None:
    full, _ = complete(spec(recipe="paper"), "groups")
    assert {term: getattr(full, term) for term in TERMS} == {
        "kl": 1.0,
        "labels": 0.0,
        "relational": 0.0,
        "align": 0.0,
        "queue": 0.0,
    }
    assert (full.fusion, full.temperature, full.shrinkage) == ("maxmin", 0.05, 0.0)
    assert (full.start, full.pairs_per_class, full.pairs_per_epoch) == ("random", 1, 1)
    assert full.whiten_images == 10_000


@pytest.mark.parametrize(
    ("source", "augment"),
    [("groups", "paper-images"), ("views", "paper-frames"), ("frames", "paper-frames")],
)
def test_the_papers_views_come_with_its_recipe_alone(source: str, augment: str) -> None:
    full, _ = complete(spec(recipe="paper", view_seed=4), source)
    assert full.augment == augment
    assert full.view_plan == ViewPlan.named(augment, 4)
    for options in ({"recipe": "paper", "augment": "light"}, {}):
        assert complete(spec(**options), source)[0].view_plan == ViewPlan()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"recipe": "labels", "labels": 0.0}, "all weights are 0"),
        ({"queue": 1.0, "teachers_online": True}, "--queue needs cached teachers"),
    ],
)
def test_what_cannot_work_is_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        complete(spec(**options), "groups")
