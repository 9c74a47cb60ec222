"""A network of one's own grows: any module whose parts have names.

    python examples/own_network.py

This one has 1×1 kernels only, so it can't see shape: one seed with 3×3 kernels after its stem makes
the difference.
"""

from collections import OrderedDict

import torch
from sklearn.datasets import load_digits
from torch import nn

from envs import ArrayTask, ModuleHost, MorphogenesisEnv
from esper_rl.evaluation import evaluate
from esper_rl.growing.baselines import FixedSchedulePolicy, WaitPolicy


def network() -> nn.Module:
    stem = nn.Sequential(nn.Conv2d(1, 8, 1), nn.ReLU(), nn.MaxPool2d(2))
    body = nn.Sequential(nn.Conv2d(8, 16, 1), nn.ReLU(), nn.MaxPool2d(2))
    head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10))
    return nn.Sequential(OrderedDict(stem=stem, body=body, head=head))


def main() -> None:
    digits = load_digits()
    images = torch.from_numpy(digits.images).float().unsqueeze(1) / 16
    host = ModuleHost(network, slots=["stem", "body"], example=images[:1])
    task = ArrayTask(name="own", host=host, train=(images, digits.target), validation=500)
    env = MorphogenesisEnv(task, num_envs=4, num_slots=2, max_epochs=40)
    for name, policy in {"wait": WaitPolicy(), "seed": FixedSchedulePolicy(slot=0)}.items():
        env.set_seed(0)
        accuracy = evaluate(policy, env, episodes=4).summary()["final_accuracy"]
        print(f"{name:10}  {accuracy['mean']:5.1f} ± {accuracy['ci95']:.1f} % after 40 epochs")


if __name__ == "__main__":
    main()
