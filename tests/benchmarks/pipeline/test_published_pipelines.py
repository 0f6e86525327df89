"""Published steps with a pipeline beside the model: facts of a few rows, each with its source, and mistakes that they reveal."""

import dataclasses

import pytest

from benchmarks.pipeline import pipeline_tables, published_pipelines, step_model
from benchmarks.pipeline.published_pipelines import predict_row
from benchmarks.published.published_rows import NotPlanned, PublishedRow

COMMON = {
    **{"completeness": "full", "model_kind": "decoder", "cp": "1", "fsdp": "1", "ep": "1", "seq_len": "2048"},
    **{"chip": "A100 80GB SXM", "precision": "fp16 mixed", "remat": "full per layer", "source_group": "s"},
    **{"attention": "unfused with fused softmax", "extra_sizes": "gelu (2 matrices);tied embedding", "vocab": "51200"},
}
# Narayanan et al. 2021, arXiv 2104.04473, table 1: 145 billion parameters on 1,536 GPUs; step_time_s follows from 148 TFLOP/s.
MEGATRON = COMMON | {
    **{"row_id": "megatron", "n_devices": "1536", "nodes": "192", "model": "gpt-145b", "layers": "80", "d_model": "12288"},
    **{"heads": "96", "head_dim": "128", "ffn": "49152", "dp": "24", "tp": "8", "pp": "8", "global_batch": "2304"},
    **{"micro_batch": "2", "step_time_s": "24.8174"},
}
# bigscience-workshop/bigscience: train/tr11-176B-ml/chronicles-prequel.md, "Batchsize Warmup".
TRIAL = COMMON | {
    **{"n_devices": "384", "nodes": "48", "model": "gpt-182b", "layers": "78", "d_model": "13824", "heads": "96"},
    **{"head_dim": "144", "ffn": "55296", "vocab": "", "extra_sizes": "gelu (2 matrices); vocabulary about 250k"},
    **{"dp": "8", "tp": "4", "pp": "12", "micro_batch": "2"},
}
TRIALS = [
    PublishedRow(TRIAL | {"row_id": name, "global_batch": batch, "step_time_s": seconds})
    for name, batch, seconds in (("bs-102", "512", "35.77"), ("bs-103", "1024", "59.65"), ("bs-104", "1536", "83.11"))
]
# Llama Team 2024, arXiv 2407.21783, table 4 and section 3.3: 8,192 GPUs, 430 model TFLOP/s on each.
LLAMA = COMMON | {
    **{"row_id": "misc3-008", "chip": "H100 80GB SXM", "n_devices": "8192", "nodes": "1024", "model": "llama3.1-405b"},
    **{
        "layers": "126",
        "d_model": "16384",
        "heads": "128",
        "kv_heads": "8",
        "head_dim": "128",
        "ffn": "53248",
        "vocab": "128256",
    },
    **{"extra_sizes": "mlp_activations=[silu,linear];decoder_block=llama2", "seq_len": "8192", "global_batch": "2048"},
    **{"precision": "bf16", "fsdp": "64", "tp": "8", "pp": "16", "remat": "none", "attention": "document mask"},
    **{"framework": "Llama 3 trainer (torch)", "tflops_per_chip": "430", "step_time_s": "", "completeness": "partial"},
}


def errors() -> list[float]:
    """Return the error of the predicted time of each trial, relative to the last of them."""
    rows = [predict_row(row) for row in TRIALS]
    last = rows[-1]
    return [one.step.apart / last.step.apart / (one.measured / last.measured) - 1 for one in rows]


@pytest.mark.planted(1)
def test_idle_time_is_that_of_steps_with_more_and_fewer_micro_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """32, 64 and 96 micro-batches of the same pipeline; without the time that stages are idle, the first is a fifth too fast."""
    assert [predict_row(row).layout.micro for row in TRIALS] == [32, 64, 96]
    assert max(map(abs, errors())) < 0.06
    monkeypatch.setattr(step_model.Layout, "idle_share", property(lambda _: 0.0))
    assert min(errors()) < -0.2


@pytest.mark.planted(2)
def test_no_published_step_is_faster_than_the_prediction(monkeypatch: pytest.MonkeyPatch) -> None:
    one = predict_row(PublishedRow(MEGATRON))
    assert (one.layout.stages, one.layout.fsdp, one.layout.tensor, one.layout.micro) == (8, 24, 8, 48)
    assert 1.1 < one.ratio < 1.3
    # A layer of Llama on each of eight parts of a stage; with one part, the pipeline would be idle for a third of the step.
    llama = predict_row(PublishedRow(LLAMA), chunks=8)
    assert 1.0 < llama.ratio < 1.1 and predict_row(PublishedRow(LLAMA)).ratio < 0.8
    flops = step_model.step_flops
    monkeypatch.setattr(step_model, "step_flops", lambda shape, remat: 2 * flops(shape, remat))
    assert predict_row(PublishedRow(MEGATRON)).ratio < 0.8 and predict_row(PublishedRow(LLAMA), chunks=8).ratio < 0.8


REFUSED = [
    ({"cp": "16"}, "context"),
    ({"model_kind": "encoder-decoder"}, "another kind"),
    ({"experts": "8"}, "another kind"),
    ({"precision": "fp8"}, "16 bits"),
    ({"source_group": "megatron-ci"}, "small model"),
    ({"dp": "23"}, "degrees"),
    ({"layers": ""}, "no layers"),
]


@pytest.mark.parametrize(("fields", "reason"), REFUSED)
def test_rows_that_the_model_does_not_describe_are_refused(fields: dict[str, str], reason: str) -> None:
    with pytest.raises(NotPlanned, match=reason):
        predict_row(PublishedRow(MEGATRON | fields))


def test_two_rows_tell_how_much_of_the_links_is_waited_for() -> None:
    """Times made from the model, of two rows that differ in their links, give the share that they were made with."""
    plain = COMMON | {
        **{"row_id": "a", "n_devices": "64", "nodes": "8", "model": "m", "layers": "80", "d_model": "8192", "heads": "64"},
        **{"ffn": "32768", "dp": "1", "fsdp": "64", "tp": "1", "pp": "1", "global_batch": "1024", "step_time_s": "1"},
    }
    rows = [PublishedRow(plain | {"row_id": str(micro), "micro_batch": str(micro)}) for micro in (1, 16)]
    predicted = published_pipelines.predict_rows(rows, pipelines=False)
    timed = [dataclasses.replace(one, measured=1.2 * one.step.busy + 0.6 * one.step.links) for one in predicted]
    ((low, high, share),) = published_pipelines.exposed_shares(timed)
    assert (low.layout.rows, high.layout.rows) == (16, 1) and share == pytest.approx(0.6)
    assert published_pipelines.predict_rows(rows, pipelines=True) == []


def test_tables_name_every_row() -> None:
    rows = [PublishedRow(MEGATRON), PublishedRow(LLAMA), *TRIALS]
    text = "\n".join([*pipeline_tables.compare_published(rows), *pipeline_tables.bubble_table(rows)])
    assert "stages 8, fsdp 24, tensor 8, 48 x 2 rows, full, parameters kept" in text and "stages 16 x 8 parts" in text
    assert "| bs-102 | 32 | 0.430 |" in text and "All rows with a pipeline" in text
