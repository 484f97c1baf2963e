"""Peak memory of an epoch, and what to lower where memory runs out."""

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path

import torch

from Data_loader.Data_loader_facenet_mask import num_processes
from Script_tools.files import DataError

# what torch says where an allocation failed: the CPU's allocator on Windows, on Linux; cuBLAS and cuDNN; the driver;
# and where each of cuDNN's ways to convolve has failed for want of memory, which is not told apart
SIGNS = ("not enough memory", "can't allocate memory", "ALLOC_FAILED", "out of memory", "unable to find an engine")


def reset_peak_memory(device: torch.device) -> None:
    """Begin a new measurement for ``peak_memory_mb``."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    else:
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")  # Linux: the process's peak becomes its present size


def peak_memory_mb(device: torch.device) -> float:
    """Peak memory in MB since ``reset_peak_memory``: of the GPU's tensors, or on the CPU of this process.

    Loader processes are not counted. Where the system cannot begin anew (not Linux), since the process began; NaN on
    Windows.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    with contextlib.suppress(OSError):
        status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
        if "VmHWM" in status:
            return int(status["VmHWM"].split()[0]) / 2**10
    try:
        import resource
    except ImportError:  # Windows
        return float("nan")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10


@contextlib.contextmanager
def memory_advice(config: dict) -> Iterator[None]:
    """Turn an out-of-memory error inside the block into a DataError that names the settings to change.

    So too the death of a loader process, which the system kills where memory or shared memory runs out.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:  # torch.OutOfMemoryError is a RuntimeError
        if str(error).startswith("DataLoader worker"):
            raise DataError(
                f"A process that loads images was ended from outside ({str(error).splitlines()[0]:.200}). Mostly "
                "memory ran out, or shared memory (/dev/shm; in a container see its --shm-size): lower num_workers "
                f"({num_processes(config)}), then go on with --resume."
            ) from error
        ran_out = isinstance(error, (torch.OutOfMemoryError, MemoryError))
        if not (ran_out or any(sign in str(error) for sign in SIGNS)):
            raise
        checkpointing = config["activation_checkpointing"]
        more = "" if checkpointing else ", set activation_checkpointing = True (slower, much less memory)"
        raise DataError(
            f"Memory ran out ({str(error).splitlines()[0] if str(error) else 'MemoryError':.200}). Lower "
            f"train_batch_size ({config['train_batch_size']} triplets){more}, lower image_size "
            f"({config['image_size']} px) or take a shallower model ({config['model']}); if it happened while "
            f"validating, lower test_batch_size ({config['test_batch_size']})."
        ) from error
