"""Builds the two native extensions; everything else about the package is in pyproject.toml."""

import sys

from Cython.Build import cythonize
from setuptools import Extension, setup

# Strict IEEE arithmetic: no -ffast-math, and no fused multiply-add where the reference has none.
FLAGS = ["/O2", "/std:c++17"] if sys.platform == "win32" else ["-O3", "-std=c++17", "-ffp-contract=off"]

setup(
    ext_modules=cythonize(
        [
            Extension(
                "Sim3DR.sim3dr_cython",
                ["Sim3DR/sim3dr_cython.pyx", "Sim3DR/kernel.cpp"],
                depends=["Sim3DR/kernel.h"],
                language="c++",
                extra_compile_args=FLAGS,
            ),
            Extension(
                "FaceBoxes.nms_cython",
                ["FaceBoxes/nms_cython.pyx"],
                language="c++",
                extra_compile_args=FLAGS,
            ),
        ],
        language_level=3,
    ),
)
