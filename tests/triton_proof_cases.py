"""The Triton operators prove themselves as on a GPU: on small inputs, at the first call of a kind.

`test_proof` runs this in a process of its own, where TRITON_INTERPRET is set.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

from denseloss import backend
from denseloss import functional as F
from denseloss.compose import parse
from denseloss.primitives import fused
from denseloss.primitives.fused import VERSIONS, ops, proof


def _triton() -> None:
    import denseloss.primitives.cuda  # noqa: F401 - under the interpreter it is for the CPU

    fused.register("cpu", measured=False)


backend.offer("cpu", _triton)

Z, T, M = torch.randn(1, 2, 3, 3), torch.zeros(1, 3, 3, dtype=torch.int64), torch.ones(1, 2, 3, 3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_right_operators_are_used(dtype: torch.dtype) -> None:
    z = Z.to(dtype)
    for ran in (
        backend.which(parse("cross_entropy + dice"), z, T),
        backend.which(F.binary_focal_loss, z, M),
        backend.which(F.structure_loss, z, M, window=3),
        backend.which(F.ciou_loss, z.new_ones(2, 4), torch.ones(2, 4)),
        backend.which(F.distribution_focal_loss, z[0], torch.ones(2, 3)),
    ):
        assert set(ran.values()) == {"cpu"}, ran
    compared = {key[0] for key, verdict in proof._verdicts.items() if key[1] == dtype}
    assert {"softmax_pass", "element_loss", "edge_sums", "box_loss", "bin_loss"} <= compared
    assert not any(proof._verdicts.values())


def test_a_wrong_operator_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if the kernel of a gradient were wrong on this device, in one column of sums."""
    monkeypatch.setattr(proof, "_verdicts", {})
    monkeypatch.setattr(proof, "_tried", set())
    right = ops._direct["cpu"]["softmax_backward"]

    def wrong(*args: Any) -> Any:
        return 1.01 * right(*args)

    monkeypatch.setitem(ops._direct["cpu"], "softmax_backward", wrong)
    with pytest.warns(
        UserWarning, match="softmax_pass for float32 .* its gradient is off by"
    ) as said:
        ran = backend.which(F.cross_entropy_loss, Z, T)
    # The interpreter of Triton 3.2 warns, too, of numpy's ways.
    assert len([one for one in said if "softmax_pass" in str(one.message)]) == 1
    assert ran["softmax_pass"].startswith("reference: its gradient is off by")
    assert set(VERSIONS) >= set(ran)
