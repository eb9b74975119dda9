"""vLLM servers on other devices or machines, through vLLM's own routes: tokens in, tokens out, weights by its transfer protocol.

A server is started by the user, next to an installed luspo (docs/engine.md):

    VLLM_SERVER_DEV_MODE=1 vllm serve MODEL --weight-transfer-config '{"backend": "luspo"}' --enable-scale-out

`/inference/v1/generate` takes token ids and vLLM's own sampling parameters, so no default of the server's model enters.
A prompt's images are sent once for its group, with a request of one token that leaves them and the prompt's keys and values with
the server; the rollouts give their names (`images`), and the pixels again only where the server kept none.
A push pauses the server (which ends what a killed run left behind and empties the cache), streams the weights to its workers
(`weight_stream`) and gives them a version of their own. One pass over the weights serves all servers: getting a sharded weight is
an exchange between the processes of a run, which each of them makes as often as the others and in the same order. Every answer
names the version that it was drawn with: a server that was restarted, or that another run pushed to, is found out at its first
answer instead of training on other weights' samples.
Where processes of a run share a server, one of them pushes. All get the version from the first process of the run, and only when
all have come to the push, so that no draw is under way; none goes on before every push is through, or has failed on all of them.
"""

from __future__ import annotations

import re
import secrets
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Literal

import httpx
import torch

from luspo_cli.errors import RunError, UsageError
from luspo_cli.processes.ranks import ALONE, Ranks
from luspo_cli.records import Prompt, Rollout
from luspo_cli.rollout.sampler import OnFinished, SamplingOptions
from luspo_cli.rollout.vllm.handshake import PROTOCOL, shape_of
from luspo_cli.rollout.vllm.images import prompt_images, server_features
from luspo_cli.rollout.vllm.plugin import BACKEND
from luspo_cli.rollout.vllm.requests import (
    LogprobsMode,
    check_request,
    has_logprobs,
    in_groups,
    mode_for,
    sampling_parameters,
    to_rollout,
    with_texts,
)
from luspo_cli.rollout.vllm.weight_stream import WeightFeed, WeightSender, checkpoint_weights, describe, hand_out

WORKER_ERROR = re.compile(r"failed with error '(.*?)', please", re.DOTALL)
"""How vLLM wraps what a worker raised."""
SHORT_S = 60.0
"""For calls that compute nothing."""
START = 'VLLM_SERVER_DEV_MODE=1 vllm serve MODEL --weight-transfer-config \'{"backend": "luspo"}\' --enable-scale-out'
UNFINISHED = "unfinished"
"""Version of weights that a killed trainer left half pushed; no run draws with it."""
GO_ON = "the run can go on with --resume"


