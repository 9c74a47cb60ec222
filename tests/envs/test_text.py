"""Transformer hosts, their seeds, AdamW and the text of Python's reference."""

from __future__ import annotations

import math
import pydoc_data.topics

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torchrl.envs.utils import check_env_specs

from envs import MorphogenesisEnv, TextHost, make_task
from envs.actions import Algorithm, Stage
from envs.batched.attention import exponentials
from envs.batched.optimizers import AdamW
from envs.batched.products import cached_kernel
from envs.batched.randomness import fold
from envs.networks.blueprints import TEXT_BLUEPRINTS
from envs.populations import SlotInputs
from envs.populations.compiled import CompiledPasses
from envs.populations.data import LabelledData
from envs.populations.trained import TrainedPopulation
from envs.tasks.text import CHARACTERS, HELD_OUT, LENGTH, decode, encode, windows
from tests.support.plain_text import plain_text_network
from tests.support.populations import use_plain_passes

NAMES = list(TEXT_BLUEPRINTS)


# -- kernels ----------------------------------------------------------------------------------


@cached_kernel
def _exponentials(x):
    exponentials(x)


@pytest.mark.parametrize(("dtype", "rtol"), [(np.float32, 2e-6), (np.float64, 1e-13)])
def test_exponentials_are_numpys(dtype: type, rtol: float) -> None:
    """0 is 1, −∞ and what is far below are all but 0, and NaN stays."""
    x = np.concatenate([[0, -np.inf, -1e9, np.nan], -np.logspace(-6, np.log10(86), 10_001)])
    mine = x.astype(dtype)
    _exponentials(mine)
    assert mine[0] == 1
    assert (mine[1:3] < 1e-37).all()
    assert np.isnan(mine[3])
    np.testing.assert_allclose(mine[4:], np.exp(x[4:].astype(dtype)), rtol=rtol)


# -- hosts ------------------------------------------------------------------------------------

TOKENS, CHANNELS = 7, (8, 8, 4)


both_passes = pytest.mark.parametrize("plain", [False, True], ids=["compiled", "plain"])


def population(
    rows: int, dtype: torch.dtype = torch.float64, *, plain: bool = False
) -> TrainedPopulation:
    """Small hosts on random tokens; ``plain`` in PyTorch instead of compiled."""
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(TOKENS, (60, 13), generator=generator)
    examples = tokens[:, :-1], tokens[:, 1:]
    host = TextHost(TOKENS, CHANNELS)
    data = LabelledData(
        examples, examples, host.prepare, batches_per_epoch=3, minibatch_size=5, device=CPU
    )
    made = TrainedPopulation(host, data, AdamW(), rows, 2, CPU)
    assert isinstance(made.passes, CompiledPasses)
    made = use_plain_passes(made) if plain else made
    made.params = made.params.to(dtype)
    made.buffers = made.buffers.to(dtype)
    made.reset_hosts(torch.arange(rows), fold(torch.arange(rows), 5))
    return made


CPU = torch.device("cpu")
KINDS = [
    *((name, Stage.HOLDING, algorithm) for name in NAMES for algorithm in Algorithm),
    *((name, Stage.TRAINING, Algorithm.ADD) for name in NAMES),
]


def grown(made: TrainedPopulation) -> SlotInputs:
    """Every blueprint in every mode in the first slot, another one in the second."""
    rows = len(KINDS)
    chosen = [(KINDS[i], KINDS[(5 * i + 2) % rows]) for i in range(rows)]
    shape, dtype = (rows, 2), made.params.dtype
    growth = SlotInputs(
        stage=torch.tensor([[int(stage) for _, stage, _ in pair] for pair in chosen]),
        blueprint=torch.tensor(
            [[made.blueprints.index(name) for name, _, _ in pair] for pair in chosen]
        ),
        algorithm=torch.tensor([[int(algorithm) for _, _, algorithm in pair] for pair in chosen]),
        alpha=torch.full(shape, 0.6, dtype=dtype),
        host_lr=torch.full((rows,), 0.01, dtype=dtype),
        seed_lr=torch.full(shape, 0.003, dtype=dtype),
    )
    for slot, row in ((slot, row) for slot in range(2) for row in range(rows)):
        index = torch.tensor([row])
        made.plant_at(index, slot, int(growth.blueprint[row, slot]), fold(index, slot))
    for slot, params in enumerate(made.seed_params):
        noise = torch.randn(params.shape, generator=torch.Generator().manual_seed(slot))
        params += 0.1 * noise
    return growth


