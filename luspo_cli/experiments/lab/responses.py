"""The exact model: a policy over responses of filler tokens, answer tokens and an end, for all seeds as one tensor.

At each position the policy stops with a chance (the logistic function of a stopping logit) or writes one more filler token. The
first answer token says both that it stops and what it answers; the end follows. A response is therefore described by few numbers,
however long it is: filler tokens of one bin of positions are all alike, so they are one column with their number beside it
(`token_counts` of the loss). Log-probs are differentiable functions of the parameters; the mean length is a closed formula.

Sizes: S seeds, B rows, K prompt types, W bins of positions, M answer tokens, V tokens that an answer token can be; T = W + M + 1.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, Self

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from luspo_cli.config.lab import LabRun

DTYPE = torch.float64


class Responses(NamedTuple):
    """One batch of every seed, and what a row is: everything is [S, B] or [S, B, ...]."""

    types: Tensor
    """Prompt type, [S, B]."""
    fillers: Tensor
    """Filler tokens in each bin of positions, [S, B, W]."""
    stop_bin: Tensor
    """Bin of the position at which the answer began, [S, B]; the last one where the limit came first."""
    answers: Tensor
    """Answer tokens, 0 for the right one, [S, B, M]."""
    ended: Tensor
    """Whether the end follows the answer, bool [S, B]."""
    mask: Tensor
    """Whether a column stands for tokens of the response, bool [S, B, T]: bins of filler, answer tokens, end."""
    right: Tensor
    """Whether it ends within the limit with the right answer, bool [S, B]."""

    @property
    def token_counts(self) -> Tensor:
        """Tokens that each column stands for, [S, B, T]; 1 or more where `mask` is True."""
        return torch.cat(
            [
                self.fillers,
                torch.ones_like(self.answers, dtype=DTYPE),
                self.fillers.new_ones(()).expand(*self.types.shape, 1),
            ],
            -1,
        )

    @property
    def lengths(self) -> Tensor:
        """Tokens of each response, [S, B]."""
        return (self.token_counts * self.mask).sum(-1)

    def rows(self, start: int, stop: int) -> Self:
        """The rows from `start` to before `stop` of every seed."""
        return type(self)(*(part[:, start:stop] for part in self))


@dataclass(frozen=True, slots=True)
class Logits:
    """The parameters of all seeds; every axis but the first may have size 1 where the experiment does not tell it apart."""

    stop: Tensor
    """Stopping, [S, K or 1, W]; [S, K or 1, 1] where the bins have a fixed profile."""
    answer: Tensor
    """Answer tokens but for the last one, whose logit is 0, [S, K, M, V - 1]; the first is the right one."""
    ending: Tensor
    """The end after the answer, [S, 1]; [S, 0] where it is certain."""
    shared: Tensor
    """The direction that answering and stopping share, [S, 1]; [S, 0] where there is none."""

    def tensors(self) -> tuple[Tensor, ...]:
        return self.stop, self.answer, self.ending, self.shared

    def detached(self) -> Logits:
        """Copies without gradient."""
        return Logits(*(tensor.detach().clone() for tensor in self.tensors()))


class ResponseModel:
    """What follows from the logits under one configuration: responses, their log-probs, mean length."""

    def __init__(self, config: LabRun) -> None:
        self.config = config
        self.limit = config.rollout.max_response_tokens
        self.tail = config.model.answer_tokens + 1
        self.start_filler = config.model.length - self.tail
        bins, width = config.model.bins, config.model.stop_bin_tokens
        self.profile = torch.tensor(config.model.stop_profile or [0.0], dtype=DTYPE)
        self.bin_starts = torch.arange(bins, dtype=DTYPE) * width
        self.bin_widths = torch.full((bins,), width, dtype=DTYPE)
        self.bin_widths[-1] = self.limit - self.bin_starts[-1]

    @property
    def uniforms_a_row(self) -> int:
        """Random numbers that one row takes: one a bin, one an answer token, the end, the coin."""
        return self.config.model.bins + self.config.model.answer_tokens + 2

    def start(self, generators: list[torch.Generator]) -> Logits:
        """The logits before training, one seed a generator: the configured mean length and accuracy, which are exact."""
        model, seeds = self.config.model, len(generators)
        types = model.prompt_types
        spread = torch.zeros(seeds, types, dtype=DTYPE)
        if model.skill_spread:
            drawn = torch.stack([torch.randn(types, generator=generator, dtype=DTYPE) for generator in generators])
            spread = model.skill_spread * drawn
        # A token of the answer is right with this chance on average, so that all of them and the end are with `accuracy`.
        share = (model.accuracy / model.ending) ** (1 / model.answer_tokens)
        right = spread + _centre(spread, share, model.answer_tokens)
        # Beside V - 1 logits of 0 a chance of 1/2 is a logit of log(V - 1).
        answer = torch.zeros(seeds, types, model.answer_tokens, model.answers - 1, dtype=DTYPE)
        answer[..., 0] = (right + math.log(model.answers - 1))[..., None]
        stop_types = types if model.stop_by_type else 1
        return Logits(
            stop=torch.full((seeds, stop_types, model.stop_bins), self._start_stop(), dtype=DTYPE),
            answer=answer,
            ending=torch.full((seeds, int(model.ending < 1)), _logit(model.ending), dtype=DTYPE),
            shared=torch.zeros(seeds, int(model.coupling != 0), dtype=DTYPE),
        )

    def _start_stop(self) -> float:
        """The stopping logit before training: the configured mean length, the response limit left aside."""
        if not self.config.model.stop_profile:
            return -math.log(self.start_filler)

        def too_long(logit: Tensor) -> Tensor:
            return self._mean_filler(logit + self.profile, math.inf)[:, None] > self.start_filler

        return float(_bisect(too_long, torch.zeros(1, 1, dtype=DTYPE)))

    @torch.no_grad()
    def sample(self, logits: Logits, types: Tensor, uniforms: Tensor) -> Responses:
        """Responses to prompts of `types` [S, B] that `uniforms` [S, B, uniforms_a_row] in [0, 1) decide."""
        bins, tokens = self.config.model.bins, self.config.model.answer_tokens
        of_stop, of_answer, of_end, of_coin = uniforms.split([bins, tokens, 1, 1], dim=-1)
        log_continue = logsigmoid(-self._stop_rows(logits, types))
        # Filler tokens that each bin would take before a stop: geometric, by inversion; the first stop counts.
        wanted = torch.floor(torch.log1p(-of_stop) / log_continue)
        full = wanted >= self.bin_widths
        reached = torch.cat([torch.ones_like(full[..., :1]), full[..., :-1].cumprod(-1).bool()], -1)
        fillers = torch.where(reached, torch.minimum(wanted, self.bin_widths), 0)
        stop_bin = (reached.sum(-1) - 1).clamp(min=0)
        filler = fillers.sum(-1)
        chances = self._answer_log_probs(logits, types, filler).exp().cumsum(-1)
        answers = (of_answer[..., None] >= chances[..., :-1]).sum(-1)
        if logits.ending.shape[-1]:
            ended = of_end[..., 0] < torch.sigmoid(logits.ending)
        else:
            ended = torch.ones_like(types, dtype=torch.bool)
        return self.describe(types, fillers, stop_bin, answers, ended, of_coin[..., 0] < 0.5)

    def describe(
        self, types: Tensor, fillers: Tensor, stop_bin: Tensor, answers: Tensor, ended: Tensor, coin: Tensor
    ) -> Responses:
        """What is written of such responses within the limit, and whether they are right (with the coin: whether it says so)."""
        filler = fillers.sum(-1, keepdim=True)
        after = torch.arange(self.tail, dtype=DTYPE)
        mask = torch.cat([fillers > 0, filler + after < self.limit], -1)
        right = (answers == 0).all(-1) & ended & mask[..., -1]
        if self.config.data.profile == "coin":
            right = coin
        return Responses(types, fillers, stop_bin, answers, ended, mask, right)

    def log_probs(self, logits: Logits, responses: Responses, noise: Tensor | None = None) -> Tensor:
        """Log-prob of one token of each column, [S, B, T], with gradient; what stands at masked columns has no meaning.

        `noise` [S, B, M, V - 1]: added to the logits of all answers but the right one.
        """
        stop = self._stop_rows(logits, responses.types)
        stopping = logsigmoid(stop).gather(-1, responses.stop_bin[..., None])
        of_answers = self._answer_log_probs(logits, responses.types, responses.fillers.sum(-1), noise)
        answers = of_answers.gather(-1, responses.answers[..., None])[..., 0]
        first = answers[..., :1] + stopping
        ending = torch.zeros_like(stopping)
        if logits.ending.shape[-1]:
            sign = torch.where(responses.ended, 1.0, -1.0).to(DTYPE)
            ending = logsigmoid(sign * logits.ending)[..., None]
        return torch.cat([logsigmoid(-stop), first, answers[..., 1:], ending], -1)

    @torch.no_grad()
    def mean_length(self, logits: Logits) -> Tensor:
        """Expected tokens of a response, [S], all prompt types alike: the sum over t of P(|y| >= t), a finite series a bin."""
        stop = self._with_shared(logits.stop, logits, self.config.model.coupling) + self.profile
        # Only filler up to limit - tail makes a response longer: behind it the answer and the end are what is cut.
        return self.tail + self._mean_filler(stop, self.limit - self.tail).mean(-1)

    def _mean_filler(self, stop: Tensor, most: float) -> Tensor:
        """Expected filler tokens up to `most` under stopping logits [..., W], [...]."""
        log_continue = logsigmoid(-stop)
        before = torch.cumsum(log_continue * self.bin_widths, -1) - log_continue * self.bin_widths
        within = torch.clamp(most - self.bin_starts, min=0)
        within[:-1] = within[:-1].minimum(self.bin_widths[:-1])
        series = torch.exp(log_continue - logsigmoid(stop)) * -torch.expm1(within * log_continue)
        return (before.exp() * series).sum(-1)

    def _stop_rows(self, logits: Logits, types: Tensor) -> Tensor:
        """Stopping logits of each row, [S, B, W]."""
        stop = self._with_shared(logits.stop, logits, self.config.model.coupling) + self.profile
        if stop.shape[1] == 1:
            return stop.expand(-1, types.shape[1], -1)
        return stop.gather(1, types[..., None].expand(-1, -1, stop.shape[-1]))

    def _answer_log_probs(self, logits: Logits, types: Tensor, filler: Tensor, noise: Tensor | None = None) -> Tensor:
        """Log-probs of everything that each answer token can be, [S, B, M, V], after `filler` [S, B] tokens."""
        seeds, rows = types.shape
        answer = logits.answer
        if answer.shape[1] == 1:
            answer = answer.expand(-1, rows, -1, -1)
        else:
            answer = answer.gather(1, types[..., None, None].expand(-1, -1, *answer.shape[2:]))
        right = self._with_shared(answer[..., :1], logits, 1.0)
        gain = {"pays": 1.0, "costs": -1.0}.get(self.config.data.profile)
        if gain is not None:
            times_start = torch.log((filler + 1) / (self.start_filler + 1))
            right = right + gain * self.config.data.length_gain * times_start[..., None, None]
        last = answer.new_zeros(()).expand(seeds, rows, answer.shape[2], 1)
        wrong = torch.cat([answer[..., 1:], last], -1)
        return torch.cat([right, wrong if noise is None else wrong + noise], -1).log_softmax(-1)

    @staticmethod
    def _with_shared(values: Tensor, logits: Logits, times: float) -> Tensor:
        if not logits.shared.shape[-1]:
            return values
        return values + times * logits.shared.reshape(-1, *[1] * (values.dim() - 1))


def _logit(chance: float) -> float:
    return math.log(chance / (1 - chance)) if chance < 1 else 0.0


def _centre(spread: Tensor, share: float, power: int) -> Tensor:
    """The shift [S, 1] with which the mean over types [S, K] of sigmoid(spread + shift)^power is share^power."""

    def below(shift: Tensor) -> Tensor:
        return torch.sigmoid(spread + shift).pow(power).mean(-1, keepdim=True) < share**power

    return _bisect(below, spread.new_zeros(spread.shape[0], 1))


def _bisect(below: Callable[[Tensor], Tensor], like: Tensor) -> Tensor:
    """Where `below` turns from True to False, element by element, within ±40."""
    low, high = like - 40.0, like + 40.0
    for _ in range(80):
        middle = (low + high) / 2
        found = below(middle)
        low, high = torch.where(found, middle, low), torch.where(found, high, middle)
    return (low + high) / 2
