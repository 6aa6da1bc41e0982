"""benchmarks/streaming.py on 200 photographs in place of 20,000: the way is the same."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from fmwiss.data.emoji import EmojiSeg, write_emoji

ROOT = Path(__file__).parents[1]
PHOTOGRAPHS, FEWER = 200, 50


def run(out: Path) -> subprocess.CompletedProcess[str]:
    words = [sys.executable, str(ROOT / "benchmarks/streaming.py"), "--out", str(out)]
    words += ["--photographs", str(PHOTOGRAPHS), "--fewer", str(FEWER)]
    return subprocess.run(words, capture_output=True, text=True, timeout=600)


def test_memory_is_flat_and_a_killed_command_ends_with_the_same_store(tmp_path: Path) -> None:
    write_emoji(tmp_path / "data", EmojiSeg(PHOTOGRAPHS, 1, size=64), layout="tagged")
    done = run(tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads((tmp_path / "results.json").read_text())
    assert found["fewer"]["files"] == FEWER and found["whole"]["files"] == found["resumed"]["files"] == PHOTOGRAPHS
    assert PHOTOGRAPHS // 2 <= found["killed"]["files"] < PHOTOGRAPHS
    assert found["store"]["same"] and found["masks"]["same"] and found["masks"]["files"] >= PHOTOGRAPHS
    assert max(found["growth"].values()) <= 0.1
    assert 200 < found["fewer"]["peak_mib"] < 4000

    # and it would tell: a byte of one file, and a peak
    path = next((tmp_path / "resumed/store").glob("*/*.safetensors"))
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    again = run(tmp_path)
    assert again.returncode == 1 and "the stores differ" in again.stderr
    content[-1] ^= 1
    path.write_bytes(content)
    found["fewer"]["peak_mib"] /= 2
    (tmp_path / "results.json").write_text(json.dumps(found))
    again = run(tmp_path)
    assert again.returncode == 1 and "memory grows" in again.stderr
