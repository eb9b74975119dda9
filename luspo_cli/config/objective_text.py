"""An objective in words, as an equation and in the spelling of TRL and verl, for people and for `--json`.

Words and equation are composed from the four parts and the values actually set, so they follow every override; only the
paper is looked up by name. The spellings are written from the settings in `luspo_cli.config.peers`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from luspo_cli.config.objective import NAMED_OBJECTIVES, ObjectiveConfig, resolve
from luspo_cli.config.own_objective import OWN, installed, is_own, unusable, with_installed
from luspo_cli.config.peers import trl_settings, trl_text, verl_settings, verl_text
from luspo_cli.errors import UsageError, nearest

PAPERS = {
    "grpo": "DeepSeekMath, arXiv 2402.03300, equation 3",
    "dr_grpo": "Understanding R1-Zero-Like Training, arXiv 2503.20783, section 3.2",
    "dapo": "DAPO, arXiv 2503.14476, sections 3.1 and 3.3",
    "gspo": "Group Sequence Policy Optimization, arXiv 2507.18071, equations 5 and 7",
    "luspo": "Length-Unbiased Sequence Policy Optimization, arXiv 2602.05261, section 5.1 for the clip range",
    "fspo": "Clip Your Sequences Fairly, arXiv 2509.09177; its numbers and further parts are not known to us",
    "cispo": "MiniMax-M1, arXiv 2506.13585, equations 4 and 5; ScaleRL, arXiv 2510.13786, for the cap",
    "sapo": "Soft Adaptive Policy Optimization, arXiv 2511.20347, equations 5 and 6",
    "gmpo": "Geometric-Mean Policy Optimization, arXiv 2507.20673",
    "dapo_prompt_mean": "DAPO, arXiv 2503.14476, section 3.3 as written: the token mean of each prompt's group",
    "balanced": "Balanced Aggregation, arXiv 2605.04077: its abstract and reviews; advantage and clip range are dapo's",
    "length_power": "none: gspo and luspo (arXiv 2602.05261) as one curve; delta-l after ΔL Normalization, arXiv 2509.07558",
    "dppo": "Rethinking the Trust Region in LLM RL, arXiv 2602.04879, the binary TV mask; values of its authors' script for verl",
    "dppo_kl": "Rethinking the Trust Region in LLM RL, arXiv 2602.04879, the binary KL mask; values of its authors' script",
    "vespo": "Variational Sequence-Level Soft Policy Optimization, arXiv 2602.10693, as TRL has it",
    "reinforce": "Williams 1992; the baseline of the other responses is that of RLOO, arXiv 2402.14740",
    "custom": "none: your own assembly",
}

_ADVANTAGE_WORDS = {
    "group_mean_std": "reward minus the group's mean, divided by its standard deviation",
    "group_mean": "reward minus the group's mean",
    "leave_one_out": "reward minus the mean of the group's other rewards",
    "group_mean_batch_std": "reward minus the group's mean, divided by the standard deviation over the whole batch",
    "max_rl": "reward minus the group's mean, divided by that mean; 0 where the mean is not above 0",
    OWN: "a function of one's own",
}
_RATIO_WORDS = {
    "none": "none; that of a token is reported",
    "token": "one importance ratio a token",
    "sequence": "one importance ratio a sequence, the geometric mean of its token ratios",
    "sequence-product": "one importance ratio a sequence, the product of its token ratios",
    OWN: "a function of one's own",
}
_SURROGATE_WORDS = {
    "clip": "clipped: no gradient once the ratio has left the range in the advantage's direction",
    "cispo": "log-prob weighted by the capped ratio, which carries no gradient itself; every token keeps its gradient",
    "sapo": "a sigmoid gate on the ratio instead of a clip",
    "gmpo": "geometric mean of token ratios, each clipped before the mean is taken",
    "dppo-tv": "no gradient once the token's probability has moved by more than the range in the advantage's direction",
    "dppo-kl": "no gradient once the token's binary KL divergence has left the range in the advantage's direction",
    "vespo": "log-prob weighted by a smooth function of the whole sequence's ratio, which carries no gradient itself",
    "reinforce": "log-prob times advantage: no importance ratio, nothing is cut",
    OWN: "a function of one's own",
}
_AGGREGATION_WORDS = {
    "token-mean": "mean over all tokens of the batch",
    "seq-mean-token-mean": "mean over the tokens of a sequence, then mean over sequences",
    "seq-mean-token-sum": "sum over the tokens of a sequence, then mean over sequences",
    "seq-mean-token-sum-norm": "sum over the tokens of a sequence, divided by a constant, then mean over sequences",
    "length-power": "mean over the tokens of a sequence times a power of its length, then over sequences",
    "prompt-mean": "mean over all tokens of a prompt's responses, then mean over prompts",
    "sign-balanced": "mean over the tokens of a prompt's responses with one sign of the advantage, times their share of its"
    " responses, summed over the signs, then mean over prompts",
    OWN: "a function of one's own",
}
_ADVANTAGE_EQUATIONS = {
    "group_mean_std": "A_i = (R_i − mean(R)) / (std(R) + 1e-6)",
    "group_mean": "A_i = R_i − mean(R)",
    "leave_one_out": "A_i = R_i − mean(R without R_i)",
    "group_mean_batch_std": "A_i = (R_i − mean(R)) / (std(R of all groups) + 1e-6)",
    "max_rl": "A_i = (R_i − mean(R)) / mean(R), 0 where mean(R) ≤ 0",
    OWN: "A_i = advantage(R), one's own",
}
_RATIO_EQUATIONS = {
    "token": "r_it = π(y_it) / π_old(y_it)",
    "sequence": "s_i = exp((1/|y_i|) Σ_t log(π(y_it) / π_old(y_it)))",
    "sequence-product": "ρ_i = exp(Σ_t log(π(y_it) / π_old(y_it)))",
    OWN: "q = ratio(batch), one's own",
}
_RATIO_SYMBOLS = {"token": "r_it", "sequence": "s_i", "sequence-product": "ρ_i", OWN: "q"}
_CLIP_ON_WORDS = {
    "root": "mean log-ratio times the root of the length",
    "sum": "sum of the log-ratios",
}
# By ratio and scale: how far the log of the ratio goes for a distance of 1 on the scale.
_LOG_BOUNDS = {
    ("sequence", "root"): "/√|y_i|",
    ("sequence", "sum"): "/|y_i|",
    ("sequence-product", "root"): " √|y_i|",
    ("sequence-product", "sum"): "",
}
_OWN_SUM = "Σ_i Σ_t w_it "
# The reduction before a value of each token, and before a value that is the same for all tokens of its sequence.
_SUMS = {
    OWN: (_OWN_SUM, _OWN_SUM),
    "token-mean": ("(1/M) Σ_i Σ_t ", "(1/M) Σ_i |y_i| · "),
    "seq-mean-token-mean": ("(1/N) Σ_i (1/|y_i|) Σ_t ", "(1/N) Σ_i "),
    "seq-mean-token-sum": ("(1/N) Σ_i Σ_t ", "(1/N) Σ_i |y_i| · "),
    "seq-mean-token-sum-norm": ("(1/N) Σ_i (1/L) Σ_t ", "(1/N) Σ_i (|y_i|/L) · "),
    "prompt-mean": ("(1/B) Σ_g (1/M_g) Σ_{i∈g} Σ_t ", "(1/B) Σ_g (1/M_g) Σ_{i∈g} |y_i| · "),
    "sign-balanced": (
        "(1/B) Σ_g Σ_± (N_g±/N_g) (1/M_g±) Σ_{i∈g±} Σ_t ",
        "(1/B) Σ_g Σ_± (N_g±/N_g) (1/M_g±) Σ_{i∈g±} |y_i| · ",
    ),
}


def _sums(config: ObjectiveConfig) -> tuple[str, str]:
    if config.aggregation != "length-power":
        return _SUMS[config.aggregation or ""]
    power, below = _number(config.length_exponent), _number((config.length_exponent or 0.0) - 1)
    whole = {"none": "1/N", "batch": f"1/Σ_j |y_j|^{power}", "delta-l": f"1/(L Σ_j |y_j|^{below})"}
    front = f"({whole[config.length_normalise or '']}) Σ_i "
    return f"{front}|y_i|^{below} Σ_t ", f"{front}|y_i|^{power} · "


DEFAULT_OBJECTIVES = "grpo,gspo,luspo"
"""What --objectives is where it is left out."""


_SHOWN = ("advantage", "ratio", "surrogate", "aggregation", "clip_range", "equation")


@dataclass(frozen=True, slots=True)
class ObjectiveText:
    """What `luspo objectives`, `luspo train --dry-run` and the report show of one objective."""

    name: str
    advantage: str
    ratio: str
    surrogate: str
    aggregation: str
    clip_range: str
    equation: str
    """The loss to minimise, in plain unicode, with the values filled in."""
    definitions: tuple[str, ...]
    """What the equation's symbols mean, one a line."""
    paper: str
    trl: str
    """Settings of TRL's GRPOConfig that give the same loss, or what comes nearest."""
    verl: str
    """Overrides of verl that give the same loss, or what comes nearest."""
    needs_group_ids: bool
    """Whether a loss that is not told which responses answer one prompt, such as one of verl's, cannot be this one."""

    def lines(self) -> list[tuple[str, str]]:
        """Title and text of all but the name, in the order in which every command shows them."""
        titles = ("where", *("" for _ in self.definitions[1:]))
        return [
            *((part.replace("_", " "), getattr(self, part)) for part in _SHOWN),
            *zip(titles, self.definitions, strict=False),
            ("paper", self.paper),
            ("TRL", self.trl),
            ("verl", self.verl),
        ]


