"""A network of one's own grows, and what has grown is taken home.

    python examples/own_network.py

The network is residual, with batch norm. It has 1×1 kernels only, so it can't see shape: one seed
with 3×3 kernels behind its stem makes the difference. The best of the networks is written as a
program, and another process that has PyTorch, but not this project, loads and runs it.
"""

import subprocess
import sys
import tempfile
from pathlib import Path

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn

from envs import ArrayTask, ModuleHost, MorphogenesisEnv
from esper_rl.evaluation import evaluate
from esper_rl.growing.baselines import FixedSchedulePolicy, WaitPolicy

ELSEWHERE = """
import sys, torch
sys.modules["envs"] = sys.modules["esper_rl"] = None  # not to be imported here
network = torch.export.load(sys.argv[1]).module()
images, classes = torch.load(sys.argv[2])
right = (network(images).argmax(1) == classes).float().mean()
print(f"elsewhere   {100 * right:5.1f} % of all {len(images)} digits are right")
"""


class Block(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 1, bias=False)
        self.conv2 = nn.Conv2d(channels, channels, 1, bias=False)
        self.bn1, self.bn2 = nn.BatchNorm2d(channels), nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))))


class ResNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        stem = nn.Conv2d(1, 16, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2)
        self.stem = nn.Sequential(*stem)
        self.layer1, self.layer2 = Block(16), Block(16)
        self.fc = nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.layer2(self.layer1(self.stem(x))).mean((2, 3)))


def main() -> None:
    digits = load_digits()
    images, classes = torch.from_numpy(digits.images).float().unsqueeze(1) / 16, digits.target
    host = ModuleHost(ResNet, slots=["stem", "layer1"], example=images[:1])
    task = ArrayTask(name="own", host=host, train=(images, classes), validation=500)
    env = MorphogenesisEnv(task, num_envs=4, num_slots=2, max_epochs=40)
    for name, policy in {"wait": WaitPolicy(), "seed": FixedSchedulePolicy(slot=0)}.items():
        env.set_seed(0)
        accuracy = evaluate(policy, env, episodes=4).summary()["final_accuracy"]
        print(f"{name:10}  {accuracy['mean']:5.1f} ± {accuracy['ci95']:.1f} % after 40 epochs")

    end = env.rollout(40, FixedSchedulePolicy(slot=0))[:, -1]["next", "metrics", "val_accuracy"]
    network = env.network(int(end.argmax())).freeze().eval()  # an ordinary module
    batch = {0: torch.export.Dim("examples", min=1)}
    program = torch.export.export(network, (images[:2],), dynamic_shapes=(batch,))
    with tempfile.TemporaryDirectory() as folder:
        files = [str(Path(folder) / name) for name in ("network.pt2", "digits.pt")]
        torch.export.save(program, files[0])
        torch.save((images, torch.from_numpy(classes)), files[1])
        subprocess.run([sys.executable, "-c", ELSEWHERE, *files], check=True, cwd=folder)


if __name__ == "__main__":
    main()
