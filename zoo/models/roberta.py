"""RoBERTa: BERT trained longer, on masked words alone, with new masks each time a row is used (Liu et al. 2019)."""

from zoo.configs._encoder import Task
from zoo.hf.param_name_types import head_names
from zoo.nn import encoder
from zoo.nn.encoder import BERT_BODY, POOLER, POOLER_NAMES, encoder_family
from zoo.nn.task_heads import Head

MASKED = encoder.masked("lm_head.dense", "lm_head.layer_norm", "lm_head.bias")
OWN = (*head_names("dense", "classifier.dense"), *head_names("classifier", "classifier.out_proj"))
CLASSIFIER, SPAN = head_names("classifier", "classifier"), head_names("classifier", "qa_outputs")
NEXT = head_names("next", "cls.seq_relationship")

HEADS: dict[Task, Head] = {
    "body": Head(architecture="RobertaModel", rows=POOLER),
    # The masked head of `transformers` has this activation, whatever activation config.json gives the layers.
    "masked": Head(architecture="RobertaForMaskedLM", rows=MASKED, idle=POOLER_NAMES, masked_activation="gelu"),
    # The paper compares input formats with next-sentence prediction (Table 2); no such model was published.
    "pretraining": Head(architecture="", rows=(*POOLER, *MASKED, *NEXT), masked_activation="gelu"),
    "sequence": Head(architecture="RobertaForSequenceClassification", rows=OWN, idle=POOLER_NAMES, drops_hidden=True),
    "choice": Head(architecture="RobertaForMultipleChoice", rows=(*POOLER, *CLASSIFIER)),
    "tokens": Head(architecture="RobertaForTokenClassification", rows=CLASSIFIER, idle=POOLER_NAMES),
    "span": Head(architecture="RobertaForQuestionAnswering", rows=SPAN, idle=POOLER_NAMES, drops=False),
}

FAMILY = encoder_family(
    HEADS,
    "roberta.",
    BERT_BODY,
    tied={"lm_head.decoder.weight": "embed/tokens/embedding", "lm_head.decoder.bias": "masked/bias"},
    lora=("query", "value"),
)
