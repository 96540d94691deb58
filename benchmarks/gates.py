"""What the fast versions have to reach, and whether the rows at hand reach it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from benchmarks.measure import Row
from benchmarks.workloads import (
    F_CE,
    KORNIA,
    MMDET,
    MONAI,
    OURS,
    OURS_FLOAT32,
    PLAIN,
    PUBLISHED,
    RESIZED,
    RUNNING_SUMS,
    SMP,
    TORCHVISION,
    TWO_ENTROPIES,
    UNFOLD,
    WORKLOADS,
    compiled_name,
)

MEGA = 10**6


@dataclass(frozen=True)
class Gate:
    """A number that is wanted of one workload."""

    workload: str
    kind: str
    """speed (theirs over ours), memory (peak extra over another size), megabytes, floor, us"""
    wanted: float
    against: str = OURS
    dtype: str = "float32"

    @property
    def at_least(self) -> bool:
        return self.kind == "speed"

    def what(self) -> str:
        words = {
            "speed": f"faster than {self.against}",
            "memory": "peak extra over "
            + ("the gradient" if self.against == OURS else f"that of {self.against}"),
            "megabytes": "peak extra, MB",
            "floor": "over the floor",
            "us": "forward + backward, µs",
        }
        return words[self.kind]

    def compared(self, rows: Sequence[Row]) -> list[Row]:
        """Ours, and the other if there is one."""
        mine = {r.provider: r for r in rows if (r.workload, r.dtype) == (self.workload, self.dtype)}
        return [mine[name] for name in dict.fromkeys((OURS, self.against)) if name in mine]

    def measured(self, rows: Sequence[Row]) -> float | None:
        """The number, None where it was not measured."""
        found = self.compared(rows)
        if len(found) < len({OURS, self.against}) or found[0].status != "ok":
            return None
        ours, theirs = found[0], found[-1]
        if self.kind == "speed":
            return theirs.ratio
        if self.kind == "floor":
            return ours.floor
        if self.kind == "us":
            return ours.median * 1e3 if ours.median is not None else None
        if ours.peak_extra is None:
            return None
        if self.kind == "megabytes":
            return ours.peak_extra / MEGA
        if self.against == OURS:
            return ours.peak_ratio
        return ours.peak_extra / theirs.peak_extra if theirs.peak_extra else None

    def met(self, measured: float) -> bool:
        return measured >= self.wanted if self.at_least else measured <= self.wanted


def _cpu() -> Iterable[Gate]:
    def speeds(workload: str, *pairs: tuple[str, float]) -> Iterable[Gate]:
        return (Gate(workload, "speed", wanted, against) for against, wanted in pairs)

    plain = compiled_name(PLAIN)
    yield from speeds("binary_focal", (TORCHVISION, 10), (plain, 3))
    yield Gate("binary_focal", "memory", 1.05)
    yield from speeds("cross_entropy_dice", (MONAI, 5), (SMP, 10), (F_CE, 1.8), (plain, 2.5))
    yield Gate("cross_entropy_dice", "memory", 1.05)
    yield from speeds("softmax_focal", (MONAI, 8), (KORNIA, 2.3))
    yield from speeds("structure", (PUBLISHED, 60), (RUNNING_SUMS, 4))
    for kind, wanted in (("labels", 12), ("dense", 8)):
        yield from speeds(f"det_focal_33600_{kind}", (TORCHVISION, wanted))
        yield from speeds(f"det_quality_focal_33600_{kind}", (MMDET, wanted))
        yield from speeds(f"det_varifocal_33600_{kind}", (MMDET, wanted))
    for loss in ("ciou", "giou", "diou"):
        yield from speeds(f"{loss}_1e5", (TORCHVISION, 10))
        yield from speeds(f"{loss}_1e6", (TORCHVISION, 15))
    yield from speeds("distribution_focal", (TWO_ENTROPIES, 6))
    yield from speeds("ncut_k20", (UNFOLD, 15))
    yield Gate("ncut_k20", "megabytes", 20)
    yield from speeds("upsampled_cross_entropy", (RESIZED, 6))
    yield Gate("upsampled_cross_entropy", "megabytes", 6)
    for name, workload in WORKLOADS.items():
        yield Gate(name, "speed", 1, OURS_FLOAT32, "bfloat16")
        if not workload.tiny:
            # half, and a little for what does not shrink with the input
            yield Gate(name, "memory", 0.55, OURS_FLOAT32, "bfloat16")
        else:
            yield Gate(name, "us", 40)


def _cuda() -> Iterable[Gate]:
    floors = {"P": 1.3, "B": 1.3, "S": 1.9}
    for name, workload in WORKLOADS.items():
        if workload.tiny:
            yield Gate(name, "us", 60)
            continue
        if workload.family in floors:
            yield Gate(name, "floor", floors[workload.family])
        for peer in workload.peers:
            if peer.name.startswith(compiled_name("")):
                yield Gate(name, "speed", 1, peer.name)
    yield Gate("upsampled_cross_entropy", "speed", 5, RESIZED)
    yield Gate("upsampled_cross_entropy", "memory", 0.1, RESIZED)


GATES: dict[str, tuple[Gate, ...]] = {"cpu": tuple(_cpu()), "cuda": tuple(_cuda())}
