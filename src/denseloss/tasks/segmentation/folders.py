"""Which image goes with which mask: the layouts of folders that people keep data in."""

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Sized
from dataclasses import dataclass, field, replace
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

    def leave_out(self, split: Split, images: Sized) -> None:
        """Note that the images of a split have no masks."""
        self.notes.append(f"{split}: {len(images)} images without masks, left out")


def find_pairs(root: Path, findings: Findings) -> Layout:
    """Look at a folder and pair its images with its masks."""
    if not root.exists():
        raise DataError(f"{root}: there is no such folder; give one with images and masks in it")
    if not root.is_dir():
        raise DataError(f"{root}: is a file; give the folder that holds the images and the masks")
    outer = root
    for _ in range(4):
        layout = _voc(root, findings) or _beside(root, findings)
        if layout is None and (samples := _pair_mixed(root, findings)) is not None:
            layout = Layout(root, f"images and masks side by side in {root}", {None: samples})
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


def _filled(folder: Path, names: Iterable[str]) -> list[Path]:
    return [path for path in _named(folder, names) if _pictures(path)]


def _image_and_mask_folder(folder: Path) -> tuple[Path, Path] | None:
    images, masks = _filled(folder, IMAGE_FOLDERS), _filled(folder, MASK_FOLDERS)
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
            shared = inside == masks
            files = _pictures(inside)
            if split == "test" and (shared or not files):
                stems = {_mask_key(p, inside) for p in files}
                if not any(_key(p, folder) in stems for p in _pictures(folder)):
                    layout.leave_out(split, _pictures(folder))
                    continue
            layout.splits[split] = _pair(folder, inside, findings, shared=shared)
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
                text = f"{folder}: holds {len(pictures)} images but no masks; add a folder of masks"
                findings.problem(text, *pictures)
            layout.leave_out(split, pictures)
    return layout if layout.splits else None


def _key(path: Path, folder: Path) -> str:
    return path.relative_to(folder).with_suffix("").as_posix()


def _mask_key(path: Path, folder: Path) -> str:
    return _MASK_END.sub("", _key(path, folder))


def _grouped(files: list[Path], key: Callable[[Path], str]) -> dict[str, list[Path]]:
    found: dict[str, list[Path]] = defaultdict(list)
    for path in files:
        found[key(path)].append(path)
    return found


def _pair(images: Path, masks: Path, findings: Findings, *, shared: bool = False) -> list[Sample]:
    """Pair by the path below the two folders, without suffix and with or without a `_mask` end.

    Args:
        images: The folder of the images.
        masks: The folder of the masks.
        findings: Where a file without its partner is told.
        shared: The masks of other splits lie in the folder too.
    """
    mask_files = _pictures(masks)
    exact = _grouped(mask_files, lambda path: _key(path, masks))
    ended = [path for path in mask_files if _MASK_END.search(path.stem)]
    loose = _grouped(ended, lambda path: _mask_key(path, masks))
    by_key = _grouped(_pictures(images), lambda path: _key(path, images))
    if not by_key:
        raise DataError(f"{images}: holds no images; put them there (png, jpg, tif, bmp, webp)")

    samples, lonely, used = [], [], set()
    for key, paths in by_key.items():
        short = _IMAGE_END.sub("", key)
        found = exact.get(key) or loose.get(key) or exact.get(short) or loose.get(short) or []
        used.update(found)
        if len(paths) > 1 or len(found) > 1:
            twice = paths if len(paths) > 1 else found
            text = f"{twice[0]}: {twice[1].name} has the same name; keep one of them"
            findings.problem(text, *paths, *found)
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
        looked_for = f"{masks / key}.png and {masks / key}_mask.png"
        text = f"{path}: has no mask (looked for {looked_for}); add the mask or remove the image"
        findings.problem(text, path)
    for path in mask_files:
        if path not in used and not shared:
            text = f"{path}: this mask has no image in {images}; add the image or remove the mask"
            findings.problem(text, path)
    return samples


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
            text = f"{mask}: this mask has no image {stem}.*; add the image or remove the mask"
            findings.problem(text, mask)
        else:
            samples.append(Sample(stem, image, mask))
    for stem, image in images.items():
        text = f"{image}: has no mask (looked for {stem}_mask.*); add the mask or remove the image"
        findings.problem(text, image)
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
            layout.leave_out(split, names)
            continue
        samples = []
        for name in names:
            image, mask = image_of.get(name), mask_of.get(name)
            if image is None or mask is None:
                missing = images if image is None else masks
                text = f"{file}: lists {name}, but {missing} has no such file"
                there = [p for p in (image, mask) if p is not None]
                findings.problem(f"{text}; add it or remove the line", *there)
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
        if left := len(image_of) - len(paired):
            layout.notes.append(f"{left} images without a mask in SegmentationClass, left out")
        layout.splits[None] = paired
    return layout if any(layout.splits.values()) else None


def _check_names(layout: Layout) -> None:
    seen: dict[str, Path | None] = {}
    for split, samples in layout.splits.items():
        for i, sample in enumerate(samples):
            if sample.name not in seen:
                seen[sample.name] = sample.image
                continue
            if seen[sample.name] == sample.image:
                layout.warnings.append(
                    f"{sample.image}: is in two splits; keep it in one, or scores are too good"
                )
            # Splits that are folders may number their images alike.
            samples[i] = replace(sample, name=f"{split}/{sample.name}")


def _nothing_found(root: Path) -> str:
    if not any(_listing(root)):
        return f"{root}: the folder is empty; give one with images and masks in it"
    if any(root.rglob("*.xml")) and not _named(root, MASK_FOLDERS[:3]):
        return f"{root}: holds boxes (xml), not masks; segmentation needs a mask for each image"
    if root.name.lower() in IMAGE_FOLDERS + MASK_FOLDERS and _pictures(root):
        return f"{root}: is only one half of the data; give the folder above it, {root.parent}"
    have = ", ".join(p.name for p in _listing(root)[:6])
    if images := _filled(root, IMAGE_FOLDERS):
        return (
            f"{root}: no masks found for {images[0].name}/ (it holds {have}); "
            "add a folder masks/ with one mask for each image, of the same name"
        )
    return (
        f"{root}: no image/mask pairs found (it holds {have}); expected images/ and masks/ with "
        "the same names, with or without train/ val/ test/, or Pascal VOC's folders"
    )
