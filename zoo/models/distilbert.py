"""DistilBERT: a BERT with half of the layers, distilled from the full one (Sanh et al. 2019)."""

from zoo.configs._encoder import Task
from zoo.hf.param_name_types import ParamName
from zoo.nn import encoder
from zoo.nn.encoder import DENSE, encoder_family, linear
from zoo.nn.task_heads import Head

BODY = (
    ParamName("embed/tokens/embedding", "embeddings.word_embeddings.weight"),
    ParamName("embed/positions/embedding", "embeddings.position_embeddings.weight"),
    ParamName("embed/norm/scale", "embeddings.LayerNorm.weight"),
    ParamName("embed/norm/bias", "embeddings.LayerNorm.bias"),
    ParamName(
        "layers/attention/qkv/kernel",
        tuple(f"transformer.layer.{{layer}}.attention.{part}_lin.weight" for part in "qkv"),
        "(n h) d -> d c n h",
    ),
    ParamName(
        "layers/attention/qkv/bias",
        tuple(f"transformer.layer.{{layer}}.attention.{part}_lin.bias" for part in "qkv"),
        "(n h) -> c n h",
    ),
    ParamName("layers/attention/out/kernel", "transformer.layer.{layer}.attention.out_lin.weight", "d (n h) -> n h d"),
    ParamName("layers/attention/out/bias", "transformer.layer.{layer}.attention.out_lin.bias"),
    ParamName("layers/norm1/scale", "transformer.layer.{layer}.sa_layer_norm.weight"),
    ParamName("layers/norm1/bias", "transformer.layer.{layer}.sa_layer_norm.bias"),
    ParamName("layers/mlp/up/kernel", "transformer.layer.{layer}.ffn.lin1.weight", DENSE),
    ParamName("layers/mlp/up/bias", "transformer.layer.{layer}.ffn.lin1.bias"),
    ParamName("layers/mlp/down/kernel", "transformer.layer.{layer}.ffn.lin2.weight", DENSE),
    ParamName("layers/mlp/down/bias", "transformer.layer.{layer}.ffn.lin2.bias"),
    ParamName("layers/norm2/scale", "transformer.layer.{layer}.output_layer_norm.weight"),
    ParamName("layers/norm2/bias", "transformer.layer.{layer}.output_layer_norm.bias"),
)
MASKED = encoder.masked("vocab_transform", "vocab_layer_norm", "vocab_projector.bias")
OWN = (*linear("dense", "pre_classifier"), *linear("classifier", "classifier"))

HEADS: dict[Task, Head] = {
    "body": Head(architecture="DistilBertModel"),
    "masked": Head(architecture="DistilBertForMaskedLM", rows=MASKED),
    "sequence": Head(architecture="DistilBertForSequenceClassification", rows=OWN, summary="relu"),
    "choice": Head(architecture="DistilBertForMultipleChoice", rows=OWN, summary="relu"),
    "tokens": Head(architecture="DistilBertForTokenClassification", rows=linear("classifier", "classifier")),
    "span": Head(architecture="DistilBertForQuestionAnswering", rows=linear("classifier", "qa_outputs")),
}

FAMILY = encoder_family(
    HEADS,
    objectives=("masked", "left_to_right", "distilled", "classification", "tagging", "span", "choice", "preference"),
    names=encoder.published_names(
        HEADS,
        "distilbert.",
        BODY,
        tied={"vocab_projector.weight": "embed/tokens/embedding"},
        constants=("embeddings.position_ids",),
    ),
    padded={"embed/tokens/embedding": "vocab", "masked/bias": "vocab"},
    lora=("q_lin", "v_lin"),
)
