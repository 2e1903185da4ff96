"""The pool: results in order, faults contained and blamed, nothing left behind."""

import copy
import errno
import os
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from frontier_tune.contracts import BadInput, Blame, Failure, Task
from frontier_tune.sandbox import EnvironmentPool, WorkerStartError
from frontier_tune.sandbox.pool import Result
from frontier_tune.sandbox.process import WorkerProcess

ROOT = Path(__file__).parent / "workspace"
PATIENCE = 60.0


def gather(pool: EnvironmentPool, n: int) -> dict[int, Result]:
    found: dict[int, Result] = {}
    end = time.monotonic() + PATIENCE
    while len(found) < n and time.monotonic() < end:
        for slot, result in pool.poll(1.0):
            assert slot not in found
            found[slot] = result
    assert len(found) == n
    return found


def until(condition: Callable[[], bool]) -> bool:
    end = time.monotonic() + PATIENCE
    while not condition() and time.monotonic() < end:
        time.sleep(0.02)
    return condition()


def gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


@pytest.fixture
def trouble(tmp_path: Path) -> Iterator[EnvironmentPool]:
    with EnvironmentPool("envs/trouble", ROOT, step_timeout_s=PATIENCE, log=tmp_path / "log") as pool:
        yield pool


@pytest.fixture
def hasty(tmp_path: Path) -> Iterator[EnvironmentPool]:
    with EnvironmentPool("envs/trouble", ROOT, step_timeout_s=2.0, log=tmp_path / "log") as pool:
        yield pool


def begin(pool: EnvironmentPool, *slots: int) -> None:
    for slot in slots:
        pool.submit(slot, "reset", {})
    assert all(isinstance(r, dict) for r in gather(pool, len(slots)).values())


def test_many_episodes_over_two_workers() -> None:
    with EnvironmentPool("envs/count_up", ROOT, {"start": 1}, workers=2, step_timeout_s=300.0) as pool:
        assert pool.description["name"] == "count_up" and len(pool.description["schemas"]) == 2
        tasks = pool.tasks("train", 50, 1)
        for slot, task in enumerate(tasks):
            pool.submit(slot, "reset", {"task": task.to_json()})
            for call in pool.golden(task) if slot < 3 else [f"add {task.data['target'] - 1}", "submit"]:
                pool.submit(slot, "step", {"action": call})
        results: dict[int, list[Result]] = {slot: [] for slot in range(50)}
        while sum(map(len, results.values())) < 150:
            for slot, result in pool.poll(5.0):
                assert not isinstance(result, Failure), result  # it stands for all that the slot still had to answer
                results[slot].append(result)
        for slot, (opening, _, end) in results.items():
            assert isinstance(opening, dict) and isinstance(end, dict)
            assert opening["messages"] == [{"role": "user", "content": f"reach {tasks[slot].data['target']}"}]
            assert end["terminated"] and end["info"]["success"] and end["reward"] == 1.0
        pids = pool.pids
    assert all(gone(pid) for pid in pids)


def test_an_operation_that_is_waited_for_takes_no_other_s_result(monkeypatch: pytest.MonkeyPatch) -> None:
    """What arrives together with the answer, behind it, belongs to somebody else."""
    with EnvironmentPool("envs/count_up", ROOT, {"start": 1}, step_timeout_s=PATIENCE) as pool:
        stock, held = pool.poll, list[tuple[int, Result]]()

        def together(timeout: float = 0.0) -> list[tuple[int, Result]]:
            held.extend(stock(timeout))
            return [held.pop() for _ in range(2)] if len(held) == 2 else []  # the other slot's comes last

        (task,) = pool.tasks("train", 1, 0)
        other = pool.new_slot()
        pool.submit(other, "reset", {"task": task.to_json()})
        monkeypatch.setattr(pool, "poll", together)
        assert pool.golden(task)
        monkeypatch.undo()
        assert [slot for slot, _ in pool.poll(PATIENCE)] == [other]


def test_truncate_grades_and_close_silences() -> None:
    with EnvironmentPool("envs/count_up", ROOT) as pool:
        task = Task("count", "train", {"target": 3}).to_json()
        for slot in (1, 2):
            pool.submit(slot, "reset", {"task": task, "max_turns": 2})
            pool.submit(slot, "step", {"action": "add 2"})
        pool.submit(2, "close")
        pool.submit(1, "truncate")
        results = []
        while len(results) < 3:
            results += pool.poll(5.0)
        assert [slot for slot, _ in results] == [1, 1, 1]
        assert isinstance(results[-1][1], dict) and results[-1][1]["reward"] == 0.25
        assert pool.poll(0.05) == []
        pool.submit(3, "reset", {"task": task})
        assert pool.golden(Task(**task))  # the reset's result has come before, and is kept
        pool.submit(3, "close")
        assert pool.poll(0.05) == []
        with pytest.raises(ValueError, match="before 'reset'"):
            pool.submit(2, "step", {"action": "submit"})


