"""The settings of generation in a model's folder, completed and overruled by options, with the meaning of `transformers` 5.24.

A published folder without `do_sample: true` generates greedily, or by beam search if it has `num_beams`; temperature, top_k,
top_p and min_p then have no effect. With it, `top_k` is 50 unless the folder has another value. A run without such settings has
the defaults of `zoo generate`.
"""

import dataclasses
import json
from collections.abc import Collection, Mapping
from typing import Any

from eval.generation.generation_options import Decoding
from eval.generation.generator import Generator
from train.weights.generation_settings import PublishedGeneration
from train.weights.load import Loaded
from zoo.errors import BadInput
from zoo.generation.decoding_settings import GREEDY, UNCHANGED, Beams, Processors
from zoo.hf.config_json import PublishedConfig
from zoo.hf.config_keys import GENERATION_KEYS, NEUTRAL_GENERATION_VALUES

FILTERS = ("temperature", "top_k", "top_p", "min_p")
ONLY_SAMPLING = ("top_h", "typical_p", "epsilon_cutoff", "eta_cutoff")
"""Settings that are not implemented, and which have an effect only on sampling."""
DEFAULT_TOP_K = 50
"""Value of top_k in `transformers` for a folder that samples and does not have the key."""
SEARCH_UNTIL = {True: "full", False: "unlikely", "never": "impossible"}
PROCESSOR_KEYS = {
    "repetition_penalty": "repetition_penalty",
    "no_repeat_ngram_size": "no_repeat_ngram",
    "encoder_no_repeat_ngram_size": "source_no_repeat_ngram",
    "bad_words_ids": "bad_words",
    "forced_bos_token_id": "forced_first",
    "forced_eos_token_id": "forced_end",
    "suppress_tokens": "suppressed",
    "begin_suppress_tokens": "begin_suppressed",
    "renormalize_logits": "renormalize",
}
"""Key of a folder -> field of `Processors`."""


@dataclasses.dataclass(frozen=True)
class Resolved:
    """Options and the settings of a folder in one."""

    decoding: Decoding
    file: str = ""
    """The file with the settings; empty if the model has none."""
    used: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """Settings of the folder that are used, by their keys there."""
    defaults: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """Settings that the folder does not have and `transformers` adds."""
    unused: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """Keys of the folder that are not used -> why."""

    def notices(self) -> list[str]:
        """Return lines that say which settings are the folder's, and which of it have no effect."""
        lines = []
        for values, source in ((self.used, self.file), (self.defaults, f"{self.file}: by default of transformers")):
            if values:
                lines.append(f"{source}: {', '.join(f'{key} {json.dumps(value)[:60]}' for key, value in values.items())}")
        if self.unused:
            lines.append(f"{self.file}: not used: {', '.join(f'{key} ({why})' for key, why in self.unused.items())}")
        return lines


def make_generator(loaded: Loaded, mark: int | None = None, **options: Any) -> Generator:
    """Return a generator whose texts begin and end with the ids of the model's folder.

    Args:
        mark: the id that ends an answer in a conversation; None for other texts.
        options: arguments of `Generator`.

    Raises:
        BadInput: see `end_ids`, `first_id` and `Generator`.
    """
    ends = end_ids(loaded.generation, loaded.tokenizer.end_of_text, is_run=loaded.run is not None, mark=mark)
    arguments = (loaded.model, loaded.params, loaded.mesh, loaded.tokenizer)
    return Generator(*arguments, ends=ends, first=first_id(loaded.generation), **options)


def end_ids(
    settings: PublishedGeneration | None, end_of_text: int, *, is_run: bool = False, mark: int | None = None
) -> list[int]:
    """Return the ids that end a text: those of the folder, or else the tokenizer's end-of-text.

    Args:
        is_run: the model was trained here, where texts end with the tokenizer's end-of-text, whatever they ended with before.
        mark: the id that ends an answer in a conversation; None for other texts.

    Raises:
        BadInput: `eos_token_id` is neither a whole number nor a list of such.
    """
    # `transformers` never ends a text at a negative id.
    ends = [] if settings is None else [token for token in _id_list(settings, "eos_token_id") if token >= 0]
    if is_run or mark is not None or not ends:
        ends.append(end_of_text if mark is None else mark)
    return list(dict.fromkeys(ends))


