"""`recipes/`: every file is read as `--recipe` reads it, and differs from its base as it says."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from command_line import Captured, fails
from whiten.cli.app import app
from whiten.models.uri import parse_uri
from whiten.runs.recipes import complete
from whiten.runs.spec import DistillSpec

ROOT = Path(__file__).parent.parent
FILES = sorted((ROOT / "recipes").rglob("*.yaml"))
DEFAULTS = DistillSpec(teachers=["demo:mobilenetv2"]).to_mapping()
IMAGES = ROOT / "recipes" / "gem-ap-gem-solar-r18.yaml"
TEACHERS = {
    "gem-ap-gem-solar": ["resnet101_gem", "resnet101_ap_gem", "resnet101_solar"],
    "delg-dolg": ["resnet101_delg", "resnet101_dolg"],
    "mocov3-barlowtwins": ["mocov3", "barlowtwins"],
}


def read(*arguments: str) -> tuple[Path | None, DistillSpec]:
    """The images and the options of a `distill` command, as the verb receives them."""
    _, bound, _ = app.parse_args(["distill", "--out", "run", *arguments])
    return bound.arguments.get("images"), bound.arguments["spec"]


def options(path: Path) -> dict[str, Any]:
    """The options that a recipe's file changes."""
    found = read("--recipe", str(path))[1].to_mapping()
    return {name: value for name, value in found.items() if value != DEFAULTS[name]}


def test_every_published_run_has_a_file() -> None:
    for teachers, names in TEACHERS.items():
        for student in ("r18", "r34"):
            spec = DistillSpec.from_mapping(
                options(ROOT / "recipes" / f"{teachers}-{student}.yaml")
            )
            assert [parse_uri(uri).target for uri in spec.teachers] == names
            assert spec.student == f"timm:resnet{student[1:]}.tv_in1k"


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_file_opens_with_its_command_and_its_cost(path: Path) -> None:
    name = path.relative_to(ROOT).as_posix()
    lines = path.read_text().splitlines()
    assert lines[2] == f"#   whiten distill --recipe {name} --out runs/{path.stem}"
    assert re.match(r"# Cost: about [\d.]+ hours on 8 V100", lines[4])
    assert "estimate" in lines[4]
    assert max(map(len, lines[4:])) <= 100


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_file_is_a_run_with_what_was_published(path: Path) -> None:
    spec = DistillSpec.from_mapping(options(path))
    on_frames = spec.pairs == "frames"
    full, _ = complete(spec, spec.pairs)
    assert full.recipe == "paper"
    assert on_frames or full.pairs_per_epoch == 1
    assert full.augment == ("paper-frames" if on_frames else "paper-images")
    assert (full.pool, full.size) == (("avg", 224) if on_frames else ("gem-fixed", 512))
    assert (full.kl, full.temperature, full.shrinkage, full.start) == (1.0, 0.05, 0.0, "random")
    training = (full.optimizer, full.lr, full.weight_decay, full.warmup, full.clip, full.epochs)
    assert (*training, full.min_lr) == ("adam", 1e-3, 1e-6, 0.0, 0.0, 200, 1e-6)
    assert (full.batch_size, full.devices, full.teachers_online) == (256, 8, True)


@pytest.mark.parametrize(
    ("name", "changed"),
    [
        ("no-whitening", {"whiten": False, "whiten_dim": None}),
        *((f"fusion-{name}", {"fusion": name}) for name in ("mean", "maxmean", "maxrand", "rand")),
        *((f"pca-{dim}", {"dim": dim, "whiten_dim": dim}) for dim in (128, 256, 1024)),
    ],
)
def test_an_ablation_changes_one_thing(name: str, changed: dict[str, Any]) -> None:
    base, found = options(IMAGES), options(ROOT / "recipes" / "ablations" / f"{name}.yaml")
    expected = {k: v for k, v in {**base, **changed}.items() if v is not None and v != DEFAULTS[k]}
    assert found == expected


