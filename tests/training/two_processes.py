"""Trains a run in two processes; started by test_processes.py: ``two_processes.py CONFIG DATA OUT``.

The first process writes every step's confusion matrix to ``OUT/confusion.json``.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import torch

from fmwiss.config import load_config
from fmwiss.training.run import train

if __name__ == "__main__":
    torch.set_num_threads(1)
    out = Path(sys.argv[3])
    results = train(load_config(sys.argv[1]), Path(sys.argv[2]), None, out, devices=2)
    if os.environ.get("LOCAL_RANK", "0") == "0":
        text = json.dumps({step: result.confusion for step, result in results.items()})
        (out / "confusion.json").write_text(text)
