"""The forms of `zoo export` other than a published folder: which families have each, and the module that writes it.

Nothing here imports JAX, so that a family without the form is refused before a model is loaded.
"""

import dataclasses
import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from zoo import configs
from zoo.errors import BadInput, require

if TYPE_CHECKING:
    from train.weights.written_folder import Written

Dtype = Literal["float32", "bfloat16", "float16"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Form:
    """A form, written by the function `write_model` of a module: (folder, loaded model, dtype) -> a line about the files."""

    module: str
    dtypes: tuple[Dtype, ...]
    families: tuple[str, ...] = ()
    """Empty: all families."""
    files: str
    """The files of the form, for messages."""


FORMS = {
    "stablehlo": Form(module="train.exports.stablehlo", dtypes=("float32", "bfloat16"), files="programs"),
    "onnx": Form(
        module="train.exports.onnx_file",
        dtypes=("float32",),
        families=("bert", "distilbert", "modernbert", "roberta", "t5", "xlnet"),
        files="ONNX files",
    ),
    "gguf": Form(
        module="train.exports.gguf_file",
        dtypes=("float32", "bfloat16", "float16"),
        families=("gpt", "llama"),
        files="GGUF files",
    ),
}
"""Option of `zoo export` -> form."""


def check_form(name: str, config: Any, dtype: str) -> None:
    """Refuse a form that a model's family does not have, or a dtype that the form does not have.

    Raises:
        BadInput: the message names the families, or the dtypes, that it has.
    """
    form = FORMS[name]
    family = configs.family_of(config)
    if form.families and family not in form.families:
        raise BadInput(f"--{name}: {family} has no {form.files}; these families have: {', '.join(form.families)}")
    require(dtype in form.dtypes, "dtype", dtype, f"--{name} writes {' or '.join(form.dtypes)}; choose one of these")


def write_form(name: str, folder: Path, loaded: Any, dtype: str) -> str:
    """Write a loaded model in a form into an empty folder, and return a line about the files.

    Args:
        loaded: a `train.weights.load.Loaded`.

    Raises:
        BadInput: see `check_form` and the `write_model` of the form's module.
    """
    check_form(name, loaded.model.config, dtype)
    return importlib.import_module(FORMS[name].module).write_model(folder, loaded, dtype)


def export_form(
    name: str, run: str, target: str, *, step: int | None, last: int, width: float, dtype: str, mesh: Any
) -> "Written":
    """Write a run or a published model in a form as a new folder.

    Args:
        step, last, width, mesh: as of `train.weights.import_export.export_run`.

    Raises:
        BadInput: see `train.weights.load.load_model` and `write_form`; or `target` exists.
    """
    from train.weights import import_export
    from train.weights.written_folder import Written, folder_record
    from zoo.hf import safetensors_dir

    with safetensors_dir.new_folder(Path(target)) as folder:
        loaded = import_export.load_exported(run, step=step, last=last, mesh=mesh, width=width)
        line = write_form(name, folder, loaded, dtype)
    record = folder_record(target, loaded, form=name, step=loaded.step, last=last, average_width=width, dtype=dtype)
    return Written(text=f"{target}: {line}", record=record)
