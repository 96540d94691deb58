"""The compiled kernels of this machine: found, checked and loaded.

setup.py compiles them into shared objects beside this file, one for each width of vector
registers. They have a plain C ABI and are called through ctypes. They need libgomp.so.1, the OpenMP
runtime that torch has loaded under that name before: both share one pool of threads.
"""

from __future__ import annotations

import ctypes
import functools
import os
import platform
from pathlib import Path

import torch

__all__ = ["ABI", "Unavailable", "load"]

# What the functions in the object take and return. Counted up, here and in kernels.c, by every
# change of a signature: an object from an older install is then refused instead of called wrongly.
ABI = 2

FOLDER = Path(__file__).parent
VARIABLE = "DENSELOSS_KERNELS"  # the path of an object to load instead, for the sanitizers


class Unavailable(RuntimeError):  # noqa: N818 - a state of the machine, no slip of the user
    """There are no compiled kernels for this machine; the message says why."""

    def __init__(self, why: str, *, mendable: bool = False) -> None:
        super().__init__(why)
        self.mendable = mendable  # whether the user can have them, as the message then says


@functools.cache
def load() -> ctypes.CDLL:
    """The kernels of this machine.

    Raises:
        Unavailable: the CPU is too old, nothing was compiled, or what there is cannot be used.
    """
    path = find()
    try:
        library = ctypes.CDLL(str(path))
    except OSError as error:
        cure = mend()
        if "libgomp" in str(error):  # on ARM torch before 2.10 brings it under another name
            cure = "Install the OpenMP runtime (apt install libgomp1) or torch 2.10 or newer."
        why = f"the compiled kernels do not load: {error}. {cure}"
        raise Unavailable(why, mendable=True) from error
    try:
        abi: int | None = library.denseloss_abi()
    except AttributeError:
        abi = None
    if abi != ABI:
        raise Unavailable(
            f"{path} is from another version of denseloss (its ABI is {abi}, not {ABI}). {mend()}",
            mendable=True,
        )
    return library


def find() -> Path:
    """The object for this machine."""
    if chosen := os.environ.get(VARIABLE):
        return Path(chosen).absolute()  # else dlopen searches a bare name elsewhere
    names = fitting()
    for name in names:
        if (FOLDER / name).exists():
            return FOLDER / name
    raise Unavailable(
        f"denseloss was installed without compiled kernels ({' or '.join(names)} in {FOLDER}). "
        f"{mend()}",
        mendable=True,
    )


def fitting() -> list[str]:
    """The names of the objects that this CPU can run, the best first."""
    machine = platform.machine()
    if os.name != "posix":
        raise Unavailable("there are no compiled kernels for Windows; the plain torch versions run")
    if machine in ("aarch64", "arm64"):
        return ["kernels_aarch64.so"]
    # Torch's own answer, not the CPU's: ATEN_CPU_CAPABILITY then lowers both.
    capability = torch.backends.cpu.get_cpu_capability() if machine == "x86_64" else machine
    if capability.startswith("AVX512"):
        return ["kernels_v4.so", "kernels_v3.so"]
    if capability.startswith("AVX2"):
        return ["kernels_v3.so"]
    raise Unavailable(
        "the compiled kernels need an x86-64 CPU with AVX2 or a 64-bit ARM one, torch reports "
        f"{capability} (ATEN_CPU_CAPABILITY can lower that); the plain torch versions run"
    )


def mend() -> str:
    """What to do where the kernels are missing or do not fit."""
    if os.environ.get(VARIABLE):
        return f"The environment variable {VARIABLE} names it: unset that, or build it again."
    return (
        "The plain torch versions run instead. For the fast ones install a C compiler (gcc or "
        "clang) and reinstall denseloss (in its folder: pip install --force-reinstall --no-deps . "
        "or make setup)."
    )
