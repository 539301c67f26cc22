"""The model card: README.md of a published model, written from its config.json alone.

What was not measured is absent. `spikezoo.export` writes the card and checks it.
"""

from __future__ import annotations

import shlex
from typing import Any

from huggingface_hub import EvalResult, ModelCardData
from torch import nn

from spikezoo import recipes
from spikezoo.catalog import registry
from spikezoo.cost import BREAK_EVEN, PJ_PER_AC, PJ_PER_MAC
from spikezoo.describe import layers
from spikezoo.errors import UnknownNameError
from spikezoo.spec import Spec

LIBRARY = "spikezoo"
TASK = "unconditional-image-generation"
PAPER = "https://github.com/sylvansun/SNN-image-generation"


def render(config: dict[str, Any], generator: nn.Module) -> str:
    """The card of a config, whose generator is built from it (its weights do not matter)."""
    data, measured = config["dataset"]["name"], config["measured"]
    sections = [
        f"---\n{_metadata(config)}\n---",
        f"# {config['name']}",
        f"Images {_size(config)} in the manner of `{data}` from a "
        f"{'spiking ' if measured['rates'] else ''}GAN of "
        "[SpikeZoo](https://pypi.org/project/spikezoo-gan/), the model zoo of spiking image "
        "generators. Seeds 0 to 63, none chosen:",
        "![64 images](samples.png)",
        _usage(config),
        _diagram(config, generator),
        _training(config),
        *([_quality(measured["quality"])] if measured.get("quality") else []),
        cost(measured),
        _backends(measured["backends"]),
        _limitations(config),
        _citation(),
    ]
    return "\n\n".join(sections) + "\n"


def _size(config: dict[str, Any]) -> str:
    channels, height, width = config["shape"]
    return f"of {height} x {width} {'grey' if channels == 1 else 'colour'} pixels"


def _metadata(config: dict[str, Any]) -> str:
    """The YAML block by which the Hub files a model."""
    name = config["dataset"]["name"]
    repo = dataset_repo(name)
    results = [
        EvalResult(
            task_type=TASK,
            dataset_type=repo or name,
            dataset_name=name,
            metric_type=row["metric"],
            metric_name=row["protocol"],
            metric_value=float(row["value"]),
        )
        for row in config["measured"].get("quality", ())
    ]
    spiking = ["spiking-neural-network"] if config["measured"]["rates"] else []
    data = ModelCardData(
        library_name=LIBRARY,
        pipeline_tag=TASK,
        license=config["license"],
        datasets=[repo] if repo else None,
        tags=[LIBRARY, "gan", *spiking, config["generator"]["name"], name],
        model_name=config["name"] if results else None,
        eval_results=results or None,
    )
    return data.to_yaml()


def dataset_repo(name: str) -> str | None:
    """The Hub's dataset repo of a dataset, where it has one and is known here."""
    try:
        return getattr(registry("datasets").get(name), "repo", None)
    except UnknownNameError:
        return None


def _usage(config: dict[str, Any]) -> str:
    plugins = " ".join(f"{name}=={version}" for name, version in config["plugins"].items())
    return f"""## Use

```
pip install spikezoo-gan{" " + plugins if plugins else ""}
```

```python
import spikezoo

model = spikezoo.load("ORG/NAME")  # this repo, or the folder with this file
images = model.sample(range(64))  # uint8 [64, {", ".join(map(str, config["shape"]))}]
```

The same weights run on other code: `spikezoo.load(..., backend="spikingjelly")`."""


def _diagram(config: dict[str, Any], generator: nn.Module) -> str:
    rows = layers(generator, tuple(config["shape"]))
    widths = [max(len(row[i]) for row in rows) for i in range(3)]
    drawn = [
        "  ".join(["⚡" if row[4] else "│", *(f"{row[i]:{widths[i]}}" for i in range(3))]).rstrip()
        for row in rows
    ]
    options = config["generator"]["options"]
    settings = ", ".join(f"`{key}={value}`" for key, value in options.items())
    return "\n".join(
        [
            "## The generator",
            "",
            "```",
            f"z [N, {config['latent']['dim']}]",
            *drawn,
            f"image [N, {', '.join(map(str, config['shape']))}]",
            "```",
            "",
            "⚡ marks layers that spike." if any(row[4] for row in rows) else "Nothing spikes.",
            f"Options: {settings}.",
        ]
    )


