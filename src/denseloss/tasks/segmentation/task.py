"""The segmentation task: which of this folder's parts answers what."""

import hashlib
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from denseloss.compose import WeightedSum
from denseloss.data.samples import VOID, Sample, evenly
from denseloss.data.transforms import denormalise
from denseloss.report.sections import Section
from denseloss.tasks import pretrained
from denseloss.tasks.evidence import Evidence
from denseloss.tasks.scores import Additive, Metric, Pooling
from denseloss.tasks.segmentation import cases, gradient_maps, measure, predict, tiles
from denseloss.tasks.segmentation.check import SegmentationReport, check_data
from denseloss.tasks.segmentation.criterion import SegmentationCriterion, at_size, decided
from denseloss.tasks.segmentation.data import SegmentationData, open_data
from denseloss.tasks.segmentation.dataset import SegmentationDataset
from denseloss.tasks.segmentation.details import SegmentationDetails, details
from denseloss.tasks.segmentation.fingerprint import fingerprint
from denseloss.tasks.segmentation.measure import METRICS, Measured, overlap_scores
from denseloss.tasks.segmentation.network import (
    Segmenter,
    build_model,
    load_encoder,
    of_the_user,
    try_out,
)
from denseloss.tasks.segmentation.pictures import Sampled, draw_samples
from denseloss.tasks.segmentation.recommend import recommended
from denseloss.tasks.segmentation.sections import sections
from denseloss.tasks.task import (
    Candidate,
    Defaults,
    Finished,
    Items,
    Progress,
    Split,
    SplitSummary,
    Task,
    Trained,
)

# Measured on budgets of some hundred steps. Instance norm makes DynUNet indifferent to the scale of
# its weights, so that it takes, and needs, large steps.
_LR = {"dynunet": 5e-3, "smp": 2e-3}
# Of a network that nobody here has seen: AdamW's own.
_LR_OF_OTHERS = 1e-3
_SAMPLES = 5


@dataclass(frozen=True, kw_only=True)
class SegmentationSettings:
    """What only segmentation asks.

    Attributes:
        mode: What the masks mean; auto looks.
        classes: How many classes there are, or their names with commas, background first.
        ignore_index: Mask value of the pixels that do not count.
        images: Where the images are, if they are not found by looking: a folder, or a glob with one
            * for what an image and its mask share, such as 'img/*.jpg'.
        masks: Where the masks are, in the same way, such as 'ann/*_seg.png'.
        skip_unlabelled: Leave out images without a mask.
        deep_supervision: Let dynunet predict at smaller sizes, too, while it trains.
    """

    mode: Literal["auto", "binary", "multiclass"] = "auto"
    classes: str | None = None
    ignore_index: int | None = None
    images: str | None = None
    masks: str | None = None
    skip_unlabelled: bool = False
    deep_supervision: bool = False

    def as_asked(self) -> dict[str, Any]:
        """Return what `open_data` and `check_data` take of it."""
        text = self.classes
        classes: int | tuple[str, ...] | None = None
        if text is not None:
            names = tuple(part.strip() for part in text.split(","))
            classes = int(text) if text.strip().isdecimal() else names
        return {
            "mode": None if self.mode == "auto" else self.mode,
            "classes": classes,
            "ignore_index": self.ignore_index,
            "images": self.images,
            "masks": self.masks,
            "skip_unlabelled": self.skip_unlabelled,
        }


