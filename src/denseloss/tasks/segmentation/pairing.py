"""Which image goes with which mask: found by what folders and files are called."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from denseloss.data.class_names import ClassNames
from denseloss.data.errors import DataError
from denseloss.data.folders import Folder, Split, folders_below
from denseloss.data.images import is_picture
from denseloss.data.masks import Joined, Layered, Mask, mask_files
from denseloss.data.paths import is_channel, meaning, rank, stem_of
from denseloss.data.samples import Findings, Sample
from denseloss.tasks.segmentation.class_files import EDGES, names_of_classes, overlap
from denseloss.tasks.segmentation.doubts import is_field_of_view, is_for_the_eye
from denseloss.tasks.segmentation.matching import matched_names


class NoMatchError(DataError):
    """There are folders of images and of masks, but no file of one has its partner in the other."""


@dataclass
class Layout:
    """The samples that were found.

    Attributes:
        root: The folder that holds them.
        kind: What was found, in words.
        splits: The samples by split.
        masks: How the masks are called, such as `masks/*_mask`.
        doubtful: Whether the masks look like none to train on.
        known: Which known data set it is, as `decide_labels` takes it.
        names: The names of classes that lie beside the data.
        notes: What else was found.
        warnings: What the user should look at.
    """

    root: Path
    kind: str
    splits: dict[Split, list[Sample]] = field(default_factory=dict)
    masks: str = ""
    doubtful: bool = False
    known: str = ""
    names: list[ClassNames] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    @property
    def samples(self) -> list[Sample]:
        """Those of all splits."""
        return [sample for group in self.splits.values() for sample in group]


@dataclass(frozen=True)
class Kind:
    """Masks that are called alike.

    Attributes:
        name: Such as `masks/*_mask`.
        doubt: Why they are none to train on, `""` where nothing says so.
    """

    name: str
    doubt: str

    def __str__(self) -> str:
        return self.name.removesuffix("*") or "*"


GLOBS = "--images 'img/*.jpg' --masks 'ann/*_seg.png'"
"""How images and masks are told that are not found by looking."""

_DOUBTS = {
    "": "",
    "instance": "maps of instances",
    "prediction": "a network's, by their name",
    "eye": "drawn for the eye",
    "view": "a camera's field of view, by its shape",
}


@dataclass
class Found:
    """An image, and all masks that may be its own."""

    image: Path
    folder: Folder
    masks: dict[Kind, list[Path]] = field(default_factory=dict)
    name: str = ""
    split: Split = None
    channels: int = 1

    def __post_init__(self) -> None:
        self.split = self.folder.split
        if not self.name:
            stem, place = self.image.stem, self.folder.place
            spoken = place and (stem == place[-1] or "" in stem_of(stem).keys)
            self.name = "/".join(place if spoken else [*place, stem])


# ------------------------------------------------------------------------------------ looking


def find_pairs(
    root: Path, folders: Sequence[Folder], findings: Findings, *, skip: bool
) -> Layout | None:
    """Look at a folder and pair its images with its masks.

    Args:
        root: The folder.
        folders: Those in it that hold pictures.
        findings: Where files without a partner are told.
        skip: Leave out images without a mask.

    Returns:
        The pairs; None where no picture in there is called like a mask.

    Raises:
        NoMatchError: Images and masks do not belong together.
        DataError: Some do not.
    """
    of = {role: [f for f in folders if f.role == role] for role in ("image", "mask", None)}
    images, masks = of["image"] or of[None], of["mask"]
    found: list[Found] = []
    at = _by_place(masks)
    for folder in images:
        pairs = _with_masks(folder, at)
        if not any(pair.masks for pair in pairs):
            pairs = _side_by_side(folder) or pairs
        found += pairs
    if not any(pair.masks for pair in found):
        found = [pair for folder in folders for pair in _side_by_side(folder) or ()]
    if not found:
        if masks and not images:
            raise NoMatchError(
                f"{masks[0].path}: holds masks ({_some(masks[0].files)}), {root} has no images; "
                "put them beside, in a folder called images, under the names of their masks"
            )
        if not (of["image"] and masks):
            return None
        raise NoMatchError(
            f"{of['image'][0].path}: no image has a mask of its name in {masks[0].path} (for "
            f"example {of['image'][0].files[0].name} and {masks[0].files[0].name}); give a mask "
            f"its image's name, or say what both share with --images and --masks, such as {GLOBS}"
        )
    layout = _layout(root, found, findings, skip=skip)
    _name_what_is_left(layout, folders, found)
    return layout


def by_names_alone(
    root: Path, folders: Sequence[Folder], findings: Findings, *, skip: bool
) -> Layout | None:
    """Pair the images with another folder whose files have the images' names.

    Args:
        root: The folder.
        folders: Those in it that hold pictures.
        findings: Where files without a partner are told.
        skip: Leave out images without a mask.
    """
    images = [f for f in folders if f.role == "image"]
    # The last part of the path of another folder is its own name, and no place.
    others = [
        replace(f, means=(*f.means[:-1], replace(f.means[-1], role="mask", rest="")))
        for f in folders
        if f.role is None and f.means
    ]
    at = _by_place(others)
    found = [pair for folder in images for pair in _with_masks(folder, at)]
    covered = sum(bool(pair.masks) for pair in found)
    if not covered or covered < 0.9 * len(found):
        return None
    layout = _layout(root, found, findings, skip=skip)
    layout.notes.append(f"{layout.masks} is taken for the masks: its files have the images' names")
    return layout


def told_pairs(images: str, masks: str, root: Path, findings: Findings, *, skip: bool) -> Layout:
    """Pair as the user says, by folders or by globs with one `*`, which is what both share.

    Args:
        images: A folder or a glob, as it is written or below `root`.
        masks: The same.
        root: The data's folder.
        findings: Where files without a partner are told.
        skip: Leave out images without a mask.

    Raises:
        DataError: With the option, if it names nothing.
    """
    sides = {"--images": _resolved(images, root, "--images")}
    sides["--masks"] = _resolved(masks, root, "--masks")
    if not any("*" in side for side in sides.values()):
        of: dict[str, list[Folder]] = {}
        for option, role in (("--images", "image"), ("--masks", "mask")):
            folders = folders_below(Path(sides[option]))
            of[option] = [replace(folder, told=role) for folder in folders]  # type: ignore[arg-type]
        at = _by_place(of["--masks"])
        found = [p for f in of["--images"] for p in _with_masks(f, at)]
    else:
        keyed = {option: _by_key(side) for option, side in sides.items()}
        kind = Kind(masks, "")
        found = [
            Found(
                image,
                Folder(image.parent, (), ()),
                {kind: [keyed["--masks"][key]]} if key in keyed["--masks"] else {},
                name=key,
            )
            for key, image in keyed["--images"].items()
        ]
    if not any(pair.masks for pair in found):
        raise DataError(
            f"--images {images} and --masks {masks}: no image has a mask of its name; write a * "
            f"for what an image and its mask share, such as {GLOBS}"
        )
    layout = _layout(root, found, findings, skip=skip)
    layout.kind = f"pairs of {images} and {masks}"
    return layout


def _resolved(text: str, root: Path, option: str) -> str:
    if text.count("*") > 1 or "?" in text or "[" in text:
        raise DataError(f"{option} {text}: write a folder, or a glob with one *")
    for path in (Path(text).expanduser(), root / text):
        if path.is_dir() or ("*" in text and next(_globbed(str(path)), None)):
            return str(path)
    what = "no file is called so" if "*" in text else "there is no such folder"
    raise DataError(f"{option} {text}: {what}, neither from here nor in {root}")


def _globbed(text: str) -> Iterator[tuple[str, Path]]:
    """Yield what the star stands for, and the picture."""
    before, _, after = text.partition("*")
    folder = Path(before if before.endswith("/") else Path(before).parent)
    for path in (
        sorted(folder.glob(text[len(str(folder)) :].lstrip("/"))) if folder.is_dir() else ()
    ):
        if is_picture(path):
            whole = str(path)
            yield whole[len(before) : len(whole) - len(after)], path


def _by_key(side: str) -> dict[str, Path]:
    if "*" in side:
        return dict(_globbed(side))
    return {file.stem: file for folder in folders_below(Path(side)) for file in folder.files}


# ------------------------------------------------------------------------------------ pairing


At = Mapping[tuple[str, ...], Sequence[Folder]]
"""Folders of masks by their key."""


def _by_place(folders: Iterable[Folder]) -> At:
    at: dict[tuple[str, ...], list[Folder]] = defaultdict(list)
    for folder in folders:
        at[folder.key].append(folder)
    return at


def _with_masks(folder: Folder, masks: At) -> list[Found]:
    """Return the images of a folder with the masks of the folders that are its partners."""
    partners = _partners(folder, masks)
    files = [(file, partner) for partner in partners for file in partner.files]
    images = [f for f in folder.files if not _is_for_the_eye_by_name(f)]
    return _matched(folder, images or list(folder.files), files)


def _is_for_the_eye_by_name(file: Path) -> bool:
    """Whether a file beside images is none, such as x_superpixels."""
    return meaning(stem_of(file.stem).affixes[-1].strip("*_- ")).doubt == "eye"


def _partners(folder: Folder, masks: At) -> list[Folder]:
    near: Sequence[Folder] = masks.get(folder.key, ())
    if not near:  # one side has more folders than the other: of towns, patients or classes
        own, start = folder.key, len(folder.key)
        near = [m for key, group in masks.items() if key[:start] == own for m in group]
        near = near or masks.get((), ())
    found = [m for m in near if m.split == folder.split] or [m for m in near if m.split is None]
    if folder.split is None:
        found = found or list(near)
    # images_1 belongs to masks_1, and 01/ to 01_GT/.
    own = folder.rest or folder.key[-1:]
    same = [m for m in found if m.rest == own]
    return same if own and same else found


def _side_by_side(folder: Folder) -> list[Found] | None:
    """Pair the files of one folder: masks have a word of masks, or are PNG beside JPEG."""
    masks = [file for file in folder.files if stem_of(file.stem).role == "mask"]
    if not masks:
        jpegs = {f.stem for f in folder.files if f.suffix.lower() in (".jpg", ".jpeg")}
        masks = [f for f in folder.files if f.suffix.lower() == ".png" and f.stem in jpegs]
    taken = set(masks)
    images = [file for file in folder.files if file not in taken]
    if not masks or not images:
        return None
    found = _matched(folder, images, [(file, folder) for file in masks])
    return found if any(pair.masks for pair in found) else None


def _matched(folder: Folder, images: list[Path], masks: list[tuple[Path, Folder]]) -> list[Found]:
    """Give each mask to the image whose name is its own with the fewest words taken off."""
    found = {image: Found(image, folder) for image in images}
    edges = matched_names(images, masks)
    of = dict(masks)
    dropped: set[Path] = set()
    for mask, (owners, affix) in edges.items():
        if len(owners) > 1 and all(is_channel(image.stem) for image in owners):
            dropped.update(owners[1:])
            found[owners[0]].channels = len(owners)
            owners = owners[:1]
        for image in owners:
            pair = found[image]
            pair.masks.setdefault(_kind(of[mask], affix), []).append(mask)
            pair.split = pair.split or of[mask].split
    if len(images) == 1 and folder.place and len(masks) > len(edges):
        # A folder for each image: all masks in it belong to the image.
        left = [mask for mask, _ in masks if mask not in edges]
        for mask in left:
            found[images[0]].masks.setdefault(_kind(of[mask], "*"), []).append(mask)
    for pair in found.values():
        _tell_versions_apart(pair, of)
    return [pair for image, pair in found.items() if image not in dropped]


def _kind(folder: Folder, affix: str, *, literal: bool = False) -> Kind:
    doubts = [m.doubt for m in (*folder.means, meaning(affix)) if m.doubt]
    place = folder.literal if literal else folder.template
    return Kind(f"{place}{affix}", doubts[-1] if doubts else "")


def _tell_versions_apart(pair: Found, of: Mapping[Path, Folder]) -> None:
    """Take masks of one name in several folders, such as v1.2/ and v2.0/, for several kinds."""
    for kind, files in list(pair.masks.items()):
        if len(files) > 1 and len({f.stem for f in files}) == 1:
            folders = {of[file].path for file in files}
            if len(folders) == len(files):
                del pair.masks[kind]
                affix = kind.name.rpartition("/")[2]
                for file in files:
                    pair.masks[_kind(of[file], affix, literal=True)] = [file]


# ------------------------------------------------------------------------------------ choosing


def _layout(root: Path, found: list[Found], findings: Findings, *, skip: bool) -> Layout:
    """Choose among the kinds of masks, and divide the samples by their splits."""
    layout = Layout(root, "")
    found = _of_one_kind_of_images(found, layout)
    label_of = _one_file_for_each_class(found, layout)
    kinds = Counter(kind for pair in found for kind in pair.masks)
    ranked = _ranked(kinds, found)
    here: dict[Folder, set[Kind]] = defaultdict(set)
    for pair in found:
        here[pair.folder].update(pair.masks)
    of = {folder: next((k for k in ranked if k in kinds), None) for folder, kinds in here.items()}
    taken = list(dict.fromkeys(kind for kind in of.values() if kind is not None))
    _say_which(layout, taken, ranked)
    labelled: dict[Split, list[Sample]] = defaultdict(list)
    bare: dict[Split, list[Found]] = defaultdict(list)
    joined: list[Sequence[Path]] = []
    owners: dict[Path, Path] = {}
    for pair in found:
        kind = of[pair.folder]
        files = pair.masks.get(kind, []) if kind is not None else []
        if not files:
            bare[pair.split].append(pair)
            continue
        labels = tuple(label_of[file] for file in files if file in label_of)
        twins = [f for f in files[1:] if f.stem.lower() == files[0].stem.lower()]
        same = [] if labels else twins
        other = owners.setdefault(files[0], pair.image)
        if same or other != pair.image:
            twice = (files[0], same[0]) if same else (other, pair.image)
            text = f"{twice[0]}: {twice[1].name} has the same name; keep one of them"
            findings.problem(text, pair.image, other, *files)
        if len(files) > 1 and not labels:
            joined.append(files)
        mask = _mask(tuple(files), labels)
        labelled[pair.split].append(Sample(pair.name, pair.image, mask))
    layout.splits = dict(labelled)
    if joined:
        few, most = min(map(len, joined)), max(map(len, joined))
        counts = f"{few}" if few == most else f"{few} to {most}"
        layout.notes.append(
            f"{len(joined)} images have {counts} mask files each: their union is the mask"
        )
        if (share := overlap(joined)) is not None and share > 0.5:
            layout.warnings.append(
                f"the mask files of an image overlap by {100 * share:.0f} %: if they are those of "
                "several annotators, and no objects, choose one with --images and --masks"
            )
    if several := [pair.channels for pair in found if pair.channels > 1]:
        layout.warnings.append(
            f"{len(several)} images have {max(several)} channels in files of their own: only the "
            "first one (_0000) is read"
        )
    _say_unlabelled(layout, bare, findings, skip=skip)
    images = sorted({pair.folder.template for pair in found})
    layout.masks = str(taken[0]) if taken else ""
    layout.doubtful = any(kind.doubt in ("eye", "instance") for kind in taken)
    layout.kind = f"pairs of {images[0] or '*'} and {layout.masks} in {root}"
    _check_names(layout)
    return layout


def _mask(files: tuple[Path, ...], labels: tuple[int, ...]) -> Mask:
    if labels:
        return Layered(files, labels)
    return files[0] if len(files) == 1 else Joined(files)


def _one_file_for_each_class(found: Sequence[Found], layout: Layout) -> dict[Path, int]:
    """Make one kind of those that show a class each, and return the label of each file."""
    for kinds in _sets_of_kinds(found):
        rows = [[f for f in files if f is not None] for files in zip(*kinds.values(), strict=True)]
        if 2 * sum(len(row) > 1 for row in rows) <= len(rows):
            continue
        names = names_of_classes(list(kinds))
        share = overlap(rows) if names is not None else None
        if names is None or share is None or share > EDGES:
            continue
        label_of = {
            file: label
            for label, files in enumerate(kinds.values(), start=1)
            for file in files
            if file is not None
        }
        whole = Kind(" + ".join(kind.removesuffix("*") for kind in kinds), "")
        for pair in found:
            own = [f for files in pair.masks.values() for f in files if f in label_of]
            rest = {k: f for k, f in pair.masks.items() if not label_of.keys() & set(f)}
            pair.masks = rest | ({whole: sorted(own, key=label_of.__getitem__)} if own else {})
        layout.names.append(ClassNames(None, {0: "background", **dict(enumerate(names, 1))}))
        layout.notes.append(f"each class has masks of its own: {', '.join(names)}")
        return label_of
    return {}


def _sets_of_kinds(found: Sequence[Found]) -> Iterator[dict[str, list[Path | None]]]:
    """Yield what may be the masks of several classes: for each the file of each image."""
    kinds = {kind for pair in found for kind in pair.masks}
    usual = sorted((k for k in kinds if not k.doubt and not rank(k.name)[0]), key=str)
    pairs = [pair for pair in found if pair.masks]
    if all(len(pair.masks.get(kind, ())) <= 1 for pair in pairs for kind in usual):
        yield {k.name: [next(iter(p.masks.get(k, ())), None) for p in pairs] for k in usual}
    for kind in usual:  # files of the same names in the folder of each image
        of = [{file.stem: file for file in pair.masks.get(kind, ())} for pair in pairs]
        counts = Counter(stem for files in of for stem in files)
        if len(pairs) > 1 and all(2 * n >= len(pairs) for n in counts.values()):
            yield {stem: [files.get(stem) for files in of] for stem in sorted(counts)}


def _of_one_kind_of_images(found: list[Found], layout: Layout) -> list[Found]:
    """Leave out the images of folders whose masks belong to the images of a better folder."""
    claims: dict[Path, set[str]] = defaultdict(set)
    for pair in found:
        for files in pair.masks.values():
            for file in files:
                claims[file].add(pair.folder.literal)
    contested = {template for names in claims.values() if len(names) > 1 for template in names}
    if not contested:
        return found
    count = Counter(pair.folder.literal for pair in found if pair.masks)
    best = min(contested, key=lambda name: (-count[name], len(name), name))
    left = ", ".join(sorted(contested - {best}))
    layout.warnings.append(
        f"{best} and {left} have images for the same masks; {best} was taken: if that is wrong, "
        "say --images and --masks"
    )
    return [pair for pair in found if pair.folder.literal not in contested - {best}]


def _ranked(kinds: Counter[Kind], found: Sequence[Found]) -> list[Kind]:
    """The kinds, the best first; one that shows the same in every file gets a doubt."""
    order = list(_DOUBTS)

    def key(kind: Kind) -> tuple[int, int, float, int]:
        later, word = rank(kind.name)
        return order.index(kind.doubt), later, -kinds[kind] / len(found), word

    checked = []
    for kind in list(kinds):
        files = [pair.masks[kind][0] for pair in found if kind in pair.masks]
        doubt = kind.doubt or ("view" if is_field_of_view(files) else "")
        if not doubt and len(kinds) > 1 and is_for_the_eye(files):
            doubt = "eye"
        doubtful = replace(kind, doubt=doubt)
        if doubt != kind.doubt:
            kinds[doubtful] = kinds[kind]
            for pair in found:
                if kind in pair.masks:
                    pair.masks[doubtful] = pair.masks.pop(kind)
        checked.append(doubtful)
    return sorted(checked, key=key)


def _say_which(layout: Layout, taken: Sequence[Kind], ranked: Sequence[Kind]) -> None:
    for kind in taken:
        if kind.doubt in ("eye", "prediction"):
            layout.warnings.append(
                f"{kind} is taken, and these masks are {_DOUBTS[kind.doubt]}: if there are others, "
                "say --images and --masks"
            )
        if kind.doubt == "view":
            layout.warnings.append(
                f"{kind} shows the same large shape in every file, as a camera's field of view: if "
                "it is not what you want to find, say --images and --masks"
            )
    others = [kind for kind in ranked if kind not in taken]
    if not others:
        return
    said = []
    for kind in others:
        why = _DOUBTS[kind.doubt] or ("a later observer" if rank(kind.name)[0] else "")
        said.append(f"{kind} ({why})" if why else str(kind))
    layout.notes.append(f"masks: {', '.join(map(str, taken))}; not taken: {', '.join(said)}")
    equal = [str(k) for k in others if not k.doubt and not rank(k.name)[0]]
    if equal and "ids" not in taken[0].name.lower():
        layout.warnings.append(
            f"{taken[0]} and {', '.join(equal)} could both be the masks; {taken[0]} was taken: "
            "if that is wrong, say --images and --masks"
        )


def _say_unlabelled(
    layout: Layout, bare: Mapping[Split, list[Found]], findings: Findings, *, skip: bool
) -> None:
    for split, pairs in bare.items():
        labelled = layout.splits.get(split, [])
        if split is not None and not labelled:
            layout.notes.append(f"{split}: {len(pairs)} images without masks, left out")
            continue
        voc = pairs[0].folder.path.name == "JPEGImages"  # most have boxes only, by design
        if skip or voc:
            layout.notes.append(f"{len(pairs)} images without a mask, left out")
            continue
        files = [pair.image for pair in pairs]
        way = "or leave such images out with --skip-unlabelled"
        if len(files) == 1:
            text = f"has no mask of its name; add the mask or remove the image, {way}"
            findings.problem(f"{files[0]}: {text}", *files)
            continue
        total = len(files) + len(labelled)
        text = f"{len(files)} of {total} images have no mask ({_some(files)}); add the masks, {way}"
        findings.problem(f"{files[0].parent}: {text}", *files)


def _some(files: Sequence[Path]) -> str:
    return ", ".join([*(file.name for file in files[:3]), *["..."] * (len(files) > 3)])


def _name_what_is_left(layout: Layout, folders: Sequence[Folder], found: Sequence[Found]) -> None:
    """Note the folders whose pictures are neither an image nor a candidate for a mask."""
    known = {pair.image for pair in found}
    known |= {file for pair in found for files in pair.masks.values() for file in files}
    left = [f for f in folders if not known.intersection(f.files)]
    if left:
        said = [f"{f.path.relative_to(layout.root)}/ ({len(f.files)})" for f in left[:4]]
        more = ["..."] * (len(left) > 4)
        layout.notes.append(f"pictures that are not used: {', '.join([*said, *more])}")


def orphans(layout: Layout, folders: Sequence[Folder], findings: Findings) -> None:
    """Tell of the masks that have no image, in the folders that masks were taken from."""
    used = {file for sample in layout.samples for file in mask_files(sample.mask)}
    places = {file.parent for file in used}
    images = {sample.image for sample in layout.samples}
    for folder in folders:
        if folder.path not in places or images.intersection(folder.files):
            continue
        affixes = {stem_of(f.stem).affixes[-1] for f in folder.files if f in used}
        left = [f for f in folder.files if f not in used and stem_of(f.stem).affixes[-1] in affixes]
        if len(left) == 1:
            text = f"{left[0]}: this mask has no image; add the image or remove the mask"
            findings.problem(text, *left)
        elif left:
            text = f"{len(left)} masks have no image ({_some(left)}); add the images or remove them"
            findings.problem(f"{folder.path}: {text}", *left)


def _check_names(layout: Layout) -> None:
    seen: dict[str, Path | None] = {}
    for split, samples in layout.splits.items():
        for i, sample in enumerate(samples):
            if sample.name not in seen:
                seen[sample.name] = sample.image
                continue
            # Splits that are folders may number their images alike.
            name = f"{split}/{sample.name}" if split else "/".join(sample.files[0].parts[-3:])
            samples[i] = replace(sample, name=name)
