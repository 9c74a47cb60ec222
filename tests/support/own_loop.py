"""A network that grows in a loop of one's own, as people write such loops."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from tensordict import TensorDict, TensorDictBase
from torch import Tensor, nn

from envs import GrowingNetwork
from envs.actions import Op
from envs.lifecycle import draw_action
from esper_rl import Grower

IMAGES = torch.randn(160, 1, 6, 6, generator=torch.Generator().manual_seed(0))
CLASSES = (IMAGES[:, 0, :3].mean((1, 2)) > 0).long() + 2 * (IMAGES[:, 0, 3:].mean((1, 2)) > 0)
SGD = partial(torch.optim.SGD, lr=0.05, momentum=0.9)
TRAIN, VALIDATION = slice(0, 120), slice(120, 160)
SLOTS = ["0", "2"]


def host() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 6, 1), nn.Tanh(), nn.Conv2d(6, 8, 3), nn.Flatten(), nn.Linear(128, 4)
    )


def known_conv(channels: int) -> nn.Module:
    """A seed that always starts with the same weights."""
    conv = nn.Conv2d(channels, channels, 3, padding=1)
    with torch.no_grad():
        for weight in conv.parameters():
            weight.copy_(torch.linspace(-0.2, 0.2, weight.numel()).view(weight.shape))
    return nn.Sequential(conv, nn.Tanh())


BLUEPRINTS_HERE = {"known": known_conv, "norm": lambda channels: nn.GroupNorm(1, channels)}


class OwnLoop:
    """A network with its optimizer, trained as people do it."""

    def __init__(
        self,
        policy: object,
        max_epochs: int = 12,
        make: Callable[..., torch.optim.Optimizer] = SGD,
        seed: int = 0,
        **options: object,
    ) -> None:
        torch.manual_seed(seed)
        blueprints = options.pop("blueprints", BLUEPRINTS_HERE)
        self.network = GrowingNetwork(host(), SLOTS, IMAGES[:1], blueprints)
        self.optimizer = make(self.network.parameters())
        self.grower = Grower(self.network, self.optimizer, policy, max_epochs=max_epochs, **options)

    def train(self, batches: Tensor) -> None:
        self.network.train()
        for chosen in batches:
            self.optimizer.zero_grad()
            F.cross_entropy(self.network(IMAGES[chosen]), CLASSES[chosen]).backward()
            self.optimizer.step()

    def validate(self) -> tuple[float, float]:
        logits = self.network(IMAGES[VALIDATION])
        right = (logits.argmax(1) == CLASSES[VALIDATION]).double().mean()
        return F.cross_entropy(logits, CLASSES[VALIDATION]).item(), float(right) * 100

    def epoch(self, epoch: int) -> None:
        generator = torch.Generator().manual_seed(epoch)
        self.train(torch.randperm(120, generator=generator)[:60].view(3, 20))
        self.grower.step(self.validate)


def drawn(masks: TensorDictBase) -> TensorDict:
    """A legal action; seeds are seldom pruned, and time is seldom lost, so that all ops come up."""
    masks = masks.clone()
    seldom = torch.rand(2) < 0.15
    masks["op"][:, Op.PRUNE] &= seldom[0]
    if masks["op"][:, Op.WAIT + 1 :].any():
        masks["op"][:, Op.WAIT] &= seldom[1]
    return TensorDict(draw_action(masks), [1])


def busy(seed: int) -> Callable[[TensorDictBase], TensorDictBase]:
    """A policy that does something legal nearly always; random by torch's generator alone."""
    return lambda shown: shown.set("action", drawn(shown["action_mask"]))


def weights_of(loop: OwnLoop) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in loop.network.state_dict().items()}