class Segmentation(Task):
    """Images with a class for every pixel."""

    name = "segmentation"
    metrics = METRICS
    defaults = Defaults(loss="cross_entropy + dice", model="dynunet", lr=_LR["dynunet"])
    settings = SegmentationSettings
    part = "class"

    # ------------------------------------------------------------------------------- data

    def place(self, options: SegmentationSettings) -> str | None:
        """Return the folder that `--images` and `--masks` have in common."""
        if options.images is None or options.masks is None:
            return None
        ends = [Path(side.partition("*")[0]) for side in (options.images, options.masks)]
        return os.path.commonpath([end.expanduser().absolute() for end in ends])

    def open(
        self,
        where: str,
        options: SegmentationSettings,
        *,
        split: Split,
        progress: Progress | None = None,
    ) -> SegmentationData:
        """Open images and masks."""
        return open_data(
            where,
            **options.as_asked(),
            seed=split.seed,
            val_share=split.val_share,
            test_share=split.test_share,
            progress=progress,
        )

    def check(
        self, where: str, options: SegmentationSettings, *, progress: Progress | None = None
    ) -> SegmentationReport:
        """Look at every image and mask."""
        return check_data(where, **options.as_asked(), progress=progress)

    def facts(self, data: SegmentationData) -> dict[str, Any]:
        """Return the classes, what they are in the masks, and how images are read."""
        return predict.facts(data)

    def digest(self, data: SegmentationData) -> str:
        """Return what changes with the images there are, their split and what the masks say.

        Of an image it takes the size of the file: to read them all would take as long as an epoch.
        """
        digest = hashlib.blake2b(digest_size=8)
        for split in (data.train, data.val, data.test):
            digest.update(f"{len(split)}\n".encode())
            for sample in split:
                size = sample.image.stat().st_size if sample.image is not None else 0
                mask = data.digests.get(sample.name, "")
                digest.update(f"{sample.name}\n{size}\n{mask}\n".encode())
        return digest.hexdigest()

    def dataset(
        self,
        data: SegmentationData,
        samples: Sequence[Sample],
        *,
        size: int,
        train: bool,
        seed: int,
    ) -> Items:
        """Return images and masks."""
        return SegmentationDataset(data, samples, size=size, train=train, seed=seed)

    # --------------------------------------------------------------------------- training

    def learning_rate(self, model: str) -> float:
        """Return what the family of the network needs."""
        if of_the_user(model):
            return _LR_OF_OTHERS
        return _LR.get(model.partition(":")[0], self.defaults.lr)

    def network(
        self,
        model: str,
        data: SegmentationData,
        criterion: SegmentationCriterion,
        options: SegmentationSettings,
    ) -> Segmenter:
        """Build DynUNet, one of segmentation-models-pytorch, or the user's own."""
        del data
        return build_model(
            model,
            num_outputs=criterion.num_outputs,
            deep_supervision=options.deep_supervision,
        )

    def pretrain(self, network: nn.Module, weights: str, *, model: str) -> tuple[str, ...]:
        """Load the weights of a file, or of an encoder of segmentation-models-pytorch."""
        assert isinstance(network, Segmenter)
        if pretrained.is_file(weights):
            return pretrained.load_file(network, weights)
        return load_encoder(network, model, weights)

    def try_out(
        self,
        network: nn.Module,
        data: SegmentationData,
        criterion: SegmentationCriterion,
        *,
        model: str,
        size: int,
    ) -> tuple[str, ...]:
        """Try a network of the user's own; say how large images are predicted."""
        sizes = [(height, width) for width, height in data.sizes]
        if of_the_user(model):
            assert isinstance(network, Segmenter)
            small = [s for s in sizes if not tiles.is_large(s)] or [(tiles.TILE, tiles.TILE)]
            # One that differs from what was trained on, where there is one: some networks take a
            # single size.
            image = min(small, key=lambda s: (s == (size, size), s[0] * s[1]))
            outputs = criterion.num_outputs
            try_out(network, model, num_outputs=outputs, square=size, image=image)
        large = sum(count for (w, h), count in data.sizes.items() if tiles.is_large((h, w)))
        if not large:
            return ()
        return (f"tiles: {tiles.RULE}: {large} of {sum(data.sizes.values())} here",)

    def criterion(self, weighted_sum: WeightedSum, data: SegmentationData) -> SegmentationCriterion:
        """Return the loss as the masks need it."""
        return SegmentationCriterion(
            weighted_sum,
            mode=data.mode,
            num_classes=data.num_classes,
            has_void=_has_void(data),
        )

    def meter(self, data: SegmentationData) -> nn.Module:
        """Return the overlap scores of a split, pooled over its pixels."""
        from denseloss.tasks.segmentation.meter import OverlapMeter  # torchmetrics takes seconds

        return OverlapMeter(data)

    def example(
        self,
        data: SegmentationData,
        criterion: SegmentationCriterion,
        *,
        batch_size: int,
        size: int,
        model: str,
        options: SegmentationSettings,
    ) -> tuple[list[Tensor], dict[str, Tensor]]:
        """Return logits that are mostly right on smooth regions of each class."""
        del model, options
        return made_up((batch_size, criterion.num_outputs, size, size), shares=data.class_share)

    def outputs(self, criterion: SegmentationCriterion) -> dict[str, Any]:
        """Return what makes logits probabilities."""
        return {"link": criterion.link}

    def predictor(
        self,
        model: str,
        options: SegmentationSettings,
        facts: Mapping[str, Any],
        outputs: Mapping[str, Any],
    ) -> predict.SegmentationPredictor:
        """Return a network that gives masks."""
        channels = 1 if facts["mode"] == "binary" else len(facts["classes"])
        network = build_model(
            model, num_outputs=channels, deep_supervision=options.deep_supervision
        )
        return predict.SegmentationPredictor(network, facts, link=outputs["link"])

    def draw_samples(self, trained: Trained, data: SegmentationData, path: Path) -> None:
        """Draw image, truth, prediction and error of validation images, chosen by their place."""
        items = SegmentationDataset(data, data.val, size=1, train=False)
        shown = []
        for place in evenly(_SAMPLES, of=len(items)):
            item = items[place]
            image, truth = item["image"], item["mask"]
            assert isinstance(image, Tensor)
            assert isinstance(truth, Tensor)
            outputs = trained.outputs(image[None].to(trained.device))
            prediction = decided(at_size(outputs[0].float(), truth.shape), data.mode)[0].cpu()
            confusion = _confusion(truth, prediction, data.num_classes)
            scores = overlap_scores(confusion, data)
            shown.append(
                Sampled(
                    name=data.val[place].name,
                    image=denormalise(image).permute(1, 2, 0).contiguous().numpy(),
                    truth=truth.numpy().astype(np.uint8),
                    prediction=prediction.numpy().astype(np.uint8),
                    score=scores["score"],
                )
            )
        draw_samples(shown, data, count_of=len(items), path=path)

    # ------------------------------------------------------------------------ measurement

    def context(self, data: SegmentationData) -> dict[str, Any]:
        """Return the areas that divide small, medium and large objects."""
        limits = measure.size_limits(data)
        return {"size_limits": [] if limits is None else list(limits)}

    def measure(
        self,
        trained: Trained,
        data: SegmentationData,
        samples: Sequence[Sample],
        *,
        context: Mapping[str, Any],
        keep: int,
    ) -> Measured:
        """Measure a network on whole images."""
        limits = _limits(context)
        return measure.measure(trained, data, samples, size_limits=limits, keep=keep)

    def to_arrays(self, measured: Measured) -> dict[str, NDArray[Any]]:
        """Return a measurement as arrays."""
        return measured.to_arrays()

    def from_arrays(self, arrays: Mapping[str, NDArray[Any]]) -> Measured:
        """Return a measurement that was saved."""
        return Measured.from_arrays(arrays)

    def names(self, measured: Measured) -> tuple[str, ...]:
        """Return the names of the images."""
        return measured.names

    def parts(self, measured: Measured) -> tuple[str, ...]:
        """Return the classes; of a binary task the foreground alone."""
        return tuple(measured.class_names[of] for of in measure.scored_classes(measured))

    def per_image(
        self, measured: Measured, metric: Metric, part: str | None = None
    ) -> NDArray[np.float64]:
        """Return the score of each image; NaN where it is void everywhere."""
        score = measure.score([measured], metric.key, "image", of=_index(measured, part))
        return np.asarray(score.score(score.counts[0]), dtype=np.float64)

    def score(
        self,
        measured: Sequence[Measured],
        metric: Metric,
        pooling: Pooling,
        part: str | None = None,
    ) -> Additive:
        """Return the score of networks."""
        return measure.score(measured, metric.key, pooling, of=_index(measured[0], part))

    def summary(self, data: SegmentationData, samples: Sequence[Sample]) -> SplitSummary:
        """Return what the masks of a split hold."""
        pixels = np.array([data.class_pixels(sample) for sample in samples])
        return _summary(pixels, data.class_names, binary=data.mode == "binary")

    def summary_of(self, measured: Measured) -> SplitSummary:
        """Return what the masks of measured images hold."""
        pixels = measured.confusion.sum(axis=2)
        return _summary(pixels, measured.class_names, binary=measured.mode == "binary")

    # ----------------------------------------------------------------------------- report

    def advise(self, data: SegmentationData, *, size: int) -> Iterable[Candidate]:
        """Propose losses from what the training masks look like."""
        # A class of every image may be missing from most of the squares that are trained on.
        return recommended(fingerprint(data, square=size), mode=data.mode)

    def keep_artifacts(self, finished: Finished) -> Iterator[str]:
        """Keep held-out images, and what each loss looks at in one of them."""
        data: SegmentationData = finished.data
        cases.keep_images(finished.folder, data, keep=finished.keep)
        file = finished.folder / gradient_maps.FILE
        if finished.baseline is None or _kept(file, finished):
            return
        try:
            trained, measured = finished.baseline()
            place = gradient_maps.usual_image(measured)
            found = gradient_maps.gradient_maps(
                finished.losses,
                trained,
                data,
                data.test[place],
                predicted_by=finished.predicted_by,
            )
        except (RuntimeError, TypeError, ValueError) as error:
            yield f"note: no gradient maps: {' '.join(str(error).split())[:200]}"
        else:
            gradient_maps.save([found], file)

    def details(self, evidence: Evidence) -> tuple[SegmentationDetails, ...]:
        """Return recall by size, calibration and thresholds of each loss."""
        return details(evidence)

    def sections(
        self, evidence: Evidence, details: Sequence[SegmentationDetails]
    ) -> Iterator[Section]:
        """Return sizes, calibration, images and gradient maps."""
        yield from sections(evidence, details)


