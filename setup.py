"""Builds the C kernels; everything else about the package is in pyproject.toml.

The kernels are shared objects with a plain C ABI, one for each width of vector registers, and no
Python extension modules: denseloss.primitives.cpu.library chooses one when it is first needed, and
one wheel serves every Python and every PyTorch of a platform. Where there is no C compiler the
install succeeds without them, and every loss runs in plain torch.

scikit-build-core with CMake was tried in its place: 79 lines, and it kept all of this. But its
editable installs answer every import through a hook that comes before PYTHONPATH, so that tests
and benchmarks of another copy of the sources silently run this one.
"""

from __future__ import annotations

import os
import platform
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import ClassVar

from setuptools import Command, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build import build

SOURCES = Path("src", "denseloss", "primitives", "cpu")
PACKAGE = SOURCES.relative_to("src")

# Never -ffast-math: before gcc 13 a shared object built with it flushes the denormal numbers of the
# whole process to zero. Never -march=native: a wheel runs on other machines than its builder.
FLAGS = [
    *("-O3", "-std=c11", "-fPIC", "-shared", "-fvisibility=hidden"),
    *("-fno-math-errno", "-fno-trapping-math", "-fno-signed-zeros"),
    "-ffp-contract=off",  # fused only where FMA says so, see numbers.h
]

OBJECTS = {
    "x86_64": {
        "kernels_v3.so": ["-march=x86-64-v3"],
        "kernels_v4.so": ["-march=x86-64-v4", "-mprefer-vector-width=512"],
    },
    "aarch64": {"kernels_aarch64.so": ["-march=armv8-a"]},
}

# Threads and vectorised loops, the latter alone, or neither: the first that the compiler can link.
OPENMP = [["-fopenmp"], ["-fopenmp-simd"], []]
if sys.platform == "darwin":
    # Apple's clang has no runtime for threads. Another clang would link its own libomp, and a
    # second one beside torch's aborts the process.
    OPENMP.pop(0)
NO_COMPILER = "no C compiler"
PROBE = "int denseloss_probe(void) { return 0; }\n"


def machine() -> str:
    """The architecture that this Python runs on, "" where no kernels are built for it."""
    if os.name != "posix" or sys.maxsize < 2**32:
        return ""
    return {"AMD64": "x86_64", "arm64": "aarch64"}.get(platform.machine(), platform.machine())


def compiler() -> list[str]:
    """The command of the C compiler.

    Raises:
        FileNotFoundError: there is none; the message says where it was looked for.
    """
    asked = os.environ.get("CC")
    known = [sysconfig.get_config_var("CC") or "", "cc", "gcc", "clang"]
    for command in [asked] if asked else known:
        words = shlex.split(command)
        if words and shutil.which(words[0]):
            return words
    looked = f"CC={asked}" if asked else ", ".join(sorted({k.split()[0] for k in known if k}))
    raise FileNotFoundError(f"{NO_COMPILER} (looked for {looked})")


def compiled(command: list[str], source: Path, target: Path) -> str:
    """Compile one object; returns what the compiler complained of, "" where it succeeded."""
    part = target.with_suffix(f".{os.getpid()}.part")  # a process may be running the old object
    call = [*command, "-o", str(part), str(source), "-lm"]
    done = subprocess.run(call, capture_output=True, text=True, errors="replace")
    if done.returncode == 0:
        part.replace(target)
        sys.stderr.write(done.stderr)  # warnings
        return ""
    part.unlink(missing_ok=True)
    return done.stderr.strip() or f"{shlex.join(call)}: exit status {done.returncode}"


def openmp(cc: list[str]) -> list[str]:
    """The flags for OpenMP that this compiler can compile and link with."""
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "probe.c")
        source.write_text(PROBE)
        for flags in OPENMP:
            if not compiled([*cc, *FLAGS, *flags], source, source.with_suffix(".so")):
                return flags
    return []


def say(line: str) -> None:
    """One line on stderr; pip shows it with -v, and after a failure."""
    print(f"denseloss: {line}", file=sys.stderr, flush=True)


