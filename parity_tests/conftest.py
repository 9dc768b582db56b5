"""A stricter world than the user's: shapes in signatures are checked, and there are 8 devices."""

import functools
import gc
import os
from dataclasses import replace

from unet_command.compilations import LARGEST_MB, find_cache, remove_oldest

DEVICES = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"

# tests measure what a process takes, and commands that they run must not change this process
os.environ["UNET_KEEP_FREED_MEMORY"] = "0"

# what one test, worker or subprocess has compiled, no other compiles again, nor the next run
WORKER = "PYTEST_XDIST_WORKER" in os.environ
if not WORKER:
    remove_oldest(find_cache("tests"), largest_bytes=10**6 * LARGEST_MB)
    os.environ["JAX_COMPILATION_CACHE_DIR"] = str(find_cache("tests"))
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.02"

import jax  # noqa: E402
import pytest  # noqa: E402
import torch  # noqa: E402
from hypothesis import settings  # noqa: E402

from parity_tests import strict  # noqa: E402
from parity_tests.compiling import AS_USERS, CHEAP_FLAGS  # noqa: E402

# XLA reads its flags once, with the first device: commands that tests start compile as for users
os.environ["XLA_FLAGS"] = f"{DEVICES} {CHEAP_FLAGS}"
jax.devices()
os.environ["XLA_FLAGS"] = DEVICES

# before anything of them is imported: the hook rewrites modules as they load. Configs are left out,
# because they check their own fields and the tests say how
CHECKED = {
    "unet_spec": (
        "fields", "files", "geometry", "judgement", "layout", "parameters", "prediction",
        "weight_file",
    ),
    "unet_train": ("augment", "losses", "metrics", "weight_map"),
}  # fmt: skip
strict.install(
    ["unet_torch", "unet_jax", "unet_parity"]
    + [f"{package}.{name}" for package, names in CHECKED.items() for name in names]
)

settings.register_profile("parity", deadline=None)
settings.load_profile("parity")

if WORKER:
    torch.set_num_threads(1)


def pytest_collection_finish():
    """Look for garbage less often, and never among what was imported: a tenth of the time."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(100_000, 50, 50)


@pytest.fixture(scope="module", autouse=True)
def forget_programs():
    """Keep no program of a module's tests: those of all took a worker 7 GB."""
    yield
    jax.clear_caches()


@pytest.fixture
def optimised(monkeypatch):
    """Compiles what is jitted in a test as it is compiled for users.

    XLA then computes a product and a sum with one rounding, for example, as it does not without
    its optimisations.
    """
    # JAX has no setting for the options of all compilations, and XLA reads its flags only once
    from jax._src import compiler

    plain = compiler.get_compile_options

    def options(**named):
        of_jit = named["env_options_overrides"] or {}
        return plain(**{**named, "env_options_overrides": {**AS_USERS, **of_jit}})

    monkeypatch.setattr(compiler, "get_compile_options", options)


@pytest.fixture(scope="session")
def run(tmp_path_factory):
    """(folder, result) of a training run that nobody disturbed."""
    from parity_tests.tiny import TINY, quiet
    from unet_train import loop

    folder = tmp_path_factory.mktemp("whole") / "run"
    return folder, loop.run(TINY, folder, progress=quiet(), command="unet train cells")


@pytest.fixture(scope="module")
def compiled_once():
    """Training runs of one config share what the first of them has traced and compiled.

    It is for tests of what surrounds the step: to trace it is most of what a tiny run costs.
    """
    from unet_train import loop
    from unet_train.step import compile_steps

    compile_first = functools.cache(compile_steps)

    def compile_or_take(config, placement):
        # no step reads where images lie, nor what happens between steps
        data = replace(config.data, images=None, masks=None)
        between = {"validate_every": 1, "checkpoint_every": 1, "keep": 1, "patience": None}
        return compile_first(replace(config, data=data, **between), placement)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "compile_steps", compile_or_take)
        yield


def pytest_terminal_summary(terminalreporter) -> None:
    from parity_tests import shown

    terminalreporter.section("what is shown to people")
    for line in shown.count_blocks():
        terminalreporter.write_line(line)
