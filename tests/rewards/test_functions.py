"""Own reward functions: both conventions, weights by hand, and what user code can do wrong, with real killed workers."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import TypeAdapter

from luspo_cli.advantages import group_mean_std
from luspo_cli.config.reward import TAKEN_NAMES, RewardConfig
from luspo_cli.errors import RunError, UsageError
from luspo_cli.grading.verdict import DecidedBy, Reason
from luspo_cli.metrics.names import METRICS, metric_of, unknown_metrics
from luspo_cli.metrics.rollout_metrics import function_metrics
from luspo_cli.records import Message, Problem, Reward, Rollout, StopReason
from luspo_cli.rewards.functions import FailedCalls, RewardFunctions, describe
from luspo_cli.rewards.rubric import Rubric

Score = Callable[..., list[Reward]]


def problem(answer: str = "5", number: int = 0, **extra: Any) -> Problem:
    turns = (Message("system", "Be brief."), Message("user", "2+3?"))
    return Problem(f"p/{number}", turns, answer, "sums", extra=extra)


def group(*responses: str, number: int = 0) -> list[Rollout]:
    return [Rollout(f"p/{number}", (1,), tuple(range(len(text))), text, StopReason.END) for text in responses]


def config(function: Any, **keys: Any) -> RewardConfig:
    given = {"function": function, "workers": 2, "verifier": "exact", **keys}
    return TypeAdapter(RewardConfig).validate_python(given)


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """Return a function that writes own.py in the current folder, which is empty."""
    monkeypatch.chdir(tmp_path)

    def file(content: str) -> Path:
        path = tmp_path / "own.py"
        path.write_text(content)
        return path

    return file


def score(function: Any, groups: list[list[Rollout]], problems: list[Problem] | None = None, **keys: Any) -> list[Any]:
    with Rubric(config(function, **keys), 100) as rubric:
        own = problems or [problem(number=number) for number in range(len(groups))]
        return [list(rewards) for rewards in rubric.score_groups(own, groups)]


def test_both_conventions_and_weights_by_hand(write: Callable[[str], Path]) -> None:
    write(
        "def one(data_source, solution_str, ground_truth, extra_info=None):\n"
        "    assert data_source == 'sums' and extra_info['level'] == 3 and extra_info['response_length'] == len(solution_str)\n"
        "    return {'score': float(solution_str == ground_truth), 'length': len(solution_str), 'pred': solution_str}\n"
        "async def all_of_them(prompts, completions, level, ground_truth, **kwargs):\n"
        "    assert prompts == ['Be brief.\\n\\n2+3?'] * 3 and level == [3] * 3 and ground_truth == ['5'] * 3\n"
        "    return [None if text == 'abc' else 10.0 * len(text) for text in completions]\n"
    )
    functions = ["own.py:one", {"function": "own.py:all_of_them", "weight": -0.5, "name": "long"}]
    (rewards,) = score(functions, [group("5", "ab", "abc")], [problem(level=3)])
    assert [reward.total for reward in rewards] == [1 - 0.5 * 10, -0.5 * 20, 0.0]  # accuracy is not paid beside them
    assert [reward.functions["one"].score for reward in rewards] == [1.0, 0.0, 0.0]
    assert [reward.functions["one"].parts for reward in rewards] == [{"length": 1.0}, {"length": 2.0}, {"length": 3.0}]
    assert rewards[1].functions["one"].texts == {"pred": "ab"}
    assert [reward.functions["long"].score for reward in rewards] == [10.0, 20.0, None]
    assert function_metrics([reward.functions for reward in rewards]) == {
        "reward/one/mean": pytest.approx(1 / 3),
        "reward/one/length/mean": 2.0,
        "reward/one/failed": 0,
        "reward/long/mean": 15.0,
        "reward/long/failed": 0,
    }


def test_accuracy_is_paid_beside_functions_where_it_is_asked_for(write: Callable[[str], Path]) -> None:
    write("def one(solution_str, **kwargs):\n    return 0.25\n")
    (alone,) = score("own.py:one", [group("x#5")])
    (both,) = score("own.py:one", [group("x#5")], accuracy_weight=2.0)
    assert [alone[0].total, both[0].total] == [0.25, 2.25]
    assert alone[0].accuracy == both[0].accuracy == 1.0
    assert RewardConfig().accuracy_weight == 1.0
    assert config("own.py:one").accuracy_weight == 0.0
    read = TypeAdapter(RewardConfig)
    for own in (config("own.py:one", accuracy_weight=0.5), config(["own.py:one", {"function": "own.py:two"}])):
        assert read.validate_json(read.dump_json(own)) == own


def test_messages_as_trl_gives_them_for_chats(write: Callable[[str], Path]) -> None:
    write(
        "def one(prompts, completions, completion_ids, **kwargs):\n"
        "    assert prompts[0][1] == {'role': 'user', 'content': '2+3?'} and completion_ids[0] == [0, 1]\n"
        "    return [len(turns[0]['content']) for turns in completions]\n"
    )
    (rewards,) = score({"function": "own.py:one", "completions": "messages"}, [group("ab", "abc")])
    assert [reward.total for reward in rewards] == [2.0, 3.0]


BAD_RESPONSES = {
    "hang": ("import time; time.sleep(60)", "took longer than reward.function_seconds = 1"),
    "spin": ("while True: pass", "took longer than reward.function_seconds = 1"),
    "exit": ("import os; os._exit(7)", "ended its process (worker ended with status 7)"),
    "segfault": ("import ctypes; ctypes.string_at(0)", "ended its process (worker ended with status -11)"),
    "raise": ("return 1 / 0", "ZeroDivisionError: division by zero (own.py, line 4)"),
    "quit": ("raise SystemExit(3)", "SystemExit: 3 (own.py, line 4)"),
    "nan": ("return float('nan')", "returned nan"),
    "inf": ("return {'score': float('inf')}", "returned inf as its 'score'"),
    "huge": ("return -1e308", "returned -1e+308: a score is at most 1e+15 in size"),
    "huge in a dict": ("return {'score': 2e16}", "returned 2e+16 as its 'score': a score is at most 1e+15 in size"),
    "huge whole number": ("return 10**5000", "returned int '(ValueError as text)'"),
    "text": ("return '1.0'", "returned str '1.0'"),
    "none": ("return None", "returned NoneType 'None'"),
    "no score": ("return {'reward': 1}", "returned a dict without 'score': reward"),
    "list": ("return [1.0]", "returned list '[1.0]'"),
}


@pytest.mark.parametrize("kind", BAD_RESPONSES)
def test_a_bad_call_costs_its_response(write: Callable[[str], Path], kind: str) -> None:
    body, error = BAD_RESPONSES[kind]
    write(f"def one(solution_str, **kwargs):\n    if solution_str != 'bad':\n        return 1.0\n    {body}\n")
    rewards, others = score(
        "own.py:one", [group("a", "bad", "c"), group("d", number=1)], function_seconds=1.0, function_failed_score=-2.0
    )
    assert [reward.total for reward in (*rewards, *others)] == [1.0, -2.0, 1.0, 1.0]
    assert [reward.functions["one"].error for reward in rewards] == ["", error, ""]
    assert function_metrics([reward.functions for reward in rewards]) == {
        "reward/one/mean": 0.0,
        "reward/one/failed": 1,
    }


@pytest.mark.parametrize(
    ("body", "error"),
    [
        ("import time; time.sleep(60)", "took longer than reward.function_seconds = 1"),
        ("import os; os._exit(7)", "ended its process (worker ended with status 7)"),
        ("return [1.0]", "returned a list of 1 and not a list of 2 numbers"),
        ("return 1.0", "returned 1.0 and not a list of 2 numbers"),
    ],
)
def test_a_bad_call_for_a_group_costs_the_group(write: Callable[[str], Path], body: str, error: str) -> None:
    write(f"def one(completions, **kwargs):\n    if 'bad' not in completions:\n        return [1.0, 2.0]\n    {body}\n")
    groups = [group("a", "b"), group("bad", "c", number=1), group("d", "e", number=2)]
    scored = score("own.py:one", groups, function_seconds=1.0)
    assert [[reward.total for reward in rewards] for rewards in scored] == [[1.0, 2.0], [0.0, 0.0], [1.0, 2.0]]
    assert [reward.functions["one"].error for reward in scored[1]] == [error] * 2


def test_one_bad_number_of_a_group_costs_one_response(write: Callable[[str], Path]) -> None:
    write("import numpy as np\ndef one(completions, **kwargs):\n    return np.array([1.5, float('nan'), 2.0])\n")
    (rewards,) = score("own.py:one", [group("a", "b", "c")])
    assert [reward.total for reward in rewards] == [1.5, 0.0, 2.0]
    assert [bool(reward.functions["one"].error) for reward in rewards] == [False, True, False]


def test_a_huge_number_costs_one_response_and_the_largest_ones_have_advantages(write: Callable[[str], Path]) -> None:
    """Scores and weights at their bound: four rewards of +-1e30 are +-sqrt(3)/2 standard deviations from their mean."""
    write(
        "import numpy as np\ndef one(completions, **kwargs):\n"
        "    return [np.float64(1e200), -1e16, 2 * 10**15, {'score': 1e300, 'x': 1}, 1e15, -1e15, 1e15, -1e15]\n"
        "def parts(solution_str, **kwargs):\n    return {'score': 0.0, 'id': 2e18, 'far': 1e308, 'acc': 10**5000}\n"
    )
    functions = [{"function": "own.py:one", "weight": 1e15}, "own.py:parts"]
    (rewards,) = score(functions, [group(*"abcdefgh")])
    assert [bool(reward.functions["one"].error) for reward in rewards] == [True] * 4 + [False] * 4
    assert [reward.total for reward in rewards] == [0.0] * 4 + [1e30, -1e30, 1e30, -1e30]
    advantages = group_mean_std([reward.total for reward in rewards[4:]])
    assert advantages == pytest.approx([0.75**0.5, -(0.75**0.5)] * 2)
    assert rewards[0].functions["parts"].parts == {"id": 2e18}
    assert rewards[0].functions["parts"].texts == {"far": "1e+308", "acc": "(ValueError as text)"}
    assert function_metrics([reward.functions for reward in rewards])["reward/one/failed"] == 4


@pytest.mark.parametrize(
    ("function", "keys", "said"),
    [
        (
            {"function": "own.py:one", "weight": -1e16},
            {},
            r"reward\.function: the weight -1e\+16 must lie between -1e\+15",
        ),
        ("own.py:one", {"accuracy_weight": 1e300}, r"reward\.accuracy_weight = 1e\+300 must lie"),
        ("own.py:one", {"function_failed_score": -1e300}, r"reward\.function_failed_score = -1e\+300 must lie"),
        (
            (),
            {"cosine_length_weight": 1.0, "cosine_length_wrong": (-1e16, 0.0)},
            r"reward\.cosine_length_wrong = -1e\+16",
        ),
    ],
)
def test_pays_that_no_total_could_hold_are_refused(function: Any, keys: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        config(function, **keys)


def test_a_function_may_say_what_is_right(write: Callable[[str], Path]) -> None:
    write(
        "def one(solution_str, **kwargs):\n"
        "    return {'a': -1.0, 'b': {'score': -1.0, 'acc': True, 'pred': 'B'}, 'c': {'score': 2, 'correct': False},\n"
        "            'd': 0.5, 'e': 'x'}[solution_str]\n"
    )
    (rewards,) = score("own.py:one", [group(*"abcde")], verifier="function")
    assert [reward.verdict.correct for reward in rewards] == [False, True, False, True, False]
    assert [reward.accuracy for reward in rewards] == [0.0, 1.0, 0.0, 1.0, 0.0]
    assert [reward.verdict.extracted for reward in rewards] == [None, "B", None, None, None]
    assert [reward.verdict.status for reward in rewards] == ["incorrect", "correct", "incorrect", "correct", "crashed"]
    assert {reward.verdict.decided_by for reward in rewards} == {DecidedBy.FUNCTION}
    assert rewards[1].verdict.reason is Reason.FUNCTION
    with Rubric(config("own.py:one", verifier="function"), 100) as rubric:
        assert rubric.check_golds([problem("no mathematics at all")]) == []


UNUSABLE = {
    "import nowhere": "own.py cannot be imported: ModuleNotFoundError: No module named 'nowhere' (own.py, line 1)",
    "x = (": "own.py cannot be imported: SyntaxError: '(' was never closed (own.py, line 1)",
    "raise RuntimeError('no\\nkey')": "own.py cannot be imported: RuntimeError: no key (own.py, line 1)",
    "import os; os._exit(4)": "importing own.py:one ended its process (worker ended with status 4)",
    "def other(): pass": "own.py has no 'one'; it has other",
    "one = 3": "own.py:one is int '3' and no function",
    "def one(text): pass": "own.py:one is one(text), and has neither 'solution_str'",
    "def one(**kwargs): pass": "own.py:one is one(**kwargs), and has neither 'solution_str'",
    "def one(solution_str, completions): pass": "own.py:one is one(solution_str, completions), and has both 'solution_str'",
    "def one(solution_str, /): pass": "own.py:one is one(solution_str, /): 'solution_str' can be given by place alone",
    "def one(solution_str, level): pass": "nothing is known as 'level' in a call for one response",
}


@pytest.mark.parametrize("content", UNUSABLE)
def test_what_cannot_be_called_is_refused_in_one_sentence(write: Callable[[str], Path], content: str) -> None:
    write(content + "\n")
    with pytest.raises(UsageError) as caught:
        describe(config("own.py:one").function)
    assert str(caught.value).startswith("reward.function: ")
    assert UNUSABLE[content] in str(caught.value)
    assert "\n" not in str(caught.value)


def test_names_places_and_columns_are_checked(write: Callable[[str], Path]) -> None:
    write("def one(completions, level): pass\ndef total(solution_str): pass\n")
    functions = RewardFunctions(config("own.py:one"))
    with pytest.raises(UsageError, match=r"own\.py:one wants 'level' .did you mean 'levels'"):
        functions.check([problem(levels=3)])
    functions.check([problem(), problem(number=1, level=3)])
    assert set(TAKEN_NAMES) == {name.split("/")[1] for name in METRICS if name.startswith("reward/")}
    with pytest.raises(ValueError, match="'total' is a name of luspo's own metrics"):
        config("own.py:total")
    with pytest.raises(UsageError, match=r"there is no file nowhere\.py in "):
        describe(config("nowhere.py:one").function)
    with pytest.raises(UsageError, match=r"the module own_package\.nothing cannot be imported: ModuleNotFoundError"):
        describe(config("own_package.nothing:one").function)
    (found,) = describe(config("own:one").function)  # a module of the current folder
    assert (found.signature.called, Path(found.file).name) == ("group", "own.py")
    for bad, said in (
        (["own.py:one", "own.py:one"], "two functions named 'one'"),
        ("own.py", "is no function: write path/to/file.py:name"),
        ({"function": "own.py:one", "name": "a b"}, "the name 'a b'"),
    ):
        with pytest.raises(ValueError, match=said):
            config(bad)
    with pytest.raises(ValueError, match=r"needs reward\.function"):
        RewardConfig(verifier="function")
    with pytest.raises(ValueError, match="function_seconds changes nothing without"):
        RewardConfig(function_seconds=3.0)


def test_a_file_may_import_its_neighbours_and_what_it_prints_goes_nowhere(
    write: Callable[[str], Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "beside.py").write_text("def twice(x):\n    print('loud', flush=True)\n    return 2 * x\n")
    write("from beside import twice\ndef one(solution_str):\n    return twice(len(solution_str))\n")
    (rewards,) = score("own.py:one", [group("ab", "abc")])
    assert [reward.total for reward in rewards] == [4.0, 6.0]
    assert capfd.readouterr().out == ""


def test_a_file_that_is_edited_while_the_run_goes_is_not_read(write: Callable[[str], Path]) -> None:
    write("def one(solution_str):\n    import os; os._exit(1)\n")
    with Rubric(config("own.py:one"), 100) as rubric:
        rubric.check_functions([problem()])
        write("def one(solution_str):\n    return 1.0\n")
        with pytest.raises(RunError, match=r"own\.py was changed while the run was going; put it back, or start again"):
            rubric.score_groups([problem()], [group("a")])


def test_failures_are_said_once_and_a_function_that_always_fails_ends_the_run(
    write: Callable[[str], Path], caplog: pytest.LogCaptureFixture
) -> None:
    write("def one(solution_str):\n    return {'b': 'x'}.get(solution_str, 1.0)\n")
    some, whole = score("own.py:one", [group("a", "b"), group("b", "b", number=1)])
    watch = FailedCalls()
    with caplog.at_level(logging.WARNING):
        for step in (1, 2):
            watch.look(f"step {step}", [*some, *whole])
    said = [record.getMessage() for record in caplog.records]
    assert said == [
        "step 1: reward function 'one' failed for 3 of 4 responses, first: returned str 'x'; they are paid"
        " reward.function_failed_score. Said once; reward/one/failed in metrics.jsonl counts them"
    ]
    with pytest.raises(
        RunError, match=r"step 3: reward function 'one' failed for all 2 responses, first: returned str"
    ):
        watch.look("step 3", whole)
    watch.look("an empty batch", [])


def test_their_metrics_have_a_meaning_and_no_others_do() -> None:
    for name in ("reward/one/mean", "reward/one/a/b c/mean", "reward/one/failed", "evaluation/reward/one/mean"):
        assert metric_of(name) is not None
    assert unknown_metrics(["reward/one", "reward/one/max", "objective/mean", "reward/one/part/failed", *METRICS]) == [
        "objective/mean", "reward/one", "reward/one/max", "reward/one/part/failed",
    ]  # fmt: skip
