"""Build the `public` corpus: `python -m eval.experiments.public_corpus SOURCES TARGET`.

SOURCES has moby_dick.txt, tinyshakespeare.txt, sotu.tar.xz, austen.tar.xz and web_plain.txt.xz, directly or in folders; all are
public-domain English, 22 MB. Held out are the novel Persuasion, the last 20 State of the Union addresses and the last tenth of
the plays. TARGET gets train/ and valid/, one document for each novel, address and book.
"""

import lzma
import re
import sys
import tarfile
from collections.abc import Sequence
from pathlib import Path

from eval.experiments.experiment_data import folder_digest
from zoo.errors import BadInput
from zoo.runtime import stdio

ADDRESSES = 20
"""Number of held-out addresses, which are the last ones."""


def build_corpus(sources: Path, target: Path) -> str:
    """Write the corpus and return its digest.

    Raises:
        BadInput: a source is missing.
    """
    documents: dict[str, str] = {}
    documents["train/moby_dick.txt"] = _find(sources, "moby_dick.txt").read_text(encoding="utf-8")
    documents["train/web.txt"] = lzma.decompress(_find(sources, "web_plain.txt.xz").read_bytes()).decode()
    for name, text in _members(_find(sources, "austen.tar.xz")):
        documents[f"{'valid' if 'persuasion' in name.lower() else 'train'}/austen_{name}"] = text
    addresses = sorted(_members(_find(sources, "sotu.tar.xz")), key=lambda item: (_year(item[0]), item[0]))
    for place, (name, text) in enumerate(addresses):
        documents[f"{'valid' if place >= len(addresses) - ADDRESSES else 'train'}/sotu_{name}"] = text
    plays = _find(sources, "tinyshakespeare.txt").read_text(encoding="utf-8")
    # A speech ends with an empty line.
    cut = plays.index("\n\n", len(plays) * 9 // 10) + 2
    documents |= {"train/plays.txt": plays[:cut], "valid/plays.txt": plays[cut:]}
    for name, text in documents.items():
        path = target / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8", newline="\n")
    return folder_digest(target)


def _find(sources: Path, name: str) -> Path:
    for path in sorted(sources.rglob(name)):
        return path
    raise BadInput(f"{sources}: it has no {name}, which the public corpus consists of")


def _members(archive: Path) -> list[tuple[str, str]]:
    """Return (name, text) of each file in an archive, sorted; `_` replaces special characters in names, which end in .txt."""
    with tarfile.open(archive) as tar:
        files = [(Path(member.name).name, tar.extractfile(member)) for member in tar.getmembers() if member.isfile()]
        contents = [(re.sub(r"[^\w.-]", "_", name), file.read().decode("utf-8")) for name, file in files if file is not None]
    return sorted((name if name.endswith(".txt") else f"{name}.txt", text) for name, text in contents)


def _year(name: str) -> int:
    year = re.search(r"\d{4}", name)
    return int(year[0]) if year else 0


def main(argv: Sequence[str]) -> int:
    """Build the corpus, print its digest, and return the exit code."""
    if len(argv) != 2:
        stdio.write_error("two folders are needed: python -m eval.experiments.public_corpus SOURCES TARGET")
        return 2
    try:
        print(build_corpus(Path(argv[0]), Path(argv[1])))
    except (BadInput, OSError) as error:
        stdio.write_error(str(error))
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
