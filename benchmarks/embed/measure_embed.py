"""The vectors of texts, ours and those of peers: they must agree, and are then timed in the same rounds."""

import contextlib
import functools
import json
import math
import random
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.core import guarded_trials, peer_process, timing
from benchmarks.core.guarded_trials import SkipTrial, Trial, Watch, WrongResult
from benchmarks.core.options import EmbedOptions
from benchmarks.core.peer_process import Kind, Peer
from benchmarks.core.result_files import cell_identity
from benchmarks.step.programs import OURS
from eval.inference.encoder_runner import Encoder, Text
from eval.inference.text_vectors import embed_texts, modules_of
from train.data.text_files import nonblank_lines
from train.weights.load import load_model

PEERS = {"sentence-transformers": Kind("benchmarks.embed.peer_sentence_transformers", ("torch", "sentence_transformers"))}
"""Other implementations of the same vectors, which must agree with ours before they are timed."""
VECTORS = "vectors.npy"
"""File that a peer writes its vectors to."""
PEER_BATCH = 32
"""Texts of a batch of sentence-transformers, its default."""
TOLERANCE = 1e-5
"""Largest difference of two vectors, relative to the largest number in them."""
FEWEST_WORDS = 3
WORDS = """the of and a to in his that it was he for is with as on not at by ship whale sea captain boat water deck night harpoon
sailor voyage island wind mast crew morning storm line ocean white old great stood turned looked seemed upon against"""


def mixed_texts(count: int, longest: int) -> list[str]:
    """Return texts of 3 to `longest` words, the same for the same numbers; the logarithms of their lengths are uniform."""
    rng = random.Random(0)
    sizes = [math.exp(rng.uniform(math.log(FEWEST_WORDS), math.log(longest))) for _ in range(count)]
    return [" ".join(rng.choices(WORDS.split(), k=round(size))) for size in sizes]


def measure_embed(options: EmbedOptions, wanted_keys: Sequence[dict[str, Any]], watch: Watch) -> Iterator[dict[str, Any]]:
    """Yield the cells, without the process."""
    trials = [Trial(key) for key in wanted_keys]
    if all(trial.key["program"] != OURS for trial in trials):
        # Peers are compared with ours, and timed in the same rounds.
        trials.insert(0, Trial({**wanted_keys[0], "program": OURS}))
    group = _Group(options)
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        for trial in trials:
            stack.callback(trial.stop_peer)
            name = trial.key["program"]
            act = group.prepare if name == OURS else functools.partial(group.start_peer, name=name, folder=folder)
            guarded_trials.run_guarded(trial, act, watch, f"{name}: first vectors")
        seconds = _time(trials, options, watch)
        unit = seconds.get(cell_identity(trials[0].key))
        for trial in trials:
            if (own := seconds.get(cell_identity(trial.key))) is not None and not trial.state:
                trial.columns |= timing.time_columns(own, unit)
                rate = 1 / trial.columns["seconds"]
                trial.columns |= {"tokens": group.tokens, "tokens_per_s": group.tokens * rate}
                trial.columns |= {"texts_per_s": len(group.texts) * rate}
                trial.columns["memory"] = peer_process.peak_resident() if trial.peer is None else trial.peer.resident
                trial.end("timed", trial.reason)
            yield trial.cell()


def _time(trials: Sequence[Trial], options: EmbedOptions, watch: Watch) -> dict[str, np.ndarray]:
    def rounds(programs: Mapping[str, timing.Program]) -> dict[str, np.ndarray]:
        watch.begin("timing", *(trial.key for trial in trials if trial.program is not None))
        for program in programs.values():
            # Everything is compiled; the first call may still allocate.
            program()
        return timing.time_within_budget(programs, rounds=options.rounds or 0, budget=(options.budget or 0.0) * len(programs))

    return guarded_trials.repeat_without_failures(trials, rounds) or {}


class _Group:
    """The texts, and the vectors that every program must reproduce."""

    def __init__(self, options: EmbedOptions) -> None:
        self._options = options
        if options.files:
            lines = [line for file in options.files for line in nonblank_lines(Path(file))]
            self.texts = [Text(where, text) for where, text in lines]
        else:
            random_texts = mixed_texts(options.texts or 0, options.words)
            self.texts = [Text(f"text {number}", text) for number, text in enumerate(random_texts, 1)]
        self.tokens = 0
        self._vectors: np.ndarray | None = None

    def prepare(self, trial: Trial) -> None:
        """Load the model, compile, and compute the vectors once."""
        loaded = load_model(self._options.folder)
        modules = modules_of(loaded)
        prompt = modules.side_prompt(())
        encoder = Encoder.of(loaded, batch=self._options.batch, dtype="float32")
        embed = functools.partial(embed_texts, encoder, self.texts, modules, prompt=prompt, truncate=True)
        self._vectors = embed()
        room = min(encoder.room, modules.longest or encoder.room)
        special = len(encoder.special_tokens.single(np.zeros(0, np.int32))[0])
        strings = [prompt + text for _, text in self.texts]
        ids = loaded.tokenizer.encode_many(text.lower() if modules.lowercase else text for text in strings)
        self.tokens = sum(min(len(text_ids) + special, room) for text_ids in ids)
        trial.program = embed

    def start_peer(self, trial: Trial, name: str, folder: Path) -> None:
        """Start a peer's process, and compare its vectors with ours."""
        if reason := (kind := PEERS[name]).missing_packages():
            raise SkipTrial(reason)
        if self._vectors is None:
            raise SkipTrial("no vectors of jax-zoo that it could be compared with")
        np.savez(folder / peer_process.ARRAYS, texts=np.array([text for _, text in self.texts]))
        request = {"model": str(Path(self._options.folder).resolve()), "batch": PEER_BATCH, "vectors": VECTORS}
        (folder / peer_process.REQUEST).write_text(json.dumps(request))
        (folder / VECTORS).unlink(missing_ok=True)
        trial.peer = peer = Peer(kind, folder)
        trial.columns["versions"] = peer.begin()["versions"]
        peer.run()
        trial.columns["difference"] = check_agreement(self._vectors, np.load(folder / VECTORS))
        trial.program = peer.run


def check_agreement(expected: np.ndarray, vectors: np.ndarray) -> float:
    """Return the largest difference of a peer's vectors from ours, which are expected.

    Raises:
        WrongResult: other shapes, or a difference above `TOLERANCE`.
    """
    if expected.shape != vectors.shape:
        raise WrongResult(f"its vectors have the shape {list(vectors.shape)}, and ours {list(expected.shape)}")
    difference, largest = float(np.abs(expected - vectors).max()), float(np.abs(expected).max())
    if not difference <= TOLERANCE * largest:
        raise WrongResult(f"its vectors differ by {difference:.1e}, and the largest number in ours is {largest:.2g}")
    return difference
