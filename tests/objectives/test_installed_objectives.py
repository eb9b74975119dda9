"""Objectives of installed packages: the entry-point group `luspo.objectives`, with packages as an installer leaves them.

The packages lie in a folder on the import path, each a module and its `dist-info`; commands run in processes of their own.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from doubles.runs import SMALL_RUN
from luspo_cli.config import own_objective
from luspo_cli.config.layers import resolve_train
from luspo_cli.config.objective import NAMED_OBJECTIVES, resolve
from luspo_cli.config.own_objective import installed, is_own
from luspo_cli.objectives import policy_loss

LOSSES = """
from luspo_cli.objectives import OwnObjective

def token_sum(batch):
    return 1 / batch.sequences

mine = OwnObjective("gspo", aggregation=token_sum, settings={"clip_low": 2e-3, "clip_high": 2.5e-3})
number = 3
"""
ENTRIES = """
mine = made_losses:mine
other = made_losses:mine [gpu]
luspo = made_losses:mine
gspo = made_losses:mine
custom = made_losses:mine
lost = made_losses:nothing
odd = made_losses:number
whole = made_losses
two words = made_losses:mine
file.py = made_losses:mine
raises = made_broken:mine
exits = made_exits:mine
absent = made_nowhere:mine
"""


def install(folder: Path, package: str, version: str, entries: str, **modules: str) -> None:
    """What `pip install --target` leaves of a package."""
    about = folder / f"{package.replace('-', '_')}-{version}.dist-info"
    about.mkdir(parents=True)
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: {version}\n")
    (about / "entry_points.txt").write_text(f"[luspo.objectives]\n{entries.strip()}\n")
    for name, text in modules.items():
        (folder / f"{name}.py").write_text(text)


@pytest.fixture
def packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder on the import path, for this process and those it starts."""
    folder = tmp_path / "packages"
    broken = {"made_broken": "raise RuntimeError('no such GPU')", "made_exits": "raise SystemExit(3)"}
    install(folder, "made-losses", "1.0", ENTRIES, made_losses=LOSSES, **broken)
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.setenv("PYTHONPATH", str(folder))
    monkeypatch.chdir(tmp_path)

    def forget() -> None:
        for cached in (installed, own_objective._load):
            cached.cache_clear()
        for name in [name for name in sys.modules if name.startswith("made_")]:
            del sys.modules[name]

    forget()
    yield folder
    forget()


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "luspo_cli", *arguments],
        capture_output=True,
        text=True,
        timeout=600,
        env=os.environ | {"COLUMNS": "200", "OMP_NUM_THREADS": "1"},
    )


def test_the_list_names_what_is_installed_and_imports_nothing_of_it(packages: Path) -> None:
    install(packages, "other-losses", "2.0", "mine = made_other:mine")
    done = command("objectives")
    assert (done.returncode, done.stderr) == (0, "")
    listed = done.stdout.partition("of installed packages")[2]
    rows = [" ".join(line.split()) for line in listed.splitlines() if line.strip()]
    assert "mine made_losses:mine of made-losses 1.0" in rows
    assert "mine made_other:mine of other-losses 2.0" in rows
    assert "raises made_broken:mine of made-losses 1.0" in rows
    assert "luspo made_losses:mine of made-losses 1.0; the built-in luspo goes first: name made_losses:mine" in rows


