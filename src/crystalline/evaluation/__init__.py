"""What a model is worth: how well it predicts texts, and how much of its code parses."""
