"""Checks of the arguments that users of the Python interface pass: what is refused is `BadInput`, with the argument's name."""

import dataclasses
import difflib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from zoo.errors import BadInput

FIX = "pass another value"
"""End of the message about an argument of another type."""
LONGEST = 60
"""Characters of a value in a message."""


def check_argument(valid: bool, name: str, value: Any, fix: str) -> None:
    """Refuse an argument unless it is `valid`.

    Raises:
        BadInput: "name value: fix".
    """
    if not valid:
        text = " ".join(repr(value).split())
        raise BadInput(f"{name} {text if len(text) <= LONGEST else f'{text[:LONGEST]}...'}: {fix}")


def check_name(value: Any, name: str, fix: str) -> str:
    """Return a path or a name as a string.

    Raises:
        BadInput: it is empty or of another type.
    """
    check_argument(isinstance(value, str | Path) and bool(str(value)), name, value, fix)
    return str(value)


def check_text(value: Any, name: str, *, blank: bool = True) -> str:
    """Return an argument that is a text.

    Args:
        blank: it may be empty or white space.

    Raises:
        BadInput: it is of another type, blank, or has a half of a character that UTF-8 cannot encode.
    """
    check_argument(isinstance(value, str), name, value, "pass a text")
    # JSON and the names of files can bring in lone surrogates.
    check_argument(not any("\ud800" <= letter <= "\udfff" for letter in value), name, value, "remove its unpaired surrogates")
    check_argument(blank or bool(value.strip()), name, value, "write some text")
    return value


def check_texts(value: Any, name: str, *, blank: bool = True) -> list[str]:
    """Return an argument that is a text, or several texts, as a list; see `check_text`."""
    if isinstance(value, str):
        return [check_text(value, name, blank=blank)]
    several = isinstance(value, Iterable) and not isinstance(value, bytes | Mapping)
    check_argument(several, name, value, "pass a text, or a list of texts")
    texts = list(value)
    check_argument(bool(texts), name, texts, "pass one text or more")
    return [check_text(text, f"{name}[{number}]", blank=blank) for number, text in enumerate(texts)]


def check_type(kind: Any, value: Any, name: str) -> Any:
    """Return an argument that is of the type of an annotation; a list may be a tuple.

    Raises:
        BadInput: it is of another type.
    """
    from train.config.from_json import from_json

    return from_json(kind, list(value) if isinstance(value, tuple) else value, name, fix=FIX)


def check_fields(kind: Any, values: Any, name: str) -> Any:
    """Return a dataclass with some of its fields.

    Raises:
        BadInput: `values` is no mapping, or a field is unknown or of another type.
    """
    check_argument(isinstance(values, Mapping), name, values, "pass a dict")
    check_names(values, {field.name for field in dataclasses.fields(kind)}, name)
    return check_type(kind, dict(values), name)


def check_names(settings: Mapping[Any, Any], names: Iterable[str], where: str) -> None:
    """Refuse settings with other names.

    Raises:
        BadInput: the message has the nearest name.
    """
    names = sorted(names)
    for name in settings:
        if name not in names:
            near = difflib.get_close_matches(str(name), names, n=1)
            nearest = f"the nearest is {near[0]}; " if near else ""
            raise BadInput(f"{where}: there is no setting {name!r}; {nearest}choose {', '.join(names)}")


def check_ids(value: Any, name: str, entries: int) -> Any:
    """Return token ids as int32 [T].

    Args:
        entries: number of entries of the vocabulary.

    Raises:
        BadInput: they are no integers of one text, or not in the vocabulary.
    """
    import numpy as np

    fix = "pass a text, or the ids of one, with a token or more"
    try:
        ids = np.asarray(value)
    except (TypeError, ValueError):
        ids = np.asarray(None)
    check_argument(ids.ndim == 1 and ids.size > 0 and ids.dtype.kind in "iu", name, value, fix)
    outside = (ids < 0) | (ids >= entries)
    check_argument(not outside.any(), name, value, f"the ids of the vocabulary are 0 to {entries - 1:,}")
    return ids.astype(np.int32)


