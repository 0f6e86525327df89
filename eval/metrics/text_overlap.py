"""Overlap of generated texts with reference texts: BLEU, chrF, ROUGE, exact match and F1 of words.

BLEU (Papineni et al. 2002) and chrF (Popović 2015) are sacrebleu's (Post 2018), with its signature; ROUGE (Lin 2004) is
rouge-score's. Exact match and F1 normalize as SQuAD does.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float64

from eval.metrics import squad
from zoo.errors import import_optional

Texts = Sequence[str]
ROUGE = ("rouge1", "rouge2", "rougeL")


def bleu(texts: Texts, references: Texts) -> tuple[dict[str, float], dict[str, str]]:
    """Return the BLEU of a set of detokenized texts, 0 to 100, and its signature (mteval-v13a's words)."""
    metric = _sacrebleu().BLEU()
    return {"bleu": metric.corpus_score(list(texts), [list(references)]).score}, {"BLEU": str(metric.get_signature())}


def bleu_contributions(texts: Texts, references: Texts) -> Float64[np.ndarray, " N"]:
    """Return the contribution of each text to the BLEU of all, 0 to 100, whose mean is that BLEU; NaN if no 4-gram matches.

    BLEU is not a mean over texts. A contribution has the linear part of the change of BLEU with the weight of its text, so that
    their variance is that of BLEU over other texts (the delta method).
    """
    metric = _sacrebleu().BLEU()
    total = metric.corpus_score(list(texts), [list(references)])
    parts = [metric.corpus_score([text], [[reference]]) for text, reference in zip(texts, references, strict=True)]
    if not min(total.counts):
        return np.full(len(parts), np.nan)
    counts, totals = (np.array([getattr(part, name) for part in parts], np.float64) for name in ("counts", "totals"))  # [N, 4]
    lengths, of_references = (np.array([getattr(part, name) for part in parts], np.float64) for name in ("sys_len", "ref_len"))
    change = (counts / np.array(total.counts) - totals / np.array(total.totals)).mean(1)
    if total.sys_len < total.ref_len:
        change += (total.ref_len * lengths / total.sys_len - of_references) / total.sys_len
    return total.score * (1 + len(parts) * change)


def chrf(texts: Texts, references: Texts) -> tuple[dict[str, float], dict[str, str]]:
    """Return the chrF2 of a set of texts, 0 to 100, and its signature."""
    metric = _sacrebleu().CHRF()
    return {"chrf": metric.corpus_score(list(texts), [list(references)]).score}, {"chrF": str(metric.get_signature())}


def rouge(texts: Texts, references: Texts) -> tuple[dict[str, float], dict[str, str]]:
    """Return the mean F of single words, of pairs, and of the longest common subsequence, 0 to 1, with stemmed words."""
    scorer = import_optional("rouge_score.rouge_scorer", "eval", "for this measure").RougeScorer(list(ROUGE), use_stemmer=True)
    scores = [scorer.score(reference, text) for reference, text in zip(references, texts, strict=True)]
    return {name: float(np.mean([score[name].fmeasure for score in scores])) for name in ROUGE}, {}


def exact(texts: Texts, references: Texts) -> tuple[dict[str, float], dict[str, str]]:
    """Return the mean exact match and F1 of words, 0 to 1, as for SQuAD (Rajpurkar et al. 2016, section 6.1)."""
    pairs = list(zip(texts, references, strict=True))
    scores = {
        "exact": float(np.mean([squad.exact_match(text, [reference]) for text, reference in pairs])),
        "f1": float(np.mean([squad.token_f1(text, [reference]) for text, reference in pairs])),
    }
    return scores, {}


MEASURES: dict[str, Callable[[Texts, Texts], tuple[dict[str, float], dict[str, str]]]] = {
    "bleu": bleu,
    "chrf": chrf,
    "rouge": rouge,
    "exact": exact,
}
"""Name -> function of (texts, reference texts) that returns (scores, their signatures)."""


def _sacrebleu() -> Any:
    return import_optional("sacrebleu.metrics", "eval", "for this measure")
