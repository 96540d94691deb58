"""What the report shows besides the trials: images, gradient maps, what each loss costs.

It is made once, while the data is there, and kept in the comparison's folder, so that a report can
be made again from the folder alone.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from denseloss.compare import looks
from denseloss.compare.cost import loss_cost
from denseloss.compare.folder import ComparisonFolder
from denseloss.compare.measure import load, restore
from denseloss.compare.results import Cost
from denseloss.compare.settings import CompareSettings
from denseloss.compare.trials import Plan, TrialFolder
from denseloss.data import SegmentationData
from denseloss.data.samples import evenly
from denseloss.train import InputError
from denseloss.train.folder import write_whole

_SIDE = 512
_QUALITY = 90


@dataclass(frozen=True)
class Shown:
    """The held-out images that are kept for the report, by name."""

    folder: Path
    files: Mapping[str, str]

    @property
    def names(self) -> frozenset[str]:
        """Of the images."""
        return frozenset(self.files)

    def read(self, name: str) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        """Return the image uint8[h, w, 3] and its classes uint8[h, w].

        Raises:
            InputError: A file is missing or broken.
        """
        stem = self.folder / self.files[name]
        try:
            with Image.open(f"{stem}.jpg") as image, Image.open(f"{stem}.png") as truth:
                return np.asarray(image.convert("RGB")), np.asarray(truth.convert("L"))
        except OSError as error:
            raise InputError(
                f"{stem}: cannot be read ({error}); remove {self.folder} and give the same "
                "denseloss compare again to make it anew"
            ) from None


def shown(folder: ComparisonFolder) -> Shown:
    """Return the images that are kept; none where there are none yet."""
    try:
        index = (folder.images / "index.json").read_text(encoding="utf-8")
        return Shown(folder.images, {str(k): str(v) for k, v in json.loads(index).items()})
    except (OSError, ValueError, AttributeError):
        return Shown(folder.images, {})


def show_images(folder: ComparisonFolder, data: SegmentationData, *, keep: int) -> None:
    """Keep small copies of held-out images and their masks, evenly spaced over the names."""
    places = evenly(keep, of=len(data.test))
    files = {data.test[place].name: f"{place:06d}" for place in places}
    if shown(folder).files == files:
        return
    folder.images.mkdir(exist_ok=True)
    for place in places:
        image, truth = data.read(data.test[place])
        stem = folder.images / f"{place:06d}"
        _small(Image.fromarray(image.permute(1, 2, 0).numpy()), Image.Resampling.LANCZOS).save(
            f"{stem}.jpg", quality=_QUALITY
        )
        _small(Image.fromarray(truth.numpy()), Image.Resampling.NEAREST).save(f"{stem}.png")
    write_whole(folder.images / "index.json", json.dumps(files, ensure_ascii=False) + "\n")


def _small(image: Image.Image, how: Image.Resampling) -> Image.Image:
    share = min(1.0, _SIDE / max(image.size))
    if share == 1:
        return image
    return image.resize((round(image.width * share), round(image.height * share)), how)


def time_losses(
    folder: ComparisonFolder, data: SegmentationData, settings: CompareSettings
) -> list[str]:
    """Measure what each loss costs in a step, where that is not known yet; say where it fails."""
    notes = []
    channels = 1 if data.task == "binary" else data.num_classes
    size = settings.size or 0
    shape = (settings.batch_size, channels, size, size)
    device = "cuda" if settings.accelerator in ("cuda", "gpu") else "cpu"
    if device == "cuda" and not torch.cuda.is_available():  # trained on a cluster
        device = "cpu"
    known = known_costs(folder)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for loss in settings.losses:
            if loss not in known or known[loss].shape != shape:
                try:
                    known[loss] = loss_cost(
                        loss,
                        task=data.task,
                        num_classes=data.num_classes,
                        shape=shape,
                        shares=data.class_share,
                        device=device,
                    )
                except (RuntimeError, TypeError, ValueError, MemoryError) as error:
                    # A report without this number is better than none.
                    what = " ".join(str(error).split())[:200]
                    notes.append(f"note: the cost of {loss} could not be measured: {what}")
    finally:
        torch.set_num_threads(threads)
    costs = {loss: asdict(cost) for loss, cost in known.items()}
    write_whole(folder.costs_file, json.dumps(costs, indent=2, ensure_ascii=False) + "\n")
    return notes


def known_costs(folder: ComparisonFolder) -> dict[str, Cost]:
    """Return what is known of each loss's cost; none where the file is missing or broken."""
    try:
        found = json.loads(folder.costs_file.read_text(encoding="utf-8"))
        return {
            loss: Cost(
                milliseconds=float(cost["milliseconds"]),
                mebibytes=float(cost["mebibytes"]),
                shape=tuple(cost["shape"]),
                device=str(cost["device"]),
            )
            for loss, cost in found.items()
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        # It is measured anew by the next `compare`; the report shows that it is missing.
        return {}


def show_looks(folder: ComparisonFolder, plan: Plan, data: SegmentationData) -> list[str]:
    """Keep the gradient maps of the losses on one prediction of the baseline; say if it cannot be.

    The prediction is that of the baseline's first finished network.
    """
    baseline = plan.losses[0]
    trials = [
        trial
        for trial in (*plan.search(baseline), *plan.rest(baseline))
        if trial.lr == plan.chosen(baseline) and plan.states.get(trial) == "finished"
    ]
    if not trials:
        return []
    trial = min(trials, key=lambda t: t.seed)
    predicted_by = f"{baseline}, seed {trial.seed}"
    # One that no network could be trained with has perhaps no gradient either.
    losses = [loss for loss in plan.losses if any(t.loss == loss for t in plan.scores)]
    if _kept(folder, losses, predicted_by):
        return []
    files = TrialFolder(folder.path, trial)
    try:
        # A network that was trained on a cluster's GPU predicts here on what is here.
        task = restore(files.path, data=data, device="cpu")
        place = looks.usual_image(load(files.held_out_file))
        found = looks.look(losses, task, data, data.test[place], predicted_by=predicted_by)
    except (RuntimeError, TypeError, ValueError) as error:
        return [f"note: no gradient maps: {' '.join(str(error).split())[:200]}"]
    looks.save([found], folder.looks_file)
    return []


def _kept(folder: ComparisonFolder, losses: Sequence[str], predicted_by: str) -> bool:
    try:
        known = looks.load(folder.looks_file)
    except (OSError, ValueError):
        return False
    return all(
        set(one.gradients) == set(losses) and one.predicted_by == predicted_by for one in known
    )
