"""The seven teachers of the paper: source of each file, and properties of its network.

`docs/teachers.md` shows this as a table. All facts are from the paper's code or the page that
publishes the file; "unstated" means that the page names no licence for the weights.
"""

from __future__ import annotations

from dataclasses import dataclass

# The authors of Whiten-MTD keep copies of all seven files under these names.
AUTHORS_FOLDER = "https://drive.google.com/drive/folders/1-9BOzGBCNY6FrGCmpefSfispWHfiVMOd"


@dataclass(frozen=True)
class Published:
    """A published teacher.

    Attributes:
        file: name of the checkpoint.
        source: page or address that publishes it.
        licence: licence of the weights, as stated there.
        dim: dimension of the embedding that the paper distils.
        size: input side in pixels that the paper trains with.
        power: power of the GeM pooling in the paper; 1 is the average.
        channels: order of the input channels.
        crop_fraction: fraction of the shorter side that is kept.
        has_head: whether the network was trained with a head that can be kept.
    """

    file: str
    source: str
    licence: str
    dim: int = 2048
    size: int = 512
    power: float = 3.0
    channels: str = "rgb"
    crop_fraction: float = 1.0
    has_head: bool = False


PUBLISHED = {
    "resnet101_gem": Published(
        file="gl18-tl-resnet101-gem-w-a4d43db.pt",
        source="https://github.com/filipradenovic/cnnimageretrieval-pytorch",
        licence="unstated; the repository's code is MIT",
    ),
    "resnet101_ap_gem": Published(
        file="Resnet101-AP-GeM-LM18.pt",
        source="https://github.com/naver/deep-image-retrieval",
        licence="unstated",
    ),
    "resnet101_solar": Published(
        file="resnet101-solar-best.pth",
        source="https://github.com/tonyngjichun/SOLAR",
        licence="unstated; the repository's code is MIT",
    ),
    "resnet101_delg": Published(
        file="r101_delg_s512.pyth",
        source="https://github.com/feymanpriv/DELG",
        licence="unstated",
        dim=512,
        channels="bgr",
    ),
    "resnet101_dolg": Published(
        file="r101_dolg_512.pyth",
        source="https://github.com/feymanpriv/DOLG",
        licence="unstated; the repository's code is MIT",
        dim=1024,
        channels="bgr",
    ),
    "mocov3": Published(
        file="mocov3_1000ep.pth.tar",
        source="https://dl.fbaipublicfiles.com/moco-v3/r-50-1000ep/r-50-1000ep.pth.tar",
        licence="CC-BY-NC-4.0",
        size=224,
        power=1.0,
        crop_fraction=224 / 256,
        has_head=True,
    ),
    "barlowtwins": Published(
        file="barlowtwins_full.pth.tar",
        source="https://github.com/facebookresearch/barlowtwins (full checkpoint)",
        licence="CC-BY-NC-4.0",
        size=224,
        power=1.0,
        crop_fraction=224 / 256,
        has_head=True,
    ),
}
