"""Messages of wrong input."""

import pytest

from zoo.errors import BadInput


@pytest.mark.planted
@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("the key a\nb", "the key a\\nb"),
        ("\x1b[31m red \u2028 \ud800", "\\x1b[31m red \\u2028 \\ud800"),
        ("the entry \u6f22 is 'twice'", "the entry \u6f22 is 'twice'"),
    ],
)
def test_a_message_is_one_line_that_can_be_printed(text: str, message: str) -> None:
    assert str(BadInput(text)) == message