def _training(config: dict[str, Any]) -> str:
    training, weights = config["training"], config["weights"]
    options = recipes.arguments(training, Spec.parse(config["name"]))
    command = shlex.join(["spikezoo", "train", config["name"], *options])
    versions = ", ".join(f"{name} {version}" for name, version in config["versions"].items())
    hours = config["measured"].get("training_hours")
    took = f" It took {hours:.2g} hours." if hours else ""
    shown = ", ".join(f"{key} {value}" for key, value in training.items() if value is not None)
    return f"""## Training

```
{command}
```

{weights["images"]:,} real images of `{config["dataset"]["name"]}`
({config["dataset"]["images"]:,} in its training split) were shown.{took} These are the averaged
(EMA) weights, stored as {weights["dtype"]}.

Settings: {shown}. Made with {versions}."""


def _quality(rows: list[dict[str, Any]]) -> str:
    lines = [
        f"| {row['protocol']} | {row['samples']:,} | {row['value']:.4g} | {row['floor']:.4g} |"
        for row in rows
    ]
    return "\n".join(
        [
            "## Quality",
            "",
            "Measured by its author, as the hours of training were. The floor is the same number "
            "for real training images.",
            "",
            "| protocol | images | value | floor |",
            "|---|---|---|---|",
            *lines,
        ]
    )


def cost(measured: dict[str, Any]) -> str:
    """The section on what an image costs, of `export.costs`."""
    lines = ["## Cost of one image", "", "| layer | MACs | ACs |", "|---|---|---|"]
    lines += [f"| {name} | {n:,.0f} | |" for name, n in measured["macs"].items()]
    lines += [f"| {name} | | {n:,.0f} |" for name, n in measured["acs"].items()]
    if measured["rates"]:
        lines += ["", "| spiking layer | firing rate | spikes per neuron |", "|---|---|---|"]
        for name, rate in measured["rates"].items():
            spikes = rate * measured["T"][name]
            flag = " (more than values would cost)" if spikes > BREAK_EVEN else ""
            lines.append(f"| {name} | {rate:.3f} | {spikes:.2f}{flag} |")
    twin = measured.get("twin_energy_nj")
    beside = f"; its ANN twin: {twin:,.0f} nJ" if twin else ""
    lines += [
        "",
        f"{measured['parameters']:,} parameters; an estimated {measured['energy_nj']:,.0f} nJ"
        f"{beside}.",
        "",
        f"Assumed: {PJ_PER_MAC} pJ for a multiply-accumulate (MAC) and {PJ_PER_AC} pJ for an "
        "accumulate (AC), 45 nm, 32-bit floating point (Horowitz 2014); a layer fed by spikes, or "
        "by an affine readout of them, adds one weight per spike and connection. Not counted: "
        "memory, neurons, normalisation, activations. It is an estimate for hardware that skips "
        "zeros, not a measurement. Means over seeds 0 to 63.",
    ]
    return "\n".join(lines)


def _backends(differences: dict[str, float]) -> str:
    if not differences:
        return "## Backends\n\nNothing spikes, so every backend computes the same."
    lines = [f"| {name} | {worst:.1e} |" for name, worst in differences.items()]
    return "\n".join(
        [
            "## Backends",
            "",
            "Largest difference of a pixel (of a range of 2) from the backend `reference`, over "
            "the two images of `probe.safetensors`:",
            "",
            "| backend | difference |",
            "|---|---|",
            *lines,
        ]
    )


def _limitations(config: dict[str, Any]) -> str:
    return f"""## Limitations

It draws what `{config["dataset"]["name"]}` has, and its flaws with it, unconditionally: no class
can be asked for. It is made for comparing generators, not for use as data. `spikezoo verify` on
this folder repeats the checks of this card."""


def _citation() -> str:
    return f"""## Citation

The variants are those of Feng, Wang and Zhao, [Could Spike Neural Networks Beat ANNs on Image
Synthesis?]({PAPER}), in SpikeZoo's own definition; the network is the DCGAN of Radford, Metz and
Chintala (2015)."""
