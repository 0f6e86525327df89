"""`zoo plan --published`: training steps that others measured and published, beside plans of the same steps.

    published_rows -> row_rules -> run_rules -> compare_rows -> comparison_page
    a file's rows     what can be planned, as a run          planned and measured     shown

The file is not part of this project. `docs/plan-checks.md` describes its columns.
"""
