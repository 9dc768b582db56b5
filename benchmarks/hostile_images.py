"""Images that are made to do harm, or by programs that mean something else by them.

Each function writes one file of its kind, with sizes and places by chance, and returns its path.
"""

import functools
import io
import json
import os
import struct
import tempfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from PIL import Image

from benchmarks.hostile import Rng, choose, deflate_zeros, draw_size, make_array, write
from benchmarks.whole_files import write_images

HEIGHT, WIDTH = 12, 20
NAMES = ("x.png", "x.jpg", "x.gif", "x.webp", "x.tif", "x.npy")


@functools.cache
def read_whole() -> dict[str, bytes]:
    """Return the content of whole images by their names."""
    with tempfile.TemporaryDirectory() as name:
        return {path.name: path.read_bytes() for path in write_images(Path(name))}


def read_kind(rng: Rng, end: str) -> bytes:
    """Return a whole image of a kind."""
    return choose(rng, [content for name, content in read_whole().items() if name.endswith(end)])


def draw_side(rng: Rng) -> int:
    """Draw a height or width, small or huge."""
    return draw_size(rng, 0, 31.9)


def pack_zeros(size: int) -> bytes:
    """Compress very many zeros as zlib does, with the right checksum behind them."""
    adler = (size % 65521) << 16 | 1
    return b"\x78\x9c" + deflate_zeros(size) + adler.to_bytes(4, "big")


# PNG


def make_chunk(
    kind: bytes, data: bytes, *, crc: int | None = None, length: int | None = None
) -> bytes:
    """Return a chunk of a PNG, with its right checksum and length unless others are given."""
    crc = zlib.crc32(kind + data) if crc is None else crc
    length = len(data) if length is None else length
    return struct.pack(">I", length) + kind + data + struct.pack(">I", crc)


def make_start(
    width: int, height: int, *, bits: int = 8, colour: int = 0, rest: bytes = bytes(3)
) -> bytes:
    """Return the chunk with which a PNG begins."""
    return make_chunk(b"IHDR", struct.pack(">IIBB", width, height, bits, colour) + rest)


def make_png(*chunks: bytes) -> bytes:
    """Return a PNG of these chunks."""
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


END = make_chunk(b"IEND", b"")
PIXELS = make_chunk(b"IDAT", zlib.compress(bytes((WIDTH + 1) * HEIGHT)))
START = make_start(WIDTH, HEIGHT)


def split_png(content: bytes) -> list[tuple[bytes, bytes]]:
    """List the kinds and the data of the chunks of a PNG."""
    chunks, at = [], 8
    while at < len(content):
        length = int.from_bytes(content[at : at + 4], "big")
        chunks.append((content[at + 4 : at + 8], content[at + 8 : at + 8 + length]))
        at += 12 + length
    return chunks


def png_bomb(folder: Path, rng: Rng) -> Path:
    """A PNG inflates to up to 4 GB: right pixels of its size, more than those, or a text."""
    side = draw_size(rng, 8, 16)
    size = side * (side + 1)
    stream = pack_zeros(size)
    profile = b"x\0\0" + stream
    bombs = [
        make_png(make_start(side, side), make_chunk(b"IDAT", stream), END),
        make_png(make_start(side, side, bits=1), make_chunk(b"IDAT", stream), END),
        make_png(START, make_chunk(b"IDAT", stream), END),
        make_png(START, make_chunk(b"iCCP", profile), PIXELS, END),
        make_png(START, make_chunk(b"zTXt", profile), PIXELS, END),
        make_png(START, make_chunk(b"iTXt", b"x\0\1\0\0\0" + stream), PIXELS, END),
        make_png(
            START, *[make_chunk(b"tEXt", b"x\0" + bytes(100))] * draw_size(rng, 0, 15), PIXELS, END
        ),
        make_png(START, *[make_chunk(b"IDAT", b"")] * draw_size(rng, 0, 17), PIXELS, END),
    ]
    return write(folder / "x.png", choose(rng, bombs))


