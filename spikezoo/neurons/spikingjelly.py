"""SpikingJelly's own neurons, with its own equations and defaults; only its library computes them.

They fire where h >= threshold as ours do, reset at once, to `v_reset` (hard, the default) or by the
threshold (soft), and have SpikingJelly's default surrogate, Sigmoid(alpha=4). The time constant tau
is above 1, and they decay their input too: a current x moves h by x / tau. Those that rise by
themselves near the threshold have the hard reset alone: a soft one leaves them there, and v is soon
infinite.

Source: Fang et al., "SpikingJelly: an open-source machine learning infrastructure platform for
spike-based intelligence" (2023), and the docstrings of `spikingjelly.activation_based.neuron`.
"""

from __future__ import annotations

import importlib
from typing import Any

import torch
from torch import Tensor

from spikezoo.errors import OptionError
from spikezoo.neurons import Neuron, State
from spikezoo.neurons.threshold import Reset


def library(module: str) -> Any:
    """A module of `spikingjelly.activation_based`.

    Raises:
        OptionError: SpikingJelly is not installed.
    """
    try:
        return importlib.import_module(f"spikingjelly.activation_based.{module}")
    except ImportError as error:
        raise OptionError(f"SpikingJelly is missing; pip install spikingjelly ({error})") from error


class SpikingJellyNeuron(Neuron):
    """A neuron whose step is that of a node of SpikingJelly's, which takes and returns its state.

    The node holds options and parameters and, used so, never a state.

    Args:
        node: the name of its class; `options` are the node's own.
        tau: membrane time constant in time steps, above 1; where the neuron has one.
        threshold: of h, above 0.
        reset: hard goes to `v_reset`, soft subtracts the threshold.
        v_reset: potential after a hard reset, and at rest.
        detach_reset: keep the reset out of the gradient.
    """

    only_backend = "spikingjelly"

    def __init__(
        self,
        node: str,
        *,
        threshold: float,
        reset: Reset,
        v_reset: float,
        detach_reset: bool,
        **options: Any,
    ) -> None:
        super().__init__()
        if not threshold > 0:
            raise OptionError(f"threshold is above 0, given {threshold}")
        if reset not in ("soft", "hard"):
            raise OptionError(f"reset is 'soft' or 'hard', given '{reset}'")
        try:
            self.node = getattr(library("neuron"), node)(
                v_threshold=float(threshold),
                v_reset=float(v_reset) if reset == "hard" else None,
                detach_reset=detach_reset,
                # Its default is one object that all nodes share.
                surrogate_function=library("surrogate").Sigmoid(),
                **{k: float(v) if type(v) is int else v for k, v in options.items()},
            )
        except AssertionError as error:  # how it refuses a value, without a word
            given = ", ".join(f"{key}={value}" for key, value in options.items())
            raise OptionError(
                f"SpikingJelly's {node} refuses one of {given}, {threshold=}, {v_reset=}: tau is "
                "above 1, a0 and delta_T above 0, threshold above v_reset, v_rest not below it"
            ) from error
        self.threshold = threshold
        self.rest = v_reset if reset == "hard" else 0.0

    def initial_state(self, current: Tensor) -> State:
        (v,) = super().initial_state(current)
        return (torch.full_like(v, self.rest),)

    def step(self, current: Tensor, state: State) -> tuple[Tensor, State]:
        # Views: on a GPU its second backward pass counts the way from an input by a state twice.
        x, *states = (tensor.expand_as(current) for tensor in (current, *state))
        (spikes,), after = self.node.single_step_functional_forward((x,), tuple(states))
        return spikes.to(current.dtype), after


class LIFNode(SpikingJellyNeuron):
    """`LIFNode`: h[t] = v[t-1] + (x[t] - (v[t-1] - v_reset)) / tau; its state is (v [N, *],).

    Args:
        decay_input: False adds x whole, which is `lif` with beta = 1 - 1/tau.
    """

    def __init__(
        self,
        *,
        tau: float = 2.0,
        decay_input: bool = True,
        threshold: float = 1.0,
        reset: Reset = "hard",
        v_reset: float = 0.0,
        detach_reset: bool = False,
    ) -> None:
        super().__init__(
            "LIFNode",
            tau=tau,
            decay_input=decay_input,
            threshold=threshold,
            reset=reset,
            v_reset=v_reset,
            detach_reset=detach_reset,
        )


class ParametricLIFNode(SpikingJellyNeuron):
    """`ParametricLIFNode`: `LIFNode` with 1/tau = sigmoid(w) learned; its state is (v [N, *],).

    Args:
        init_tau: where tau starts.
        decay_input: as `LIFNode`.
    """

    def __init__(
        self,
        *,
        init_tau: float = 2.0,
        decay_input: bool = True,
        threshold: float = 1.0,
        reset: Reset = "hard",
        v_reset: float = 0.0,
        detach_reset: bool = False,
    ) -> None:
        super().__init__(
            "ParametricLIFNode",
            init_tau=init_tau,
            decay_input=decay_input,
            threshold=threshold,
            reset=reset,
            v_reset=v_reset,
            detach_reset=detach_reset,
        )


