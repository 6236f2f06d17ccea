"""Says what this machine lacks to build the project, before pip or the compiler fail obscurely.

Usage: `python3 tools/check_machine.py` (run by the Makefile with the system's Python, so this file
needs the standard library only and is readable by old Pythons).
"""

import importlib.util
import os
import platform
import shlex
import shutil
import subprocess
import sys
import sysconfig

OLDEST_PYTHON = (3, 10)


def compiler():
    """The C++ compiler that setuptools will run, as a list of words (`CXX` overrides it)."""
    return shlex.split(os.environ.get("CXX") or sysconfig.get_config_var("CXX") or "c++")


def problems():
    """Everything that is missing, each as a sentence that says what to do."""
    version = "{}.{}".format(*sys.version_info)
    if sys.version_info < OLDEST_PYTHON:
        return [
            f"Python {version} is too old: 3.10 or newer is needed. Name another one with "
            "`make build PYTHON=python3.12`."
        ]
    found = []
    if sys.platform == "darwin" and platform.machine() == "x86_64":
        found.append(
            "There is no current PyTorch for Intel Macs (nor for a Python made for Intel on "
            "Apple's processors: take one made for arm64)."
        )
    if "musl" in (sysconfig.get_config_var("HOST_GNU_TYPE") or ""):
        found.append(
            "ONNX Runtime and OpenCV have no wheels for systems with musl (Alpine): take one with "
            "glibc, such as Debian, or a container of it."
        )
    in_venv = sys.prefix != sys.base_prefix
    for module in () if in_venv else ("venv", "ensurepip"):
        if importlib.util.find_spec(module) is None:
            found.append(
                f"Python {version} lacks the module `{module}`, so it cannot create an "
                f"environment. On Debian and Ubuntu: `apt-get install python{version}-venv`."
            )
    if sys.platform == "win32":
        return found  # MSVC is found by setuptools only, whose own message is clear
    command = compiler()
    if not command or shutil.which(command[0]) is None:
        found.append(
            "No C++ compiler: `{}` was not found. On Debian and Ubuntu: `apt-get install g++`; "
            "on Fedora: `dnf install gcc-c++`; on macOS: `xcode-select --install`. A compiler of "
            "another name: `make build CXX=clang++`.".format(" ".join(command) or "c++")
        )
        return found
    result = subprocess.run(
        command + ["-fsyntax-only", "-x", "c++", "-I" + sysconfig.get_path("include"), "-"],
        input="#include <cmath>\n#include <Python.h>\n",
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    if result.returncode != 0 and "Python.h" in result.stdout:
        found.append(
            "The headers of Python {0} (Python.h) were not found in {1}. On Debian and Ubuntu: "
            "`apt-get install python{0}-dev`; on Fedora: `dnf install python3-devel`.".format(
                version, sysconfig.get_path("include")
            )
        )
    elif result.returncode != 0:
        found.append(
            "The C++ compiler `{}` does not work:\n{}".format(" ".join(command), result.stdout)
        )
    return found


if __name__ == "__main__":
    missing = problems()
    if missing:
        sys.exit("This machine cannot build the project yet:\n  - " + "\n  - ".join(missing))
    if "-q" not in sys.argv:
        print("Nothing is missing for the build.")
