"""Forgetting: training the last layers of a model, and what that does to the text it was trained on before.

In order: `hidden` (the tail over cached hidden states), `tails` (training it), `texts`, `lab`.
"""
