"""Where data lies (`resolve`, `embedded`, `reviews`), what its columns mean, samples of it, and a model's inputs."""
