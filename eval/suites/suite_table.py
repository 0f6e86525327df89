"""The suites by name: their tasks, the files that each reads, and where these are published. Nothing here imports JAX."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple

from zoo.errors import BadInput

SuiteName = Literal["babylm", "blimp", "glue-files"]

BLIMP_PARADIGMS = """
adjunct_island anaphor_gender_agreement anaphor_number_agreement animate_subject_passive animate_subject_trans causative
complex_NP_island coordinate_structure_constraint_complex_left_branch coordinate_structure_constraint_object_extraction
determiner_noun_agreement_1 determiner_noun_agreement_2 determiner_noun_agreement_irregular_1
determiner_noun_agreement_irregular_2 determiner_noun_agreement_with_adj_2 determiner_noun_agreement_with_adj_irregular_1
determiner_noun_agreement_with_adj_irregular_2 determiner_noun_agreement_with_adjective_1 distractor_agreement_relational_noun
distractor_agreement_relative_clause drop_argument ellipsis_n_bar_1 ellipsis_n_bar_2 existential_there_object_raising
existential_there_quantifiers_1 existential_there_quantifiers_2 existential_there_subject_raising expletive_it_object_raising
inchoative intransitive irregular_past_participle_adjectives irregular_past_participle_verbs
irregular_plural_subject_verb_agreement_1 irregular_plural_subject_verb_agreement_2 left_branch_island_echo_question
left_branch_island_simple_question matrix_question_npi_licensor_present npi_present_1 npi_present_2 only_npi_licensor_present
only_npi_scope passive_1 passive_2 principle_A_c_command principle_A_case_1 principle_A_case_2 principle_A_domain_1
principle_A_domain_2 principle_A_domain_3 principle_A_reconstruction regular_plural_subject_verb_agreement_1
regular_plural_subject_verb_agreement_2 sentential_negation_npi_licensor_present sentential_negation_npi_scope
sentential_subject_island superlative_quantifiers_1 superlative_quantifiers_2 tough_vs_raising_1 tough_vs_raising_2 transitive
wh_island wh_questions_object_gap wh_questions_subject_gap wh_questions_subject_gap_long_distance wh_vs_that_no_gap
wh_vs_that_no_gap_long_distance wh_vs_that_with_gap wh_vs_that_with_gap_long_distance
"""
"""Names of the 67 files of BLiMP, without .jsonl, between white space."""
SUPPLEMENT = ("hypernym", "qa_congruence_easy", "qa_congruence_tricky", "subject_aux_inversion", "turn_taking")
"""Names of the files of BabyLM's supplement to BLiMP."""


class SuitePart(NamedTuple):
    """A task of a suite."""

    name: str
    task: str
    """TASK or TASK:ARGUMENT of `eval.tasks.task_table`."""
    metric: str
    """The metric that the suite's mean counts."""
    percent: float
    """Factor of that metric in the table, in percent."""
    places: tuple[str, ...]
    """Folders of its files below --suite-data; the first one that exists is read."""
    fields: str
    """Format of the files, in words."""
    source: str
    suffixes: tuple[str, ...] = (".jsonl",)
    files: tuple[str, ...] = ()
    """Names of all files without suffixes, if the authors' set has fixed names: without one of them the part is incomplete."""


class LocalPart(NamedTuple):
    """A task of a suite and what of it is on this machine."""

    part: SuitePart
    folder: Path | None
    """Folder of the files that are there; None = none is."""
    absent: tuple[str, ...] = ()
    """Names of files of the authors' set that are not there."""

    @property
    def names(self) -> list[str]:
        """The files to read: of an authors' set those that are there, else the folder of all."""
        if self.folder is None:
            return []
        present = [name for name in self.part.files if name not in self.absent]
        return [str(self.folder / f"{name}{self.part.suffixes[0]}") for name in present] or [str(self.folder)]


