"""Tables of docs/study.md and README.md: each stands between two comments, and is made anew."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from benchmarks.scaffold import closed
from benchmarks.study.mixture import MODES
from benchmarks.study.settings import (
    TUNING,
    chosen_factor,
    read_runs,
    settings,
)
from benchmarks.study.statistics import (
    Measure,
    difference,
    earned,
    gap,
    improvement,
    late,
    matters,
    mean_of_training,
    middle,
    on_scale,
    scores,
    together,
    verdict,
)
from benchmarks.study.tables import (
    Rows,
    advantages,
    mixture,
    scratch,
    shown,
    speed,
    table,
)
from benchmarks.study.worth import break_even, growers, in_short, published
from envs.actions import Op
from esper_rl.runs.atomic_write import write_atomically

HOME = Path(__file__).parent.parent.parent
PAGES = (HOME / "docs" / "study.md", HOME / "README.md")


def tuning() -> str:
    """What each learning rate earned on the tuning seeds."""
    content = settings()["tuning"]
    rows: Rows = []
    for task in content["tasks"]:
        for policy in content["policies"]:
            cells = []
            for factor in content["lr"]:
                runs = read_runs(TUNING, task, f"{policy} {factor:g}")
                returns = [
                    f"{run['players']['sampled']['returns']:.2f}, "
                    f"{run['players']['greedy']['returns']:.2f}"
                    for run in runs.values()
                ]
                cells.append("; ".join(returns))
            try:
                chosen = f"{chosen_factor(task, policy):g}"
            except LookupError:
                chosen = ""
            rows.append((f"`{task}`", policy.upper(), *cells, chosen))
    factors = (f"{factor:g} times: sampled, greedy" for factor in content["lr"])
    return table(("task", "policy", *factors, "chosen"), rows)


MEASURES: Sequence[tuple[str, Measure, str]] = (
    ("return, sampled", earned("sampled"), ".2f"),
    ("return, greedy", earned("greedy"), ".2f"),
    ("mean return of the training", mean_of_training("return"), ".2f"),
    ("test accuracy, sampled, %", earned("sampled", "test_accuracy"), ".1f"),
)


def curves() -> str:
    """V1 and V2 on every task, by every measure."""
    rows: Rows = []
    for name, measure, form in MEASURES:
        pairs = []
        for task in settings()["hosts"]:
            v1, v2 = (scores("policies", task, policy, measure) for policy in ("v1", "v2"))
            if not len(v1) or not len(v2):
                continue
            apart = difference(v2, v1)
            whole = None if form == ".1f" else gap(task)
            scaled = None if whole is None else on_scale(task, apart)
            if whole is not None:
                pairs.append((v2 / whole, v1 / whole))
            rows.append(
                (
                    name, f"`{task}`", str(len(v2)), shown(middle(v1), form),
                    shown(middle(v2), form), shown(apart, form), shown(scaled),
                    shown(improvement(v2, v1)), verdict(scaled),
                )
            )  # fmt: skip
        if len(pairs) > 1:
            all_of_them = together(pairs)
            cells = ("", "", "", "", shown(all_of_them), "", verdict(all_of_them))
            rows.append((name, "all", *cells))
    head = (
        "measure", "task", "seeds", "V1", "V2", "V2 − V1", "on the scale",
        "probability of improvement", "verdict",
    )  # fmt: skip
    return table(head, rows)


def pairs_of(names: Sequence[tuple[str, str]], form: str = ".2f") -> str:
    """Metrics late in the training, of V1 and V2 on every task."""
    rows: Rows = []
    for task in settings()["hosts"]:
        for text, name in names:
            v1, v2 = (scores("policies", task, policy, late(name)) for policy in ("v1", "v2"))
            if len(v1) and len(v2):
                cells = (shown(middle(v1), form), shown(middle(v2), form))
                rows.append((f"`{task}`", text, *cells, shown(difference(v2, v1), form)))
    return table(("task", "metric", "V1", "V2", "V2 − V1"), rows)


def variance() -> str:
    """Explained variance, and the spread of the value's errors by op."""
    names = [
        ("explained variance", "explained_variance"),
        ("the same, of the rollout's baseline", "explained_variance_soft"),
        *((f"variance of errors, {op.name}", f"op_residual_variance/{op.name}") for op in Op),
    ]
    return pairs_of(names)


def blueprints() -> str:
    """Entropy of the blueprint head in the steps that plant."""
    return pairs_of(
        [
            ("blueprint entropy in steps that plant, nats", "relevant_entropy/blueprint"),
            ("share of its largest", "relevant_normalized_entropy/blueprint"),
        ]
    )


