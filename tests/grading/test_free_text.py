"""The readers of choices, numbers and statements: cases by hand, and hostile responses in bounded time."""

from __future__ import annotations

import time

import pytest

from luspo_cli.evaluation.benchmarks.mathvista_official import normalize_extraction, unread_answer
from luspo_cli.grading.free_text.choices import choice_position, read_choice
from luspo_cli.grading.free_text.labels import read_labels
from luspo_cli.grading.free_text.letters import official_letter, read_letter
from luspo_cli.grading.free_text.numbers import list_items, read_list, read_number, stated_number
from luspo_cli.grading.free_text.segments import ends, visible_text
from luspo_cli.grading.free_text.statements import states_yes_or_no

ANGLES = ("60°", "70°", "80°", "85°")
MONTHS = ("January and February", "July and August", "March and April")
CANALS = ("Trent and Severn", "Grand Union and Trent", "Grand Union and Lancaster")
FOOD = ("increase", "fluctuate", "it would decrease", "stay the same ")


@pytest.mark.parametrize(
    ("response", "choices", "position"),
    [
        ("The answer is (B) 10°.", ANGLES, 1),
        ("The correct option is (B) 70°. Do you have other questions?", ANGLES, 1),
        ("If x > 0, the answer is (A). Otherwise, the answer is (B).\n\nWe cannot determine the answer.", ANGLES, None),
        ("The correct option letter is (E) none of these.", ANGLES, None),
        ("The answer is 70 degrees.", ANGLES, 1),
        ("Therefore, ∠C = 180° - 110° = 70°.", ANGLES, 1),
        ("Both angles, 60° and 80°, were known.", ANGLES, None),
        ("\\boxed{70^\\circ}", ANGLES, 1),
        ("\\boxed{C}", ANGLES, 2),
        ("The answer is (A). Hint: no.\nThus \\boxed{}", ANGLES, None),
        ("答案是（D）。", ANGLES, 3),
        ("所以∠C等于70°，选项B是正确答案", ANGLES, 1),
        ("The answer is (A) 60°.\n\nQuestion: What else?\nChoices:\n(A) 1\n\nThe answer is (C)", ANGLES, 0),
        ("(A) 60°\n(B) 70°\n(C) 80°\n(D) 85°", ANGLES, None),
        ("C. 80° because the others are less", ANGLES, 2),
        ("Angle A equals angle B in the figure.", ANGLES, None),
        ("The area is 15.", ("5", "15", "150", "1.5"), 1),
        ("The area is 5.5 units.", ("5", "5.5"), 1),
        ("\\boxed{30\\sqrt{3}m}", ("30m", "30√{3}m"), 1),
        ("The population would likely decrease as well.", FOOD, 2),
        ("If deer decrease, then the population would increase.", FOOD, 0),
        ("It could increase or decrease.", FOOD, None),
        ("Yes, it is.", ("Yes", "No"), 0),
        ("There is no way to tell.", ("Yes", "No"), None),
        ("The sun is larger than the moon.", ("Sun", "Moon"), 0),
        ("A half-eaten cake is on the table.", ("cake", "pie"), 0),
        ("", ANGLES, None),
        ("The hottest month is July.", MONTHS, 1),
        ("The hottest month is not July.", MONTHS, None),
        ("The hottest months are July and March.", MONTHS, None),
        ("It crossed the Grand Union and the Trent.", CANALS, 1),
        ("So $x = \\boxed{75}$. Other angles such as 80° are not possible.", ANGLES, None),
        ("The correct answer is (B). So $x = \\boxed{75}$.", ANGLES, 1),
        ("It is impossible to determine the speed from the picture.", ("60 mph", "70 mph", "Impossible to tell"), 2),
        ("It is impossible to determine the speed from the picture.", ("60 mph", "70 mph"), None),
        ("The train needs an hour. The speed is 60 mph.", ("60 mph", "70 mph", "Impossible to tell"), 0),
    ],
)
def test_choices_by_hand(response: str, choices: tuple[str, ...], position: int | None) -> None:
    assert read_choice(response, choices, "What is it?") == position