def first_id(settings: PublishedGeneration | None) -> int | None:
    """Return the first input of an encoder-decoder's decoder; None if the folder does not give it.

    Raises:
        BadInput: it is not a whole number of at least 0.
    """
    reader = _reader(settings) if settings is not None else None
    for key in ("decoder_start_token_id", "bos_token_id"):
        if reader is not None and reader.has(key):
            return reader.integer(key, least=0)
    return None


def folder_processors(settings: PublishedGeneration | None) -> Processors:
    """Return the processors that a folder sets, for texts whose search and length are decided elsewhere.

    Raises:
        BadInput: a setting of another type or out of range.
    """
    if settings is None:
        return UNCHANGED
    resolver = _Resolver(Decoding(), frozenset(), settings)
    resolver.set_processors()
    return resolver.decoding.processors


def changed_fields(processors: Processors) -> dict[str, Any]:
    """Return the fields that are not at their defaults."""
    return {
        field.name: value
        for field in dataclasses.fields(processors)
        if (value := getattr(processors, field.name)) != field.default
    }


def resolve_settings(
    decoding: Decoding, explicit: Collection[str], settings: PublishedGeneration | None, *, is_encoder_decoder: bool = False
) -> Resolved:
    """Return the options, and for each that is not given the setting of the folder.

    Args:
        explicit: names of the options that were given, fields of `Decoding`, `Processors`, `Sampling` and `Beams`.
        settings: None: the folder has none, and `decoding` is returned as it is.
        is_encoder_decoder: the ids of the decoder's first token are used too.

    Raises:
        BadInput: a setting of another type or out of range, one that is not implemented and has an effect, or options that
            contradict each other.
    """
    if settings is None:
        decoding.check_search()
        return Resolved(decoding)
    resolver = _Resolver(decoding, frozenset(explicit), settings)
    ids = ("eos_token_id", *(("decoder_start_token_id",) if is_encoder_decoder else ()))
    resolver.used.update({key: settings.values[key] for key in ids if key in settings.values})
    if decoding.folder_settings:
        resolver.resolve()
    resolver.decoding.check_search()
    return Resolved(resolver.decoding, str(settings.file), resolver.used, resolver.defaults, resolver.unused)


