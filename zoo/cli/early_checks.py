"""Checks of paths, names and locks that need no JAX and run before it is imported."""

import contextlib
import importlib.util
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from zoo.errors import BadInput, no_such_file, require
from zoo.hf import hub


def check_source(name: str, step: int | None = None) -> None:
    """Refuse a run or a folder of published weights that does not exist, and a run without a checkpoint.

    Args:
        name: a run, a folder of published weights, hub:ID, or "" for none.
        step: the checkpoint of a run to load; None and -1 select one automatically.

    Raises:
        BadInput: for the same reasons as in `train.weights.load.load_model`.
    """
    require(step is None or step >= -1, "step", step, "choose the step of a checkpoint, or -1 for the newest one")
    from train.run.run_dir import RunDir, is_run, no_checkpoint, read_config
    from train.weights.resolve_model_name import resolve_model_name

    if not name or name.startswith(hub.PREFIX):
        return
    folder = resolve_model_name(name, step)
    if is_run(folder):
        read_config(folder)
        if not RunDir(folder).has_checkpoint:
            raise no_checkpoint(folder)


def check_weights(name: str, *, tokenizer: bool = True) -> None:
    """Refuse published weights whose configuration, headers of files or tokenizer are missing or damaged. Runs are not examined.

    Args:
        name: a folder; hub:ID is not examined either.
        tokenizer: whether a tokenizer is needed.

    Raises:
        BadInput: for the same reasons as in `train.weights.load.load_model`.
    """
    from train.run.run_dir import is_run
    from train.weights.pretrained_config import read_model_config
    from train.weights.resolve_model_name import resolve_model_name
    from zoo.hf import weight_files
    from zoo.hf.tokenizer_files import require_tokenizer

    if not name or name.startswith(hub.PREFIX) or is_run(folder := resolve_model_name(name)):
        return
    read_model_config(name)
    weight_files.read_tensors(folder)
    if tokenizer:
        require_tokenizer(folder)


def check_import(where: str, out: str, name: str, *, explain: bool) -> None:
    """Refuse to import a run, a file, weights that are incomplete or damaged, or a name that is taken or cannot be written.

    Raises:
        BadInput: for the same reasons as in `train.weights.import_export.import_weights`.
    """
    from train.weights.pretrained_config import read_model_config
    from train.weights.resolve_model_name import import_source, import_target

    folder = str(import_source(where))
    if explain:
        read_model_config(folder)
        return
    check_new(str(import_target(where, out, name)))
    check_weights(folder)


def check_task(task: str, name: str, files: Sequence[str]) -> None:
    """Refuse a task of `zoo eval` without files, and one that a model of this family cannot do.

    Raises:
        BadInput: names the option or the model.
    """
    from eval.tasks import task_table
    from train.weights.pretrained_config import may_have_labels

    task_table.require_files(task, files)
    check_files("--files", files)
    if task_table.models_of(task) == "encoder":
        check_encoder(name)
    if task_table.models_of(task) == "labelled" and not may_have_labels(name):
        raise BadInput(f"--task {task}: {name} has no labels; fine-tune it first")


def check_generates(name: str) -> None:
    """Refuse an encoder where text is to be generated. The weights of a published XLNet decide, when they are read.

    Raises:
        BadInput: the model is an encoder, or its configuration cannot be read.
    """
    from train.weights.pretrained_config import may_generate, read_model_config
    from zoo import configs

    model = read_model_config(name)
    if not may_generate(model):
        fix = f"`zoo fill-mask {name} --text ...` predicts masked words, or choose a model that generates, such as a GPT"
        raise BadInput(f"{name}: a {configs.family_of(model)} does not generate text; {fix}")


def check_encoder(name: str) -> None:
    """Refuse a model that reads from left to right where an encoder is needed.

    Raises:
        BadInput: the model is a decoder or an encoder-decoder, or its configuration cannot be read.
    """
    from train.weights.pretrained_config import read_model_config
    from zoo import configs
    from zoo.configs._encoder import BodyConfig

    model = read_model_config(name)
    if not isinstance(model, BodyConfig):
        what = "reads a source and writes a text" if model.is_encoder_decoder else "reads from left to right"
        fix = f"choose an encoder (BERT, RoBERTa, DistilBERT), or `zoo generate {name} --prompt ...`"
        raise BadInput(f"{name}: a {configs.family_of(model)} {what}; {fix}")


@contextlib.contextmanager
def prefix_option(option: str, source: str) -> Iterator[None]:
    """Put the option that names a model before an error about the model; a missing run of a recipe gets its command as the fix.

    Raises:
        BadInput: the error of the block.
    """
    try:
        yield
    except BadInput as error:
        message = str(error)
        if not source or not message.startswith(source):
            raise
        from train import recipes

        name = Path(source).name
        if source == f"runs/{name}" and recipes.is_recipe(name) and not Path(source).exists():
            message = f"{source}: no such folder; `zoo train {name}` trains this run, or name another model"
        raise BadInput(f"{option} {message}") from None


