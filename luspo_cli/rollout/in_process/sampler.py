"""The in-process sampler: one decode loop on the policy's own architecture, for machines without vLLM.

Three decisions make it fast on a CPU. A group's prompt is computed once and its cache row copied. Finished rows cost nothing
for long: their places go to waiting groups, and otherwise they are cut out of the batch. The vocabulary head runs on the last
position only. The draws of a row come from its own uniform numbers (token_choice.py), so none of this changes what is sampled
beyond the last bits of the logits.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from luspo_cli.policy.images import batch_images, hidden_states, rotary_positions
from luspo_cli.policy.logprobs import head_logits
from luspo_cli.policy.routing import read_routers
from luspo_cli.policy.supported import image_token_ids
from luspo_cli.records import Prompt, Rollout, StopReason
from luspo_cli.rollout.in_process.cache import KeyValueCache, PromptCache
from luspo_cli.rollout.in_process.decode_step import DecodeStep
from luspo_cli.rollout.in_process.draw import choose_tokens
from luspo_cli.rollout.in_process.experts_met import ExpertsMet
from luspo_cli.rollout.in_process.packed import copy_weights, release_weights
from luspo_cli.rollout.sampler import OnFinished, SamplingOptions

PREFILL_TOKENS = 8192
DROPPED_ROWS = 256


class InProcessSampler:
    """Samples with a causal model whose attention is `policy.attention` (right-padded prefill, masked decode).

    `model` is a `...ForCausalLM` with parts `model.model` (backbone) and `model.lm_head`; each call reads its weights anew.
    """

    def __init__(
        self, model: Any, tokenizer: Any, end_tokens: Sequence[int], max_rows: int, graph: bool = False
    ) -> None:
        """`max_rows`: responses in flight. `graph`: decode steps as CUDA graphs (decode_graph.py)."""
        self.model = model
        self.tokenizer = tokenizer
        self.end_tokens = torch.tensor(sorted(end_tokens), dtype=torch.long)
        self.max_rows = max_rows
        self.step = DecodeStep(model, graph=graph)

    def load_weights(self, policy: nn.Module) -> None:
        """Copy the policy's weights into the sampler's own model; nothing to do where they are the same object."""
        if policy is self.model:
            return
        copy_weights(policy, self.model)

    def release_weights(self, policy: nn.Module) -> None:
        """Free the sampler's own weights until the next `load_weights`; nothing to do where they are the policy's."""
        if policy is not self.model:
            release_weights(policy, self.model)

    @torch.inference_mode()
    def sample_groups(
        self,
        prompts: Sequence[Prompt],
        options: SamplingOptions,
        on_progress: Callable[[int], None] | None = None,
        on_finished: OnFinished | None = None,
    ) -> list[list[Rollout]]:
        if not prompts:
            return []

        def hand_over(rows: Sequence[int]) -> None:
            for row, rollout in zip(rows, batch.rollouts(rows, self.tokenizer), strict=True):
                done[row] = rollout
                if on_finished:
                    on_finished(row, rollout)

        done: dict[int, Rollout] = {}
        self.step.begin()
        modes = [(module, module.training) for module in self.model.modules()]
        self.model.eval()  # a module that recomputes its activations would write no cache
        try:
            with read_routers(self.model) if options.with_experts else nullcontext() as chosen:
                batch = _DecodeBatch(self.step, prompts, options, self.end_tokens, self.max_rows)
                batch.met = ExpertsMet(chosen, len(batch.tokens)) if chosen is not None else None
                batch.run(on_progress, hand_over if on_finished else None)
        finally:
            for module, training in modes:
                module.training = training
        total, size = len(prompts) * options.group_size, options.group_size
        if not on_finished:
            hand_over(range(total))
        return [[done[row] for row in range(first, first + size)] for first in range(0, total, size)]


class _DecodeBatch:
    """The state of one call: waiting groups, live rows and finished responses. `row` numbers are prompt * group_size + i."""

    def __init__(
        self, step: DecodeStep, prompts: Sequence[Prompt], options: SamplingOptions, end_tokens: Tensor, max_rows: int
    ) -> None:
        self.step, self.prompts, self.options = step, prompts, options
        self.model = model = step.model
        self.device = next(model.parameters()).device
        self.end_tokens = end_tokens.to(self.device)
        self.never_drawn = torch.tensor(image_token_ids(model.config), dtype=torch.long, device=self.device)
        self.max_groups = max(1, max_rows // options.group_size)
        total = len(prompts) * options.group_size
        # Tables of all rows end to end, read and written at `place`; a row has one column more than tokens, for what is drawn
        # once it is finished.
        self.columns = options.max_response_tokens + 1
        self.uniform = nn.functional.pad(uniform_numbers(options, total), (0, 1)).to(self.device).view(-1)
        self.met: ExpertsMet | None = None
        """Where the experts of each token are asked for."""
        self.begun: list[Prompt] = []
        """The prompts that were computed, without their images."""
        self.next: Prompt | None = None
        """The first of those that wait, where it was made and found no room."""
        self.cache = KeyValueCache(step.block)
        self.row = torch.zeros(0, dtype=torch.long, device=self.device)  # [R] row number of each live row
        self.place = self.limit = (
            self.row
        )  # [R] where the next token goes in the tables, and where the row's last column is
        self.position = torch.zeros(0, dtype=torch.long, device=self.device)  # [R] position of the next token
        self.live = torch.zeros(0, dtype=torch.bool, device=self.device)  # [R] false: finished, not yet cut out
        self.logits = torch.zeros(0)  # [R, V]
        self.goes_on = torch.zeros(0, dtype=torch.bool)  # [V] false: a token that ends a response
        self.tokens = torch.zeros(total * self.columns, dtype=torch.long, device=self.device)
        self.token_logprobs = torch.zeros(total * self.columns, device=self.device)
        self.lengths = torch.zeros(total, dtype=torch.long, device=self.device)

    def run(
        self, on_progress: Callable[[int], None] | None, on_rows: Callable[[Sequence[int]], None] | None = None
    ) -> None:
        """Decode until every row is finished; `on_progress` hears how many are, `on_rows` which ones just ended.

        A finished row goes on being decoded, without its tokens being read, until it is cut out together with others.
        `finished_here` counts such rows among the live ones, so that each is added to `finished` once.
        """
        total, finished, finished_here = len(self.lengths), 0, 0
        self._admit()
        while finished < total:
            chosen = self._choose()
            gone = len(chosen) - int(self.live.sum())
            if gone > finished_here:
                finished, finished_here = finished + gone - finished_here, gone
                if on_rows:
                    on_rows(self._note_lengths())
                if on_progress:
                    on_progress(finished)
                # Cutting rows out copies the cache: let an eighth of them finish first, unless groups wait for the places.
                if gone * 8 >= len(chosen) or len(self.begun) < len(self.prompts):
                    rows = self._cut(gone)
                    chosen, finished_here = chosen[rows], 0
            if len(self.row):
                self._decode(chosen)
            self._admit()

    def rollouts(self, rows: Sequence[int], tokenizer: Any) -> list[Rollout]:
        """Those of finished rows."""
        chosen = torch.tensor(rows, device=self.device)
        lengths = self.lengths[chosen].tolist()
        tokens, logprobs = (table.view(-1, self.columns)[chosen].cpu() for table in (self.tokens, self.token_logprobs))
        responses = [own[:length].tolist() for own, length in zip(tokens, lengths, strict=True)]
        texts = tokenizer.batch_decode(responses, skip_special_tokens=True)
        ends = set(self.end_tokens.tolist())
        found = []
        for row, own, text, response in zip(rows, logprobs, texts, responses, strict=True):
            prompt = self.begun[row // self.options.group_size]
            found.append(
                Rollout(
                    problem_id=prompt.problem_id,
                    prompt_tokens=prompt.tokens,
                    response_tokens=tuple(response),
                    response=text,
                    stop_reason=StopReason.END if response[-1] in ends else StopReason.LENGTH,
                    rollout_logprobs=tuple(own[: len(response)].tolist()),
                    thought_open=prompt.thought_open,
                    experts=self._experts(row, len(response)),
                )
            )
        return found

    def _experts(self, row: int, length: int) -> bytes:
        """The experts that the tokens of a finished row met; empty where they were not asked for."""
        if self.met is None:
            return b""
        return self.met.of_row(row // self.options.group_size, row * self.columns, length)

    def _note_lengths(self) -> list[int]:
        """Take down the lengths of the rows that have ended since the last call, which are returned in order."""
        ended = ~self.live & (self.lengths[self.row] == 0)
        rows = self.row[ended]
        self.lengths[rows] = self.place[ended] - rows * self.columns
        return sorted(rows.tolist())

    def _choose(self) -> Tensor:
        """Draw the next token [R] of each row, and note which rows it finishes."""
        options = self.options
        drawable = self.logits
        if len(self.never_drawn):
            drawable = drawable.index_fill(1, self.never_drawn, -torch.inf)
        tokens, logprobs = choose_tokens(
            drawable,
            self.uniform.index_select(0, self.place),
            temperature=options.temperature,
            top_p=options.top_p,
            top_k=options.top_k,
        )
        if len(self.never_drawn):
            scaled = self.logits.float() / (options.temperature or 1.0)
            logprobs = scaled.gather(-1, tokens[:, None])[:, 0] - torch.logsumexp(scaled, -1)
        self.tokens.index_copy_(0, self.place, tokens)
        self.token_logprobs.index_copy_(0, self.place, logprobs)
        self.place += self.live
        self.live &= self.goes_on.index_select(0, tokens) & (self.place < self.limit)
        return tokens

    def _cut(self, gone: int) -> Tensor:
        """Cut out the `gone` rows that are finished, live rows from the end in their places; the rows [n] that are left."""
        self._note_lengths()
        done = ~self.live
        left = len(done) - gone
        rows = torch.arange(len(done), device=self.device)
        rows[:left][done[:left]] = rows[left:][~done[left:]]
        rows = rows[:left]
        self.cache.keep(rows)
        self.row, self.place, self.limit = self.row[rows], self.place[rows], self.limit[rows]
        self.position, self.live = self.position[rows], self.live[rows]
        self.logits = self.logits[rows]
        return rows

    def _decode(self, tokens: Tensor) -> None:
        self.logits = self.step.next(tokens, self.position, self.cache)
        self.position += 1
        if self.met:
            self.met.add_step(self.place - 1)

    def _admit(self) -> None:
        """Prefill waiting groups while there is room for whole groups.

        A prompt is asked for here, once, and its images are let go after its prefill: `prompts` may make each one when asked.
        """
        size = self.options.group_size
        while len(self.begun) < len(self.prompts) and (room := self.max_groups - -(-len(self.row) // size)) > 0:
            prompts: list[Prompt] = []
            longest = 0
            for place in range(len(self.begun), min(len(self.begun) + room, len(self.prompts))):
                prompt = self.next or self.prompts[place]
                longest = max(longest, len(prompt.tokens))
                if prompts and longest * (len(prompts) + 1) > PREFILL_TOKENS:
                    self.next = prompt
                    break
                prompts.append(prompt)
                self.next = None
            self._prefill(prompts)

    def _prefill(self, prompts: list[Prompt]) -> None:
        size = self.options.group_size
        lengths = [len(prompt.tokens) for prompt in prompts]
        ids = torch.zeros(len(prompts), max(lengths), dtype=torch.long, device=self.device)
        for i, prompt in enumerate(prompts):
            ids[i, : lengths[i]] = torch.tensor(prompt.tokens, device=self.device)
        images = batch_images([prompt.image_inputs for prompt in prompts], ids.shape[1], self.device)
        positions = rotary_positions(self.model, ids, images)
        computed = PromptCache()
        hidden = hidden_states(self.model, ids, positions, images, past_key_values=computed, use_cache=True)
        if self.met:
            self.met.add_prompts(lengths)
        last = hidden[torch.arange(len(prompts)), torch.tensor(lengths) - 1]  # [N, width]
        logits = head_logits(self.model, last).repeat_interleave(size, 0)
        self.cache.add(computed, lengths, size)
        first = len(self.begun) * size
        rows = torch.arange(first, first + len(prompts) * size, device=self.device)
        self.begun += [prompt.without_images() for prompt in prompts]
        # An image takes fewer positions than tokens: the response begins after the largest one, not at the length.
        after = lengths if images is None else [int(positions[:, i, :n].max()) + 1 for i, n in enumerate(lengths)]
        start = torch.tensor(after, device=self.device).repeat_interleave(size)
        self.row = torch.cat([self.row, rows])
        self.place = torch.cat([self.place, rows * self.columns])
        self.limit = torch.cat([self.limit, rows * self.columns + self.options.max_response_tokens])
        self.live = torch.cat([self.live, torch.ones_like(rows, dtype=torch.bool)])
        self.position = torch.cat([self.position, start])
        self.logits = torch.cat([self.logits, logits]) if self.logits.numel() else logits
        if not len(self.goes_on):
            self.goes_on = torch.ones(logits.shape[1], dtype=torch.bool, device=self.device)
            self.goes_on[self.end_tokens[self.end_tokens < logits.shape[1]]] = False


def uniform_numbers(options: SamplingOptions, rows: int) -> Tensor:
    """The numbers [rows, T] that draw these rows, by their places in the whole batch: those of earlier rows are dropped."""
    generator = torch.Generator().manual_seed(options.seed)
    for begin in range(0, options.first_row, DROPPED_ROWS):  # in parts: there may be any number of them
        earlier = min(DROPPED_ROWS, options.first_row - begin)
        torch.rand(earlier, options.max_response_tokens, generator=generator)
    return torch.rand(rows, options.max_response_tokens, generator=generator)
