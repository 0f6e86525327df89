"""TRL's GRPO trainer on torch, its own methods one after the other: generation and scores, loss, and its optimizer's step.

Nothing of a training loop around them is called. `transformers` generates; only prompts are handed over as ids.
"""

import itertools
import os
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import tokenizers
import torch  # pyright: ignore[reportMissingImports]
import transformers
import trl  # pyright: ignore[reportMissingImports]
from trl.trainer.utils import add_fused_lm_head  # pyright: ignore[reportMissingImports]


def build(folder: Path, request: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> Callable[[], dict[str, Any]]:
    """Return a function that computes an iteration and returns the seconds of its parts.

    Its first call returns what is compared instead: the "greedy" tokens after the prompts, and the "losses" of two steps on our
    responses.
    """
    torch.set_num_threads(os.cpu_count() or 1)
    iteration = TrlIteration(folder, request, arrays)
    calls = itertools.chain([iteration.first_steps], itertools.repeat(iteration.run))
    return lambda: next(calls)()


class TrlIteration:
    """An iteration of `trl.GRPOTrainer`."""

    def __init__(self, folder: Path, request: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> None:
        """Make the trainer of a policy and its reference.

        Args:
            folder: the published weights of the policy.
            request: "group", "tokens", "vocabulary", "beta", "clip", "reference_factor", and "optim".
            arrays: "prompts" [B, P], and the "responses" and their "old" log-probabilities, [B, R], of `first_steps`.
        """
        self._prompts, self._arrays, self._request = arrays["prompts"].tolist(), arrays, request
        self._seconds: dict[str, float] = {}
        policy, reference = (transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32) for _ in range(2))
        with torch.no_grad():
            for parameter in reference.parameters():
                parameter.mul_(request["reference_factor"])
        for model in (policy, reference):
            # No response ends before its limit.
            model.generation_config.eos_token_id = model.config.eos_token_id = None
        self._trainer = trainer = self._make_trainer(policy)
        self._optimizer = trainer.create_optimizer()
        trainer.beta, trainer.ref_model = request["beta"], reference.to(trainer.accelerator.device).eval()
        add_fused_lm_head(reference)
        trainer.generation_config.eos_token_id, trainer.eos_token_ids = None, [-1]
        # The training loop of `transformers` sets it.
        trainer.current_gradient_accumulation_steps = 1
        trainer.model.train()
        trainer._tokenize_prompts = lambda prompts: (self._prompts, None, {})
        self._generate = trainer._generate_single_turn
        trainer._generate_single_turn = self._timed("rollout", self._generate)
        log_probs = trainer._get_per_token_logps_and_entropies
        reference_log_probs = self._timed("reference", log_probs)

        def by_model(model: Any, *arguments: Any, **options: Any) -> Any:
            return (reference_log_probs if model is reference else log_probs)(model, *arguments, **options)

        trainer._get_per_token_logps_and_entropies = by_model

    def first_steps(self) -> dict[str, Any]:
        """Return the likeliest tokens after the prompts, and then, because it changes the weights, the losses of two steps."""
        return {"greedy": self._greedy(), "losses": self._losses()}

    def _greedy(self) -> list[list[int]]:
        """Return the likeliest tokens after the prompts."""
        model = self._trainer.model
        ids = torch.tensor(self._prompts, device=model.device)
        config = transformers.GenerationConfig(max_new_tokens=self._request["tokens"], do_sample=False, pad_token_id=0)
        with torch.no_grad():
            return model.generate(ids, attention_mask=torch.ones_like(ids), generation_config=config)[:, ids.shape[1] :].tolist()

    def _losses(self) -> list[float]:
        """Return the losses of two steps on the given responses."""
        trainer, responses = self._trainer, self._arrays["responses"].tolist()
        timed = trainer._generate_single_turn
        trainer._generate_single_turn = lambda *_, **__: (responses, None)
        inputs = self._inputs()
        trainer._generate_single_turn = timed
        # Otherwise the ratios of the second step would be those to the policy after the first one.
        inputs["old_per_token_logps"] = torch.tensor(self._arrays["old"], device=trainer.accelerator.device)
        return [self._step(inputs) for _ in range(2)]

    def run(self) -> dict[str, float]:
        """Compute an iteration, and return the seconds of its parts and of the whole."""
        self._seconds = {}
        began = time.perf_counter()
        inputs = self._inputs()
        step_began = time.perf_counter()
        self._step(inputs)
        ended = time.perf_counter()
        seconds = {**self._seconds, "step": ended - step_began}
        return {**seconds, "rest": ended - began - sum(seconds.values()), "iteration": ended - began}

    def _inputs(self) -> Any:
        return self._trainer._generate_and_score_completions([{"prompt": "0"}] * len(self._prompts))

    def _step(self, inputs: Any) -> float:
        self._optimizer.zero_grad(set_to_none=True)
        loss = self._trainer._compute_loss(self._trainer.model, inputs)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self._trainer.model.parameters(), self._request["optim"]["clip"])
        self._optimizer.step()
        return loss.item()

    def _timed(self, part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*arguments: Any, **options: Any) -> Any:
            began = time.perf_counter()
            result = function(*arguments, **options)
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            self._seconds[part] = self._seconds.get(part, 0.0) + time.perf_counter() - began
            return result

        return timed

    def _make_trainer(self, policy: Any) -> Any:
        request, rates, rows = self._request, self._request["optim"], len(self._prompts)
        low_ids = request["vocabulary"] // 2

        def reward(completion_ids: list[list[int]], **_: Any) -> list[float]:
            return [sum(token < low_ids for token in response) / len(response) for response in completion_ids]

        with tempfile.TemporaryDirectory() as scratch:
            config = trl.GRPOConfig(
                output_dir=scratch,
                report_to="none",
                bf16=False,
                gradient_checkpointing=False,
                disable_dropout=True,
                # A reference is only loaded from the hub: it is set afterwards.
                beta=0.0,
                loss_type="grpo",
                scale_rewards="group",
                epsilon=request["clip"],
                epsilon_high=request["clip"],
                num_generations=request["group"],
                per_device_train_batch_size=rows,
                max_completion_length=request["tokens"],
                learning_rate=rates["lr"],
                adam_beta1=rates["b1"],
                adam_beta2=rates["b2"],
                adam_epsilon=rates["eps"],
                weight_decay=rates["weight_decay"],
                max_grad_norm=rates["clip"],
            )
            return trl.GRPOTrainer(
                policy,
                reward_funcs=reward,
                args=config,
                train_dataset=datasets.Dataset.from_list([{"prompt": "0"}] * rows),
                processing_class=_tokenizer(request["vocabulary"]),
            )


def _tokenizer(vocabulary: int) -> Any:
    """Return a tokenizer whose texts are ids."""
    words = {str(number): number for number in range(vocabulary)}
    core = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="0"))  # pyright: ignore[reportAttributeAccessIssue]
    core.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()  # pyright: ignore[reportAttributeAccessIssue]
    return transformers.PreTrainedTokenizerFast(tokenizer_object=core, pad_token="0", eos_token="1", unk_token="0")
