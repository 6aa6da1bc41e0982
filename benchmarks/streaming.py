"""Pseudo-masking of many photographs: whether memory stays flat, and whether a killed command ends with the same store.

Writes small generated photographs with a tag each (EmojiSeg) and gives them to ``fmwiss pseudo-masks`` with the tiny
models of the package, each time in a process of its own:

1. ``fewer``: the first ``--fewer`` photographs, into a store of their own, for the memory that this takes;
2. ``whole``: all of them, uninterrupted;
3. ``killed``: all of them into another store; SIGKILL when half of the files are there;
4. ``resumed``: the same command again, to its end.

It passes if the peak of ``whole``, and of ``resumed``, is at most ``--tolerance`` above that of ``fewer``, and if the
stores and the written masks of ``resumed`` are those of ``whole``, byte for byte. Peaks are the largest resident memory
of a process, as the kernel counts it. What is finished in ``--out`` is not done again.

    python benchmarks/streaming.py --out DIR [--photographs 20000] [--fewer 2000] [--side 64]
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

COMMAND = (sys.executable, "-c", "from fmwiss.cli import main; main()")
"""``fmwiss`` of this interpreter. This process imports neither it nor torch: a child's peak begins at its parent's."""

POLL_SECONDS = 0.05

EXPERIMENT = """\
# The package's own models, with small inputs.
protocol: {steps: 15-5}
data: {source: folder}
cosegmentation:
  vision_language: {name: clip, model: TinyCLIP-emoji, tag: emojiseg, input_size: 64}
  self_supervised: {model: vit_emoji_patch8_80, input_size: 64}
  batch_size: 64
"""


class Attempt:
    """One command in a process of its own.

    Args:
        name: for messages.
        words: of the command line, without ``fmwiss``.
        log: receives what it prints.
    """

    def __init__(self, name: str, words: list[str], log: Path) -> None:
        self.name = name
        self.began = time.monotonic()
        with log.open("w") as file:
            self.process = subprocess.Popen([*COMMAND, *words], stdout=file, stderr=subprocess.STDOUT)
        self.log = log
        self.killed = False

    def kill_when(self, folder: Path, n_files: int) -> Attempt:
        """End the process with SIGKILL as soon as so many photographs are in the store."""
        while self.process.returncode is None and not self.killed:
            if count(folder) >= n_files:
                os.kill(self.process.pid, signal.SIGKILL)
                self.killed = True
            elif os.waitid(os.P_PID, self.process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None:
                raise SystemExit(f"{self.name} ended before it could be killed; give more --photographs")
            else:
                time.sleep(POLL_SECONDS)
        return self

    def figures(self) -> dict[str, Any]:
        """Wait for the end; seconds, and the process's peak of resident memory in MiB."""
        _, status, usage = os.wait4(self.process.pid, 0)
        self.process.returncode = code = os.waitstatus_to_exitcode(status)
        if code != (-signal.SIGKILL if self.killed else 0):
            raise SystemExit(f"{self.name} ended with {code}:\n{self.log.read_text()}")
        return {
            "seconds": round(time.monotonic() - self.began, 1),
            "cpu_seconds": round(usage.ru_utime + usage.ru_stime, 1),
            "peak_mib": round(usage.ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10), 1),
        }


def count(root: Path) -> int:
    """The photographs' files in a folder of stores."""
    stores = root.iterdir() if root.is_dir() else ()
    return sum(name.endswith(".safetensors") for store in stores for name in os.listdir(store))


def keep_one_tag(table: Path) -> None:
    """Let every photograph be tagged with the first of its classes alone: batches of equal tags are passed at once."""
    lines = table.read_text(encoding="utf-8").splitlines()
    table.write_text("".join(f"{line.partition(';')[0]}\n" for line in lines), encoding="utf-8")


def digest(folder: Path, pattern: str) -> dict[str, Any]:
    """How many files match, their bytes, and one SHA-256 of all their names and contents.

    What a killed process left of the one file that it was writing, under a temporary name, is no part of a store.
    """
    total, n_files, n_bytes = hashlib.sha256(), 0, 0
    for path in sorted(path for path in folder.glob(pattern) if not path.name.startswith(".")):
        content = path.read_bytes()
        total.update(f"{path.relative_to(folder)} {len(content)}\n".encode() + content)
        n_files, n_bytes = n_files + 1, n_bytes + len(content)
    return {"files": n_files, "bytes": n_bytes, "sha256": total.hexdigest()}


