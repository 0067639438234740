"""The report: a page of one run, or of several."""
