"""An OpenAI-compatible HTTP front for the Triton models, through tritonclient."""
