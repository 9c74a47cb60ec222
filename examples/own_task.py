"""A task from arrays: which way do the stripes run?

    python examples/own_task.py

The host has 1×1 kernels only, so it sees how bright an image is and no direction: one seed with
3×3 kernels makes the difference.
"""

import torch

from envs import ArrayTask, ConvHost, MorphogenesisEnv, register_task
from esper_rl.evaluation import evaluate
from esper_rl.growing.baselines import FixedSchedulePolicy, WaitPolicy


def stripes() -> ArrayTask:
    """600 noisy images of lines that lie (class 0) or stand (class 1)."""
    generator = torch.Generator().manual_seed(0)
    classes = torch.arange(600) % 2
    lines = (torch.rand(600, 1, 8, 1, generator=generator) < 0.5).float().expand(-1, -1, -1, 8)
    images = torch.where(classes[:, None, None, None] == 0, lines, lines.transpose(2, 3))
    images = images + 0.3 * torch.randn(images.shape, generator=generator)
    host = ConvHost(kernel_size=1, image_shape=(1, 8, 8), channels=(8, 16, 16), classes=2)
    return ArrayTask(name="stripes", host=host, train=(images, classes), validation=200)


def main() -> None:
    register_task("stripes", stripes)  # from here on a name like the others
    env = MorphogenesisEnv("stripes", num_envs=8, max_epochs=30)
    for name, policy in {
        "wait": WaitPolicy(),
        "seed": FixedSchedulePolicy(0, "conv_light"),
    }.items():
        env.set_seed(0)
        accuracy = evaluate(policy, env, episodes=8).summary()["final_accuracy"]
        print(f"{name:10}  {accuracy['mean']:5.1f} ± {accuracy['ci95']:.1f} % after 30 epochs")


if __name__ == "__main__":
    main()
