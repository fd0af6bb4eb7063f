"""The HTTP server: OpenAI's routes, adapters as a resource, and nothing that is not asked for."""
