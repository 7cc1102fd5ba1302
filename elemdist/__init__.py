"""Elementwise transformers: text as rows of UTF-8 bytes, without a tokenizer."""

__version__ = "0.1.0"
