"""Which image formats are read, by suffix and by content, and the names of those that are not."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from importlib import import_module

from PIL import Image

# HEIC and JPEG XL are read with the extra `formats`.
with suppress(ImportError):
    import pillow_heif

    pillow_heif.register_heif_opener(thumbnails=False)
with suppress(ImportError):
    import pillow_jxl as pillow_jxl  # adds itself to Pillow

EXTRA = "formats"

# Accepted whatever the file name, in this order: formats with the size known before decoding. EPS
# would start another program; ICO decodes on opening. The plugins are imported one by one: all of
# Pillow's, as by its `init`, would take 0.1 s.
_PLUGINS = {
    "JPEG": "Jpeg", "PNG": "Png", "WEBP": "WebP", "GIF": "Gif", "BMP": "Bmp", "TIFF": "Tiff",
    "PPM": "Ppm", "AVIF": "Avif", "JPEG2000": "Jpeg2K", "TGA": "Tga",
}  # fmt: skip
for _plugin in _PLUGINS.values():
    with suppress(ImportError):
        import_module(f"PIL.{_plugin}ImagePlugin")
FORMATS: list[str] = [name for name in (*_PLUGINS, "HEIF", "JXL") if name in Image.OPEN]

# Those that are decoded without an extra, and only when they are loaded.
PLAIN = [name for name in FORMATS if name not in ("HEIF", "JXL")]

_OPTIONAL = {
    "HEIC": ("HEIF", [".heic", ".heif", ".hif"]),
    "AVIF": ("AVIF", [".avif"]),
    "JPEG XL": ("JXL", [".jxl"]),
}
"""Kinds that need the extra, with Pillow's name of the format, and their suffixes."""

# fmt: off
SUFFIXES = frozenset([
    ".jpg", ".jpeg", ".jpe", ".jfif", ".jif", ".jfi", ".mpo", ".png", ".apng", ".webp", ".gif",
    ".bmp", ".tif", ".tiff", ".ppm", ".pgm", ".pbm", ".pnm", ".tga",
    ".jp2", ".j2k", ".j2c", ".jpc", ".jpf", ".jpx",
    *(suffix for name, own in _OPTIONAL.values() if name in FORMATS for suffix in own),
])
_NEVER = {
    "RAW": [
        ".3fr", ".arw", ".cr2", ".cr3", ".crw", ".dcr", ".dng", ".erf", ".fff", ".gpr", ".iiq",
        ".kdc", ".mef", ".mos", ".mrw", ".nef", ".nrw", ".orf", ".pef", ".raf", ".raw", ".rw2",
        ".rwl", ".sr2", ".srf", ".srw", ".x3f",
    ],
    "PSD": [".psd", ".psb"],
    "SVG": [".svg", ".svgz"],
    "EPS": [".eps", ".ps", ".ai"],
    "ICO": [".ico", ".cur", ".icns"],
    "OpenEXR": [".exr"],
    "Radiance HDR": [".hdr"],
    "DDS": [".dds"],
    "DICOM": [".dcm", ".dicom"],
    "JPEG XR": [".jxr", ".hdp", ".wdp"],
    "JPEG-LS": [".jls"],
    "DjVu": [".djvu", ".djv"],
    "XCF": [".xcf"],
    "Krita": [".kra"],
    "PCX": [".pcx"],
    "QOI": [".qoi"],
    "SGI": [".sgi", ".rgb"],
    "DPX": [".dpx", ".cin"],
    "WMF": [".wmf", ".emf"],
    "X bitmap": [".xbm", ".xpm"],
    "BPG": [".bpg"],
    "FLIF": [".flif"],
}
# fmt: on

_KIND_OF: Mapping[str, str] = {
    suffix: kind
    for kind, own in (*((k, v[1]) for k, v in _OPTIONAL.items()), *_NEVER.items())
    for suffix in own
    if suffix not in SUFFIXES
}


def unread_kind(suffix: str) -> str | None:
    """Return the kind of image that a suffix in lower case names, if it is not read; else None."""
    return _KIND_OF.get(suffix)


def describe_unread(counts: Mapping[str, int]) -> str:
    """Return `3 HEIC, 2 RAW`, and how to read those that an extra reads."""
    text = ", ".join(f"{count:,} {kind}" for kind, count in sorted(counts.items()))
    more = [kind for kind in sorted(counts) if kind in _OPTIONAL]
    return f"{text}; {' and '.join(more)}: {how_to_read()}" if more else text


def how_to_read() -> str:
    return f"pip install 'whiten[{EXTRA}]'"


def missing_format(data: bytes) -> str | None:
    """Return the kind of an image that the extra would read; None for any other content."""
    for kind, (name, _) in _OPTIONAL.items():
        if name not in FORMATS and kind == _kind_of_content(data):
            return kind
    return None


_HEIC_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")


def _kind_of_content(data: bytes) -> str | None:
    brand = data[8:12] if data[4:8] == b"ftyp" else b""
    if brand in (b"avif", b"avis"):
        return "AVIF"
    if brand in _HEIC_BRANDS:
        return "AVIF" if b"avif" in data[12:64] else "HEIC"
    if is_jpeg_xl(data):
        return "JPEG XL"
    return None


_JXL_BOX = b"\x00\x00\x00\x0cJXL \r\n\x87\n"


def is_jpeg_xl(data: bytes) -> bool:
    return data[:2] == b"\xff\x0a" or data[:12] == _JXL_BOX


def jpeg_xl_size(data: bytes) -> tuple[int, int]:
    """Read width and height from the header of a JPEG XL image (ISO/IEC 18181-1, SizeHeader).

    Raises:
        ValueError: the header is damaged.
    """
    start = 0
    if data[:12] == _JXL_BOX:
        start = _codestream(data)
    bits = int.from_bytes(data[start + 2 : start + 18], "little")

    def take(count: int) -> int:
        nonlocal bits
        value, bits = bits & ((1 << count) - 1), bits >> count
        return value

    def side(is_small: int) -> int:
        if is_small:
            return 8 * (take(5) + 1)
        return 1 + take((9, 13, 18, 30)[take(2)])

    is_small = take(1)
    height = side(is_small)
    ratio = take(3)
    if ratio == 0:
        return side(is_small), height
    across, down = ((1, 1), (12, 10), (4, 3), (3, 2), (16, 9), (5, 4), (2, 1))[ratio - 1]
    return height * across // down, height


def _codestream(data: bytes) -> int:
    """Return the position of the codestream in the boxes of the container format."""
    at = 0
    while at + 16 <= len(data):
        length, kind = int.from_bytes(data[at : at + 4], "big"), data[at + 4 : at + 8]
        head = 8
        if length == 1:
            length, head = int.from_bytes(data[at + 8 : at + 16], "big"), 16
        if kind == b"jxlc":
            return at + head
        if kind == b"jxlp":
            return at + head + 4  # after the number of the part
        if length < head:
            break
        at += length
    raise ValueError("no codestream in the file")