class build_kernels(Command):  # noqa: N801 - setuptools names commands so
    """Compile the kernels: into the build folder, or beside their sources for an editable install.

    An object that is newer than all of its sources is kept; `--force` compiles it again.
    """

    description = "compile the C kernels"
    user_options: ClassVar = [
        ("build-lib=", "d", "folder to build into"),
        ("editable-mode", "i", "build beside the sources"),
        ("force", "f", "compile again what is newer than its sources"),
        ("strict", None, "fail where there is a compiler and nothing compiles"),
    ]
    boolean_options: ClassVar = ["editable-mode", "force", "strict"]
    editable_mode = False
    strict = False
    build_lib: str | None
    force: bool | None

    def initialize_options(self) -> None:
        """Nothing is known yet."""
        self.build_lib = None
        self.force = None

    def finalize_options(self) -> None:
        """Build where and as the Python modules are built."""
        self.set_undefined_options("build_py", ("build_lib", "build_lib"), ("force", "force"))

    def get_source_files(self) -> list[str]:
        """What goes into the sdist."""
        return [str(p) for end in ("*.c", "*.h", "*.inc") for p in sorted(SOURCES.glob(end))]

    def get_outputs(self) -> list[str]:
        """What may be built here."""
        assert self.build_lib is not None
        return [str(Path(self.build_lib, PACKAGE, name)) for name in OBJECTS.get(machine(), {})]

    def get_output_mapping(self) -> dict[str, str]:
        """Where an editable install finds what was built."""
        pairs = {output: SOURCES / Path(output).name for output in self.get_outputs()}
        return {o: str(p) for o, p in pairs.items() if self.editable_mode and p.exists()}

    @property
    def folder(self) -> Path:
        """Where the objects go."""
        assert self.build_lib is not None
        return SOURCES if self.editable_mode else Path(self.build_lib, PACKAGE)

    def built(self) -> list[Path]:
        """The objects that are there."""
        return sorted(self.folder.glob("kernels_*.so"))

    def run(self) -> None:
        """Remove what is stale, compile what is missing, and say so where that fails."""
        self.folder.mkdir(parents=True, exist_ok=True)
        targets = OBJECTS.get(machine(), {})
        newest = max(Path(p).stat().st_mtime for p in [*self.get_source_files(), __file__])
        for path in self.built():
            if self.force or path.name not in targets or path.stat().st_mtime < newest:
                path.unlink()
        failures = self.compile([name for name in targets if not (self.folder / name).exists()])
        there = ", ".join(path.name for path in self.built())
        if failures and there:
            say(f"without {', '.join(failures)}, which did not compile; {there} runs instead.")
        elif not there:
            why = f"there are no kernels for {platform.system()} on {platform.machine()}"
            why = next(iter(failures.values()), why)
            if self.strict and not why.startswith(NO_COMPILER):
                raise SystemExit("denseloss: the C kernels do not compile.")
            say(
                f"{why.splitlines()[0]}. Installed without the fast CPU kernels: every loss works, "
                "in plain torch. To have them, install a C compiler (gcc or clang) and reinstall "
                "denseloss."
            )

    def compile(self, names: list[str]) -> dict[str, str]:
        """Compile objects side by side; returns why, for each that failed."""
        if not names:
            return {}
        try:
            cc = compiler()
        except FileNotFoundError as error:
            return dict.fromkeys(names, str(error))
        shared = [*cc, *FLAGS, *openmp(cc)]
        if "-fopenmp" not in shared:
            say("the compiler has no OpenMP: the CPU kernels will run on one thread.")

        def make(name: str) -> str:
            flags = [*shared, *OBJECTS[machine()][name]]
            return compiled(flags, SOURCES / "kernels.c", self.folder / name)

        with ThreadPoolExecutor() as pool:
            failures = {n: why for n, why in zip(names, pool.map(make, names), strict=True) if why}
        sys.stderr.writelines(why + "\n" for why in failures.values())
        return failures


class BuildWithKernels(build):
    """A build that compiles the kernels, too."""

    sub_commands: ClassVar = [*build.sub_commands, ("build_kernels", None)]


class PlatformWheel(bdist_wheel):
    """A wheel for every Python of this platform, or of any platform where nothing was compiled."""

    def run(self) -> None:
        """Compile first: the result decides which kind of wheel this is."""
        self.run_command("build_kernels")
        if self.get_finalized_command("build_kernels").built():
            self.root_is_pure = False
            self.distribution.has_ext_modules = lambda: (
                True
            )  # so that the modules go beside the objects
        super().run()

    def get_tag(self) -> tuple[str, str, str]:
        """No part of the package depends on Python's ABI."""
        tag = super().get_tag()[2]
        # A Python for both of Apple's architectures still compiles for the one it runs on.
        return "py3", "none", tag.replace("universal2", platform.machine().lower())


setup(
    cmdclass={
        "build": BuildWithKernels,
        "build_kernels": build_kernels,
        "bdist_wheel": PlatformWheel,
    }
)