def clip_form(clip_on: str | None, clip_band: str | None) -> str:
    """What a clip range is besides its two numbers: " on the sum", " balanced"; "" for a fixed one on the ratio."""
    on = "" if clip_on in (None, "mean") else f" on the {clip_on}"
    return f"{on} balanced" if clip_band == "balanced" else on


def chosen_names(names: Sequence[str] | None, *, composed: bool = False) -> list[str]:
    """Return the given names of objectives in the given order, or all built-in ones; UsageError for an unknown one.

    `custom` is one where it can be `composed` by keys. Whether there is such a file or module as a name of one's own says is seen
    where it is read.
    """
    known = (*NAMED_OBJECTIVES, *(("custom",) if composed else ()))
    for name in names or ():
        if name not in known and not is_own(name):
            known = with_installed(known)
            raise UsageError(f"Unknown objective '{name}'{nearest(name, known)}: choose from {', '.join(known)}.")
    return list(names or NAMED_OBJECTIVES)


def not_by_name(name: str) -> str | None:
    """Why a name of installed packages does not stand for what they bring, as a clause; None where it does."""
    if name in NAMED_OBJECTIVES or name == "custom":
        return f"the built-in {name} goes first: name {' or '.join(installed()[name])}"
    return unusable(name)


def listed_names(text: str) -> list[str]:
    """Return the names between the commas of --objectives; UsageError for an unknown, a repeated or no name."""
    names = [name.strip() for name in text.split(",") if name.strip()]
    if not names:
        raise UsageError(f"--objectives is empty; give names, for example {DEFAULT_OBJECTIVES}.")
    for name in chosen_names(names, composed=True):
        if names.count(name) > 1:
            raise UsageError(f"--objectives names {name} twice; name each objective once.")
    return names


