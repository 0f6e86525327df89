"""Recipes that fine-tune a pretrained encoder on labelled examples: the body is that of `--init`, a head is new.

Their hyperparameters are BERT's (Devlin et al. 2019, appendix A.3) unless a docstring says otherwise. A tenth of the training
examples selects the checkpoint. The numbers to expect were measured with --data.validation-share 0: training used that tenth too,
and the checkpoint was selected on the same examples on which the numbers were measured.
"""

import dataclasses

from train.config.data_options import LabelledData
from train.config.declaration import ObjectiveOptions
from train.config.embedding_options import ContrastiveOptions, SimilarityOptions
from train.config.late_interaction_options import LateInteractionOptions
from train.config.objectives import ChoiceOptions, ClassificationOptions, SpanOptions, TaggingOptions
from train.config.option_groups import Selection
from train.config.ranking_options import RankingOptions
from train.config.rerank_options import RerankOptions
from train.config.run_config import Checkpoint, Log, Optim, Run
from train.config.sentence_denoising_options import SentenceDenoisingOptions
from train.weights import pretrained_config
from train.weights.run_modules import (
    contrastive_options,
    late_interaction_options,
    ranking_options,
    sentence_denoising_options,
    similarity_options,
)
from zoo import configs
from zoo.configs._encoder import Task


def finetune_classification(init: str = "") -> Run:
    """Classify texts or pairs; or predict numbers (--labelled.regression) or lists of labels (--labelled.multi-label) for them.

    Command: zoo train finetune-classification --init DIR --data.paths train.tsv --data.valid-paths dev.tsv
    Hardware: 2 CPU cores, float32.
    Time: 20 minutes for 866 steps of 16 rows of 64 (two epochs) on a busy machine; not measured on an idle one.
    Expect: 87.2, 88.1, 88.0 % on the dev set of SST-2 (6,920 sentences), MiniLM, --optim.lr 1e-4, those steps, three seeds.
    """
    return _run("finetune-classification", ClassificationOptions(), "sequence", init, length=128)


def finetune_tagging(init: str = "") -> Run:
    """Tag each word of a sentence, for example with names of people and places.

    Command: zoo train finetune-tagging --init DIR --data.paths train.conll
    Hardware: 2 CPU cores, float32.
    Time: 4 minutes for 250 steps of 32 rows of 48, on one core.
    Expect: entity F1 0.44 on the last tenth of WNUT-17's training file, MiniLM, --optim.lr 3e-4, those steps, one seed.
    """
    return _run("finetune-tagging", TaggingOptions(), "tokens", init, length=128)


def finetune_span(init: str = "") -> Run:
    """Find the answer to a question in a text (SQuAD 1.1 and 2.0).

    Command: zoo train finetune-span --init DIR --data.paths train.json
    Hardware: 2 CPU cores, float32.
    Time: 15 minutes for 200 steps of 16 rows of 256 on a busy machine; not measured on an idle one.
    Expect: F1 0.46, exact match 0.27 on XQuAD's last 8 English documents, trained on 40, MiniLM, --optim.lr 2e-4, one seed.
    """
    return _run("finetune-span", SpanOptions(), "span", init, length=384)


def finetune_choice(init: str = "") -> Run:
    """Choose the correct one of several answers to a question about a text (RACE).

    Command: zoo train finetune-choice --init DIR --data.paths train.jsonl
    Hardware: 2 CPU cores, float32.
    Time: not measured (the data set is not available).
    Expect: not measured. The paper has no result for BERT on RACE; table 2 of RoBERTa has 64 to 66 % for base models.
    """
    return _run("finetune-choice", ChoiceOptions(), "choice", init, length=512)


def finetune_rerank(init: str = "") -> Run:
    """Score queries with candidate texts (a cross-encoder), so that the text which belongs to a query is the first.

    Command: zoo train finetune-rerank --init DIR --data.paths train.jsonl
    Hardware: 2 CPU cores, float32.
    Time: not measured.
    Expect: not measured.
    """
    run = _run("finetune-rerank", RerankOptions(), "sequence", init, length=256)
    label = pretrained_config.score_label(init) if init else pretrained_config.SCORE
    return dataclasses.replace(run, model=dataclasses.replace(run.model, labels=(label,)))


def embed_contrastive(init: str = "") -> Run:
    """Train the vectors of texts on queries with their documents (retrieval), or on texts alone (SimCSE).

    Command: zoo train embed-contrastive --init DIR --data.paths pairs.jsonl
    Hardware: 2 CPU cores, float32.
    Time: not measured.
    Expect: not measured.
    """
    options = ContrastiveOptions(contrastive=contrastive_options(init))
    return _run("embed-contrastive", options, "body", init, length=128, batch=64)


def embed_ranking(init: str = "") -> Run:
    """Train the vectors of texts on queries with their own positives and negatives (triplets), or on a teacher's scores of them.

    Command: zoo train embed-ranking --init DIR --data.paths mined.jsonl
    Hardware: 2 CPU cores, float32.
    Time: not measured.
    Expect: not measured.
    """
    options = RankingOptions(ranking=ranking_options(init))
    return _run("embed-ranking", options, "body", init, length=128, batch=32)


def embed_similarity(init: str = "") -> Run:
    """Train the vectors of texts on pairs with a score of their similarity (STS).

    Command: zoo train embed-similarity --init DIR --data.paths pairs.tsv
    Hardware: 2 CPU cores, float32.
    Time: not measured.
    Expect: not measured.
    """
    options = SimilarityOptions(similarity=similarity_options(init))
    return _run("embed-similarity", options, "body", init, length=128, batch=32)


def embed_denoising(init: str = "") -> Run:
    """Train the vectors of texts without labels: each text is reconstructed from the vector of some of its words (TSDAE).

    Command: zoo train embed-denoising --init DIR --data.paths texts.jsonl
    Hardware: 2 CPU cores, float32.
    Time: not measured.
    Expect: not measured.
    """
    options = SentenceDenoisingOptions(sentence_denoising=sentence_denoising_options(init))
    return _run("embed-denoising", options, "body", init, length=128, batch=8)


def embed_late_interaction(init: str = "") -> Run:
    """Train a vector for each token on queries with their documents, which are compared by MaxSim (ColBERT).

    Command: zoo train embed-late-interaction --init DIR --data.paths pairs.jsonl
    Hardware: 2 CPU cores, float32.
    Time: not measured.
    Expect: not measured.
    """
    options = LateInteractionOptions(late_interaction=late_interaction_options(init))
    return _run("embed-late-interaction", options, "body", init, length=180, batch=32)


def _run(name: str, options: ObjectiveOptions, task: Task, init: str, *, length: int, batch: int = 16) -> Run:
    model = dataclasses.replace(configs.find_size("bert-base-uncased")[1].config, task=task)
    model = pretrained_config.with_head(model, init) if init else model
    return Run(
        recipe=name,
        model=model,
        options=options,
        init=init,
        steps=1_000,
        # A family without learned positions has no `context`.
        data=LabelledData(length=min(length, getattr(model, "context", length)), batch=batch, validation_share=0.1),
        optim=Optim(lr=3e-5, warmup=100, schedule="linear", final=0.0, b2=0.999, eps=1e-6, weight_decay=0.01),
        selection=Selection(best=True),
        checkpoint=Checkpoint(every=200),
        log=Log(every=10, validate_every=100, validate_rows=1_000, samples=0),
    )
