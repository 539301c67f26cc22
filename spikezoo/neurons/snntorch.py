"""snnTorch's own neurons, with its own equations and defaults; only its library computes them.

They fire where h > threshold (ours: >=) and have snnTorch's default surrogate, ATan(alpha=2). The
reset comes one step after the spike and stays out of the gradient. Where h[t] > threshold,

    soft: h[t+1] falls by the threshold      hard: h[t+1] = 0, but x[t+1] of Leaky

With `reset_delay=False` it comes at once and is in the gradient; but where a soft one leaves h
above the threshold, the next step fires only above twice the threshold.

snnTorch has no defaults for decays, nor for its recurrent layers' shape; those here are said below.

Source: Eshraghian et al., "Training spiking neural networks using lessons from deep learning"
(2023), and the docstring of each of `snntorch`'s classes.
"""

from __future__ import annotations

import contextlib
import importlib
import weakref
from typing import Any

import torch
from torch import Tensor, nn

from spikezoo.errors import OptionError
from spikezoo.neurons import Neuron, State
from spikezoo.neurons.threshold import Reset, check_decay

MECHANISMS = {"soft": "subtract", "hard": "zero", "none": "none"}


def library(module: str = "snntorch") -> Any:
    """snnTorch, or a module of it by its full name.

    Raises:
        OptionError: snnTorch is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise OptionError(f"snnTorch is missing; pip install snntorch ({error})") from error


def build(name: str, *, reset: str, **options: Any) -> Any:
    """A new layer of snnTorch's, by the name of its class; only the caller holds it."""
    layer = getattr(library(), name)(reset_mechanism=MECHANISMS[reset], **options)
    # A global list of theirs would keep every layer, and the graph of its last state, for ever;
    # a method of its own among its attributes would keep it until the garbage is collected.
    with contextlib.suppress(ValueError):
        library().SpikingNeuron.instances.remove(layer)
    layer.state_function = layer.state_function.__func__.__get__(weakref.proxy(layer))
    return layer


