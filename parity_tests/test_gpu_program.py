"""What `benchmarks.gpu_program` reads of a compiled program, with the faults that it is for."""

from typing import Any

import pytest

from benchmarks.gpu_program import read_convolutions
from unet_spec import SLIDES

CALL = (
    "  %conv.1 = (bf16[16,16,16,1024]{3,2,1,0}, u8[0]{0}) custom-call(%x, %k), "
    'dim_labels=LABELS, custom_call_target="__cudnn$convForward", backend_config={}'
)
LAST = "b01f_o01i->b01f"
SHUFFLE = "  ROOT %t = bf16[16,16,2,16,2,1024]{5,4,3,2,1,0} transpose(%y), dimensions={0,1,3,2,4,5}"
SOUND: dict[str, Any] = {
    "cudnn": {"convForward, channels last": 1}, "no_cudnn": [], "moved_maps": [],
    "pixel_shuffles": 0,
}  # fmt: skip
PLANTED: dict[str, tuple[str, dict[str, Any]]] = {
    "channels first": (
        CALL.replace("LABELS", "bf01_oi01->bf01"),
        {"cudnn": {"convForward, another layout": 1, "convForward, channels last": 1}},
    ),
    "channels first in the result alone": (
        CALL.replace("LABELS", "b01f_o01i->bf01"),
        {"cudnn": {"convForward, another layout": 1, "convForward, channels last": 1}},
    ),
    "a convolution by XLA": (
        "  %c = bf16[16,16,16,1024]{3,2,1,0} convolution(%x, %k)", {"no_cudnn": ["c"]},
    ),
    "a map turned": (
        "  %t = bf16[16,1024,16,16]{3,2,1,0} transpose(%y), dimensions={0,3,1,2}",
        {"moved_maps": ["transpose bf16[16,1024,16,16]{3,2,1,0}"]},
    ),
    "a map copied": (
        "  %c = bf16[16,16,16,1024]{0,3,2,1} copy(%y)",
        {"moved_maps": ["copy bf16[16,16,16,1024]{0,3,2,1}"]},
    ),
}  # fmt: skip


def test_a_program_of_cudnn_with_channels_last_is_read_as_such():
    kernel = "  %t = f32[1024,3,3,1024]{3,2,1,0} transpose(%w), dimensions={3,0,1,2}"
    text = "\n".join((CALL.replace("LABELS", LAST), SHUFFLE, kernel))
    assert read_convolutions(text, SLIDES) == {**SOUND, "pixel_shuffles": 1}


@pytest.mark.parametrize("planted", PLANTED)
def test_what_moves_a_map_is_noticed(planted):
    line, noticed = PLANTED[planted]
    text = "\n".join((CALL.replace("LABELS", LAST), line))
    assert read_convolutions(text, SLIDES) == {**SOUND, **noticed}
