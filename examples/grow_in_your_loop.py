"""Growth in a training loop of one's own.

    python examples/grow_in_your_loop.py [RUN]

A network whose kernels are 1×1 learns to read digits, in an ordinary loop with an ordinary
optimizer and learning rate schedule: first as it is, then with a grower that is stepped once an
epoch. RUN is the folder of a training run (``esper-rl train``); without it, growth goes by rules of
thumb. Takes half a minute.
"""

import sys

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn

from envs import GrowingNetwork
from esper_rl import Grower
from esper_rl.growing.baselines import HeuristicPolicy

EPOCHS = 50

digits = load_digits()
images = torch.tensor(digits.images, dtype=torch.float32)[:, None] / 8 - 1
classes = torch.tensor(digits.target)
order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
train, validation = order[:1297], order[1297:]


def block(channels: int, out_channels: int) -> nn.Module:
    conv = nn.Conv2d(channels, out_channels, kernel_size=1, bias=False)
    return nn.Sequential(conv, nn.GroupNorm(1, out_channels), nn.ReLU())


class Network(nn.Module):
    """It can't see shape: its kernels are 1×1."""

    def __init__(self) -> None:
        super().__init__()
        self.layer1 = nn.Sequential(block(1, 8), nn.MaxPool2d(2))
        self.layer2 = nn.Sequential(block(8, 16), nn.MaxPool2d(2))
        self.layer3 = block(16, 32)
        self.answer = nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.answer(self.layer3(self.layer2(self.layer1(x))).mean((2, 3)))


def train_one_epoch(network: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    network.train()
    for batch in train[torch.randperm(len(train))[:320]].view(5, 64):
        optimizer.zero_grad()
        F.cross_entropy(network(images[batch]), classes[batch]).backward()
        optimizer.step()


def validate(network: nn.Module) -> tuple[float, float]:
    """Mean loss, and right answers in percent."""
    with torch.no_grad():
        logits = network(images[validation])
    right = (logits.argmax(1) == classes[validation]).float().mean()
    return F.cross_entropy(logits, classes[validation]).item(), 100 * right.item()


def main(run: str | None) -> None:
    torch.manual_seed(0)
    model = Network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    for _ in range(EPOCHS):
        train_one_epoch(model, optimizer)
    print(f"without growth: {validate(model)[1]:.1f} %")

    torch.manual_seed(0)
    model = Network()
    slots = ["layer1", "layer2", "layer3"]
    network = GrowingNetwork(model, slots=slots, example=images[:1])
    optimizer = torch.optim.SGD(network.parameters(), lr=0.05, momentum=0.9)
    grower = Grower(network, optimizer, run or HeuristicPolicy(), max_epochs=EPOCHS, verbose=True)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, EPOCHS, eta_min=0.01)
    for _ in range(EPOCHS):
        train_one_epoch(network, optimizer)
        schedule.step()
        grower.step(lambda: validate(network))
    grown = network.freeze().eval()
    parameters = sum(weight.numel() for weight in grown.parameters())
    print(f"grown: {validate(grown)[1]:.1f} %, {parameters:,} parameters")


if __name__ == "__main__":
    main(*sys.argv[1:2] or [None])
