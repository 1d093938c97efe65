"""Low latency: from embeddings to kept embeddings and positions with static buffers and graphs."""

from cacovid.session.compression import CompressionSession, Pruned
from cacovid.session.question import ReadQuestion

__all__ = ["CompressionSession", "Pruned", "ReadQuestion"]
