"""What is asked of a fitted density: rows, conditions, imputation, scores, information."""
