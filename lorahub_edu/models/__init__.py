"""Base models and tokenizers, and the sizes that a machine can run.

profiles: three sizes of the course. base_models: the models by name. tiny: random ones for tests. pretrained: loading.
"""
