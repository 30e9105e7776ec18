"""Models from elsewhere and for elsewhere: Hugging Face folders, GGUF files (docs/formats.md)."""
