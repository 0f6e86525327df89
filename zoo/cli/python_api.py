"""The Python interface of the zoo; `import zoo` offers these names and imports this module when one of them is used."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import numpy as np

from zoo import trust as permissions
from zoo.cli import early_checks
from zoo.cli.python_arguments import (
    check_argument,
    check_fields,
    check_ids,
    check_name,
    check_predict_options,
    check_stream,
    check_text,
    check_texts,
    check_turns,
    check_type,
    decoding_of,
    one_or_list,
)
from zoo.cli.trust_option import trust_folder
from zoo.configs._pooling import Pool
from zoo.errors import BadInput

if TYPE_CHECKING:
    from jax.sharding import Mesh
    from jaxtyping import Array, Float, Float32

    from eval.generation.generator import Generator
    from eval.inference.encoder_runner import Encoder
    from train.config.run_config import Run
    from train.tokenizers.tokenizer import Tokenizer
    from train.weights.load import Loaded
    from zoo.models import Model


Ids = Sequence[int] | np.ndarray
"""Token ids of one text."""
Messages = str | Sequence[Mapping[str, str]]
"""A conversation that ends with a turn of the user, each turn with its "role" and "content"; a text is that turn alone."""


class LoadedModel:
    """A model with its parameters and its tokenizer, as `load` returns it."""

    def __init__(self, loaded: "Loaded", batch: int = 16) -> None:
        """Wrap a loaded model, which computes `batch` rows at a time."""
        self._loaded, self._batch = loaded, batch
        self._generators: dict[int | None, Generator] = {}

    @property
    def model(self) -> "Model":
        """The configuration with its functions `apply`, `unembed` and others."""
        return self._loaded.model

    @property
    def config(self) -> Any:
        """The configuration of the model, a frozen dataclass of `zoo.configs`."""
        return self.model.config

    @property
    def params(self) -> dict[str, Any]:
        """Nested dict of float32 arrays, laid out over `mesh`."""
        return self._loaded.params

    @property
    def mesh(self) -> "Mesh":
        """The devices that the parameters are laid out over."""
        return self._loaded.mesh

    @property
    def tokenizer(self) -> "Tokenizer":
        """The tokenizer that the model was trained with."""
        return self._loaded.tokenizer

    @property
    def run(self) -> "Run | None":
        """The configuration of the run; None for published weights."""
        return self._loaded.run

    @property
    def step(self) -> int | None:
        """The step of the checkpoint; None for published weights."""
        return self._loaded.step

    def __repr__(self) -> str:
        at = "" if self.step is None else f", step {self.step:,}"
        return f"<LoadedModel {self._loaded.name}: {self.model.family}{at}>"

    def logits(self, text: str | Ids, target: str | Ids | None = None) -> "Float[Array, 'T V']":
        """Return float32 logits over the vocabulary at each position of one text.

        Args:
            text: a text, which an encoder reads between its special tokens, or the token ids as they are.
            target: what the decoder of an encoder-decoder reads; for other models None.

        Raises:
            BadInput: the model predicts no tokens, `target` is missing or not applicable, an id is not in the vocabulary, or the
                text is longer than the model's positions.
        """
        import jax
        import jax.numpy as jnp

        from train.engine import device_mesh
        from zoo.batch import Batch

        model = self.model
        fix = "an encoder-decoder needs a target, and other models accept none"
        check_argument(model.is_encoder_decoder == (target is not None), "target", target, fix)
        if not (model.generates or {"masked", "unembed"} & self.params.keys()):
            raise BadInput(f"{self._loaded.where}: a {model.family} for the task {model.task} has no head that predicts tokens")
        # The mesh divides the rows of a batch, so the text is repeated.
        rows = device_mesh.round_up_rows(self.mesh, 1)

        def batch(text: str | Ids, name: str, **fields: Any) -> Batch:
            return Batch(tokens=jnp.tile(self._ids(text, name), (rows, 1)), **fields)

        inputs = batch(text, "text") if target is None else batch(target, "target", source=batch(text, "text"))
        with jax.set_mesh(self.mesh):
            hidden = model.apply(self.params, inputs).hidden
            return model.unembed(self.params, hidden[:1])[0, :, : self.config.vocab]

    def generate(self, prompts: str | Sequence[str], **settings: Any) -> Any:
        """Continue a prompt, or each of several, and return the new text, or a list of texts.

        Args:
            settings: fields of `eval.generation.generation_options.Decoding` and of `Processors`, `Sampling` and `Beams` in
                `zoo.generation.decoding_settings`: limit (new tokens at most), stop, samples, seed, temperature, top_k, top_p,
                beams, ... With `samples` above 1 the texts of a prompt follow each other. Settings that are not given are those
                of the model's generation_config.json, if it has one.

        Raises:
            BadInput: an unknown setting or a value out of range, an empty prompt, or a model that does not generate.
        """
        decoding, texts = self._resolved(settings), check_texts(prompts, "prompts")
        results = [result.text for result in self._generator().generate(self._prompt_ids(texts), decoding)]
        return results if decoding.samples > 1 else one_or_list(results, prompts)

    def stream(self, prompt: str, *, chunk: int = 1, **settings: Any) -> "Iterator[str]":
        """Yield the text that `generate` returns for one prompt and the same settings, in parts, as it is decoded.

        A part has complete characters only, and the beginning of what may become a stop string waits for what follows.

        Args:
            chunk: tokens that are decoded before Python is asked; more are faster.
            settings: see `generate`.

        Raises:
            BadInput: as for `generate`; beams or samples above 1.
        """
        check_stream(decoding_of(settings), chunk)
        decoding = check_stream(self._resolved(settings), chunk)
        (ids,) = self._prompt_ids([check_text(prompt, "prompt")])
        return self._generator().stream(ids, decoding, chunk=chunk)

    def chat(self, messages: Messages, *, stream: bool = False, chunk: int = 1, **settings: Any) -> Any:
        """Return the answer to a conversation, which the chat template of the model renders.

        Args:
            stream: yield the answer in parts, see `stream`.
            settings: see `generate`.

        Raises:
            BadInput: as for `generate`; turns that do not alternate or do not end with the user's, a model without a template.
        """
        from eval.generation.conversation import without_first_space
        from train.tokenizers.chat_template import chat_template
        from train.tokenizers.chat_token_ids import end_mark, rendered_prompts

        decoding = self._resolved(settings)
        template = chat_template(self.tokenizer, self._loaded.where)
        rendered = rendered_prompts([("messages", check_turns(messages))], self.tokenizer, template)
        ids = self.tokenizer.encode_rendered(rendered)
        # The text of an encoder-decoder ends with end-of-text, like the target of every pair.
        generator = self._generator(None if self.model.is_encoder_decoder else end_mark(self.tokenizer, template))
        ids = [np.array([*tokens, *self._end_of_source], np.int32) for tokens in ids]
        if stream:
            return without_first_space(generator.stream(ids[0], check_stream(decoding, chunk), chunk=chunk))
        answers = [result.text.lstrip() for result in generator.generate(ids, decoding)]
        return answers if decoding.samples > 1 else answers[0]

    def score(self, texts: str | Sequence[str], continuations: Sequence[str] | None = None) -> Any:
        """Return the log-likelihood of a text, or of each of several, or of the continuations of a text.

        The result for one is a dict with `text`, `log_likelihood` in nats, `per_token`, its mean over the tokens, and `tokens`. A
        text is scored as the beginning of a document.

        Args:
            continuations: texts that may follow the one text `texts`; most begin with a space. The result is a list of theirs.

        Raises:
            BadInput: a model that does not read from left to right, a text without tokens, or one longer than the positions.
        """
        from eval.inference.likelihood import encode, likelihoods

        if continuations is None:
            names = check_texts(texts, "texts", blank=False)
            pairs = [("", text) for text in names]
        else:
            check_argument(not isinstance(continuations, str), "continuations", continuations, "pass a list of texts")
            context, names = check_text(texts, "texts"), check_texts(continuations, "continuations")
            pairs = [(context, text) for text in names]
        encoded = encode(self.tokenizer, pairs)
        for name, (_, tokens) in zip(names, encoded, strict=True):
            check_argument(len(tokens) > 0, "text", name, "the tokenizer returns no ids for it; write some text")
        loaded = self._loaded
        options: dict[str, Any] = {"batch": self._batch, "dtype": "float32", "name": lambda number: f"text {number + 1}"}
        results = [
            {"text": text, "log_likelihood": -result.nats, "per_token": -result.nats / result.tokens, "tokens": result.tokens}
            for text, result in zip(names, likelihoods(loaded, encoded, **options), strict=True)
        ]
        return results if continuations is not None else one_or_list(results, texts)

    def fill_mask(self, texts: str | Sequence[str], *, top: int = 5, targets: Sequence[str] = (), truncate: bool = False) -> Any:
        """Return the likeliest words for each mask of a text, which is written [MASK] or <mask>, or of several texts.

        For a text it is a list with a dict for each mask: `text`, `mask`, its number from 1, and `candidates`, the likeliest
        first, each with `token`, `id`, `probability` and `text`. For several texts it is a list of such lists.

        Args:
            top: number of candidates.
            targets: words whose probabilities are returned instead; each is an entry of the vocabulary.
            truncate: cut the end off a text that is longer than the model's positions.

        Raises:
            BadInput: a model without a head for masked words, a text without a mask or too long, a target of several tokens.
        """
        from eval.commands.fill_mask import fill_masks, mask_record

        check_argument(check_type(int, top, "top") >= 1, "top", top, "choose 1 or more words")
        check_argument(not isinstance(targets, str), "targets", targets, "pass a list of words")
        words = check_texts(targets, "targets", blank=False) if targets else []
        encoder, named = self._encoder(), _named(check_texts(texts, "texts", blank=False))
        records = map(
            mask_record,
            fill_masks(encoder, named, top=top, targets=words, truncate=check_type(bool, truncate, "truncate"), quiet=True),
        )
        results: list[list[dict[str, Any]]] = []
        for record in records:
            if record["mask"] == 1:
                results.append([])
            results[-1].append(record)
        return one_or_list(results, texts)

    def predict(self, texts: str | Sequence[str], **options: Any) -> Any:
        """Return the prediction of a fine-tuned model for a text, or a list of predictions for several.

        Args:
            options: `pair`, `context`, `options`, `labelled`, `length`, `null_threshold`, `with_text` and `dtype` of
                `eval.commands.predict.predict`, which describes the result.

        Raises:
            BadInput: a model without a head for labels, or texts that do not fit its kind.
        """
        from eval.commands.predict import predict

        named = check_texts(texts, "texts", blank=False)
        results = list(predict(self._loaded, texts=named, batch=self._batch, **check_predict_options(options)))
        return one_or_list(results, texts)

    def embed(
        self,
        texts: str | Sequence[str],
        *,
        pool: str = "auto",
        normalize: bool | None = None,
        truncate: bool = False,
        prompt: str = "",
        prompt_text: str | None = None,
        dimensions: int = 0,
    ) -> "Float32[np.ndarray, '...']":
        """Return the float32 vector [D] of a text from an encoder's last layer, or those of several texts [N, D].

        Args:
            pool: a name of `zoo.configs._pooling.Pool`; "auto": as the folder of the model says, "mean" for a plain encoder.
            normalize: divide each vector by its Euclidean length; None: as the folder of the model says.
            truncate: cut the end off a text that is longer than the model's positions.
            prompt: name of the model's prompt that is put before each text; "": its default prompt, if it has one.
            prompt_text: text that is put before each text, in place of a prompt of the model; "" = none.
            dimensions: number of first dimensions, before normalization; 0 = all.

        Raises:
            BadInput: a model that is not an encoder, or a text that is too long.
        """
        from eval.commands.embed import embed_with_progress
        from eval.inference.encoder_inputs import Vectors

        pools = ("auto", *get_args(Pool))
        check_argument(pool in pools, "pool", pool, f"choose {', '.join(pools)}")
        flag = None if normalize is None else check_type(bool, normalize, "normalize")
        check_type(bool, truncate, "truncate")
        written = None if prompt_text is None else check_type(str, prompt_text, "prompt_text")
        count = check_type(int, dimensions, "dimensions")
        named = _named(check_texts(texts, "texts", blank=False))
        settings: dict[str, Any] = {"pool": pool, "normalize": flag, "dimensions": count, "prompt_text": written}
        options = Vectors(prompt=check_type(str, prompt, "prompt"), **settings)
        vectors = embed_with_progress(self._encoder(), named, options, truncate=truncate, quiet=True)
        return vectors[0] if isinstance(texts, str) else vectors

    def score_pairs(self, pairs: Sequence[Sequence[str]], *, truncate: bool = False) -> "Float32[np.ndarray, ' N']":
        """Return the float32 score of each pair of texts by a cross-encoder, a model with a head of one score.

        Args:
            pairs: (query, document).
            truncate: cut a pair that is longer than the model reads, the longer text first.

        Raises:
            BadInput: the model is no cross-encoder, a text is empty, or a pair is too long.
        """
        from eval.inference.encoder_runner import Text
        from eval.inference.pair_scores import CrossEncoder

        check_type(bool, truncate, "truncate")
        check_argument(isinstance(pairs, Sequence) and len(pairs) > 0, "pairs", pairs, "pass a list of pairs")
        named = [
            [Text(name, text) for text in check_texts(pair, name, blank=False)]
            for name, pair in ((f"pairs[{number}]", pair) for number, pair in enumerate(pairs))
        ]
        check_argument({*map(len, named)} == {2}, "pairs", pairs, "pass two texts in each pair, a query and a document")
        scorer = CrossEncoder.of(self._loaded, batch=self._batch, dtype="float32", truncate=truncate)
        return scorer.scores(scorer.logits(named))

    def export(self, folder: str | Path) -> Path:
        """Write config.json, safetensors and the tokenizer's files, as `transformers` reads them, to a new folder.

        Raises:
            BadInput: the folder exists, or the model has no published form.
        """
        from train.weights import import_export

        return import_export.write_folder(Path(check_name(folder, "folder", "name a new folder")), self._loaded)

    @property
    def _end_of_source(self) -> list[int]:
        """Ids at the end of a prompt: the source of an encoder-decoder is a complete text with its end-of-sequence token."""
        return [self.tokenizer.end_of_text] if self.model.is_encoder_decoder else []

    def _prompt_ids(self, texts: Sequence[str]) -> list[np.ndarray]:
        return [np.array([*tokens, *self._end_of_source], np.int32) for tokens in self.tokenizer.encode_many(texts)]

    def _resolved(self, settings: Mapping[str, Any]) -> Any:
        """Return the `Decoding` of settings, and of those in the model's folder that they do not name."""
        from eval.generation.folder_settings import resolve_settings

        return resolve_settings(decoding_of(settings), settings, self._loaded.generation).decoding

    def _generator(self, mark: int | None = None) -> "Generator":
        """Return the generator of texts, or of answers that end with the id `mark`, which is made at its first use."""
        import jax.numpy as jnp

        from eval.generation.folder_settings import make_generator

        if mark not in self._generators:
            options: dict[str, Any] = {"dtype": jnp.float32, "batch": self._batch, "option": "limit"}
            self._generators[mark] = make_generator(self._loaded, mark, **options)
        return self._generators[mark]

    def _encoder(self) -> "Encoder":
        from eval.inference.encoder_runner import Encoder

        return Encoder.of(self._loaded, batch=self._batch, dtype="float32")

    def _ids(self, text: str | Ids, name: str) -> np.ndarray:
        """Return the ids of a text, which the model can read at once."""
        from zoo.configs import longest_row

        if isinstance(text, str):
            ids = np.asarray(self.tokenizer.encode(check_text(text, name)), np.int32)
            special = None if self.model.generates else self.tokenizer.special_tokens
            ids = ids if special is None else special.single(ids)[0]
            check_argument(ids.size > 0, name, text, "pass a text, or the ids of one, with a token or more")
        else:
            ids = check_ids(text, name, self.config.vocab)
        limit = longest_row(self.config)
        fits = limit is None or ids.size <= limit
        check_argument(fits, name, text, f"its {ids.size} tokens are more than the model's {limit} positions; shorten it")
        return ids


