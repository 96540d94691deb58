"""The few quantities that many losses share, defined in plain torch.

A loss is a formula over these; only these have fast versions (`denseloss.backend`). Each takes the
caller's tensors as they come (any float dtype, any integer labels, void pixels with any values
in them) and returns float32 (float64 for float64 input).
"""

from denseloss import backend


def _cpu() -> None:
    import denseloss.primitives.cpu.operators  # noqa: F401 - offers them


def _cuda() -> None:
    import denseloss.primitives.cuda  # noqa: F401 - offers them


# Statements, not importlib: torch.compile runs these where it meets them.
backend.offer("cpu", _cpu)
backend.offer("cuda", _cuda)
