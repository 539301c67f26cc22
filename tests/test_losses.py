"""Losses against closed forms, and penalties against discriminators whose gradient is known."""

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.testing import assert_close

from spikezoo.catalog import names, registry
from spikezoo.losses import Loss, gradient_penalty, r1
from spikezoo.spec import Part
from spikezoo.zoo import build, resolve

LOSSES = names("losses")
REAL = torch.tensor([2.0, -1.0, 0.5, -3.0], dtype=torch.float64)
FAKE = torch.tensor([-2.0, 0.0, 1.5, 4.0], dtype=torch.float64)


def loss_of(name: str) -> Loss:
    return registry("losses").get(name)


def bce_d(real: Tensor, fake: Tensor) -> Tensor:
    ones, zeros = torch.ones_like(real), torch.zeros_like(fake)
    bce = F.binary_cross_entropy_with_logits
    return bce(real, ones) + bce(fake, zeros)


# Name -> an independent way to compute the discriminator's and the generator's loss.
CLOSED_FORMS: dict[str, tuple[Callable[[Tensor, Tensor], Tensor], Callable[[Tensor], Tensor]]] = {
    "bce": (
        bce_d,
        lambda fake: F.binary_cross_entropy_with_logits(fake, torch.ones_like(fake)),
    ),
    "hinge": (
        lambda real, fake: (
            F.hinge_embedding_loss(real, -torch.ones_like(real))
            + F.hinge_embedding_loss(-fake, -torch.ones_like(fake))
        ),
        lambda fake: -torch.mean(fake),
    ),
    "lsgan": (
        lambda real, fake: (
            0.5 * F.mse_loss(real, torch.ones_like(real))
            + 0.5 * F.mse_loss(fake, torch.zeros_like(fake))
        ),
        lambda fake: 0.5 * F.mse_loss(fake, torch.ones_like(fake)),
    ),
    "wgan_gp": (
        lambda real, fake: torch.mean(fake) - torch.mean(real),
        lambda fake: -torch.mean(fake),
    ),
}


@pytest.mark.parametrize("name", CLOSED_FORMS)
def test_values_and_gradients_equal_the_closed_form(name: str) -> None:
    loss = loss_of(name)
    of_d, of_g = CLOSED_FORMS[name]
    pairs = [
        (loss.discriminator, of_d, (REAL, FAKE)),
        (loss.generator, of_g, (FAKE,)),
    ]
    for ours, theirs, logits in pairs:
        results = []
        for function in (ours, theirs):
            inputs = tuple(x.clone().requires_grad_() for x in logits)
            value = function(*inputs)  # type: ignore[operator]
            results.append((value.detach(), torch.autograd.grad(value, inputs)))
        assert results[0][0].shape == ()
        assert_close(results[0], results[1])


@pytest.mark.parametrize(
    ("name", "of_d", "of_g"),
    [
        ("bce", 2 * math.log(2), math.log(2)),
        ("hinge", 2.0, 0.0),
        ("lsgan", 0.5, 0.5),
        ("wgan_gp", 0.0, 0.0),
    ],
)
def test_values_where_the_discriminator_knows_nothing(name: str, of_d: float, of_g: float) -> None:
    zero = torch.zeros(5)
    assert loss_of(name).discriminator(zero, zero).item() == pytest.approx(of_d, abs=1e-6)
    assert loss_of(name).generator(zero).item() == pytest.approx(of_g, abs=1e-6)


@pytest.mark.parametrize("name", LOSSES)
def test_every_loss_pulls_the_two_networks_apart(name: str) -> None:
    """One step down the gradient: D raises real and lowers fake, G raises fake."""
    zero = [torch.zeros(3, requires_grad=True) for _ in range(3)]
    loss_of(name).discriminator(zero[0], zero[1]).backward()
    loss_of(name).generator(zero[2]).backward()
    real, fake, of_g = (x.grad for x in zero)
    assert real is not None
    assert fake is not None
    assert of_g is not None
    assert (real < 0).all()
    assert (fake >= 0).all()
    assert fake.sum() > 0 or name == "lsgan", "whose target for fake is 0"
    assert (of_g < 0).all()


@pytest.mark.parametrize("name", ["bce", "hinge", "wgan_gp"])
def test_large_logits_stay_finite(name: str) -> None:
    huge = torch.tensor([1e4, -1e4, 1e30, -1e30], requires_grad=True)
    value = loss_of(name).discriminator(huge, huge.flip(0)) + loss_of(name).generator(huge)
    value.backward()
    assert torch.isfinite(value)
    assert huge.grad is not None
    assert torch.isfinite(huge.grad).all()


def test_only_wgan_gp_asks_for_a_gradient_penalty() -> None:
    assert {name: loss_of(name).gradient_penalty for name in CLOSED_FORMS} == {
        "bce": 0, "hinge": 0, "lsgan": 0, "wgan_gp": 10,
    }  # fmt: skip


# --- penalties ------------------------------------------------------------------------------


