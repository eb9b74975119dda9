"""Rows on which `rule` mode and a published verdict differ, read by hand: whose error it is (classes: agreement.py).

Read as follows. An answer stated with its option ("The answer is (A) 26°") is what the response says; a judge that
extracted another is in error (b), and so is one that chose an option for a refusal, an echo of the question, a value
that is no option, or one of several options given. Where an explicit option and the working
disagree, the option counts. What a reader of English understands and our rules do not ("two large objects and
three gray ones") is ours (c).
"""

from __future__ import annotations

_BY_HAND: dict[str, dict[str, str]] = {
    "MathVista/bard": {"a": "228 747", "b": "134 549", "c": "897"},
    "MathVista/chatgpt_2shot_solution": {"a": "320 669", "b": "280 338 571 777 916"},
    "MathVista/claude": {"b": "281", "c": "617"},
    "MathVista/gpt4_2shot_solution_use_ocr": {"a": "186", "b": "34 139 224 325 493 608 686 717 974", "c": "44"},
    "MathVista/idefics_9b_instruct": {
        "a": "189 729",
        "b": "33 54 59 95 141 143 148 150 155 164 172 186 229 250 257 260 270 271 279 318 355 364 373 396 397 450 469 "
        "476 538 582 586 635 643 668 697 713 756 768 854 903 916",
    },
    "MathVista/llava_llama_2_13b": {
        "b": "30 79 119 150 164 229 272 276 291 356 373 483 491 513 643 697 708 748 752 778 817 829 849 897",
        "c": "80 546 589 720",
    },
    "MathVista/llavar": {
        "a": "547",
        "b": "26 54 66 141 147 229 272 291 357 419 423 491 610 715 751 771 840 843 853 930",
        "c": "18 80 230 354 402 449 589 597 627 692 696 719 778 785 836 849 932",
    },
    "LogicVista/GPT4": {"a": "v1_4"},
    "LogicVista/BLIP2": {"b": "v1_440", "c": "v1_149 v1_333"},
    "LogicVista/GIT-large": {"b": "v1_181 v1_209", "c": "v1_135 v1_287"},
    "LogicVista/LLAVA7B": {"b": "v1_68 v1_225 v1_373 v1_384 v1_388", "c": "v1_235"},
    "LogicVista/miniGPTvicuna7B": {
        "b": "v1_78 v1_84 v1_93 v1_154 v1_156 v1_323 v1_346 v1_366",
        "c": "v1_47 v1_97 v1_149 v1_200 v1_224 v1_230 v1_299 v1_432",
    },
}

ADJUDICATED: dict[str, dict[str, str]] = {
    system: {row: cause for cause, rows in causes.items() for row in rows.split()}
    for system, causes in _BY_HAND.items()
}
"""Benchmark/system → row id → class."""