def configured(name: str) -> ObjectiveConfig:
    """The objective of a name with its own values; UsageError, one sentence, where there is none or its file cannot be used."""
    try:
        return resolve(name)
    except ValueError as error:
        raise UsageError(str(error)) from None


def describe(config: ObjectiveConfig) -> ObjectiveText:
    """Return the objective in words, as an equation, with its paper and the peers' spelling."""
    return ObjectiveText(
        name=config.name,
        advantage=_ADVANTAGE_WORDS[config.advantage or ""],
        ratio=_RATIO_WORDS["none" if config.surrogate == "reinforce" else config.ratio or ""],
        surrogate=_SURROGATE_WORDS[config.surrogate or ""],
        aggregation=_AGGREGATION_WORDS[config.aggregation or ""],
        clip_range=_clip_range(config),
        equation=_equation(config),
        definitions=_definitions(config),
        paper=PAPERS.get(config.name) or f"none: one's own; {', '.join(config.own_parts)} replaced in {config.base}",
        trl=trl_text(trl_settings(config)),
        verl=verl_text(verl_settings(config)),
        needs_group_ids=config.needs_group_ids,
    )


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:g}"


def _clip_range(config: ObjectiveConfig) -> str:
    if config.surrogate == "sapo":
        positive, negative = _number(config.sapo_temperature_positive), _number(config.sapo_temperature_negative)
        return f"none; gate temperature {positive} where A > 0, {negative} elsewhere"
    if config.surrogate == "vespo":
        positive, negative = _vespo_numbers(config)
        return f"none; k, λ = {positive} where A ≥ 0, {negative} elsewhere"
    if config.surrogate == "reinforce":
        return "none"
    if not config.clips:
        return f"as the surrogate has it, with the keys of {config.base}"
    low, high = _number(config.clip_low), _number(config.clip_high)
    if config.clips_divergence:
        what = "probability" if config.surrogate == "dppo-tv" else "binary KL"
        bounded = "" if config.ratio_cap is None else f", ratio capped at {_number(config.ratio_cap)}"
        return f"{what} down {low}, up {high}{bounded}"
    if config.surrogate == "gmpo":
        return f"log ratio −{low} to {high}"
    text = f"1 − {low} to 1 + {high}"
    if config.clips_log_ratio:
        text = f"{_CLIP_ON_WORDS[config.clip_on or '']} −{low} to {high}"
    if config.surrogate == "cispo" and config.clip_low == 1:
        return f"1 + {high}, no lower bound"
    if config.clip_band == "balanced":
        text = f"{text}, balanced in each mini-batch"
    return text if config.dual_clip is None else f"{text}, dual clip {_number(config.dual_clip)}"


