"""What is known of each chip, with its source."""

from collections.abc import Mapping
from dataclasses import dataclass, field

GIB = 2**30
TPU_DOCUMENTS = "Google Cloud's page of this TPU: peak, memory bandwidth"
LIBTPU = "libtpu 0.0.42's refusal of a program that is too large: the memory that a program gets"
DATASHEET = "NVIDIA's data sheet: peak without sparsity"
JAX_SHARE = "JAX takes 75 % of a GPU's memory, unless XLA_PYTHON_CLIENT_MEM_FRACTION says otherwise"
XLA_SPECS = "the device descriptions of XLA (xla/backends/gpu/target_config/specs): all else"


@dataclass(frozen=True)
class Chip:
    """A `Chip` is one kind of accelerator. All numbers are those of one device, as JAX counts them.

    Attributes:
        name: as this project and, for TPUs, the compiler call it.
        platform: tpu or gpu.
        memory_bytes: what one program gets.
        peak_flops: operations per second of products, by the arithmetic of a run: bfloat16, or
            float32 without TF32. A TPU multiplies float32 as six products of bfloat16.
        bytes_per_s: of the memory; None for the processor of this machine.
        clock_hz: in which the compiler counts the cycles of its estimate; None for a GPU, whose
            compiler has none.
        devices: JAX counts this many in one chip.
        counted_cores: the cloud counts so many for each chip in names such as v5p-8; 1 where it
            counts chips.
        slices: the shapes that the cloud has for so many chips.
        host_chips: in one machine.
        config_name: of libtpu, which makes one device of two cores.
        gpu: what XLA has to know of a GPU.
        source: where the facts are from.
    """

    name: str
    platform: str
    memory_bytes: int
    peak_flops: Mapping[str, float]
    bytes_per_s: float | None
    source: tuple[str, ...]
    clock_hz: float | None = None
    devices: int = 1
    counted_cores: int = 1
    slices: Mapping[int, str] = field(default_factory=dict)
    host_chips: int = 4
    config_name: str = "default"
    gpu: Mapping[str, float | int | str] = field(default_factory=dict)


# the sides of a slice; up to 8 chips of the flat ones are in one machine, otherwise 4
FLAT = {1: "1x1", 4: "2x2", 8: "2x4", 16: "4x4", 32: "4x8", 64: "8x8", 128: "8x16", 256: "16x16"}
CUBES = {
    4: "2x2x1", 8: "2x2x2", 16: "2x2x4", 32: "2x4x4", 64: "4x4x4", 128: "4x4x8", 256: "4x8x8",
    512: "8x8x8", 1024: "8x8x16", 2048: "8x16x16",
}  # fmt: skip


def _tpu(
    name: str, *, memory_gib: float, bf16: float, bytes_per_s: float, operations_per_cycle: int,
    slices: Mapping[int, str], devices: int = 1, counted_cores: int = 1,
    config_name: str = "default",
) -> Chip:  # fmt: skip
    """Return a TPU, whose clock is the peak over what its matrix units do in a cycle."""
    return Chip(
        name,
        "tpu",
        int(memory_gib * GIB),
        {"bfloat16": bf16, "float32": bf16 / 6},
        bytes_per_s,
        (TPU_DOCUMENTS, LIBTPU),
        clock_hz=bf16 / operations_per_cycle,
        devices=devices,
        counted_cores=counted_cores,
        slices=slices,
        config_name=config_name,
    )


def _gpu(
    name: str, described_as: str, *, bf16: float, float32: float, device_memory_size: int,
    bytes_per_s: float, core: Mapping[str, float],
) -> Chip:  # fmt: skip
    """Return a GPU, of whose memory JAX takes three quarters by default."""
    return Chip(
        name,
        "gpu",
        3 * device_memory_size // 4,
        {"bfloat16": bf16, "float32": float32},
        bytes_per_s,
        (DATASHEET, XLA_SPECS, JAX_SHARE),
        host_chips=8,
        gpu={"description": described_as, "device_memory_size": device_memory_size, **core},
    )


