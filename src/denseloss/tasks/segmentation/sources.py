"""What a data folder holds, and its samples: the first way of looking that finds something."""

import os
import re
from collections import Counter
from pathlib import Path

from denseloss.data.annotations import (
    Annotated,
    is_installed,
    read_annotations,
    read_formats,
    unread_format,
)
from denseloss.data.class_names import ClassNames, find_class_names
from denseloss.data.errors import DataError
from denseloss.data.files import read_text
from denseloss.data.folders import folders_below
from denseloss.data.images import SUFFIXES
from denseloss.data.paths import meaning
from denseloss.data.samples import Findings, Sample
from denseloss.tasks.segmentation.lists import use_lists
from denseloss.tasks.segmentation.pairing import (
    GLOBS,
    Layout,
    NoMatchError,
    by_names_alone,
    find_pairs,
    orphans,
    told_pairs,
)

WAY_OUT = (
    "say where they are with --images and --masks: two folders, or globs with one * for what an "
    f"image and its mask share, such as {GLOBS}"
)
_VOC_NAME = re.compile(r"20(0[7-9]|1[0-2])_\d+$")
_ARCHIVES = (".zip", ".tar", ".tgz", ".tar.gz", ".rar", ".7z")
_TABLES = (".parquet", ".arrow", ".tfrecord", ".mdb")
_ARRAYS = {
    **dict.fromkeys((".npy", ".npz"), "numpy arrays"),
    **dict.fromkeys((".nii", ".nrrd", ".mha", ".dcm"), "medical volumes (NIfTI, NRRD, DICOM)"),
    **dict.fromkeys((".h5", ".hdf5"), "HDF5 arrays"),
    ".mat": "Matlab's arrays",
    **{".jp2": "JPEG 2000", ".svg": "SVG drawings", ".heic": "HEIC photographs"},
    **dict.fromkeys((".dng", ".cr2", ".nef", ".arw"), "raw photographs"),
}


def find_samples(
    root: Path, findings: Findings, *, images: str | None, masks: str | None, skip: bool
) -> Layout:
    """Find the images of a folder and their masks.

    Args:
        root: The data's folder.
        findings: Where files without a partner are told.
        images: Where the user says that the images are.
        masks: The same for the masks.
        skip: Leave out images without a mask.

    Raises:
        DataError: Nothing was found that can be trained on.
    """
    if (images is None) != (masks is None):
        raise DataError("--images and --masks go together; give both")
    if not root.exists():
        raise DataError(f"{root}: there is no such folder; give one with images and masks in it")
    if not root.is_dir():
        raise DataError(f"{root}: is a file; give the folder that holds the images and the masks")
    if images is not None and masks is not None:
        layout = told_pairs(images, masks, root, findings, skip=skip)
    else:
        layout = _looked_for(root, findings, skip=skip)
    folders = {root, layout.root, *(p.parent for s in layout.samples[:50] for p in s.files)}
    layout.names += find_class_names(sorted(folders))
    affix = layout.masks.lower()
    if affix.endswith("labeltrainids"):
        layout.known = "cityscapes train"
    elif affix.endswith("labelids"):
        layout.known = "cityscapes"
    return layout


def _looked_for(outer: Path, findings: Findings, *, skip: bool) -> Layout:
    root = outer
    for _ in range(4):  # a folder in a folder, as archives unpack
        inside = [p for p in root.iterdir() if not p.name.startswith((".", "__MACOSX"))]
        if len(inside) != 1 or not inside[0].is_dir() or _says_something(inside[0].name):
            break
        root = inside[0]
    folders = folders_below(root)
    unmatched: NoMatchError | None = None
    layout = None
    try:
        layout = find_pairs(root, folders, findings, skip=skip)
    except NoMatchError as error:
        unmatched = error
    if layout is None or layout.doubtful:
        layout = _annotated(root, read_annotations(root, folders, findings), instead=layout)
    layout = layout or by_names_alone(root, folders, findings, skip=skip)
    others = read_formats(root) if layout is None or layout.doubtful else None
    if isinstance(others, Annotated):
        layout = _annotated(root, others, instead=layout)
    if layout is None and (unread := unread_format(root)) is not None:
        raise DataError(unread)
    if layout is None:
        raise unmatched or DataError(f"{_nothing_found(outer)}{f'; {others}' * bool(others)}")
    if root != outer:
        layout.notes.append(f"the data lies in {root}")
    orphans(layout, folders, findings)
    use_lists(layout, findings)
    if all(s.image and s.image.parent.name == "JPEGImages" for s in layout.samples) and all(
        _VOC_NAME.match(s.name) for s in layout.samples
    ):
        layout.known = "voc"
        layout.kind = f"Pascal VOC in {root}"
    return layout


