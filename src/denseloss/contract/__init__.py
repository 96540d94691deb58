"""What a loss accepts, stated once: in the annotations of its signature.

An annotation such as ``logits: Logits`` is read by three readers. A person sees the shape. The
call is checked against it (`checked`): a wrong shape or dtype raises an error that names the
function, the argument, what was expected and what came. And `denseloss.testing.example` draws valid
inputs from it, for tests, benchmarks and documentation.

`notation` is the language of shapes, `kinds` what is written in it, `check` what reads it, `texts`
what is said of arguments that many losses share. Values are never read: a check costs a few
microseconds (about one where the same was checked before), it never synchronises, and it never
breaks a graph.
"""

from denseloss.contract.check import Argument, arguments, checked, kinds, nearest
from denseloss.contract.kinds import (
    Absent,
    Bins,
    BinTarget,
    Boxes,
    BoxWeight,
    ClassLogits,
    ClassMap,
    ClassWeight,
    Count,
    ElementWeight,
    Image,
    Interval,
    Kind,
    Labels,
    Logits,
    Masks,
    MasksAlone,
    NonNegative,
    Odd,
    PixelWeight,
    Pool,
    Positive,
    PosWeight,
    Quality,
    Reduction,
    Scores,
    ScoreWeight,
    SegmentLogits,
    Share,
    TargetBoxes,
    TrainedBins,
)
from denseloss.contract.notation import Form, Sizes, describe

__all__ = [
    "Absent",
    "Argument",
    "BinTarget",
    "Bins",
    "BoxWeight",
    "Boxes",
    "ClassLogits",
    "ClassMap",
    "ClassWeight",
    "Count",
    "ElementWeight",
    "Form",
    "Image",
    "Interval",
    "Kind",
    "Labels",
    "Logits",
    "Masks",
    "MasksAlone",
    "NonNegative",
    "Odd",
    "PixelWeight",
    "Pool",
    "PosWeight",
    "Positive",
    "Quality",
    "Reduction",
    "ScoreWeight",
    "Scores",
    "SegmentLogits",
    "Share",
    "Sizes",
    "TargetBoxes",
    "TrainedBins",
    "arguments",
    "checked",
    "describe",
    "kinds",
    "nearest",
]
