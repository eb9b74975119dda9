"""The [objective] section: a name fixes advantage, ratio, surrogate and aggregation, so a name means one formula.

Only what the surrogate and the aggregation read stays free under a name (a clip range, the scale that it is on, temperatures, the
exponent of the length), and the dual clip and the KL and entropy terms; any other mix must call itself `custom` and spell out
all four parts. A key that the chosen parts would not read is refused rather than ignored. The papers and sections behind
each row of `NAMED_OBJECTIVES` are in docs/objectives.md.

Standard library only: a host that brings its own torch can import this without our other dependencies.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal, get_args

from luspo_cli.config.own_objective import OWN, own_keys, unfit, with_installed
from luspo_cli.config.plain import PlainSection
from luspo_cli.errors import nearest

# `own` is the part of an objective of one's own that a function replaces.
Advantage = Literal["group_mean_std", "group_mean", "leave_one_out", "group_mean_batch_std", "max_rl", "own"]
Ratio = Literal["token", "sequence", "sequence-product", "own"]
Surrogate = Literal["clip", "cispo", "sapo", "gmpo", "dppo-tv", "dppo-kl", "vespo", "reinforce", "own"]
Aggregation = Literal[
    "token-mean", "seq-mean-token-mean", "seq-mean-token-sum", "seq-mean-token-sum-norm", "length-power", "prompt-mean",
    "sign-balanced", "own",
]  # fmt: skip
LengthNormalise = Literal["none", "batch", "delta-l"]
ClipOn = Literal["mean", "root", "sum"]
ClipBand = Literal["fixed", "balanced"]
KlEstimator = Literal["k1", "k2", "k3"]


@dataclass(frozen=True, slots=True)
class NamedObjective:
    """One row of `NAMED_OBJECTIVES`: the four parts that the name fixes, then its paper's values of the free keys."""

    advantage: Advantage
    ratio: Ratio
    surrogate: Surrogate
    aggregation: Aggregation
    clip_low: float | None = None
    clip_high: float | None = None
    sapo_temperature_positive: float | None = None
    sapo_temperature_negative: float | None = None
    clip_on: ClipOn | None = None
    """The scale of the clip range where the name fixes it."""
    length_exponent: float | None = None
    vespo_k_positive: float | None = None
    vespo_k_negative: float | None = None
    vespo_lambda_positive: float | None = None
    vespo_lambda_negative: float | None = None


NAMED_OBJECTIVES: Mapping[str, NamedObjective] = MappingProxyType(
    {
        "grpo": NamedObjective("group_mean_std", "token", "clip", "seq-mean-token-mean", 0.2, 0.2),
        "dr_grpo": NamedObjective("group_mean", "token", "clip", "seq-mean-token-sum-norm", 0.2, 0.2),
        "dapo": NamedObjective("group_mean_std", "token", "clip", "token-mean", 0.2, 0.28),
        "dapo_prompt_mean": NamedObjective("group_mean_std", "token", "clip", "prompt-mean", 0.2, 0.28),
        # The advantage and the clip range are dapo's: of the paper we know the aggregation alone (docs/objectives.md).
        "balanced": NamedObjective("group_mean_std", "token", "clip", "sign-balanced", 0.2, 0.28),
        "gspo": NamedObjective("group_mean_std", "sequence", "clip", "seq-mean-token-mean", 3e-4, 4e-4),
        "luspo": NamedObjective("group_mean_std", "sequence", "clip", "seq-mean-token-sum", 2e-3, 2.5e-3),
        # Ours: luspo at exponent 1, gspo at 0 with gspo's clip range.
        "length_power": NamedObjective(
            "group_mean_std", "sequence", "clip", "length-power", 2e-3, 2.5e-3, length_exponent=1.0
        ),
        # The root of the length is FSPO's; 0.03 is second-hand (docs/objectives.md).
        "fspo": NamedObjective(
            "group_mean_std", "sequence-product", "clip", "seq-mean-token-mean", 0.03, 0.03, clip_on="root"
        ),
        # clip_low 1.0 puts the lower bound at 0, that is, there is none.
        "cispo": NamedObjective("group_mean_std", "token", "cispo", "token-mean", 1.0, 4.0),
        "sapo": NamedObjective("group_mean_std", "token", "sapo", "seq-mean-token-mean", None, None, 1.0, 1.05),
        "gmpo": NamedObjective("group_mean_std", "token", "gmpo", "seq-mean-token-mean", 0.4, 0.4),
        "dppo": NamedObjective("group_mean", "token", "dppo-tv", "seq-mean-token-sum-norm", 0.15, 0.15),
        "dppo_kl": NamedObjective("group_mean", "token", "dppo-kl", "seq-mean-token-sum-norm", 0.05, 0.05),
        "vespo": NamedObjective(
            "group_mean_std",
            "sequence-product",
            "vespo",
            "token-mean",
            vespo_k_positive=2.0,
            vespo_k_negative=3.0,
            vespo_lambda_positive=3.0,
            vespo_lambda_negative=2.0,
        ),
        "reinforce": NamedObjective("leave_one_out", "token", "reinforce", "seq-mean-token-sum"),
    }
)

