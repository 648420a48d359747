"""Data files: arrays in .npz, encoded images in .npz, folders of images. All of them are untrusted and bounded.

Every function raises `ConfigError` naming the file and what is wrong with it.
"""

from __future__ import annotations

import io
import itertools
import lzma
import math
import struct
import tokenize
import warnings
import zipfile
import zlib
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from gos_adapt.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

Array = np.ndarray[Any, Any]
Encoded = Path | bytes

MAX_ARRAY_BYTES = 4 << 30
MAX_PIXELS = 1 << 24
IMAGE_FORMATS = ("BMP", "JPEG", "PNG", "PPM", "WEBP")

# What zipfile, the decompressors and numpy's reader raise on damaged, encrypted or foreign bytes.
_DAMAGE = (
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
    struct.error,
    tokenize.TokenError,
    SyntaxError,
    EOFError,
    MemoryError,
    OSError,
    RuntimeError,
    ValueError,
)


def read_array(path: Path, key: str) -> Array:
    """Read one array of an .npz file, after checking from its header that it is plain numbers of bounded size."""
    try:
        if not path.is_file():
            raise ConfigError(f"{path} is not a file")
        with zipfile.ZipFile(path) as archive:
            keys = [name.removesuffix(".npy") for name in archive.namelist()]
            if key not in keys:
                raise ConfigError(f'{path} has no array "{key}"; it has {", ".join(map(repr, keys[:8])) or "none"}')
            member = archive.getinfo(f"{key}.npy")
            with archive.open(member) as stream:
                _check_header(stream, member.file_size)
            with archive.open(member) as stream:
                return np.lib.format.read_array(stream, allow_pickle=False)
    except _DAMAGE as error:
        raise ConfigError(f'cannot read array "{key}" of {path}: {_one_line(error)}') from error


def read_encoded(
    path: Path, key: str, offsets_key: str, read: Callable[[Path, str], Array] = read_array
) -> list[Encoded]:
    """Cut an array of concatenated image files, image i being ``bytes[offsets[i]:offsets[i + 1]]``."""
    joined, offsets = read(path, key), read(path, offsets_key)
    if joined.dtype != np.uint8 or joined.ndim != 1:
        raise ConfigError(f'{path} "{key}": encoded images must be one row of uint8, got {joined.dtype} {joined.shape}')
    if offsets.dtype.kind not in "ui" or offsets.ndim != 1 or len(offsets) < 2:
        raise ConfigError(
            f'{path} "{offsets_key}" must be a row of n + 1 integers, got {offsets.dtype} {offsets.shape}'
        )
    bounds = [int(offset) for offset in offsets]
    if bounds != sorted(bounds) or bounds[0] < 0 or bounds[-1] > len(joined):
        raise ConfigError(f'{path} "{offsets_key}" must grow from 0 to at most {len(joined)}, the length of "{key}"')
    return [joined[start:stop].tobytes() for start, stop in itertools.pairwise(bounds)]


def list_images(folder: Path) -> tuple[list[Encoded], Array, tuple[str, ...]]:
    """List a folder of one sub-folder of images per class: (images, labels, class names in label order).

    Labels follow the sorted sub-folder names. Images come in an order fixed by a hash of their names, so that any
    range of them holds all classes.
    """
    try:
        if not folder.is_dir():
            raise ConfigError(f"{folder} is not a folder")
        classes = sorted(entry.name for entry in _visible(folder) if entry.is_dir())
        found = [
            (image, label) for label, name in enumerate(classes) for image in _visible(folder / name) if image.is_file()
        ]
    except OSError as error:
        raise ConfigError(f"cannot list {folder}: {_one_line(error)}") from error
    if not found:
        raise ConfigError(f"{folder} holds no images; expected one sub-folder of images for each class")
    found.sort(key=lambda pair: sha256(str(pair[0].relative_to(folder)).encode()).digest())
    return [image for image, _ in found], np.array([label for _, label in found], dtype=np.int64), tuple(classes)


def decode_images(encoded: Sequence[Encoded], color: str, resize: tuple[int, int] | None) -> Array:
    """Decode images to uint8 ``(n, h, w, c)``: `color` is ``"RGB"`` or ``"L"``, `resize` ``(h, w)`` or `None`."""
    return _stack((_decode(item, color, resize) for item in encoded), len(encoded))


def resize_images(images: Array, resize: tuple[int, int]) -> Array:
    """Resize uint8 images ``(n, h, w, c)``, bilinear."""
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] not in (1, 3):
        raise ConfigError(f"resize needs uint8 images (n, h, w, 1 or 3), got {images.dtype} {images.shape}")
    grey = images.shape[3] == 1
    pictures = (Image.fromarray(image[:, :, 0] if grey else image) for image in images)
    return _stack((_pixels(_resized(picture, resize)) for picture in pictures), len(images))


def _visible(folder: Path) -> Iterator[Path]:
    return (entry for entry in folder.iterdir() if not entry.name.startswith("."))


def _check_header(stream: Any, member_bytes: int) -> None:
    """Refuse before numpy allocates: its reader trusts the header's shape."""
    version = np.lib.format.read_magic(stream)
    if version not in ((1, 0), (2, 0)):
        raise ValueError(f"array format {version} is not supported")
    read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = read_header(stream)
    if dtype.kind not in "uif":
        raise ValueError(f"it holds {dtype}, expected integers or floats (Python objects are never unpickled)")
    if not shape:
        raise ValueError("it is a single value, expected one entry a sample")
    described = math.prod(shape) * dtype.itemsize
    if described > MAX_ARRAY_BYTES:
        raise ValueError(f"it is {described} bytes large, at most {MAX_ARRAY_BYTES} are read")
    if described != member_bytes - stream.tell():
        raise ValueError(f"its header describes {described} bytes, the file holds {member_bytes - stream.tell()}")


def _decode(encoded: Encoded, color: str, resize: tuple[int, int] | None) -> Array:
    name = encoded if isinstance(encoded, Path) else "an encoded image"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns of large images; the bound below refuses them
            stream = encoded if isinstance(encoded, Path) else io.BytesIO(encoded)
            with Image.open(stream, formats=IMAGE_FORMATS) as image:
                if image.width * image.height > MAX_PIXELS:
                    raise ConfigError(f"{name} has {image.width}x{image.height} pixels, at most {MAX_PIXELS} are read")
                return _pixels(_resized(image.convert(color), resize))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise ConfigError(f"cannot decode {name}: {_one_line(error)}") from error


def _pixels(image: Image.Image) -> Array:
    pixels = np.asarray(image)
    return pixels.reshape(*pixels.shape[:2], -1)


def _resized(image: Image.Image, resize: tuple[int, int] | None) -> Image.Image:
    return image if resize is None else image.resize(resize[::-1], Image.Resampling.BILINEAR)


def _stack(images: Iterable[Array], n: int) -> Array:
    """Stack images of one size into one array, refusing before it grows too large."""
    stacked: Array | None = None
    for i, image in enumerate(images):
        if stacked is None:
            if n * image.nbytes > MAX_ARRAY_BYTES:
                raise ConfigError(f"{n} images of {image.shape} exceed {MAX_ARRAY_BYTES} bytes; use take or resize")
            stacked = np.empty((n, *image.shape), dtype=np.uint8)
        if image.shape != stacked.shape[1:]:
            raise ConfigError(
                f"images differ in size, {stacked.shape[1:]} and {image.shape}; give input.resize = [h, w]"
            )
        stacked[i] = image
    return np.empty((0, 1, 1, 1), dtype=np.uint8) if stacked is None else stacked


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