class VllmServerSampler:
    """Samples with one or more vLLM servers, problems spread over them in turn; see `Sampler`."""

    def __init__(
        self,
        servers: Sequence[str],
        tokenizer: Any,
        end_tokens: Sequence[int],
        dtype: Literal["float32", "bfloat16"],
        max_rows: int,
        longest: int,
        timeout_s: float,
        draws: SamplingOptions,
        never_drawn: Sequence[int] = (),
        *,
        sharing: Ranks = ALONE,
        pushes: bool = True,
    ) -> None:
        """`draws`: how the rollouts that are trained on will be drawn; `never_drawn`: a vision model's image tokens; `sharing`:
        the processes of the run where several draw from one server, of which one `pushes` to it.

        UsageError where a server does not fit.
        """
        self.tokenizer, self.end_tokens = tokenizer, tuple(sorted(end_tokens))
        self.max_rows = max_rows
        self.never_drawn = tuple(never_drawn)
        self.dtype = getattr(torch, dtype)
        self._servers = checked_servers(servers, longest, timeout_s, draws, never_drawn)
        self._pushed, self._sharing = (self._servers if pushes else []), sharing
        self.version = ""

    def load_weights(self, policy: Any) -> None:
        """Push the policy's weights to every server, all at the same time; RunError, after all weights, where one failed.

        Processes that share servers call this together, those that push to none as well; a failure is everybody's.
        """
        # Not a broadcast: a process has all of these only when no other one draws any more.
        self.version = self._sharing.gather(secrets.token_hex(8))[0]
        shape = shape_of(policy.config)
        described = describe(policy, self.dtype)
        feeds = [WeightFeed() for _ in self._pushed]

        def push(server: _Server, feed: WeightFeed) -> None:
            try:
                server.push(shape, described, feed, self.version)
            finally:
                feed.close()

        with ThreadPoolExecutor(max(1, len(feeds))) as threads:
            pushes = [threads.submit(push, server, feed) for server, feed in zip(self._pushed, feeds, strict=True)]
            hand_out(checkpoint_weights(policy, self.dtype), feeds)
        with self._sharing.phase():
            for done in pushes:
                done.result()

    def sample_groups(
        self,
        prompts: Sequence[Prompt],
        options: SamplingOptions,
        on_progress: Callable[[int], None] | None = None,
        on_finished: OnFinished | None = None,
    ) -> list[list[Rollout]]:
        size, rollouts = options.group_size, []
        # Images are held for the groups in flight, not for all prompts.
        held, failed = threading.Semaphore(1 + self.max_rows // size), threading.Event()
        draws: list[Future[Rollout]] = []
        one_at_a_time = threading.Lock()

        def draw(group: _Group, row: int) -> Rollout:
            rollout = group.draw(options, row)
            with one_at_a_time:
                (whole,) = with_texts([rollout], self.tokenizer)
                if on_finished and not failed.is_set():
                    on_finished(row, whole)
            return whole

        def finished(draw: Future[Rollout]) -> None:
            if draw.cancelled() or draw.exception():
                failed.set()

        with ThreadPoolExecutor(self.max_rows) as threads:
            try:
                for number, prompt in enumerate(prompts):
                    check_request(prompt, options, None)
                    held.acquire()
                    if failed.is_set():
                        break
                    group = _Group(self, self._servers[number % len(self._servers)], prompt, size, held.release)
                    for row in range(number * size, (number + 1) * size):
                        draws.append(threads.submit(draw, group, row))
                        draws[-1].add_done_callback(finished)
                for under_way in draws:
                    rollouts.append(under_way.result())
                    if on_progress:
                        on_progress(len(rollouts))
            except BaseException:
                failed.set()
                for under_way in draws:
                    under_way.cancel()
                raise
        return in_groups(rollouts, size)


class _Group:
    """The rollouts of one prompt on their way to a server."""

    def __init__(
        self, sampler: VllmServerSampler, server: _Server, prompt: Prompt, size: int, done: Callable[[], None]
    ) -> None:
        """`done` is called once, when the group needs its images no more."""
        self.sampler, self.server, self.done = sampler, server, done
        self.prompt, self.images = prompt.without_images(), prompt_images(prompt, sampler.version)
        self.lock, self.unsent, self.left = threading.Lock(), bool(self.images), size

    def draw(self, options: SamplingOptions, row: int) -> Rollout:
        """One response; RunError where the server fails."""
        sampler, server = self.sampler, self.server
        parameters = sampling_parameters(options, row, sampler.end_tokens, sampler.never_drawn)
        try:
            with self.lock:
                if self.unsent:
                    self._ask({**parameters, "max_tokens": 1}, sampler.dtype)
                    self.unsent = False
            try:
                tokens, logprobs = self._ask(parameters, None)
            except _Refused:
                if not self.images:
                    raise
                # An image that the server threw away is to it an error like any other.
                tokens, logprobs = self._ask(parameters, sampler.dtype)
        finally:
            with self.lock:
                self.left -= 1
                if not self.left:
                    self.images = []
                    self.done()
        keep = has_logprobs(options, server.mode, sampler.never_drawn)
        return to_rollout(self.prompt, tokens, logprobs, sampler.end_tokens, keep, sampler.never_drawn)

    def _ask(self, parameters: dict[str, Any], values_in: torch.dtype | None) -> tuple[list[int], list[float]]:
        features = server_features(self.images, values_in) if self.images else None
        return self.server.draw(self.prompt.tokens, parameters, self.sampler.version, features)


def checked_servers(
    servers: Sequence[str], longest: int, timeout_s: float, draws: SamplingOptions, never_drawn: Sequence[int] = ()
) -> list[_Server]:
    """The servers at these addresses; UsageError where one is not there or does not fit the run. Changes nothing on them."""
    found = [_Server(url.rstrip("/"), timeout_s) for url in servers]
    for server in found:
        server.check(longest, draws, never_drawn)
    return found


class _Refused(RunError):
    """A server answered, and would not do it."""


class _Server:
    """The routes of one server; every failure is one sentence that names it."""

    def __init__(self, url: str, timeout_s: float) -> None:
        self.url, self.timeout_s = url, timeout_s
        self.mode: LogprobsMode = "raw_logprobs"
        self._greeted = False
        # No connection is kept open: a server closes idle ones, and a request on such a one fails without a reason.
        self._http = httpx.Client(limits=httpx.Limits(max_connections=None, max_keepalive_connections=0))

    def check(self, longest: int, draws: SamplingOptions, never_drawn: Sequence[int]) -> None:
        """UsageError where the address does not answer, is no vLLM server for a run, is too small for the longest row, would
        change our pixels, or reports no log-probs of these draws and could."""
        try:
            config = self._call("GET", "/server_info?config_format=json", timeout_s=SHORT_S)["vllm_config"]
            backend = (config["weight_transfer_config"] or {}).get("backend")
            context = int(config["model_config"]["max_model_len"])
            self.mode = config["model_config"]["logprobs_mode"]
            self._workers = int(self._call("GET", "/get_world_size", timeout_s=SHORT_S)["world_size"])
        except RunError as error:
            raise UsageError(str(error).replace(GO_ON, f"as in: {START}")) from error
        except (KeyError, TypeError, ValueError) as error:
            raise UsageError(
                f"{self.url} does not describe itself as vllm 0.32 does; start one with {START}"
            ) from error
        if backend != BACKEND:
            raise UsageError(
                f"the vLLM server {self.url} takes no weights from luspo (its transfer is {backend or 'off'}):"
                f" start it with {START}"
            )
        if context < longest:
            raise UsageError(
                f"the vLLM server {self.url} takes rows of {context} tokens and this run needs {longest}:"
                f" start it with --max-model-len {longest}"
            )
        if (
            never_drawn
            and (config["model_config"].get("multimodal_config") or {}).get("mm_device_do_normalize") is not False
        ):
            raise UsageError(
                f"the vLLM server {self.url} would normalise the pixels of images a second time: start it with"
                " --no-mm-device-do-normalize"
            )
        wanted = mode_for(draws, never_drawn)
        if wanted and not has_logprobs(draws, self.mode, never_drawn):
            raise UsageError(
                f"the vLLM server {self.url} reports {self.mode}, which at this rollout.temperature, top_p and top_k are not the"
                f" sampler's log-probs: start it with --logprobs-mode {wanted}"
            )

    def push(self, shape: dict[str, Any], described: dict[str, Any], weights: WeightFeed, version: str) -> None:
        """Bring the weights into the server under this version; RunError where any part fails."""
        if not self._greeted:
            self._call("POST", "/init_weight_transfer_engine", {"init_info": {"protocol": PROTOCOL, "shape": shape}})
            self._greeted = True
        self._call("POST", "/pause?mode=abort")
        self._start_update()
        self._stream(described, weights)
        self._call("POST", "/finish_weight_update", {"weight_version": version})
        if not self._call("POST", "/reset_prefix_cache").get("success"):
            raise RunError(f"the vLLM server {self.url} did not empty its cache after a push: restart it, {GO_ON}")
        self._call("POST", "/resume")

    def _start_update(self) -> None:
        try:
            self._call("POST", "/start_weight_update")
        except RunError as error:
            if "already active" not in str(error):
                raise
            # A trainer that was killed while it pushed left its update open.
            self._call("POST", "/finish_weight_update", {"weight_version": UNFINISHED})
            self._call("POST", "/start_weight_update")

    def _stream(self, described: dict[str, Any], weights: WeightFeed) -> None:
        host = httpx.URL(self.url).host or "127.0.0.1"
        try:
            with WeightSender(host, self._workers, self.timeout_s) as sender, ThreadPoolExecutor(1) as thread:
                update = {"address": sender.address, "timeout_s": self.timeout_s, **described}
                answer = thread.submit(self._call, "POST", "/update_weights", {"update_info": update})
                # A server that refuses at once would leave us waiting for its workers.
                answer.add_done_callback(lambda done: sender.close() if done.exception() else None)
                try:
                    sender.send(weights)
                except OSError:
                    sender.close()
                    answer.result()  # the server's own reason, where it gave one
                    raise
                answer.result()
        except OSError as error:
            raise RunError(
                f"the weights did not reach the vLLM server {self.url} ({error}): restart it, {GO_ON}"
            ) from error

    def draw(
        self,
        prompt: Sequence[int],
        parameters: dict[str, Any],
        version: str,
        features: dict[str, Any] | None = None,
    ) -> tuple[list[int], list[float]]:
        """One response: tokens and log-probs; RunError where it was drawn with other weights."""
        body = {"token_ids": list(prompt), "sampling_params": parameters}
        answer = self._call("POST", "/inference/v1/generate", body | ({"features": features} if features else {}))
        try:
            choice = answer["choices"][0]
            tokens = list(choice["token_ids"])
            logprobs = [float(entry["logprob"]) for entry in choice["logprobs"]["content"]]
            versions = {span["version"] for span in choice["weight_versions"] or ()}
        except (KeyError, IndexError, TypeError) as error:
            raise RunError(
                f"the vLLM server {self.url} answered in another form than vllm 0.32: use that version, {GO_ON}"
            ) from error
        if versions != {version}:
            raise RunError(
                f"the vLLM server {self.url} drew with other weights than this run pushed (it was restarted, or another run uses"
                f" it): give each run servers of its own, {GO_ON}"
            )
        return tokens, logprobs

    def _call(
        self, method: str, path: str, body: dict[str, Any] | None = None, timeout_s: float | None = None
    ) -> dict[str, Any]:
        seconds = timeout_s or self.timeout_s
        try:
            answer = self._http.request(method, self.url + path, json=body, timeout=seconds)
        except httpx.TimeoutException as error:
            raise RunError(
                f"the vLLM server {self.url} did not answer within {seconds:g} s ({path}):"
                f" raise rollout.vllm.timeout_s or look at the server, {GO_ON}"
            ) from error
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise RunError(f"the vLLM server {self.url} does not answer ({error}): start it again, {GO_ON}") from error
        try:
            found = answer.json()
        except ValueError:
            found = None
        if answer.is_success:
            return found if isinstance(found, dict) else {}
        raise self._refused(path.partition("?")[0], answer, found)

    def _refused(self, route: str, answer: httpx.Response, found: Any) -> _Refused:
        if answer.status_code == 404:
            return _Refused(f"the vLLM server {self.url} has no {route}: start it again, {GO_ON}")
        detail = found.get("error", found.get("detail")) if isinstance(found, dict) else None
        if isinstance(detail, dict):
            detail = detail.get("message")
        said = answer.text if detail is None else str(detail)
        first = next((line.strip() for line in said.splitlines() if line.strip()), answer.reason_phrase)
        of_worker = WORKER_ERROR.search(said)
        reason = of_worker.group(1) if of_worker and of_worker.group(1) else first
        return _Refused(
            f"the vLLM server {self.url} refused {route} ({answer.status_code}: {reason[:300]}): start it again, {GO_ON}"
        )
