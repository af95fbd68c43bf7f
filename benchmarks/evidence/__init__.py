"""Which of the papers' ideas hold with this code: corpora, an encoder, and the comparisons, each by a command."""
