"""Visual autoregressive image generation."""

__all__: list[str] = []
