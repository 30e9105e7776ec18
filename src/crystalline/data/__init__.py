"""From texts to batches: reading, the tokenizer, tokens on disk, what each step takes of them."""