def test_the_list_says_which_names_do_not_stand_for_what_a_package_brings(packages: Path) -> None:
    listed = command("objectives", "--installed").stdout
    rows = [" ".join(line.split()) for line in listed.splitlines() if line.strip()]
    of = "of made-losses 1.0;"
    assert f"custom made_losses:mine {of} the built-in custom goes first: name made_losses:mine" in rows
    letters = "a name has letters, digits, '_', '-' and '.' alone"
    assert f"two words made_losses:mine {of} {letters}: name made_losses:mine instead" in rows
    assert (
        f"file.py made_losses:mine {of} a name that ends with .py is read as a file's: name made_losses:mine instead"
        in rows
    )
    assert any(row.startswith(f"whole made_losses {of} its entry point 'made_losses' is no function") for row in rows)
    assert "mine made_losses:mine of made-losses 1.0" in rows
    install(packages, "other-losses", "2.0", "mine = made_other:mine")
    shown = command("objectives", "--installed").stdout
    rows = [" ".join(line.split()) for line in shown.splitlines()]
    assert {"mine made_losses:mine of made-losses 1.0", "mine made_other:mine of other-losses 2.0"} <= set(rows)
    assert any(row.startswith("mine is in 2 packages, ") for row in rows)


def test_programs_read_what_is_installed_beside_the_built_in_ones(packages: Path) -> None:
    done = command("objectives", "--installed", "--json")
    assert (done.returncode, done.stderr) == (0, "")
    found = json.loads(done.stdout)
    assert found["mine"] == {"places": {"made_losses:mine": "made-losses 1.0"}, "reason": None}
    assert found["gspo"]["reason"] == "the built-in gspo goes first: name made_losses:mine"
    assert found["two words"]["reason"].endswith("name made_losses:mine instead")
    assert found["raises"]["reason"] is None  # seen where it is used: nothing is imported
    assert list(json.loads(command("objectives", "--json").stdout)) == list(NAMED_OBJECTIVES)
    refused = command("objectives", "mine", "--installed")
    assert (refused.returncode, refused.stdout) == (2, "")
    assert "leave the names out" in refused.stderr


def test_an_unknown_name_is_told_each_name_that_can_be_used_once(packages: Path) -> None:
    for words in (
        ("objectives", "zzz"),
        ("objectives", "show", "zzz"),
        ("train", "--preset", "tiny", "--objective", "zzz"),
    ):
        done = command(*words)
        assert done.returncode == 2
        known = re.split(r"choose from|one of|there are", done.stderr)[-1].strip(" .\n").split(", ")
        assert len(known) == len(set(known)), words
        assert {"gspo", "luspo", "mine", "other"} <= set(known)
        assert not {"two words", "whole"} & set(known)
    with pytest.raises(ValueError, match="unknown objective 'zzz'") as refused:
        resolve("zzz")
    assert str(refused.value).count("custom") == 1


@pytest.mark.parametrize("name", ["mine", "other"])
def test_it_is_shown_with_its_numbers(packages: Path, name: str) -> None:
    done = command("objectives", "show", name, "--json")
    assert (done.returncode, done.stderr) == (0, "")
    config = json.loads(done.stdout)["config"]
    assert (config["name"], config["base"], config["aggregation"], config["clip_low"]) == (name, "gspo", "own", 2e-3)


def test_it_is_proven_and_trained_and_its_run_is_read_without_it(packages: Path, tmp_path: Path) -> None:
    checked = command("objectives", "check", "mine", "--json")
    assert (checked.returncode, json.loads(checked.stdout)["mine"]["invariant"]) == (0, True)
    run = tmp_path / "runs" / "one"
    sets = [f"--set={one}" for one in (*SMALL_RUN, "run.steps=2")]
    trained = command("train", "--preset", "tiny", "--objective", "mine", "--run", str(run), *sets)
    assert trained.returncode == 0, trained.stderr[-2000:]
    stored = json.loads((run / "config.json").read_text())["objective"]
    assert (stored["name"], stored["base"], stored["clip_high"]) == ("mine", "gspo", 2.5e-3)
    recorded = json.loads((run / "provenance.json").read_text())["functions"]["mine"]
    assert recorded == {"key": "objective.name", "sha256": hashlib.sha256(LOSSES.encode()).hexdigest()}
    assert len((run / "metrics.jsonl").read_text().splitlines()) == 2
    for path in packages.rglob("*"):
        if path.is_file():
            path.unlink()
    shown = command("objectives", "show", str(run))
    assert (shown.returncode, shown.stderr) == (0, "")
    again = command("train", "--preset", "tiny", "--objective", "mine", "--dry-run")
    assert again.returncode == 2
    assert "unknown objective 'mine'" in again.stderr


