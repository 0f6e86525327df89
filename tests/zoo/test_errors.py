"""Messages of wrong input."""

import importlib.metadata
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from zoo.errors import BadInput, install_advice, printable_lines


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


def test_the_advice_to_install_an_extra_fits_the_installation(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """An environment that run.py made, an editable and a plain installation of a folder, and one of a file that is gone."""

    def installed(**origin: object) -> None:
        distribution = SimpleNamespace(read_text=lambda name: json.dumps(origin) if origin else None)
        monkeypatch.setattr(importlib.metadata, "distribution", lambda name: distribution)

    (tmp_path / ".venv").mkdir()
    monkeypatch.setattr(sys, "prefix", str(tmp_path / ".venv"))
    monkeypatch.chdir(tmp_path)
    url, folder = f"file://{tmp_path}", str(tmp_path)
    installed(url=url, dir_info={"editable": True})
    assert install_advice("data") == f"pip install -e '{folder}[data]' -c '{folder}/constraints.txt'"
    installed(url=url, dir_info={})
    assert install_advice("data") == f"pip install '{folder}[data]' -c '{folder}/constraints.txt'"
    (tmp_path / "package.whl").touch()
    installed(url=f"{url}/package.whl", archive_info={})
    assert install_advice("data") == f"pip install '{folder}/package.whl[data]'"
    for origin in ({"url": "file:///gone/package.whl", "archive_info": {}}, {}):
        installed(**origin)
        assert install_advice("data") == "pip install 'FOLDER[data]', where FOLDER is a clone of transformer-zoo"
    (tmp_path / ".venv" / "zoo-stamp.json").touch()
    assert install_advice("data") == "python3 run.py --extra data ... installs it"


def test_texts_of_several_lines_lose_their_terminal_commands_only() -> None:
    text = "a\tb\n\u0645\u06cc\u200c\u062e \U0001f468\u200d\U0001f469"
    assert printable_lines(text) == text
    assert printable_lines("\x1b[2J\x9b\r\u202e\u2066") == r"\x1b[2J\x9b\r\u202e\u2066"
