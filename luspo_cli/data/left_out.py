"""Why a row of a source is not used: the names under which `luspo prepare-data` counts, and the error that carries one."""

from __future__ import annotations

from enum import StrEnum

from luspo_cli.errors import UsageError


class LeftOut(StrEnum):
    """Why a row was not used; the first reason that applies is counted."""

    WITH_VIDEOS = "with_videos"
    """Videos belong to it, and only text and images are read."""
    QUESTION_NOT_TEXT = "question_not_text"
    EMPTY_QUESTION = "empty_question"
    ANSWER_NOT_TEXT = "answer_not_text_or_number"
    EMPTY_ANSWER = "empty_answer"
    UNREADABLE_TEXT = "unreadable_text"
    """Text with half of a surrogate pair, which is not Unicode."""
    PLACEHOLDER_IN_TEXT = "placeholder_in_text"
    """Text with a token by which a vision model marks pixels."""
    TURN_TOKEN_IN_TEXT = "turn_token_in_text"
    """Text with a token that begins or ends a turn of the prompt."""
    OVERLONG = "overlong"
    """More prompt characters than allowed."""
    PASS_RATE_MISSING = "pass_rate_missing"
    """A pass rate was asked for, and the row has none (or a negative number, which says that none was measured)."""
    PASS_RATE_OUTSIDE = "pass_rate_outside"
    OTHER_CATEGORY = "other_category"
    """Of none of the categories that were asked for."""
    IMAGE_COLUMNS_UNCLEAR = "image_columns_unclear"
    """Several columns that are no numbered series hold images."""
    IMAGE_MARKS_DIFFER = "image_marks_differ"
    """Neither no `<image>` mark nor as many as images."""
    IMAGE_MISSING = "image_missing"
    """No file where its path says, or the row names none: an address, a hole in the list."""
    IMAGE_OUTSIDE = "image_outside_folder"
    IMAGE_NOT_SUPPORTED = "image_not_supported"
    """Not one of the formats that are read, by its content."""
    IMAGE_UNREADABLE = "image_unreadable"
    """Empty, truncated or damaged."""
    IMAGE_TOO_LARGE = "image_too_large"
    """More bytes or pixels than are read."""
    IMAGE_TOO_THIN = "image_too_thin"
    """Longer than 200 times its width, which the models' processors refuse."""
    UNPARSABLE_ANSWER = "unparsable_answer"
    """Not one short value, or not readable by the verifier."""
    IN_TEST_SPLIT = "in_test_split"
    IN_VALIDATION_SPLIT = "in_validation_split"
    DUPLICATE = "duplicate"
    CONFLICTING_ANSWER = "conflicting_answer"
    """The question of an earlier row that was used, with another gold answer."""
    IN_EXCLUDED_BENCHMARK = "in_excluded_benchmark"


class UnusableImage(UsageError):
    """An image that cannot be used, in one sentence; `reason` is what a preparation counts it under."""

    def __init__(self, reason: LeftOut, sentence: str) -> None:
        super().__init__(sentence)
        self.reason = reason
