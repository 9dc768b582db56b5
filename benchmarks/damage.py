"""Ways to damage the bytes of a file, each by a seeded generator."""

import hashlib
import io
import json
import zipfile
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np

Damage = Callable[[bytes, np.random.Generator], bytes]
EXTREMES = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)
HEADER = 512  # bytes in which most headers lie
_PNG_HEAD = 8  # bytes


def flip_bits(content: bytes, rng: np.random.Generator) -> bytes:
    """Flip one to eight bits anywhere."""
    return _flip(content, rng, len(content))


def flip_header_bits(content: bytes, rng: np.random.Generator) -> bytes:
    """Flip one to eight bits where headers lie."""
    return _flip(content, rng, min(HEADER, len(content)))


def set_field(content: bytes, rng: np.random.Generator) -> bytes:
    """Put an extreme number of 1, 2 or 4 bytes, of either byte order, where headers lie."""
    size, order = int(rng.choice([1, 2, 4])), rng.choice(["little", "big"])
    value = int(rng.choice(EXTREMES)) % 256**size
    at = int(rng.integers(max(1, min(HEADER, len(content)) - size)))
    return content[:at] + value.to_bytes(size, order) + content[at + size :]


def cut(content: bytes, rng: np.random.Generator) -> bytes:
    """Cut the file short."""
    return content[: int(rng.integers(len(content)))]


def zero_run(content: bytes, rng: np.random.Generator) -> bytes:
    """Put zeros in the place of a part."""
    start, end = _draw_part(content, rng)
    return content[:start] + bytes(end - start) + content[end:]


def splice(content: bytes, rng: np.random.Generator) -> bytes:
    """Take a part out, repeat it, or copy it over another place."""
    start, end = _draw_part(content, rng)
    match int(rng.integers(3)):
        case 0:
            return content[:start] + content[end:]
        case 1:
            return content[:end] + content[start:]
    at = int(rng.integers(len(content)))
    return content[:at] + content[start:end] + content[at + end - start :]


def reseal(content: bytes, rng: np.random.Generator) -> bytes:
    """Damage what a checksum covers, and write the right checksum over it; such a file gets past
    the checksum, to the code behind it."""
    if content.startswith(b"PK"):
        return _reseal_zip(content, rng)
    if content.startswith(b"\x89PNG"):
        return _reseal_png(content, rng)
    if content[8:9] == b"{":
        return _reseal_safetensors(content, rng)
    return set_field(content, rng)


DAMAGES: dict[str, Damage] = {
    "bits": flip_bits,
    "bits of the header": flip_header_bits,
    "a field": set_field,
    "cut": cut,
    "zeros": zero_run,
    "splice": splice,
    "resealed": reseal,
}


def _flip(content: bytes, rng: np.random.Generator, length: int) -> bytes:
    damaged = bytearray(content)
    for at in rng.integers(length, size=int(rng.integers(1, 9))):
        damaged[at] ^= 1 << int(rng.integers(8))
    return bytes(damaged)


def _draw_part(content: bytes, rng: np.random.Generator) -> tuple[int, int]:
    start = int(rng.integers(len(content)))
    return start, min(len(content), start + int(rng.integers(1, 257)))


def _damage_part(content: bytes, rng: np.random.Generator) -> bytes:
    if not content:
        return content
    inner = (flip_bits, set_field, zero_run, splice, cut)
    return inner[int(rng.integers(len(inner)))](content, rng)


def _reseal_zip(content: bytes, rng: np.random.Generator) -> bytes:
    written = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(written, "w") as new:
        entries = old.infolist()
        # the pickle says what all others are, so most of the damage goes there
        (pickled,) = (i for i, entry in enumerate(entries) if entry.filename.endswith("data.pkl"))
        chosen = pickled if rng.random() < 0.6 else int(rng.integers(len(entries)))
        for index, entry in enumerate(entries):
            data = old.read(entry)
            if index == chosen:
                data = _damage_part(data, rng)
            new.writestr(zipfile.ZipInfo(entry.filename), data)  # a name adds the time
    return written.getvalue()


def _reseal_png(content: bytes, rng: np.random.Generator) -> bytes:
    chunks, at = [], _PNG_HEAD
    while at + 12 <= len(content):
        length = int.from_bytes(content[at : at + 4], "big")
        chunks.append((content[at + 4 : at + 8], content[at + 8 : at + 8 + length]))
        at += 12 + length
    chosen = int(rng.integers(len(chunks)))
    written = content[:_PNG_HEAD]
    for index, (kind, data) in enumerate(chunks):
        if index == chosen:
            data = _damage_part(data, rng)
        checksum = zlib.crc32(kind + data).to_bytes(4, "big")
        written += len(data).to_bytes(4, "big") + kind + data + checksum
    return written


def _reseal_safetensors(content: bytes, rng: np.random.Generator) -> bytes:
    size = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + size])
    card = header.get("__metadata__", {}).get("unet")
    data = content[8 + size :]
    if card is None or rng.random() < 0.2:
        data = _damage_part(data, rng)
    else:
        header["__metadata__"]["unet"] = _change_json(card, rng)
    text = json.dumps(header).encode()
    return seal(len(text).to_bytes(8, "little") + text + data)


def seal(content: bytes) -> bytes:
    """Write the right hash into the card of a safetensors file, if it has one."""
    key = rb"\"sha256\": \""
    at = content.find(key)
    if at < 0:
        return content
    at += len(key)
    digest = hashlib.sha256(content[:at] + b"0" * 64 + content[at + 64 :]).hexdigest()
    return content[:at] + digest.encode() + content[at + 64 :]


def _change_json(text: str, rng: np.random.Generator) -> str:
    """Change one value of a JSON, anywhere in it."""
    content = json.loads(text)
    places = list_places(content)
    holder, key = places[int(rng.integers(len(places)))]
    if key != "sha256":
        holder[key] = WRONG_VALUES[int(rng.integers(len(WRONG_VALUES)))]
    return json.dumps(content, sort_keys=True)


def list_places(content: object) -> list[tuple[Any, Any]]:
    """List all values of dicts and lists in one another, each by its holder and its key there."""
    if isinstance(content, dict):
        items = list(content.items())
    elif isinstance(content, list):
        items = list(enumerate(content))
    else:
        return []
    below = [place for _, value in items for place in list_places(value)]
    return [*((content, key) for key, _ in items), *below]


WRONG_VALUES: tuple[object, ...] = (
    None, True, 0, -1, 3, 10**6, 10**30, 0.5, 1e308, float("nan"), float("inf"), "", "x", "\ud800",
    [], [0], [1, 2, 3], [None], {}, {"x": 1}, "0" * 5000, [[[[]]]],
)  # fmt: skip


def damage_json(content: bytes, rng: np.random.Generator) -> bytes:
    """Damage a file of JSON, or of lines of it: its bytes, or one of its values."""
    if rng.random() < 0.4:
        names = ("bits", "cut", "zeros", "splice")
        return DAMAGES[names[int(rng.integers(len(names)))]](content, rng)
    lines = content.decode().splitlines() if content.count(b'{"') > 1 else [content.decode()]
    chosen = int(rng.integers(len(lines)))
    try:
        lines[chosen] = _change_json(lines[chosen], rng)
    except ValueError:  # one JSON over many lines
        return _change_json(content.decode(), rng).encode()
    return "\n".join(lines).encode() + b"\n"
