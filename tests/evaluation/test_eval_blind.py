"""The blind pass of `luspo eval`: same draws, other images; its score beside the seeing one, killed and gone on, kept apart."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet
import pytest
from typer.testing import CliRunner

from doubles.evaluation import aime_folder, never
from doubles.pictures import SeeingSampler, pictures_of, seeing
from luspo_cli.app import app
from luspo_cli.errors import UsageError
from luspo_cli.evaluation.runner import Evaluation, check, evaluate
from luspo_cli.evaluation.samples import PartialSamples
from luspo_cli.files import read_object


def files(out: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in out.iterdir() if file.is_file()}


def test_the_score_without_the_images_stands_beside_the_other_one(tmp_path: Path) -> None:
    """Eight of eight right with their pictures, none with noise: the difference is 1, and 0.6756 is Wilson's bound of 8 of 8."""
    evaluation = pictures_of(tmp_path / "data", tmp_path / "out", blind="noise")
    sampler = SeeingSampler()
    finished = evaluate(evaluation, seeing(sampler))
    assert sampler.calls[:2] == sampler.calls[2:]  # problems and seeds
    assert len(sampler.calls) == 4
    assert (finished.drawn, finished.found) == (32, 0)
    blind = finished.content["blind"]
    assert finished.content["metrics"]["accuracy"] == 1.0
    assert (blind["shows"], blind["accuracy"], blind["seeing_minus_blind"]) == ("noise", 0.0, 1.0)
    assert blind["accuracy_interval_95"] == pytest.approx((0.0, 0.3244), abs=1e-4)
    assert blind["seeing_minus_blind_interval_95"] == pytest.approx((0.6756, 1.0), abs=1e-4)
    assert blind["metrics"]["no_answer_fraction"] == 1.0
    assert blind["metrics"]["tables"]["task"].keys() == finished.content["metrics"]["tables"]["task"].keys()
    assert "blind" not in finished.content["sampling"]
    assert json.loads(evaluation.json_file.read_text()) == json.loads(json.dumps(finished.content))
    assert sorted(files(tmp_path / "out")) == ["PICTURES.blind.parquet", "PICTURES.json", "PICTURES.parquet"]
    rows = pyarrow.parquet.read_table(tmp_path / "out/PICTURES.blind.parquet").to_pylist()
    assert [(row["id"], row["sample"]) for row in rows] == [(str(n), s) for n in range(1, 9) for s in (0, 1)]
    assert {(row["extracted"], row["correct"]) for row in rows} == {(None, False)}


def test_another_problems_image_gets_the_answer_to_that_image(tmp_path: Path) -> None:
    """What stands on the eight pictures is exchanged, so the same eight letters come, each at another problem."""
    evaluation = pictures_of(tmp_path / "data", tmp_path / "out", blind="other")
    evaluate(evaluation, seeing(SeeingSampler()))
    own, other = (
        [row["extracted"] for row in pyarrow.parquet.read_table(tmp_path / "out" / name).to_pylist()]
        for name in ("PICTURES.parquet", "PICTURES.blind.parquet")
    )
    assert own != other
    assert sorted(own) == sorted(other)


@pytest.mark.parametrize("calls", [0, 1, 2, 3])
def test_killed_at_any_chunk_and_gone_on_gives_the_same_bytes(tmp_path: Path, calls: int) -> None:
    evaluate(pictures_of(tmp_path / "data", tmp_path / "whole", blind="noise"), seeing(SeeingSampler()))
    evaluation = pictures_of(tmp_path / "data", tmp_path / "out", blind="noise")
    with pytest.raises(KeyboardInterrupt):
        evaluate(evaluation, seeing(SeeingSampler(dies_at=calls)))
    assert not evaluation.json_file.exists()
    sampler = SeeingSampler()
    finished = evaluate(evaluation, seeing(sampler))
    assert len(sampler.calls) == 4 - calls
    assert (finished.drawn, finished.found) == (32 - 8 * calls, 8 * calls)
    assert files(tmp_path / "out") == files(tmp_path / "whole")
    assert not (tmp_path / "out/.partial").exists()


def test_a_blind_pass_asked_for_later_is_all_that_is_drawn(tmp_path: Path) -> None:
    evaluate(pictures_of(tmp_path / "data", tmp_path / "whole", blind="noise"), seeing(SeeingSampler()))
    evaluate(pictures_of(tmp_path / "data", tmp_path / "out"), seeing(SeeingSampler()))
    finished = evaluate(pictures_of(tmp_path / "data", tmp_path / "out", blind="noise"), seeing(SeeingSampler()))
    assert (finished.drawn, finished.found) == (16, 16)
    assert files(tmp_path / "out") == files(tmp_path / "whole")
    for how in ("noise", "none"):  # and then there is nothing left to draw, asked for again or not
        again = evaluate(pictures_of(tmp_path / "data", tmp_path / "out", blind=how), never)
        assert (again.drawn, again.found) == (0, 32)
    assert files(tmp_path / "out") == files(tmp_path / "whole")