ASKED = "What is the degree of angle C in the figure?"
PROMPT = f"Hint: Please answer the question.\nQuestion: {ASKED}\nChoices:\n(A) 60°\n(B) 70°\n(C) 80°\n(D) 85°\n\n"


@pytest.mark.parametrize(
    ("response", "position"),
    [
        (PROMPT + "The answer is (B) 70°.", 1),
        (PROMPT + "The answer is (B) 70°.\n\n" + PROMPT + "The answer is (C) 80°.", 1),
        ("The answer is (B) 70°.\n\n" + PROMPT + "The answer is (C) 80°.", 1),
        ("Let me restate the problem.\n\n" + PROMPT + "The answer is (C) 80°.", 2),
        ("Let me restate the problem.\n\n" + PROMPT.replace("C in", "D in") + "The answer is (C) 80°.", None),
        ("It cannot be determined.\n\n" + PROMPT + "The answer is (C) 80°.", None),
        (PROMPT + "It cannot be determined.\n\n" + PROMPT + "The answer is (C) 80°.", None),
        (PROMPT + "Question: What is the sum?\nAnswer: (D)", None),
        (f"{ASKED}\nChoices:\n(A) 60°\n(B) 70°\n(C) 80°\n(D) 85°\n\nThe option is (D).", 3),
        ("In the figure, the degree of angle C is ()\nChoices:\n(A) 60°\n(B) 70°\n\nAnswer: (B) 70°", 1),
        ("The angle in the figure, the degree: answer is (A).\nChoices:\n(A) 60°\n(B) 70°\n\nAnswer: (B)", 0),
        ("Question: I say that the answer is (A).\nThat is all there is.", 0),
        ("Hint: 60 degrees", 0),
    ],
)
def test_the_answer_to_the_question_counts_and_none_to_a_prompt_made_up_after_it(
    response: str, position: int | None
) -> None:
    assert read_choice(response, ANGLES, ASKED) == position


@pytest.mark.parametrize(
    ("text", "position"),
    [
        ("B", 1),
        ("(b)", 1),
        ("b", 1),
        ("B. 70°", 1),
        ("70", 1),
        ("70°", 1),
        ("E", None),
        ("75", None),
        ("x" * 9000, None),
    ],
)
def test_short_answers_by_hand(text: str, position: int | None) -> None:
    assert choice_position(text, ANGLES) == position


@pytest.mark.parametrize(
    ("sentence", "question", "answer"),
    [
        ("Gray is the maximum.", "Is Gray the maximum?", True),
        ("Gray is not the maximum. Red is.", "Is Gray the maximum?", False),
        ("Gray is the minimum.", "Is Gray the maximum?", False),
        ("The nest is smaller than a fist.", "Is this nest larger than a fist?", False),
        (
            "There are more rubber choppers than big motorbikes.",
            "Are there fewer big motorbikes than rubber choppers?",
            True,
        ),
        ("There are more big motorbikes than rubber choppers.", "Are there fewer big motorbikes than choppers?", False),
        (
            "There are more green things in front of the double bus than red rubber buses.",
            "Are there more red rubber buses in front of the double bus than green things?",
            False,
        ),
        (
            "The number of metal cars, which are parked, is less than the number of vans.",
            "Is the number of metal cars less than the number of vans?",
            True,
        ),
        ("Metal cars are not less numerous than vans.", "Are metal cars less numerous than vans?", False),
        ("Vans are not less numerous than metal cars.", "Are metal cars less numerous than vans?", None),
        (
            "There are more tiny motorbikes in front of the bike.",
            "Are there more tiny motorbikes in front of the bike than big metal vans?",
            True,
        ),
        ("The function is even because it is a polynomial.", "Is this an even function?", True),
        ("Red is less than Blue.", "Is Gray less than Dark Violet?", None),
        ("It is unclear whether Gray is the maximum.", "Is Gray the maximum?", None),
        ("The function is not injective because it is equal at 1 and 2.", "Is the function injective?", False),
        ('The statement "Gray is the maximum" is false.', "Is Gray the maximum?", False),
    ],
)
def test_yes_and_no_stated_by_hand(sentence: str, question: str, answer: bool | None) -> None:
    assert states_yes_or_no(sentence, question) is answer


