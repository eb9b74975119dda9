"""Every key of `metrics.jsonl`, its unit and its meaning: one name per number, stable over versions.

The names follow `<what>/<which>`. A number that a step does not have (the mean length of correct rollouts where none
was correct, an evaluation in a step without one) is null or left out, never 0. docs/run-folder.md shows this table and
a test keeps the two equal.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import NamedTuple


class Metric(NamedTuple):
    """What one key of `metrics.jsonl` holds."""

    unit: str
    """A unit of measure; `1` for a plain ratio or fraction."""
    meaning: str
    """One sentence."""


BY_LENGTH = "by_length"
"""The one key of metrics.jsonl that holds no number: lists over bins of lengths (docs/run-folder.md)."""

METRICS: Mapping[str, Metric] = MappingProxyType(
    {
        "step": Metric("steps", "Number of this step, counted from 1."),
        "tokens/total": Metric("tokens", "Response tokens sampled since the run began, this step included."),
        "response_length/mean": Metric("tokens", "Mean length of the step's rollouts, end-of-sequence token included."),
        "response_length/p50": Metric("tokens", "Median length of the step's rollouts."),
        "response_length/p90": Metric("tokens", "Length that 90 % of the step's rollouts do not exceed."),
        "response_length/max": Metric("tokens", "Longest rollout of the step."),
        "response_length/correct": Metric(
            "tokens", "Mean length of the correct rollouts; null where none was correct."
        ),
        "response_length/incorrect": Metric(
            "tokens", "Mean length of the other rollouts; null where all were correct."
        ),
        "response/truncated_fraction": Metric("1", "Share of rollouts that the response limit cut."),
        "reward/total/mean": Metric("1", "Mean reward: the weighted sum of the terms below."),
        "reward/accuracy/mean": Metric("1", "Share of rollouts with a correct answer: accuracy on the training batch."),
        "reward/format/mean": Metric("1", "Mean format reward, unweighted."),
        "reward/overlong/mean": Metric("1", "Mean overlong penalty, unweighted, from -1 to 0."),
        "reward/kimi_length/mean": Metric(
            "1",
            "Mean of Kimi k1.5's length reward, unweighted, from -0.5 to 0.5; this and the next ones only where asked for.",
        ),
        "reward/lazy_length/mean": Metric("1", "Mean lazy length penalty, unweighted, from -0.5 to 0.5."),
        "reward/cosine_length/mean": Metric("1", "Mean cosine reward, unweighted."),
        "reward/gr3/mean": Metric("1", "Mean factor of GR3, from 0 to 1."),
        "reward/no_answer_fraction": Metric("1", "Share of rollouts in which no final answer was found."),
        "reward/verification_timeouts": Metric(
            "rollouts", "Rollouts whose check ran past its time limit; scored wrong."
        ),
        "reward/verification_crashes": Metric("rollouts", "Rollouts whose check ended its worker; scored wrong."),
        "reward/read_from/own_mark": Metric(
            "rollouts", "Rollouts whose answer was read in the mark that the prompt asks for, other than a box."
        ),
        "reward/read_from/box": Metric("rollouts", "Rollouts whose answer was read in a box."),
        "reward/read_from/other_mark": Metric("rollouts", "Rollouts whose answer was read in another explicit mark."),
        "reward/read_from/phrase": Metric("rollouts", 'Rollouts whose answer was read in "the answer is ...".'),
        "reward/decided_by/math-verify": Metric("rollouts", "Rollouts that math-verify decided, right or wrong."),
        "group/all_correct_fraction": Metric("1", "Share of groups in which every rollout was correct."),
        "group/all_wrong_fraction": Metric("1", "Share of groups in which no rollout was correct."),
        "group/mixed_fraction": Metric("1", "Share of groups with correct and incorrect rollouts."),
        "group/sampled": Metric("groups", "Groups sampled in all rounds of the step; only with dynamic sampling."),
        "group/set_aside": Metric(
            "groups", "Sampled groups that are all right or all wrong; only with dynamic sampling."
        ),
        "group/surplus": Metric(
            "groups", "Sampled mixed groups beyond a full batch, not trained; only with dynamic sampling."
        ),
        "group/rounds": Metric("rounds", "Sampling rounds of the step; only with dynamic sampling."),
        "objective/loss": Metric("1", "Loss that was minimised, mean over the step's updates."),
        "objective/policy_term": Metric(
            "1", "Policy term of the loss, where the loss has further terms or they are watched."
        ),
        "objective/kl_term": Metric("1", "KL term of the loss before its coefficient; only with a KL term."),
        "objective/entropy_term": Metric("1", "Entropy term before its coefficient; only with an entropy term."),
        "objective/clip_low_fraction": Metric(
            "1",
            "Share of ratios under 1 - clip_low with an advantage < 0 (cispo: with any; gmpo, and clip_on root"
            " or sum: under -clip_low on the log scale), mean over the step's mini-batches of each one's share.",
        ),
        "objective/clip_high_fraction": Metric(
            "1",
            "Share of ratios over 1 + clip_high with an advantage > 0 (cispo: with any; gmpo, and clip_on root"
            " or sum: over clip_high on the log scale), mean over the step's mini-batches of each one's share.",
        ),
        "objective/balanced_clip_low": Metric(
            "1", "Lower clip distance in effect, mean over the step's updates; only with clip_band balanced."
        ),
        "objective/balanced_clip_high": Metric("1", "Upper clip distance in effect, likewise."),
        "objective/dual_clip_fraction": Metric(
            "1", "Share of ratios at the dual clip, likewise; only with a dual clip."
        ),
        "ratio/mean": Metric(
            "1",
            "Mean importance ratio, of tokens or sequences as the objective takes it: mean over the step's mini-batches of each"
            " one's.",
        ),
        "ratio/min": Metric("1", "Smallest importance ratio of the step."),
        "ratio/max": Metric("1", "Largest importance ratio of the step."),
        "ratio/noise_floor": Metric(
            "1", "Mean absolute log sequence ratio between two computations with the same weights, batched differently."
        ),
        "sampler/logprob_difference_mean": Metric(
            "nats",
            "Mean absolute difference of a token's log-prob between the sampler and the policy before the update,"
            " over the rows that are trained; where a step trains none, over those of the noise floor.",
        ),
        "sampler/logprob_difference_max": Metric("nats", "The largest of these differences."),
        "sampler/effective_sample_size": Metric(
            "1",
            "Share (sum w)^2 / (n sum w^2) of the n trained rollouts, w the probability under the policy over the sampler's.",
        ),
        "sampler/capped_fraction": Metric(
            "1", "Share of the correction's weights at their cap; only with update.sampler_correction."
        ),
        "policy/entropy": Metric("nats", "Mean entropy of the policy's next-token distribution over response tokens."),
        "policy/kl_old": Metric(
            "nats",
            "Estimated KL divergence per response token from the policy before the step's first update, or with rollout.lag from"
            " the one that sampled.",
        ),
        "policy/kl_ref": Metric(
            "nats", "Estimated KL divergence per response token to the reference; only with a KL term."
        ),
        "router/load_max_over_mean": Metric(
            "1",
            "Load of the busiest expert over the mean load, mean over layers, over the trained response tokens; 1 where all is"
            " even. This and the next ones only in models of experts.",
        ),
        "router/load_entropy": Metric(
            "1", "Entropy of the experts' loads over that of even loads, mean over layers: 1 where all is even."
        ),
        "router/aux_loss": Metric(
            "1", "Load-balancing loss before its coefficient; only with update.router_aux_coefficient."
        ),
        "router/changed_fraction": Metric(
            "1",
            "Share of response tokens whose log-prob is read behind other experts, in one layer at least, than the old one; of"
            " the mini-batches after the first, as the next ones.",
        ),
        "router/changed_choice_fraction": Metric(
            "1", "Share of these tokens' single choices of an expert that changed."
        ),
        "router/sampler_changed_fraction": Metric(
            "1",
            "The same share of tokens between the sampler and the policy before the update; only with update.router_replay"
            " rollout.",
        ),
        "router/token_log_ratio/changed": Metric(
            "1", "Root mean square of log π − log π_old over the tokens whose experts changed."
        ),
        "router/token_log_ratio/unchanged": Metric("1", "The same over the tokens whose experts did not."),
        "router/sequence_log_ratio/many": Metric(
            "1",
            "Root mean square of the mean token log-ratio over responses above the step's median share of changed tokens.",
        ),
        "router/sequence_log_ratio/few": Metric("1", "The same over the other responses."),
        "update/grad_norm": Metric("1", "Gradient norm before clipping, mean over the step's updates."),
        "update/clipped_gradient": Metric("1", "Share of the step's updates whose gradient norm exceeded the limit."),
        "update/learning_rate": Metric("1", "Learning rate of the step's last update."),
        "update/rows_trained": Metric("rollouts", "Rollouts that took part in a backward pass."),
        "update/rows_skipped": Metric("rollouts", "Rollouts set aside because their advantage was zero."),
        "update/rows_masked": Metric(
            "rollouts", "Rollouts of the batch left out because the limit cut them; only with reward.truncated mask."
        ),
        "update/lag": Metric(
            "steps", "How many steps ago the trained batch was sampled; null while none is due. Only with rollout.lag."
        ),
        "update/skipped_steps": Metric("updates", "Updates left out because the gradient was not finite."),
        "time/rollout": Metric("s", "Seconds spent sampling; of several processes the slowest one's."),
        "time/prompts": Metric(
            "s",
            "Of these, seconds spent on making prompts: decoding images, and the passes of a vision tower that is frozen.",
        ),
        "time/reward": Metric("s", "Seconds spent scoring after sampling; of several processes the slowest one's."),
        "time/reward_while_sampling": Metric(
            "s", "Of time/rollout, seconds in which workers scored finished responses; only with reward.while_sampling."
        ),
        "time/logprobs": Metric("s", "Seconds spent on old log-probs."),
        "time/update": Metric("s", "Seconds spent on forward, backward and optimiser."),
        "time/optimizer": Metric("s", "Of these, seconds spent on clipping the gradient and moving the weights."),
        "time/diagnostics": Metric(
            "s", "Seconds spent on the numbers of rows, lengths and gradients below, those within time/update included."
        ),
        "time/weights": Metric("s", "Seconds spent on bringing the policy's weights into the sampler."),
        "time/evaluation": Metric(
            "s", "Seconds of the held-out evaluation, blind control included, in the steps that evaluate."
        ),
        "time/total": Metric("s", "Seconds of the step, its evaluation included, without its checkpoint."),
        "length_pressure/grpo": Metric(
            "tokens", "Advantage-weighted length deviation before clipping, weighted as GRPO weights it; a diagnostic."
        ),
        "length_pressure/gspo": Metric("tokens", "The same with the weights of GSPO."),
        "length_pressure/luspo": Metric("tokens", "The same with the weights of LUSPO."),
        "expected_length_pressure/run": Metric(
            "tokens",
            "Covariance of length and kept advantage times weight, over the mean |advantage times weight|: the run's own.",
        ),
        "expected_length_pressure/clip": Metric(
            "tokens", "The part of it that the clip makes: less the same with nothing cut."
        ),
        "expected_length_pressure/grpo": Metric(
            "tokens", "The same had the batch's log-ratios met grpo with its paper's clip range."
        ),
        "expected_length_pressure/dr_grpo": Metric("tokens", "The same for dr_grpo."),
        "expected_length_pressure/dapo": Metric("tokens", "The same for dapo."),
        "expected_length_pressure/gspo": Metric("tokens", "The same for gspo."),
        "expected_length_pressure/luspo": Metric("tokens", "The same for luspo."),
        "expected_length_pressure/fspo": Metric("tokens", "The same for fspo."),
        "expected_length_pressure/cispo": Metric("tokens", "The same for cispo."),
        "expected_length_pressure/sapo": Metric("tokens", "The same for sapo."),
        "expected_length_pressure/gmpo": Metric("tokens", "The same for gmpo."),
        "expected_length_pressure/dapo_prompt_mean": Metric("tokens", "The same for dapo_prompt_mean."),
        "expected_length_pressure/balanced": Metric("tokens", "The same for the objective balanced."),
        "expected_length_pressure/length_power": Metric("tokens", "The same for length_power, at exponent 1."),
        "expected_length_pressure/dppo": Metric("tokens", "The same for dppo."),
        "expected_length_pressure/dppo_kl": Metric("tokens", "The same for dppo_kl."),
        "expected_length_pressure/vespo": Metric(
            "tokens", "The same for vespo; that its ratio damps or lifts a whole response is left out."
        ),
        "expected_length_pressure/reinforce": Metric("tokens", "The same for reinforce, which cuts nothing."),
        "gradient_share/right": Metric(
            "1",
            "Gradient norm of right responses over that of right plus that of wrong, estimated at the logits; mean over updates.",
        ),
        "gradient_share/wrong": Metric("1", "The same of wrong responses."),
        "gradient_share/short": Metric(
            "1", "The same of responses up to the median length, over that of short and long."
        ),
        "gradient_share/long": Metric("1", "The same of longer responses."),
        "exact_gradient_share/right": Metric(
            "1", "Not an estimate, but of the weights' gradient; only in steps of update.exact_gradient_shares_every."
        ),
        "exact_gradient_share/wrong": Metric("1", "The same of wrong responses."),
        "exact_gradient_share/short": Metric("1", "The same of short responses."),
        "exact_gradient_share/long": Metric("1", "The same of long responses."),
        "evaluation/accuracy": Metric("1", "Accuracy on held-out problems, in the steps that evaluate."),
        "evaluation/majority_accuracy": Metric(
            "1", "Share of held-out problems whose most frequent answer is right (maj@k); only with several samples."
        ),
        "evaluation/blind_accuracy": Metric(
            "1", "Accuracy on the same problems and draws with other images; only with evaluation.blind."
        ),
        "evaluation/response_length/mean": Metric("tokens", "Mean response length on held-out problems."),
        "evaluation/truncated_fraction": Metric("1", "Share of held-out responses that the response limit cut."),
        "evaluation/entropy": Metric(
            "nats",
            "Mean entropy of the policy's next-token distribution over the parent's held-out responses; only in forks.",
        ),
        "evaluation/kl_parent": Metric(
            "nats", "Estimated KL divergence per token of the policy from its parent, over the same; only in forks."
        ),
        "evaluation/reweighted_length": Metric(
            "tokens",
            "Mean response length from the parent's held-out responses, weighted by their probability under the policy over that"
            " under the parent; only in forks.",
        ),
        "evaluation/reweighted_accuracy": Metric("1", "Accuracy from the same responses and weights; only in forks."),
        "evaluation/reweighted_sample_size": Metric(
            "1", "Share (sum w)^2 / (n sum w^2) of these n responses that the weights w leave; only in forks."
        ),
        "evaluation/problems": Metric("problems", "Held-out problems that were evaluated."),
    }
)


_OF_FUNCTION = re.compile(r"(?P<held_out>evaluation/)?reward/(?P<name>[^/]+)/(?:(?P<part>.+)/)?(?P<which>mean|failed)")


def metric_of(name: str) -> Metric | None:
    """What the key `name` holds: of the table, or of a reward function of the user's own; None for any other name."""
    found = METRICS.get(name)
    if found is not None or not (of_function := _OF_FUNCTION.fullmatch(name)):
        return found
    function, part, where = (
        of_function["name"],
        of_function["part"],
        of_function["held_out"] and " on held-out problems",
    )
    if of_function["which"] == "failed":
        return (
            None if part else Metric("rollouts", f"Calls of the reward function {function} that failed{where or ''}.")
        )
    what = f"part {part} of the reward function {function}" if part else f"score of the reward function {function}"
    return Metric("1", f"Mean {what}, unweighted{where or ''}.")


def unknown_metrics(names: Iterable[str]) -> list[str]:
    """Return those of `names` that are no metric, sorted: what a writer must refuse."""
    return sorted(name for name in set(names) if metric_of(name) is None)