def _has_void(data: SegmentationData) -> bool:
    """Whether a mask has void pixels, as far as that is known; they have if they may."""
    if data.ignore_value is None or not data.pixels:
        return data.ignore_value is not None
    return any(pixels[VOID] > 0 for pixels in data.pixels.values())


def _confusion(truth: Tensor, prediction: Tensor, classes: int) -> Tensor:
    known = truth != VOID
    pairs = truth[known] * classes + prediction[known]
    return torch.bincount(pairs, minlength=classes**2).view(classes, classes)


def made_up(
    shape: tuple[int, int, int, int], *, shares: Sequence[float]
) -> tuple[list[Tensor], dict[str, Tensor]]:
    """Return outputs and a batch that a training step could have.

    Args:
        shape: Of the logits, [n c h w]; one channel is the foreground of a binary task.
        shares: Of each class in the pixels, background included.
    """
    n, c, h, w = shape
    blob, sure = 8, 3.0
    generator = torch.Generator().manual_seed(0)
    coarse = torch.randn(n, 1, -(-h // blob) + 1, -(-w // blob) + 1, generator=generator)
    field = F.interpolate(coarse, (h, w), mode="bilinear", align_corners=True)[:, 0]
    # Each class is a layer of the field, as thick as its share of the pixels.
    rank = field.flatten().argsort().argsort().view_as(field).double() / field.numel()
    ends = torch.tensor(shares, dtype=torch.float64).cumsum(0)
    classes = torch.bucketize(rank, ends[:-1] / ends[-1], right=True)
    index = torch.arange(c).view(1, -1, 1, 1) if c > 1 else torch.ones(1, 1, 1, 1)
    right = (classes[:, None] == index).float()
    logits = sure * (2 * right - 1) + sure * torch.randn(shape, generator=generator)
    image = torch.randn(n, 3, h, w, generator=generator)
    return [logits], {"image": image, "mask": classes}


def _index(measured: Measured, part: str | None) -> int | None:
    return None if part is None else measured.class_names.index(part)


def _limits(context: Mapping[str, Any]) -> tuple[float, float] | None:
    limits = context.get("size_limits")
    return (float(limits[0]), float(limits[1])) if limits else None


def _summary(
    pixels: NDArray[np.int64], class_names: Sequence[str], *, binary: bool
) -> SplitSummary:
    """Return what pixels of each image and class, int64[N, C], say."""
    known = np.asarray(pixels.any(axis=1))
    there = np.asarray(pixels.any(axis=0))
    scored = (1,) if binary else range(len(class_names))
    return SplitSummary(
        images=int(known.sum()),
        unscored=int((~known).sum()),
        missing=tuple(class_names[of] for of in scored if not there[of]),
    )


def _kept(file: Path, finished: Finished) -> bool:
    """Whether the gradient maps are those of the same losses on the same prediction."""
    try:
        known = gradient_maps.load(file)
    except (OSError, ValueError):
        return False
    return all(
        set(one.gradients) == set(finished.losses) and one.predicted_by == finished.predicted_by
        for one in known
    )
