"""Tokenizers whose library panics, aborts or never ends, and chat templates that compute for ever or lead out of the sandbox."""

from collections.abc import Callable, Mapping
from typing import Any

from tests.hostile.case_types import READ_RUN, READ_TEMPLATE, READ_TOKENIZER, Case, Place, edit, edited, replace
from tests.hostile.code_cases import MODELS
from tests.support import hostile_templates
from tests.support.hostile_tokenizers import NORMALIZERS, TOKENIZERS


def change(**changes: Any) -> Callable[[Place], None]:
    """Return a function that changes the tokenizer.json of a folder, which a run has in a folder of its own."""

    def write(place: Place) -> None:
        inner = place.folder / "tokenizer"
        edit((inner if inner.is_dir() else place.folder) / "tokenizer.json", **changes)

    return write


def tokenizer(files: Mapping[str, bytes]) -> Callable[[Place], None]:
    """Return a function that replaces all files of a tokenizer, which a run has in a folder of its own."""

    def write(place: Place) -> None:
        inner = place.folder / "tokenizer"
        folder = inner if inner.is_dir() else place.folder
        for file in folder.iterdir():
            file.unlink()
        for name, content in files.items():
            replace(folder / name, content)

    return write


SETTINGS: dict[str, Any] = {
    "class that is a module": {"tokenizer_class": "os.system"},
    "extra_ids of 10**9": {"tokenizer_class": "T5Tokenizer", "extra_ids": 10**9},
    "sentinels of ByT5, 10**9": {"tokenizer_class": "ByT5Tokenizer", "extra_ids": 10**9},
    "added tokens with large ids": {"added_tokens_decoder": {"99999999999": {"content": "evil", "special": True}}},
    "added tokens of wrong types": {"added_tokens_decoder": [1, 2]},
    "token that is an object": {"eos_token": {"content": ["a"]}},
    "chat template that is a number": {"chat_template": 5},
    "longest text of 10**400": {"model_max_length": 10**400},
}
TEMPLATES = {
    "globals of a function": "{{ raise_exception.__globals__['os'].system('touch ~/code-ran') }}",
    "globals of cycler": "{{ cycler.__init__.__globals__.os.popen('touch ~/code-ran').read() }}",
    "globals of lipsum": "{{ lipsum.__globals__['os'].popen('touch ~/code-ran').read() }}",
    "include of a secret": "{% include '../../home/.ssh/id_rsa' %}",
    "import of a module": "{% import 'os' as os %}{{ os.system('touch ~/code-ran') }}",
    "message with escapes": "{{ raise_exception('\x1b]0;owned\x07\x1b[2J') }}",
}
"""Templates whose effect the canary shows; those of `tests.support.hostile_templates` are about limits."""


def template(text: str) -> Callable[[Place], None]:
    """Return a function that replaces the chat template."""
    return lambda place: replace(place.folder / "chat_template.jinja", text)


def _template_in_settings(place: Place) -> None:
    (place.folder / "chat_template.jinja").unlink()
    edit(place.folder / "tokenizer_config.json", chat_template=TEMPLATES["globals of cycler"])


READERS = (*READ_RUN, "* --tokenizer.path")
HARMLESS = ("class that is a module", "longest text of 10**400", "chat template that is a number")
"""Settings that may be read: what they set is not used."""
SHARED = [
    *(
        Case(
            f"tokenizer: {case.name}",
            "limits",
            "tokenizer run" if case in NORMALIZERS else "tokenizer",
            tokenizer(case.files),
            READERS if case.refused else (),
        )
        for case in TOKENIZERS
    ),
    *(
        Case(f"template: {case.name}", "limits", "chat", template(case.content), READ_TEMPLATE if case.refused else ())
        for case in hostile_templates.TEMPLATES
    ),
]
"""Cases that tests of tokenizers and of templates also have, without a command."""
CASES = [
    *SHARED,
    *(
        Case(
            f"tokenizer_config.json: {name}",
            "formats",
            "model",
            edited("tokenizer_config.json", **values),
            () if name in HARMLESS else READ_TOKENIZER,
        )
        for name, values in SETTINGS.items()
    ),
    *(Case(f"template: {name}", "code", "chat", template(text), READ_TEMPLATE) for name, text in TEMPLATES.items()),
    Case("template in tokenizer_config.json", "code", "chat", _template_in_settings, READ_TEMPLATE),
    Case("entry with a line end", "formats", MODELS, change(model__vocab=lambda vocab: {**vocab, "a\nb": len(vocab)}), ()),
]
