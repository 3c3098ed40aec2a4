"""Names and options of teachers' URIs: wrong ones are refused with the nearest right ones."""

from __future__ import annotations

from pathlib import Path

import pytest

from whiten.errors import ConfigError
from whiten.models.registry import open_teacher
from whiten.models.sources import timm_models, torchvision_models
from whiten.models.uri import parse_uri


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("timm:resnet17", "did you mean 'resnet18'"),
        ("timm:resnet18.a1_in2k", r"did you mean 'resnet18\.a1_in1k'"),
        ("timm:zzzzzzzzzzzz", r"list_models\(\)"),
        ("timm:resnet18?sizes=64", "did you mean 'size'"),
        ("timm:resnet18?size=0", "size='0'"),
        ("timm:resnet18?pool=max", "must be one of model, avg, gem"),
        ("torchvision:resnet19", "did you mean 'resnet18'"),
        ("torchvision:zzzzzzzzzzzz", r"list_models\(\)"),
        ("torchvision:resnet18?pool=avg", "has no option 'pool'"),
        ("torchvision:resnet18?pretrained=IMAGENET1K_V3", "did you mean 'IMAGENET1K_V1'"),
        ("torchvision:resnet18?pretrained=zzz", "it has IMAGENET1K_V1, DEFAULT"),
    ],
)
def test_wrong_name_or_option(uri: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        open_teacher(uri)


def test_listed_names_can_be_asked_for() -> None:
    assert "vit_small_patch14_dinov2.lvd142m" in timm_models.list_names()
    names = torchvision_models.list_names()
    assert "resnet50" in names
    assert not any("fasterrcnn" in name or "fcn" in name or "r3d" in name for name in names)


def test_the_folder_of_a_run_is_not_that_of_its_student(tmp_path: Path) -> None:
    (tmp_path / "run" / "student").mkdir(parents=True)
    with pytest.raises(ConfigError, match="run is a folder without a student; name images"):
        parse_uri(f"{tmp_path}/run")
    with pytest.raises(ConfigError, match="gone': no student is stored there, and a URI is"):
        parse_uri(f"{tmp_path}/gone")
    (tmp_path / "run" / "student" / "config.json").write_text("{}")
    with pytest.raises(ConfigError, match=r"run is a run: name its student, .*student$"):
        parse_uri(f"{tmp_path}/run")
    assert parse_uri(f"{tmp_path}/run/student").scheme == "whiten"
