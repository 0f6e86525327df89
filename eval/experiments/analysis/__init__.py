"""Statistics over seeds, and the verdicts on claims that they allow."""