def test_what_the_environment_prints_and_reads_stays_out_of_the_protocol(trouble: EnvironmentPool, tmp_path: Path) -> None:
    begin(trouble, 1)
    trouble.submit(1, "step", {"action": "echo hello"})
    result = gather(trouble, 1)[1]
    assert isinstance(result, dict) and result["messages"] == [{"role": "tool", "content": "hello"}]
    log = (tmp_path / "log").read_text()
    assert all(text in log for text in ("printed while importing", "printed at begin", "hello", "from a child"))


def test_a_hung_step_is_named_and_only_its_worker_is_replaced(hasty: EnvironmentPool) -> None:
    begin(hasty, 1, 2, 3)
    pid = hasty.pids[0]
    hasty.submit(1, "step", {"action": "hang"})
    hasty.submit(2, "step", {"action": "echo later"})
    results = gather(hasty, 2)
    assert isinstance(results[1], Failure) and isinstance(results[2], Failure)
    assert (results[1].kind, results[1].blame) == ("step-timeout", Blame.ENVIRONMENT) and "'hang'" in results[1].detail
    assert (results[2].kind, results[2].blame) == ("worker-killed", Blame.INFRASTRUCTURE)
    assert gone(pid) and hasty.restarts == 1
    hasty.submit(3, "step", {"action": "echo lost"})  # it had nothing under way: it learns at its next step
    lost = gather(hasty, 1)[3]
    assert isinstance(lost, Failure) and lost.kind == "worker-killed"
    begin(hasty, 1)


def test_grandchildren_die_with_their_worker(hasty: EnvironmentPool, tmp_path: Path) -> None:
    begin(hasty, 1)
    hasty.submit(1, "step", {"action": f"spawn {tmp_path / 'pids'}"})
    failure = gather(hasty, 1)[1]
    assert isinstance(failure, Failure) and failure.kind == "step-timeout"
    pids = [int(p) for p in (tmp_path / "pids").read_text().split()]
    assert len(pids) == 2 and until(lambda: all(gone(p) for p in pids))


@pytest.mark.parametrize(("code", "blame"), [(3, Blame.ENVIRONMENT), (-9, Blame.INFRASTRUCTURE)])
def test_a_dead_worker_is_replaced(trouble: EnvironmentPool, code: int, blame: Blame) -> None:
    begin(trouble, 1)
    trouble.submit(1, "step", {"action": "die 3" if code == 3 else "hang"})
    if code < 0:
        assert trouble.poll(0.05) == []
        os.kill(trouble.pids[0], signal.SIGKILL)
    failure = gather(trouble, 1)[1]
    assert isinstance(failure, Failure) and (failure.kind, failure.blame) == ("worker-died", blame)
    assert f"status {code}" in failure.detail
    begin(trouble, 1)


def test_a_worker_killed_while_it_starts_loses_nothing(trouble: EnvironmentPool) -> None:
    begin(trouble, 1)
    trouble.submit(1, "step", {"action": "die 3"})
    gather(trouble, 1)
    trouble.submit(2, "reset", {})  # for the next one, which is not up yet
    os.kill(trouble.pids[0], signal.SIGKILL)
    assert isinstance(gather(trouble, 1)[2], dict) and trouble.restarts == 2
    trouble.submit(2, "step", {"action": "echo still here"})
    assert isinstance(gather(trouble, 1)[2], dict)


def test_what_needs_no_reset_survives_its_worker(trouble: EnvironmentPool) -> None:
    begin(trouble, 1)
    trouble.submit(1, "step", {"action": "hang"})
    trouble.submit(2, "tasks", {"split": "train", "n": 1, "seed": 0})
    assert trouble.poll(0.05) == []
    os.kill(trouble.pids[0], signal.SIGKILL)
    found = gather(trouble, 2)
    assert isinstance(found[1], Failure) and isinstance(found[2], dict) and len(found[2]["tasks"]) == 1


def test_workers_that_are_killed_again_and_again_are_given_up(trouble: EnvironmentPool) -> None:
    begin(trouble, 1)
    trouble.submit(1, "step", {"action": "die 3"})
    gather(trouble, 1)
    trouble.submit(2, "reset", {})
    with pytest.raises(WorkerStartError, match=r"did not start: .*status -9") as raised:
        for _ in range(100):
            os.kill(trouble.pids[0], signal.SIGKILL)
            trouble.poll(0.01)
    assert copy.copy(raised.value).blame is Blame.INFRASTRUCTURE  # also for those in another process


def test_who_killed_a_process_is_known_also_where_it_ends_slowly() -> None:
    """Its pipes are closed long before its end: on a busy machine that is no reason to blame the environment."""
    slowly = "import os, time; os.close(1); time.sleep(1); os.kill(os.getpid(), 9)"
    worker = WorkerProcess.__new__(WorkerProcess)
    worker.process = subprocess.Popen([sys.executable, "-S", "-c", slowly], stdout=subprocess.PIPE)
    assert worker.process.stdout
    worker.answers, worker._unread, worker._ended = worker.process.stdout.fileno(), b"", False
    os.set_blocking(worker.answers, False)
    select.select([worker.answers], [], [], PATIENCE)
    assert worker.read() == ([], True) and worker.exit_status() == -signal.SIGKILL
    worker.process.stdout.close()


