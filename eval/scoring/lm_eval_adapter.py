"""A zoo model as lm-evaluation-harness sees one: `simple_evaluate(HarnessModel(load("runs/gpt-nano")), tasks=[...])`.

Importing this module needs the extra `eval`.
"""

import dataclasses
import functools
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from eval.generation.generator import Generator
from eval.generation.settings import Decoding
from eval.scoring.likelihood import Pair, encode, likelihoods, positions
from train.weights.load import Loaded
from zoo.errors import BadInput
from zoo.generation.settings import Sampling

try:
    from lm_eval.api.instance import Instance
    from lm_eval.api.model import LM
    from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
except ModuleNotFoundError as error:
    if (error.name or "").partition(".")[0] != "lm_eval":
        raise
    raise BadInput("lm-evaluation-harness is not installed; pip install 'transformer-zoo[eval]'") from None

log = logging.getLogger(__name__)

NEW_TOKENS = 256
"""Tokens generated where a task does not say, as with the harness's own models."""


class HarnessModel(LM):
    """The requests of lm-evaluation-harness, answered by a loaded model over its mesh.

    A context and its continuation are divided into tokens as `eval.scoring.likelihood.encode` says. What is longer than the
    model's positions loses its beginning, as with the harness's own models; how many requests did is logged as a warning. In
    several processes each makes every request: the devices share the work, and every process gets all results.
    """

    def __init__(
        self,
        subject: Loaded,
        *,
        batch: int = 16,
        dtype: Any = jnp.float32,
        progress: Callable[[int, int], None] = lambda done, count: None,
    ) -> None:
        """`batch` are the rows of the model's full length computed at a time, `dtype` is that of the arithmetic."""
        super().__init__()
        self._subject, self._batch, self._dtype, self._progress = subject, batch, dtype, progress

    @property
    def tokenizer_name(self) -> str:
        """Names the tokenizer in the harness's caches."""
        return self._subject.tokenizer.fingerprint

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        """(log p(continuation | context), is it what greedy decoding gives) of each request's (context, continuation).

        Raises:
            BadInput: an empty continuation, or one longer than the model's positions.
        """
        texts: list[Any] = [request.args for request in requests]
        if empty := [context for context, continuation in texts if not continuation]:
            raise BadInput(
                f"a request has an empty continuation (after {empty[0][-60:]!r}); mend the task's doc_to_choice or target"
            )
        return self._likelihoods(encode(self._subject.tokenizer, texts))

    def loglikelihood_rolling(self, requests: list[Instance]) -> list[float]:
        """log p of each request's whole text, in windows of the model's positions that predict each token once.

        The first window follows end-of-text; each later one is as full of context as the last token of the window before allows.
        """
        tokenizer, windows, owners = self._subject.tokenizer, [], []
        for number, ids in enumerate(tokenizer.encode_many(request.args[0] for request in requests)):
            most = positions(self._subject.net) or max(1, len(ids))
            for window in get_rolling_token_windows(ids.tolist(), tokenizer.end_of_text, max_seq_len=most, context_len=1):
                windows.append(make_disjoint_window(window))
                owners.append(number)
        totals = [0.0] * len(requests)
        for owner, (logarithm, _) in zip(owners, self._likelihoods(windows), strict=True):
            totals[owner] += logarithm
        return totals

    def generate_until(self, requests: list[Instance]) -> list[str]:
        """The text that follows each request's context, up to a text of its `until`, end-of-text or `max_gen_toks` tokens.

        Greedy, unless the request has `do_sample: true` or a temperature; the draws then depend on its number. A context that
        leaves no room for `max_gen_toks` tokens loses its beginning.

        Raises:
            BadInput: a setting that is not known, or more new tokens than the model has positions.
        """
        most, tokenizer = positions(self._subject.net), self._subject.tokenizer
        by_settings: dict[Decoding, list[int]] = {}
        prompts, cut = [], 0
        asked: list[Any] = [request.args for request in requests]
        for number, ids in enumerate(tokenizer.encode_many(context for context, _ in asked)):
            decoding = _decoding(asked[number][1])
            if most is not None and decoding.limit >= most:
                raise BadInput(
                    f"max_gen_toks {decoding.limit} leaves no room for a context in the model's {most} positions; "
                    "set a lower one in the task's generation_kwargs"
                )
            prompt = ids if most is None else ids[-(most - decoding.limit) :]
            cut += len(prompt) < len(ids)
            prompts.append(prompt if len(prompt) else np.array([tokenizer.end_of_text], np.int32))
            by_settings.setdefault(decoding, []).append(number)
        _warn(cut, len(requests))
        texts = [""] * len(requests)
        for decoding, numbers in by_settings.items():
            chosen = [prompts[number] for number in numbers]
            for made in self._generator.generate(chosen, decoding, numbers=numbers, progress=self._progress):
                texts[numbers[made.prompt]] = made.text
        return texts

    @functools.cached_property
    def _generator(self) -> Generator:
        subject = self._subject
        return Generator(subject.net, subject.params, subject.mesh, subject.tokenizer, dtype=self._dtype, batch=self._batch)

    def _likelihoods(self, pairs: Sequence[Pair]) -> list[tuple[float, bool]]:
        subject = self._subject
        found = likelihoods(
            subject.net,
            subject.params,
            subject.mesh,
            pairs,
            batch=self._batch,
            dtype=self._dtype,
            too_long="cut",
            name="request {}".format,
            progress=self._progress,
        )
        _warn(sum(each.cut > 0 for each in found), len(found))
        return [(-each.nats, each.greedy) for each in found]


def _decoding(settings: Mapping[str, Any]) -> Decoding:
    """What a task's generation_kwargs ask for; a temperature alone asks for draws, as in the harness."""
    given = dict(settings)
    until, limit = given.pop("until", None) or (), int(given.pop("max_gen_toks", NEW_TOKENS))
    draws = given.pop("do_sample", given.get("temperature", 0.0) > 0)
    known = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")
    if unknown := sorted(given.keys() - set(known)):
        names = ", ".join(("until", "max_gen_toks", "do_sample", *known))
        raise BadInput(f"generation_kwargs: {', '.join(unknown)} cannot be honoured; those that can: {names}")
    sampling = Sampling(**given) if draws else dataclasses.replace(Sampling(**given), temperature=0.0)
    return Decoding(limit=limit, stop=(until,) if isinstance(until, str) else tuple(until), sampling=sampling)


def _warn(cut: int, count: int) -> None:
    if cut:
        log.warning("%d of %d requests are longer than the model's positions and lost their beginning", cut, count)
