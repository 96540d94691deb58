"""The C kernels: built with the package, or not where there is no compiler; found and loaded."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest
import torch

import denseloss
from denseloss.primitives.cpu import library

ROOT = Path(__file__).parents[1]
SOURCES = Path("src", "denseloss", "primitives", "cpu")
PACKAGE = "denseloss/primitives/cpu/"
MACHINE = platform.machine()

# A small package with the real setup.py: what is tested is the build, not the kernels.
STUB = '#include "stub.h"\n'
STUB_HEADER = """
#define EXPORT __attribute__((visibility("default")))
EXPORT int denseloss_abi(void) { return ABI; }
EXPORT void denseloss_double(float *x, long n) {
#pragma omp parallel for num_threads(2)
    for (long i = 0; i < n; i++) x[i] *= 2;
}
""".replace("ABI", str(library.ABI))

cc = shutil.which("gcc") or shutil.which("cc")
linux_only = pytest.mark.skipif(sys.platform != "linux", reason="about ELF objects and wheel tags")
compiler_only = pytest.mark.skipif(cc is None, reason="there is no C compiler")
x86_only = pytest.mark.skipif(MACHINE != "x86_64", reason="about x86-64")
OBJECTS = {
    "x86_64": ["kernels_v3.so", "kernels_v4.so"],
    "aarch64": ["kernels_aarch64.so"],
    "arm64": ["kernels_aarch64.so"],
}.get(MACHINE, [])


@pytest.fixture
def project(tmp_path: Path) -> Path:
    folder = tmp_path / "project"
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, folder / name)
    (folder / SOURCES).mkdir(parents=True)
    for package in (SOURCES, SOURCES.parent, SOURCES.parent.parent):
        (folder / package / "__init__.py").touch()
    shutil.copy(ROOT / "src/denseloss/__init__.py", folder / "src/denseloss")  # has the version
    shutil.copy(ROOT / SOURCES / "library.py", folder / SOURCES)
    (folder / SOURCES / "kernels.c").write_text(STUB)
    (folder / SOURCES / "stub.h").write_text(STUB_HEADER)
    return folder


def build(project: Path, hook: str, **environment: str) -> tuple[Path, list[str]]:
    """Call a hook as pip and `python -m build` do; returns what it made, and what it said."""
    code = (
        "import sys, setuptools.build_meta as backend;"
        "print('made:', getattr(backend, sys.argv[1])('dist'))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, hook],
        cwd=project,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    said = [line for line in done.stderr.splitlines() if line.startswith("denseloss:")]
    return project / "dist" / done.stdout.rpartition("made: ")[2].strip(), said


def contents(wheel: Path) -> list[str]:
    return zipfile.ZipFile(wheel).namelist()


def objects(wheel: Path) -> list[str]:
    return sorted(n.removeprefix(PACKAGE) for n in contents(wheel) if n.endswith(".so"))


def wrapper(folder: Path, *, without: str) -> str:
    """A C compiler that does not know one flag."""
    path = folder / "old-cc"
    path.write_text(
        f'#!/bin/sh\ncase " $* " in *" {without} "*) echo "{without}?" >&2; exit 1;; esac\n'
        f'exec {cc} "$@"\n'
    )
    path.chmod(0o755)
    return str(path)


# --- the build ------------------------------------------------------------------------------------


@linux_only
@compiler_only
def test_pip_makes_one_wheel_for_every_python_of_the_platform(project: Path) -> None:
    call = [sys.executable, "-m", "pip", "wheel", ".", "--no-build-isolation", "--no-deps"]
    done = subprocess.run(
        [*call, "--no-index", "-w", "dist"], cwd=project, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (wheel,) = (project / "dist").iterdir()
    assert wheel.name.endswith(f"-py3-none-linux_{MACHINE}.whl")
    assert objects(wheel) == OBJECTS
    assert not [name for name in contents(wheel) if name.endswith((".c", ".h")) or ".data" in name]
    (metadata,) = (name for name in contents(wheel) if name.endswith(".dist-info/WHEEL"))
    assert wheel.name.startswith(f"denseloss-{denseloss.__version__}-")
    assert "Root-Is-Purelib: false" in zipfile.ZipFile(wheel).read(metadata).decode()


@pytest.mark.parametrize("hidden", ["CC", "PATH"])
def test_without_a_compiler_the_install_succeeds_and_says_so(
    project: Path, tmp_path: Path, hidden: str
) -> None:
    nowhere = str(tmp_path / "nowhere")
    asked = {"CC": nowhere} if hidden == "CC" else {"CC": "", "PATH": nowhere}
    wheel, said = build(project, "build_wheel", **asked)
    assert wheel.name.endswith("-py3-none-any.whl")
    assert objects(wheel) == []
    assert PACKAGE + "library.py" in contents(wheel)
    assert len(said) == 1
    for part in ("no C compiler (looked for ", "plain torch", "install a C compiler", "reinstall"):
        assert part in said[0]
    if hidden == "CC":
        assert nowhere in said[0]


@compiler_only
def test_sdist_holds_the_c_sources_and_builds(project: Path, tmp_path: Path) -> None:
    sdist, _ = build(project, "build_sdist")
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
        archive.extractall(tmp_path / "unpacked", filter="data")
    assert {"setup.py", f"{SOURCES}/kernels.c", f"{SOURCES}/stub.h"} <= names
    assert not [name for name in names if name.endswith(".so")]
    (unpacked,) = (tmp_path / "unpacked").iterdir()
    wheel, said = build(unpacked, "build_wheel")
    assert objects(wheel) == OBJECTS
    assert said == [] or sys.platform == "darwin"


@compiler_only
def test_editable_install_builds_beside_the_sources(project: Path) -> None:
    folder = project / SOURCES
    build(project, "build_editable")
    assert sorted(path.name for path in folder.glob("*.so")) == OBJECTS

    def times() -> list[int]:
        return [(folder / name).stat().st_mtime_ns for name in OBJECTS]

    before = times()
    call = [sys.executable, "setup.py", "--quiet", "build_kernels", "--editable-mode", "--strict"]
    subprocess.run(call, cwd=project, check=True)  # make setup
    assert times() == before, "nothing had changed"
    (folder / "kernels_old.so").touch()
    later = before[0] + 10**9
    os.utime(folder / "stub.h", ns=(later, later))
    subprocess.run(call, cwd=project, check=True)
    assert all(now > then for now, then in zip(times(), before, strict=True))
    assert not (folder / "kernels_old.so").exists()

    (folder / "stub.h").write_text("no C")
    os.utime(folder / "stub.h", ns=(later + 10**11, later + 10**11))
    done = subprocess.run(call, cwd=project, capture_output=True, text=True)
    assert done.returncode == 1, "a developer must see that the kernels do not compile"
    assert "stub.h:1" in done.stderr
    assert not list(folder.glob("*.so")), "an object of older sources would be run"


@x86_only
@compiler_only
def test_an_old_compiler_builds_what_it_can(project: Path, tmp_path: Path) -> None:
    wheel, said = build(project, "build_wheel", CC=wrapper(tmp_path, without="-march=x86-64-v4"))
    assert objects(wheel) == ["kernels_v3.so"]
    assert "py3-none-any" not in wheel.name
    assert said == [
        "denseloss: without kernels_v4.so, which did not compile; kernels_v3.so runs instead."
    ]


@compiler_only
def test_without_openmp_the_kernels_run_on_one_thread(project: Path, tmp_path: Path) -> None:
    wheel, said = build(project, "build_wheel", CC=wrapper(tmp_path, without="-fopenmp"))
    assert objects(wheel) == OBJECTS
    assert said == [
        "denseloss: the compiler has no OpenMP: the CPU kernels will run on one thread."
    ]
    assert b"libgomp" not in zipfile.ZipFile(wheel).read(PACKAGE + OBJECTS[0])


# --- what says how it is installed ----------------------------------------------------------------


def test_install_lines_are_those_of_a_clone() -> None:
    """Nothing is promised by a name under which nothing is published."""
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = re.findall(r"^ +pip install (\S+)", (ROOT / "README.md").read_text(), re.MULTILINE)
    assert len(lines) == 3
    for line in lines:
        named = re.fullmatch(r"\.|'\.\[([\w,]+)\]'", line)
        assert named is not None, line
        assert set(filter(None, (named[1] or "").split(","))) <= set(
            extras["optional-dependencies"]
        )


def test_the_workflow_names_files_that_are_there() -> None:
    text = (ROOT / ".github/workflows/tests.yml").read_text()
    ignored = re.findall(r"--ignore=(\S+)", text)
    assert ignored
    assert [name for name in ignored if not (ROOT / name).exists()] == []


# --- the kernels of this checkout -----------------------------------------------------------------


def readelf(*arguments: str) -> str:
    if not shutil.which("readelf"):
        pytest.skip("needs readelf (binutils)")
    call = ["readelf", "-W", *arguments]
    return subprocess.run(call, capture_output=True, text=True, check=True).stdout


@linux_only
@compiler_only
@pytest.mark.parametrize("name", OBJECTS)
def test_objects_need_and_export_only_what_they_must(name: str) -> None:
    path = str(ROOT / SOURCES / name)
    needed = set(re.findall(r"\(NEEDED\).*\[(.+)\]", readelf("-d", path)))
    assert needed <= {"libc.so.6", "libm.so.6", "libgomp.so.1", "libpthread.so.0"}
    assert "libgomp.so.1" in needed

    symbols = [line.split() for line in readelf("--dyn-syms", path).splitlines()]
    exported = {s[7] for s in symbols if len(s) > 7 and s[4] == "GLOBAL" and s[6].isdigit()}
    assert "denseloss_abi" in exported
    assert {s for s in exported if not s.startswith("denseloss_")} == set()

    # torch may bring the runtime of an older gcc: 4.5 is that of gcc 6
    versions = re.findall(r"@G?OMP_([\d.]+)", readelf("--dyn-syms", path))
    assert max((tuple(map(int, v.split("."))) for v in versions), default=(0,)) <= (4, 5)


@x86_only
@compiler_only
@pytest.mark.parametrize(("capability", "name"), [("avx2", "v3"), ("avx512", "v4")])
def test_kernels_load_for_the_capability_that_torch_uses(capability: str, name: str) -> None:
    if "avx512f" not in Path("/proc/cpuinfo").read_text() and name == "v4":
        pytest.skip("this CPU has no AVX-512")
    code = "from denseloss.primitives.cpu import library; print(library.load()._name)"
    environment = {**os.environ, "ATEN_CPU_CAPABILITY": capability}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True
    )
    assert done.stdout.strip().endswith(f"kernels_{name}.so")


def test_import_denseloss_loads_no_kernels() -> None:
    code = "import denseloss, sys; print('denseloss.primitives.cpu.library' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


@linux_only
@compiler_only
def test_kernels_share_the_threads_of_torch() -> None:
    code = """
