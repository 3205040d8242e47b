"""z ↔ one token's distribution: the diffusion head and its L2 control."""
