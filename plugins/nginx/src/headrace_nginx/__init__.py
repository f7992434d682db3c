"""nginx in front: TLS, HTTP/2, limits, its own errors in the OpenAI envelope."""