@both_passes
def test_an_epoch_is_that_of_plain_networks_with_adamw(plain: bool) -> None:
    """Parameters afterwards, and loss and accuracy, of every blueprint in every mode."""
    made = population(len(KINDS), plain=plain)
    growth = grown(made)
    networks = [plain_text_network(made, growth, row) for row in range(len(KINDS))]
    examples = made.data.draw(fold(torch.arange(len(KINDS)), 1))
    for _ in range(2):
        made.train_on(growth, examples)
    validation = made.validate(growth, torch.arange(len(KINDS)), ablate=False)
    for row, network in enumerate(networks):
        groups = [{"params": network.host_parameters(), "lr": 0.01}]
        seeds = [list(slot.parameters()) for slot in network.slots]
        groups += [{"params": params, "lr": 0.003} for params in seeds]
        optimizer = torch.optim.AdamW(groups, weight_decay=0.01)
        for _ in range(2):
            for chosen in examples[row]:
                logits = network(made.data.inputs[chosen])
                loss = F.cross_entropy(logits, made.data.targets[chosen])
                network.zero_grad()
                loss.backward()
                for parameter in (p for params in seeds for p in params if p.grad is None):
                    parameter.grad = torch.zeros_like(parameter)  # a gate that isn't used decays
                optimizer.step()
        params = torch.cat([p.detach().flatten() for p in network.host_parameters()])
        torch.testing.assert_close(made.host_params[row], params, rtol=1e-7, atol=1e-9)
        for slot, params in enumerate(seeds):
            wanted = torch.cat([p.detach().flatten() for p in params])
            mine = made.seed_params[slot][row, : len(wanted)]
            torch.testing.assert_close(mine, wanted, rtol=1e-7, atol=1e-9)
        for slot in network.slots:
            slot.alpha = 0.0 if slot.stage is Stage.TRAINING else slot.alpha
        with torch.no_grad():
            logits = network(made.data.inputs)
        loss = F.cross_entropy(logits, made.data.targets)
        right = (logits.argmax(1) == made.data.targets).double().mean()
        assert validation.loss[row].item() == pytest.approx(loss.item(), rel=1e-7)
        assert validation.accuracy[row].item() == pytest.approx(100 * right.item())


def test_a_grown_host_sees_nothing_after_a_position() -> None:
    """In every mode, gates too."""
    made = population(len(KINDS))
    growth = grown(made)
    first = made.data.validation_inputs()
    later = first.clone()
    later[:, 6] = (later[:, 6] + 1) % TOKENS
    for row in range(len(KINDS)):
        network = plain_text_network(made, growth, row)
        before, after = (network(x) for x in (first, later))
        assert after[:, :, :6].equal(before[:, :, :6])
        assert not after[:, :, 6].allclose(before[:, :, 6])


