"""Stands in for `lorahub_edu.checks` while grading: a notebook may call `check`, and learns nothing by it."""


def check(id: str, answer: object, seed: int | None = None) -> str:
    """Say that checks are for the notebook at home."""
    return f"{id}: checks don't run while a submission is graded"