LENGTH_POWERS: Mapping[str, float] = MappingProxyType({"mean": 0.0, "root": 0.5, "sum": 1.0})
"""`clip_on` → p: the clip range is on the mean token log-ratio times |y|^p."""

_PARTS: Mapping[str, Any] = {"advantage": Advantage, "ratio": Ratio, "surrogate": Surrogate, "aggregation": Aggregation}
_CLIP_KEYS = ("clip_low", "clip_high")
_SAPO_KEYS = ("sapo_temperature_positive", "sapo_temperature_negative")
VESPO_KEYS = ("vespo_k_positive", "vespo_k_negative", "vespo_lambda_positive", "vespo_lambda_negative")
_READ_KEYS: Mapping[str, tuple[str, ...]] = {"sapo": _SAPO_KEYS, "vespo": VESPO_KEYS, "reinforce": ()}
"""Keys that a surrogate must have, other than a clip range."""
_TOKEN_RATIO_ALONE = {
    "gmpo": "clips each token before it takes the geometric mean: set ratio to 'token', or use surrogate 'clip' for a sequence"
    " ratio",
    "reinforce": "has no importance ratio, only reports it: set ratio to 'token'",
    **dict.fromkeys(("dppo-tv", "dppo-kl"), "masks single tokens: set ratio to 'token'"),
}


