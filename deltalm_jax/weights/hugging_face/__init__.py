"""A folder that Hugging Face transformers loads: DeltaLM for PyTorch, its configuration, its tokenizer."""
