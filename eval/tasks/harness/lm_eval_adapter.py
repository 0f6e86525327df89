"""Adapter for lm-evaluation-harness: `simple_evaluate(HarnessModel(load("runs/gpt-nano")), tasks=[...])`.

Importing this module needs the extra `eval`.
"""

import dataclasses
import functools
import logging
from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from eval.generation.folder_settings import folder_processors, make_generator
from eval.generation.generation_options import Decoding
from eval.generation.generator import Generator
from eval.inference.batch_loop import Progress, no_progress
from eval.inference.likelihood import Likelihood, Pair, likelihoods, positions
from eval.inference.likelihood_methods import LikelihoodMethod
from eval.inference.text_likelihoods import Method, find_method, text_likelihoods
from eval.tasks.harness.harness_templates import LimitedEnvironment
from train.weights.load import Loaded
from zoo.errors import BadInput, install_advice
from zoo.generation.decoding_settings import UNCHANGED, Processors, Sampling

try:
    import lm_eval.api.metrics
    import lm_eval.utils
    from lm_eval.api.instance import Instance
    from lm_eval.api.model import LM
    from lm_eval.api.registry import METRIC_REGISTRY
    from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
except ModuleNotFoundError as error:
    if (error.name or "").partition(".")[0] != "lm_eval":
        raise
    raise BadInput(f"lm-evaluation-harness is not installed; {install_advice('eval')}") from None

log = logging.getLogger(__name__)

SEQ2SEQ = ("target", "sentinel")
"""Methods of encoder-decoders."""
NEW_TOKENS = 256
"""Number of tokens generated for a task that sets no limit, as with the harness's own models."""


def metric_names() -> list[str]:
    """Return the names of the harness's own metrics."""
    return list(METRIC_REGISTRY)


def use_sandbox() -> None:
    """Let the harness render the templates of tasks in Jinja's sandbox, and in a process with limits."""
    if not isinstance(lm_eval.utils.env, LimitedEnvironment):
        lm_eval.utils.env = LimitedEnvironment()  # pyright: ignore[reportAttributeAccessIssue]


