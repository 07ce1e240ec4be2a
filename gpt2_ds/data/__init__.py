"""What a run reads: tokenizers, shards, the order of samples, the loader."""
