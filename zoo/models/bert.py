"""BERT: a bidirectional encoder pretrained on masked words and next sentences (Devlin et al. 2019)."""

from zoo.configs._encoder import Task
from zoo.configs.bert import Config
from zoo.nn import encoder
from zoo.nn.encoder import BERT_BODY, POOLER, POOLER_NAMES, Family, linear
from zoo.nn.task_heads import Head
from zoo.sharding import Rules

OBJECTIVES = ("masked", "left_to_right", "distilled", "classification", "tagging", "span", "choice", "preference")
SHARDING: Rules = ()
LORA = ("query", "value")
"""Names of the published matrices that have adapters by default (`zoo.lora`)."""
PADDED = {"embed/tokens/embedding": "vocab", "masked/bias": "vocab"}
"""Leaf -> option that has its true number of rows. Further rows are padding, which is neither exported nor counted."""

MASKED = encoder.masked("cls.predictions.transform.dense", "cls.predictions.transform.LayerNorm", "cls.predictions.bias")
NEXT = linear("next", "cls.seq_relationship")
CLASSIFIER, SPAN = linear("classifier", "classifier"), linear("classifier", "qa_outputs")

HEADS: dict[Task, Head] = {
    "body": Head(architecture="BertModel", rows=POOLER),
    "pretraining": Head(architecture="BertForPreTraining", rows=(*POOLER, *MASKED, *NEXT)),
    "masked": Head(architecture="BertForMaskedLM", rows=MASKED, idle=POOLER_NAMES),
    "next": Head(architecture="BertForNextSentencePrediction", rows=(*POOLER, *NEXT)),
    "sequence": Head(architecture="BertForSequenceClassification", rows=(*POOLER, *CLASSIFIER)),
    "choice": Head(architecture="BertForMultipleChoice", rows=(*POOLER, *CLASSIFIER)),
    "tokens": Head(architecture="BertForTokenClassification", rows=CLASSIFIER, idle=POOLER_NAMES),
    "span": Head(architecture="BertForQuestionAnswering", rows=SPAN, idle=POOLER_NAMES, drops=False),
}
HF = encoder.published_names(
    HEADS,
    "bert.",
    BERT_BODY,
    tied={"cls.predictions.decoder.weight": "embed/tokens/embedding", "cls.predictions.decoder.bias": "masked/bias"},
    constants=("embeddings.position_ids",),
)

FAMILY = Family[Config](HEADS)
init, apply, unembed, flops = FAMILY.init, FAMILY.apply, FAMILY.unembed, FAMILY.flops
sequence_logits, token_logits = FAMILY.sequence_logits, FAMILY.token_logits
