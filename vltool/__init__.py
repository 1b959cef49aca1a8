"""The operator's tool for fine-tuning Qwen3-VL on dense captioning."""

__version__ = "0.1.0"
