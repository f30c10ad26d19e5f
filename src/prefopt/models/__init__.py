"""Loading policies, tokenizers and adapters."""
