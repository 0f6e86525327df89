"""Facts about a run that the console shows."""

import dataclasses

from tests.support.small import small
from train.run_description import _inner_width


def test_the_product_of_heads_is_shown_where_it_is_not_the_width() -> None:
    config = small("gpt").config
    assert _inner_width(config) == _inner_width(small("bert").config) == ""
    more = dataclasses.replace(config, heads=config.heads + 1)
    product = more.heads * more.head
    assert _inner_width(more) == f", attention of {more.heads} x {more.head} = {product} dimensions in a width of {more.width}"
