"""What the names of folders and files say: images or masks, which split, and which sample."""

import re
from dataclasses import dataclass
from functools import cache
from typing import Literal

Role = Literal["image", "mask"]

SPLITS = {
    "train": ("train", "training", "trn", "tr"),
    "val": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing", "tst", "ts", "te"),
}
_IMAGES = (
    *("images", "image", "imgs", "img", "jpegimages", "pictures", "picture", "pics", "pic"),
    *("photos", "photo", "frames", "frame", "inputs", "input", "originals", "original", "rgb"),
    *("satellite", "sat", "scans", "scan", "bilder"),
)
_MASKS = (
    *(
        "masks",
        "mask",
        "masken",
        "maske",
        "segmentationclass",
        "segmentations",
        "segmentation",
        "segmap",
        "segmaps",
    ),
    *("segs", "seg", "labels", "label", "labs", "lab", "labelids", "labeltrainids", "trainids"),
    *("lbl", "gts", "gt", "groundtruths", "groundtruth", "ground", "truth", "truths"),
    *("annotations", "annotation", "annotated", "annots", "annot", "anns", "ann", "annos", "anno"),
    *(
        "targets",
        "target",
        "semantics",
        "semantic",
        "manual",
        "trimaps",
        "trimap",
        "ho",
        "observer",
    ),
)
# Beside the masks of classes: pictures of them for the eye, and maps of instances.
_FOR_THE_EYE = (
    *("superpixels", "superpixel", "heatmaps", "heatmap"),
    *("visualizations", "visualization", "visualisation", "visualize", "visual", "viz", "vis"),
    *(
        "overlays",
        "overlay",
        "blend",
        "preview",
        "colormaps",
        "colormap",
        "colors",
        "color",
        "colours",
        "colour",
    ),
)
_INSTANCES = (
    "panoptic",
    "instanceids",
    "instances",
    "instance",
    "segmentationobject",
    "objects",
    "object",
)
_PREDICTIONS = ("predictions", "prediction", "predicted", "preds", "pred")
_FILLERS = (
    *("datasets", "dataset", "data", "sets", "set", "dirs", "dir", "folders", "folder", "files"),
    *("prepped", "png", "jpg", "jpeg", "tif", "tiff", "npy", "raw", "left", "8bit", "bit", "fine"),
    *("coarse", "1st", "2nd", "first", "second", "id", "ids", "all", "class"),
    *("trainval", "anon"),
)
_OBSERVERS = ("2nd", "second", "3rd", "third")
SPLIT_OF = {word: split for split, words in SPLITS.items() for word in words}
# Too short to be looked for inside of longer words.
_ALONE: dict[str, Role] = {"x": "image", "y": "mask", "l": "mask", "p": "mask"}


def _kinds() -> dict[str, str]:
    kinds = dict.fromkeys(_IMAGES, "image") | dict.fromkeys(_MASKS, "mask")
    kinds |= dict.fromkeys(_FOR_THE_EYE, "eye") | dict.fromkeys(_INSTANCES, "instance")
    kinds |= dict.fromkeys(_PREDICTIONS, "prediction") | dict.fromkeys(_FILLERS, "filler")
    return kinds | SPLIT_OF


_KINDS = _kinds()
_DOUBTS = ("eye", "instance", "prediction")
_TOKEN = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])|\d+(?:st|nd|bit)?|[^A-Za-z0-9]+")
# Longest first, so that "labels" is not "label" and an "s".
_WORDS = re.compile("|".join(sorted(_KINDS, key=len, reverse=True)))


@dataclass(frozen=True)
class Meaning:
    """What a name says.

    Attributes:
        role: Of what lies there, None where the name does not say.
        split: `"train"`, `"val"` or `"test"`, None where the name does not say.
        doubt: Why a mask is none to train on: `"eye"` (drawn for the eye), `"instance"` or
            `"prediction"`.
        rest: What is left without the words that say so.
        template: The name with its split as `{split}`.
    """

    role: Role | None
    split: str | None
    doubt: str
    rest: str
    template: str


