"""What the fast versions have to reach, and whether the rows at hand reach it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from benchmarks.measure import Row
from benchmarks.workloads import (
    CLASSES,
    F_CE,
    FLOOR,
    KORNIA,
    LOG_COSH,
    MASKS,
    MMDET,
    MONAI,
    OURS,
    OURS_FLOAT32,
    PLAIN,
    POLY1,
    PUBLISHED,
    RESIZED,
    RUNNING_SUMS,
    SMP,
    TORCHVISION,
    TWO_ENTROPIES,
    UNFOLD,
    WORKLOADS,
    compiled_name,
    named,
)

MEGA = 10**6


@dataclass(frozen=True)
class Gate:
    """A number that is wanted of one workload."""

    workload: str
    kind: str
    """speed (theirs over ours), time (ours over theirs), formula (theirs, a formula over our
    quantities, over ours), memory (peak extra over another size), megabytes, floor, us, launches"""
    wanted: float
    against: str = OURS
    dtype: str = "float32"

    @property
    def at_least(self) -> bool:
        return self.kind == "speed"

    def what(self) -> str:
        words = {
            "speed": f"faster than {self.against}",
            "time": f"time over that of {self.against}",
            "formula": f"{self.against}, time over that of ours",
            "memory": "peak extra over "
            + ("the gradient" if self.against == OURS else f"that of {self.against}"),
            "megabytes": "peak extra, MB",
            "floor": "over the floor",
            "us": "forward + backward, µs",
            "launches": "operators called",
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
        if self.kind in ("speed", "formula"):
            return theirs.ratio
        if self.kind == "time":
            return 1 / theirs.ratio if theirs.ratio else None
        if self.kind == "launches":
            return ours.launches
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
    yield from _large()
    yield from _small()
    yield from _tiny()
    for name, workload in WORKLOADS.items():
        if workload.size == "large":
            yield Gate(name, "speed", 1, OURS_FLOAT32, "bfloat16")
            # half, and a little for what does not shrink with the input
            yield Gate(name, "memory", 0.55, OURS_FLOAT32, "bfloat16")


def _gates(workload: str, kind: str, *pairs: tuple[str, float]) -> Iterable[Gate]:
    return (Gate(workload, kind, wanted, against) for against, wanted in pairs)


def _large() -> Iterable[Gate]:
    plain = compiled_name(PLAIN)
    yield from _gates("binary_focal", "speed", (TORCHVISION, 10), (plain, 3))
    yield Gate("binary_focal", "memory", 1.05)
    yield from _gates(
        "cross_entropy_dice", "speed", (MONAI, 6.5), (SMP, 10), (F_CE, 2.2), (plain, 2.5)
    )
    yield from _gates("cross_entropy_dice", "time", (FLOOR, 2))
    yield Gate("cross_entropy_dice", "memory", 1.05)
    yield from _gates("softmax_focal", "speed", (MONAI, 11), (KORNIA, 2.3))
    yield from _gates("structure", "speed", (PUBLISHED, 60), (RUNNING_SUMS, 4))
    for kind, wanted in (("labels", 12), ("dense", 8)):
        yield from _gates(f"det_focal_33600_{kind}", "speed", (TORCHVISION, wanted))
        yield from _gates(f"det_quality_focal_33600_{kind}", "speed", (MMDET, wanted))
        yield from _gates(f"det_varifocal_33600_{kind}", "speed", (MMDET, wanted))
    for loss in ("ciou", "giou", "diou"):
        yield from _gates(f"{loss}_1e5", "speed", (TORCHVISION, 15))
        yield from _gates(f"{loss}_1e6", "speed", (TORCHVISION, 15))
    yield from _gates("distribution_focal", "speed", (TWO_ENTROPIES, 6))
    yield from _gates("ncut_k20", "speed", (UNFOLD, 15))
    yield Gate("ncut_k20", "megabytes", 20)
    yield from _gates("upsampled_cross_entropy", "speed", (RESIZED, 6))
    yield Gate("upsampled_cross_entropy", "megabytes", 20)
    yield from _gates("upsampled_cross_entropy", "memory", (RESIZED, 0.1))
    for where in ("", "upsampled_"):
        yield from _gates(f"{where}cross_entropy", "formula", (POLY1, 1.2))
        yield from _gates(f"{where}cross_entropy_dice", "formula", (LOG_COSH, 1.2))


def _small() -> Iterable[Gate]:
    """What people train with."""
    for shape in CLASSES:
        size = named(shape)
        yield from _gates(f"small_cross_entropy_{size}", "time", (F_CE, 1))
        yield from _gates(f"small_cross_entropy_{size}", "formula", (POLY1, 1.2))
        both = f"small_cross_entropy_dice_{size}"
        yield from _gates(both, "speed", (MONAI, 3), (compiled_name(PLAIN), 1.3))
        yield from _gates(both, "time", (F_CE, 1.25))
        yield from _gates(both, "formula", (LOG_COSH, 1.2))
        if len(shape) == 4:
            yield from _gates(f"small_upsampled_cross_entropy_{size}", "formula", (POLY1, 1.2))
            both = f"small_upsampled_cross_entropy_dice_{size}"
            yield from _gates(both, "formula", (LOG_COSH, 1.2))
    for (images, side), wanted in zip(MASKS, (2.5, 3, 3), strict=True):
        size = named((images, 1, side, side))
        yield from _gates(f"small_binary_dice_bce_{size}", "speed", (MONAI, wanted))


def _tiny() -> Iterable[Gate]:
    """The cost of the calls, as multiples of one call of torch's own."""
    for loss, wanted in {
        "binary_cross_entropy": 2,
        "cross_entropy": 3.2,
        "binary_dice": 3.2,
        "dice": 4,
        "cross_entropy_dice": 6,
    }.items():
        yield from _gates(f"tiny_{loss}", "time", (F_CE, wanted))
    yield Gate("tiny_cross_entropy_dice", "launches", 12)
    yield Gate("tiny_binary_dice_bce", "launches", 12)


def _cuda() -> Iterable[Gate]:
    floors = {"P": 1.3, "B": 1.3, "S": 1.9}
    for name, workload in WORKLOADS.items():
        if workload.tiny:
            yield Gate(name, "us", 60)
        if workload.size != "large":
            continue
        if workload.family in floors:
            yield Gate(name, "floor", floors[workload.family])
        for peer in workload.peers:
            if peer.name.startswith(compiled_name("")):
                yield Gate(name, "speed", 1, peer.name)
    yield Gate("upsampled_cross_entropy", "speed", 5, RESIZED)
    yield Gate("upsampled_cross_entropy", "memory", 0.1, RESIZED)


GATES: dict[str, tuple[Gate, ...]] = {"cpu": tuple(_cpu()), "cuda": tuple(_cuda())}


def peers(device: str) -> dict[tuple[str, str], set[str]]:
    """Whom the gates compare with, by workload and dtype."""
    found: dict[tuple[str, str], set[str]] = {}
    for gate in GATES[device]:
        found.setdefault((gate.workload, gate.dtype), set()).add(gate.against)
    return found
