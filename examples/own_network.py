"""A network of one's own grows: any module whose parts have names.

    python examples/own_network.py

This one has 1×1 kernels only, so it can't see shape: one seed with 3×3 kernels after its stem makes
the difference.
"""

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

from envs import ArrayTask, ModuleHost, MorphogenesisEnv
from esper_rl.evaluation import evaluate
from esper_rl.growing.baselines import FixedSchedulePolicy, WaitPolicy


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 8, 1), nn.ReLU(), nn.MaxPool2d(2))
        self.body = nn.Sequential(nn.Conv2d(8, 16, 1), nn.ReLU(), nn.MaxPool2d(2))
        self.head = nn.Linear(16, 10)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.body(self.stem(images)).mean((2, 3)))


def main() -> None:
    digits = load_digits()
    images = torch.from_numpy(digits.images).float().unsqueeze(1) / 16
    host = ModuleHost(Network, slots=["stem", "body"], example=images[:1])
    task = ArrayTask(name="own", host=host, train=(images, digits.target), validation=500)
    env = MorphogenesisEnv(task, num_envs=4, num_slots=2, max_epochs=40)
    for name, policy in {"wait": WaitPolicy(), "seed": FixedSchedulePolicy(slot=0)}.items():
        env.set_seed(0)
        accuracy = evaluate(policy, env, episodes=4).summary()["final_accuracy"]
        print(f"{name:10}  {accuracy['mean']:5.1f} ± {accuracy['ci95']:.1f} % after 40 epochs")


if __name__ == "__main__":
    main()