@pytest.mark.parametrize(
    "path", sorted((ROOT / "recipes" / "ablations").glob("teacher-*.yaml")), ids=lambda p: p.stem
)
def test_single_teachers_are_those_of_the_published_runs(path: Path) -> None:
    [teacher] = options(path)["teachers"]
    for name in TEACHERS:
        base = options(ROOT / "recipes" / f"{name}-r18.yaml")
        if teacher in base["teachers"]:
            assert options(path) == {**base, "teachers": [teacher]}
            return
    pytest.fail(f"{teacher} is no teacher of a published run")


def test_the_table_lists_every_file() -> None:
    text = (ROOT / "recipes" / "README.md").read_text()
    linked = set(re.findall(r"\]\(([\w/-]+\.yaml)\)", text))
    assert linked == {path.relative_to(ROOT / "recipes").as_posix() for path in FILES}


# --- `--recipe` ---------------------------------------------------------------------------------


@pytest.mark.parametrize("flag", [["--recipe", "r.yaml"], ["--recipe=r.yaml"]])
def test_a_file_gives_what_the_command_leaves_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flag: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("r.yaml").write_text(
        "images: photos\nrecipe: paper\nteachers: demo:mobilenetv2\nlr: 1e-2\nprecision: 32\n"
        "whiten: false\nsize: null\nepochs: 3\nversion: 0.1.0\n"
    )
    images, spec = read(*flag, "--epochs", "1", "--whiten")
    assert images == Path("photos")
    assert spec == DistillSpec(
        teachers=["demo:mobilenetv2"], recipe="paper", lr=0.01, precision="32", epochs=1
    )


def test_a_recipe_fills_what_a_configuration_leaves_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("r.yaml").write_text("teachers: [demo:mobilenetv2]\nlr: 0.1\ndim: 8\n")
    Path("c.yaml").write_text("lr: 0.2\n")
    _, spec = read("--recipe", "r.yaml", "--config", "c.yaml")
    assert (spec.lr, spec.dim) == (0.2, 8)


def test_a_name_is_no_file() -> None:
    assert read("--recipe", "paper", "--teachers", "demo:mobilenetv2")[1].recipe == "paper"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("epoch: 3", 'Unknown option: "[epoch]" from r.yaml. Did you mean --epochs?'),
        ("image: photos", 'Unknown option: "[image]" from r.yaml. Did you mean --images?'),
        ("recipe: papr", 'Invalid value "papr" for [recipe] from r.yaml'),
        ("augment: paper-image", 'Did you mean "paper-images"?'),
        ("lr: fast", "Invalid value for [lr] from r.yaml: must be a number, not 'fast'"),
        ("lr: -1", "lr must be above 0, not -1"),
        ("dim: 0", "dim must be at least 1, not 0"),
        ("epochs: 2.5", "epochs must be an integer, not 2.5"),
        ("whiten: maybe", "[whiten] from r.yaml: must be true or false, not 'maybe'"),
        ("batch_size: 9\ndevices: 2", "batch_size 9 must divide by"),
        ("fusion: maxmim", 'Did you mean "maxmin"?'),
        ("teachers: [tim:resnet18]", "unknown model 'tim:resnet18'; did you mean 'timm'"),
        ("student: resnet18", "unknown model 'resnet18'"),
        ("images: [a, b]", "images"),
        ("lr: [", "cannot read r.yaml"),
        ("- lr", "r.yaml must hold options, one `name: value` per line"),
        ("\0", "cannot read r.yaml"),
    ],
)
def test_a_wrong_file_is_refused_key_by_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured, text: str, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("r.yaml").write_text(text)
    teachers = [] if "teachers" in text else ["--teachers", "demo:mobilenetv2"]
    line = fails(capsys, "distill", "--out", "run", *teachers, "--recipe", "r.yaml")
    assert message in line


def test_a_missing_file_is_refused(capsys: Captured) -> None:
    line = fails(capsys, "distill", "--out", "run", "--recipe", "recipes/none.yaml")
    assert "cannot read recipes/none.yaml: " in line and "No such file" in line


def test_the_command_line_overrides_a_wrong_value(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text("batch_size: 9\ndevices: 2\nlr: fast\nteachers: demo:mobilenetv2\n")
    _, spec = read("--recipe", str(path), "--batch-size", "8", "--lr=1")
    assert (spec.batch_size, spec.devices, spec.lr) == (8, 2, 1.0)
