"""The documentation site: built from a copy of docs/, and words that its search must find."""

from pathlib import Path

from tests.support.processes import ROOT, run_python

BUILDERS = {"zensical": ["build", "--strict", "--clean"], "mkdocs": ["build", "--strict", "--clean"]}
WORDS = ("checkpoint", "tokenizer", "learning rate", "perplexity", "LoadedModel", "segment", "gpt-nano", "DPO", "libtpu", "LoRA")
"""Words that the search must find."""


def site_copy(folder: Path) -> Path:
    """Return a folder with the files that a site is built from, in which builders may write."""
    for path in ROOT.iterdir():
        if path.name not in (".git", ".venv", ".cache", "site", "docs", "mkdocs.yml", "runs"):
            (folder / path.name).symlink_to(path)
    (folder / "mkdocs.yml").write_bytes((ROOT / "mkdocs.yml").read_bytes())
    for path in (ROOT / "docs").rglob("*"):
        if path.is_file() and "__pycache__" not in path.parts:
            copy = folder / "docs" / path.relative_to(ROOT / "docs")
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(path.read_bytes())
    return folder


def build(folder: Path, builder: str) -> tuple[int, str]:
    """Build the site in `folder` / "site", and return the exit code and the output."""
    done = run_python("-m", builder, *BUILDERS[builder], cwd=folder, env={"NO_MKDOCS_2_WARNING": "1"}, timeout=600)
    return done.code, done.stdout + done.stderr