@cache
def meaning(name: str) -> Meaning:
    """Return what the name of a folder says."""
    role: Role | None = None
    split, doubt, rest, template = None, "", "", ""
    for token in _TOKEN.findall(name):
        kinds = _kinds_of(token.lower())
        splits = [kind for kind in kinds if kind in SPLITS]
        if splits and split is None:
            split = splits[0]
            template += token.lower().replace(_word_of(token.lower(), split), "{split}")
        else:
            template += token
        if "mask" in kinds:
            role = "mask"
        elif "image" in kinds and role is None:
            role = "image"
        doubt = next((kind for kind in kinds if kind in _DOUBTS), doubt)
        # Masks painted in colours beside those with values, such as semantic_rgb.
        doubt = "eye" if token.lower() == "rgb" and role == "mask" else doubt
        year = re.fullmatch(r"(19|20)\d\d", token)
        if not kinds and not year and token.strip(" _.-"):
            rest += f"_{token.lower()}" if rest else token.lower()
    if doubt and role is None:
        role = "mask"
    if role is None and name.lower() in _ALONE:
        role, rest = _ALONE[name.lower()], ""
    if role is None and split is None:
        return Meaning(None, None, "", name, name)  # a town, a patient, a tile
    return Meaning(role, split, doubt, rest, template)


@cache
def _kinds_of(token: str) -> tuple[str, ...]:
    """The kinds of the words that a token consists of; none if there is anything else in it."""
    found, start = [], 0
    while start < len(token):
        match = _WORDS.match(token, start)
        if match is None:
            return ()
        found.append(_KINDS[match.group()])
        start = match.end()
    return tuple(found)


def _word_of(token: str, split: str) -> str:
    return next(word for word in sorted(SPLITS[split], key=len, reverse=True) if word in token)


_SEPARATED = r"(?:[ _.\-]+|(?<=[a-z0-9])(?=[A-Z]))"
_ANY = rf"(?i:{_WORDS.pattern})"
_NAMED = rf"(?i:{'|'.join((*_IMAGES, *_MASKS))})"
_END = re.compile(
    rf"(?:^{_NAMED}|-labell?ed|{_SEPARATED}(?:{_ANY})+|[_\-](?i:[lp])|{_SEPARATED}(?i:manual|observer)\d)$"
)
# "x_mask_1" and "x_mask_2" are parts of one mask; "x_manual1" and "x_manual2" are two observers.
_NUMBERED_END = re.compile(rf"{_SEPARATED}(?:{_ANY})*(?i:masks?)(?P<part>[ _\-]?\d{{1,3}})$")
_LABELLED = ("-labelled", "-labeled")  # as QuPath calls them
# nnU-Net numbers the channels of an image, and its labels have none.
_CHANNEL = re.compile(r"_0\d{3}$")
_START = re.compile(rf"^{_NAMED}(?:[ _.\-]+|(?=\d))")


@dataclass(frozen=True)
class Stem:
    """What is left of a file's name, step by step, as words are taken off its ends.

    Attributes:
        keys: The name, then with one word less, and so on, in small letters.
        affixes: What was taken off for each, the rest as `*`.
    """

    keys: tuple[str, ...]
    affixes: tuple[str, ...]

    @property
    def role(self) -> Role | None:
        """What the words at the ends say."""
        said = {meaning(affix.strip("*_- ")).role for affix in self.affixes[1:]}
        if any(affix.endswith(_LABELLED) for affix in self.affixes):
            said.add("mask")
        return "mask" if "mask" in said else "image" if "image" in said else None


def stem_of(name: str) -> Stem:
    """Take a file's name, without its suffix, apart."""
    keys, affixes = [name.lower()], ["*"]
    key, end = name, ""
    if match := _NUMBERED_END.search(key):
        key = key[: match.start("part")]
    while match := _END.search(key) or _CHANNEL.search(key):
        end = key[match.start() :] + end
        key = key[: match.start()]
        keys.append(key.lower())
        affixes.append(f"*{end}")
    if match := _START.match(key):
        keys.append(key[match.end() :].lower())
        affixes.append(f"{match.group()}*{end}")
    return Stem(tuple(keys), tuple(affixes))


def rank(name: str) -> tuple[int, int]:
    """Return how well a name says that these are the masks to train on: the lowest first.

    A second observer comes after the first; ids of training classes come before other ids.
    """
    tokens = [token.lower() for token in _TOKEN.findall(name)]
    later = any(token in _OBSERVERS or token in ("manual2", "observer2") for token in tokens)
    places = [
        _MASKS.index(word) for token in tokens for word in _WORDS.findall(token) if word in _MASKS
    ]
    exact = 0 if any(word in name.lower() for word in ("trainids", "labelids")) else 1
    return (int(later), exact * (1 + min(places, default=len(_MASKS))))


def is_channel(name: str) -> bool:
    """Whether a file's name, without its suffix, ends with the number of a channel."""
    return _CHANNEL.search(name) is not None
