"""Builds the three native extensions; everything else about the package is in pyproject.toml."""

import sys

from Cython.Build import cythonize
from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel

# Strict IEEE arithmetic: no -ffast-math, and no fused multiply-add where the reference has none.
if sys.platform == "win32":
    FLAGS = ["/O2", "/std:c++17"]
    VECTORS = []
else:
    FLAGS = ["-O3", "-std=c++17", "-ffp-contract=off"]
    # Nobody looks at floating-point exceptions or errno: loops with comparisons and roots may then
    # run in vectors. No result changes.
    VECTORS = ["-fno-trapping-math", "-fno-math-errno"]
THREADS = [] if sys.platform == "win32" else ["-pthread"]


class EditableOnly(bdist_wheel):
    """Refuses plain wheels: one would put top-level packages called `utils` and `backbone_nets`,
    without the starter weights beside them, into somebody's site-packages."""

    def run(self):
        sys.exit("synergynet runs from its own folder: install it with `pip install -e .`")


setup(
    cmdclass={"bdist_wheel": EditableOnly},
    ext_modules=cythonize(
        [
            Extension(
                "Sim3DR.sim3dr_cython",
                ["Sim3DR/sim3dr_cython.pyx", "Sim3DR/mesh.cpp", "Sim3DR/rasterizer.cpp"],
                depends=["Sim3DR/kernel.h", "Sim3DR/portable.h"],
                language="c++",
                extra_compile_args=FLAGS + VECTORS + THREADS,
                extra_link_args=THREADS,
            ),
            Extension(
                "FaceBoxes.nms_cython",
                ["FaceBoxes/nms_cython.pyx"],
                language="c++",
                extra_compile_args=FLAGS,
            ),
            Extension(
                "backbone_nets.fused_norm_cython",
                ["backbone_nets/fused_norm_cython.pyx", "backbone_nets/fused_norm_kernel.cpp"],
                depends=["backbone_nets/fused_norm_kernel.h", "Sim3DR/portable.h"],
                language="c++",
                extra_compile_args=FLAGS + THREADS,
                extra_link_args=THREADS,
            ),
        ],
        language_level=3,
    ),
)
