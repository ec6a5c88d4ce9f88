"""phenoscape_tune."""