def check_adapter(folder: str) -> None:
    """Refuse an adapter that does not exist.

    Raises:
        BadInput: the folder or its adapter_config.json does not exist.
    """
    if folder and not (Path(folder) / "adapter_config.json").is_file():
        raise BadInput(f"--adapter {folder}: no adapter_config.json there; name the folder of an adapter in peft's format")


def check_files(option: str, names: Sequence[str], *, folders: bool = True) -> None:
    """Refuse files that do not exist or are empty, and folders without files. The name "-" means standard input.

    Args:
        folders: a folder may be named in place of the files in it.

    Raises:
        BadInput: a file does not exist, is empty or is a folder; the message names it.
    """
    for name in names:
        if not name or name == "-":
            continue
        if not Path(name).exists():
            raise no_such_file(name, f"{option} ")
        if not folders and Path(name).is_dir():
            raise BadInput(f"{option} {name}: a folder; name a file")
        check_data(name)


def check_new(target: str) -> None:
    """Refuse to write a folder under a name that already exists, or where none can be created.

    Raises:
        BadInput: `target` exists, as in `zoo.hf.safetensors_dir.new_folder`, or cannot be created.
    """
    if os.path.lexists(target):
        raise BadInput(f"{target}: already exists; choose another name, or remove it")
    _check_writable(Path(target), f"{target}:", "choose another folder")


def check_export(run: str, last: int, step: int | None, shard: float, adapter: bool) -> None:
    """Refuse options of `zoo export` that contradict each other or are out of range.

    Raises:
        BadInput: an option is wrong; the message names it.
    """
    require(step is None or not last, "last", last, "this averages the newest checkpoints; leave out --step")
    require(last >= 0, "last", last, "choose 0 (off) or a number of checkpoints")
    require(1e-6 <= shard <= 1e6, "shard", shard, "choose the size of the largest file in GB, 0.000001 (1 kB) or more")
    if adapter:
        from train.run.run_dir import is_run, read_config

        if not is_run(Path(run)):
            raise BadInput(f"--adapter: {run} is not a run, so it has no adapters; leave the option out")
        config = read_config(run)
        if not config.lora.rank:
            raise BadInput(f"--adapter: {run} trained all of its parameters; leave the option out to export them")
        if config.init_positions != "same":
            why = f"{run} has other positions than {config.init}, to which an adapter would be added"
            raise BadInput(f"--adapter: {why}; leave the option out to export the complete model")
        require(not last, "last", last, "the mean of adapters is not that of the models; leave it out, or leave out --adapter")


def export_form(run: str, chosen: Mapping[str, bool], dtype: str, *, adapter: bool) -> str | None:
    """Return the form that the options of `zoo export` choose, a key of `train.exports.forms.FORMS`; None: a published folder.

    Args:
        run: a run or a folder of published weights; that of a model of the hub is examined when it is loaded.

    Raises:
        BadInput: two forms, a form that the model's family does not have, or an option that does not fit.
    """
    from train.exports.forms import check_form
    from train.run.run_dir import is_run, read_config
    from train.weights.pretrained_config import read_model_config
    from train.weights.resolve_model_name import resolve_model_name

    forms = [name for name, is_chosen in chosen.items() if is_chosen]
    if not forms:
        fix = f"a published folder has the dtype that rounds nothing; leave it out, or add --{' or --'.join(chosen)}"
        require(dtype == "float32", "dtype", dtype, fix)
        return None
    if len(forms) > 1:
        raise BadInput(f"--{forms[1]}: there is --{forms[0]} too; choose one form for a folder")
    if adapter:
        raise BadInput(f"--{forms[0]}: adapters alone have no such form; leave out --adapter to merge them")
    if not run.startswith(hub.PREFIX):
        is_own = is_run(resolve_model_name(run))
        check_form(forms[0], read_config(run).model if is_own else read_model_config(run), dtype)
    return forms[0]


def check_average_width(width: float, *, alone: bool) -> None:
    """Refuse a width of `zoo export --average-width` that is out of range, or beside an option that names other parameters.

    Raises:
        BadInput: the message names the option.
    """
    from train.config.optim_options import NARROWEST, WIDEST

    require(not width or NARROWEST <= width <= WIDEST, "average_width", width, f"choose {NARROWEST} to {WIDEST}, or 0 (off)")
    require(not width or alone, "average_width", width, "it is an average of its own; leave out --step, --last and --adapter")


