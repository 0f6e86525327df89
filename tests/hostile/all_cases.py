"""All hostile cases."""

from tests.hostile import code_cases, content_cases, path_cases, store_cases, terminal_cases, tokenizer_cases, weight_cases

CASES = (
    *code_cases.CASES,
    *path_cases.CASES,
    *content_cases.CASES,
    *weight_cases.CASES,
    *tokenizer_cases.CASES,
    *terminal_cases.CASES,
    *store_cases.CASES,
)
