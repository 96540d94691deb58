"""Which image goes with which mask: the layouts of folders that people keep data in."""

import re
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from denseloss.data.errors import DataError
from denseloss.data.images import is_picture
from denseloss.data.samples import Findings, Sample

IMAGE_FOLDERS = ("images", "image", "imgs", "img", "jpegimages")
MASK_FOLDERS = (
    *("masks", "mask", "segmentationclass", "labels", "label", "gt", "annotations", "annotation"),
    *("ground_truth", "groundtruth"),
)
_SPLITS = {
    "train": ("train", "training", "traindataset"),
    "val": ("val", "valid", "validation", "dev"),
    "test": ("test", "testing", "testdataset"),
}
_SPLIT_OF = {name: split for split, names in _SPLITS.items() for name in names}
_MASK_END = re.compile(r"[_-](mask|masks|gt|label|labels|seg|segmentation)$", re.IGNORECASE)
_IMAGE_END = re.compile(r"[_-](image|img|sat)$", re.IGNORECASE)

Split = str | None


@dataclass
class Layout:
    """The pairs that were found, by split (`None`: the folder has no split)."""

    root: Path
    kind: str
    splits: dict[Split, list[Sample]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    voc: bool = False


def find_pairs(root: Path, findings: Findings) -> Layout:
    """Look at a folder and pair its images with its masks."""
    if not root.exists():
        raise DataError(f"{root}: there is no such folder; give one with images and masks in it")
    if not root.is_dir():
        raise DataError(f"{root}: is a file; give the folder that holds the images and the masks")
    outer = root
    for _ in range(4):
        layout = _voc(root, findings) or _beside(root, findings) or _mixed(root, findings)
        if layout is not None:
            if root != outer:
                layout.notes.append(f"the data lies in {root}")
            _check_names(layout)
            return layout
        inside = [p for p in _listing(root) if p.is_dir() and not p.name.startswith("_")]
        if len(inside) != 1:
            break
        root = inside[0]  # a folder in a folder, as archives unpack
    raise DataError(_nothing_found(outer))


def _listing(folder: Path) -> list[Path]:
    return sorted(p for p in folder.iterdir() if not p.name.startswith("."))


def _pictures(folder: Path) -> list[Path]:
    # Sorted, because the order in which a file system lists its files is not fixed.
    def hidden(path: Path) -> bool:
        parts = path.relative_to(folder).parts
        return any(part.startswith(".") or part == "__MACOSX" for part in parts)

    return sorted(p for p in folder.rglob("*") if is_picture(p) and not hidden(p))


def _named(folder: Path, names: Iterable[str]) -> list[Path]:
    """The folders inside with one of these names, in the order of the names."""
    order = {name: i for i, name in enumerate(names)}
    found = [p for p in _listing(folder) if p.is_dir() and p.name.lower() in order]
    return sorted(found, key=lambda p: order[p.name.lower()])


def _image_and_mask_folder(folder: Path) -> tuple[Path, Path] | None:
    images = [p for p in _named(folder, IMAGE_FOLDERS) if _pictures(p)]
    masks = [p for p in _named(folder, MASK_FOLDERS) if _pictures(p)]
    return (images[0], masks[0]) if images and masks else None


def _split_folders(folder: Path) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for path in _named(folder, _SPLIT_OF):
        found.setdefault(_SPLIT_OF[path.name.lower()], path)
    return found


def _beside(root: Path, findings: Findings) -> Layout | None:
    """Image and mask folders, with the split below them or above them."""
    both = _image_and_mask_folder(root)
    if both is not None:
        images, masks = both
        layout = Layout(root, f"image/mask folders {images.name}/ and {masks.name}/ in {root}")
        image_splits, mask_splits = _split_folders(images), _split_folders(masks)
        if not image_splits:
            layout.splits[None] = _pair(images, masks, findings)
        for split, folder in image_splits.items():
            inside = mask_splits.get(split, masks)
            _add_split(layout, split, folder, inside, findings, shared=inside == masks)
        return layout
    layout = Layout(root, f"image/mask folders below {root}")
    for split, folder in _split_folders(root).items():
        both = _image_and_mask_folder(folder)
        if both is not None:
            layout.splits[split] = _pair(*both, findings)
        elif (samples := _pair_mixed(folder, findings)) is not None:
            layout.splits[split] = samples
        elif pictures := _pictures(folder):
            if split != "test":
                findings.problem(
                    f"{folder}: holds {len(pictures)} images but no masks; add a folder of masks",
                    *pictures,
                )
            layout.notes.append(f"{split}: {len(pictures)} images without masks, left out")
    return layout if layout.splits else None


def _add_split(
    layout: Layout, split: str, images: Path, masks: Path, findings: Findings, *, shared: bool
) -> None:
    pictures = _pictures(images)
    if split == "test" and (shared or not _pictures(masks)):
        stems = {_mask_key(p, masks) for p in _pictures(masks)}
        if not any(_key(p, images) in stems for p in pictures):
            layout.notes.append(f"test: {len(pictures)} images without masks, left out")
            return
    layout.splits[split] = _pair(images, masks, findings, shared=shared)


def _key(path: Path, folder: Path) -> str:
    return path.relative_to(folder).with_suffix("").as_posix()


def _mask_key(path: Path, folder: Path) -> str:
    return _MASK_END.sub("", _key(path, folder))


def _pair(images: Path, masks: Path, findings: Findings, *, shared: bool = False) -> list[Sample]:
    """Pair by the path below the two folders, without suffix and with or without a `_mask` end.

    Args:
        images: The folder of the images.
        masks: The folder of the masks.
        findings: Where a file without its partner is told.
        shared: The masks of other splits lie in the folder too.
    """
    exact: dict[str, list[Path]] = defaultdict(list)
    loose: dict[str, list[Path]] = defaultdict(list)
    mask_files = _pictures(masks)
    for path in mask_files:
        exact[_key(path, masks)].append(path)
        if _MASK_END.search(path.stem):
            loose[_mask_key(path, masks)].append(path)
    by_key: dict[str, list[Path]] = defaultdict(list)
    for path in _pictures(images):
        by_key[_key(path, images)].append(path)
    if not by_key:
        raise DataError(f"{images}: holds no images; put them there (png, jpg, tif, bmp, webp)")

    samples, lonely, used = [], [], set()
    for key, paths in by_key.items():
        short = _IMAGE_END.sub("", key)
        found = exact.get(key) or loose.get(key) or exact.get(short) or loose.get(short) or []
        used.update(found)
        if len(paths) > 1 or len(found) > 1:
            twice = paths if len(paths) > 1 else found
            findings.problem(
                f"{twice[0]}: {twice[1].name} has the same name; keep one of them", *paths, *found
            )
        elif not found:
            lonely.append((key, paths[0]))
        else:
            samples.append(Sample(key, paths[0], found[0]))
    if not samples and lonely and mask_files:
        raise DataError(
            f"{images}: no image has a mask of its name in {masks} (for example "
            f"{lonely[0][1].name} and {mask_files[0].name}); give a mask its image's name, "
            "or that name and _mask"
        )
    for key, path in lonely:
        findings.problem(
            f"{path}: has no mask (looked for {masks / key}.png and {masks / key}_mask.png); "
            "add the mask or remove the image",
            path,
        )
    for path in mask_files:
        if path not in used and not shared:
            findings.problem(
                f"{path}: this mask has no image in {images}; add the image or remove the mask",
                path,
            )
    return samples


def _mixed(root: Path, findings: Findings) -> Layout | None:
    samples = _pair_mixed(root, findings)
    if samples is None:
        return None
    return Layout(root, f"images and masks side by side in {root}", {None: samples})


def _pair_mixed(folder: Path, findings: Findings) -> list[Sample] | None:
    """Images and masks in one folder, the masks with a `_mask` end, or as PNG beside JPEG."""
    pictures = [p for p in _listing(folder) if p.is_file() and is_picture(p)]
    masks = [p for p in pictures if _MASK_END.search(p.stem)]
    if not masks:
        jpegs = {p.stem for p in pictures if p.suffix.lower() in (".jpg", ".jpeg")}
        masks = [p for p in pictures if p.suffix.lower() == ".png" and p.stem in jpegs]
    taken = set(masks)
    images = {_IMAGE_END.sub("", p.stem): p for p in pictures if p not in taken}
    if not masks or not images:
        return None
    samples = []
    for mask in masks:
        stem = _MASK_END.sub("", mask.stem)
        image = images.pop(stem, None)
        if image is None:
            findings.problem(
                f"{mask}: this mask has no image {stem}.*; add the image or remove the mask", mask
            )
        else:
            samples.append(Sample(stem, image, mask))
    for stem, image in images.items():
        findings.problem(
            f"{image}: has no mask (looked for {stem}_mask.*); add the mask or remove the image",
            image,
        )
    return samples


def _voc(root: Path, findings: Findings) -> Layout | None:
    """Pascal VOC: JPEGImages, SegmentationClass and the lists in ImageSets/Segmentation."""
    images, masks = root / "JPEGImages", root / "SegmentationClass"
    if not (images.is_dir() and masks.is_dir()):
        return None
    lists = root / "ImageSets" / "Segmentation"
    layout = Layout(root, f"Pascal VOC in {root}", voc=True)
    image_of = {p.stem: p for p in _pictures(images)}
    mask_of = {p.stem: p for p in _pictures(masks)}
    for split in ("train", "val", "test", "trainval"):
        file = lists / f"{split}.txt"
        if not file.is_file() or (split == "trainval" and layout.splits):
            continue
        # "name" or, in some copies, "name 1".
        lines = file.read_text(encoding="utf-8-sig").splitlines()
        names = list(dict.fromkeys(line.split()[0] for line in lines if line.strip()))
        if split == "test" and not any(name in mask_of for name in names):
            layout.notes.append(f"test: {len(names)} images without masks, left out")
            continue
        samples = []
        for name in names:
            image, mask = image_of.get(name), mask_of.get(name)
            if image is None or mask is None:
                missing = images if image is None else masks
                findings.problem(
                    f"{file}: lists {name}, but {missing} has no such file; "
                    "add it or remove the line",
                    *(p for p in (image, mask) if p is not None),
                )
            else:
                samples.append(Sample(name, image, mask))
        if samples:
            layout.splits[None if split == "trainval" else split] = samples
    if not layout.splits:
        # Most images of VOC have boxes and no mask: without the lists only the masks tell.
        paired = [Sample(n, image_of[n], m) for n, m in mask_of.items() if n in image_of]
        for name, mask in mask_of.items():
            if name not in image_of:
                findings.problem(f"{mask}: this mask has no image in {images}; add it", mask)
        if len(paired) < len(image_of):
            left = len(image_of) - len(paired)
            layout.notes.append(f"{left} images without a mask in SegmentationClass, left out")
        layout.splits[None] = paired
    return layout if any(layout.splits.values()) else None


def _check_names(layout: Layout) -> None:
    seen: dict[str, Sample] = {}
    for split, samples in layout.splits.items():
        for i, sample in enumerate(samples):
            if sample.name not in seen:
                seen[sample.name] = sample
                continue
            other = seen[sample.name]
            if other.image == sample.image:
                layout.warnings.append(
                    f"{sample.image}: is in two splits; keep it in one, or scores are too good"
                )
            # Splits that are folders may number their images alike.
            samples[i] = Sample(f"{split}/{sample.name}", sample.image, sample.mask)


def _nothing_found(root: Path) -> str:
    if not any(_listing(root)):
        return f"{root}: the folder is empty; give one with images and masks in it"
    if any(root.rglob("*.xml")) and not _named(root, MASK_FOLDERS[:3]):
        return f"{root}: holds boxes (xml), not masks; segmentation needs a mask for each image"
    if root.name.lower() in IMAGE_FOLDERS + MASK_FOLDERS and _pictures(root):
        return f"{root}: is only one half of the data; give the folder above it, {root.parent}"
    have = ", ".join(p.name for p in _listing(root)[:6])
    images = [p for p in _named(root, IMAGE_FOLDERS) if _pictures(p)]
    if images:
        return (
            f"{root}: no masks found for {images[0].name}/ (it holds {have}); "
            "add a folder masks/ with one mask for each image, of the same name"
        )
    return (
        f"{root}: no image/mask pairs found (it holds {have}); expected images/ and masks/ with "
        "the same names, with or without train/ val/ test/, or Pascal VOC's folders"
    )
