"""The Transformer's table 3: parts of the model changed one at a time, on translation."""

import dataclasses
import functools

from eval.experiments.catalogue._common import FRESH_ROW, SMALL_T5, TINY, claim, multi30k_pairs, nano, night, smoke, table_row
from eval.experiments.declaration import Experiment, Stage, Tier, Times

SOURCE = "Vaswani et al. 2017, table 3"
TEST = ("{tasks}/multi30k/test_2016_flickr.en.gz", "{tasks}/multi30k/test_2016_flickr.de.gz")

_row = functools.partial(table_row, columns=("perplexity", "BLEU"))


def vaswani() -> Experiment:
    """Return the experiment: Multi30k, English to German. The loss is that of the targets, without smoothing."""
    rows = (
        _row("base", "base", {}, 4.92, 25.8),
        _row("layers_1", "1 layer (the paper: 2 of 6)", {"model.layers": 1}, 6.11, 23.7),
        _row("heads_1", "1 head", {"model.heads": 1}, 5.29, 24.9),
        _row("heads_16", "16 heads", {"model.heads": 16}, 4.91, 25.8),
        _row("head_dim", "heads of a quarter of the size (the paper: 16 of 64)", {"model.head_dim": 4}, 5.16, 25.1),
        _row("width_half", "half the width", {"model.width": Times(0.5)}, 5.75, 24.5),
        _row("ffn_double", "twice the feed-forward width", {"model.ffn": Times(2.0)}, 4.75, 26.2),
        _row("dropout_0", "no dropout", {"model.dropout": 0.0}, 5.77, 24.6),
        _row("smoothing_0", "no label smoothing", {"label_smoothing": 0.0}, 4.67, 25.3),
        _row("learned", "learned positions", {"model.positions": "learned"}, 4.92, 25.7),
        FRESH_ROW,
    )
    loss = {"metric": "pretrain/loss", "margin": 0.02, "source": SOURCE}
    bleu = {"metric": "translate/bleu", "margin": 0.5, "source": SOURCE}
    pairs = {**TINY, "model.vocab": 1_000, "tokenizer.vocab": 1_000, "data.length": 96, "data.batch": 8, "steps": 2_000}
    tiny = dataclasses.replace(
        nano("base", "layers_1", "dropout_0", "smoothing_0", "fresh", pretrain=pairs, translate={"limit": 300}), corpus="embedded"
    )
    small = {name: value for name, value in SMALL_T5.items() if name not in ("model.head", "model.decoder_layers")}
    return Experiment(
        name="vaswani",
        question="Which parts of the Transformer matter for translation?",
        source=SOURCE,
        scale="Transformers of {parameters} parameters and {tokens} source tokens; the paper: 65M parameters, WMT 2014",
        rows=rows,
        control="fresh",
        stages=(
            Stage(name="pretrain", recipe="transformer-nano", overrides=multi30k_pairs("en", "de"), seconds=10.0),
            Stage(
                name="translate",
                task="text_to_text:bleu,chrf",
                after="pretrain",
                overrides={"files": TEST, "tokens": 40},
                seconds=30.0,
            ),
        ),
        budget="input_tokens",
        claims=(
            claim("layers_1_above_base", "layers_1 > base", "One layer has a higher loss than the base.", 0.217, **loss),
            claim("dropout_0_above_base", "dropout_0 > base", "Without dropout the loss is higher.", 0.159, **loss),
            claim("smoothing_0_below_base", "smoothing_0 < base", "Without smoothing the loss is lower ...", -0.052, **loss),
            claim("smoothing_0_bleu", "smoothing_0 < base", "... and the translations are worse.", -0.5, **bleu),
        ),
        tiers={
            "smoke": smoke("base", "layers_1", "fresh", tasks="generated", pretrain=small, translate={"limit": 10, "tokens": 16}),
            "nano": tiny,
            "night": night(tiny),
            "paper": Tier(
                corpus="embedded",
                seeds=1,
                recipes={"transformer-nano": "transformer-base"},
                rows=("base", "heads_1", "heads_16", "dropout_0", "smoothing_0", "learned", "fresh"),
            ),
        },
        forecast={
            "layers_1_above_base": "Reproduced: two layers against one.",
            "dropout_0_above_base": "Contradicted: a model of 0.3 million parameters does not learn 29,000 pairs by heart.",
            "smoothing_0_below_base": "Reproduced.",
            "smoothing_0_bleu": "Not shown: a corpus BLEU of 300 sentences has an error of a point.",
        },
    )