def png_header(folder: Path, rng: Rng) -> Path:
    """The header of a PNG states huge sides, unknown bits and colours, or is there twice."""
    sides = [
        (draw_side(rng), HEIGHT),
        (WIDTH, draw_side(rng)),
        (draw_side(rng), draw_side(rng)),
        (0, HEIGHT),
        (WIDTH, 0),
        (2**31, 2**31),
        (WIDTH, HEIGHT),
    ]
    bits, colour = (
        choose(rng, [8, 8, 1, 2, 4, 16, 3, 0, 255]),
        choose(rng, [0, 0, 2, 3, 4, 6, 1, 255]),
    )
    start = make_start(*choose(rng, sides), bits=bits, colour=colour, rest=rng.bytes(3))
    starts = [
        start,
        make_start(*choose(rng, sides), bits=bits, colour=colour),
        make_chunk(b"IHDR", b""),
        make_chunk(b"IHDR", bytes(12)),
        b"",
        START + start,
    ]
    return write(folder / "x.png", make_png(choose(rng, starts), PIXELS, END))


def png_chunks(folder: Path, rng: Rng) -> Path:
    """Chunks of a PNG have wrong checksums or lengths, are missing, twice there or in disorder."""
    chunks = split_png(read_kind(rng, ".png"))
    at = int(rng.integers(len(chunks)))
    made = [make_chunk(*chunk) for chunk in chunks]
    kind, data = chunks[at]
    match int(rng.integers(8)):
        case 0:
            made[at] = make_chunk(kind, data, crc=int(rng.integers(2**32)))
        case 1:
            made[at] = make_chunk(
                kind, data, length=choose(rng, [draw_side(rng), len(data) + 1, 0])
            )
        case 2:
            del made[at]
        case 3:
            made.insert(at, made[at])
        case 4:
            made = [made[int(i)] for i in rng.permutation(len(made))]
        case 5:
            other = choose(rng, [b"abCD", b"ABCD", b"\0\0\0\0", b"IDAT", b"tRNS", b"PLTE", b"acTL"])
            made.insert(at, make_chunk(other, rng.bytes(draw_size(rng, 0, 10))))
        case 6:
            made.append(
                choose(rng, [rng.bytes(draw_size(rng, 0, 12)), read_kind(rng, ".png"), END])
            )
        case _:
            made[at] = make_chunk(kind, data[: len(data) // 2])
    return write(folder / "x.png", make_png(*made))


def png_animation(folder: Path, rng: Rng) -> Path:
    """A PNG says that it is an animation, with frames of its own, or none."""
    count = choose(rng, [0, 1, 2, 2**31, 2**32 - 1])
    control = make_chunk(b"acTL", struct.pack(">II", count, 0))
    frame = make_chunk(b"fcTL", struct.pack(">IIIIIHHBB", 0, WIDTH, HEIGHT, 0, 0, 1, 1, 0, 0))
    data = make_chunk(b"fdAT", bytes(4) + zlib.compress(bytes((WIDTH + 1) * HEIGHT)))
    orders = [
        [control, frame, PIXELS, frame, data],
        [control, PIXELS],
        [PIXELS, control, frame, data],
        [frame, PIXELS, frame, data],
    ]
    return write(folder / "x.png", make_png(START, *choose(rng, orders), END))


# JPEG, GIF and WebP


def jpeg_header(folder: Path, rng: Rng) -> Path:
    """A JPEG states huge sides, other samples or processes, or many scans."""
    content = bytearray(read_whole()["colour.jpg"])
    at = content.find(b"\xff\xc0")
    match int(rng.integers(6)):
        case 0:
            sides = (min(draw_side(rng), 65535), min(draw_side(rng), 65535))
            content[at + 5 : at + 9] = struct.pack(">HH", *sides)
        case 1:
            content[at + 5 : at + 9] = struct.pack(">HH", 65500, 65500)
        case 2:
            content[at + 1] = choose(rng, range(0xC1, 0xD0))
        case 3:
            content[at + 4] = choose(rng, [1, 4, 12, 16, 255])
        case 4:
            content[at + 9] = choose(rng, [0, 1, 2, 4, 255])
        case _:
            scan = content[content.find(b"\xff\xda") : -2]
            content = content[:-2] + scan * draw_size(rng, 0, 12) + content[-2:]
    return write(folder / "x.jpg", bytes(content))


def jpeg_parts(folder: Path, rng: Rng) -> Path:
    """A JPEG has tables, texts and previews of other lengths, junk behind it, or no end."""
    name = choose(rng, ["colour.jpg", "gray.jpeg"])
    content, size = read_whole()[name], draw_size(rng, 0, 15.9)
    exif = b"Exif\0\0II*\0" + rng.bytes(size)[:60000]
    turned = (
        b"Exif\0\0II*\0\x08\0\0\0\1\0\x12\1\3\0\1\0\0\0" + bytes([int(rng.integers(10))]) + bytes(7)
    )
    part = choose(
        rng,
        [
            exif,
            turned,
            b"Adobe" + rng.bytes(7),
            b"ICC_PROFILE\0\1\2" + rng.bytes(size),
            b"MPF\0II*\0" + rng.bytes(64),
        ],
    )[:60000]
    marker = bytes([0xFF, choose(rng, [0xE1, 0xE2, 0xEE, 0xDB, 0xC4, 0xDD, 0xFE, 0xDC])])
    length = choose(rng, [len(part) + 2, len(part) + 2, 0, 1, 65535])
    segment = marker + struct.pack(">H", length) + part
    made = [
        content[:2] + segment + content[2:],
        content[:2] + segment * 300 + content[2:],
        content + rng.bytes(size),
        content + content,
        content[:-2],
        content[: len(content) * 3 // 4],
        content[:-2] + b"\xff\xd0" * size,
        content.replace(b"\xff\xd9", b"\xff\xd8"),
        content[2:],
    ]
    return write(folder / "x.jpg", choose(rng, made))


def gif_parts(folder: Path, rng: Rng) -> Path:
    """A GIF states huge sides, has frames of other places, a bomb of codes, or none at all."""
    content = bytearray(read_whole()["gray.gif"])
    frame = content.find(b",", 13)
    sides = struct.pack("<HH", min(draw_side(rng), 65535), min(draw_side(rng), 65535))
    match int(rng.integers(9)):
        case 0:
            content[6:10] = sides
        case 1:
            content[frame + 5 : frame + 9] = sides
        case 2:
            content[6:10] = content[frame + 5 : frame + 9] = sides
        case 3:
            content[frame + 1 : frame + 5] = sides
        case 4:
            content = content[:-1] + content[frame:-1] * draw_size(rng, 0, 10) + b";"
        case 5:
            content = content[:-1]
        case 6:
            content += rng.bytes(draw_size(rng, 0, 14))
        case 7:
            content = content[:frame] + b";"
        case _:
            size = draw_size(rng, 0, 14)
            content = content[:-1] + (b"!\xfe" + b"\xff" + rng.bytes(255) + b"\0") * size + b";"
    return write(folder / "x.gif", bytes(content))


def webp_parts(folder: Path, rng: Rng) -> Path:
    """A WebP states huge sides and lengths, is an animation, or has parts that nobody knows."""
    content = read_whole()["colour.webp"]
    inner = content[12:]
    side = min(draw_side(rng), 2**24 - 1).to_bytes(3, "little")
    flags = choose(rng, [0, 2, 4, 8, 16, 32, 63, 255])
    extended = b"VP8X" + struct.pack("<I", 10) + bytes([flags, 0, 0, 0]) + side * 2
    frame = b"ANMF" + struct.pack("<I", 16 + len(inner)) + bytes(6) + side * 2 + bytes(4) + inner
    parts = choose(
        rng,
        [
            extended + inner,
            extended,
            inner + inner,
            b"EXIF\xff\xff\xff\x7f" + inner,
            extended + b"ANIM\6\0\0\0" + bytes(6) + frame * draw_size(rng, 0, 6),
            inner[:4] + struct.pack("<I", draw_side(rng)) + inner[8:],
            b"VP8L" + inner[4:],
        ],
    )
    length = choose(rng, [len(parts) + 4, len(parts) + 4, 0, 2**32 - 1, 10])
    made = b"RIFF" + struct.pack("<I", length) + b"WEBP" + parts
    return write(folder / "x.webp", choose(rng, [made, made + rng.bytes(100), made[:-9]]))


def webp_lossless_bomb(folder: Path, rng: Rng) -> Path:
    """A right WebP of one colour is a few bytes and up to 16,383 pixels wide."""
    side = draw_size(rng, 8, 13)
    Image.new("RGB", (side, min(side, 2**22 // side)), (1, 2, 3)).save(
        folder / "y.webp", lossless=True
    )
    content = bytearray((folder / "y.webp").read_bytes())
    at = content.find(b"VP8L")
    if at > 0:
        word = int.from_bytes(content[at + 9 : at + 13], "little")
        wide = (word & ~0x0FFFFFFF) | 16382 | (draw_size(rng, 0, 14) - 1) << 14
        content[at + 9 : at + 13] = wide.to_bytes(4, "little")
    return write(folder / "x.webp", bytes(content))


# TIFF


def make_tiff(
    tags: dict[int, tuple[int, Any]], data: bytes, *, following: int = 0, order: str = "<"
) -> bytes:
    """Return a TIFF of one directory behind its data; the data begin at byte 8.

    Args:
        tags: (type, value or values) of each tag; values of more than four bytes go behind.
        following: where the next directory begins.
    """
    at = 8 + len(data)
    behind, entries = b"", b""
    place = at + 2 + 12 * len(tags) + 4
    letters = {1: "B", 2: "B", 3: "H", 4: "I", 5: "I", 11: "f", 12: "d", 16: "Q"}
    for number in sorted(tags):
        kind, values = tags[number]
        if isinstance(values, tuple) and len(values) == 2 and values[0] == "raw":
            entries += struct.pack(f"{order}HH", number, kind) + values[1]
            continue
        values = list(values) if isinstance(values, list | bytes) else [values]
        packed = struct.pack(f"{order}{len(values)}{letters.get(kind, 'B')}", *values)
        if len(packed) > 4:
            field = struct.pack(f"{order}I", place + len(behind))
            behind += packed
        else:
            field = packed.ljust(4, b"\0")
        entries += struct.pack(f"{order}HHI", number, kind, len(values)) + field
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}I", at)
    directory = struct.pack(f"{order}H", len(tags)) + entries + struct.pack(f"{order}I", following)
    return head + data + directory + behind


def gray_tags(
    width: int = WIDTH, height: int = HEIGHT, *, size: int | None = None, compression: int = 1
) -> dict[int, Any]:
    """Return the tags of a gray image of one strip."""
    size = width * height if size is None else size
    return {
        256: (4, width),
        257: (4, height),
        258: (3, 8),
        259: (3, compression),
        262: (3, 1),
        273: (4, 8),
        277: (3, 1),
        278: (4, height),
        279: (4, size),
    }


def tiff_bomb(folder: Path, rng: Rng) -> Path:
    """A TIFF inflates to up to 4 GB, in one strip, many strips or tiles."""
    side = draw_size(rng, 8, 16)
    compression = choose(rng, [8, 8, 32946, 5, 32773, 34925, 50000])
    size = side * side
    if compression in (8, 32946):
        data = pack_zeros(size)
    elif compression == 32773:
        data = b"\x81\0" * min(size // 128 + 1, 2**21)
    else:
        data = zlib.compress(bytes(min(size, 2**24)))
    tags = gray_tags(side, side, size=len(data), compression=compression)
    match int(rng.integers(4)):
        case 0:  # each strip is the same bytes
            count = min(side, 2**14)
            tags |= {
                278: (4, max(1, side // count)),
                273: (4, [8] * count),
                279: (4, [len(data)] * count),
            }
        case 1:
            tags |= {322: (4, side), 323: (4, side), 324: (4, 8), 325: (4, len(data))}
        case 2:
            tags |= {256: (4, WIDTH), 257: (4, HEIGHT)}
    return write(folder / "x.tif", make_tiff(tags, data))


def tiff_sizes(folder: Path, rng: Rng) -> Path:
    """A TIFF states huge sides, samples, bits, strips, tiles or places of its data."""
    tags, values = gray_tags(), [0, 1, 2**16 - 1, 2**31 - 1, 2**31, 2**32 - 1, draw_side(rng)]
    more = {
        284: (3, 2),
        322: (4, 16),
        323: (4, 16),
        324: (4, 8),
        325: (4, 256),
        317: (3, 2),
        339: (3, 1),
        338: (3, 2),
        32997: (4, 2),
    }
    for number in rng.choice([*tags, *more], size=int(rng.integers(1, 4)), replace=False):
        kind, _ = (tags | more)[int(number)]
        value = choose(rng, values)
        tags[int(number)] = kind, min(value, 2**16 - 1) if kind == 3 else value
    return write(folder / "x.tif", make_tiff(tags, bytes(WIDTH * HEIGHT)))


def tiff_counts(folder: Path, rng: Rng) -> Path:
    """A tag of a TIFF has a huge count of values, an unknown type, or lies behind the end."""
    tags = gray_tags() | {
        270: (2, b"text\0"),
        305: (2, b"x\0"),
        320: (3, [0] * 9),
        700: (1, b"x" * 9),
    }
    number = choose(rng, [*tags, 33629, 34412, 37706, 50838, 50839, 34665, 34853, 330, 65000])
    kind = choose(rng, [1, 2, 3, 4, 5, 12, 13, 16, 18, 0, 99, 65535])
    count = choose(rng, [draw_side(rng), 2**32 - 1, 0, 2**28])
    raw = struct.pack("<II", count, choose(rng, [8, 0, 2**32 - 1, draw_side(rng)]))
    tags[number] = kind, ("raw", raw)
    return write(folder / "x.tif", make_tiff(tags, bytes(WIDTH * HEIGHT)))


def tiff_chain(folder: Path, rng: Rng) -> Path:
    """The directories of a TIFF lead in a circle, to nowhere, or to up to 100,000 others."""
    content = bytearray(make_tiff(gray_tags(), bytes(WIDTH * HEIGHT)))
    first = 8 + WIDTH * HEIGHT
    link = first + 2 + 12 * len(gray_tags())
    match int(rng.integers(6)):
        case 0:
            content[link : link + 4] = struct.pack("<I", first)
        case 1:
            content[link : link + 4] = struct.pack(
                "<I", choose(rng, [1, 3, 2**32 - 1, link, draw_side(rng)])
            )
        case 2:  # the second leads back
            second = len(content)
            copy = content[first:link] + struct.pack("<I", choose(rng, [first, second, second + 2]))
            content[link : link + 4] = struct.pack("<I", second)
            content += copy
        case 3:
            part = bytes(content[first:link])
            content = content[:link]
            for _ in range(draw_size(rng, 2, 14)):
                content += struct.pack("<I", len(content) + 4) + part
            content += choose(rng, [bytes(4), struct.pack("<I", first), b"\xff" * 4])
        case 4:  # directories in one another
            tags = gray_tags() | {
                330: (
                    4,
                    [choose(rng, [8, 8 + WIDTH * HEIGHT, 2**32 - 1])] * int(rng.integers(1, 99)),
                )
            }
            content = bytearray(make_tiff(tags, bytes(WIDTH * HEIGHT)))
        case _:
            content[first : first + 2] = struct.pack("<H", choose(rng, [0, 65535, 5000]))
    return write(folder / "x.tif", bytes(content))


def tiff_cut_chain(folder: Path, rng: Rng) -> Path:
    """A stack of many pages is cut within its last ones, or one page of it has no data."""
    stack = rng.integers(0, 255, (int(rng.integers(2, 12)), HEIGHT, WIDTH), np.uint8)
    made, kind = io.BytesIO(), int(rng.integers(4))
    options: list[dict[str, Any]] = [{}, {"imagej": True}, {"bigtiff": True}, {"ome": True}]
    with tifffile.TiffWriter(made, **options[kind]) as writer:
        if kind == 1:
            writer.write(stack)
        else:
            for page in stack:
                writer.write(page, contiguous=False, compression=choose(rng, [None, "zlib"]))
    content = made.getvalue()
    if rng.random() < 0.7:
        content = content[: int(rng.integers(len(content) // 2, len(content)))]
    return write(folder / "x.tif", content)


def tiff_description(folder: Path, rng: Rng) -> Path:
    """The description of a TIFF (ImageJ, OME, tifffile, Micro-Manager) states what is not there."""
    size = draw_size(rng, 0, 40)
    texts = [
        f"ImageJ=1.53\nimages={size}\nslices={size}\n",
        f"ImageJ=\nchannels={size}\nframes=-1\n",
        f'{{"shape": [{size}, 12, 20]}}',
        '{"shape": [12, 20], "axes": "QQ"}',
        "{" * min(size, 10**5),
        f'<OME><Image><Pixels DimensionOrder="XYCZT" Type="uint8" SizeX="{size}" SizeY="12" '
        'SizeC="1" SizeZ="1" SizeT="1"><TiffData/></Pixels></Image></OME>',
        '<?xml version="1.0"?><!DOCTYPE x [<!ENTITY a "x"><!ENTITY b "&a;&a;&a;">]><OME>&b;</OME>',
        '<OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06"><Image><Pixels SizeX="20" '
        'SizeY="12" SizeC="1" SizeZ="1" SizeT="2" DimensionOrder="XYCZT" Type="uint8"><TiffData '
        'IFD="0"><UUID FileName="../../etc/passwd">x</UUID></TiffData></Pixels></Image></OME>',
        "SCANIMAGE" + "x" * 99,
        "Aperio Image Library v1\n|AppMag = 20",
        "<MetaData>" * 99,
        "\0" * 9,
        "shape=(12, 20)",
        f"shape=({size}, 12, 20)",
        "shape=(__import__('os'),)",
        "\x1b[2J" * 9,
    ]
    text = choose(rng, texts).encode()[:60000] + b"\0"
    tags = gray_tags() | {270: (2, text)}
    if rng.random() < 0.3:
        tags |= {choose(rng, [33628, 34361, 50839, 51123, 34362]): (1, rng.bytes(40))}
    return write(folder / "x.tif", make_tiff(tags, bytes(WIDTH * HEIGHT)))


def tiff_types(folder: Path, rng: Rng) -> Path:
    """A right TIFF has complex values, 64 bits, bits that differ, or a rare compression."""
    kinds = [
        np.complex64,
        np.complex128,
        np.float16,
        np.float64,
        np.int64,
        np.uint64,
        np.int8,
        np.uint32,
        np.bool_,
    ]
    image = rng.integers(0, 2, (HEIGHT, WIDTH)).astype(choose(rng, kinds))
    path = folder / "x.tif"
    match int(rng.integers(4)):
        case 0:
            tifffile.imwrite(path, image)
        case 1:
            tifffile.imwrite(
                path,
                np.stack([image] * int(rng.integers(2, 7)), -1),
                planarconfig=choose(rng, ["contig", "separate"]),
                photometric="minisblack",
            )
        case 2:
            names = [
                "lzw",
                "zlib",
                "packbits",
                "lzma",
                "zstd",
                "webp",
                "jpeg",
                "jpeg2000",
                "jpegxl",
            ]
            rgb = rng.integers(0, 255, (16, 16, 3), np.uint8)
            tifffile.imwrite(path, rgb, compression=choose(rng, names))
        case _:
            tags = gray_tags() | {
                choose(rng, [258, 259, 262, 266, 339]): (3, choose(rng, range(40)))
            }
            write(path, make_tiff(tags, bytes(WIDTH * HEIGHT * 8), order=choose(rng, "<>")))
    return path


# arrays


def array_header(folder: Path, rng: Rng) -> Path:
    """A `.npy` states a huge or strange shape, another type, or is no words of Python."""
    size = draw_size(rng, 0, 45)
    shapes = [
        (HEIGHT, WIDTH),
        (size, size),
        (size,),
        (0, 4),
        (-1, 4),
        (),
        (1,) * 40,
        (2**62, 4),
        (True, 4),
        (1.5, 4),
        "ab",
        (size, HEIGHT, WIDTH),
        (HEIGHT, WIDTH, size),
    ]
    kinds = [
        "<f4",
        "|u1",
        "|u1",
        "<c8",
        "|O",
        "|V8",
        "<U4",
        "<M8[s]",
        "|b1",
        "<f2",
        ">u2",
        "zz",
        [("a", "<f4")],
        "<f16",
        "(2,3)<f4",
        "|S0",
    ]
    words = {
        "descr": choose(rng, kinds),
        "fortran_order": choose(rng, [False, True, 3]),
        "shape": choose(rng, shapes),
    }
    header = choose(
        rng,
        [
            repr(words).encode(),
            repr(words).encode(),
            b"(" * min(size, 60000),
            b"",
            b"{'descr': print(1)}",
            b"[" * 200 + b"]" * 200,
            b"\0" * 20,
        ],
    )
    content = make_array(
        header[:65535], bytes(choose(rng, [WIDTH * HEIGHT, 4 * WIDTH * HEIGHT, 0]))
    )
    content = choose(
        rng,
        [
            content,
            content,
            content[:6] + b"\x09\0" + content[8:],
            content[:8] + b"\xff\xff" + content[10:],
            content + rng.bytes(9),
        ],
    )
    return write(folder / "x.npy", content)


def zarr_store(folder: Path, rng: Rng) -> Path:
    """A zarr store states huge shapes and chunks, chains of codecs, or paths that lead out."""
    path = folder / "x.zarr"
    path.mkdir()
    size, is_new = draw_size(rng, 0, 50), rng.random() < 0.5
    shape = choose(
        rng, [[HEIGHT, WIDTH], [size, size], [size], [], [-1, 4], [0, 4], ["x", 4], [1.5, 4]]
    )
    chunks = choose(rng, [shape, [HEIGHT, WIDTH], [size, size], [1, 1], [0, 0], [-1, -1]])
    if is_new:
        codecs = choose(
            rng,
            [
                [],
                [{"name": "bytes"}],
                [{"name": "gzip", "configuration": {"level": 1}}],
                [{"name": "zzz"}],
                [{"name": "bytes"}, {"name": "zstd"}],
                "x",
            ],
        )
        meta = {
            "zarr_format": 3,
            "node_type": choose(rng, ["array", "array", "group", "x"]),
            "shape": shape,
            "data_type": choose(rng, ["uint8", "float32", "complex64", "x"]),
            "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": chunks}},
            "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
            "fill_value": choose(rng, [0, "NaN", None, [], 1e400]),
            "codecs": codecs,
            "attributes": choose(rng, [{}, {"_ARRAY_DIMENSIONS": ["y"]}, []]),
        }
        name, chunk = "zarr.json", path / "c" / "0"
    else:
        meta = {
            "zarr_format": 2,
            "shape": shape,
            "chunks": chunks,
            "order": "C",
            "filters": None,
            "dtype": choose(rng, ["|u1", "<f4", "<c8", "|O", "|V9", "x"]),
            "fill_value": 0,
            "compressor": choose(
                rng,
                [
                    None,
                    {"id": "zlib", "level": 1},
                    {"id": "pickle"},
                    {"id": "blosc"},
                    {"id": "zzz"},
                    [],
                ],
            ),
        }
        name, chunk = ".zarray", path
    text = json.dumps(meta).encode()
    text = choose(rng, [text, text, text, text[:-5], b"[" * min(size, 10**5), b"{}", b""])
    write(path / name, text)
    if rng.random() < 0.2:
        group = {"multiscales": [{"datasets": [{"path": choose(rng, ["../..", "/etc", "0", ""])}]}]}
        write(path / ".zgroup", b'{"zarr_format": 2}')
        write(path / ".zattrs", json.dumps(group).encode())
    chunk.mkdir(parents=True, exist_ok=True)
    bomb = pack_zeros(draw_size(rng, 20, 30))
    data = choose(
        rng, [bytes(WIDTH * HEIGHT), zlib.compress(bytes(WIDTH * HEIGHT)), bomb, b"", b"x"]
    )
    write(chunk / ("0" if is_new else "0.0"), data)
    return path


# files of another kind, and things that are no files


def another_format(folder: Path, rng: Rng) -> Path:
    """A file of a format that a library knows, and that is not promised, has an image's name."""
    image, size = Image.new("RGB", (WIDTH, HEIGHT)), draw_size(rng, 0, 16)
    made = io.BytesIO()
    kind = choose(
        rng,
        [
            "BMP",
            "PPM",
            "TGA",
            "PCX",
            "ICO",
            "EPS",
            "PDF",
            "JPEG2000",
            "SGI",
            "DDS",
            "IM",
            "SPIDER",
            "MSP",
            "XBM",
            "AVIF",
            "DIB",
            "ICNS",
        ],
    )
    try:
        image.convert({"SPIDER": "F", "MSP": "1", "XBM": "1"}.get(kind, "RGB")).save(made, kind)
    except (KeyError, OSError, ValueError):  # not every build of Pillow has all of them
        made.write(b"BM" + bytes(60))
    texts = [
        made.getvalue(),
        made.getvalue(),
        made.getvalue(),
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 20 12\n%%EndComments\n"
        b"(run) (w) file closefile\n",
        b"\xc5\xd0\xd3\xc6"
        + struct.pack("<IIIIII", 30, 60, 0, 0, 0, 0)
        + b"\xff\xff%!PS\nquit\n"
        + bytes(40),
        b"%PDF-1.7\n1 0 obj<</Type/Catalog>>endobj\n%%EOF",
        b"<svg xmlns='http://www.w3.org/2000/svg'/>",
        b"\xd7\xcd\xc6\x9a" + bytes(60),
        b"\1\0\0\0" + bytes(100),
        b"FWS" + bytes(size),
        b"8BPS" + bytes(size),
        b"\0\0\0\x20ftypheic" + bytes(size),
        b"\0\0\0\x20ftypavif" + bytes(size),
        b"\0\0\0\x0cjP  \r\n\x87\n",
        b"\xff\x0a" + bytes(size),
        b"SIMPLE  =                    T" + b" " * 2850,
        b"GRIB" + bytes(size),
        b"\x89HDF\r\n\x1a\n" + bytes(size),
        b"#define x_width 20\n#define x_height 12\nstatic char x_bits[] = {",
        b'/* XPM */\nstatic char * x[] = {"20 12 1 1",',
        b"qoif" + bytes(60),
        b"push graphic-context\nimage over 0,0 0,0 'https://localhost/x'\npop graphic-context",
        b"<!DOCTYPE html>",
        b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n",
        b"",
        b"\0",
        b"II*\0",
        b"\x89PNG\r\n\x1a\n",
        b"\xff\xd8\xff",
        b"GIF89a",
        b"RIFF\0\0\0\0WEBP",
        b"\x93NUMPY",
        b"II+\0\x08\0\0\0",
        rng.bytes(size),
        bytes(size),
        b"\x1f\x8b\x08" + rng.bytes(size),
        b"PK\3\4" + rng.bytes(size),
        b"\x89PNG\r\n\x1a\n" + rng.bytes(size),
        b"MM\0*" + rng.bytes(size),
        b"\x8aMNG\r\n\x1a\n" + bytes(size),
    ]
    return write(folder / choose(rng, NAMES), choose(rng, texts))


def no_file(folder: Path, rng: Rng) -> Path:
    """Under the name is a pipe, a folder, a device, or a link that leads nowhere or in a circle."""
    path = folder / choose(rng, [*NAMES, "x.zarr"])
    match int(rng.integers(6)):
        case 0:
            os.mkfifo(path)
        case 1:
            path.mkdir()
        case 2:
            path.symlink_to(
                choose(rng, ["/dev/zero", "/dev/null", "/dev/urandom", "/proc/self/mem"])
            )
        case 3:
            path.symlink_to(path.name)
        case 4:
            path.symlink_to(choose(rng, ["nothing", "/", ".", "/proc", "/dev/stdin"]))
        case _:
            write(folder / "real.png", read_whole()["gray.png"])
            path.symlink_to("real.png")
    return path


def right_under_another_name(folder: Path, rng: Rng) -> Path:
    """A right image has the name of another kind, or one that is no usual name."""
    names = [
        *NAMES,
        "x",
        "x.PNG",
        "é.png",
        "a b.png",
        "-x.png",
        "[x].png",
        "{x}.png",
        "x" * 240 + ".png",
    ]
    return write(folder / choose(rng, names), choose(rng, read_whole().values()))


def joined_images(folder: Path, rng: Rng) -> Path:
    """Two whole images stand in one file, one behind the other or one within the other."""
    one, two = choose(rng, read_whole().values()), choose(rng, read_whole().values())
    at = int(rng.integers(len(one)))
    made = [
        one + two,
        one[:at] + two + one[at:],
        one[: at // 2] + two[at // 2 :],
        two[:8] + one[8:],
    ]
    return write(folder / choose(rng, NAMES), choose(rng, made))


IMAGES: tuple[Callable[[Path, Rng], Path], ...] = (
    png_bomb,
    png_header,
    png_chunks,
    png_chunks,
    png_animation,
    jpeg_header,
    jpeg_parts,
    gif_parts,
    webp_parts,
    webp_lossless_bomb,
    tiff_bomb,
    tiff_sizes,
    tiff_sizes,
    tiff_counts,
    tiff_chain,
    tiff_cut_chain,
    tiff_description,
    tiff_types,
    array_header,
    zarr_store,
    another_format,
    no_file,
    right_under_another_name,
    joined_images,
)
