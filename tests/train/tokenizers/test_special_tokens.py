"""Special tokens and the templates in which they surround texts, as in each family's paper or program."""

import numpy as np
import pytest

from train.marks import BERT, ROBERTA, XLNET, Marks, named
from zoo.errors import BadInput

FAMILIES = {"bert": BERT, "roberta": ROBERTA, "xlnet": XLNET}
FIRST, SECOND = np.array([20, 21]), np.array([30])
TEMPLATES = {
    # Family: a text, its types, a pair, its types; the end of a document.
    "bert": ([2, 20, 21, 3], [0] * 4, [2, 20, 21, 3, 30, 3], [0, 0, 0, 0, 1, 1], 3),
    "roberta": ([0, 20, 21, 2], [0] * 4, [0, 20, 21, 2, 2, 30, 2], [0] * 7, 2),
    "xlnet": ([20, 21, 4, 3], [0, 0, 0, 2], [20, 21, 4, 30, 4, 3], [0, 0, 0, 1, 1, 2], 7),
}


def marks_of(family: str) -> Marks:
    marks = named({name: number for number, name in enumerate(FAMILIES[family].values())})
    assert marks is not None
    return marks


@pytest.mark.parametrize("family", TEMPLATES)
def test_texts_are_placed_in_the_familys_template(family: str) -> None:
    """The positions of texts and of CLS are those of the template whatever the sizes of the texts, none included."""
    marks, (*template, end) = marks_of(family), TEMPLATES[family]
    made = [*marks.single(FIRST), *marks.pair(FIRST, SECOND)]
    assert [part.tolist() for part in made] == template
    assert {part.dtype for part in made} == {np.dtype(np.int32)}
    assert (marks.types, marks.end) == (max(template[3]) + 1, end)
    for first, second in ((FIRST, SECOND), (FIRST[:0], SECOND), (FIRST, SECOND[:0])):
        alone, pair = marks.single(first)[0], marks.pair(first, second)[0]
        assert alone[marks.summary(len(alone))] == pair[marks.summary(len(pair))] == marks.cls
        assert alone[marks.before :][: len(first)].tolist() == pair[marks.before :][: len(first)].tolist() == first.tolist()
        assert pair[marks.before + len(first) + marks.between :][: len(second)].tolist() == second.tolist()


@pytest.mark.planted
@pytest.mark.parametrize("missing", [name for name in XLNET.values() if name not in ROBERTA.values()])
def test_an_xlnet_vocabulary_that_lacks_a_special_token_is_refused(missing: str) -> None:
    """It shares five names with RoBERTa's, and is not taken for one."""
    ids = {name: number for number, name in enumerate(XLNET.values()) if name != missing}
    with pytest.raises(BadInput, match=f"^it has no {missing}, and an encoder needs <unk>, <s>, "):
        named(ids)