def test_a_machine_out_of_processes_is_to_blame_itself(trouble: EnvironmentPool, monkeypatch: pytest.MonkeyPatch) -> None:
    begin(trouble, 1)

    def refused(*_: object, **__: object) -> None:
        raise BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")

    monkeypatch.setattr(subprocess, "Popen", refused)
    os.kill(trouble.pids[0], signal.SIGKILL)
    with pytest.raises(WorkerStartError, match="no process can be started now: .*Resource temporarily unavailable") as raised:
        trouble.submit(1, "step", {"action": "echo there?"})
        gather(trouble, 1)
    assert raised.value.blame is Blame.INFRASTRUCTURE
    trouble.close()


def test_rubbish_on_the_pipe_ends_the_worker_not_the_pool(trouble: EnvironmentPool) -> None:
    begin(trouble, 1)
    trouble.submit(1, "step", {"action": "garble"})
    failure = gather(trouble, 1)[1]
    assert isinstance(failure, Failure) and failure.kind == "worker-died"
    begin(trouble, 1)


def test_large_messages_both_ways_do_not_deadlock(trouble: EnvironmentPool) -> None:
    begin(trouble, 1, 2, 3)
    for slot in (1, 2, 3):
        trouble.submit(slot, "step", {"action": "echo " + "y" * 400_000})
        trouble.submit(slot, "step", {"action": "large 400000"})
    results = []
    while len(results) < 6:
        results += trouble.poll(5.0)
    assert {len(r["messages"][0]["content"]) for _, r in results if isinstance(r, dict)} == {400_000}


def test_options_longer_than_a_pipe_reach_the_worker() -> None:
    with pytest.raises(BadInput, match="note"):  # it refuses them, so it has read them
        EnvironmentPool("envs/trouble", ROOT, options={"note": "x" * 300_000}).close()


def test_faults_of_generator_and_import_are_bad_input(trouble: EnvironmentPool) -> None:
    with pytest.raises(BadInput, match="are the same"):
        trouble.tasks("train", 2, 0)
    with pytest.raises(BadInput, match="has no golden program"):
        trouble.golden(Task("t", "train", {}))
    with pytest.raises(BadInput, match="'add' is own, not real"):
        EnvironmentPool("envs/count_up", ROOT, allow_real_writes=["add"])
    with pytest.raises(BadInput, match="did you mean 'envs/trouble'"):
        EnvironmentPool("envs/truble", ROOT)
    with pytest.raises(BadInput, match="options here: start"):
        EnvironmentPool("envs/count_up", ROOT, {"sart": 1})


def test_workers_end_when_their_parent_is_killed(tmp_path: Path) -> None:
    code = f"""
import time
from frontier_tune.sandbox import EnvironmentPool, WorkerStartError
pool = EnvironmentPool("envs/trouble", {str(ROOT)!r}, step_timeout_s=600, log={str(tmp_path / "log")!r})
pool.submit(1, "reset", {{}})
pool.submit(1, "step", {{"action": "hang"}})
pool.poll(1.0)
print(pool.pids[0], flush=True)
time.sleep(600)
"""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout
        worker = int(parent.stdout.readline())
        parent.kill()
    assert until(lambda: gone(worker))


def test_the_pool_and_its_worker_import_nothing_heavy() -> None:
    heavy = ("torch", "ray", "vllm", "transformers")
    code = f"import sys, frontier_tune.sandbox; print([m for m in (*{heavy}, 'gymnasium', 'numpy') if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"
    code = f"import sys, frontier_tune.sandbox.worker, frontier_tune.sdk; print([m for m in {heavy} if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


def test_a_worker_of_other_code_takes_no_other_s_place(tmp_path: Path) -> None:
    """Half of a run would be graded by another rubric, and nothing show it."""
    shutil.copytree(ROOT, tmp_path / "workspace", ignore=shutil.ignore_patterns("__pycache__"))
    with EnvironmentPool("envs/trouble", tmp_path / "workspace", step_timeout_s=PATIENCE, log=tmp_path / "log") as pool:
        (tmp_path / "workspace" / "rewards").mkdir(exist_ok=True)
        (tmp_path / "workspace" / "rewards" / "of_another_workflow.py").write_text("")
        os.kill(pool.pids[0], signal.SIGKILL)
        pool.tasks("train", 1, 0)  # by another one, of the same code
        (file,) = (tmp_path / "workspace" / "envs" / "trouble").glob("*.py")
        file.write_text(file.read_text() + "\n")
        os.kill(pool.pids[0], signal.SIGKILL)
        with pytest.raises(BadInput, match=f"envs/trouble: {file} was changed while episodes are played"):
            pool.tasks("train", 1, 0)
