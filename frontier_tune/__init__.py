"""frontier-tune: reinforcement-learning fine-tuning of mixture-of-experts models on a company's own workflows."""

__version__ = "0.1.0"
