"""Everything that a training run loads; processes that are forked after its import need no time."""

from tempfile import TemporaryDirectory

import torch

from benchmarks.killing import RUN
from esper_rl import train
from esper_rl.config import compose_config

torch.set_num_threads(1)  # threads of OpenMP don't survive a fork, and would be waited for

with TemporaryDirectory() as folder:
    small = ("workers=1", "total_steps=20", "loggers=[]", f"run_dir={folder}/run")
    train(compose_config([*RUN, *small]), quiet=True)
