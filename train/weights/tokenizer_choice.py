"""The tokenizer of a run: an existing one, from a folder or another model, and the check that it fits the model's vocabulary."""

from pathlib import Path

from train.config import run_config
from train.run.run_dir import RunDir, is_run
from train.tokenizers import hf_files
from train.tokenizers.tokenizer import FILE, Tokenizer
from train.weights.resolve_model_name import resolve_model_name
from zoo.errors import BadInput, require


def tokenizer_of(where: str) -> Tokenizer:
    """Return the tokenizer of the model that `train.weights.load.load_model` would load."""
    folder = resolve_model_name(where)
    return Tokenizer.load(RunDir(folder).tokenizer) if is_run(folder) else hf_files.read_tokenizer(folder)


def existing_tokenizer(run: run_config.Run, folder: RunDir) -> Tokenizer | None:
    """Return the tokenizer that a run already has, or None if it must train one.

    It is read from the first of `tokenizer.path`, the run's own folder if it resumes, `init`, and the teacher that exists.

    Raises:
        BadInput: the tokenizer of a new run differs from its teacher's.
    """
    teacher = run.teacher
    source = run.init or teacher
    if run.tokenizer.path:
        tokenizer = hf_files.read_tokenizer(Path(run.tokenizer.path))
    elif (folder.tokenizer / FILE).exists() and folder.is_resumable:
        # Without a checkpoint nothing depends on that tokenizer, and the text it was trained on may have changed since.
        tokenizer = Tokenizer.load(folder.tokenizer)
    elif source:
        tokenizer = tokenizer_of(source)
    else:
        return None
    # Scoring a student does not need its teacher, which may be absent then.
    if teacher and not folder.is_resumable:
        _check_teacher_tokenizer(teacher, tokenizer)
    return tokenizer


def _check_teacher_tokenizer(teacher: str, tokenizer: Tokenizer) -> None:
    """Refuse a teacher whose probabilities are not those of the student's tokens, naming the first entry that differs."""
    if (other := tokenizer_of(teacher)).fingerprint == tokenizer.fingerprint:
        return
    sizes = other.vocab_size, tokenizer.vocab_size
    entries, own = (kind.entries(range(kind.vocab_size)) for kind in (other, tokenizer))
    number = next((number for number, pair in enumerate(zip(entries, own, strict=False)) if pair[0] != pair[1]), min(sizes))
    if entries == own:
        difference = f"it splits or normalizes text in another way, with the same {sizes[0]:,} entries"
    else:
        theirs_and_own = [repr(names[number]) if number < len(names) else "missing" for names in (entries, own)]
        first = f"token {number} is {theirs_and_own[0]} there and {theirs_and_own[1]} in the student's"
        difference = f"{sizes[0]:,} entries, and the student's {sizes[1]:,}; {first}"
    fix = "remove --tokenizer.path and --init to use the teacher's"
    raise BadInput(f"--distillation.teacher {teacher}: it has another tokenizer ({difference}); {fix}")


def check_vocabulary(run: run_config.Run, tokenizer: Tokenizer) -> None:
    """Refuse a tokenizer with ids beyond the model's vocabulary."""
    fix = f"the tokenizer has {tokenizer.vocab_size} entries; choose {tokenizer.vocab_size} or more"
    require(tokenizer.vocab_size <= run.model.vocab, "model.vocab", run.model.vocab, fix)
