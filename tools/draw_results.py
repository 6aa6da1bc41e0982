"""Draw the figures of finished runs as bars: IoU by class, and the means over old, new and all classes.

    python tools/draw_results.py docs/results/voc-mini.json docs/results/voc-mini.png

The JSON file maps a run's label to what its ``evaluation.json`` holds; see ``docs/results/voc-mini.md``.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt

MEANS = ("old", "new", "all")


def draw(runs: dict[str, dict[str, Any]], path: Path) -> None:
    """One group of bars a mean and a class, one bar a run; a run without a figure has no bar there."""
    classes = list(dict.fromkeys(name for run in runs.values() for name in run["iou"]))
    groups = [*(f"mIoU {mean}" for mean in MEANS), *classes]
    figure, axes = plt.subplots(figsize=(12, 4), layout="constrained")
    width = 0.8 / len(runs)
    for number, (label, run) in enumerate(runs.items()):
        values = [run["miou"][mean] for mean in MEANS] + [run["iou"].get(name) for name in classes]
        places = [group + (number - (len(runs) - 1) / 2) * width for group in range(len(groups))]
        axes.bar(places, [value or 0.0 for value in values], width, label=label.replace("`", ""))
    axes.set_xticks(range(len(groups)), groups, rotation=45, ha="right")
    axes.axvline(len(MEANS) - 0.5, color="grey", linewidth=0.8)
    axes.set_ylabel("IoU, per cent")
    axes.set_xlim(-0.6, len(groups) - 0.4)
    figure.legend(frameon=False, ncols=min(3, len(runs)), loc="outside upper center")
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=100)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("figures", type=Path)
    parser.add_argument("picture", type=Path)
    arguments = parser.parse_args()
    draw(json.loads(arguments.figures.read_text(encoding="utf-8")), arguments.picture)


if __name__ == "__main__":
    main()
