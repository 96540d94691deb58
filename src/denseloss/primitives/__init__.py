"""The few quantities that many losses share, defined in plain torch.

A loss is a formula over these; only these have fast versions (`denseloss.backend`). Each takes the
caller's tensors as they come (any float dtype, any integer labels, void pixels with any values
in them) and returns float32 (float64 for float64 input).
"""

from denseloss import backend


def _cpu() -> backend.Missing | None:
    from denseloss.primitives import on_cpu

    return on_cpu.missing


def _cuda() -> backend.Missing | None:
    from denseloss.primitives import on_cuda

    return on_cuda.missing


# Statements, not importlib: torch.compile runs these where it meets them.
backend.offer("cpu", _cpu)
backend.offer("cuda", _cuda)