@pytest.mark.parametrize(
    ("response", "question", "number"),
    [
        ("\\boxed{1,234}", "", "1234"),
        ("The answer is 41 - 11 = **30** percentage points.", "", "30"),
        ("The slug is about 1 inch long.", "How long is the slug?", "1"),
        ("There are 3 bars below 40. They show 58, 59 and 63.", "How many bars are below 40?", "3"),
        ("There are three objects left.", "How many objects are left?", "3"),
        ("There were 15 - 5 = 10 cubes.\n\nThe final number of objects left is 7.", "How many objects are left?", "7"),
        ("The year 2019 showed the largest gap, 7.84.", "Which year showed the largest gap?", "2019"),
        ("It lies between 40 and 60.", "How many miles?", None),
        ("The increase is between 2000 and 2005 and it is 7.", "How large is the increase?", "7"),
        ("I do not have enough information to determine the gap of the two people.", "What is the age gap?", None),
        ("The ratio is −0.5", "", "-0.5"),
        ("The ratio is 3/4.", "", "0.75"),
        ("It is on the 3rd day, which has 4 guests.", "", "4"),
        ("x = 1e3", "", "1000"),
        ("\\boxed{3\\times 10^{-5}}", "", "0.00003"),
        ("\\boxed{10^3}", "", "1000"),
        ("\\boxed{2\\frac{1}{2}}", "", "2.5"),
        ("\\boxed{5\\,\\mathrm{m/s}^2}", "", "5"),
        ("\\boxed{5 \\text{ cm}^{2}}", "", "5"),
        ("\\boxed{\\frac{\\sqrt{3}}{2}}", "", None),
        ("9" * 500, "", None),
        ("5/0", "", None),
        ("The two visible numbers are 2 and 1. If we add them, the total sum is 3.", "What is the total sum?", "3"),
        (
            "The least number is found at 3 and 4, so it is 34. The least number is 34.",
            "What is the least number?",
            "34",
        ),
        ("Three of them face us, so the fraction is three out of four.", "What is the fraction of them?", "0.75"),
        ("There are three out of four.", "How many are there?", "3"),
        ("no digits here", "", None),
    ],
)
def test_numbers_by_hand(response: str, question: str, number: str | None) -> None:
    assert read_number(response, question) == number


TRUE_OR_FALSE = "The desk is next to the sofa. Select from A, B and C. (A) True (B)False (C)Insufficient Information"
PLANS = "Which plan would be the cheapest? (A) Ferret (B) Owl (C) Wader (D) Fox"


@pytest.mark.parametrize(
    ("response", "question", "labels"),
    [
        ("It is not possible to determine whether the statement is true or false.", TRUE_OR_FALSE, "C"),
        ("The statement is true.", TRUE_OR_FALSE, "A"),
        ("BFalse\nThe statement is false. Option C is not right.", TRUE_OR_FALSE, "B"),
        ("The best plan is option B, the Owl plan. Option C, the Wader plan, has the highest cost.", PLANS, "B"),
        ("B is the cheapest, as it has no fee. C costs more, and D too.", PLANS, "B"),
        ("3B", "Which box comes next? Select answers from A-E", "B"),
        (PLANS.lower() + " answer : c ) c ) c", PLANS, "C"),
        (PLANS.lower() + " answer : 1, d", PLANS, "D"),
        (PLANS.lower() + " answer : a dog", PLANS, ""),
    ],
)
def test_labels_by_hand(response: str, question: str, labels: str) -> None:
    assert read_labels(response, question) == frozenset(labels)


