"""What JAX compiles is kept in the user's cache, for the next command."""

import os
import warnings
from pathlib import Path

LARGEST_MB = 1000  # of the cache; a training step takes 0.1 to 1 MB


def keep_compilations() -> None:
    """Let JAX keep what it compiles in the user's cache, and read it from there.

    It lies in the folder `JAX_COMPILATION_CACHE_DIR`, by default `unet-twins/jax` in
    `XDG_CACHE_HOME` or `~/.cache`. That default is made smaller than `LARGEST_MB` here; a folder
    that somebody else names is theirs. `JAX_ENABLE_COMPILATION_CACHE=false` switches it off.

    A cache that cannot be read or written costs time and nothing else, so nobody is told.
    """
    import jax

    warnings.filterwarnings("ignore", "Error (reading|writing) persistent compilation cache")
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        folder = find_cache("jax")
        remove_oldest(folder, largest_bytes=10**6 * LARGEST_MB)
        jax.config.update("jax_compilation_cache_dir", str(folder))
    if "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" not in os.environ:
        # JAX's default of 1 s leaves out the forward pass of most nets on a CPU
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)


def find_cache(name: str) -> Path:
    """Return the folder of this name among the user's caches, which need not exist."""
    home = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
    return home / "unet-twins" / name


def remove_oldest(folder: Path, *, largest_bytes: int) -> None:
    """Remove the files of a cache that were used least recently, down to half of a size above it.

    Another process may read, write and remove files there at the same time.
    """
    try:
        files = [(path.stat(), path) for path in folder.rglob("*") if path.is_file()]
        size = sum(status.st_size for status, _ in files)
        if size <= largest_bytes:
            return
        for status, path in sorted(files, key=lambda file: _last_use(file[0])):
            path.unlink(missing_ok=True)
            size -= status.st_size
            if size <= largest_bytes // 2:
                return
    except OSError:
        return  # it is gone, or somebody else's: the next start tries again


def _last_use(status: os.stat_result) -> float:
    """Return when a file was read or written last; many systems note a read once a day."""
    return max(status.st_atime, status.st_mtime)
