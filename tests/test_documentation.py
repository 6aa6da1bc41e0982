"""What the documentation shows works, and what it links to is there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from fmwiss.data.batches import Batch
from fmwiss.models import Architecture, Segmenter

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])


def test_the_example_of_a_method_learns() -> None:
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8"), re.DOTALL)
    namespace: dict[str, object] = {}
    exec(compile(code.replace("from __future__ import annotations\n", ""), "CONTRIBUTING.md", "exec"), namespace)
    fine_tuning = namespace["FineTuning"]
    assert isinstance(fine_tuning, type)
    torch.manual_seed(0)
    student = Segmenter(Architecture("test_efficientnet", 16, 8, (1, 1, 1), 0.0, (("cat",), ("dog", "cow")), None))
    method = fine_tuning(student)
    method.start_epoch(0)
    batch = Batch(
        ids=("a", "b"),
        image=torch.rand(2, 3, 32, 32),
        valid=torch.ones(2, 32, 32, dtype=torch.bool),
        pseudo=torch.rand(2, 2, 32, 32) > 0.5,
        tags=torch.ones(2, 2, dtype=torch.bool),
    )
    optimizer = torch.optim.SGD(method.parameter_groups(0.01, 10.0))
    before = method.training_step(batch, torch.Generator())["new_bce"]
    before.backward()
    optimizer.step()
    assert method.training_step(batch, torch.Generator())["new_bce"] < before


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text(encoding="utf-8")):
        if not target.startswith("http"):
            assert (page.parent / target).exists(), target


def test_commands_of_the_readme_are_ones_that_exist() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    for config in re.findall(r"configs/\S+\.yaml", text):
        assert (ROOT / config).is_file(), config
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in re.findall(r"make (\w+)", text):
        assert f"\n{target}:" in makefile, target
