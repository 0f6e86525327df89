"""The command `zoo embed`."""

import dataclasses
from typing import Annotated, Literal

from zoo.cli import early_checks
from zoo.cli.machine import prepare_process, refuse_shared_stdin
from zoo.cli.options import parse


def embed(args: list[str]) -> int:
    """Run `zoo embed RUN|DIR|hub:ID --text ... [options]`."""
    import tyro

    from eval.scoring.encoder_inputs import Texts
    from train.config.run_config import Machine, Mesh, Precision

    @dataclasses.dataclass(frozen=True)
    class Embed:
        """Compute a float32 vector for each text from an encoder's last layer. Without --out, print the cosine of every pair."""

        model: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="RUN|DIR")]
        """Folder of a run or of published weights, or hub:ID."""
        texts: Annotated[Texts, tyro.conf.arg(name="", prefix_name=False)]
        pool: Literal["mean", "cls"] = "mean"
        """mean: over all tokens, special tokens included, as in sentence-transformers; cls: the vector of the [CLS] token."""
        normalize: bool = False
        """Divide each vector by its length."""
        out: str = ""
        """File to write: .npy (an array), .safetensors (the array as "embeddings") or .jsonl (an object for each text)."""
        step: int | None = None
        """Step of the checkpoint to use. None = the best checkpoint if the run keeps one, else the newest; -1 = the newest."""
        batch: int = 16
        """Rows of the model's full length computed at a time; results do not depend on it."""
        precision: Precision = "auto"
        """Dtype of the arithmetic. auto: float32 on CPU, else bfloat16."""
        json: bool = False
        """Print one JSON object per text."""
        mesh: Mesh = dataclasses.field(default_factory=Mesh)
        machine: Annotated[Machine, tyro.conf.arg(name="", prefix_name=False)] = dataclasses.field(default_factory=Machine)

    options = parse(Embed, args=args, prog="zoo embed")
    refuse_shared_stdin(options.machine, options.texts)
    early_checks.check_source(options.model, options.step)
    early_checks.check_files("--files", options.texts.files)
    if (code := prepare_process(options.machine, ["embed", *args])) is not None:
        return code
    from eval.commands import embed

    return embed.main(
        options.model,
        options.texts,
        pool=options.pool,
        normalize=options.normalize,
        out=options.out,
        step=options.step,
        batch=options.batch,
        precision=options.precision,
        mesh=options.mesh,
        as_json=options.json,
    )
