"""What pyproject.toml cannot say: the optional C kernel, and the published models of `model_cards/`
as part of the package.

`optional`: without a C compiler the installation goes on and `native` computes in torch.
"""

import sys

from setuptools import Extension, find_packages, setup

flags = [
    "-O3",
    "-std=gnu11",
    "-fopenmp",
    "-ffp-contract=off",
    "-fno-math-errno",
    "-fno-trapping-math",
]

setup(
    packages=[*find_packages(include=["spikezoo*"]), "spikezoo.model_cards"],
    package_dir={"spikezoo.model_cards": "model_cards"},
    package_data={"spikezoo": ["py.typed", "classifiers/*"], "spikezoo.model_cards": ["*/*"]},
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
    else [],
)
