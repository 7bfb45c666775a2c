"""What a chain or a latent carries: one command a file, offline."""
