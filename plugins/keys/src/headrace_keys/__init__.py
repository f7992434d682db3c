"""API keys: hashed at rest, created and revoked without a restart."""
