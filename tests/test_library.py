"""Where people plug things in: the student as a module, the whitening as a transformer."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

import whiten
from helpers import draw
from whiten.errors import ConfigError, TeacherError
from whiten.models.student import StudentConfig, build_student, save_student
from whiten.utils.arrays import normalize_rows
from whiten.views.rendering import Preprocess
from whiten.whitening.whitener import Whitener

STUDENT = "timm:test_efficientnet?pretrained=0&size=32"


@pytest.fixture
def folder(tmp_path_factory: pytest.TempPathFactory):  # type: ignore[no-untyped-def]
    torch.manual_seed(0)
    net, config = build_student(STUDENT, dim=8)
    path = tmp_path_factory.mktemp("run") / "student"
    save_student(net.eval(), config, path, "card")
    return path


def test_a_module_embeds_as_the_encoder_does(folder) -> None:  # type: ignore[no-untyped-def]
    images = [draw(0), draw(1, side=80), draw(2).convert("RGBA"), draw(3).resize((90, 40))]
    expected = whiten.load(folder).embed(images)
    for place in (folder, folder.parent, f"whiten:{folder}"):
        module = whiten.load_module(place)
        assert not module.training and module.dim == 8
        with torch.no_grad():
            found = module(torch.stack([module.transform(image) for image in images]))
        np.testing.assert_allclose(found, expected, atol=1e-5)
    as_bytes = torch.stack([(module.transform(image) * 255).byte() for image in images])
    np.testing.assert_allclose(module(as_bytes).detach(), expected, atol=1e-5)


def test_a_module_is_a_layer_like_any_other(folder) -> None:  # type: ignore[no-untyped-def]
    module = whiten.load_module(folder)
    model = torch.nn.Sequential(module, torch.nn.Linear(module.dim, 2))
    images = torch.rand(3, 3, 32, 32, requires_grad=True)
    model(images).sum().backward()
    assert images.grad is not None and images.grad.abs().sum() > 0
    assert all(p.grad is not None for p in module.net.projection.parameters())
    assert "0.mean" not in model.state_dict()


@pytest.mark.parametrize(("white", "channels"), [(255.0, "bgr"), (1.0, "rgb")])
def test_other_preprocessing(white: float, channels: str) -> None:
    from whiten.models.module import StudentModule

    values = Preprocess(
        size=(32, 32),
        mean=(0.1 * white, 0.2 * white, 0.3 * white),
        std=(0.5 * white, 0.6 * white, 0.7 * white),
        white=white,
        channels=channels,  # type: ignore[arg-type]
    )
    net, config = build_student(STUDENT, dim=8)
    net.eval()
    facts = {**config.__dict__, "preprocess": values}
    module = StudentModule(net, StudentConfig(**facts))
    pixels = np.array(draw(1))[None]
    normalised = torch.from_numpy(np.ascontiguousarray(values.normalize(pixels)))
    with torch.no_grad():
        expected = torch.nn.functional.normalize(net(normalised))
        found = module(torch.from_numpy(pixels).permute(0, 3, 1, 2))
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_no_student(tmp_path) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(TeacherError, match="is not a student folder"):
        whiten.load_module(tmp_path)


def test_a_transformer_is_scikit_learn_s() -> None:
    pytest.importorskip("sklearn")
    from sklearn.base import clone
    from sklearn.decomposition import PCA
    from sklearn.model_selection import GridSearchCV
    from sklearn.neighbors import KNeighborsClassifier
    from sklearn.pipeline import make_pipeline

    from whiten.sklearn import WhitenerTransformer

    rng = np.random.default_rng(0)
    classes = rng.standard_normal((5, 12)) * 3
    labels = np.repeat(np.arange(5), 30)
    samples = classes[labels] + rng.standard_normal((150, 12)) @ rng.standard_normal((12, 12))
    mine = WhitenerTransformer(6, shrinkage=0.3)
    expected = normalize_rows(Whitener(6, shrinkage=0.3).fit(samples).transform(samples))
    np.testing.assert_allclose(mine.fit_transform(samples), expected)
    assert clone(mine).get_params() == {"dim": 6, "shrinkage": 0.3, "normalize": True}
    assert mine.get_feature_names_out()[1] == "whitenertransformer1"
    plain = WhitenerTransformer(6, shrinkage=0.0, normalize=False).fit_transform(samples)
    ours, theirs = plain @ plain.T, PCA(6, whiten=True).fit_transform(samples)
    np.testing.assert_allclose(ours, theirs @ theirs.T * 150 / 149, atol=1e-8)  # divides by n - 1
    search = GridSearchCV(
        make_pipeline(WhitenerTransformer(), KNeighborsClassifier(3)),
        {"whitenertransformer__dim": [2, 8], "whitenertransformer__shrinkage": [0.0, 1.0]},
        cv=3,
    ).fit(samples, labels)
    assert search.best_score_ > 0.6
    with pytest.raises(ConfigError, match="dim must be at least 1"):
        WhitenerTransformer(0).fit(samples)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:whitening . dimensions on .* samples")
def test_a_transformer_keeps_all_of_scikit_learn_s_rules() -> None:
    pytest.importorskip("sklearn")
    from sklearn.utils.estimator_checks import check_estimator

    from whiten.sklearn import WhitenerTransformer

    check_estimator(WhitenerTransformer(shrinkage=0.5), on_skip=None)


def test_pictures_of_any_mode(folder) -> None:  # type: ignore[no-untyped-def]
    module = whiten.load_module(folder)
    for mode in ("L", "P", "CMYK", "1"):
        assert module.transform(draw(0).convert(mode)).shape == (3, 32, 32)
    assert module.transform(Image.new("RGB", (1, 1))).shape == (3, 32, 32)