@both_passes
def test_rows_never_mix(plain: bool) -> None:
    whole, alone = (population(len(KINDS), plain=plain) for _ in range(2))
    growth = grown(whole)
    grown(alone)
    whole.params[3] = math.nan
    keys = fold(torch.arange(len(KINDS)), 1)
    for made in (whole, alone):
        made.train_epoch(growth, keys, torch.arange(len(KINDS)))
    others = torch.arange(len(KINDS)) != 3
    torch.testing.assert_close(whole.params[others], alone.params[others], rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize(
    ("arguments", "error", "says"),
    [
        ({"tokens": 0}, ValueError, "tokens must be .*, got 0"),
        ({"tokens": 2.5}, TypeError, "tokens must be .*, got 2.5"),
        ({"tokens": 5, "channels": (4, 0)}, ValueError, r"channels\[1\] must be .*, got 0"),
        ({"tokens": 5, "channels": (4,)}, ValueError, r"at least one block, got \(4,\)"),
    ],
)
def test_bad_sizes_are_named(arguments: dict, error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        TextHost(**arguments)


@pytest.mark.parametrize(
    ("tokens", "says"),
    [
        (torch.zeros(3, 4), r"tokens must be integers of shape \[M, T\], got torch.float32"),
        (torch.zeros(3, dtype=torch.int64), r"of shape \[3\]"),
        (torch.tensor([[0, 5]]), "tokens must be from 0 to 4, got 0 to 5"),
        (torch.tensor([[-1, 4]]), "tokens must be from 0 to 4, got -1 to 4"),
    ],
)
def test_bad_tokens_are_named(tokens: Tensor, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        TextHost(5).prepare(tokens)


# -- AdamW ------------------------------------------------------------------------------------


def test_adamw_is_torchs_and_counts_every_parameters_own_steps() -> None:
    """The second half of the parameters begins three steps after the first."""
    generator = torch.Generator().manual_seed(0)
    params = torch.randn(6, dtype=torch.float64, generator=generator)
    gradients = torch.randn(8, 6, dtype=torch.float64, generator=generator)
    optimizer = AdamW(weight_decay=0.1)
    buffers = [torch.zeros_like(params) for _ in range(optimizer.num_buffers)]
    rate = torch.tensor([0.1, 0.1, 0.2, 0.1, 0.1, 0.2], dtype=torch.float64)
    theirs = [params[i : i + 1].clone().requires_grad_() for i in range(6)]
    steppers = [
        torch.optim.AdamW([theirs[i]], lr=rate[i].item(), weight_decay=0.1) for i in range(6)
    ]
    for step, gradient in enumerate(gradients):
        used = 3 if step < 3 else 6
        optimizer.step(
            params[:used], [buffer[:used] for buffer in buffers], gradient[:used], rate[:used]
        )
        for i in range(used):
            theirs[i].grad = gradient[i : i + 1].clone()
            steppers[i].step()
    torch.testing.assert_close(params, torch.cat([p.detach() for p in theirs]))


@pytest.mark.parametrize(
    "argument", [{"beta1": 1.0}, {"beta2": -0.1}, {"epsilon": 0.0}, {"weight_decay": -1.0}]
)
def test_bad_numbers_of_adamw_are_named(argument: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(argument))} must be"):
        AdamW(**argument)


# -- the task ---------------------------------------------------------------------------------


def test_text_becomes_tokens() -> None:
    assert len(CHARACTERS) == len(set(CHARACTERS)) == 61
    assert decode(encode("  In 2024\tß…\n“x”").tolist()) == " in 0000▒▒▒\n“x”"


def test_a_target_is_the_character_after_it() -> None:
    text = encode("the quick brown fox jumps over the lazy dog " * 3)
    inputs, targets = windows(text)
    assert inputs.shape == targets.shape == (4, LENGTH)
    assert inputs.flatten().equal(text[: 4 * LENGTH])
    assert targets.flatten().equal(text[1 : 4 * LENGTH + 1])


def test_topics_are_held_out_whole() -> None:
    task = make_task("pydoc")
    held_out = "".join(decode(row.tolist()) for row in task.validation.inputs)
    train = "".join(decode(row.tolist()) for row in task.train.inputs)
    assert len(train) > 350_000
    assert 10_000 < len(held_out) < 0.1 * len(train)
    for name, text in pydoc_data.topics.topics.items():
        plain = decode(encode(text).tolist())
        pieces = [plain[i : i + 80] for i in range(0, len(plain) - 120, 80)]
        assert all((piece in train) is (name not in HELD_OUT) for piece in pieces), name


def test_an_environment_of_text() -> None:
    env = MorphogenesisEnv("pydoc", num_envs=2, max_epochs=3, validation_size=8)
    check_env_specs(env)
    offered = {env.population.blueprints[i] for i in env.population.offered.nonzero().flatten()}
    assert offered == set(TEXT_BLUEPRINTS)
    env.set_seed(0)
    accuracy = env.rollout(3)["next", "metrics", "val_accuracy"]
    assert accuracy[:, -1].min() > accuracy[:, 0].min() > 0