def load(
    source: str | Path,
    *,
    mesh: Mapping[str, int] | None = None,
    step: int | None = None,
    batch: int = 16,
    trust: bool = False,
) -> LoadedModel:
    """Load a run's checkpoint, a folder of published weights, or `hub:ID[@REVISION]` from the local cache of the hub.

    Args:
        mesh: devices by axis, as of `--mesh` ({"fsdp": 2}); None = all devices, a copy of the parameters on each.
        step: the checkpoint of a run; None = the best one of a run that keeps it, else the newest; -1 = the newest.
        batch: rows computed at a time by the methods of the model.
        trust: permit the code of others that the folder names, from now on, as --trust does.

    Raises:
        BadInput: there is nothing to load under this name, or it names code of others, and `trust` was never True.
    """
    early_checks.check_packages()
    name = check_name(source, "source", "name a run, a folder of published weights or hub:ID")
    check_type(int | None, step, "step")
    check_argument(check_type(int, batch, "batch") >= 1, "batch", batch, "choose 1 or more rows")
    permissions.permit_names([name])
    if check_type(bool, trust, "trust"):
        trust_folder(name)
    from zoo.runtime import jax_setup

    jax_setup.prepare_jax()
    from train.config.run_config import Mesh
    from train.engine import device_mesh
    from train.weights.load import load_model as load_folder

    shape = device_mesh.make_mesh(check_fields(Mesh, {} if mesh is None else mesh, "mesh"))
    return LoadedModel(load_folder(name, shape, step), batch)


def _named(texts: Sequence[str]) -> Any:
    """Return texts with their names in messages."""
    from eval.inference.encoder_runner import Text

    return [Text(f"text {number}", text) for number, text in enumerate(texts, 1)]
