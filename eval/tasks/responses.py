"""Rewards of the responses that a model samples, the best of several, and the KL divergence from a reference.

Format: prompts as `grpo` reads them: .jsonl, .parquet or folders of `datasets` with `prompt`, a text or a conversation, and
columns for reward functions, the same ones in all lines.

A model that generates samples --rollout.samples responses to each prompt, of at most --rollout.tokens tokens, at
--rollout.temperature. The judges are those of training, --rollout.reward; functions, reward models, labels of classifiers.

Metrics:
- reward, reward_deviation: mean and standard deviation over all responses of the weighted sum of the judges;
- reward_stderr: the standard error of the mean, over prompts;
- kl: with --rollout.reference, the mean over responses of log p - log p of the reference, in nats: an unbiased estimate of the KL
  divergence of the model from the reference at this temperature;
- response_length, unended_share: mean tokens of a response, and the share of those without an end mark.
Examples are prompts. Details: some responses, and a table for n = 1, 2, 4, ... up to --rollout.samples. For it the response with
the highest sum is chosen among each n (Nakano et al. 2021, WebGPT): the means of the sum and of each judge over the chosen ones;
for a label of a classifier also the share of them whose probability of the label is above 1/2; and log n - (n - 1) / n nats,
which the divergence of best-of-n from the model does not exceed (Beirami et al. 2024). A judge with the weight 0 has no part in
the choice.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float64

from eval.inference.batch_loop import Progress
from eval.inference.completion_scores import response_log_probs
from eval.inference.sampled_responses import sample_responses
from eval.metrics.best_of_n import kl_bound, powers_of_two, prompt_groups
from eval.metrics.standard_error import mean_and_error
from eval.tasks.task import Result, Settings, Task, first, shown_numbers
from train.config.data_options import Data
from train.config.option_groups import Prompts
from train.data import labelled_reader
from train.data.example_types import Prompt
from train.data.prompt_records import check_columns
from train.engine import device_mesh
from train.inputs.prompt_inputs import render
from train.rollouts.reward_models import Capacity, RewardModel, load_reward_model
from train.rollouts.rewards import Judge, ModelName, find_rewards
from train.rollouts.sampler import SALT, Sampler
from train.rows.feedback import prompt_rows
from train.rows.feedback.response_rows import ResponseRow
from train.tokenizers.chat_template import chat_template
from train.tokenizers.chat_token_ids import end_mark
from train.weights.load import Loaded, load_model
from zoo.configs import longest_row
from zoo.errors import BadInput, require
from zoo.generation.decoding_settings import Sampling


def read_prompts(names: Sequence[str], settings: Settings) -> list[Prompt]:
    """Read the prompts of all files, and check that the judges exist.

    Raises:
        BadInput: a file or a line that cannot be read, prompts with different columns, a judge that does not exist, or neither a
            judge nor a reference.
    """
    if settings.rollout.reward:
        find_rewards(settings.rollout.reward)
    else:
        fix = "responses are sampled and nothing judges them; name a judge, or a --rollout.reference"
        require(bool(settings.rollout.reference), "rollout.reward", "", fix)
    examples, _ = labelled_reader.read_labelled_examples("policy_gradient", tuple(names), Data(), Prompts())
    prompts = first([item for item in examples if isinstance(item, Prompt)], settings.limit)
    check_columns(prompts)
    return prompts


def score_responses(subject: Loaded, prompts: list[Prompt], settings: Settings, progress: Progress) -> Result:
    """Sample responses to all prompts and judge them.

    Raises:
        BadInput: a model that does not generate, a prompt that leaves no room for a response, a judge that cannot be used, or a
            reference that does not generate or has another tokenizer.
    """
    model, tokenizer, options = subject.model, subject.tokenizer, settings.rollout
    if not (model.is_encoder_decoder or model.task == "causal"):
        what = f"{subject.where} is a {model.family} for the task {model.task}, which does not generate"
        raise BadInput(f"--task responses: {what}; choose a model that generates, such as a GPT or a T5")
    end = tokenizer.end_of_text
    if prompts[0].messages:
        template = chat_template(tokenizer, subject.where)
        prompts = render(prompts, tokenizer, template)
        end = end if model.is_encoder_decoder else end_mark(tokenizer, template)
    # Everything that can be refused is refused before anything is sampled.
    reference = _reference(subject, options.reference) if options.reference else None
    rows = _rows(subject, prompts, options.tokens, reference)
    capacity = Capacity(tokens=options.tokens, rows=settings.batch, dtype=settings.dtype)
    judges: list[Judge] = [
        load_reward_model(judge, capacity, subject.mesh, prompts, tokenizer) if isinstance(judge, ModelName) else judge
        for judge in (find_rewards(options.reward) if options.reward else ())
    ]
    sampler = Sampler(
        model,
        subject.mesh,
        tokenizer,
        np.dtype(settings.dtype),
        rows=device_mesh.round_up_rows(subject.mesh, min(settings.batch, len(rows) * options.samples)),
        slots=max(len(row.prompt) for row in rows),
        limit=options.tokens,
        settings=Sampling(temperature=options.temperature),
        end=end,
        seed=(options.seed + SALT) % (1 << 32),
    )
    numbers = np.stack(np.divmod(np.arange(len(rows) * options.samples), options.samples)).astype(np.uint32)  # [2, N]
    repeated = [rows[number] for number in numbers[0].tolist()]
    sampled = sample_responses(sampler, subject.params, prompts, repeated, numbers, progress)
    completions = [response.completion for response in sampled]
    sides = [response.row.with_response(response.ids) for response in sampled]
    metrics: dict[str, float] = {}
    details: dict[str, Any] = {"samples": options.samples, "temperature": options.temperature}
    if judges:
        values = {judge.name: judge.scores(completions).values.reshape(-1, options.samples) for judge in judges}
        total = sum((judge.weight * values[judge.name] for judge in judges), np.zeros((len(prompts), options.samples)))
        mean, error = mean_and_error(total.mean(1).tolist())
        metrics |= {"reward": mean, "reward_deviation": float(total.std())}
        metrics |= {} if error is None else {"reward_stderr": error}
        shares = {judge.name for judge in judges if isinstance(judge, RewardModel) and judge.label is not None}
        details["best of n"] = best_of(total, values, shares)
    if reference is not None:
        how: dict[str, Any] = {"tokens": options.tokens, "temperature": options.temperature}
        how |= {"batch": settings.batch, "dtype": settings.dtype}
        log_ratios = response_log_probs(subject, sides, **how) - response_log_probs(reference, sides, **how)
        metrics["kl"] = float(log_ratios.mean())
    metrics |= {
        "response_length": float(np.mean([len(response.ids) for response in sampled])),
        "unended_share": 1 - float(np.mean([response.ended for response in sampled])),
    }
    details["texts"] = {
        str(number + 1): {"prompt": completions[number].prompt.prompt, "response": completions[number].text}
        for number in shown_numbers(len(completions))
    }
    items = {f"judge {judge.name}": judge.digest for judge in judges if isinstance(judge, RewardModel)}
    return Result(metrics, len(prompts), details, items=items)


def best_of(
    total: Float64[np.ndarray, "P N"], values: dict[str, Float64[np.ndarray, "P N"]], shares: set[str]
) -> dict[str, dict[str, float]]:
    """Return the table of the best of n responses, for the powers of two n up to N, over P prompts.

    The N responses to a prompt are divided into floor(N / n) groups of n; of each the one with the greatest total is chosen.

    Args:
        total: what responses are chosen by.
        values: numbers of each judge.
        shares: names of the judges whose numbers are logarithms of probabilities.
    """
    table = {}
    for n in powers_of_two(total.shape[1]):
        grouped = prompt_groups(total, n)
        best, row = grouped.argmax(1)[:, None], {"reward": float(grouped.max(1).mean())}
        for name, numbers in values.items():
            of_chosen = np.take_along_axis(prompt_groups(numbers, n), best, 1)
            row[name] = float(of_chosen.mean())
            if name in shares:
                row[f"{name} > 1/2"] = float((of_chosen > math.log(0.5)).mean())
        table[str(n)] = row | {"kl bound": kl_bound(n)}
    return table


def _rows(subject: Loaded, prompts: Sequence[Prompt], tokens: int, reference: Loaded | None) -> list[ResponseRow]:
    """Return the rows of prompts, all of which have room for a response, also in the reference.

    Raises:
        BadInput: a prompt is too long, or spells a special token.
    """
    unlimited = 1 << 30
    rows, _ = prompt_rows.encode_rows(prompts, subject.tokenizer, subject.model.config, Prompts(), unlimited, tokens)
    longest = max(rows, key=lambda row: len(row.prompt))
    size = len(longest.prompt)
    needed = max(size, tokens) if subject.model.is_encoder_decoder else size + tokens
    for name, model in [("model", subject)] + ([("reference", reference)] if reference else []):
        context = longest_row(model.model.config)
        if context is not None and needed > context:
            what = f"a prompt of {size} tokens, and with --rollout.tokens {tokens} more than the {name}'s {context} positions"
            raise BadInput(f"{prompts[longest.example].origin}: {what}; shorten it, or choose fewer tokens")
    return rows


def _reference(subject: Loaded, name: str) -> Loaded:
    """Return the model in a folder.

    Raises:
        BadInput: it does not generate, is no encoder-decoder where the model is one, or has another tokenizer.
    """
    reference = load_model(name, subject.mesh)
    kinds = [(loaded.model.is_encoder_decoder, loaded.model.task) for loaded in (subject, reference)]
    fix = f"choose a model like {subject.where}, such as the one that its training began from"
    require(kinds[0] == kinds[1], "rollout.reference", name, f"a {reference.model.family} for {reference.model.task}; {fix}")
    same = reference.tokenizer.fingerprint == subject.tokenizer.fingerprint
    require(same, "rollout.reference", name, f"it has another tokenizer, so that its tokens have other ids; {fix}")
    return reference


TASK = Task(
    read=read_prompts,
    score=score_responses,
    metrics=("reward", "reward_deviation", "reward_stderr", "kl", "response_length", "unended_share"),
    options=("limit", "rollout"),
)
