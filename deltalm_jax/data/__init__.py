"""From text to batches: vocabulary, packing into chunks, prepared data on disk, and the stateless stream."""