class KLIFNode(SpikingJellyNeuron):
    """`KLIFNode`: h = ReLU(k h') with h' of `LIFNode` and k learned; its state is (v [N, *],).

    Args:
        scale_reset: divide h, and a soft reset's threshold, by k again before the reset.
        decay_input: as `LIFNode`.
    """

    def __init__(
        self,
        *,
        scale_reset: bool = False,
        tau: float = 2.0,
        decay_input: bool = True,
        threshold: float = 1.0,
        reset: Reset = "hard",
        v_reset: float = 0.0,
        detach_reset: bool = False,
    ) -> None:
        super().__init__(
            "KLIFNode",
            scale_reset=scale_reset,
            tau=tau,
            decay_input=decay_input,
            threshold=threshold,
            reset=reset,
            v_reset=v_reset,
            detach_reset=detach_reset,
        )


class QIFNode(SpikingJellyNeuron):
    """`QIFNode`, quadratic: h[t] = v + (x[t] + a0 (v - v_rest)(v - v_c)) / tau, v = v[t-1].

    Its state is (v [N, *],). `threshold` is above `v_reset`, and `v_rest` not below it.

    Args:
        v_c: critical potential, from which v rises by itself.
        a0: strength of the quadratic term, above 0.
        v_rest: potential to which v returns below v_c.
    """

    def __init__(
        self,
        *,
        tau: float = 2.0,
        v_c: float = 0.8,
        a0: float = 1.0,
        threshold: float = 1.0,
        v_rest: float = 0.0,
        v_reset: float = -0.1,
        detach_reset: bool = False,
    ) -> None:
        super().__init__(
            "QIFNode",
            tau=tau,
            v_c=v_c,
            a0=a0,
            v_rest=v_rest,
            threshold=threshold,
            reset="hard",
            v_reset=v_reset,
            detach_reset=detach_reset,
        )


class EIFNode(SpikingJellyNeuron):
    """`EIFNode`, exponential: its state is (v [N, *],).

        h[t] = v + (x[t] + v_rest - v + delta_T exp((v - theta_rh) / delta_T)) / tau,  v = v[t-1]

    Args:
        delta_T: sharpness of the exponential rise, above 0.
        theta_rh: rheobase threshold, about which v begins to rise by itself.
        v_rest: as of `QIFNode`.
    """

    def __init__(
        self,
        *,
        tau: float = 2.0,
        delta_T: float = 1.0,
        theta_rh: float = 0.8,
        threshold: float = 1.0,
        v_rest: float = 0.0,
        v_reset: float = -0.1,
        detach_reset: bool = False,
    ) -> None:
        super().__init__(
            "EIFNode",
            tau=tau,
            delta_T=delta_T,
            theta_rh=theta_rh,
            v_rest=v_rest,
            threshold=threshold,
            reset="hard",
            v_reset=v_reset,
            detach_reset=detach_reset,
        )


class IzhikevichNode(SpikingJellyNeuron):
    """`IzhikevichNode`: quadratic, with a recovery variable; its state is (v, w), [N, *].

        h[t] = v + (x[t] + a0 (v - v_rest)(v - v_c) - w[t-1]) / tau,  v = v[t-1]
        w[t] = w[t-1] + (a (h[t] - v_rest) - w[t-1]) / tau_w, plus b where it fires

    With SpikingJelly's a = b = 0 the recovery variable stays 0.

    Args:
        a, b, tau_w: of the recovery variable; v_c, a0, v_rest: as of `QIFNode`.
    """

    def __init__(
        self,
        *,
        tau: float = 2.0,
        v_c: float = 0.8,
        a0: float = 1.0,
        threshold: float = 1.0,
        v_reset: float = 0.0,
        v_rest: float = -0.1,
        tau_w: float = 2.0,
        a: float = 0.0,
        b: float = 0.0,
        detach_reset: bool = False,
    ) -> None:
        if not tau_w > 0:
            raise OptionError(f"tau_w is above 0, given {tau_w}")
        super().__init__(
            "IzhikevichNode",
            tau=tau,
            v_c=v_c,
            a0=a0,
            v_rest=v_rest,
            tau_w=tau_w,
            a=a,
            b=b,
            threshold=threshold,
            reset="hard",
            v_reset=v_reset,
            detach_reset=detach_reset,
        )

    def initial_state(self, current: Tensor) -> State:
        (v,) = super().initial_state(current)
        return v, torch.zeros_like(v)