def choices() -> str:
    """What the blueprint head's own choice earns beside the same blueprint everywhere."""
    parts = settings()["parts"]
    forced = parts["policies"]["also"]["digits, v2"]
    rows: Rows = []
    for part, content in parts.items():
        for who in content.get("also", {}):
            task, variant = who.split(", ")
            own, *others = (scores(part, task, variant, earned(p)) for p in ("greedy", *forced))
            if len(own):
                name = variant.upper() if part == "policies" else variant
                earn = (shown(middle(each)) for each in (own, *others))
                share = shown(middle(own / np.max(others, axis=0)))
                rows.append((f"`{task}`", name, *earn, share))
    names = (player.removeprefix("blueprint ") for player in forced)
    return table(("task", "who", "its own choices", *names, "own choices / best of these"), rows)


def credit() -> str:
    """What V1 and V2 make of help on ``scaffold``: greedily played, and late in the training."""
    measures: dict[str, Measure] = {
        "part of the gap closed, greedy": _closed("greedy"),
        "the same, sampled": _closed("sampled"),
        "seeds made permanent, greedy": earned("greedy", "fossilized"),
        "hosts on which 0.9 of it is closed": lambda run: run["credit"]["near_best"],
        "hosts on which help is seen": lambda run: run["credit"]["helped"],
        "change of the value in the step that shows it": lambda run: run["credit"]["jump"],
        "its changes elsewhere, root mean square": lambda run: run["credit"]["elsewhere"],
        "credited helpers a step of training": late("hindsight/rate"),
        "their median credit": late("hindsight/credit_p50"),
        "epochs since they left, median (0: they live)": late("hindsight/delay_p50"),
    }
    rows: Rows = []
    for name, measure in measures.items():
        v1, v2 = (scores("policies", "scaffold", policy, measure) for policy in ("v1", "v2"))
        if len(v1) and len(v2):
            cells = (middle(v1), middle(v2), difference(v2, v1))
            rows.append((name, *(shown(each, ".3f") for each in cells)))
    return table(("measure", "V1", "V2", "V2 − V1"), rows)


def _closed(player: str) -> Measure:
    return lambda run: closed(run["players"][player]["returns"])


def watching() -> str:
    """What greedy policies lose when they can't see their own host."""
    rows: Rows = []
    for task in settings()["hosts"]:
        for policy in ("v1", "v2"):
            own = scores("policies", task, policy, earned("greedy"))
            if not len(own):
                continue
            others = (
                scores("policies", task, policy, earned(name))
                for name in ("shuffled", "replayed", "no feedback")
            )
            lost = (shown(middle(own - other)) for other in others)
            rows.append((f"`{task}`", policy.upper(), shown(middle(own)), *lost))
    head = (
        "task", "policy", "return, greedy", "less with another host's observations",
        "less with another host's actions", "less without action feedback",
    )  # fmt: skip
    return table(head, rows)


def changes(part: str) -> str:
    """Variants of V2 beside V2, on the same seeds."""
    content = settings()["parts"][part]
    rows: Rows = []
    for task, seeds in content["seeds"].items():
        for variant in content["variants"]:
            cells = []
            for player in MODES:
                own = scores("policies", task, "v2", earned(player))[:seeds]
                other = scores(part, task, variant, earned(player))
                if not len(own) or not len(other):
                    break
                apart = difference(other, own)
                scaled = on_scale(task, apart)
                cells += [shown(middle(other)), shown(apart), matters(scaled)]
            else:
                explained = shown(middle(scores(part, task, variant, late("explained_variance"))))
                rows.append((f"`{task}`", variant, str(len(other)), *cells, explained))
    head = (
        "task", "V2 but for", "seeds", "sampled", "less V2", "matters", "greedy", "less V2",
        "matters", "explained variance",
    )  # fmt: skip
    return table(head, rows)


BLOCKS: dict[str, Callable[[], str]] = {
    "tuning": tuning,
    "curves": curves,
    "credit": credit,
    "variance": variance,
    "blueprints": blueprints,
    "choices": choices,
    "watching": watching,
    "changes": lambda: changes("changes"),
    "options": lambda: changes("options"),
    "tried": lambda: changes("tried"),
    "growers": growers,
    "in short": in_short,
    "break-even": break_even,
    "published": published,
    "advantages": advantages,
    "mixture": mixture,
    "scratch": scratch,
    "speed": speed,
}
"""By the name in the page's comments."""


def write_pages() -> None:
    """Put every table into its place; comments without a table of that name are refused."""

    def replaced(found: re.Match[str]) -> str:
        name = found[1]
        return f"<!-- table: {name} -->\n{BLOCKS[name]()}\n<!-- end -->"

    place = re.compile(r"<!-- table: ([\w -]+) -->\n.*?<!-- end -->", re.DOTALL)
    for page in PAGES:
        write_atomically(page, place.sub(replaced, page.read_text()).encode())
