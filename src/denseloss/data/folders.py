"""The folders of a data set that hold pictures, and what their paths say."""

import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from denseloss.data.images import is_picture
from denseloss.data.paths import Meaning, Role, meaning

Split = str | None
"""None: there is no split."""


@dataclass(frozen=True, eq=False)  # its files are many, and it is a key
class Folder:
    """A folder with pictures in it.

    Attributes:
        path: Where it is.
        files: The pictures.
        means: What the parts of its path below the data's folder say.
        told: What the user says that it holds.
    """

    path: Path
    files: tuple[Path, ...]
    means: tuple[Meaning, ...]
    told: Role | None = None

    @cached_property
    def role(self) -> Role | None:
        """What it holds, as far as that is said."""
        return self.told or next((m.role for m in reversed(self.means) if m.role), None)

    @cached_property
    def split(self) -> Split:
        """The split that its path says."""
        return next((m.split for m in reversed(self.means) if m.split), None)

    @cached_property
    def place(self) -> tuple[str, ...]:
        """The parts of its path that are part of a sample's name: a town, a patient, a tile."""
        return tuple(m.rest for m in self.means if m.role is None and m.rest)

    @cached_property
    def key(self) -> tuple[str, ...]:
        """Its place, as it is compared."""
        return tuple(part.lower() for part in self.place)

    @cached_property
    def rest(self) -> tuple[str, ...]:
        """What is left of the parts that say something, such as the 1 of masks_1."""
        return tuple(m.rest for m in self.means if m.role is not None and m.rest)

    @cached_property
    def literal(self) -> str:
        """Its path, with a * for its split."""
        return "".join(f"{m.template}/" for m in self.means).replace("{split}", "*")

    @cached_property
    def template(self) -> str:
        """Its path, with a * for its split and for its place."""
        parts = ["*" if m.role is None else m.template for m in self.means]
        return "".join(f"{part}/" for part in parts).replace("{split}", "*")


def folders_below(root: Path) -> list[Folder]:
    """Return the folders with pictures in them, sorted; what macOS leaves behind is none."""
    found, known = [], set()
    for where, inside, files in os.walk(root, followlinks=True):
        real = os.path.realpath(where)
        inside[:] = sorted(n for n in inside if not n.startswith(".") and n != "__MACOSX")
        if real in known:  # a link to a folder above
            inside.clear()
            continue
        known.add(real)
        path = Path(where)
        pictures = tuple(path / name for name in sorted(files) if is_picture(name))
        if pictures:
            means = tuple(meaning(part) for part in path.relative_to(root).parts)
            found.append(Folder(path, pictures, means))
    return found
