"""DistilBERT: a BERT with half of the layers, distilled from the full one (Sanh et al. 2019)."""

from zoo.configs._encoder import Task
from zoo.hf.param_name_types import ParamName, head_names, linear_names, names_of_split_projection, norm_names
from zoo.nn import encoder
from zoo.nn.encoder import encoder_family
from zoo.nn.task_heads import Head

LAYER = "transformer.layer.{layer}"
BODY = (
    ParamName("embed/tokens/embedding", "embeddings.word_embeddings.weight"),
    ParamName("embed/positions/embedding", "embeddings.position_embeddings.weight"),
    *norm_names("embed/norm", "embeddings.LayerNorm"),
    *names_of_split_projection("layers/attention/qkv", *(f"{LAYER}.attention.{part}_lin" for part in "qkv")),
    *linear_names("layers/attention/out", f"{LAYER}.attention.out_lin", "d (n h) -> n h d"),
    *norm_names("layers/norm1", f"{LAYER}.sa_layer_norm"),
    *linear_names("layers/mlp/up", f"{LAYER}.ffn.lin1"),
    *linear_names("layers/mlp/down", f"{LAYER}.ffn.lin2"),
    *norm_names("layers/norm2", f"{LAYER}.output_layer_norm"),
)
MASKED = encoder.masked("vocab_transform", "vocab_layer_norm", "vocab_projector.bias")
OWN = (*head_names("dense", "pre_classifier"), *head_names("classifier", "classifier"))

HEADS: dict[Task, Head] = {
    "body": Head(architecture="DistilBertModel"),
    "masked": Head(architecture="DistilBertForMaskedLM", rows=MASKED),
    "sequence": Head(architecture="DistilBertForSequenceClassification", rows=OWN, summary="relu"),
    "choice": Head(architecture="DistilBertForMultipleChoice", rows=OWN, summary="relu"),
    "tokens": Head(architecture="DistilBertForTokenClassification", rows=head_names("classifier", "classifier")),
    "span": Head(architecture="DistilBertForQuestionAnswering", rows=head_names("classifier", "qa_outputs")),
}

FAMILY = encoder_family(
    HEADS,
    "distilbert.",
    BODY,
    tied={"vocab_projector.weight": "embed/tokens/embedding"},
    lora=("q_lin", "v_lin"),
)