# a matrix unit of n x n does 2 n^2 operations in a cycle
_HOPPER = {
    "major": 9, "core_count": 132, "fpus_per_core": 128, "clock_rate_ghz": 1.98,
    "shared_memory_per_core": 233472, "shared_memory_per_block_optin": 232448,
    "l2_cache_size": 52428800,
}  # fmt: skip
_AMPERE = {
    "major": 8, "core_count": 108, "fpus_per_core": 64, "clock_rate_ghz": 1.41,
    "shared_memory_per_core": 167936, "shared_memory_per_block_optin": 166912,
    "l2_cache_size": 41943040,
}  # fmt: skip
_BLACKWELL = {
    "major": 10, "core_count": 148, "fpus_per_core": 128, "clock_rate_ghz": 1.965,
    "shared_memory_per_core": 233472, "shared_memory_per_block_optin": 232448,
    "l2_cache_size": 132644864,
}  # fmt: skip

CHIPS = {
    chip.name: chip
    for chip in (
        _tpu(
            "v4", memory_gib=30.75, bf16=275e12, bytes_per_s=1228e9,
            operations_per_cycle=8 * 2 * 128**2, counted_cores=2, slices=CUBES,
            config_name="megacore",
        ),
        _tpu(
            "v5e", memory_gib=15.75, bf16=197e12, bytes_per_s=819e9,
            operations_per_cycle=4 * 2 * 128**2, slices=FLAT,
        ),
        _tpu(
            "v5p", memory_gib=95.74, bf16=459e12, bytes_per_s=2765e9,
            operations_per_cycle=8 * 2 * 128**2, counted_cores=2, slices=CUBES,
            config_name="megacore",
        ),
        _tpu(
            "v6e", memory_gib=31.25, bf16=918e12, bytes_per_s=1638e9,
            operations_per_cycle=4 * 2 * 256**2, slices=FLAT,
        ),
        # JAX sees each of its two cores as a device, with half of the chip's memory
        _tpu(
            "tpu7x", memory_gib=94.75, bf16=2307e12 / 2, bytes_per_s=7380e9 / 2,
            operations_per_cycle=4 * 2 * 256**2, devices=2, counted_cores=2, slices=CUBES,
        ),
        _gpu(
            "a100", "NVIDIA A100-SXM4-40GB", bf16=312e12, float32=19.5e12,
            device_memory_size=42331013120, bytes_per_s=1555.2e9, core=_AMPERE,
        ),
        _gpu(
            "a100-80gb", "NVIDIA A100-SXM4-80GB", bf16=312e12, float32=19.5e12,
            device_memory_size=85100068864, bytes_per_s=2039.04e9, core=_AMPERE,
        ),
        _gpu(
            "h100", "NVIDIA H100 80GB HBM3", bf16=989.4e12, float32=66.9e12,
            device_memory_size=84942979072, bytes_per_s=3352.32e9, core=_HOPPER,
        ),
        _gpu(
            "h200", "NVIDIA H200 141GB HBM3e", bf16=989.4e12, float32=66.9e12,
            device_memory_size=151397597184, bytes_per_s=4800e9, core=_HOPPER,
        ),
        _gpu(
            "b200", "NVIDIA B200", bf16=2250e12, float32=75e12,
            device_memory_size=191514411008, bytes_per_s=7672.32e9, core=_BLACKWELL,
        ),
    )
}  # fmt: skip
"""The chips by their names."""
ALIASES = {"v5litepod": "v5e", "v5lite": "v5e", "v6": "v6e", "v7x": "tpu7x"}
"""Other names that people read somewhere."""


def describe_gpu(chip: Chip) -> str:
    """Return a GPU as a `GpuTargetConfigProto` in text, which XLA compiles for."""
    facts = dict(chip.gpu)
    major, described_as = facts.pop("major"), facts.pop("description")
    # these are the same for all of them
    facts |= {
        "threads_per_block_limit": 1024, "threads_per_warp": 32, "shared_memory_per_block": 49152,
        "threads_per_core_limit": 2048, "block_dim_limit_x": 2**31 - 1,
        "block_dim_limit_y": 65535, "block_dim_limit_z": 65535, "registers_per_core_limit": 65536,
        "registers_per_block_limit": 65536, "memory_bandwidth": int(chip.bytes_per_s or 0),
    }  # fmt: skip
    listed = " ".join(f"{name}: {value}" for name, value in facts.items())
    return (
        f"gpu_device_info {{ {listed} cuda_compute_capability {{ major: {major} minor: 0 }} }} "
        'platform_name: "CUDA" dnn_version_info { major: 9 minor: 8 patch: 0 } '
        "runtime_version { major: 12 minor: 8 patch: 0 } "
        f'device_description_str: "{described_as}"'
    )
