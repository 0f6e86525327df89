"""Marks and the templates they stand in, each as its paper or its own program has it."""

import numpy as np
import pytest

from train.marks import BERT, ROBERTA, XLNET, Marks, named
from zoo.errors import BadInput

FAMILIES = {"bert": BERT, "roberta": ROBERTA, "xlnet": XLNET}
FIRST, SECOND = np.array([20, 21]), np.array([30])


def of(family: str) -> Marks:
    found = named({name: number for number, name in enumerate(FAMILIES[family].values())})
    assert found is not None
    return found


def test_xlnets_have_the_published_ids():
    names = ["<unk>", "<s>", "</s>", "<cls>", "<sep>", "<pad>", "<mask>", "<eod>", "<eop>"]
    assert [*XLNET.values()] == names
    assert of("xlnet") == Marks(unk=0, bos=1, eos=2, cls=3, sep=4, pad=5, mask=6, eod=7, eop=8, cls_last=True)
    assert of("xlnet").special == tuple(range(9))


TEMPLATES = {
    # Family: a text, its types, a pair, its types.
    "bert": ([2, 20, 21, 3], [0] * 4, [2, 20, 21, 3, 30, 3], [0, 0, 0, 0, 1, 1]),
    "roberta": ([0, 20, 21, 2], [0] * 4, [0, 20, 21, 2, 2, 30, 2], [0] * 7),
    "xlnet": ([20, 21, 4, 3], [0, 0, 0, 2], [20, 21, 4, 30, 4, 3], [0, 0, 0, 1, 1, 2]),
}


@pytest.mark.parametrize("family", TEMPLATES)
def test_a_text_and_a_pair_stand_in_the_familys_template(family: str):
    marks = of(family)
    made = [*marks.single(FIRST), *marks.pair(FIRST, SECOND)]
    assert [each.tolist() for each in made] == [*TEMPLATES[family]]
    assert {each.dtype for each in made} == {np.dtype(np.int32)}
    assert marks.types == max(made[3]) + 1


@pytest.mark.parametrize("family", TEMPLATES)
def test_the_places_of_the_texts_and_of_cls_are_those_of_the_template(family: str):
    """Whatever the sizes of the texts, none included."""
    marks = of(family)
    for first, second in ((FIRST, SECOND), (FIRST[:0], SECOND), (FIRST, SECOND[:0])):
        alone, whole = marks.single(first)[0], marks.pair(first, second)[0]
        assert alone[marks.summary(len(alone))] == whole[marks.summary(len(whole))] == marks.cls
        assert alone[marks.before :][: len(first)].tolist() == whole[marks.before :][: len(first)].tolist() == first.tolist()
        assert whole[marks.before + len(first) + marks.between :][: len(second)].tolist() == second.tolist()


def test_a_document_ends_with_the_separator_but_xlnets_with_a_mark_of_its_own():
    assert {family: of(family).end for family in FAMILIES} == {"bert": 3, "roberta": 2, "xlnet": 7}


@pytest.mark.parametrize("gone", [name for name in XLNET.values() if name not in ROBERTA.values()])
@pytest.mark.planted
def test_a_vocabulary_of_xlnets_that_lacks_one_is_refused_for_it(gone: str):
    """It shares five names with RoBERTa's, and is not taken for one."""
    ids = {name: number for number, name in enumerate(XLNET.values()) if name != gone}
    with pytest.raises(BadInput, match=f"^it has no {gone}, and an encoder needs <unk>, <s>, "):
        named(ids)
