"""BERT: a bidirectional encoder pretrained on masked words and next sentences (Devlin et al. 2019)."""

from zoo.configs._encoder import Task
from zoo.hf.param_name_types import head_names
from zoo.nn import encoder
from zoo.nn.encoder import BERT_BODY, POOLER, POOLER_NAMES, encoder_family
from zoo.nn.task_heads import Head

MASKED = encoder.masked("cls.predictions.transform.dense", "cls.predictions.transform.LayerNorm", "cls.predictions.bias")
NEXT = head_names("next", "cls.seq_relationship")
CLASSIFIER, SPAN = head_names("classifier", "classifier"), head_names("classifier", "qa_outputs")

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

FAMILY = encoder_family(
    HEADS,
    "bert.",
    BERT_BODY,
    tied={"cls.predictions.decoder.weight": "embed/tokens/embedding", "cls.predictions.decoder.bias": "masked/bias"},
    lora=("query", "value"),
)