import torch
from denseloss.primitives.cpu import library

torch.ones(1 << 20).exp_()  # starts torch's threads
library.load()
maps = open("/proc/self/maps").read().split()
print(*sorted({path for path in maps if "libgomp" in path or "libomp" in path}), sep="\\n")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    runtimes = done.stdout.split()
    assert len(runtimes) == 1, runtimes
    assert Path(torch.__file__).parent in Path(runtimes[0]).parents


# --- which object is loaded, and why none ---------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An installed package without objects, on an x86-64 machine."""
    monkeypatch.setattr(library, "FOLDER", tmp_path)
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    monkeypatch.delenv(library.VARIABLE, raising=False)
    return tmp_path


def torch_reports(monkeypatch: pytest.MonkeyPatch, capability: str) -> None:
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)


@pytest.mark.parametrize(
    ("capability", "there", "found"),
    [
        ("AVX512", ["kernels_v3.so", "kernels_v4.so"], "kernels_v4.so"),
        ("AVX512", ["kernels_v3.so"], "kernels_v3.so"),
        ("AVX2", ["kernels_v3.so", "kernels_v4.so"], "kernels_v3.so"),
    ],
)
def test_the_widest_object_that_torch_would_run(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capability: str, there: list[str], found: str
) -> None:
    torch_reports(monkeypatch, capability)
    for name in there:
        (folder / name).touch()
    assert library.find().name == found