class SnnTorchNeuron(Neuron):
    """A neuron whose step calls the layer that `layer` builds, and passes its state explicitly.

    A layer lives for one step: it keeps what it computed last, which must not outlive the graph.

    Args:
        threshold: of h, above 0.
        reset: soft or hard, as above.
    """

    only_backend = "snntorch"
    potentials = 1  # how many tensors of state, in the order of the layer's own `forward`
    feeds_back = False  # the last spikes are the first tensor of the state

    def __init__(self, *, threshold: float, reset: Reset) -> None:
        super().__init__()
        if not threshold > 0:
            raise OptionError(f"threshold is above 0, given {threshold}")
        if reset not in ("soft", "hard"):
            raise OptionError(f"reset is 'soft' or 'hard', given '{reset}'")
        self.threshold = threshold
        self.reset = reset

    def layer(self) -> Any:
        """snnTorch's layer with the present options and parameters."""
        raise NotImplementedError

    def initial_state(self, current: Tensor) -> State:
        (v,) = super().initial_state(current)
        return tuple(torch.zeros_like(v) for _ in range(self.potentials + self.feeds_back))

    def step(self, current: Tensor, state: State) -> tuple[Tensor, State]:
        # Wide, or Lapicque would scale the current in bfloat16; the state expanded, since a layer
        # takes one of another shape for none at all.
        x = current.to(state[-1].dtype)
        spikes, *after = self.layer()(x, *(s.expand_as(x) for s in state))
        spikes = spikes.to(x.dtype)
        return spikes.to(current.dtype), (spikes, *after) if self.feeds_back else tuple(after)

    @torch.compiler.disable  # type: ignore[untyped-decorator]  # it cannot trace a layer's building
    def run(self, current: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        return super().run(current, state)

    def extra_repr(self) -> str:
        return f"threshold={self.threshold}, reset={self.reset}"


class Leaky(SnnTorchNeuron):
    """`snntorch.Leaky`: lif with the late reset; its state is (h [N, *],).

    Args:
        beta: decay of h per time step, in [0, 1]; here 0.9.
        learn_beta: learn it, one for the layer.
        reset_delay: snnTorch's True resets one step late, False at once.
    """

    def __init__(
        self,
        *,
        beta: float = 0.9,
        learn_beta: bool = False,
        threshold: float = 1.0,
        reset: Reset = "soft",
        reset_delay: bool = True,
    ) -> None:
        super().__init__(threshold=threshold, reset=reset)
        self.beta = _decay("beta", beta, learn_beta)
        self.reset_delay = reset_delay

    def layer(self) -> Any:
        return build(
            "Leaky",
            beta=self.beta,
            threshold=self.threshold,
            reset=self.reset,
            reset_delay=self.reset_delay,
        )


class Lapicque(SnnTorchNeuron):
    """`snntorch.Lapicque`: an RC circuit by Euler's method; its state is (h [N, *],).

        h[t] = (1 - r) h[t-1] + r x[t],  r = -log beta,  R = 1

    Args:
        beta: exp(-1 / RC), in (0, 1); here 0.5, which fires on currents near the threshold.
    """

    def __init__(self, *, beta: float = 0.5, threshold: float = 1.0, reset: Reset = "soft") -> None:
        super().__init__(threshold=threshold, reset=reset)
        if not 0 < beta < 1:
            raise OptionError(f"beta is between 0 and 1, given {beta}")
        self.beta = beta

    def layer(self) -> Any:
        return build("Lapicque", beta=self.beta, threshold=self.threshold, reset=self.reset)


class Synaptic(SnnTorchNeuron):
    """`snntorch.Synaptic`: a synaptic current before the membrane; its state is (i, h), [N, *].

        i[t] = alpha i[t-1] + x[t],  h[t] = beta h[t-1] + i[t];  a hard reset leaves i alone

    Args:
        alpha: decay of i per time step, in [0, 1]; here 0.9.
        beta: decay of h per time step, in [0, 1]; here 0.8.
        learn_alpha, learn_beta: learn them, one for the layer.
        reset_delay: as `Leaky`.
    """

    potentials = 2

    def __init__(
        self,
        *,
        alpha: float = 0.9,
        beta: float = 0.8,
        learn_alpha: bool = False,
        learn_beta: bool = False,
        threshold: float = 1.0,
        reset: Reset = "soft",
        reset_delay: bool = True,
    ) -> None:
        super().__init__(threshold=threshold, reset=reset)
        self.alpha = _decay("alpha", alpha, learn_alpha)
        self.beta = _decay("beta", beta, learn_beta)
        self.reset_delay = reset_delay

    def layer(self) -> Any:
        return build(
            "Synaptic",
            alpha=self.alpha,
            beta=self.beta,
            threshold=self.threshold,
            reset=self.reset,
            reset_delay=self.reset_delay,
        )


class Alpha(SnnTorchNeuron):
    """`snntorch.Alpha`: each current acts as an alpha function; its state is (e, i, h), [N, *].

        e[t] = alpha e[t-1] + x[t],  i[t] = beta i[t-1] - x[t],  h[t] = k (e[t] + i[t])
        k = 1 + log alpha / (log beta - log alpha)

    A current acts one step late: in the first step nothing fires, and nothing learns. One step
    after a spike a hard reset sets e, i and h to 0; a soft one takes the threshold from e, sets i
    to 0 and adds what i was before to h.

    Args:
        alpha: decay of the exciting current, in (beta, 1]; here 0.95.
        beta: decay of the inhibiting current, in [0, alpha); here 0.8.
    """

    potentials = 3

    def __init__(
        self,
        *,
        alpha: float = 0.95,
        beta: float = 0.8,
        threshold: float = 1.0,
        reset: Reset = "hard",
    ) -> None:
        super().__init__(threshold=threshold, reset=reset)
        if not check_decay("alpha", alpha) > check_decay("beta", beta):
            raise OptionError(f"alpha is above beta, given alpha={alpha} and beta={beta}")
        self.alpha = alpha
        self.beta = beta

    def layer(self) -> Any:
        return build(
            "Alpha", alpha=self.alpha, beta=self.beta, threshold=self.threshold, reset=self.reset
        )


class RLeaky(SnnTorchNeuron):
    """`snntorch.RLeaky`: leaky, and fed its own last spikes; its state is (s, h), [N, *].

        h[t] = beta h[t-1] + x[t] + V s[t-1]

    Args:
        beta: decay of h per time step, in [0, 1]; here 0.9.
        V: where its learned weight starts, one for the layer (snnTorch's `all_to_all=False`).
        learn_beta: learn beta too.
        reset_delay: as `Leaky`.
    """

    feeds_back = True

    def __init__(
        self,
        *,
        beta: float = 0.9,
        V: float = 1.0,
        learn_beta: bool = False,
        threshold: float = 1.0,
        reset: Reset = "soft",
        reset_delay: bool = True,
    ) -> None:
        super().__init__(threshold=threshold, reset=reset)
        self.beta = _decay("beta", beta, learn_beta)
        self.V = nn.Parameter(torch.tensor(float(V)))
        self.reset_delay = reset_delay

    def layer(self) -> Any:
        return build(
            "RLeaky",
            beta=self.beta,
            **_feedback(self.V),
            threshold=self.threshold,
            reset=self.reset,
            reset_delay=self.reset_delay,
        )


class RSynaptic(SnnTorchNeuron):
    """`snntorch.RSynaptic`: synaptic, and fed its own last spikes; its state is (s, i, h), [N, *].

        i[t] = alpha i[t-1] + x[t] + V s[t-1],  h[t] = beta h[t-1] + i[t]

    Its `reset_delay=False` changes nothing in snnTorch 1.0, so it is no option.

    Args:
        alpha, beta: decays as of `Synaptic`.
        V: as of `RLeaky`.
    """

    potentials = 2
    feeds_back = True

    def __init__(
        self,
        *,
        alpha: float = 0.9,
        beta: float = 0.8,
        V: float = 1.0,
        threshold: float = 1.0,
        reset: Reset = "soft",
    ) -> None:
        super().__init__(threshold=threshold, reset=reset)
        self.alpha = check_decay("alpha", alpha)
        self.beta = check_decay("beta", beta)
        self.V = nn.Parameter(torch.tensor(float(V)))

    def layer(self) -> Any:
        return build(
            "RSynaptic",
            alpha=self.alpha,
            beta=self.beta,
            **_feedback(self.V),
            threshold=self.threshold,
            reset=self.reset,
        )


def _decay(name: str, value: float, learn: bool) -> float | nn.Parameter:
    check_decay(name, value)
    return nn.Parameter(torch.tensor(float(value))) if learn else value


def _feedback(V: nn.Parameter) -> dict[str, Any]:
    # A copy in the graph: given the parameter itself the layer would switch off its gradient, or
    # learn one of its own.
    return {"V": V.clone(), "learn_recurrent": False, "all_to_all": False}