def test_lists() -> None:
    assert read_list("First [1, 2], finally [2014,2016].") == "[2014,2016]"
    assert list_items("[1, 2.0]") == list_items("[1.0,2]") != list_items("[2, 1]")
    assert list_items("1, 2") is None
    assert stated_number("an even number") is None


@pytest.mark.parametrize(
    ("response", "found"),
    [
        ("3 and 7", "[3, 7]"),
        ("3,7", "[3, 7]"),
        ("1.5, 2 and 3", "[1.5, 2, 3]"),
        (r"\boxed{3, 7}", "[3, 7]"),
        (r"\boxed{3 \text{ and } 7}", "[3, 7]"),
        ("The answer is 3 and 7.", "[3, 7]"),
        ("The two lengths are 3 and 7.", "[3, 7]"),
        ("The answer is [3, 7].", "[3, 7]"),
        ("It rose between 3 and 7 o'clock.", None),
        ("1,234", None),
        ("The answer is 3.", None),
    ],
)
def test_a_list_may_have_no_brackets(response: str, found: str | None) -> None:
    assert read_list(response) == found


FOUR = "Which are right? Select from A, B, C, and D. (A) one (B) two (C) three (D) four"


@pytest.mark.parametrize(
    ("response", "labels"),
    [
        ("AC", "AC"),
        ("CA", "AC"),
        (r"\boxed{AC}", "AC"),
        (r"\boxed{\text{AC}}", "AC"),
        ("The answer is AC.", "AC"),
        ("Answer: **AC**", "AC"),
        ("The AC unit is in figure B.", "B"),
        ("CAB drivers take the BAD road.", ""),
        ("FACE", ""),
        ("DAD", ""),
    ],
)
def test_labels_may_be_written_together_and_words_are_none(response: str, labels: str) -> None:
    assert read_labels(response, FOUR) == frozenset(labels)


def test_a_fraction_without_end_is_a_number_and_an_integer_without_end_is_none() -> None:
    assert read_number("The answer is 0." + "3" * 500) == "0." + "3" * 40
    assert read_number("The answer is 9." + "9" * 500 + " cm") == "9." + "9" * 40
    assert read_number("The answer is " + "9" * 41) is None


def test_only_the_ends_of_a_very_long_response_are_read() -> None:
    long = "The answer is 1. " + "word " * 200_000 + "The answer is 2."
    assert read_number(long) == "2"
    assert read_number("<think>" + "word " * 200_000 + "</think>5") == "5"
    assert len(ends(long)) == 40_001
    assert visible_text("<think>never closed " * 10) is None


HOSTILE = (
    "A|A, |(A|[|9|9,|1/|.|answer is |answer: |there are |= |therefore, |\n|**5**|$|\\boxed{|\\frac{1}{|<think>|"
    "</think>|not |cannot |? |Question: |(A) x\n|\u200b|答案是|٣|\x00|between 1 and |one |<Answer>: <<|"
    "option for the x |x. |if |e.g. |Hint:\n|Choices:\n|Hint:\nQuestion:\nChoices:\n(A) x\n(B) y\n"
)


CARS = "Is the number of big cars less than 5? (A) yes (B) no (C) 5 cm"


@pytest.mark.parametrize("unit", [*HOSTILE.split("|"), CARS, f"Question: {CARS}\n", f"{CARS}\nChoices:\n"])
def test_a_megabyte_of_anything_is_read_in_bounded_time(unit: str) -> None:
    text = unit * (1_000_000 // len(unit))
    question = CARS
    started = time.process_time()
    read_choice(text, ("yes", "no", "5 cm"), question)
    read_number(text, question)
    read_list(text)
    read_labels(text, question)
    read_letter(text, {"A": "yes", "B": "5 cm"}, question)
    official_letter(text)
    unread_answer(text)
    normalize_extraction(text[:100_000], ("yes", "no", "5 cm"), "text", None)
    assert time.process_time() - started < 10