def test_its_loss_is_that_of_its_functions(packages: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    new, old = -torch.rand(2, 4, 6, generator=generator, dtype=torch.float64)
    batch = (new, old, torch.tensor([1.0, -1.0, 0.5, 2.0]), torch.arange(6) < torch.tensor([[6], [1], [3], [5]]))
    assert float(policy_loss("mine", *batch).loss) == pytest.approx(float(policy_loss("luspo", *batch).loss), rel=1e-12)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("lost", "of the package made-losses 1.0: made_losses has no 'nothing'; it has mine"),
        ("odd", "of the package made-losses 1.0: made_losses:number is a int and no OwnObjective"),
        ("whole", "of the package made-losses 1.0: its entry point 'made_losses' is no function"),
        ("two words", "of the package made-losses 1.0: a name has letters, .* alone: name made_losses:mine instead"),
        ("raises", "the module made_broken cannot be imported: RuntimeError: no such GPU"),
        ("exits", "the module made_exits cannot be imported: SystemExit: 3"),
        ("absent", "the module made_nowhere cannot be imported: ModuleNotFoundError"),
    ],
)
def test_what_is_wrong_with_one_is_a_sentence_that_names_its_package(packages: Path, name: str, said: str) -> None:
    with pytest.raises(ValueError, match=rf"^objective {name} of the package made-losses 1\.0: .*") as refused:
        resolve(name)
    assert refused.match(said)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("words", [("objectives", "show", "raises"), ("objectives", "check", "raises")])
def test_a_command_that_uses_a_broken_one_ends_with_the_sentence(packages: Path, words: tuple[str, ...]) -> None:
    done = command(*words)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        "luspo: objective raises of the package made-losses 1.0: the module made_broken cannot be imported: RuntimeError: no such"
        " GPU (made_broken.py, line 1)\n"
    )


def test_a_name_of_two_packages_is_refused_and_either_place_can_be_named(packages: Path) -> None:
    install(packages, "other-losses", "2.0", "mine = made_other:mine", made_other=LOSSES)
    with pytest.raises(
        ValueError,
        match=r"objective mine is in 2 packages, .*made-losses 1\.0.*: name (made_losses:mine or made_other:mine|made_other)",
    ):
        resolve("mine")
    assert resolve("made_other:mine").base == "gspo"
    install(packages, "again-losses", "3.0", "other = made_losses:mine")
    installed.cache_clear()
    assert resolve("other").base == "gspo"  # two packages that mean one objective


def test_a_built_in_name_stays_the_built_in_one(packages: Path) -> None:
    assert resolve("luspo").base is None
    assert resolve("made_losses:mine").base == "gspo"
    # What a preset says of the built-in gspo is not taken for another spelling of `mine`.
    assert resolve_train(preset="tiny", objective="mine").objective.clip_high == 2.5e-3


def test_a_package_with_malformed_entry_points_costs_its_own_names_alone(packages: Path) -> None:
    install(packages, "bad-losses", "1.0", "no equals sign")
    assert not is_own("no")
    assert resolve("mine").base == "gspo"


def test_a_module_of_the_current_folder_does_not_go_before_the_package_s(packages: Path, tmp_path: Path) -> None:
    (tmp_path / "made_losses.py").write_text("raise RuntimeError('another file of that name')")
    assert resolve("mine").base == "gspo"


def test_an_older_copy_of_a_package_behind_the_imported_one_adds_nothing(
    packages: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    older = tmp_path / "older"
    install(older, "made-losses", "0.9", "mine = made_old:mine", made_old=LOSSES)
    monkeypatch.setattr(sys, "path", [*sys.path, str(older)])
    assert dict(installed()["mine"]) == {"made_losses:mine": "made-losses 1.0"}