@dataclass(frozen=True)
class ObjectiveConfig(PlainSection):
    """What the update minimises. Keys left out are filled from `NAMED_OBJECTIVES`; a bad mix raises ValueError.

    Example:
        ObjectiveConfig("luspo", clip_high=3e-3).aggregation == "seq-mean-token-sum"
    """

    name: str = "luspo"
    """One of `NAMED_OBJECTIVES`; `custom`, which must set the four parts below; or `file.py:name` (docs/own-objective.md)."""
    advantage: Advantage | None = None
    """How one group's rewards become advantages (fixed by the name)."""
    ratio: Ratio | None = None
    """Level of the importance ratio (fixed by the name)."""
    surrogate: Surrogate | None = None
    """Form of the loss of a token (fixed by the name)."""
    aggregation: Aggregation | None = None
    """How token losses become one number (fixed by the name)."""
    clip_low: float | None = None
    """Distance of the lower clip bound from ratio 1; for gmpo, and on root or sum, from log ratio 0. None: the name's value."""
    clip_high: float | None = None
    """Distance of the upper clip bound from ratio 1; for gmpo, and on root or sum, from log ratio 0. None: the name's value."""
    clip_on: ClipOn | None = None
    """What meets the clip range: a sequence's ratio itself (mean), or, on a log scale, its mean token log-ratio times the root of
    its length (root) or their sum (sum). For surrogate clip with a ratio a sequence. None: mean; fspo: root."""
    clip_band: ClipBand | None = None
    """balanced: in each mini-batch both bounds are moved against each other until they cut equally much advantage (ours,
    experimental; one more forward pass). For surrogate clip with a ratio a sequence. None: fixed."""
    dual_clip: float | None = None
    """With a negative advantage, the ratio beyond which the loss is constant (dual-clip PPO); None: off."""
    sapo_temperature_positive: float | None = None
    """SAPO's gate temperature where the advantage is positive. None: the name's value."""
    sapo_temperature_negative: float | None = None
    """SAPO's gate temperature elsewhere. None: the name's value."""
    vespo_k_positive: float | None = None
    """VESPO's exponent of the ratio where the advantage is not negative. None: the name's value."""
    vespo_k_negative: float | None = None
    """VESPO's exponent of the ratio where the advantage is negative. None: the name's value."""
    vespo_lambda_positive: float | None = None
    """VESPO's rate of decay where the advantage is not negative. None: the name's value."""
    vespo_lambda_negative: float | None = None
    """VESPO's rate of decay where the advantage is negative. None: the name's value."""
    ratio_cap: float | None = None
    """Largest importance ratio that multiplies a token's gradient under dppo; None: no cap."""
    length_exponent: float | None = None
    """p of aggregation length-power: a sequence's mean over tokens counts |y|^p times; 0 is gspo's aggregation, 1 luspo's.
    None: the name's value."""
    length_normalise: LengthNormalise | None = None
    """Of length-power. none: |y|^p as it is; batch: |y|^p over its mean in the mini-batch, so that the weights have mean 1;
    delta-l: ΔL normalisation, whose weights of the token sums, |y|^(p-1), add up to 1 over the response limit. None: none."""
    kl_coefficient: float = 0.0
    """Weight of the KL term towards the reference model; 0: no such term and no reference model."""
    kl_estimator: KlEstimator | None = None
    """Estimator of the KL term; None: k3 where `kl_coefficient` is above 0."""
    entropy_coefficient: float = 0.0
    """Weight of the entropy bonus; 0: none."""
    base: str | None = None
    """Of an objective of one's own: the built-in one that gives the other parts. Read from its file."""
    sha256: str | None = None
    """Of an objective of one's own: of its file."""

    def __post_init__(self) -> None:
        own = self._own_parts()
        named = _named_row(self.base or self.name)
        for part, kind in _PARTS.items():
            self._fill_part(part, tuple(one for one in get_args(kind) if one != OWN), named)
        if self.ratio != "token" and (why := _TOKEN_RATIO_ALONE.get(str(self.surrogate))):
            raise ValueError(f"surrogate '{self.surrogate}' {why}")
        self._fill_clip_form(named)
        self._fill_free_keys(named)
        self._fill_length_power(named)
        self._check_extra_terms()
        if reason := unfit(self, own):
            raise ValueError(reason)
        for part in own:
            self._set(part, OWN)

    @property
    def own_parts(self) -> tuple[str, ...]:
        """The parts that functions of one's own replace."""
        return tuple(part for part in _PARTS if getattr(self, part) == OWN)

    @property
    def clips(self) -> bool:
        """Whether the surrogate reads `clip_low` and `clip_high`; one of one's own may read what its base does."""
        return self._form("surrogate") not in _READ_KEYS

    @property
    def one_a_sequence(self) -> bool:
        """Whether the loss is one number a sequence; otherwise one a token. One of one's own is taken as that of its base."""
        surrogate = self._form("surrogate")
        return surrogate == "gmpo" or (self.by_sequence and surrogate in ("clip", "sapo"))

    @property
    def pulls_whole(self) -> bool:
        """Whether a token moves its sequence's ratio whole, as one factor of a product, and the loss with it."""
        return self.one_a_sequence and self.ratio == "sequence-product"

    @property
    def needs_group_ids(self) -> bool:
        """Whether the weight of a token depends on the other responses to its prompt: who is not told them cannot compute it."""
        return self._form("aggregation") in ("prompt-mean", "sign-balanced")

    @property
    def plain_aggregation(self) -> str:
        """The aggregation without a power of the length that gives the same weights, where there is one; else its own."""
        if self.aggregation != "length-power":
            return str(self.aggregation)
        ends = {
            ("none", 0.0): "seq-mean-token-mean",
            ("batch", 0.0): "seq-mean-token-mean",
            ("none", 1.0): "seq-mean-token-sum",
            ("batch", 1.0): "token-mean",
            ("delta-l", 1.0): "seq-mean-token-sum-norm",
        }
        return ends.get((str(self.length_normalise), self.length_exponent or 0.0), "length-power")

    @property
    def length_power_sum(self) -> float | None:
        """q where the weights are divided by Σ|y|^q over the sequences of the mini-batch; None where they are not."""
        if self.aggregation != "length-power" or self.length_normalise == "none" or self.length_exponent is None:
            return None
        return self.length_exponent - (self.length_normalise == "delta-l")

    @property
    def by_sequence(self) -> bool:
        """Whether there is one importance ratio a sequence."""
        return self._form("ratio") != "token"

    @property
    def clips_log_ratio(self) -> bool:
        """Whether `clip_low` and `clip_high` are distances from log ratio 0; otherwise from ratio 1."""
        return self._form("surrogate") == "gmpo" or self.clip_on in ("root", "sum")

    @property
    def clips_divergence(self) -> bool:
        """Whether `clip_low` and `clip_high` are distances between probabilities or policies, as under dppo."""
        return self._form("surrogate") in ("dppo-tv", "dppo-kl")

    def _form(self, part: str) -> str:
        """The part, or where it is one of one's own the one that it replaces: what it reads and the level that it is on stay."""
        value = getattr(self, part)
        return str(getattr(NAMED_OBJECTIVES[self.base], part) if value == OWN and self.base else value)

    def _own_parts(self) -> tuple[str, ...]:
        """The parts to replace, set to None until the base has filled them; from the file where no base is known yet."""
        if self.name in NAMED_OBJECTIVES or self.name == "custom":
            if self.base or self.sha256:
                raise ValueError(
                    f"base and sha256 are of an objective of one's own, and {self.name} is none: remove them"
                )
            return ()
        for key, value in own_keys(self).items():
            self._set(key, value)
        own = self.own_parts
        for part in own:
            self._set(part, None)
        return own

    def _set(self, key: str, value: object) -> None:
        object.__setattr__(self, key, value)  # the one moment at which a frozen config may change: its own construction

    def _fill_part(self, part: str, choices: tuple[str, ...], named: NamedObjective | None) -> None:
        value = getattr(self, part)
        if value is not None and value not in choices:
            raise ValueError(f"{part} = {value!r} is not one of {', '.join(choices)}{nearest(str(value), choices)}")
        if named is None:
            if value is None:
                raise ValueError(f"objective 'custom' must set {part}: choose one of {', '.join(choices)}")
            return
        fixed = getattr(named, part)
        if value is not None and value != fixed:
            raise ValueError(
                f"{self.name} fixes {part} = '{fixed}' and cannot take '{value}': leave the key out, "
                "or use name 'custom' and set advantage, ratio, surrogate and aggregation"
            )
        self._set(part, fixed)

    def _fill_clip_form(self, named: NamedObjective | None) -> None:
        read, fixed = self.by_sequence and self.surrogate == "clip", named.clip_on if named else None
        if self.ratio == "sequence-product" and not read and self.surrogate != "vespo":
            raise ValueError(
                f"surrogate '{self.surrogate}' has no bound that grows with the length, as the ratio 'sequence-product' does:"
                " use surrogate 'clip', or ratio 'sequence'"
            )
        for key, kind, usual in (("clip_on", ClipOn, fixed or "mean"), ("clip_band", ClipBand, "fixed")):
            value, choices = getattr(self, key), get_args(kind)
            if value is not None and value not in choices:
                raise ValueError(f"{key} = {value!r} is not one of {', '.join(choices)}{nearest(str(value), choices)}")
            if read:
                self._set(key, value or usual)
            elif value is not None:
                raise ValueError(
                    f"{key} = '{value}' needs surrogate 'clip' and one ratio a sequence, {self.name} has surrogate"
                    f" '{self.surrogate}' and ratio '{self.ratio}': remove it, or use gspo, luspo or fspo"
                )
        if fixed and self.clip_on != fixed:
            raise ValueError(
                f"{self.name} fixes clip_on = '{fixed}' and cannot take '{self.clip_on}': leave the key out, or use luspo,"
                " gspo or custom"
            )
        if self.surrogate == "vespo" and self.ratio != "sequence-product":
            raise ValueError(
                "surrogate 'vespo' is a function of the whole sequence's ratio: set ratio to 'sequence-product'"
            )
        if self.ratio == "sequence-product" and self.clip_on == "mean":
            raise ValueError("ratio 'sequence-product' is clipped on the log scale: set clip_on to 'root' or 'sum'")

    def _fill_free_keys(self, named: NamedObjective | None) -> None:
        read = _READ_KEYS.get(str(self.surrogate), _CLIP_KEYS)
        for key in (*_CLIP_KEYS, *_SAPO_KEYS, *VESPO_KEYS):
            if key not in read and getattr(self, key) is not None:
                reads = f"it reads {' and '.join(read)}" if read else "it reads none"
                raise ValueError(f"surrogate '{self.surrogate}' does not read {key}: remove it, {reads}")
        for key in read:
            if getattr(self, key) is None:
                if named is None:
                    raise ValueError(f"objective 'custom' with surrogate '{self.surrogate}' must set {key}")
                self._set(key, getattr(named, key))
            if not (math.isfinite(value := getattr(self, key)) and value > 0):
                raise ValueError(f"{key} = {value} must be a positive number")
        on_ratio = self.clips and not self.clips_log_ratio and not self.clips_divergence
        if on_ratio and self.clip_low is not None and self.clip_low > 1:
            raise ValueError(
                f"clip_low = {self.clip_low} puts the lower bound below 0, where no ratio is: use at most 1"
            )
        if self.dual_clip is not None:
            if self.surrogate != "clip":
                raise ValueError(
                    f"surrogate '{self.surrogate}' does not read dual_clip: remove it, only 'clip' reads it"
                )
            if not (math.isfinite(self.dual_clip) and self.dual_clip > 1):
                raise ValueError(f"dual_clip = {self.dual_clip} must be a ratio above 1, for example 3.0")
        if self.ratio_cap is not None:
            if not self.clips_divergence:
                raise ValueError(f"surrogate '{self.surrogate}' does not read ratio_cap: remove it, only dppo reads it")
            if not (math.isfinite(self.ratio_cap) and self.ratio_cap > 1):
                raise ValueError(f"ratio_cap = {self.ratio_cap} must be a ratio above 1, for example 20.0")

    def _fill_length_power(self, named: NamedObjective | None) -> None:
        choices = get_args(LengthNormalise)
        if self.length_normalise is not None and self.length_normalise not in choices:
            raise ValueError(f"length_normalise = {self.length_normalise!r} is not one of {', '.join(choices)}")
        if self.aggregation != "length-power":
            for key in ("length_exponent", "length_normalise"):
                if getattr(self, key) is not None:
                    raise ValueError(
                        f"aggregation '{self.aggregation}' does not read {key}: remove it, or use length_power"
                    )
            return
        if self.length_exponent is None:
            if named is None:
                raise ValueError("objective 'custom' with aggregation 'length-power' must set length_exponent")
            self._set("length_exponent", named.length_exponent)
        if not math.isfinite(self.length_exponent or 0.0):
            raise ValueError(f"length_exponent = {self.length_exponent} must be a finite number")
        if self.length_normalise is None:
            self._set("length_normalise", "none")

    def _check_extra_terms(self) -> None:
        for key in ("kl_coefficient", "entropy_coefficient"):
            value = getattr(self, key)
            if not (math.isfinite(value) and value >= 0):
                raise ValueError(f"{key} = {value} must be 0 (off) or a positive number")
        estimators = get_args(KlEstimator)
        if self.kl_estimator is not None and self.kl_estimator not in estimators:
            raise ValueError(f"kl_estimator = {self.kl_estimator!r} is not one of {', '.join(estimators)}")
        if self.kl_coefficient == 0 and self.kl_estimator is not None:
            raise ValueError(
                "kl_estimator is not read while kl_coefficient is 0: set kl_coefficient above 0, or remove it"
            )
        if self.kl_coefficient > 0 and self.kl_estimator is None:
            self._set("kl_estimator", "k3")


def resolve(name: str, **overrides: Any) -> ObjectiveConfig:
    """Return the configuration of `name` with every value that it reads filled in; ValueError for a bad name or mix."""
    return ObjectiveConfig(name, **overrides)


def _named_row(name: str) -> NamedObjective | None:
    if name == "custom":
        return None
    if name not in NAMED_OBJECTIVES:
        known = with_installed((*NAMED_OBJECTIVES, "custom"))
        raise ValueError(f"unknown objective '{name}'{nearest(name, known)}: choose one of {', '.join(known)}")
    return NAMED_OBJECTIVES[name]