def check_predict_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return options of `eval.commands.predict.predict` for texts, after checking their types."""
    from train.config.option_groups import Labelled

    kinds = {"pair": str | None, "context": str | None, "options": tuple[str, ...], "length": int, "null_threshold": float | None}
    kinds |= {"with_text": bool}
    check_names(options, {*kinds, "labelled", "dtype"}, "predict")
    labelled, dtype = options.get("labelled", Labelled()), options.get("dtype", "float32")
    check_argument(isinstance(labelled, Labelled), "labelled", labelled, "pass a train.config.option_groups.Labelled")
    check_argument(_is_dtype(dtype), "dtype", dtype, "choose float32 or bfloat16")
    checked = {name: check_type(kinds[name], value, name) for name, value in options.items() if name in kinds}
    for name, value in checked.items():
        for text in (value,) if isinstance(value, str) else value if name == "options" else ():
            check_text(text, name)
    return {**checked, "labelled": labelled, "dtype": dtype}


def check_stream(decoding: Any, chunk: Any) -> Any:
    """Return the settings of one text in parts, after checking that they are."""
    one, fix = decoding.samples == 1 and decoding.search.beams == 1, "one text is decoded at a time; use generate"
    check_argument(one, "samples" if decoding.samples > 1 else "beams", max(decoding.samples, decoding.search.beams), fix)
    check_argument(check_type(int, chunk, "chunk") >= 1, "chunk", chunk, "choose 1 or more tokens")
    return decoding


def check_turns(messages: Any) -> Any:
    """Return the messages of a conversation that ends with a turn of the user."""
    from train.data.dialogues import parse_turns

    if isinstance(messages, str):
        messages = [{"role": "user", "content": messages}]
    listed = isinstance(messages, Sequence) and not isinstance(messages, bytes)
    check_argument(listed, "messages", messages, 'pass a list of dicts with "role" and "content"')
    turns = parse_turns([dict(turn) if isinstance(turn, Mapping) else turn for turn in messages], "messages", "messages")
    last = f"the last one is the {turns[-1].role}'s; end with a turn of the user, which the model answers"
    check_argument(turns[-1].role == "user", "messages", messages, last)
    return turns


def one_or_list(results: Sequence[Any], argument: Any) -> Any:
    """Return the result for an argument that is one text, or the list of those for several."""
    return results[0] if isinstance(argument, str) else list(results)


def _is_dtype(value: Any) -> bool:
    """Return whether a value names a dtype of floating-point numbers."""
    import jax.numpy as jnp

    try:
        return jnp.issubdtype(jnp.dtype(value), jnp.floating)
    except TypeError:
        return False


def decoding_of(settings: Mapping[str, Any]) -> Any:
    """Return the `eval.generation.generation_options.Decoding` of settings that are named without their group.

    Raises:
        BadInput: an unknown setting, or a value of another type or out of range.
    """
    from eval.generation.generation_options import Decoding
    from train.config.from_json import from_json
    from zoo.generation.decoding_settings import Beams, Processors, Sampling

    groups: dict[str, Any] = {"processors": Processors, "sampling": Sampling, "search": Beams}
    names = {name: {field.name for field in dataclasses.fields(kind)} for name, kind in groups.items()}
    own = {field.name for field in dataclasses.fields(Decoding)} - groups.keys()
    check_names(settings, own.union(*names.values()), "generate")
    values = {key: [value] if key == "stop" and isinstance(value, str) else value for key, value in settings.items()}
    values = {key: _as_lists(value) for key, value in values.items()}
    parts = {
        name: from_json(kind, {key: values[key] for key in values if key in names[name]}, "", fix=FIX)
        for name, kind in groups.items()
    }
    return dataclasses.replace(from_json(Decoding, {key: values[key] for key in values if key in own}, "", fix=FIX), **parts)


def _as_lists(value: Any) -> Any:
    """Return a value with lists in place of tuples, as in JSON."""
    return [_as_lists(item) for item in value] if isinstance(value, list | tuple) else value