class HarnessModel(LM):
    """A loaded model that answers the requests of lm-evaluation-harness over its mesh.

    Likelihoods are those of `eval.inference.text_likelihoods`, of any family. A text longer than the model's positions is cut at
    its beginning, as with the harness's own models; the number of such requests is logged as a warning. With several processes
    each makes every request: the devices share the work, and every process gets all results.
    """

    def __init__(
        self,
        subject: Loaded,
        *,
        batch: int = 16,
        dtype: Any = jnp.float32,
        likelihood: LikelihoodMethod = "auto",
        orders: int = 0,
        progress: Progress = no_progress,
    ) -> None:
        """Take the options of the arithmetic.

        Args:
            batch: rows of the model's full length computed at a time.
            dtype: dtype of the arithmetic.
            likelihood: method; see `eval.inference.text_likelihoods`.
            orders: see there.
            progress: called with (done, total).

        Raises:
            BadInput: a method that the model does not have, or a model that predicts no text.
        """
        super().__init__()
        self._subject, self._batch, self._dtype, self._progress = subject, batch, dtype, progress
        self.method: Method = find_method(subject, likelihood)
        self._orders = orders
        self.token_counts: dict[tuple[str, str], int] = {}
        """Number of tokens of the continuation of each (context, continuation) that was scored."""

    @property
    def tokenizer_name(self) -> str:
        """Name of the tokenizer in the harness's caches."""
        return self._subject.tokenizer.fingerprint

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        """Return (log p(continuation | context), is it the greedy one) for each request's (context, continuation).

        Raises:
            BadInput: an empty continuation, or one longer than the model's positions.
        """
        texts: list[Any] = [request.args for request in requests]
        if empty := [context for context, continuation in texts if not continuation]:
            raise BadInput(
                f"a request has an empty continuation (after {empty[0][-60:]!r}); fix the task's doc_to_choice or target"
            )
        results = self._text_likelihoods(texts)
        self.token_counts |= {text: result.tokens for text, result in zip(texts, results, strict=True)}
        return [(-result.nats, result.greedy) for result in results]

    def loglikelihood_rolling(self, requests: list[Instance]) -> list[float]:
        """Return log p of each request's full text.

        A text longer than the model's context is split into windows, which together predict each token once. The first window
        begins after end-of-text; each later one begins with as much of the text before it as fits. A model that is no decoder
        scores each text as a continuation of nothing.
        """
        if self.method != "causal":
            texts = [request.args[0] for request in requests]
            results = iter(self._text_likelihoods([("", text) for text in texts if text]))
            return [-next(results).nats if text else 0.0 for text in texts]
        tokenizer, windows, owners = self._subject.tokenizer, [], []
        for number, ids in enumerate(tokenizer.encode_many(request.args[0] for request in requests)):
            max_tokens = positions(self._subject.model) or max(1, len(ids))
            for window in get_rolling_token_windows(ids.tolist(), tokenizer.begin_of_text, max_seq_len=max_tokens, context_len=1):
                windows.append(make_disjoint_window(window))
                owners.append(number)
        totals = [0.0] * len(requests)
        for owner, result in zip(owners, self._window_likelihoods(windows), strict=True):
            totals[owner] -= result.nats
        return totals

    def generate_until(self, requests: list[Instance]) -> list[str]:
        """Return the continuation of each request's context, up to a text of its `until`, end-of-text or `max_gen_toks` tokens.

        Decoding is greedy, unless the request has `do_sample: true` or a temperature; samples then depend on the request's
        number. A context that leaves no space for `max_gen_toks` tokens is cut at its beginning.

        An encoder-decoder reads the context, with its end token, as a source.

        Raises:
            BadInput: an unknown setting, more new tokens than the model has positions, or a model that generates no text.
        """
        limit, tokenizer, reads_source = positions(self._subject.model), self._subject.tokenizer, self.method in SEQ2SEQ
        if self.method not in ("causal", *SEQ2SEQ):
            raise BadInput(
                f"{self._subject.where}: a {self._subject.model.family} generates no text, and the task asks for some; choose "
                "tasks of likelihoods (multiple_choice, loglikelihood, loglikelihood_rolling)"
            )
        by_settings: dict[Decoding, list[int]] = {}
        prompts, cut = [], 0
        arguments: list[Any] = [request.args for request in requests]
        for number, ids in enumerate(tokenizer.encode_many(context for context, _ in arguments)):
            decoding = _decoding(arguments[number][1], folder_processors(self._subject.generation))
            if limit is not None and decoding.limit >= limit:
                raise BadInput(
                    f"max_gen_toks {decoding.limit} leaves no space for a context in the model's {limit} positions; "
                    "set a lower one in the task's generation_kwargs"
                )
            room = None if limit is None else limit - (1 if reads_source else decoding.limit)
            prompt = ids if room is None else ids[-room:]
            cut += len(prompt) < len(ids)
            if reads_source:
                prompt = np.append(prompt, tokenizer.end_of_text).astype(np.int32)
            prompts.append(prompt if len(prompt) else np.array([tokenizer.begin_of_text], np.int32))
            by_settings.setdefault(decoding, []).append(number)
        _warn(cut, len(requests))
        texts = [""] * len(requests)
        for decoding, numbers in by_settings.items():
            group = [prompts[number] for number in numbers]
            for generated in self._generator.generate(group, decoding, numbers=numbers, progress=self._progress):
                texts[numbers[generated.prompt]] = generated.text
        return texts

    @functools.cached_property
    def _generator(self) -> Generator:
        return make_generator(self._subject, dtype=self._dtype, batch=self._batch)

    def _text_likelihoods(self, texts: Sequence[tuple[str, str]]) -> list[Likelihood]:
        results = text_likelihoods(self._subject, texts, method=self.method, orders=self._orders, **self._options())
        _warn(sum(result.cut > 0 for result in results), len(results))
        return results

    def _window_likelihoods(self, pairs: Sequence[Pair]) -> list[Likelihood]:
        return likelihoods(self._subject, pairs, **self._options())

    def _options(self) -> dict[str, Any]:
        options = {"batch": self._batch, "dtype": self._dtype, "progress": self._progress}
        return {**options, "too_long": "cut", "name": "request {}".format}


def _decoding(settings: Mapping[str, Any], processors: Processors = UNCHANGED) -> Decoding:
    """Return the decoding settings of a task's generation_kwargs; a temperature alone means sampling, as in the harness.

    Args:
        processors: those that the model's folder sets.
    """
    options = dict(settings)
    until, limit = options.pop("until", None) or (), int(options.pop("max_gen_toks", NEW_TOKENS))
    sample = options.pop("do_sample", options.get("temperature", 0.0) > 0)
    supported = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")
    if unknown := sorted(options.keys() - set(supported)):
        names = ", ".join(("until", "max_gen_toks", "do_sample", *supported))
        raise BadInput(f"generation_kwargs: {', '.join(unknown)} not supported; use only {names}")
    if (penalty := options.pop("repetition_penalty", None)) is not None:
        processors = dataclasses.replace(processors, repetition_penalty=penalty)
    sampling = Sampling(**options) if sample else dataclasses.replace(Sampling(**options), temperature=0.0)
    stop = (until,) if isinstance(until, str) else tuple(until)
    return Decoding(limit=limit, stop=stop, sampling=sampling, processors=processors)


def _warn(cut: int, count: int) -> None:
    if cut:
        log.warning("%d of %d requests are longer than the model's positions and lost their beginning", cut, count)
