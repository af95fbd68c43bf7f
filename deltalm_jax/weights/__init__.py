"""Readers and writers of other people's files of weights: PyTorch (fairseq), safetensors, Hugging Face."""
