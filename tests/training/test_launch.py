"""How processes are started: what launchers say, and what does not fit."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from lightning_fabric.strategies import ddp as rank_zero

from fmwiss.config import TrainingConfig
from fmwiss.endings import how_it_ended, whose
from fmwiss.errors import UserError
from fmwiss.processes import Processes
from fmwiss.training import launch
from fmwiss.training.launch import build_fabric, check_hardware, one_job

SLURM = {
    "SLURM_JOB_ID": "4711", "SLURM_JOB_NAME": "fmwiss", "SLURM_NTASKS": "4", "SLURM_NTASKS_PER_NODE": "2",
    "SLURM_NNODES": "2", "SLURM_NODEID": "1", "SLURM_LOCALID": "1", "SLURM_PROCID": "3", "SLURM_NODELIST": "a[1-2]",
}  # fmt: skip
TORCHRUN = {
    "TORCHELASTIC_RUN_ID": "x", "WORLD_SIZE": "6", "LOCAL_WORLD_SIZE": "3", "RANK": "4", "LOCAL_RANK": "1",
    "GROUP_RANK": "1", "MASTER_ADDR": "a1", "MASTER_PORT": "29500",
}  # fmt: skip


@pytest.fixture(autouse=True)
def _no_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    """And what Fabric itself puts into the environment, such as SLURM's first node, is gone after the test."""
    for name in (*SLURM, *TORCHRUN, "NODE_RANK"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    for known in (rank_zero.rank_zero_only, rank_zero.utils_rank_zero_only):
        monkeypatch.setattr(known, "rank", 0)


def started_by(monkeypatch: pytest.MonkeyPatch, variables: dict[str, str]) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)


def test_one_process_needs_no_launcher() -> None:
    fabric = build_fabric(1, "32-true")
    assert (fabric.world_size, type(fabric.strategy).__name__) == (1, "SingleDeviceStrategy")


def test_processes_and_nodes_are_those_that_slurm_has_started(monkeypatch: pytest.MonkeyPatch) -> None:
    started_by(monkeypatch, SLURM)
    fabric = build_fabric("auto", "bf16-mixed")
    environment = fabric.strategy.cluster_environment
    assert (fabric.world_size, fabric.global_rank, fabric.local_rank, fabric.node_rank) == (4, 3, 1, 1)
    assert environment.creates_processes_externally and environment.main_address == "a1"
    assert fabric.strategy.precision.precision == "bf16-mixed"
    with pytest.raises(UserError, match=r"^--devices 3: .*--ntasks-per-node=2"):
        build_fabric(3, "32-true")
    with pytest.raises(UserError, match=r"^--devices 2 --num-nodes 3: .*--nodes=2"):
        build_fabric("auto", "32-true", 3)
    monkeypatch.delenv("SLURM_NTASKS_PER_NODE")
    with pytest.raises(UserError, match=r"--ntasks=4"):
        build_fabric(2, "32-true")


def test_processes_and_nodes_are_those_that_torchrun_has_started(monkeypatch: pytest.MonkeyPatch) -> None:
    started_by(monkeypatch, TORCHRUN)
    fabric = build_fabric("auto", "32-true")
    assert (fabric.world_size, fabric.global_rank, fabric.local_rank) == (6, 4, 1)
    with pytest.raises(UserError, match=r"^--devices 2: .*2"):
        build_fabric(2, "32-true")


def test_nodes_have_to_find_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MASTER_ADDR", "a1")
    with pytest.raises(UserError, match=r"--num-nodes 2: several nodes .* set MASTER_PORT and NODE_RANK on every node"):
        build_fabric(1, "32-true", 2)
    monkeypatch.setenv("MASTER_PORT", "29500")
    monkeypatch.setenv("NODE_RANK", "1")
    fabric = build_fabric(2, "32-true", 2)
    assert (fabric.world_size, fabric.global_rank) == (4, 2)


