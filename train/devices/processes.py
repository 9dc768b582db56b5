"""Several processes of one run: they meet, agree, and exchange what each of them needs."""

import hashlib
import pickle
import socket
from functools import lru_cache
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding, PartitionSpec

from unet_spec.errors import ConfigError

from ..config import MeshConfig

Number = TypeVar("Number", bool, int, float)
T = TypeVar("T")

WAIT_S = 600  # for the slowest process to read its data, compile or validate


def join_processes(config: MeshConfig) -> None:
    """Join the processes of the run, before anything else of JAX is called.

    A cluster that knows coordinator and process (TPU pods, Slurm) is asked for them.

    Raises:
        ConfigError: the processes did not find each other, or are not as many as the config says.
    """
    if config.processes == 1:
        return
    if (config.coordinator is None) != (config.process is None):
        raise ConfigError(
            config,
            "{coordinator} and {process} belong together: give both, or neither where the cluster "
            "knows them",
        )
    by_hand = config.coordinator is not None
    if config.coordinator is not None and config.process == 0:
        _refuse_taken_port(config.coordinator)
    try:
        jax.distributed.initialize(
            coordinator_address=config.coordinator,
            num_processes=config.processes if by_hand else None,
            process_id=config.process,
            heartbeat_timeout_seconds=config.heartbeat_s,
        )
    except (RuntimeError, ValueError) as error:
        raise ConfigError(
            config,
            "the {count} processes did not find each other ({reason}); start all of them with the "
            "same {coordinator} and {processes}",
            count=config.processes,
            reason=" ".join(str(error).split())[:200],
        ) from error
    if jax.process_count() != config.processes:
        raise ConfigError(
            config,
            "{processes=}, but the cluster has {count}; give that number",
            count=jax.process_count(),
        )


def wait_for_all(name: str) -> None:
    """Wait until all processes are here, by way of the coordinator.

    They compile for unlike times, and an exchange between devices would wait too short or for ever.

    Raises:
        JaxRuntimeError: one did not come within `WAIT_S`.
    """
    if jax.process_count() == 1:
        return
    from orbax.checkpoint import multihost  # takes as long to import as a tenth of the start

    multihost.get_barrier_sync_fn()(key=name, timeout_ms=1000 * WAIT_S)


def is_first_process() -> bool:
    """Return whether this process writes the files of the run."""
    return jax.process_index() == 0


def broadcast_from_first(name: str, answer: Number) -> Number:
    """Return the answer of process 0, a bool, an int or a float, exactly, in all processes.

    Args:
        name: of the exchange; no other one may have it.
    """
    if jax.process_count() == 1:
        return answer
    wait_for_all(name)
    # as bits: JAX makes 32 bits of the 64 of a float
    bits = np.asarray([answer], np.float64).view(np.uint32)
    exact = np.asarray(multihost_utils.broadcast_one_to_all(bits)).view(np.float64)
    return type(answer)(exact[0])


def gather_objects(name: str, ours: T) -> list[T]:
    """Return the object of every process, in their order, in all processes.

    Args:
        name: of the exchange; no other one may have it.
        ours: plain values and arrays of this process.
    """
    if jax.process_count() == 1:
        return [ours]
    wait_for_all(name)
    content = np.frombuffer(pickle.dumps(ours), np.uint8)
    lengths = multihost_utils.process_allgather(np.asarray(len(content), np.int32))
    padded = np.zeros(int(lengths.max()), np.uint8)
    padded[: len(content)] = content
    contents = multihost_utils.process_allgather(padded)
    pairs = zip(contents, lengths, strict=True)
    return [pickle.loads(content[:length].tobytes()) for content, length in pairs]


def refuse_unlike_processes(identity: str) -> None:
    """Refuse processes that would not run the same.

    Args:
        identity: what this process would run.

    Raises:
        InputError: they differ.
    """
    if jax.process_count() == 1:
        return
    wait_for_all("identity")
    digest = np.frombuffer(hashlib.sha256(identity.encode()).digest(), np.uint8)
    digests = multihost_utils.process_allgather(digest)
    if unlike := [i for i, other in enumerate(digests) if (other != digests[0]).any()]:
        raise ConfigError(
            MeshConfig,
            "process {other} was not given what process 0 was: all need the same flags, but for "
            "{process}, and see the same images and masks",
            other=unlike[0],
        )


def was_preempted(step: int) -> bool:
    """Return whether any process was asked to stop; the answer is the same in all of them."""
    return multihost_utils.reached_preemption_sync_point(step)


def gather_to_host(tree: Any) -> Any:
    """Return the whole arrays on the host, in every process."""

    def whole(array: jax.Array) -> np.ndarray:
        if not array.is_fully_replicated:
            assert isinstance(array.sharding, NamedSharding)
            array = _replicate(array.sharding.mesh)(array)
        return np.asarray(array.addressable_data(0))

    return jax.tree.map(whole, tree)


@lru_cache(maxsize=8)
def _replicate(mesh: Any) -> Any:
    return jax.jit(lambda array: array, out_shardings=NamedSharding(mesh, PartitionSpec()))


def _refuse_taken_port(coordinator: str) -> None:
    """Refuse a port that something listens to: gRPC would end this process without a word."""
    port = int(coordinator.rsplit(":", 1)[1])
    try:
        with socket.socket() as trial:
            trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            trial.bind(("", port))
    except (OSError, OverflowError) as error:
        raise ConfigError(
            MeshConfig(coordinator=coordinator),
            "{coordinator=}: this process cannot listen to port {port} ({reason}); name another",
            port=port,
            reason=error,
        ) from error
