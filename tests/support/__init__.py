"""What several tests share: small prepared data, made directly from arrays."""
