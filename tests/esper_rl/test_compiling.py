"""Libraries that torch.compile keeps on disk."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
import torch

from esper_rl.training.compiling import remove_broken_libraries

LIBRARY = Path(torch._C.__file__).read_bytes()


@pytest.mark.skipif(not LIBRARY.startswith(b"\x7fELF"), reason="needs ELF")
def test_only_what_was_cut_off_some_time_ago_is_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    contents = {"whole": LIBRARY, "empty": b"", "begun": LIBRARY[:20], "cut off": LIBRARY[:4000]}
    minute_ago = time.time() - 60
    for name, content in contents.items():
        file = tmp_path / "ab" / f"{name}.so"
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(content)
        os.utime(file, (minute_ago, minute_ago))
    (tmp_path / "linking.so").touch()
    remove_broken_libraries()
    left = {file.stem for file in tmp_path.rglob("*.so")}
    assert left == {"whole", "linking"}
