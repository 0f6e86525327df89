"""`zoo embed`."""

import dataclasses
from typing import Annotated, Literal

from zoo.cli import early_checks
from zoo.cli.machine import on_machine, one_reader
from zoo.cli.options import parse


def embed(args: list[str]) -> int:
    """`zoo embed RUN|DIR|hub:ID --text ... [options]`."""
    import tyro

    from eval.generation.settings import Texts
    from train.config.run_config import Machine, Mesh, Precision

    @dataclasses.dataclass(frozen=True)
    class Embed:
        """A float32 vector for each text, from an encoder's last layer. Without --out, the cosine of every two of them."""

        model: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="RUN|DIR")]
        """Folder of a run or of published weights, or hub:ID."""
        texts: Annotated[Texts, tyro.conf.arg(name="", prefix_name=False)]
        pool: Literal["mean", "cls"] = "mean"
        """mean: of all tokens, marks included, as sentence-transformers; cls: that of the mark for the whole."""
        normalize: bool = False
        """Divide each vector by its length."""
        out: str = ""
        """File to write: .npy (an array), .safetensors (the array as "embeddings") or .jsonl (an object for each text)."""
        step: int | None = None
        """Checkpoint of a run; None = the best one of a run that keeps it, else the newest; -1 = the newest."""
        batch: int = 16
        """Rows of the model's full length computed at a time; no result depends on it."""
        precision: Precision = "auto"
        """Dtype of the arithmetic. auto: float32 on CPU, else bfloat16."""
        json: bool = False
        """Print an object a line for each text."""
        mesh: Mesh = dataclasses.field(default_factory=Mesh)
        machine: Annotated[Machine, tyro.conf.arg(name="", prefix_name=False)] = dataclasses.field(default_factory=Machine)

    asked = parse(Embed, args=args, prog="zoo embed")
    one_reader(asked.machine, asked.texts)
    early_checks.check_source(asked.model, asked.step)
    early_checks.check_files("--files", asked.texts.files)
    if (code := on_machine(asked.machine, ["embed", *args])) is not None:
        return code
    from eval.commands import embed

    return embed.main(
        asked.model,
        asked.texts,
        pool=asked.pool,
        normalize=asked.normalize,
        out=asked.out,
        step=asked.step,
        batch=asked.batch,
        precision=asked.precision,
        mesh=asked.mesh,
        as_json=asked.json,
    )
