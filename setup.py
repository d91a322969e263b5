"""The native part: CMake builds csrc/ into fastac/_cpu.so. Everything else is in pyproject.toml.

FASTAC_NATIVE=auto (default) builds it where cmake, a C++ compiler and torch are found, and says so where they are
not; the package works without. FASTAC_NATIVE=1 makes a missing one, or a failed build, an error. 0 leaves it out.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent


class CMakeBuild(build_ext):
    def run(self):
        mode = os.environ.get("FASTAC_NATIVE", "auto")
        if mode not in ("auto", "0", "1"):
            raise SystemExit(f"FASTAC_NATIVE must be auto, 0 or 1, got {mode!r}")
        if mode == "0":
            return self._leave_out("FASTAC_NATIVE=0")
        missing = self._missing()
        if missing and mode == "1":
            raise SystemExit(f"FASTAC_NATIVE=1, but {missing}")
        if missing:
            return self._leave_out(missing)
        try:
            super().run()
        except subprocess.CalledProcessError as error:
            if mode == "1":
                raise SystemExit(f"the native build failed: {error}") from None
            self._leave_out(f"the native build failed ({error}; the compiler's words are above)")

    def _leave_out(self, reason):
        self.extensions = []
        print(f"fastac is installed without its native CPU backend: {reason}", file=sys.stderr)

    def _missing(self):
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

    def get_ext_filename(self, fullname):
        return str(Path(*fullname.split(".")).with_suffix(".so"))

    def build_extension(self, ext):
        import torch

        target = Path(self.get_ext_fullpath(ext.name)).resolve()
        build = Path(self.build_temp).resolve() / "cmake"
        configure = [
            "cmake",
            *("-S", str(ROOT), "-B", str(build)),
            f"-DFASTAC_TORCH={Path(torch.__file__).parent}",
            f"-DFASTAC_CXX11_ABI={int(torch.compiled_with_cxx11_abi())}",
            f"-DCMAKE_LIBRARY_OUTPUT_DIRECTORY={target.parent}",
            "-DCMAKE_BUILD_TYPE=Release",
        ]
        if shutil.which("ninja") and not (build / "CMakeCache.txt").exists():
            configure += ["-G", "Ninja"]
        subprocess.run(configure, check=True)
        subprocess.run(["cmake", "--build", str(build), "--parallel"], check=True)


setup(ext_modules=[Extension("fastac._cpu", sources=[])], cmdclass={"build_ext": CMakeBuild})