class _Resolver:
    """Applies the settings of a folder to options, and remembers which were used."""

    def __init__(self, decoding: Decoding, explicit: frozenset[str], settings: PublishedGeneration) -> None:
        self.decoding, self._explicit, self._settings, self._values = decoding, explicit, settings, settings.values
        self._reader = _reader(settings)
        self.used: dict[str, Any] = {}
        self.defaults: dict[str, Any] = {}
        self.unused: dict[str, str] = {}

    def resolve(self) -> None:
        """Apply every setting."""
        beams, samples = self._mode()
        self._refuse_unsupported(samples=samples)
        self._search(beams)
        self._sampling(samples=samples, searches=beams > 1)
        self._length()
        self.set_processors()
        self._samples(beams, samples=samples)
        if (stop := self._stop_strings()) and self._takes("stop_strings", "stop"):
            self.decoding = dataclasses.replace(self.decoding, stop=stop)
        for key in self._values.keys() - GENERATION_KEYS:
            self.unused[key] = "unknown"
        if "max_time" in self._values:
            self.unused["max_time"] = "a text does not depend on the time here"

    def _mode(self) -> tuple[int, bool]:
        """Return (number of beams, whether tokens are sampled)."""
        explicit, sampling = self._explicit, self.decoding.sampling
        greedy = "temperature" in explicit and sampling.temperature == 0
        chosen = not greedy and bool(explicit & set(FILTERS))
        folder_beams, folder_samples = self._reader.integer("num_beams", 1), self._reader.flag("do_sample", False)
        if "beams" in explicit:
            beams = self.decoding.search.beams
            if "num_beams" in self._values and beams != folder_beams:
                self.unused["num_beams"] = "--beams"
        elif chosen and folder_beams > 1:
            beams, self.unused["num_beams"] = 1, "the options sample"
        else:
            beams = folder_beams
            if beams > 1:
                self.used["num_beams"] = beams
        if greedy or ("beams" in explicit and beams > 1):
            if folder_samples:
                self.unused["do_sample"] = "--temperature 0" if greedy else "--beams"
            return beams, False
        if folder_samples and beams > 1:
            fix = "sampling within a beam search is not supported; choose --beams 1 to sample, or a number of beams to search"
            raise self._reader.wrong("do_sample", True, f"{fix} (num_beams is {beams})")
        if "do_sample" in self._values:
            self.used["do_sample"] = folder_samples
        if beams == 1 and not (folder_samples or chosen):
            self._refuse_equal_samples()
            if "do_sample" not in self._values:
                self.defaults["do_sample"] = False
        return beams, folder_samples or chosen

    def _refuse_equal_samples(self) -> None:
        count, fix = self.decoding.samples, "choose --temperature 1 to sample, or --beams to search"
        if "samples" in self._explicit and count > 1:
            why = "does not say do_sample true, so that the likeliest tokens are taken and all samples would be equal"
            raise BadInput(f"--samples {count}: {self._settings.file} {why}; {fix}")

    def _refuse_unsupported(self, *, samples: bool) -> None:
        for key, neutral in NEUTRAL_GENERATION_VALUES.items():
            if (value := self._values.get(key)) is None or any(value == other for other in neutral):
                continue
            if key in ONLY_SAMPLING and not samples:
                self.unused[key] = "nothing is sampled"
                continue
            fix = "this is not supported; remove it, or choose --no-folder-settings to use none of the file's settings"
            raise self._reader.wrong(key, value, fix)

    def _search(self, beams: int) -> None:
        values: dict[str, Any] = {}
        if "length_penalty" in self._values:
            values["length_penalty"] = self._reader.number("length_penalty")
        if "early_stopping" in self._values:
            value = self._values["early_stopping"]
            if not isinstance(value, bool | str) or value not in SEARCH_UNTIL:
                raise self._reader.wrong("early_stopping", value, 'it must be true, false or "never"')
            values["search_until"] = SEARCH_UNTIL[value]
        keys = {"length_penalty": "length_penalty", "search_until": "early_stopping"}
        if beams == 1:
            defaults = Beams()
            changed = [name for name, value in values.items() if value != getattr(defaults, name)]
            self.unused.update({keys[name]: "no beam search" for name in changed})
            values = {}
        values = {name: value for name, value in values.items() if self._takes(keys[name], name)}
        self.decoding = dataclasses.replace(
            self.decoding, search=dataclasses.replace(self.decoding.search, beams=beams, **values)
        )

    def _sampling(self, *, samples: bool, searches: bool) -> None:
        names = [name for name in FILTERS if name in self._values]
        if not samples:
            neutral = {"temperature": 1.0, "top_k": DEFAULT_TOP_K, "top_p": 1.0, "min_p": 0.0}
            why = "beam search does not sample" if searches else "nothing is sampled"
            self.unused.update({name: why for name in names if self._values[name] != neutral[name]})
            if not searches:
                self.decoding = dataclasses.replace(self.decoding, sampling=GREEDY)
            return
        values: dict[str, Any] = {
            name: self._reader.integer(name, least=0) if name == "top_k" else self._decimal(name) for name in names
        }
        if values.get("temperature") == 0:
            raise self._reader.wrong("temperature", 0.0, "it must be above 0 where do_sample is true; choose --temperature 0")
        if self._values.get("do_sample") and "top_k" not in values and "top_k" not in self._explicit:
            values["top_k"] = self.defaults["top_k"] = DEFAULT_TOP_K
        values = {name: value for name, value in values.items() if name not in names or self._takes(name, name)}
        sampling = self.decoding.sampling
        self.decoding = dataclasses.replace(self.decoding, sampling=dataclasses.replace(sampling, **values))

    def _length(self) -> None:
        reader = self._reader
        if "max_new_tokens" in self._values:
            limit = reader.integer("max_new_tokens")
            if self._takes("max_new_tokens", "limit"):
                self.decoding = dataclasses.replace(self.decoding, limit=limit)
            if "max_length" in self._values:
                self.unused["max_length"] = "max_new_tokens"
        elif "max_length" in self._values:
            total = reader.integer("max_length")
            if self._takes("max_length", "limit"):
                self.decoding = dataclasses.replace(self.decoding, total=total)

    def set_processors(self) -> None:
        """Apply the settings of `Processors`."""
        reader, fields = self._reader, {field.name: field for field in dataclasses.fields(Processors)}
        values: dict[str, Any] = {}
        for key, name in PROCESSOR_KEYS.items():
            if key in self._values:
                values[name] = self._processor_value(key)
        for name, key in (("min_length", "min_length"), ("min_tokens", "min_new_tokens")):
            if key in self._values:
                values[name] = reader.integer(key, least=0)
        if ("min_tokens" in values or "min_tokens" in self._explicit) and values.pop("min_length", 0):
            self.unused["min_length"] = "min_new_tokens"
        keys = {name: key for key, name in PROCESSOR_KEYS.items()} | {"min_tokens": "min_new_tokens"}
        values = {
            name: value
            for name, value in values.items()
            if value != fields[name].default and self._takes(keys.get(name, name), name)
        }
        self.decoding = dataclasses.replace(self.decoding, processors=dataclasses.replace(self.decoding.processors, **values))
        suppressed = set(self.decoding.processors.suppressed)
        for key, name in (("forced_bos_token_id", "forced_first"), ("forced_eos_token_id", "forced_end")):
            if values.get(name) is not None and set(_id_list(self._settings, key)) <= suppressed:
                raise reader.wrong(key, self._values[key], "suppress_tokens excludes it, so that no token would remain")

    def _processor_value(self, key: str) -> Any:
        match key:
            case "repetition_penalty":
                return self._decimal(key)
            case "no_repeat_ngram_size" | "encoder_no_repeat_ngram_size":
                return self._reader.integer(key, least=0)
            case "forced_bos_token_id":
                return self._reader.integer(key, least=0)
            case "renormalize_logits":
                return self._reader.flag(key, False)
            case "bad_words_ids":
                return self._bad_words()
        return _id_list(self._settings, key)

    def _bad_words(self) -> tuple[tuple[int, ...], ...]:
        words = self._values["bad_words_ids"]
        lists = isinstance(words, list) and all(isinstance(word, list) and word for word in words)
        if not lists or not words or not all(type(token) is int and token >= 0 for word in words for token in word):
            raise self._reader.wrong("bad_words_ids", words, "it must be a list of lists of ids, none of them empty")
        return tuple(map(tuple, words))

    def _samples(self, beams: int, *, samples: bool) -> None:
        count = self._reader.integer("num_return_sequences", 1)
        if count > 1 and self._takes("num_return_sequences", "samples"):
            if not samples and beams < count:
                fix = f"neither sampling nor {count} beams are chosen, so the texts would be equal; choose --samples 1"
                raise self._reader.wrong("num_return_sequences", count, fix)
            self.decoding = dataclasses.replace(self.decoding, samples=count)

    def _stop_strings(self) -> tuple[str, ...]:
        value = self._values.get("stop_strings", [])
        texts = [value] if isinstance(value, str) else value
        if not isinstance(texts, list) or not all(isinstance(text, str) and text for text in texts):
            raise self._reader.wrong("stop_strings", value, "it must be a text or a list of texts")
        return tuple(texts)

    def _decimal(self, key: str) -> float:
        """Return a number, which `transformers` takes as a whole one only if it is 1."""
        return self._reader.number(key, decimal=key in ("temperature", "repetition_penalty") and self._values[key] != 1)

    def _takes(self, key: str, option: str) -> bool:
        """Record whether a setting is used or an option replaces it."""
        if option in self._explicit:
            self.unused[key] = f"--{option.replace('_', '-')}"
            return False
        self.used[key] = self._values[key]
        return True


def _reader(settings: PublishedGeneration) -> PublishedConfig:
    return PublishedConfig(settings.file, dict(settings.values))


def _id_list(settings: PublishedGeneration, key: str) -> tuple[int, ...]:
    """Return the ids at a key, which has one or a list of them."""
    value, reader = settings.values.get(key), _reader(settings)
    if value is None:
        return ()
    return reader.integers(key) or () if isinstance(value, list) else (reader.integer(key, least=-(1 << 31)),)
