"""The configuration of a run: defaults, overrides, refusals."""

from __future__ import annotations

import pytest

from esper_rl import PolicyConfig
from esper_rl.training.config import (
    ConfigError,
    EnvConfig,
    PPOConfig,
    TrainConfig,
    describe_options,
    dump_config,
    load_config,
    parse_overrides,
)


def test_no_overrides_give_the_defaults() -> None:
    assert parse_overrides([]) == TrainConfig()


def test_overrides_replace_fields_and_keep_their_types() -> None:
    config = parse_overrides(
        ["env.num_envs=8", "ppo.lr=1e-3", "run_dir=12", "threads=null", "total_steps=900"]
    )
    assert config.env.num_envs == 8
    assert config.ppo.lr == 1e-3
    assert config.run_dir == "12"
    assert config.threads is None
    assert config.iterations == 2
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
        ("total_steps=null", "None"),
        ("run_dir=[1", "run_dir=[1"),
    ],
)
def test_a_bad_override_is_named(override: str, says: str) -> None:
    with pytest.raises(ConfigError) as refusal:
        parse_overrides([override])
    assert says in str(refusal.value)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("override", "field"),
    [
        ("env.num_envs=0", "env.num_envs"),
        ("env.max_epochs=-1", "env.max_epochs"),
        ("ppo.lr=0", "ppo.lr"),
        ("ppo.lr=.nan", "ppo.lr"),
        ("ppo.gamma=1.1", "ppo.gamma"),
        ("ppo.epochs=0", "ppo.epochs"),
        ("total_steps=0", "total_steps"),
        ("threads=0", "threads"),
        ("eval_episodes=-1", "eval_episodes"),
        ("steps_per_iteration=801", "steps_per_iteration"),
        ("ppo.minibatches=17", "ppo.minibatches"),
        ("policy.num_slots=2", "policy.num_slots"),
        ("env.num_slots=0", "env.num_slots"),
        ("ppo.bootstrap=mean", "ppo.bootstrap"),
    ],
)
def test_a_value_out_of_range_is_named_with_what_is_allowed(override: str, field: str) -> None:
    with pytest.raises(ConfigError, match=rf"^{field}: got .*, allowed (is|are) "):
        parse_overrides([override])


def test_python_is_refused_like_the_command_line() -> None:
    with pytest.raises(ConfigError, match=r"ppo\.minibatches"):
        TrainConfig(env=EnvConfig(num_envs=2), ppo=PPOConfig(minibatches=3))


def test_a_config_survives_its_file() -> None:
    config = parse_overrides(["env.task=digits_full", "ppo.lr=1e-3", "seed=7"])
    assert load_config(dump_config(config)) == config


@pytest.mark.parametrize("text", ["nonsense: 1", "[1, 2]", "total_steps: {"])
def test_a_file_that_is_no_config_is_refused(text: str) -> None:
    with pytest.raises(ConfigError):
        load_config(text)


def test_every_field_of_a_run_is_described() -> None:
    for key, default, text in describe_options():
        assert text, key
        assert default, key
    assert ("ppo.lr", "0.0005") in [option[:2] for option in describe_options()]


def test_a_preset_sets_all_of_the_policy() -> None:
    assert parse_overrides(["policy=v1"]).policy == PolicyConfig.v1()
    assert parse_overrides(["policy=v2"]) == TrainConfig()
    both = parse_overrides(["policy.lstm_layers=2", "policy=v1", "policy.entropy_weights.op=2"])
    expected = PolicyConfig.v1()
    expected.lstm_layers, expected.entropy_weights["op"] = 2, 2.0
    assert both.policy == expected


@pytest.mark.parametrize(("preset", "hidden"), [("v1", 128), ("v2", 384)])
def test_the_policy_follows_the_number_of_slots(preset: str, hidden: int) -> None:
    policy = parse_overrides(["env.num_slots=5", f"policy={preset}"]).policy
    assert (policy.num_slots, policy.hidden_size) == (5, hidden)


def test_an_unknown_preset_is_refused() -> None:
    with pytest.raises(ConfigError, match="policy: got v3, allowed are v1, v2"):
        parse_overrides(["policy=v3"])