def check_run(run: Any) -> None:
    """Refuse a run whose input files are missing, or whose folder is in use, belongs to another run or cannot be created.

    Args:
        run: a `train.config.run_config.Run`.

    Raises:
        BadInput: for the same reasons as in `train.trainer.run`.
    """
    from train.config.run_plugins import find_hook
    from train.run.result_files import check_same_run
    from train.run.run_dir import RunDir, check_unlocked

    folder = RunDir.of(run)
    run.check_base()
    for name in run.log.hooks:
        find_hook(name)
    check_inputs(run, folder)
    check_unlocked(folder.path)
    # These are decided only by the data and the machine; model.multi_label follows from labelled.multi_label.
    undecided = ["precision"] * (run.precision == "auto") + ["model.labels"] * (not getattr(run.model, "labels", ()))
    undecided.append("model.multi_label")
    check_same_run(folder, run, undecided)
    _check_writable(folder.path, str(folder.path), "choose another --out")


def check_inputs(run: Any, folder: Any) -> None:
    """Refuse a run whose input files or folders do not exist, or are named twice.

    Args:
        run: a `train.config.run_config.Run`.
        folder: its `train.run.run_dir.RunDir`.

    Raises:
        BadInput: a file or folder does not exist, or one of the data is named twice; the message names it.
    """
    from train.config.objectives import TextToTextOptions
    from train.config.option_groups import BUILT_IN, ChatRendering, Pairs
    from train.weights.pretrained_config import check_family
    from zoo.hf.tokenizer_files import require_tokenizer

    for option, paths in (("data.paths", run.data.paths), ("data.valid-paths", run.data.valid_paths)):
        repeated = next((path for number, path in enumerate(paths) if path in paths[:number]), "")
        require(not repeated, option, repeated, "named twice; name it once")
    pairs = run.options.pairs if isinstance(run.options, TextToTextOptions) else Pairs()
    for path in (*run.data.paths, *run.data.valid_paths, *pairs.source, *pairs.target, *pairs.valid_source, *pairs.valid_target):
        if path and not path.startswith(hub.PREFIX):
            check_data(path)
    template = getattr(run.options, "chat", ChatRendering()).template
    if template not in ("", BUILT_IN) and not Path(template).is_file():
        raise BadInput(f"--chat.template {template}: no such file; name a chat_template.jinja, or write {BUILT_IN}")
    if run.tokenizer.path and not Path(run.tokenizer.path).is_dir():
        raise BadInput(f"--tokenizer.path {run.tokenizer.path}: no such folder; name one that holds a tokenizer")
    if run.tokenizer.path:
        require_tokenizer(Path(run.tokenizer.path))
    for option, source in (("--distillation.teacher", run.teacher), ("--init", "" if folder.is_resumable else run.init)):
        with prefix_option(option, source):
            check_source(source)
            check_weights(source, tokenizer=False)
    if run.init and not folder.is_resumable:
        check_family(run.init, run.model)
    check_adapter("" if folder.is_resumable else run.adapter)


def check_data(name: str) -> None:
    """Refuse an absent or empty file, and a folder without files; the readers refuse everything else that is wrong.

    Raises:
        BadInput: there is no data; the message names the path.
    """
    path = Path(name)
    if not os.path.lexists(path):
        # As the user wrote it: a path has no "//", by which credentials in an address are recognized.
        raise no_such_file(name)
    if path.is_dir() and not any(file for file in path.rglob("[!.]*") if not file.is_dir()):
        raise BadInput(f"{path}: no files in it; put some there, or name another folder")
    if path.is_file() and path.stat().st_size == 0:
        raise BadInput(f"{path}: holds no text; write some, or remove the file")


def _check_writable(folder: Path, subject: str, fix: str) -> None:
    existing = next(parent for parent in (folder, *folder.absolute().parents) if os.path.lexists(parent))
    reason = "Not a directory" if not existing.is_dir() else "" if os.access(existing, os.W_OK | os.X_OK) else "Permission denied"
    if reason:
        raise BadInput(f"{subject} cannot be written ({existing}: {reason}); {fix}")


def check_packages() -> None:
    """Refuse a file or folder of the user that Python finds instead of one of our packages.

    Raises:
        BadInput: there is such a file or folder; the message names it and the fix.
    """
    root = Path(__file__).parents[2]
    for name in ("train", "eval", "benchmarks"):
        spec = sys.modules[name].__spec__ if name in sys.modules else importlib.util.find_spec(name)
        origin = None if spec is None else spec.origin or next(iter(spec.submodule_search_locations or ()), None)
        if origin is None or not Path(origin).resolve().is_relative_to((root / name).resolve()):
            where = f"{origin} hides" if origin else f"{root / name} is missing:"
            raise BadInput(f"{where} the package {name!r} of the zoo; rename that file, or run from another folder")
