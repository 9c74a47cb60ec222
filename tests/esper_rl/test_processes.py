"""Scripts that start processes: refused where each process would start them again."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from esper_rl import train
from esper_rl.config import compose_config
from tests.support.runs import TINY

ROOT = Path(__file__).parents[2]
START = "from esper_rl.processes import require_guard\n"


def run(script: str, folder: Path, *, how: str = "file") -> subprocess.CompletedProcess[str]:
    """Run a script that can import this project in a folder, for a minute at most."""
    (folder / "script.py").write_text(script)
    words = {"file": ["script.py"], "module": ["-m", "script"], "command": ["-c", script]}
    return subprocess.run(
        [sys.executable, *words.get(how, [])],
        input=script if how == "stdin" else None,
        cwd=folder,
        env={"PYTHONPATH": str(ROOT), "PATH": ""},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )


@pytest.mark.parametrize(
    ("script", "how", "refused"),
    [
        ("require_guard()\n", "file", "line 2, starts processes"),
        ("require_guard()\n", "module", "line 2, starts processes"),
        ("def main():\n    require_guard()\n\nmain()\n", "file", "line 5, starts processes"),
        ("if len('a'):\n    require_guard()\n", "file", "line 3, starts processes"),
        ("if __name__ == '__main__':\n    require_guard()\n", "file", None),
        ("if '__main__' == __name__ and True:\n    require_guard()\n", "module", None),
        ("if __name__ == '__main__':\n    require_guard()\n", "stdin", "the program is <stdin>"),
        ("require_guard()\n", "command", None),
    ],
)
def test_what_isn_t_guarded_is_refused(
    script: str, how: str, refused: str | None, tmp_path: Path
) -> None:
    done = run(START + script, tmp_path, how=how)
    if refused is None:
        assert (done.returncode, done.stderr) == (0, "")
    else:
        assert done.returncode == 1
        assert refused in done.stderr
        assert "workers=1" in done.stderr


@pytest.mark.parametrize("what", ["train(config, quiet=True)", "evaluate_run('run', 2)"])
def test_nothing_is_begun_that_cannot_go_on(what: str, tmp_path: Path) -> None:
    """No folder and no process is left of a script without a guard."""
    words = [*TINY, "workers=2", f"run_dir={tmp_path / 'run'}"]
    evaluates = what.startswith("evaluate")
    if evaluates:
        train(compose_config(words))
    script = (
        "from esper_rl import train\n"
        "from esper_rl.config import compose_config\n"
        "from esper_rl.evaluation import evaluate_run\n"
        f"config = compose_config({words!r})\n"
    )
    done = run(script + what, tmp_path)
    assert 'put what it does behind `if __name__ == "__main__":`' in done.stderr
    assert done.returncode == 1
    assert (tmp_path / "run").exists() == evaluates
    assert not (tmp_path / "run" / "evaluation.json").exists()


def test_processes_that_fail_as_they_start_end_the_run(tmp_path: Path) -> None:
    """The script goes on failing behind its guard, in each process: an error within seconds."""
    script = (
        "from esper_rl import train\n"
        "from esper_rl.config import compose_config\n"
        "if __name__ == '__main__':\n"
        f"    train(compose_config({[*TINY, 'workers=2', 'run_dir=run']!r}), quiet=True)\n"
        "raise ValueError('in every process')\n"
    )
    done = run(script, tmp_path)
    assert done.returncode == 1
    assert "ValueError: in every process" in done.stderr
    assert "Worker 0 failed to initialize" in done.stderr
