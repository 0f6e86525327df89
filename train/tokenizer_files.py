"""A tokenizer in the files that published models come with."""

import json
from pathlib import Path

import tokenizers
from tokenizers import decoders, models, pre_tokenizers

from train.tokenizer import END_OF_TEXT, FILE, LARGEST_FILE, Tokenizer
from zoo.errors import BadInput
from zoo.published import read_json

VOCABULARY, MERGES = "vocab.json", "merges.txt"


def read(folder: Path) -> Tokenizer:
    """The tokenizer of a published model: its tokenizer.json, or its vocab.json and merges.txt as GPT-2's were released.

    Raises:
        BadInput: none of these, or one that defines no usable tokenizer; see `Tokenizer.load`.
    """
    if (folder / FILE).exists():
        return Tokenizer.load(folder)
    if not (folder / VOCABULARY).exists():
        raise BadInput(f"{folder}: holds no {FILE} and no {VOCABULARY}; put the model's tokenizer there")
    vocabulary = read_json(folder / VOCABULARY, LARGEST_FILE)
    try:
        core = tokenizers.Tokenizer(models.BPE(vocab=vocabulary, merges=_merges(folder / MERGES)))
        core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # pyright: ignore[reportAttributeAccessIssue]
        core.decoder = decoders.ByteLevel()  # pyright: ignore[reportAttributeAccessIssue]
        core.add_special_tokens([END_OF_TEXT])
        return Tokenizer(json.loads(core.to_str()))
    except BadInput as error:
        raise BadInput(f"{folder / VOCABULARY}: {error}") from None
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:
        # The library panics on some files, with an exception that is no `Exception`.
        why = " ".join(str(error).split())[:120]
        raise BadInput(f"{folder / VOCABULARY}: no vocabulary that fits {MERGES} ({why}); fetch both again") from None


def write(folder: Path, tokenizer: Tokenizer, *, longest: int) -> None:
    """Write what `transformers` loads GPT-2's tokenizer from: tokenizer.json, tokenizer_config.json, vocab.json, merges.txt.

    Args:
        longest: tokens the model has positions for.
    """
    tokenizer.save(folder)
    core = tokenizers.Tokenizer.from_file(str(folder / FILE))
    core.model.save(str(folder))
    # The marks are added to the vocabulary by tokenizer.json; these two files know nothing of it.
    vocabulary = json.loads((folder / VOCABULARY).read_text(encoding="utf-8"))
    whole = dict(sorted(({**vocabulary, **core.get_vocab(with_added_tokens=True)}).items(), key=lambda entry: entry[1]))
    (folder / VOCABULARY).write_text(json.dumps(whole, ensure_ascii=False), encoding="utf-8")
    marks = dict.fromkeys(("bos_token", "eos_token", "unk_token"), END_OF_TEXT)
    settings = {"tokenizer_class": "GPT2Tokenizer", "add_prefix_space": False, "model_max_length": longest, **marks}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")


def _merges(file: Path) -> list[tuple[str, str]]:
    """The pairs of a merges.txt, most frequent first."""
    try:
        if file.stat().st_size > LARGEST_FILE:
            raise BadInput(f"larger than {LARGEST_FILE >> 20} MiB; that is no list of merges")
        lines = file.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise BadInput(f"{file.name} cannot be read ({error.strerror})") from None
    except UnicodeDecodeError as error:
        raise BadInput(f"{file.name} is not UTF-8 (byte {error.start})") from None
    pairs = []
    for number, line in enumerate(lines, 1):
        if not line or (number == 1 and line.startswith("#version")):
            continue
        first, _, second = line.partition(" ")
        if not second or " " in second:
            raise BadInput(f"{file.name}:{number}: not two pieces with a space between; fetch it again")
        pairs.append((first, second))
    return pairs
