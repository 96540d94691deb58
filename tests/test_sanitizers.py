"""The C kernels under AddressSanitizer and UndefinedBehaviorSanitizer: `make test-all` runs them.

The C file is compiled once more, with both sanitizers, and the tests of the kernels run on that
object. ASan must be in the process before anything else, so they run in one that preloads it.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from denseloss.primitives.cpu import library

ROOT = Path(__file__).parents[1]
KERNELS = ROOT / "src" / "denseloss" / "primitives" / "cpu" / "kernels.c"
FLAGS = [
    *("-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-fno-omit-frame-pointer"),
    *("-O1", "-g", "-std=c11", "-fPIC", "-shared", "-fopenmp", "-fvisibility=hidden"),
    *("-fno-math-errno", "-fno-trapping-math", "-fno-signed-zeros"),
]

MISTAKES = """
#include <limits.h>
#include <stdint.h>
#define EXPORT __attribute__((visibility("default")))
EXPORT int denseloss_abi(void) { return ABI; }
EXPORT void write_at(float *x, int64_t i) {
#pragma omp parallel for num_threads(2)
    for (int64_t j = i; j <= i; j++) x[j] = 1;
}
EXPORT float read_at(const float *x, int64_t i) { return x[i]; }
EXPORT int add(int x, int y) { return x + y; }
EXPORT float unaligned(const char *x) { return *(const float *)(x + 1); }
""".replace("ABI", str(library.ABI))

SCRIPT = """
import ctypes, sys, torch
from denseloss.primitives.cpu import library

kernels = library.load()
kernels.read_at.restype = ctypes.c_float
kernels.read_at.argtypes = kernels.write_at.argtypes = [ctypes.c_void_p, ctypes.c_int64]
kernels.unaligned.argtypes = [ctypes.c_void_p]
x = torch.zeros(1000)
kernels.write_at(x.data_ptr(), 999)
assert x[999] == 1 == kernels.read_at(x.data_ptr(), 999)
try:
    torch.zeros(2) + torch.zeros(3)
except RuntimeError:
    pass  # exceptions of C++ still arrive
print("the correct calls are through", flush=True)
exec(sys.argv[1])
print("not caught")
"""


def gcc() -> str:
    """A compiler with its sanitizers, or skip."""
    command = shutil.which("gcc")
    if sys.platform != "linux" or command is None:
        pytest.skip("needs Linux and gcc")
    if not Path(library_of(command, "libasan.so")).is_absolute():
        pytest.skip("gcc has no libasan here (apt install libasan8, dnf install libasan)")
    return command


def library_of(command: str, name: str) -> str:
    call = [command, f"-print-file-name={name}"]
    return subprocess.run(call, capture_output=True, text=True, check=True).stdout.strip()


def sanitized(source: Path, folder: Path) -> Path:
    """The object of a C file, compiled with the sanitizers for the registers of this CPU."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("ATEN_CPU_CAPABILITY", raising=False)
        try:
            level = library.fitting()[0]
        except library.Unavailable as error:
            pytest.skip(str(error))
    march = {"kernels_v4.so": "x86-64-v4", "kernels_v3.so": "x86-64-v3"}.get(level, "armv8-a")
    target = folder / "kernels.so"
    call = [gcc(), *FLAGS, f"-march={march}", "-o", str(target), str(source), "-lm"]
    done = subprocess.run(call, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return target


def run(kernels: Path, *arguments: str, timeout: float) -> subprocess.CompletedProcess[str]:
    """Run Python with the sanitizers and these kernels; what they report is in its output."""
    # without libstdc++, ASan finds no function to throw C++ exceptions with when torch does
    preload = " ".join(library_of(gcc(), name) for name in ("libasan.so", "libstdc++.so.6"))
    environment = {
        **os.environ,
        "LD_PRELOAD": preload,
        "ASAN_OPTIONS": "detect_leaks=0:halt_on_error=1",  # Python itself leaks, at exit
        "UBSAN_OPTIONS": "halt_on_error=1:print_stacktrace=1",
        "PYTHONMALLOC": "malloc",
        "OMP_NUM_THREADS": "2",
        library.VARIABLE: str(kernels),
    }
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        timeout=timeout,
    )


@pytest.fixture(scope="module")
def mistakes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("mistakes")
    source = folder / "mistakes.c"
    source.write_text(MISTAKES)
    return sanitized(source, folder)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("call", "report"),
    [
        ("kernels.write_at(x.data_ptr(), 1000)", "AddressSanitizer: heap-buffer-overflow"),
        ("kernels.read_at(x.data_ptr(), -1)", "AddressSanitizer: heap-buffer-overflow"),
        ("p = x.data_ptr(); del x; kernels.read_at(p, 0)", "AddressSanitizer: heap-use-after-free"),
        ("kernels.add(2**31 - 1, 1)", "runtime error: signed integer overflow"),
        ("kernels.unaligned(x.data_ptr())", "runtime error: load of misaligned address"),
    ],
)
def test_the_sanitizers_catch_mistakes(mistakes: Path, call: str, report: str) -> None:
    done = run(mistakes, "-c", SCRIPT, call, timeout=120)
    assert "the correct calls are through" in done.stdout, done.stdout
    assert done.returncode != 0
    assert report in done.stdout
    assert "mistakes.c:" in done.stdout
    assert "not caught" not in done.stdout


@pytest.mark.slow
def test_the_kernels_are_clean(tmp_path: Path) -> None:
    kernels = sanitized(KERNELS, tmp_path)
    loads = "from denseloss.primitives.cpu import library; print(library.load()._name)"
    assert run(kernels, "-c", loads, timeout=120).stdout.strip() == str(kernels)
    # uncaptured: a report is written by the process that it ends
    tests = ["tests/test_backends.py", "-x", "-q", "-s", "-m", "not slow", "-p", "no:faulthandler"]
    done = run(kernels, "-m", "pytest", *tests, timeout=3000)
    report = done.stdout[-6000:]
    assert done.returncode == 0, report
    assert "Sanitizer" not in done.stdout, report
    assert "runtime error:" not in done.stdout, report
    assert re.search(r"\d+ passed", done.stdout), report
