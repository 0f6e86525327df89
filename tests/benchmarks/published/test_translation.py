"""Published training steps as runs: facts of a few rows, each with its source, and rows that are refused with the reason."""

import pytest

from benchmarks.published.published_rows import NotPlanned, PublishedRow
from benchmarks.published.run_rules import translate_row
from train.config.run_config import Mesh

COMMON = {
    **{"completeness": "full", "timing_kind": "table", "cp": "1", "pp": "1", "tp": "1", "fsdp": "1", "ep": "1"},
    **{"grad_accum": "1", "weights_dtype": "float32", "moments_dtype": "mu=float32;nu=float32"},
}
# google-research/t5x: t5x/contrib/gpu/README.md and t5/t5_1_1/large.gin.
T5 = COMMON | {
    **{"row_id": "t5", "chip": "A100 80GB SXM", "n_devices": "64", "nodes": "8", "model": "t5-v1.1-large"},
    **{"model_kind": "encoder-decoder", "layers": "24", "dec_layers": "24", "d_model": "1024", "heads": "16", "kv_heads": "16"},
    **{"head_dim": "64", "ffn": "2816", "vocab": "32128", "seq_len": "512", "dec_seq_len": "128", "global_batch": "2048"},
    **{"extra_sizes": "gated gelu (3 matrices);untied logits;relative position bias", "precision": "bf16", "dp": "64"},
    **{"remat": "none (no remat in public network.py)", "optimizer": "adamw (clip 1.0)", "dropout": "0"},
    **{"attention": "dot product with relative bias", "step_time_s": "0.52702"},
}
# AI-Hypercomputer/tpu-recipes: training/trillium/GPT3-175B-MaxText/bf16/README.md.
GPT3 = COMMON | {
    **{"row_id": "gpt3", "chip": "TPU v6e (Trillium)", "n_devices": "256", "n_chips": "256", "model": "gpt3-175b"},
    **{"model_kind": "decoder", "layers": "96", "d_model": "12288", "heads": "96", "kv_heads": "96", "head_dim": "128"},
    **{"ffn": "49152", "vocab": "50304", "extra_sizes": "mlp_activations=[gelu];decoder_block=gpt3", "seq_len": "2048"},
    **{"global_batch": "768", "precision": "bf16", "dp": "1", "fsdp": "256", "remat": "full", "optimizer": "adam_pax"},
    **{"topology": "1 slice(s) x 256 chips", "attention": "flash [block_q=1024]", "dropout": "0", "step_time_s": "16.852"},
}
# pytorch/torchtitan: benchmarks/asyncTP_llama3_h100_2025-06_torchtitan.md and llama3_70b.toml.
LLAMA = COMMON | {
    **{"row_id": "llama", "chip": "H100 96GB HBM2e (2.4 TB/s, 500 W limit)", "n_devices": "256", "nodes": "32"},
    **{"model": "llama3.1-70b", "model_kind": "decoder", "layers": "80", "d_model": "8192", "heads": "64", "kv_heads": "8"},
    **{"head_dim": "128", "ffn": "28672", "vocab": "128256", "seq_len": "8192", "global_batch": "512", "micro_batch": "16"},
    **{"extra_sizes": "mlp_activations=[silu,linear];decoder_block=llama2", "precision": "bf16", "dp": "1", "fsdp": "32"},
    **{"tp": "8", "remat": "full", "optimizer": "AdamW", "attention": "torch SDPA flash", "dropout": "0", "grad_accum": ""},
    **{"step_time_s": "27.4301"},
}
# NVIDIA/DeepLearningExamples: TensorFlow/LanguageModeling/BERT/README.md.
BERT = COMMON | {
    **{"row_id": "bert", "chip": "A100 40GB SXM", "n_devices": "1", "nodes": "1", "model": "bert-large", "model_kind": "encoder"},
    **{"layers": "24", "d_model": "1024", "heads": "16", "ffn": "4096", "vocab": "30522", "seq_len": "128", "micro_batch": "64"},
    **{"extra_sizes": "gelu mlp (2 matrices);post-norm;MLM head on masked positions only;NSP head", "global_batch": "65536"},
    **{"grad_accum": "1024", "precision": "tf32", "dp": "1", "remat": "none", "optimizer": "LAMB", "dropout": "0.1"},
    **{"attention": "unfused (matmul, softmax, dropout, matmul)", "step_time_s": "275.246", "moments_dtype": ""},
}