def test_what_a_cpu_cannot_do_is_told() -> None:
    with pytest.raises(UserError, match=r"^--precision 16-mixed: .* needs a GPU, .* use bf16-mixed or 32-true$"):
        build_fabric(1, "16-mixed")
    fabric = build_fabric(1, "32-true")
    for value in ("auto", False):
        check_hardware(fabric, TrainingConfig(sync_batch_norm=value))
    with pytest.raises(UserError, match=r"^training.sync_batch_norm: .* CUDA alone, and this run computes on a CPU"):
        check_hardware(fabric, TrainingConfig(sync_batch_norm=True))
    with pytest.raises(UserError, match=r"training.compile and training.activation_checkpointing exclude each other"):
        check_hardware(fabric, TrainingConfig(compile=True, activation_checkpointing=True))


def test_alone_there_is_nothing_to_share() -> None:
    processes, values = Processes.of_this_job(), torch.ones(2, requires_grad=True)
    assert processes == Processes(0, 1) and processes.is_first
    assert processes.share("abc") == ["a", "b", "c"] and processes.gather("a") == ["a"]
    assert processes.collect(iter("abc")) == ["a", "b", "c"]
    assert processes.add_up(values) is values and processes.stack(values).shape == (1, 2)
    with processes.first_goes_first():
        processes.barrier()


def test_shares_come_back_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    items = list(range(8))
    shares = [Processes(rank, 3).share(items) for rank in range(3)]
    assert sorted(item for share in shares for item in share) == items
    monkeypatch.setattr(Processes, "gather", lambda *_: shares)
    assert Processes(1, 3).collect(shares[1]) == items


def test_endings_in_words(monkeypatch: pytest.MonkeyPatch) -> None:
    assert how_it_ended(-9) == "was killed by SIGKILL" and how_it_ended(3) == "ended with exit code 3"
    assert how_it_ended(-99) == "was killed by signal 99"
    assert whose("no such file") == "no such file"
    monkeypatch.setenv("LOCAL_RANK", "0")
    monkeypatch.setenv("RANK", "4")
    assert whose("no such file") == "process 4 of the run: no such file"


class Several:
    """As much of a Fabric of two processes as an error needs."""

    world_size = 2

    class strategy:
        launcher = None


@pytest.mark.parametrize("error", [
    RuntimeError("[../third_party/gloo/gloo/transport/tcp/pair.cc:547] Connection closed by peer [127.0.0.1]:1234"),
    torch.distributed.DistBackendError("NCCL error"),
])  # fmt: skip
def test_a_lost_connection_is_told_in_a_sentence(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "GRACE", 0.0)
    with pytest.raises(UserError, match="connection to another process of the run broke off"), one_job(Several()):  # type: ignore[arg-type]
        raise error


def test_a_bug_stays_a_bug(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "GRACE", 0.0)
    with pytest.raises(RuntimeError, match="shapes differ"), one_job(Several()):  # type: ignore[arg-type]
        raise RuntimeError("shapes differ")


@pytest.mark.parametrize(("code", "expected", "words"), [
    (2, 2, ""),  # it has told itself why
    (3, 1, "fmwiss: process 2 of the run ended with exit code 3, so the others were ended; the same command goes on "
           "where it was.\n"),
])  # fmt: skip
def test_the_first_process_ends_with_another_that_fails(
    code: int, expected: int, words: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """And so does a third one, which would go on."""
    programs = ("import time; time.sleep(600)", f"import sys; sys.exit({code})")
    others = [subprocess.Popen([sys.executable, "-c", program]) for program in programs]

    def leave(status: int) -> None:
        raise SystemExit(status)

    monkeypatch.setattr("os._exit", leave)
    with pytest.raises(SystemExit) as ended:
        launch._Watch(others).run()  # type: ignore[arg-type]
    assert ended.value.code == expected and capsys.readouterr().err == words
    assert others[0].returncode == -9


def test_processes_that_are_done_are_no_loss() -> None:
    others = [subprocess.Popen([sys.executable, "-c", ""])]
    launch._Watch(others).run()  # type: ignore[arg-type]
    assert others[0].returncode == 0
