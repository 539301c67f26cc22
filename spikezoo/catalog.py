"""Table of contents: every kind, every built-in as `name: ("module:attr", what it is)`.

Reading it imports nothing else of the package. To add a built-in: write it, add its line here.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from spikezoo.errors import unknown
from spikezoo.registry import Registry

_BUILTINS: dict[str, dict[str, tuple[str, str]]] = {
    "generators": {
        "ann": (
            "spikezoo.models.dcgan:ANNGenerator",
            "DCGAN of the tutorials, no spikes: the twin",
        ),
        "snn_front": ("spikezoo.models.dcgan:SNNFront", "spikes at the first upsampling"),
        "snn_middle": ("spikezoo.models.dcgan:SNNMiddle", "spikes at the second upsampling"),
        "snn_back": ("spikezoo.models.dcgan:SNNBack", "spikes behind the last convolution"),
        "snn_extractor": ("spikezoo.models.dcgan:SNNExtractor", "encoder, spikes, decoder"),
        "snn_full": ("spikezoo.models.dcgan:SNNFull", "every hidden layer spikes"),
    },
    "discriminators": {
        "ann": ("spikezoo.models.dcgan:ANNDiscriminator", "four strided convolutions, LeakyReLU"),
        "snn": ("spikezoo.models.dcgan:SNNDiscriminator", "the same four convolutions, spiking"),
        "timm": ("spikezoo.models.timm:TimmDiscriminator", "any backbone of timm"),
    },
    "neurons": {
        "lif": ("spikezoo.neurons.lif:LIF", "leaky integrate-and-fire"),
        "if": ("spikezoo.neurons.if_:IF", "integrate-and-fire: no leak"),
        "plif": ("spikezoo.neurons.plif:PLIF", "lif with a learned beta"),
        "alif": ("spikezoo.neurons.alif:ALIF", "lif whose threshold rises with every spike"),
        "cuba": ("spikezoo.neurons.cuba:CUBA", "lif behind a synaptic current"),
        "izhikevich": ("spikezoo.neurons.izhikevich:Izhikevich", "quadratic, with recovery"),
        "ttfs": ("spikezoo.neurons.ttfs:TTFS", "time to first spike: fires once at most"),
        "snntorch.leaky": ("spikezoo.neurons.snntorch:Leaky", "snnTorch's own lif: resets late"),
        "snntorch.lapicque": ("spikezoo.neurons.snntorch:Lapicque", "snnTorch's own RC circuit"),
        "snntorch.synaptic": ("spikezoo.neurons.snntorch:Synaptic", "snnTorch's own cuba"),
        "snntorch.alpha": ("spikezoo.neurons.snntorch:Alpha", "snnTorch's own alpha function"),
        "snntorch.rleaky": ("spikezoo.neurons.snntorch:RLeaky", "snnTorch's own recurrent lif"),
        "snntorch.rsynaptic": (
            "spikezoo.neurons.snntorch:RSynaptic",
            "snnTorch's own recurrent cuba",
        ),
        "spikingjelly.lif": (
            "spikezoo.neurons.spikingjelly:LIFNode",
            "SpikingJelly's own lif: decays its input",
        ),
        "spikingjelly.parametric_lif": (
            "spikezoo.neurons.spikingjelly:ParametricLIFNode",
            "SpikingJelly's own plif: decays its input",
        ),
        "spikingjelly.klif": (
            "spikezoo.neurons.spikingjelly:KLIFNode",
            "SpikingJelly's own lif with a learned gain",
        ),
        "spikingjelly.qif": ("spikezoo.neurons.spikingjelly:QIFNode", "SpikingJelly's quadratic"),
        "spikingjelly.eif": ("spikezoo.neurons.spikingjelly:EIFNode", "SpikingJelly's exponential"),
        "spikingjelly.izhikevich": (
            "spikezoo.neurons.spikingjelly:IzhikevichNode",
            "SpikingJelly's own quadratic with recovery",
        ),
    },
    "backends": {
        "reference": ("spikezoo.backends.reference:REFERENCE", "a loop of `step`: the definition"),
        "native": ("spikezoo.backends.native:NATIVE", "explicit backward pass through time"),
        "snntorch": ("spikezoo.backends.snntorch:SNNTORCH", "snnTorch, step by step"),
        "spikingjelly": (
            "spikezoo.backends.spikingjelly:SPIKINGJELLY",
            "SpikingJelly, all time steps in one call",
        ),
        "spikingjelly_exact": (
            "spikezoo.backends.spikingjelly:EXACT",
            "SpikingJelly, step by step",
        ),
    },
    "surrogates": {
        "atan": ("spikezoo.surrogates:atan", "alpha/2 / (1 + (pi/2 alpha u)^2)"),
        "sigmoid": ("spikezoo.surrogates:sigmoid", "alpha s(alpha u) (1 - s(alpha u))"),
        "fast_sigmoid": ("spikezoo.surrogates:fast_sigmoid", "1 / (1 + alpha |u|)^2"),
        "triangle": ("spikezoo.surrogates:triangle", "alpha max(0, 1 - alpha |u|)"),
        "straight_through": ("spikezoo.surrogates:straight_through", "1"),
        "erf": ("spikezoo.surrogates:erf", "alpha/sqrt(pi) exp(-(alpha u)^2)"),
    },
    "readouts": {
        "mean": ("spikezoo.readouts:Mean", "firing rate: the mean over T"),
        "membrane": ("spikezoo.readouts:Membrane", "potential of a non-firing leaky layer"),
        "weighted": ("spikezoo.readouts:Weighted", "one learned weight per time step"),
    },
    "losses": {
        "bce": ("spikezoo.losses:BCE", "non-saturating cross entropy"),
        "hinge": ("spikezoo.losses:HINGE", "hinge"),
        "lsgan": ("spikezoo.losses:LSGAN", "least squares"),
        "wgan_gp": ("spikezoo.losses:WGAN_GP", "Wasserstein with gradient penalty"),
    },
    "datasets": {
        "digits": ("spikezoo.data:DIGITS", "scikit-learn's handwritten digits, bundled"),
        "mnist": ("spikezoo.data:MNIST", "ylecun/mnist: 60,000 grey digits"),
        "fashion_mnist": ("spikezoo.data:FASHION_MNIST", "zalando-datasets/fashion_mnist"),
        "cifar10": ("spikezoo.data:CIFAR10", "uoft-cs/cifar10: 50,000 colour photographs"),
        "folder": ("spikezoo.data:FOLDER", "a directory of images, named by --data"),
    },
    "features": {
        "spikezoo_digits": ("spikezoo.features:Digits", "our classifier of digits, shipped"),
        "spikezoo_mnist": ("spikezoo.features:Mnist", "our classifier of mnist, shipped"),
        "spikezoo_cifar10": ("spikezoo.features:Cifar10", "our classifier of cifar10, shipped"),
        "fad_fsvae": (
            "spikezoo.features:FsvaeEncoder",
            "the encoder behind published autoencoder distances; weights from path=DIR",
        ),
        "inception": (
            "spikezoo.features:Inception",
            "torch-fidelity's Inception v3, of the usual FID",
        ),
        "timm": (
            "spikezoo.models.timm:TimmFeatures",
            "any backbone of timm, before its classifier",
        ),
    },
}

_STEP = ("native", "reference")
_LIBRARIES = (*_STEP, "snntorch", "spikingjelly", "spikingjelly_exact")
# The built-in backends that have each built-in neuron: what their `supports` says, with no import.
BACKENDS_OF: dict[str, tuple[str, ...]] = {
    name: (name.partition(".")[0],) if "." in name else _STEP for name in _BUILTINS["neurons"]
} | dict.fromkeys(("lif", "if", "plif", "cuba"), _LIBRARIES)

REGISTRIES: dict[str, Registry[Any]] = {
    kind: Registry(kind, table) for kind, table in _BUILTINS.items()
}


def registry(kind: str) -> Registry[Any]:
    """The registry of a kind.

    Raises:
        UnknownNameError: no such kind.
    """
    if kind not in REGISTRIES:
        raise unknown("kind", kind, REGISTRIES)
    return REGISTRIES[kind]


def names(kind: str, pattern: str = "*") -> list[str]:
    """The sorted names of a kind that match a shell pattern; imports nothing heavy.

    >>> names("generators", "snn_m*")
    ['snn_middle']
    """
    return registry(kind).names(pattern)


@dataclass(frozen=True)
class Component:
    """A registered class chosen by name, with its options; calling it builds one.

    It is the default of a constructor's option that names another component, as in
    `neuron: Component = Component("neurons", "lif")`; a spec then sets `neuron=...` and reaches
    inside with `neuron.beta=...`.
    """

    kind: str
    name: str
    options: dict[str, Any] = field(default_factory=dict)

    def __call__(self, *arguments: Any) -> Any:
        return registry(self.kind).get(self.name)(*arguments, **self.options)
