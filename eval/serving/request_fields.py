"""Values in the JSON of a request, and the error for a request that is refused."""

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from train.data.text_files import json_type
from zoo.errors import printable


class RequestError(Exception):
    """A request that is refused: a status of HTTP and one line."""

    def __init__(self, message: str, *, status: int = 400, param: str | None = None, code: str | None = None) -> None:
        super().__init__(printable(message))
        self.status, self.param, self.code = status, None if param is None else printable(param), code

    def content(self) -> dict[str, Any]:
        """Return the error in OpenAI's form."""
        kind = "invalid_request_error" if self.status < 500 else "server_error"
        return {"error": {"message": str(self), "type": kind, "param": self.param, "code": self.code}}


def parse_object(body: bytes) -> dict[str, Any]:
    """Return the JSON object in a body.

    Raises:
        RequestError: it is not strict JSON in UTF-8, or not an object.
    """
    try:
        value = json.loads(body.decode(), parse_constant=_refuse_constant)
    except UnicodeDecodeError as error:
        raise RequestError(f"the body is not UTF-8 ({error.reason}); send JSON in UTF-8") from None
    except (ValueError, RecursionError) as error:
        raise RequestError(f"the body is not JSON ({str(error)[:100]}); send an object") from None
    if not isinstance(value, dict):
        raise RequestError(f"the body is {json_type(value)}; send an object")
    return value


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not a number in JSON")


def check_names(body: Mapping[str, Any], names: set[str], neutral: Mapping[str, Sequence[Any]]) -> None:
    """Refuse fields that are not supported, unless their values change nothing.

    Args:
        names: fields that are supported.
        neutral: field that is not supported -> values that change nothing; null always changes nothing.

    Raises:
        RequestError: names the field.
    """
    for name, value in body.items():
        if name in names or value is None:
            continue
        if name not in neutral:
            raise RequestError(f"{name[:60]}: there is no such field; choose {', '.join(sorted(names))}", param=name[:60])
        if all(value != other or isinstance(value, bool) != isinstance(other, bool) for other in neutral[name]):
            raise RequestError(f"{name}: this is not supported; remove it", param=name)


def read_field(body: Mapping[str, Any], name: str, kind: type, default: Any = None) -> Any:
    """Return a field, or the default if it is missing or null. A whole number is a number too, and True is none.

    Raises:
        RequestError: it is of another type, or a text with half a character.
    """
    value = body.get(name)
    if value is None:
        return default
    kinds = (int, float) if kind is float else (kind,)
    if not isinstance(value, kinds) or (isinstance(value, bool) and kind is not bool):
        titles = {
            int: "a whole number",
            float: "a number",
            bool: "true or false",
            str: "a text",
            dict: "an object",
            list: "a list",
        }
        raise RequestError(f"{name} is {json_type(value)}; write {titles[kind]}", param=name)
    if kind is float:
        # Whole numbers of JSON may be larger than any float.
        return float(value) if abs(value) < 1 << 64 else (math.inf if value > 0 else -math.inf)
    return check_characters(value, name) if isinstance(value, str) else value


def read_integer(body: Mapping[str, Any], name: str, default: int | None, least: int, largest: int) -> Any:
    """Return a whole number from `least` to `largest`, or the default; see `read_field`."""
    value = read_field(body, name, int, default)
    if value is not None and not least <= value <= largest:
        raise RequestError(f"{name}{f' {value}' if abs(value) < 1 << 64 else ''}: choose {least:,} to {largest:,}", param=name)
    return value


def read_texts(body: Mapping[str, Any], name: str, largest: int) -> list[str]:
    """Return a field that is a text or a list of texts, as a list; [] if it is missing.

    Raises:
        RequestError: it is something else, or more than `largest` texts.
    """
    value = body.get(name)
    texts = [] if value is None else [value] if isinstance(value, str) else value
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise RequestError(f"{name}: write a text or a list of texts", param=name)
    if len(texts) > largest:
        raise RequestError(f"{name} has {len(texts):,} texts; send at most {largest:,}", param=name)
    return [check_characters(text, name) for text in texts]


def check_characters(text: str, name: str) -> str:
    """Return a text, after checking that UTF-8 can encode it.

    Raises:
        RequestError: it has a half of a character, as escapes of JSON can write it.
    """
    if any("\ud800" <= letter <= "\udfff" for letter in text):
        raise RequestError(f"{name}: it has an unpaired surrogate; remove it", param=name)
    return text