def test_rows_are_runs_of_the_published_sizes() -> None:
    t5 = translate_row(PublishedRow(T5))
    assert (t5.target.name, t5.run.mesh, t5.run.precision) == ("a100:64", Mesh(data=64), "bfloat16")
    sizes = (t5.run.model.layers, t5.run.model.decoder_layers, t5.run.model.width, t5.run.model.ffn, t5.run.model.tied)
    assert sizes == (24, 24, 1024, 2816, False)
    assert (t5.run.data.length, t5.run.data.target_length, t5.run.data.batch) == (512, 128, 2048)
    assert t5.run.model.compute.attention == "xla" and t5.same_recomputation and t5.remarks == ()
    assert t5.run.optim.name == "adamw" and t5.run.model.dropout == 0

    gpt = translate_row(PublishedRow(GPT3))
    assert (gpt.target.name, gpt.run.mesh.fsdp, gpt.run.accumulate) == ("v6e:16x16", 256, 1)
    assert (gpt.run.model.vocab, gpt.run.model.context, gpt.run.model.compute.remat) == (50304, 2048, "full")
    assert gpt.run.model.compute.attention == "splash" and gpt.remarks == ("Adam planned as AdamW, which has the same moments",)

    llama = translate_row(PublishedRow(LLAMA))
    assert (llama.run.mesh, llama.run.accumulate, llama.run.model.kv_heads) == (Mesh(data=1, fsdp=32, tensor=8), 1, 8)
    assert "it has 96 GB at 2.4 TB/s" in llama.remarks[0] and llama.run.options.loss_chunk == 0

    bert = translate_row(PublishedRow(BERT))
    assert (bert.target.name, bert.run.precision, bert.run.accumulate) == ("a100-40gb:1", "float32", 1024)
    assert bert.run.options.masking.most == 20 and bert.run.model.attention_dropout == 0.1
    assert {"moments_dtype not published, float32 planned"} < set(bert.remarks) and "LAMB planned as AdamW" in str(bert.remarks)


def test_what_recomputes_more_than_the_published_run_says_so() -> None:
    policy = "custom(decoder_layer_input=offload;query_proj=offload)"
    between = translate_row(PublishedRow(GPT3 | {"remat": policy}))
    assert not between.same_recomputation and between.run.model.compute.remat == "full" and policy in str(between.remarks)
    chunked = translate_row(PublishedRow(LLAMA | {"tp": "1", "fsdp": "256", "micro_batch": "2", "vocab": "200064"}))
    assert chunked.run.options.loss_chunk == 128 and not chunked.same_recomputation
    dropped = translate_row(PublishedRow(GPT3 | {"dropout": ""}))
    assert "dropout not published, none planned" in dropped.remarks
    fused = translate_row(PublishedRow(GPT3 | {"dropout": "0.1"}))
    assert (fused.run.model.dropout, fused.run.model.attention_dropout) == (0.1, 0.0)
    assert "without dropout of attention weights" in str(fused.remarks)


@pytest.mark.planted(17)
@pytest.mark.parametrize(
    ("row", "changes", "reason"),
    [
        (T5, {"vocab": ""}, "no vocab"),
        (T5, {"dec_seq_len": ""}, "no dec_seq_len"),
        (T5, {"optimizer": ""}, "no optimizer"),
        (T5, {"d_model": "large"}, "d_model is no number above 0"),
        (T5, {"d_model": "1024.5"}, "d_model is no integer"),
        (T5, {"step_time_s": "-1"}, "step_time_s is no number above 0"),
        (T5, {"completeness": "parallel"}, "settings are missing or rows vary in length (completeness parallel)"),
        (T5, {"timing_kind": "whole-run average"}, "the time is no step's (whole-run average)"),
        (T5, {"chip": "V100 32GB SXM2"}, "chip V100 32GB SXM2"),
        (T5, {"nodes": "16"}, "hosts that have not eight GPUs"),
        (T5, {"dp": "32"}, "the degrees do not multiply to the devices"),
        (GPT3, {"topology": "2 slice(s) x 128 chips"}, "several TPU slices"),
        (GPT3, {"weights_dtype": "bfloat16"}, "weights_dtype bfloat16"),
        (GPT3, {"cp": "2"}, "context parallelism"),
        (LLAMA, {"precision": "fp8"}, "precision fp8"),
        (LLAMA, {"parallel_notes": "distributed optimizer (ZeRO-1)"}, "optimizer state divided otherwise than the parameters"),
        (LLAMA, {"extra_sizes": "gelu (2 matrices);alibi"}, "decoder of another architecture (gelu (2 matrices);alibi)"),
    ],
)
def test_a_row_that_is_no_run_of_this_project_has_the_reason(row: dict[str, str], changes: dict[str, str], reason: str) -> None:
    with pytest.raises(NotPlanned) as refused:
        translate_row(PublishedRow(row | changes))
    assert str(refused.value).startswith(reason)
