"""Writers of one picture in every container that is read, each with a library of its own."""

import io
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import imagecodecs
import numpy as np
import tifffile
import zarr
from PIL import Image

Writer = Callable[[Path, np.ndarray], None]


def chunk(kind: bytes, content: bytes) -> bytes:
    """Return a chunk of a PNG."""
    checksum = zlib.crc32(kind + content).to_bytes(4, "big")
    return len(content).to_bytes(4, "big") + kind + content + checksum


def png(rows: list[bytes], size: tuple[int, int], bits: int, colour: int, *more: bytes) -> bytes:
    """Return a PNG of (height, width) whose rows are packed already."""
    height, width = size
    start = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    pixels = zlib.compress(b"".join(b"\0" + row for row in rows))
    parts = [chunk(b"IHDR", start), *more, chunk(b"IDAT", pixels), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def pack(samples: np.ndarray, bits: int) -> list[bytes]:
    """Return the rows of (h, w) samples, packed into bits."""
    each = np.unpackbits(samples.astype(np.uint8)[..., None], axis=-1)[..., 8 - bits :]
    return [np.packbits(row).tobytes() for row in each.reshape(len(samples), -1)]


def by_pillow(**options) -> Writer:
    def write(path: Path, pixels: np.ndarray) -> None:
        Image.fromarray(pixels).save(path, **options)

    return write


def by_tifffile(**options) -> Writer:
    def write(path: Path, pixels: np.ndarray) -> None:
        photometric = "rgb" if pixels.ndim == 3 else "minisblack"
        data = pixels
        if options.get("planarconfig") == "separate" and pixels.ndim == 3:
            data = np.moveaxis(pixels, -1, 0)
        kwargs = {key: value for key, value in options.items() if key != "planarconfig"}
        if pixels.ndim == 3 and "planarconfig" in options:
            kwargs["planarconfig"] = options["planarconfig"]
        tifffile.imwrite(path, data, photometric=photometric, **kwargs)

    return write


def by_imagecodecs(path: Path, pixels: np.ndarray) -> None:
    path.write_bytes(imagecodecs.png_encode(pixels))


def by_numpy(path: Path, pixels: np.ndarray) -> None:
    with path.open("wb") as stream:
        np.save(stream, pixels)


def by_numpy_in_columns(path: Path, pixels: np.ndarray) -> None:
    with path.open("wb") as stream:
        np.save(stream, np.asfortranarray(pixels.astype(pixels.dtype.newbyteorder(">"))))


def by_zarr(version: Literal[2, 3]) -> Writer:
    def write(path: Path, pixels: np.ndarray) -> None:
        array = zarr.create_array(
            store=str(path), shape=pixels.shape, dtype=pixels.dtype, zarr_format=version,
            chunks=tuple(max(1, side // 2) for side in pixels.shape),
        )  # fmt: skip
        array[:] = pixels

    return write


def ome_zarr(path: Path, array: np.ndarray, axes: list[str], *, version: Literal[2, 3] = 3) -> None:
    """Write an OME-Zarr of two sizes, as version 0.5 of the format has it, or 0.4 for version 2."""
    group = zarr.open_group(store=str(path), mode="w", zarr_format=version)
    kinds = {"c": "channel", "t": "time"}
    scales = {
        "axes": [{"name": name, "type": kinds.get(name, "space")} for name in axes],
        "datasets": [{"path": "full"}, {"path": "half"}],
    }
    for name, step in (("full", 1), ("half", 2)):
        place = tuple(slice(None, None, step if axis in "yx" else 1) for axis in axes)
        content = array[place]
        inside = group.create_array(name, shape=content.shape, dtype=content.dtype)
        inside[...] = content
    if version == 3:
        group.attrs["ome"] = {"version": "0.5", "multiscales": [scales]}
    else:
        group.attrs["multiscales"] = [{"version": "0.4", **scales}]


def by_ome_zarr(version: Literal[2, 3]) -> Writer:
    def write(path: Path, pixels: np.ndarray) -> None:
        planes = pixels[None] if pixels.ndim == 2 else np.moveaxis(pixels, -1, 0)
        ome_zarr(path, planes[None], ["t", "c", "y", "x"], version=version)

    return write


def by_ome_tiff(path: Path, pixels: np.ndarray) -> None:
    planes = pixels[None] if pixels.ndim == 2 else np.moveaxis(pixels, -1, 0)
    tifffile.imwrite(path, planes, ome=True, metadata={"axes": "CYX"}, photometric="minisblack")


def by_imagej(path: Path, pixels: np.ndarray) -> None:
    planes = pixels[None] if pixels.ndim == 2 else np.moveaxis(pixels, -1, 0)
    tifffile.imwrite(path, planes, imagej=True, metadata={"axes": "CYX"}, photometric="minisblack")


def turned_back(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Return the pixels as a file with that orientation stores them, by Pillow."""
    ways = {
        2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM, 5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90, 7: Image.Transpose.TRANSVERSE, 8: Image.Transpose.ROTATE_270,
    }  # fmt: skip
    picture = Image.fromarray(pixels)
    return np.array(picture if orientation == 1 else picture.transpose(ways[orientation]))


def exif(orientation: int) -> bytes:
    """Return EXIF data that state an orientation."""
    fields = Image.Exif()
    fields[274] = orientation
    return fields.tobytes()


# containers that hold gray of 8 bits without loss, and those that hold colours
GRAY: dict[str, tuple[str, Writer]] = {
    "png": (".png", by_pillow(format="png")),
    "gif": (".gif", by_pillow(format="gif")),
    "npy": (".npy", by_numpy),
    "npy in columns": (".npy", by_numpy_in_columns),
    "zarr 2": (".zarr", by_zarr(2)),
    "zarr 3": (".zarr", by_zarr(3)),
    "ome-zarr 0.4": (".ome.zarr", by_ome_zarr(2)),
    "ome-zarr 0.5": (".ome.zarr", by_ome_zarr(3)),
    "ome-tiff": (".ome.tif", by_ome_tiff),
    "imagej": (".tif", by_imagej),
    "tiff": (".tif", by_tifffile()),
    "tiff by Pillow": (".tif", by_pillow(format="tiff")),
    "tiff big-endian": (".tif", by_tifffile(byteorder=">")),
    "bigtiff": (".tif", by_tifffile(bigtiff=True)),
    "tiff tiled": (".tif", by_tifffile(tile=(16, 16))),
    "tiff planar": (".tif", by_tifffile(planarconfig="separate")),
    "tiff planar tiled": (".tif", by_tifffile(planarconfig="separate", tile=(16, 16))),
    "tiff in strips": (".tif", by_tifffile(rowsperstrip=2)),
}
CODECS = ("lzw", "zlib", "packbits", "zstd", "lzma", "png", "webp")
for codec in CODECS:
    options = {
        "compression": codec,
        "compressionargs": {"lossless": True} if codec == "webp" else None,
    }
    GRAY[f"tiff {codec}"] = (".tif", by_tifffile(**options))
GRAY["tiff zlib predicted"] = (".tif", by_tifffile(compression="zlib", predictor=True))
COLOUR = {
    "webp": (".webp", by_pillow(format="webp", lossless=True)),
    **{name: writer for name, writer in GRAY.items() if name != "gif"},
}
del GRAY["tiff webp"]  # it holds colours only


def save_bytes(image: Image.Image, **options) -> bytes:
    stream = io.BytesIO()
    image.save(stream, **options)
    return stream.getvalue()