def _says_something(name: str) -> bool:
    said = meaning(name)
    return said.role is not None or said.split is not None


def _annotated(root: Path, found: Annotated | None, *, instead: Layout | None) -> Layout | None:
    """The samples of annotation files; `instead` where there are none with an outline."""
    if found is None:
        return instead
    objects = [each for image in found.images for each in image.truth.objects]
    drawn = sum(each.outline is not None for each in objects)
    if instead is not None and not drawn:
        return instead
    if not found.images:
        raise DataError(f"{root}: no image is left ({found.kind}); repair the files named first")
    if not drawn:
        raise DataError(
            f"{root}: holds boxes, not masks ({found.kind}); segmentation needs outlines or a mask "
            "for each image"
        )
    layout = Layout(root, found.kind, notes=list(found.notes), warnings=list(found.warnings))
    if drawn < len(objects):
        text = f"{len(objects) - drawn} of {len(objects)} objects have a box or a line and no area"
        layout.warnings.append(f"{text}: they are not drawn")
    counts = Counter(image.name for image in found.images)
    for image in found.images:
        twice = counts[image.name] > 1
        name = f"{image.split}/{image.name}" if twice and image.split else image.name
        sample = Sample(name, image.image, image.truth)
        layout.splits.setdefault(image.split, []).append(sample)
    of = {0: "background", **dict(enumerate(found.names, start=1))}
    layout.names.append(ClassNames(found.named, of, void=(255,)))
    return layout


def _nothing_found(root: Path) -> str:
    """What lies in a folder where nothing was found, and the way out."""
    counts: Counter[tuple[str, str]] = Counter()
    for where, inside, files in os.walk(root):
        inside[:] = sorted(n for n in inside if not n.startswith(".") and n != "__MACOSX")
        for name in files:
            path = Path(where)
            suffix = (
                "".join(Path(name).suffixes[-2:]) if name.endswith(".gz") else Path(name).suffix
            )
            inner = path.relative_to(root).parts
            counts["/".join([*inner[:2], ""]) if inner else "", suffix.lower()] += 1
        if len(counts) > 40:
            break
    if not counts:
        return f"{root}: the folder is empty; give one with images and masks in it"
    said = [
        f"{n} {suffix or 'files'}{f' in {where}' if where else ''}"
        for (where, suffix), n in sorted(counts.items())[:6]
    ]
    have = ", ".join([*said, *["..."] * (len(counts) > 6)])
    suffixes = {suffix for _, suffix in counts}
    pictures = suffixes.intersection(SUFFIXES)
    arrays = {_ARRAYS[s.removesuffix(".gz")] for s in suffixes if s.removesuffix(".gz") in _ARRAYS}
    if arrays and len(pictures) < 2:
        return (
            f"{root}: holds {' and '.join(sorted(arrays))}, which are not read (it holds {have}); "
            "save each picture, slice or array as PNG, images and masks under the same names"
        )
    if suffixes.intersection(_ARCHIVES) and not pictures:
        return f"{root}: holds archives (it holds {have}); unpack them first"
    if suffixes.intersection(_TABLES) and not pictures:
        return (
            f"{root}: holds tables of samples, which are not read (it holds {have}); give a data "
            "set in Python (denseloss check my_data.py:make), or save images and masks as PNG"
        )
    beside = {meaning(p.name).role for p in root.parent.iterdir() if p.is_dir()}
    here = any(not where and suffix in SUFFIXES for where, suffix in counts)
    if meaning(root.name).role and here and {"image", "mask"} <= beside:
        return f"{root}: is only one half of the data; give the folder above it, {root.parent}"
    xml = next(root.rglob("*.xml"), None)
    if xml is not None and re.search(r"<annotation\b", read_text(xml)[:400]):  # Pascal VOC's
        return (
            f"{root}: holds boxes (xml), not masks (it holds {have}); segmentation needs a mask "
            f"for each image; if there are masks, {WAY_OUT}"
        )
    if suffixes.intersection((".xml", ".json", ".csv")) and not is_installed():
        return (
            f"{root}: no masks found (it holds {have}); its annotation files may be of a format "
            f'that Datumaro reads: pip install "denseloss[formats]"; if there are masks, {WAY_OUT}'
        )
    return f"{root}: no pairs of images and masks found (it holds {have}); {WAY_OUT}"
