"""Evidence on real text: corpora assembled from packages that anybody can fetch."""
