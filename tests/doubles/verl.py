"""A stand-in for the python of verl's environment: it answers the checks, prints and logs as verl does, and trains nothing."""

from __future__ import annotations

import sys
from pathlib import Path

PROGRAM = r"""
import json, os, pathlib, signal, subprocess, sys, time
arguments, mode = sys.argv[1:], pathlib.Path(__file__).with_name("mode").read_text().split()
if arguments[0].endswith("ask.py"):
    settings = json.load(sys.stdin)
    packages = dict.fromkeys(("luspo", "math-verify", "TransferQueue", "vllm", "torch"), "1") | {"verl": "0.9.1"}
    if "old" in mode: packages["verl"] = "0.9.0"
    if "queueless" in mode: packages["TransferQueue"] = None
    print(json.dumps({"packages": packages, "losses": [] if "bare" in mode else ["luspo"], "refused": ""}))
elif arguments[1] == "luspo_cli.verl_plugin.check":
    print(json.dumps({"python": "3.11", "code": "c", "file": "f", "packages": {}}))
elif arguments[1] == "verl.model_merger":
    target = pathlib.Path(arguments[arguments.index("--target_dir") + 1])
    target.mkdir(parents=True)
    (target / "config.json").write_text("{}")
else:
    settings = dict(one.split("=", 1) for one in arguments[2:])
    named = {key.rpartition(".")[2]: value.strip("'") for key, value in settings.items()}
    log = open(named["VERL_FILE_LOGGER_PATH"], "w")
    steps, local = int(named["total_training_steps"]), pathlib.Path(named["default_local_dir"])
    saved = local / "latest_checkpointed_iteration.txt"
    first = int(saved.read_text()) + 1 if saved.exists() else 1
    print("(TaskRunnerV1 pid=7) dataset len: 4", flush=True)
    if "fails" in mode:
        print("Traceback (most recent call last):\n  File \"x.py\", line 1, in <module>", flush=True)
        print("RuntimeError: no GPU for worker 3", flush=True)
        print("\nSet the environment variable HYDRA_FULL_ERROR=1 for a complete stack trace.", flush=True)
        sys.exit(1)
    if "hangs" in mode:
        stray = subprocess.Popen([sys.executable, "-S", "-c", "import time; time.sleep(600)"], start_new_session=True)
        pathlib.Path(__file__).with_name("pids").write_text(f"{os.getpid()} {stray.pid}")
        if "stubborn" in mode:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        time.sleep(600)
    dump = pathlib.Path(named["rollout_data_dir"])
    dump.mkdir(parents=True, exist_ok=True)
    for step in range(first, steps + 1):
        row = {"response_length/mean": 4.0, "response_length/max": 8.0, "response_length/clip_ratio": 0.25,
               "critic/score/mean": 0.5, "actor/loss": 0.5, "actor/lr": 1e-6, "timing_s/step": 1.0}
        log.write(json.dumps({"step": step, "data": row}) + "\n")
        log.flush()
        lines = []
        for group in "ab":
            for place in range(2):
                answer = {"a": "5", "b": "7"}[group]
                said = r"\boxed{%s}" % (answer if place else "1")
                lines.append({"input": f"user\nQuestion {group}?\nassistant\n", "output": said, "gts": answer,
                              "score": float(place), "step": step, "uid": f"u{group}_{place}_0"})
        (dump / f"{step}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        (local / f"global_step_{step}" / "actor").mkdir(parents=True, exist_ok=True)
        saved.write_text(str(step))
        if "dies" in mode and step == 2:
            sys.exit(3)
    log.close()
"""


def stand_in(folder: Path, mode: str = "trains") -> Path:
    """An executable in `folder` to give as `--verl-python`; `mode`: words that say what goes wrong."""
    folder.mkdir(exist_ok=True)
    python = folder / "python"
    python.write_text(f"#!{sys.executable} -S\n{PROGRAM}")
    python.chmod(0o755)
    (folder / "mode").write_text(mode)
    return python
