"""The optional C kernel; all else stands in pyproject.toml.

`optional`: without a C compiler the installation goes on and `native` computes in torch.
"""

import sys

from setuptools import Extension, setup

flags = [
    "-O3",
    "-std=gnu11",
    "-fopenmp",
    "-ffp-contract=off",
    "-fno-math-errno",
    "-fno-trapping-math",
]

setup(
    ext_modules=[
        Extension(
            "spikezoo.backends._lif",
            ["spikezoo/backends/_lif.c"],
            extra_compile_args=flags,
            extra_link_args=["-fopenmp"],
            optional=True,
        )
    ]
    if sys.platform == "linux"
    else []
)
