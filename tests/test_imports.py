"""`import denseloss` costs nothing beyond `import torch`."""

import ast
import graphlib
import importlib
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import denseloss

PROBE = """
import json, sys, time
import torch
before = set(sys.modules)
start = time.process_time()  # not the clock: another process may hold the core
import denseloss
seconds = time.process_time() - start
print(json.dumps([sorted(set(sys.modules) - before), seconds, torch.cuda.is_initialized()]))
"""


def probe() -> tuple[list[str], float, bool]:
    done = subprocess.run([sys.executable, "-c", PROBE], capture_output=True, text=True, check=True)
    modules, seconds, cuda = json.loads(done.stdout)
    return modules, seconds, cuda


def test_import_loads_denseloss_only() -> None:
    modules, _, cuda = probe()
    assert [m for m in modules if m.partition(".")[0] != "denseloss"] == []
    names = ("train", "compare", "tasks", "report", "explain", "data", "cli", "testing")
    tool = tuple(f"denseloss.{name}" for name in names)
    assert [m for m in modules if m.startswith(tool)] == []
    assert not cuda


def test_import_takes_less_than_100_ms() -> None:
    # the least of several: another process may have emptied the caches
    assert min(probe()[1] for _ in range(6)) < 0.100


@pytest.mark.parametrize("module", ["denseloss.testing", "denseloss.functional"])
def test_library_modules_import_without_the_tool(module: str) -> None:
    heavy = ("lightning", "torchvision", "PIL", "matplotlib", "hypothesis")
    code = f"import {module}, sys; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("name", ["train", "compare", "tasks", "data"])
def test_every_public_name_of_the_tool_is_there(name: str) -> None:
    module = importlib.import_module(f"denseloss.{name}")
    assert [n for n in module.__all__ if getattr(module, n, None) is None] == []


SOURCES = Path(denseloss.__file__).parents[1]
FILES = {
    ".".join(p.relative_to(SOURCES).with_suffix("").parts).removesuffix(".__init__"): p
    for p in SOURCES.glob("denseloss/**/*.py")
}


def imported(name: str) -> Iterator[str]:
    """The files that a file imports, those inside functions, too."""
    for node in ast.walk(ast.parse(FILES[name].read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in FILES)
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                file = f"{node.module}.{alias.name}"
                yield file if file in FILES else str(node.module)


def test_no_file_imports_itself_through_others() -> None:
    graph = {name: set(imported(name)) for name in FILES}
    graphlib.TopologicalSorter(graph).prepare()
    assert "denseloss.primitives.on_cpu" in graph["denseloss.primitives"], "lazy ones, too"
    assert not [n for n in graph["denseloss.backend"] if n.startswith("denseloss")]
