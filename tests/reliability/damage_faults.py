"""Files of a run that are not as they were written: a flipped bit, a torn line, a missing file, an edited configuration."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path

from small_training import Attempt, Workshop, snapshot

NEWEST, OLDER = "checkpoints/step-000004", "checkpoints/step-000002"


def flipped_bits(workshop: Workshop, seed: int) -> Iterator[Attempt]:
    """One bit of each file of the newest checkpoint in turn: it is passed over, which is said, and the one before is taken."""
    draw = random.Random(f"{seed} bits")
    for name in sorted(str(file.relative_to(workshop.stopped / NEWEST)) for file in _files(workshop.stopped / NEWEST)):
        run = workshop.copy_of_stopped("flipped")
        flip_a_bit(run / NEWEST / name, draw)
        ended = workshop.resume(run)
        said = ended.unlike(0, "step-000004 is damaged", "going back to the one before", "going on after step 2")
        yield Attempt(name, said or workshop.differences(run))


def no_whole_checkpoint(workshop: Workshop, seed: int) -> Iterator[Attempt]:
    """Both checkpoints damaged: refused in one sentence, and nothing of the run is touched."""
    run = workshop.copy_of_stopped("flipped")
    for checkpoint in (NEWEST, OLDER):
        flip_a_bit(run / checkpoint / "model" / "model.safetensors", random.Random(f"{seed} {checkpoint}"))
    yield Attempt("a bit in each", _refused(workshop, run, 2, "no other checkpoint is whole"))


def torn_lines(workshop: Workshop) -> Iterator[Attempt]:
    """A last line that ends in the middle, as after a power cut, of both files that are added to."""
    for name in ("metrics.jsonl", "evals/held-out.jsonl"):
        run = workshop.copy_of_stopped("torn")
        with (run / name).open("ab") as file:
            file.write(b'{"step": 6, "tokens/to')
        yield Attempt(name, workshop.finished_alike(run))


def lost_record(workshop: Workshop) -> Iterator[Attempt]:
    """A line before the checkpoint is missing, or the whole file: refused, since the record could not be made whole again."""
    run = workshop.copy_of_stopped("lost")
    lines = (run / "metrics.jsonl").read_bytes().splitlines(keepends=True)
    (run / "metrics.jsonl").write_bytes(b"".join(lines[:1] + lines[2:]))
    yield Attempt("one line", _refused(workshop, run, 2, "lacks 2 of the steps 1 to 4"))
    run = workshop.copy_of_stopped("lost")
    (run / "metrics.jsonl").unlink()
    yield Attempt("the file", _refused(workshop, run, 2, "metrics.jsonl lacks 1, 2, 3 and 1 more"))


def edited_configuration(workshop: Workshop) -> Iterator[Attempt]:
    """config.json edited between start and resume: refused, and allowed where it is asked for, which is recorded."""
    run = workshop.copy_of_stopped("edited")
    original = (run / "config.json").read_text()
    edited = json.loads(original)
    edited["update"]["learning_rate"] = 0.5
    (run / "config.json").write_text(json.dumps(edited))
    problem = _refused(workshop, run, 2, "changed since the run began", "config.json", "--allow-changed")
    (run / "config.json").write_text(original)
    yield Attempt("another learning rate", problem or workshop.finished_alike(run))

    run = workshop.copy_of_stopped("edited")
    (run / "config.json").write_text(json.dumps(edited))
    ended = workshop.resume(run, "--allow-changed")
    (entry,) = json.loads((run / "provenance.json").read_text()).get("resumed") or [{}]
    recorded = [change["what"] for change in entry.get("changed", [])]
    unrecorded = "" if recorded == [str(run / "config.json")] else f"recorded as changed: {recorded}"
    yield Attempt("the same with --allow-changed", ended.unlike(0, "going on all the same") or unrecorded)

    run = workshop.copy_of_stopped("edited")
    (run / "config.json").write_text(json.dumps(json.loads(original), indent=None))  # layout alone
    yield Attempt("layout alone", workshop.finished_alike(run, ignore=["config.json"]))

    run = workshop.copy_of_stopped("edited")
    (run / "config.json").write_text(original[: len(original) // 2])
    problem = _refused(workshop, run, 2, "config.json is not a configuration that this version reads")
    (run / "config.json").write_text(original)
    yield Attempt("cut in the middle", problem or workshop.finished_alike(run))


def other_settings_at_resume(workshop: Workshop) -> Iterator[Attempt]:
    """--resume with another --set than the run was started with."""
    run = workshop.copy_of_stopped("other")
    before = snapshot(run)
    ended = workshop.start(run, "--resume", "--set", "update.learning_rate=0.5")
    problem = ended.unlike(2, "another configuration: update.learning_rate (0.001 there, 0.5 now)")
    problem = problem or ("the folder changed" if snapshot(run) != before else "")
    yield Attempt("with the preset", problem or workshop.finished_alike(run))
    run = workshop.copy_of_stopped("other")
    ended = workshop.luspo("train", "--run", str(run), "--resume", "--set", "update.learning_rate=0.5")
    yield Attempt("without", ended.unlike(2, "leave out --objective and --set") or workshop.finished_alike(run))


def older_version(workshop: Workshop) -> Iterator[Attempt]:
    """A folder of an older version lacks keys that came later; one of a newer version has keys that this one does not know."""
    run = workshop.copy_of_stopped("older")
    stored = json.loads((run / "config.json").read_text())
    for section, key in (("rollout", "max_sampling_rounds"), ("run", "track")):
        del stored[section][key]
    origin = json.loads((run / "provenance.json").read_text())
    del origin["configuration"]
    (run / "config.json").write_text(json.dumps(stored))
    (run / "provenance.json").write_text(json.dumps(origin | {"luspo": "0.0.1"}))
    yield Attempt("keys are missing", workshop.finished_alike(run, ignore=["config.json"]))

    run = workshop.copy_of_stopped("newer")
    original = (run / "config.json").read_text()
    stored = json.loads(original)
    stored["rollout"]["telepathy"] = True
    (run / "config.json").write_text(json.dumps(stored))
    problem = _refused(workshop, run, 2, "rollout.telepathy", "go on with the luspo that wrote it")
    (run / "config.json").write_text(original)
    yield Attempt("a key is unknown", problem or workshop.finished_alike(run))


def unreadable_provenance(workshop: Workshop) -> Iterator[Attempt]:
    """provenance.json cut in the middle: nobody can tell what the run began with."""
    run = workshop.copy_of_stopped("origin")
    original = (run / "provenance.json").read_text()
    (run / "provenance.json").write_text(original[:100])
    problem = _refused(workshop, run, 2, "provenance.json is not readable JSON")
    (run / "provenance.json").write_text(original)
    yield Attempt("cut in the middle", problem or workshop.finished_alike(run))


def flip_a_bit(file: Path, draw: random.Random) -> None:
    content = bytearray(file.read_bytes())
    content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
    file.write_bytes(content)


def _files(folder: Path) -> list[Path]:
    return [file for file in folder.rglob("*") if file.is_file()]


def _refused(workshop: Workshop, run: Path, status: int, *parts: str) -> str:
    """Resume and say what is wrong with the refusal: its sentence, its status, or a folder that it changed."""
    before = _but_log(snapshot(run))
    ended = workshop.resume(run)
    return ended.unlike(status, *parts) or ("the folder changed" if _but_log(snapshot(run)) != before else "")


def _but_log(files: dict[str, bytes]) -> dict[str, bytes]:
    return {name: content for name, content in files.items() if name != "run.log"}