class Linear(nn.Module):
    """logit = <w, x>: the gradient is w everywhere."""

    def __init__(self, w: Tensor) -> None:
        super().__init__()
        self.w = nn.Parameter(w)

    def forward(self, x: Tensor) -> Tensor:
        return (self.w * x).flatten(1).sum(1)


class Square(nn.Module):
    """logit = |x|^2 / 2: the gradient at x is x."""

    def forward(self, x: Tensor) -> Tensor:
        return x.square().flatten(1).sum(1) / 2


def images(n: int, *, seed: int, c: int = 3, side: int = 16) -> Tensor:
    return torch.rand(n, c, side, side, generator=torch.Generator().manual_seed(seed)) * 2 - 1


@pytest.mark.parametrize("scale", [0.01, 0.5, 1.0, 3.0])
def test_penalties_of_a_linear_discriminator(scale: float) -> None:
    """|grad| = |w|, so the penalties are (|w| - 1)^2 and |w|^2 / 2, and so are their gradients."""
    w = images(1, seed=0)[0] * scale
    network = Linear(w)
    norm = w.norm().item()
    real, fake = images(5, seed=1), images(5, seed=2)
    penalty = gradient_penalty(network, real, fake)
    assert_close(penalty.item(), (norm - 1) ** 2, rtol=1e-4, atol=1e-6)
    (grad,) = torch.autograd.grad(penalty, network.w)
    assert_close(grad, 2 * (norm - 1) * w / norm, rtol=1e-4, atol=1e-5)

    penalty = r1(network, real)
    assert_close(penalty.item(), norm**2 / 2, rtol=1e-4, atol=1e-6)
    (grad,) = torch.autograd.grad(penalty, network.w)
    assert_close(grad, w, rtol=1e-4, atol=1e-6)


def test_r1_is_taken_at_the_real_images_and_averaged_over_them() -> None:
    real = images(4, seed=0)
    expected = real.square().sum((1, 2, 3)).mean() / 2
    assert_close(r1(Square(), real), expected)


def test_the_gradient_penalty_is_taken_between_real_and_fake() -> None:
    """At x = t real + (1 - t) fake with fake = 0 the gradient's norm is t |real|, t in [0, 1]."""
    real = images(1, seed=0).expand(2000, -1, -1, -1)[:, :1]
    norm = real[0].norm().item()
    torch.manual_seed(0)
    penalty = gradient_penalty(Square(), real, torch.zeros_like(real)).item()
    # The mean of (t norm - 1)^2 for t uniform in [0, 1].
    assert penalty == pytest.approx(norm**2 / 3 - norm + 1, rel=0.1)
    same = gradient_penalty(Square(), real, real).item()  # between x and x lies x
    assert same == pytest.approx((norm - 1) ** 2, rel=1e-4)


def test_penalties_of_a_flat_discriminator_have_finite_gradients() -> None:
    network = Linear(torch.zeros(3, 16, 16))
    real = images(2, seed=0)
    penalty = gradient_penalty(network, real, real) + r1(network, real)
    (grad,) = torch.autograd.grad(penalty, network.w)
    assert penalty.item() == pytest.approx(1, abs=1e-4)
    assert torch.isfinite(grad).all()


@pytest.mark.parametrize("backend", ["native", "reference"])
@pytest.mark.parametrize("name", names("discriminators", "*nn"))
def test_penalties_reach_the_weights_of_every_discriminator(name: str, backend: str) -> None:
    """Double backward: the penalty's gradient with respect to the weights is finite, not zero."""
    torch.manual_seed(0)
    options = resolve(Part("disc", name)) | {"width": 4, "norm": "layer"}
    network = build("disc", name, options, (3, 16, 16), backend)
    network.eval()
    real, fake = images(4, seed=1), images(4, seed=2)
    for penalty in (r1(network, real), gradient_penalty(network, real, fake)):
        network.zero_grad()
        penalty.backward()
        for key, parameter in network.named_parameters():
            if key.endswith("weight") and parameter.dim() > 1:
                assert parameter.grad is not None, key
                assert torch.isfinite(parameter.grad).all(), key
                assert parameter.grad.abs().max() > 0, key
    assert real.grad is None
    assert not real.requires_grad, "the caller's images are left as they were"


@pytest.mark.parametrize("name", names("discriminators", "*nn"))
def test_r1_agrees_between_backends(name: str) -> None:
    torch.manual_seed(0)
    options = resolve(Part("disc", name)) | {"width": 4}
    native = build("disc", name, options, (1, 16, 16), "native").eval()
    reference = build("disc", name, options, (1, 16, 16), "reference").eval()
    reference.load_state_dict(native.state_dict())
    real = images(4, seed=1, c=1)
    grads = []
    for network in (native, reference):
        penalty = r1(network, real)
        grads.append([penalty, *torch.autograd.grad(
            penalty, [p for p in network.parameters() if p.requires_grad], allow_unused=True
        )])  # fmt: skip
    assert_close(grads[0], grads[1], rtol=1e-4, atol=1e-5)
