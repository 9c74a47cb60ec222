"""The configuration of a run: defaults, overrides, refusals."""

from __future__ import annotations

import inspect
import re
from dataclasses import fields, replace
from importlib.resources import files
from pathlib import Path

import pytest

from envs import MorphogenesisEnv, RewardConfig, make_task, register_task
from envs.actions import CAUSAL_RELEVANCE, Op
from esper_rl import FactoredClipPPOLoss, PolicyConfig, PPOConfig, cli, make_actor_critic
from esper_rl.config import (
    EnvConfig,
    TrainConfig,
    compose_config,
    compose_jobs,
    describe_options,
    dump_config,
    in_another_world,
    load_config,
    make_env,
    make_schedule,
    pin_world,
)
from esper_rl.errors import ConfigError
from esper_rl.growing import PRESETS
from esper_rl.objectives import compute_advantages
from tests.support.fake_world import FakeWorld


def test_no_overrides_give_the_defaults() -> None:
    assert compose_config([]) == TrainConfig()


def test_overrides_replace_fields_and_keep_their_types() -> None:
    config = compose_config(
        ["env.num_envs=8", "ppo.lr=1e-3", "run_dir=12", "threads=null", "total_steps=900"]
    )
    assert config.env.num_envs == 8
    assert config.ppo.lr == 1e-3
    assert config.run_dir == "12"
    assert config.threads is None
    assert config.rollout_steps == 8 * 50
    assert config.iterations == 3
    assert config.ppo.gamma == TrainConfig().ppo.gamma


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("env.num_env=8", "'env.num_envs'"),
        ("learning_rate=1", "there is no field 'learning_rate'"),
        ("lr=1", "'ppo.lr'"),
        ("env=8", "there is no field 'env'"),
        ("total_steps", "key=value"),
        ("total_steps=many", "'many'"),
        ("total_steps=1.5", "1.5"),
        ("total_steps=null", "not Optional"),
        ("threads=[1", "threads=[1"),
        ("seed=1,2", "-m"),
        ("seed=range(0)", "an empty range"),
        ("env.task=digits", "'task'"),
        ("ppo.lr=${nope}", "nope"),
        ("~seed", "key=value"),
        ("compile=-1", "'compile=-1': must be true or false, got -1"),
        ("bf16=99999999999999999999", "must be true or false, got 99999999999999999999"),
        ("ppo.anneal_entropy=0.5", "must be true or false, got 0.5"),
        ("run_dir=[1,2]", "quote a name that looks like a list"),
    ],
)
def test_a_bad_override_is_named(override: str, says: str) -> None:
    with pytest.raises(ConfigError) as refusal:
        compose_config([override])
    assert says in str(refusal.value)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("override", "field"),
    [
        ("env.num_envs=0", "env.num_envs"),
        ("ppo.lr=0", "ppo.lr"),
        ("ppo.lr=nan", "ppo.lr"),
        ("ppo.gamma=1.1", "ppo.gamma"),
        ("ppo.epochs=0", "ppo.epochs"),
        ("total_steps=0", "total_steps"),
        ("threads=0", "threads"),
        ("threads=1000000", "threads"),
        ("seed=99999999999999999999999", "seed"),
        ("eval_episodes=1000000000000", "eval_episodes"),
        ("policy.attention_span=100000", "policy.attention_span"),
        ("eval_episodes=-1", "eval_episodes"),
        ("steps_per_iteration=801", "steps_per_iteration"),
        ("ppo.minibatches=33", "ppo.minibatches"),
        ("policy.num_slots=2", "policy.num_slots"),
        ("env.num_slots=0", "env.num_slots"),
        ("ppo.bootstrap=mean", "ppo.bootstrap"),
        ("env.max_epochs=0", "env.max_epochs"),
        ("total_steps=10000000000000", "total_steps"),
        ("ppo.epochs=1000000", "ppo.epochs"),
    ],
)
def test_a_value_out_of_range_is_named_with_what_is_allowed(override: str, field: str) -> None:
    with pytest.raises(ConfigError, match=rf"^{field} must be .*, got "):
        compose_config([override])


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("reward.rent=-1", "reward weight rent must be a number of at least 0, got -1.0"),
        ("env.gates=loose", "gates must be one of"),
    ],
)
def test_what_the_world_refuses_is_named(override: str, says: str) -> None:
    with pytest.raises(ConfigError, match=f"env: {says}"):
        make_env(compose_config([override]), seed=0)


