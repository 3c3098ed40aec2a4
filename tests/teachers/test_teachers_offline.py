"""Every source without a network, with a hub that refuses, and without its library."""

from __future__ import annotations

import http.server
import socket
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import huggingface_hub
import open_clip
import pytest
import timm
import torch
import torchvision
import transformers

from hf_models import VISION, check_hf, save_hf
from whiten.errors import MissingExtraError, TeacherError
from whiten.models.registry import open_teacher
from whiten.models.sources import hub

pytestmark = pytest.mark.usefixtures("empty_caches")

HUB_MODELS = {
    "timm:resnet18.a1_in1k": "?weights=FILE",
    "torchvision:resnet18": "?weights=FILE",
    "openclip:ViT-B-32/laion2b_s34b_b79k": "?weights=FILE",
    "hf:facebook/dinov2-small": "hf:FOLDER",
}


def fail_to_open(uri: str) -> str:
    """The error's line; it must name the way without the hub."""
    start = time.monotonic()
    with pytest.raises(TeacherError) as caught:
        open_teacher(uri)
    assert time.monotonic() - start < 15  # the hub's client alone tries for a minute and more
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith(("cannot download", "cannot load"))
    assert uri in message
    assert HUB_MODELS[uri] in message
    return message


@pytest.mark.parametrize("uri", HUB_MODELS)
def test_without_network(uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def download(*_: Any, **__: Any) -> None:
        pytest.fail("tried to download")

    monkeypatch.setattr(hub, "answers", lambda _: False)
    monkeypatch.setattr(torchvision.models.ResNet18_Weights, "get_state_dict", download)
    assert "(no network)" in fail_to_open(uri)
    assert huggingface_hub.constants.HF_HUB_OFFLINE is False


@pytest.mark.parametrize("uri", HUB_MODELS)
def test_hub_switched_off(uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert "(HF_HUB_OFFLINE is set)" in fail_to_open(uri)  # and `answers` was not called
    assert huggingface_hub.constants.HF_HUB_OFFLINE is True


@pytest.mark.parametrize("uri", HUB_MODELS)
def test_hub_refuses(uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise RuntimeError("403 Forbidden\nsee the manual")

    monkeypatch.setattr(hub, "answers", lambda _: True)
    monkeypatch.setattr(timm, "create_model", refuse)
    monkeypatch.setattr(torchvision.models.ResNet18_Weights, "get_state_dict", refuse)
    monkeypatch.setattr(open_clip, "create_model", refuse)
    monkeypatch.setattr(transformers.AutoImageProcessor, "from_pretrained", refuse)
    assert "(403 Forbidden)" in fail_to_open(uri)


def test_cached_model_needs_no_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = tmp_path / "hf/models--somebody--model"
    model = transformers.ViTModel(transformers.ViTConfig(**VISION))
    save_hf(model, cache / "snapshots" / ("0" * 40))
    (cache / "refs").mkdir()
    (cache / "refs/main").write_text("0" * 40)
    monkeypatch.setattr(hub, "answers", lambda _: False)
    check_hf("hf:somebody/model", lambda x: model(x).pooler_output)


def test_cached_torchvision_weights_need_no_network(tmp_path: Path) -> None:
    folder = tmp_path / "torch/hub/checkpoints"
    folder.mkdir(parents=True)
    url = torchvision.models.ResNet18_Weights.DEFAULT.url
    torch.save({}, folder / url.rpartition("/")[2])  # found and read, but no model
    with pytest.raises(TeacherError, match=r"IMAGENET1K_V1 lacks conv1\.weight"):
        open_teacher("torchvision:resnet18")


@pytest.mark.parametrize(
    ("module", "uri", "extra"),
    [("open_clip", "openclip:ViT-B-32/openai", "openclip"), ("transformers", "hf:a/b", "hf")],
)
def test_missing_extra(module: str, uri: str, extra: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingExtraError, match=rf"{extra}: teachers .*'whiten\[{extra}\]'"):
        open_teacher(uri)


@pytest.fixture
def server() -> Iterator[str]:
    """A web server that knows no page."""
    handler = http.server.BaseHTTPRequestHandler
    with http.server.HTTPServer(("127.0.0.1", 0), handler) as made:
        thread = threading.Thread(target=made.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{made.server_port}/x"
        made.shutdown()
        thread.join()


def test_any_answer_means_a_network(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    monkeypatch.setenv("no_proxy", "*")
    assert hub.answers(server)


def test_a_silent_server_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    monkeypatch.setenv("no_proxy", "*")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"http://127.0.0.1:{silent.getsockname()[1]}"
        start = time.monotonic()
        assert not hub.answers(address, seconds=0.2)
        assert time.monotonic() - start < 5
    assert not hub.answers(address)  # nobody listens any more
