"""From a source to the model's own words: beam search."""