def test_options_of_the_world_are_the_constructors() -> None:
    """Same names, same defaults, told once."""
    parameters = inspect.signature(MorphogenesisEnv.__init__).parameters
    options = {each.name: each.default for each in fields(EnvConfig)}
    others = {"self", "seed", "device", "reward"}
    assert options == {n: p.default for n, p in parameters.items() if n not in others}


def test_weights_of_the_reward_are_options() -> None:
    config = compose_config(
        ["reward.rent=0.02", "reward.intervention.PRUNE=0.5", "ppo.gamma=0.9", "env.num_envs=2"]
    )
    env = make_env(config, seed=0)
    default = RewardConfig()
    assert env.reward_config == replace(
        default,
        gamma=0.9,
        rent=0.02,
        intervention={**default.intervention, Op.PRUNE: 0.5},
    )
    assert load_config(dump_config(config)) == config
    assert make_env(compose_config([]), seed=0).reward_config == default
    names = {option[0] for option in describe_options()}
    assert {f"reward.{each.name}" for each in fields(RewardConfig)} - names == {"reward.gamma"}


GROWING_DEARER = "{key: intervention.GERMINATE, start: 0.5, begin: 0.2, end: 0.6}"


def test_prices_change_where_a_policy_learns_and_are_final_elsewhere() -> None:
    config = compose_config(
        ["reward.rent=0.02", "env.max_epochs=5", f"reward.schedule=[{GROWING_DEARER}]"]
    )
    assert load_config(dump_config(config)) == config
    assert pin_world(config).reward.schedule == config.reward.schedule
    env, played = make_env(config, seed=0, scheduled=True), make_env(config, seed=0)
    assert env.reward_schedule == make_schedule(config)
    assert (env.reward_schedule.every, env.reward_schedule.steps) == (5, 41_600 // 32)
    assert played.reward_schedule is None
    assert played.reward_config == env.reward_config == make_schedule(config).final
    assert make_schedule(config).at(0).intervention[Op.GERMINATE] == 0.5
    assert compose_config(["reward.schedule=[]"], config).reward.schedule == []
    unscheduled = make_env(compose_config([]), seed=0, scheduled=True)
    assert unscheduled.reward_schedule is None


@pytest.mark.parametrize(
    ("schedule", "says"),
    [
        ("[{key: rend, start: 1}]", "key of a schedule must be one of"),
        ("[{key: rent, start: -1}]", "start of rent's schedule must be"),
        ("[{key: rent}]", "missing mandatory value: start"),
        ("[{key: rent, start: 1, to: 2}]", "Key 'to' not in 'Ramp'"),
        ("[3]", "reward.schedule"),
        ("[{key: rent, start: 1}, {key: rent, start: 2}]", "each key once, got 'rent'"),
    ],
)
def test_a_schedule_that_is_none_is_refused(schedule: str, says: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(says)):
        make_env(compose_config([f"reward.schedule={schedule}"]), seed=0, scheduled=True)


def test_an_evaluation_has_no_schedule() -> None:
    with pytest.raises(ConfigError, match="played at the final prices"):
        in_another_world(TrainConfig(), [f"reward.schedule=[{GROWING_DEARER}]"])


def test_a_run_keeps_the_prices_of_its_task() -> None:
    task = replace(make_task("scaffold"), reward=RewardConfig(rent=0.25, bonus=3.0))
    register_task("dear", lambda: task)
    env = make_env(compose_config(["task=dear", "reward.bonus=1"]), seed=0)
    assert (env.reward_config.rent, env.reward_config.bonus) == (0.25, 1.0)


def test_dictionaries_take_new_entries() -> None:
    policy = compose_config(["policy.head_layers.op=[8,4]", "policy.hidden_columns=[3]"]).policy
    assert policy.hidden_layers("op") == [8, 4]
    assert policy.columns_left_out() == [3]
    with pytest.raises(ConfigError, match=r"entropy_weights\.op"):
        compose_config(["policy.entropy_weights.opp=2"])


def test_python_is_refused_like_the_command_line() -> None:
    with pytest.raises(ConfigError, match=r"ppo\.minibatches"):
        TrainConfig(env=EnvConfig(num_envs=2), ppo=PPOConfig(minibatches=3))


def test_a_config_survives_its_file() -> None:
    config = compose_config(["task=digits_full", "ppo.lr=1e-3", "seed=7"])
    assert load_config(dump_config(config)) == config


def test_whole_numbers_are_taken_for_fractions_in_lists_too() -> None:
    logits = {"op": [0.0, -3.0, 1.0, 0.0, 0.0, 0.0]}
    composed = compose_config(["policy.initial_logits={op: [0, -3, 1, 0, 0, 0]}"])
    assert composed.policy.initial_logits == logits
    loaded = load_config("policy: {initial_logits: {op: [0, -3, 1, 0, 0, 0]}}")
    assert loaded.policy.initial_logits == logits


LAUGHS = "\n".join(
    ["a0: &a0 [1, 1]", *(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 11))]
)
"""A file of a few lines that would become a list of a billion."""


