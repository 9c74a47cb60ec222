"""One controller for all: a policy that learns from hosts of several tasks in turns."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from benchmarks.seeds import Run
from benchmarks.study.runs import play_hosts
from benchmarks.study.settings import MIXTURE, Job, compose, settings
from benchmarks.study.worlds import in_study
from envs.actions import CAUSAL_RELEVANCE
from esper_rl.config import make_env
from esper_rl.evaluation import EVALUATION_SEED, Mode
from esper_rl.policy import make_actor_critic
from esper_rl.ppo import PPO
from esper_rl.training.collection import make_collector

MODES: tuple[Mode, ...] = ("sampled", "greedy")


def in_turns(lengths: Sequence[int]) -> Iterator[int]:
    """Numbers of the sequences, each as often as it is long, evenly spread.

    Examples:
        >>> list(in_turns([1, 3]))
        [1, 0, 1, 1]
    """
    places = [((i + 0.5) / length, n) for n, length in enumerate(lengths) for i in range(length)]
    return (number for _, number in sorted(places))


def train_on_all(job: Job) -> Run:
    """Train on as many steps of each task as its specialist has, and play each task's hosts."""
    torch.set_num_threads(1)
    torch.manual_seed(job.seed)
    content = settings()[MIXTURE]
    tasks, leader = content["tasks"], content["leader"]
    configs = [in_study(compose(task, (), job.seed), task) for task in tasks]
    learner = in_study(compose(leader, job.changes, job.seed), leader)
    actor_critic = make_actor_critic(learner.policy, make_env(learner, seed=job.seed))
    ppo = PPO(actor_critic, CAUSAL_RELEVANCE, learner.ppo)
    collectors = [make_collector(config, actor_critic) for config in configs]
    batches = [iter(collector) for collector in collectors]
    turns = list(in_turns([config.iterations for config in configs]))
    for done, number in enumerate(turns):
        ppo.update(next(batches[number]), progress=done / len(turns))
        for collector in collectors:
            collector.update_policy_weights_()
    for collector in collectors:
        collector.shutdown()
    return {
        "players": {
            f"{task}, {mode}": play_hosts(
                task,
                config,
                lambda env: actor_critic.actor,
                EVALUATION_SEED,
                mode,
                actor_critic.transforms(),
            )
            for task, config in zip(tasks, configs, strict=True)
            for mode in MODES
        }
    }
