"""Everything that a training run loads; processes that are forked after its import need no time."""

from tempfile import TemporaryDirectory

from esper_rl import train
from esper_rl.training.composition import compose_config
from tests.support.runs import TINY

with TemporaryDirectory() as folder:
    train(compose_config([*TINY, f"run_dir={folder}/run"]))