@pytest.mark.parametrize("text", ["nonsense: 1", "[1, 2]", "total_steps: {", LAUGHS, "[" * 5000])
def test_a_file_that_is_no_config_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=r"^not a training configuration: "):
        load_config(text)


def test_a_file_with_a_task_that_there_is_not(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(dump_config(TrainConfig()).replace("task: digits", "task: nowhere"))
    assert cli.main(["train", "--config", str(file)]) == 2


def test_flags_are_written_as_people_do() -> None:
    for written in ("true", "True", "yes", "on", "1"):
        assert compose_config([f"bf16={written}"]).bf16
    assert compose_config(["run_dir='[1,2]'"]).run_dir == "[1,2]"


def test_every_field_of_a_run_is_described() -> None:
    for key, default, text, _ in describe_options():
        assert text, key
        assert default, key
    assert ("ppo.lr", "0.0005") in [option[:2] for option in describe_options()]


def test_a_preset_sets_all_of_the_policy() -> None:
    assert compose_config(["policy=v1"]).policy == PolicyConfig.v1()
    assert compose_config(["policy=v2"]) == TrainConfig()
    both = compose_config(["policy.lstm_layers=2", "policy=v1", "policy.entropy_weights.op=2"])
    expected = PolicyConfig.v1()
    expected.lstm_layers, expected.entropy_weights["op"] = 2, 2.0
    assert both.policy == expected


@pytest.mark.parametrize(("preset", "hidden"), [("v1", 128), ("v2", 384)])
def test_the_policy_follows_the_number_of_slots(preset: str, hidden: int) -> None:
    policy = compose_config(["env.num_slots=5", f"policy={preset}"]).policy
    assert (policy.num_slots, policy.hidden_size) == (5, hidden)


def test_an_unknown_preset_is_refused() -> None:
    with pytest.raises(ConfigError, match="policy must be one of 'v1', 'v2', got 'v3'"):
        compose_config(["policy=v3"])


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"entropy_weights": {"op": -1.0}}, "must be a number of at least 0, got -1.0"),
        ({"entropy_weights": {"op": float("nan")}}, "must be a number of at least 0, got nan"),
        ({"entropy_weights": {"foo": 1.0}}, "heads of entropy_weights must be one of 'op'.*'foo'"),
        ({"hidden_size": 2.0}, "hidden_size must be an integer, got 2.0"),
        ({"action_feedback": "no"}, "action_feedback must be True or False, got 'no'"),
    ],
)
def test_policies_that_could_not_train_are_refused(changes: dict, says: str) -> None:
    with pytest.raises((ValueError, TypeError), match=says):
        PolicyConfig(**changes)


@pytest.mark.parametrize("clip", [5.0, 1.0, 0.0, -1.0, float("nan")])
def test_clips_that_clip_nothing_are_refused(clip: float) -> None:
    with pytest.raises(ConfigError, match=r"ppo\.clip_epsilon must be .* above 0 and below 1"):
        PPOConfig(clip_epsilon=clip)


def test_a_discount_of_zero_is_refused_as_documented() -> None:
    with pytest.raises(ConfigError, match=r"ppo\.gamma must be a number above 0 and at most 1"):
        compose_config(["ppo.gamma=0"])
    (text,) = (text for key, _, text, _ in describe_options() if key == "ppo.gamma")
    assert "above 0" in text