def markdown(found: dict[str, Any]) -> str:
    """The processes as a table."""
    names = {
        "fewer": f"{found['fewer_photographs']} photographs", "whole": f"{found['photographs']}, uninterrupted",
        "killed": "the same, SIGKILL half-way", "resumed": "the same command again",
    }
    rows = [["", "files in the store", "peak memory, MiB", "CPU seconds", "minutes"], ["---"] * 5]
    for name, words in names.items():
        one = found[name]
        times = f"{one['cpu_seconds']:.0f}", f"{one['seconds'] / 60:.1f}"
        rows.append([words, str(one["files"]), f"{one['peak_mib']:.0f}", *times])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for everything; about 10 KiB a photograph")
    parser.add_argument("--photographs", type=int, default=20_000)
    parser.add_argument("--fewer", type=int, default=2_000)
    parser.add_argument("--side", type=int, default=64, help="longer side in pixels")
    parser.add_argument("--tolerance", type=float, default=0.1, help="share that the peak may grow by")
    arguments = parser.parse_args()
    out, data = arguments.out, arguments.out / "data"
    out.mkdir(parents=True, exist_ok=True)
    (out / "experiment.yaml").write_text(EXPERIMENT)
    if not (data / "tags.csv").is_file():
        shutil.rmtree(data, ignore_errors=True)
        words = ["data", "emoji", "--layout", "tagged", "--out", str(data), "--val", "1"]
        words += ["--train", str(arguments.photographs), "--size", str(arguments.side)]
        print("photographs", Attempt("data emoji", words, out / "data.log").figures(), flush=True)
    names = sorted(path.stem for path in (data / "images").iterdir())
    if len(names) != arguments.photographs:
        raise SystemExit(f"{data} holds {len(names)} photographs, not {arguments.photographs}; give another --out")
    keep_one_tag(data / "tags.csv")
    (data / "splits").mkdir(exist_ok=True)
    (data / "splits/fewer.txt").write_text("".join(f"{name}\n" for name in names[: arguments.fewer]))

    def begin(name: str, place: str, split: str = "all") -> Attempt:
        words = ["pseudo-masks", str(out / "experiment.yaml"), "--data", str(data), "--split", split]
        words += ["--classes", "all", "--pictures", "0", "--device", "cpu"]
        words += ["--out", str(out / place / "masks"), "--cache", str(out / place / "store")]
        return Attempt(name, words, out / f"{name}.log")

    results = out / "results.json"
    found: dict[str, Any] = json.loads(results.read_text()) if results.is_file() else {}
    half = arguments.photographs // 2
    for name, place, split in (
        ("fewer", "fewer", "fewer"), ("whole", "whole", "all"), ("killed", "resumed", "all"),
        ("resumed", "resumed", "all"),
    ):
        if name in found:
            continue
        if name != "resumed":
            shutil.rmtree(out / place, ignore_errors=True)
        attempt = begin(name, place, split)
        if name == "killed":
            attempt.kill_when(out / place / "store", half)
        found[name] = {**attempt.figures(), "files": count(out / place / "store")}
        print(name, found[name], flush=True)
        results.write_text(json.dumps(found, indent=1) + "\n")

    for kind, pattern in (("store", "store/*/*"), ("masks", "masks/masks/**/*.png")):
        both = [digest(out / place, pattern) for place in ("whole", "resumed")]
        print(kind, both[0], "the same" if both[0] == both[1] else f"against {both[1]}", flush=True)
        found[kind] = {**both[0], "same": both[0] == both[1]}
    found["temporary_files"] = sum(1 for _ in (out / "resumed").rglob(".*.tmp"))
    growth = {name: found[name]["peak_mib"] / found["fewer"]["peak_mib"] - 1 for name in ("whole", "resumed")}
    found |= {"photographs": arguments.photographs, "fewer_photographs": arguments.fewer, "side": arguments.side}
    found |= {"growth": growth, "threads": os.environ.get("OMP_NUM_THREADS"), "python": platform.python_version()}
    results.write_text(json.dumps(found, indent=1) + "\n")
    print(markdown(found))
    for name, share in growth.items():
        print(f"peak memory of {name} is {100 * share:+.1f} % of that of {arguments.fewer} photographs")
    complete = found["store"]["files"] > arguments.photographs  # and the store's identity
    flat = all(share <= arguments.tolerance for share in growth.values())
    if not (complete and flat and found["store"]["same"] and found["masks"]["same"]):
        raise SystemExit("failed: " + ("memory grows" if not flat else "the stores differ"))


if __name__ == "__main__":
    main()
