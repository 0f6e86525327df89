"""The fault campaign: every fault of the matrix is tried for real and counted. Run it with `python -m tests.campaign --help`.

A row of the campaign is a function that tries a fault until its goal is reached or its share of the time is used up. Its result
states count, goal and failures. Rows for which a machine lacks something say what. `row_types` has the types, `all_rows` the
list, and `campaign_page` the page.
"""
