"""How much generated texts have in common with those that were wanted: BLEU, chrF, ROUGE, exact match and F1 of words.

BLEU (Papineni et al. 2002) and chrF (Popović 2015) are sacrebleu's (Post 2018), with its signature; ROUGE (Lin 2004) is
rouge-score's. Exact match and F1 normalize as SQuAD does.
"""

import importlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from eval.scoring import squad
from zoo.errors import BadInput

Texts = Sequence[str]
ROUGE = ("rouge1", "rouge2", "rougeL")


def bleu(found: Texts, wanted: Texts) -> tuple[dict[str, float], dict[str, str]]:
    """BLEU of a whole set of detokenized texts, 0 to 100, and how it was computed (mteval-v13a's words)."""
    metric = _sacrebleu().BLEU()
    return {"bleu": metric.corpus_score(list(found), [list(wanted)]).score}, {"BLEU": str(metric.get_signature())}


def chrf(found: Texts, wanted: Texts) -> tuple[dict[str, float], dict[str, str]]:
    """chrF2 of a whole set of texts, 0 to 100, and how it was computed."""
    metric = _sacrebleu().CHRF()
    return {"chrf": metric.corpus_score(list(found), [list(wanted)]).score}, {"chrF": str(metric.get_signature())}


def rouge(found: Texts, wanted: Texts) -> tuple[dict[str, float], dict[str, str]]:
    """Mean F of one word, of two, and of the longest common subsequence, 0 to 1; of stemmed words."""
    scorer = _installed("rouge_score.rouge_scorer").RougeScorer(list(ROUGE), use_stemmer=True)
    each = [scorer.score(true, said) for true, said in zip(wanted, found, strict=True)]
    return {name: float(np.mean([one[name].fmeasure for one in each])) for name in ROUGE}, {}


def exact(found: Texts, wanted: Texts) -> tuple[dict[str, float], dict[str, str]]:
    """Mean exact match and F1 of words, 0 to 1, as SQuAD's answers are judged (Rajpurkar et al. 2016, section 6.1)."""
    pairs = list(zip(found, wanted, strict=True))
    told = {
        "exact": float(np.mean([squad.exact_match(said, [true]) for said, true in pairs])),
        "f1": float(np.mean([squad.token_f1(said, [true]) for said, true in pairs])),
    }
    return told, {}


MEASURES: dict[str, Callable[[Texts, Texts], tuple[dict[str, float], dict[str, str]]]] = {
    "bleu": bleu,
    "chrf": chrf,
    "rouge": rouge,
    "exact": exact,
}
"""Name -> (texts found, texts wanted) -> (numbers, what they are)."""


def _sacrebleu() -> Any:
    return _installed("sacrebleu.metrics")


def _installed(name: str) -> Any:
    """A module of an optional package.

    Raises:
        BadInput: it is not installed.
    """
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise BadInput(
            f"{error.name} is needed for this measure and is not installed; pip install 'transformer-zoo[eval]'"
        ) from None