@pytest.mark.parametrize(("text", "steps"), [("1e5", 100_000), ("1.6e3", 1600), ("2_000", 2000)])
def test_whole_numbers_are_written_as_people_do(text: str, steps: int) -> None:
    assert compose_config([f"total_steps={text}"]).total_steps == steps
    assert compose_config([f"env.max_epochs={text}"]).env.max_epochs == steps


def test_whole_numbers_stay_whole() -> None:
    with pytest.raises(ConfigError, match=r"1\.5"):
        compose_config(["total_steps=1.5"])


def test_the_api_and_the_command_have_one_source() -> None:
    """The README's script gets the numbers of ``esper-rl train``."""
    config = PPOConfig()
    parameters = inspect.signature(compute_advantages).parameters
    assert {n: parameters[n].default for n in config.advantage_options()} == (
        config.advantage_options()
    )
    world = FakeWorld(num_envs=2)
    ac = make_actor_critic(PolicyConfig.v2(), world)
    loss = FactoredClipPPOLoss(
        ac.actor, ac.critic, heads=ac.heads, relevance=CAUSAL_RELEVANCE, **config.loss_options()
    )
    weights = dict(zip(ac.heads, loss.entropy_weights.tolist(), strict=True))
    assert weights == pytest.approx(PolicyConfig.v2().entropy_weights)


def test_a_tasks_own_numbers_are_defaults_of_its_runs() -> None:
    config = compose_config(["task=scaffold"])
    task = make_task("scaffold")
    assert (config.ppo.lr, config.workers, config.total_steps) == (7e-4, 1, 622_080)
    varied = compose_config(["task=digits_varied"])
    assert varied.policy.initial_logits == {"op": [0, -3, -1, -3, 1, 1]}
    assert (varied.ppo.lmbda, varied.total_steps) == (0.95, 144_000)
    assert config.rollout_steps == config.env.num_envs * task.max_epochs
    assert config.iterations * config.rollout_steps == config.total_steps  # whole episodes
    said = compose_config(["ppo.lr=1e-5", "task=scaffold", "env.max_epochs=20"])
    assert said.ppo.lr == 1e-5
    assert said.rollout_steps == config.env.num_envs * 20
    assert compose_config(["task=digits"]) == TrainConfig()


def test_a_task_may_bring_numbers_of_the_policy() -> None:
    training = {"policy.hidden_size": 64, "policy.initial_logits.op": [0, -3, 0, 0, 0, 0]}
    task = replace(make_task("digits"), training=training)
    register_task("narrow", lambda: task)
    for preset in PRESETS:
        policy = compose_config(["task=narrow", f"policy={preset}"]).policy
        assert policy.hidden_size == 64
        assert policy.initial_logits == {"op": [0, -3, 0, 0, 0, 0]}
        assert policy.value_mode == PRESETS[preset](3).value_mode
    assert compose_config(["task=narrow", "policy.hidden_size=32"]).policy.hidden_size == 32
    later = compose_config(["task=narrow"], start=TrainConfig(seed=5))
    assert (later.policy.hidden_size, later.seed) == (64, 5)


def test_a_number_of_a_task_that_no_run_has() -> None:
    odd = replace(make_task("digits"), training={"ppo.learning_rate": 1.0})
    register_task("odd", lambda: odd)
    with pytest.raises(ConfigError, match=r"there is no field 'ppo.learning_rate'"):
        compose_config(["task=odd"])


def test_the_defaults_are_written_down() -> None:
    """In a file that people read and begin with (``esper-rl train --config``)."""
    text = (files("esper_rl.config") / "conf" / "defaults.yaml").read_text(encoding="utf-8")
    assert text == dump_config(TrainConfig())
    assert load_config(text) == TrainConfig()
    assert "  # learning rate of Adam, in the first iteration\n  lr: 0.0005\n" in text


def test_several_values_have_names_of_their_own() -> None:
    jobs = compose_jobs(["policy.hidden_columns=[1,2],[3]", "seed=range(2)", "bf16=true"])
    assert list(jobs) == [
        f"policy.hidden_columns={columns},seed={seed}"
        for columns in ("[1,2]", "[3]")
        for seed in (0, 1)
    ]
    with pytest.raises(ConfigError, match="seed=0 is given more than once"):
        compose_jobs(["seed=0,0"])
