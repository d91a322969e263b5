"""The native parts: CMake builds csrc/ into fastac/_cpu.so and fastac/_cuda.so. The rest is in pyproject.toml.

FASTAC_NATIVE=auto (default) builds the CPU backend where cmake, a C++ compiler and torch are found, and says so where
they are not; the package works without. 1 makes a missing one, or a failed build, an error. 0 leaves it out.
FASTAC_CUDA=auto|0|1 is the same for the CUDA backend, which also needs nvcc; auto builds it where torch has CUDA.
FASTAC_CUDA_ARCHITECTURES: its GPUs, as CMAKE_CUDA_ARCHITECTURES ("90" is faster to build than the default).
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent


def missing_tools():
    """What the build lacks in any case, or None."""
    if not shutil.which("cmake"):
        return "cmake is not installed"
    compilers = [os.environ.get("CXX", ""), "c++", "g++", "clang++"]
    if not any(name and shutil.which(name.split()[0]) for name in compilers):
        return "no C++ compiler was found (c++, g++, clang++, or CXX)"
    try:
        import torch  # noqa: F401
    except ImportError:
        return "torch is not there at build time (install it first, then use --no-build-isolation)"
    return None


def find_nvcc():
    """The path of nvcc, or None."""
    homes = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), "/usr/local/cuda"]
    named = [
        os.environ.get("CUDACXX"),
        "nvcc",
        *(os.path.join(home, "bin", "nvcc") for home in homes if home),
    ]
    return next((path for name in named if name and (path := shutil.which(name))), None)


def missing_for_cuda(mode):
    """What the CUDA backend lacks, or None. A torch without CUDA can be built against, but has no use for it."""
    if missing := missing_tools():
        return missing
    import torch

    if mode == "auto" and torch.version.cuda is None:
        return f"this torch ({torch.__version__}) has no CUDA"
    return None if find_nvcc() else "nvcc was not found (CUDACXX, PATH, CUDA_HOME, /usr/local/cuda)"


# Extension → the variable that controls it, its name, what it lacks, and what CMake is told.
PARTS = {
    "fastac._cpu": ("FASTAC_NATIVE", "native CPU", lambda mode: missing_tools(), "-DFASTAC_CPU=ON"),
    "fastac._cuda": ("FASTAC_CUDA", "CUDA", missing_for_cuda, "-DFASTAC_CUDA=ON"),
}


class CMakeBuild(build_ext):
    def run(self):
        wanted, self.extensions = self.extensions, []
        for extension in wanted:
            if self._wants(extension):
                self.extensions.append(extension)
        super().run()

    def _wants(self, extension):
        variable, name, find_missing, _ = PARTS[extension.name]
        mode = os.environ.get(variable, "auto")
        if mode not in ("auto", "0", "1"):
            raise SystemExit(f"{variable} must be auto, 0 or 1, got {mode!r}")
        missing = f"{variable}=0" if mode == "0" else find_missing(mode)
        if missing and mode == "1":
            raise SystemExit(f"{variable}=1, but {missing}")
        if missing:
            self._leave_out(name, missing)
        return not missing

    def _leave_out(self, name, reason):
        print(f"fastac is installed without its {name} backend: {reason}", file=sys.stderr)

    def build_extensions(self):
        built = []
        for extension in self.extensions:
            variable, name, _, _ = PARTS[extension.name]
            try:
                self.build_extension(extension)
                built.append(extension)
            except subprocess.CalledProcessError as error:
                if os.environ.get(variable) == "1":
                    raise SystemExit(f"the build of the {name} backend failed: {error}") from None
                self._leave_out(name, f"its build failed ({error}; the compiler's words are above)")
        self.extensions = built

    def get_ext_filename(self, fullname):
        return str(Path(*fullname.split(".")).with_suffix(".so"))

    def build_extension(self, ext):
        import torch

        target = Path(self.get_ext_fullpath(ext.name)).resolve()
        build = Path(self.build_temp).resolve() / f"cmake{target.stem}"
        configure = [
            "cmake",
            *("-S", str(ROOT), "-B", str(build)),
            *("-DFASTAC_CPU=OFF", PARTS[ext.name][3]),
            f"-DFASTAC_TORCH={Path(torch.__file__).parent}",
            f"-DFASTAC_CXX11_ABI={int(torch.compiled_with_cxx11_abi())}",
            f"-DCMAKE_LIBRARY_OUTPUT_DIRECTORY={target.parent}",
            "-DCMAKE_BUILD_TYPE=Release",
        ]
        if ext.name == "fastac._cuda":
            configure += [f"-DCMAKE_CUDA_COMPILER={find_nvcc()}"]
            if architectures := os.environ.get("FASTAC_CUDA_ARCHITECTURES"):
                configure += [f"-DFASTAC_CUDA_ARCHITECTURES={architectures}"]
        if shutil.which("ninja") and not (build / "CMakeCache.txt").exists():
            configure += ["-G", "Ninja"]
        subprocess.run(configure, check=True)
        subprocess.run(["cmake", "--build", str(build), "--parallel"], check=True)


setup(ext_modules=[Extension(name, sources=[]) for name in PARTS], cmdclass={"build_ext": CMakeBuild})