MINIMAL_PAIRS = "sentence_good, sentence_bad, and UID and linguistics_term where they are"
_BABYLM = "BabyLM's evaluation data"
BLIMP = SuitePart(
    name="blimp",
    task="blimp",
    metric="accuracy",
    percent=100,
    places=("", "data"),
    fields=MINIMAL_PAIRS,
    source="github.com/alexwarstadt/blimp, data (Warstadt et al. 2020; 67 files)",
    files=tuple(BLIMP_PARADIGMS.split()),
)
BABYLM = (
    BLIMP._replace(places=("blimp_filtered",), source=f"{_BABYLM}: 67 files, filtered by vocabulary"),
    BLIMP._replace(name="supplement", places=("supplement_filtered",), source=f"{_BABYLM}: 5 files", files=SUPPLEMENT),
    SuitePart(
        name="ewok",
        task="choices:ewok",
        metric="accuracy",
        percent=100,
        places=("ewok_filtered", "ewok"),
        fields="Domain, Context1, Context2, Target1, Target2",
        source=f"{_BABYLM}, or EWoK-core-1.0 (Ivanova et al. 2024)",
    ),
    SuitePart(
        name="entity_tracking",
        task="choices:entity_tracking",
        metric="accuracy",
        percent=100,
        places=("entity_tracking",),
        fields="input_prefix, options (the first is right), numops",
        source=f"{_BABYLM} (Kim and Schuster 2023)",
    ),
    SuitePart(
        name="wug",
        task="word_ratios",
        metric="spearman",
        percent=100,
        places=("wug_adj_nominalization", "wug"),
        fields="sentences (two), ratio (people's share of the first)",
        source=f"{_BABYLM} (Hofmann et al. 2024)",
    ),
    SuitePart(
        name="comps",
        task="choices:comps",
        metric="accuracy",
        percent=100,
        places=("comps",),
        fields="prefix_acceptable, prefix_unacceptable, property_phrase",
        source=f"{_BABYLM}, or github.com/kanishkamisra/comps (Misra et al. 2023)",
    ),
    SuitePart(
        name="reading",
        task="reading",
        metric="gain",
        percent=1,
        places=("reading",),
        fields="columns item, word, length, frequency and times of reading",
        source=f"{_BABYLM} (de Varda et al. 2024), with the columns renamed",
        suffixes=(".csv", ".tsv"),
    ),
)
"""The tasks without training of the BabyLM challenge. Names of folders and fields are written from memory of the data of 2025."""
SUITES: dict[str, tuple[SuitePart, ...]] = {"babylm": BABYLM, "blimp": (BLIMP,)}
"""The suites that score one model."""
NOTES = {
    "babylm": "BabyLM's evaluation data: full_eval of github.com/babylm/evaluation-pipeline-2025; of 2026 babylm-eval, strict"
}
"""Suite -> the source that its tasks have in common."""


def find_parts(suite: str, data: str) -> list[LocalPart]:
    """Return the tasks of a suite with their files in a folder.

    Raises:
        BadInput: no such folder.
    """
    if not Path(data).is_dir():
        raise BadInput(f"--suite-data {data}: no such folder; name the one that has the files of {suite}")
    return [_local_part(part, Path(data)) for part in SUITES[suite]]


def check_complete(suite: str, data: str, parts: Sequence[LocalPart], *, partial: bool) -> None:
    """Refuse a suite whose files are absent, with their formats and sources.

    Args:
        partial: True if it is enough that some are there.

    Raises:
        BadInput: a file is absent, or with `partial` all are.
    """
    missing = [local for local in parts if local.folder is None or local.absent]
    if not missing or (partial and any(local.folder is not None for local in parts)):
        return
    every = all(local.folder is None for local in parts)
    listed = "; ".join(f"{_missing_text(local)} [{local.part.fields}] from {local.part.source}" for local in missing)
    note = f" ({NOTES[suite]})" if suite in NOTES else ""
    fix = "put them there" if every or partial else "put them there, or add --partial to score the others, without a mean"
    raise BadInput(f"--suite {suite}: {data} lacks {'all of its files' if every else 'files'}: {listed}{note}; {fix}")


def _local_part(part: SuitePart, data: Path) -> LocalPart:
    for place in part.places:
        folder = data / place
        if not folder.is_dir():
            continue
        stems = {file.stem for file in folder.iterdir() if file.suffix.lower() in part.suffixes and not file.name.startswith(".")}
        present = stems & {*part.files} if part.files else stems
        if present:
            return LocalPart(part, folder, tuple(name for name in part.files if name not in stems))
    return LocalPart(part, None)


def _missing_text(local: LocalPart) -> str:
    part = local.part
    if local.folder is None or not local.absent:
        return f"{part.name} ({part.places[0] or '.'}/*{part.suffixes[0]})"
    more = f" and {len(local.absent) - 3} more" if len(local.absent) > 3 else ""
    return f"{part.name} ({', '.join(f'{name}{part.suffixes[0]}' for name in local.absent[:3])}{more})"
