"""Heads, choices and causal relevance of the action, against tables written out by hand."""

from __future__ import annotations

import pytest
import torch

from envs.actions import (
    ALPHA_SPEED_EPOCHS,
    ALPHA_TARGETS,
    BLUEPRINTS,
    CAUSAL_RELEVANCE,
    HEADS,
    SIGMOID_STEEPNESS,
    STYLE_ALGORITHM,
    STYLE_CURVE,
    TEMPO_EPOCHS,
    Algorithm,
    AlphaCurve,
    AlphaMode,
    Op,
    Stage,
    Style,
    head_sizes,
)


@pytest.mark.parametrize(
    ("enum", "names"),
    [
        (Op, "WAIT GERMINATE SET_ALPHA_TARGET PRUNE FOSSILIZE ADVANCE"),
        (
            Stage,
            "UNKNOWN DORMANT GERMINATED TRAINING BLENDING HOLDING FOSSILIZED PRUNED EMBARGOED "
            "RESETTING",
        ),
        (AlphaMode, "HOLD UP DOWN"),
        (Algorithm, "ADD MULTIPLY GATE"),
        (AlphaCurve, "LINEAR COSINE SIGMOID_GENTLE SIGMOID SIGMOID_SHARP"),
        (Style, "LINEAR_ADD LINEAR_MULTIPLY SIGMOID_ADD GATED_GATE"),
    ],
)
def test_order_of_an_enum(enum, names):
    assert [each.name for each in enum] == names.split()
    assert [each.value for each in enum] == list(range(len(enum)))


def test_what_the_choices_stand_for():
    assert " ".join(BLUEPRINTS) == (
        "noop conv_light attention norm depthwise bottleneck conv_small conv_heavy lora "
        "lora_large mlp_small mlp flex_attention"
    )
    assert TEMPO_EPOCHS == (3, 5, 8)
    assert ALPHA_TARGETS == (0.5, 0.7, 1.0)
    assert ALPHA_SPEED_EPOCHS == (0, 3, 5, 8)
    assert SIGMOID_STEEPNESS == {2: 6.0, 3: 12.0, 4: 24.0}


def test_what_the_styles_stand_for():
    assert STYLE_ALGORITHM == (Algorithm.ADD, Algorithm.MULTIPLY, Algorithm.ADD, Algorithm.GATE)
    linear = AlphaCurve.LINEAR
    assert (linear, linear, AlphaCurve.SIGMOID, linear) == STYLE_CURVE


@pytest.mark.parametrize("num_slots", [1, 3, 7])
def test_head_sizes(num_slots):
    assert list(head_sizes(num_slots).items()) == [
        ("op", 6),
        ("slot", num_slots),
        ("blueprint", 13),
        ("style", 4),
        ("tempo", 3),
        ("alpha_target", 3),
        ("alpha_speed", 4),
        ("alpha_curve", 5),
    ]
    assert tuple(head_sizes(num_slots)) == HEADS


def test_causal_relevance():
    # columns: op, slot, blueprint, style, tempo, alpha_target, alpha_speed, alpha_curve
    table = [
        [1, 0, 0, 0, 0, 0, 0, 0],  # WAIT
        [1, 1, 1, 1, 1, 1, 0, 0],  # GERMINATE
        [1, 1, 0, 1, 0, 1, 1, 1],  # SET_ALPHA_TARGET
        [1, 1, 0, 0, 0, 0, 1, 1],  # PRUNE
        [1, 1, 0, 0, 0, 0, 0, 0],  # FOSSILIZE
        [1, 1, 0, 0, 0, 0, 0, 0],  # ADVANCE
    ]
    assert CAUSAL_RELEVANCE.dtype == torch.bool
    assert CAUSAL_RELEVANCE.int().tolist() == table
