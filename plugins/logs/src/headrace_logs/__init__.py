"""One structured line per request, without prompts, answers or keys."""
