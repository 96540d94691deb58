"""Write what the documentation takes from the code: the catalogue, and the table in the README.

    python docs/build.py            write both
    python docs/build.py --check    exit 1 if either is out of date

Docstrings say everything once; `tests/test_docs.py` runs the check.
"""

from __future__ import annotations

import inspect
import re
import sys
from pathlib import Path

from denseloss import functional
from denseloss.contract import arguments

ROOT = Path(__file__).parent.parent
BEGIN, END = "<!-- catalogue: made by docs/build.py -->\n", "<!-- end of catalogue -->\n"


def families() -> dict[str, list[str]]:
    """The functions of each family by its title, in the order of the source."""
    found: dict[str, list[str]] = {}
    for name in functional.__all__:
        family = inspect.getmodule(inspect.unwrap(getattr(functional, name)))
        # Each file says in its first words what its functions are.
        title = re.split("[:.,]", inspect.getdoc(family) or "")[0]
        found.setdefault(title, []).append(name)

    def line(name: str) -> int:
        return inspect.unwrap(getattr(functional, name)).__code__.co_firstlineno

    return {title: sorted(names, key=line) for title, names in found.items()}


def docstring(name: str) -> tuple[str, str, str]:
    """The first line, what stands before the sections, and the sections."""
    text = inspect.getdoc(getattr(functional, name)) or ""
    first, _, rest = text.partition("\n\n")
    body, mark, sections = rest.partition("Args:\n")
    return first, body.rstrip(), mark + sections


def source(name: str) -> str:
    """The citation, on one line."""
    text = docstring(name)[2].partition("Source:\n")[2].partition("\n\n")[0]
    return re.sub(r"\s+", " ", text).strip()


def cited(name: str) -> str:
    """Authors and year, linked to the paper where it is on arXiv."""
    text = source(name).split(";")[0]
    authors = re.split(r",? \*|, \d|: | \(", text)[0].rstrip(",")
    year = re.search(r"\b(?:19|20)\d\d\b", text)
    arxiv = re.search(r"arXiv:(\d{4}\.\d{4,5})", text)
    label = f"{authors} {year.group()}" if year else authors
    return f"[{label}](https://arxiv.org/abs/{arxiv.group(1)})" if arxiv else label


def readme_table() -> str:
    """One row per function."""
    rows = ["| function | what it is | source |", "|---|---|---|"]
    for names in families().values():
        for name in names:
            first = docstring(name)[0].rstrip(".")
            rows.append(f"| [`{name}`](docs/catalogue.md#{name}) | {first} | {cited(name)} |")
    return "\n".join(rows) + "\n"


def shapes(name: str) -> str:
    """The shapes of the tensors, from the annotations."""
    lines = []
    for argument in arguments(getattr(functional, name)).values():
        if argument.kind is not None:
            forms = " or ".join(f"`{form.notation}`" for form in argument.kind.forms)
            lines.append(f"- `{argument.name}`: {argument.kind.meaning}, {forms}")
    return "\n".join(lines)


def catalogue() -> str:
    """The whole catalogue as one page."""
    parts = [
        "# Catalogue\n",
        "Made from the docstrings by `docs/build.py`. Axes: `n` images, `c` classes or channels, "
        "`*s` one to three axes of space, `*m` boxes, `k` bins; `#` may be 1.\n",
        "NaN? A label that is no class, or a mask of 0 and 255, makes a loss NaN: "
        "`denseloss.testing.diagnose(loss, *inputs)` says which input is wrong.\n",
        "[Settings that give the numbers of other libraries](equal_settings.md).\n",
    ]
    for title, names in families().items():
        parts.append(f"## {title}\n")
        for name in names:
            first, body, sections = docstring(name)
            signature = inspect.signature(getattr(functional, name))
            call = ", ".join(_parameter(p) for p in signature.parameters.values())
            equation, _, use = body.partition("\n\n")
            parts += [
                f"### {name}\n",
                f"{first}\n",
                f"```python\n{name}({call})\n```\n",
                f"```text\n{equation}\n```\n",
                f"{use}\n" if use else "",
                f"{shapes(name)}\n",
                f"```text\n{sections.rstrip()}\n```\n",
            ]
    return "\n".join(part for part in parts if part)


def _parameter(parameter: inspect.Parameter) -> str:
    if parameter.default is inspect.Parameter.empty:
        return parameter.name
    return f"{parameter.name}={parameter.default!r}"


def pages() -> dict[Path, str]:
    """What each generated page must hold."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    before, _, rest = readme.partition(BEGIN)
    after = rest.partition(END)[2]
    return {
        ROOT / "docs" / "catalogue.md": catalogue(),
        ROOT / "README.md": before + BEGIN + readme_table() + END + after,
    }


def main() -> int:
    """Write or check the pages."""
    stale = [p for p, text in pages().items() if not p.exists() or p.read_text("utf-8") != text]
    if "--check" in sys.argv:
        for page in stale:
            print(f"{page.relative_to(ROOT)} is out of date: run python docs/build.py")
        return 1 if stale else 0
    for page in stale:
        page.write_text(pages()[page], encoding="utf-8")
        print(f"wrote {page.relative_to(ROOT)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
