"""Run a file of cases in Triton's interpreter, without a GPU."""

import os
import subprocess
import sys
from pathlib import Path


def passes(cases: str) -> None:
    """In a process of its own: triton reads TRITON_INTERPRET when a kernel is defined.

    Without the conftest, which loads the operators in C: those in Triton are the CPU's here.
    """
    tests = Path(__file__).parent
    options = ["-q", "--noconftest", "-W", "ignore::RuntimeWarning"]  # numpy's, of inf and NaN
    options += ["-W", "ignore:Conversion of an array with ndim:DeprecationWarning"]  # Triton 3.2's
    run = subprocess.run(
        [sys.executable, "-m", "pytest", *options, tests / cases],
        cwd=tests.parent,
        env=os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stdout + run.stderr