def _equation(config: ObjectiveConfig) -> str:
    ratio = _RATIO_SYMBOLS[config.ratio or ""]
    low, high = _number(config.clip_low), _number(config.clip_high)
    if config.surrogate == "clip":
        if config.clip_band == "balanced":
            low, high = f"{low} e^b", f"{high} e^−b"
        lower, upper = f"1−{low}", f"1+{high}"
        if config.clips_log_ratio:
            reach = _LOG_BOUNDS[config.ratio or "", config.clip_on or ""]
            lower, upper = f"exp(−{low}{reach})", f"exp({high}{reach})"
        value = f"min({ratio} A_i, clip({ratio}, {lower}, {upper}) A_i)"
        if config.dual_clip is not None:
            value = f"max({value}, {_number(config.dual_clip)} A_i if A_i < 0)"
    elif config.surrogate == "cispo":
        value = f"sg(clip({ratio}, 1−{low}, 1+{high})) A_i log π(y_it)"
    elif config.clips_divergence:
        capped = "r_it" if config.ratio_cap is None else f"min(r_it, {_number(config.ratio_cap)})"
        value = f"m_it sg({capped}) A_i log π(y_it)"
    elif config.surrogate == "vespo":
        value = "sg(φ_i) A_i log π(y_it)"
    elif config.surrogate == "reinforce":
        value = "A_i log π(y_it)"
    elif config.surrogate == "sapo":
        value = f"(4/τ_i) σ(τ_i ({ratio} − 1)) A_i"
    else:
        value = "ℓ" if config.surrogate == OWN else "g_i A_i"
    token_sum, sequence_sum = _sums(config)
    if config.surrogate == OWN:
        equation = f"L = {token_sum}{value}"
    else:
        equation = f"L = −{sequence_sum if config.one_a_sequence else token_sum}{value}"
    if config.kl_coefficient > 0:
        equation += f" + {_number(config.kl_coefficient)} · {token_sum}{config.kl_estimator}_it"
    if config.entropy_coefficient > 0:
        equation += f" − {_number(config.entropy_coefficient)} · {token_sum}H_it"
    return equation


def _vespo_numbers(config: ObjectiveConfig) -> tuple[str, str]:
    """k and λ where the advantage is not negative, and elsewhere."""
    above, below = (
        f"{_number(getattr(config, f'vespo_k_{sign}'))}, {_number(getattr(config, f'vespo_lambda_{sign}'))}"
        for sign in ("positive", "negative")
    )
    return above, below