def test_a_new_scoring_keeps_the_blind_score_without_the_model_or_the_images(tmp_path: Path) -> None:
    evaluation = pictures_of(tmp_path / "data", tmp_path / "out", blind="noise")
    evaluate(evaluation, seeing(SeeingSampler()))
    whole = files(tmp_path / "out")
    content = json.loads(whole["PICTURES.json"])
    content["version"], content["blind"]["accuracy"] = 0, 0.5
    evaluation.json_file.write_text(json.dumps(content))
    evaluate(pictures_of(tmp_path / "data", tmp_path / "out"), never)
    assert files(tmp_path / "out") == whole


def test_another_control_is_refused_and_replaces_the_blind_pass_alone(tmp_path: Path) -> None:
    evaluate(pictures_of(tmp_path / "data", tmp_path / "out", blind="noise"), seeing(SeeingSampler()))
    other = pictures_of(tmp_path / "data", tmp_path / "out", blind="other")
    with pytest.raises(UsageError, match=r"made with other settings: blind \('noise' there, 'other' now\)"):
        check(other, replace_other=False)
    finished = evaluate(other, seeing(SeeingSampler()), replace_other=True)
    assert (finished.drawn, finished.found) == (16, 16)
    assert finished.content["blind"]["shows"] == "other"


def test_new_samples_leave_no_older_blind_samples_beside_them(tmp_path: Path) -> None:
    evaluate(pictures_of(tmp_path / "data", tmp_path / "out", blind="noise"), seeing(SeeingSampler()))
    finished = evaluate(
        pictures_of(tmp_path / "data", tmp_path / "out", seed=1), seeing(SeeingSampler()), replace_other=True
    )
    assert "blind" not in finished.content
    assert sorted(files(tmp_path / "out")) == ["PICTURES.json", "PICTURES.parquet"]


def test_unfinished_blind_chunks_of_other_settings_are_refused(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        evaluate(pictures_of(tmp_path / "data", tmp_path / "out", blind="noise"), seeing(SeeingSampler(dies_at=3)))
    assert PartialSamples(tmp_path / "out", "PICTURES.blind").settings() is not None
    with pytest.raises(UsageError, match=r"blind \('noise' there, 'other' now\)"):
        evaluate(pictures_of(tmp_path / "data", tmp_path / "out", blind="other"), never)


def test_the_result_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It has every problem in it; a scoring anew and another blind pass go by what was read."""
    evaluate(pictures_of(tmp_path / "data", tmp_path / "out", blind="noise"), seeing(SeeingSampler()))
    read: list[Path] = []

    def counted(file: Path) -> dict[str, Any] | None:
        read.append(file)
        return read_object(file)

    monkeypatch.setattr("luspo_cli.evaluation.runner.read_object", counted)
    for how, again in (("noise", False), ("none", False), ("other", True)):
        evaluation = pictures_of(tmp_path / "data", tmp_path / "out", blind=how)
        check(evaluation, replace_other=again)
        assert read == [evaluation.json_file]
        read.clear()
        evaluate(evaluation, seeing(SeeingSampler()), replace_other=again)
        assert read == [evaluation.json_file]
        read.clear()


def test_by_image_size_every_third_has_its_accuracy(tmp_path: Path) -> None:
    """Pictures of 56, 56, 56, 60, 60, 60, 66, 66 a side: equal sizes are not parted, so the thirds have 3, 3 and 2 problems."""
    content = evaluate(pictures_of(tmp_path / "data", tmp_path / "out"), seeing(SeeingSampler())).content
    assert content["metrics"]["image_size"] == {
        "up to 3,136 pixels": {"accuracy": 1.0, "correct": 3, "total": 3},
        "3,137 to 3,600 pixels": {"accuracy": 1.0, "correct": 3, "total": 3},
        "3,601 to 4,356 pixels": {"accuracy": 1.0, "correct": 2, "total": 2},
    }


def test_a_benchmark_of_text_has_no_blind_pass(tmp_path: Path) -> None:
    words = ["eval", "runs/none", "--benchmark", "aime24", "--data", str(aime_folder(tmp_path / "aime24"))]
    result = CliRunner().invoke(app, [*words, "--set", "sampling.blind=noise"])
    assert isinstance(result.exception, UsageError)
    said = "sampling.blind = 'noise' replaces images, and AIME24 has none: leave it out, or choose --suite vision."
    assert str(result.exception) == said


def test_the_identity_of_the_samples_that_see_is_that_without_a_blind_pass(tmp_path: Path) -> None:
    plain, blind = (pictures_of(tmp_path / "data", tmp_path / "out", blind=how) for how in ("none", "noise"))
    assert isinstance(plain, Evaluation)
    assert plain.identity() == blind.identity()
    assert blind.passes()[1].identity() == {**plain.identity(), "blind": "noise"}


def test_missing_pictures_are_refused_before_the_model_is_loaded(tmp_path: Path) -> None:
    evaluation = pictures_of(tmp_path / "data", tmp_path / "out")
    for number in (1, 3, 6):
        (tmp_path / f"data/images/{number}.png").unlink()
    said = (
        r"3 of the 8 images of PICTURES are missing in .*, the first images/1\.png: put the images of AI4Math/MathVista"
    )
    with pytest.raises(UsageError, match=said):
        evaluate(evaluation, lambda: pytest.fail("the model was loaded"))
