"""A stricter world than the user's: shapes in signatures are checked, and there are 8 devices."""

import os

os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
)

import torch
from hypothesis import settings
from jaxtyping import install_import_hook

import parity_tests.strict

# before anything of them is imported: the hook rewrites modules as they load. `config` and
# `preprocessing` are left out, because they check their own fields and the tests say how
CHECKED = ("fields", "files", "geometry", "layout", "parameters", "prediction", "weight_file")
install_import_hook(
    ["unet_torch", "unet_jax", "unet_parity", *(f"unet_spec.{name}" for name in CHECKED)],
    f"{parity_tests.strict.__name__}.typechecked",
)

settings.register_profile("parity", deadline=None)
settings.load_profile("parity")

if "PYTEST_XDIST_WORKER" in os.environ:
    torch.set_num_threads(1)