def _mask_definition(config: ObjectiveConfig) -> tuple[str, str]:
    low, high = _number(config.clip_low), _number(config.clip_high)
    distance = "|p_it − q_it|"
    if config.surrogate == "dppo-kl":
        distance = "q_it log(q_it/p_it) + (1−q_it) log((1−q_it)/(1−p_it))"
    return (
        f"m_it = 0 if D_it > {high}, p_it > q_it, A_i > 0 or if D_it > {low}, p_it < q_it, A_i < 0, else 1",
        f"D_it = {distance}, p_it = π(y_it), q_it = π_old(y_it), sg(x) = x without gradient",
    )


def _mass(config: ObjectiveConfig) -> str:
    """What a balanced clip range adds up: |A_i| times the weight of one token."""
    power = (config.ratio == "sequence-product") - (config.aggregation == "seq-mean-token-mean")
    return "Σ|A_i|" + {-1: "/|y_i|", 0: "", 1: " |y_i|"}[power]


def _definitions(config: ObjectiveConfig) -> tuple[str, ...]:
    lines = [_ADVANTAGE_EQUATIONS[config.advantage or ""], _RATIO_EQUATIONS[config.ratio or ""]]
    if config.surrogate == "reinforce":
        lines.pop()
    elif config.surrogate == OWN:
        lines.append(
            "ℓ = surrogate(q, batch), one's own" if config.ratio == OWN else "ℓ = surrogate(ratio, batch), one's own"
        )
    elif config.surrogate == "sapo":
        positive, negative = _number(config.sapo_temperature_positive), _number(config.sapo_temperature_negative)
        lines.append(f"τ_i = {positive} if A_i > 0 else {negative}, σ(x) = 1 / (1 + exp(−x))")
    elif config.surrogate == "gmpo":
        low, high = _number(config.clip_low), _number(config.clip_high)
        lines.append(
            f"g_i = exp((1/|y_i|) Σ_t ℓ_it), ℓ_it = min(log r_it, {high}) if A_i > 0, max(log r_it, −{low}) if A_i < 0"
        )
    elif config.clip_band == "balanced":
        lines.append(
            f"b of a mini-batch: nearest 0 of those for which {_mass(config)} over the sequences cut below and over those cut"
            " above differ least (ours, experimental)"
        )
    elif config.surrogate == "cispo":
        lines.append("sg(x) = x without gradient")
    elif config.clips_divergence:
        lines.extend(_mask_definition(config))
    elif config.surrogate == "vespo":
        positive, negative = _vespo_numbers(config)
        lines.append(
            f"φ_i = ρ_i^k exp(λ (1 − ρ_i)), k, λ = {positive} if A_i ≥ 0 else {negative}, sg(x) = x without gradient"
        )
    symbols = ["|y_i| response tokens of sequence i", "N sequences of the mini-batch"]
    if config.aggregation == OWN:
        symbols = ["w_it = aggregation(batch), one's own", symbols[0]]
    elif config.aggregation == "token-mean":
        symbols = [symbols[0], "M response tokens of the mini-batch"]
    elif config.aggregation == "seq-mean-token-sum-norm":
        symbols.append("L the response limit")
    elif config.aggregation == "length-power" and config.length_normalise == "delta-l":
        symbols = [symbols[0], "L the response limit"]
    elif config.needs_group_ids:
        symbols = [symbols[0], "B groups g of responses to one prompt", "M_g response tokens of a group"]
        if config.aggregation == "sign-balanced":
            symbols = [*symbols[:2], "N_g its responses", "N_g±, M_g± responses and tokens with that sign of A_i"]
    lines.append(", ".join(symbols))
    if config.kl_coefficient > 0:
        estimators = {"k1": "ℓ", "k2": "ℓ²/2", "k3": "exp(−ℓ) − 1 + ℓ"}
        lines.append(
            f"{config.kl_estimator} = {estimators[config.kl_estimator or 'k3']}, ℓ = log(π(y_it) / π_ref(y_it))"
        )
    if config.entropy_coefficient > 0:
        lines.append("H_it entropy of the policy's next-token distribution, in nats")
    return tuple(lines)
