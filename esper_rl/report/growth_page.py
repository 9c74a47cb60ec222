"""The story of one grown network, as a page."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Any

from esper_rl.evaluation.best_network import GrownNetwork
from esper_rl.report.episode_trace import LEGEND, draw_trace, trace_of
from esper_rl.report.page import as_page, as_picture, as_table


def growth_page(grown: GrownNetwork, described: Mapping[str, Any], player: str, file: str) -> str:
    """Tell how a network grew, as one HTML page that needs no network.

    Args:
        grown: the network.
        described: as :func:`~esper_rl.evaluation.best_network.save_network` gives it.
        player: name of who grew it.
        file: name of the program's file.
    """
    trace = trace_of(grown.played, grown.blueprints, gamma=1.0)
    accuracy, parameters = described["accuracy"], described["parameters"]
    before = trace.accuracy[0]
    rows = [["epoch", "op", "slot", "blueprint"]]
    for did in described["grown"]:
        rows.append([str(did["epoch"]), did["op"], str(did["slot"]), did.get("blueprint", "")])
    summary = (
        f"The best of the networks that {player} grew: from {before:.1f} to {accuracy:.1f} % in "
        f"{len(trace.op)} epochs, {parameters:,} parameters."
    )
    load = f'network = torch.export.load("{file}").module()'
    parts = [
        f"<p>{escape(summary)}</p>",
        as_picture(draw_trace(trace), trace.describe()),
        f"<p>{LEGEND}</p>",
        "<h2>What was done</h2>",
        as_table(rows) if len(rows) > 1 else "<p>Nothing: it was left alone.</p>",
        "<h2>The network</h2>",
        f"<p>It runs where only PyTorch is installed: <code>{escape(load)}</code></p>",
        f"<pre>{escape(str(grown.network.freeze()))}</pre>",
    ]
    return as_page(f"A network grown on {described['task']}", parts)