@pytest.mark.parametrize("machine", ["aarch64", "arm64"])
def test_arm(folder: Path, monkeypatch: pytest.MonkeyPatch, machine: str) -> None:
    monkeypatch.setattr(platform, "machine", lambda: machine)
    (folder / "kernels_aarch64.so").touch()
    assert library.find().name == "kernels_aarch64.so"


@pytest.mark.parametrize("capability", ["DEFAULT", "NO AVX"])
def test_an_old_cpu_has_no_kernels(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capability: str
) -> None:
    torch_reports(monkeypatch, capability)
    (folder / "kernels_v3.so").touch()
    with pytest.raises(library.Unavailable, match=f"AVX2.*{capability}"):
        library.find()


def test_another_machine_has_no_kernels(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "riscv64")
    with pytest.raises(library.Unavailable, match="riscv64"):
        library.load.__wrapped__()


def test_what_was_not_compiled_is_named_with_the_cure(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch_reports(monkeypatch, "AVX2")
    (folder / "kernels_v4.so").touch()
    with pytest.raises(library.Unavailable, match=r"kernels_v3\.so.*install a C compiler"):
        library.load.__wrapped__()


@compiler_only
@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("int denseloss_abi(void) { return 1000; }", r"its ABI is 1000, not \d+"),
        ("int something(void) { return 1; }", "its ABI is None"),
        (None, "do not load"),
    ],
)
def test_an_object_that_does_not_fit_is_refused(
    folder: Path, monkeypatch: pytest.MonkeyPatch, source: str | None, message: str
) -> None:
    path = folder / "kernels_v3.so"
    if source is None:
        path.write_text("garbage")
    else:
        (folder / "old.c").write_text(source)
        subprocess.run([cc, "-shared", "-fPIC", "-o", path, folder / "old.c"], check=True)
    torch_reports(monkeypatch, "AVX2")
    with pytest.raises(library.Unavailable, match=f"{message}.*reinstall"):
        library.load.__wrapped__()
    monkeypatch.setenv(library.VARIABLE, str(path))
    with pytest.raises(library.Unavailable, match=f"{message}.*{library.VARIABLE}"):
        library.load.__wrapped__()
